"""Evolution in generations, as single-path one-shot search (1904.00420) and DetNAS (1903.10979) have it.

A generation is scored before the next is made: mutants of the best of all time, crossovers of two of them,
and the rest at random; the first is all random. Where MMRazor departs from the paper's code we do not: every
generation is scored, the last too, no architecture twice, by scores as they are, not rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import numpy as np

from experiments.strategies.contract import Setup
from utils.history import Arch, Trial, arch_key
from utils.limits import violation

ATTEMPTS = 10  # for each mutant or crossover wanted, as in MMRazor; what is missing is drawn at random
DRAWS = 500  # random archs tried before we call the space exhausted
Child = tuple[Arch, tuple[int, ...]]  # and the numbers of its parents


class Generations:
    """Ask/tell; see `AskTell`. Which archs a generation has hangs on the scores of those before it, not on
    who was finished first: several workers find the same ones as one.

    population_size: of each generation. parents: so many of the best of all time have children; mutants and
    crossovers: so many of those. mutation_prob: of each gene. generations: after which the search ends; None:
    where its budget does.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        population_size: int,
        parents: int,
        mutants: int,
        crossovers: int,
        mutation_prob: float,
        generations: int | None = None,
    ) -> None:
        self.setup, self.space = setup, setup.space
        self.population_size, self.top_k = population_size, parents
        self.mutants, self.crossovers = mutants, crossovers
        self.mutation_prob, self.generations = mutation_prob, generations
        self.parents: tuple[int, ...] = ()
        self.waiting = False  # whether the last `ask` had nothing because a generation is not scored yet
        self.generation = 0
        self._planned: list[Child] = []
        self._open: set[str] = set()  # of this generation, asked for and not told of
        self._visited: set[str] = set()
        self._scored: dict[str, Trial] = {}
        self._rng = np.random.default_rng(setup.seed)

    def ask(self) -> Arch | None:
        """The next of this generation; None while others of it are being scored, and at the end."""
        self.waiting = not self._planned and bool(self._open)
        if self.waiting or (not self._planned and self.generation == self.generations):
            return None
        if not self._planned:
            self._planned = self._next()
            self.generation += 1
        if not self._planned:
            return None
        arch, self.parents = self._planned.pop(0)
        self._open.add(arch_key(arch))
        return arch

    def tell(self, trial: Trial) -> None:
        self._open.discard(trial.key)
        self._visited.add(trial.key)
        if trial.state == "complete" and trial.reward is not None:
            self._scored[trial.key] = trial

    @property
    def best(self) -> list[Trial]:
        """The parents of the next generation; of equal ones those that came first."""
        order = sorted(self._scored.values(), key=lambda t: (-float(t.reward or 0.0), t.number))
        return order[: self.top_k]

    def _next(self) -> list[Child]:
        parents, found = self.best, []
        if parents and self.generation:  # the unsearched network may be scored before the first, or not yet
            found += self._children(lambda: self._mutant(parents), self.mutants)
            found += self._children(lambda: self._crossover(parents), self.crossovers)
        for _ in range(DRAWS):
            if len(found) == self.population_size:
                break
            arch = self.setup.within_limits(self.space.random(self._rng), self._rng)
            found += [(arch, ())] if self._takes(arch) else []
        return found

    def _children(self, make: Callable[[], Child], wanted: int) -> list[Child]:
        tried = (make() for _ in range(ATTEMPTS * wanted))
        return list(islice((child for child in tried if self._takes(child[0])), wanted))

    def _mutant(self, parents: list[Trial]) -> Child:
        one = parents[int(self._rng.integers(len(parents)))]
        genes = self.space.mutate(self.space.complete(one.arch), self._rng, self.mutation_prob)
        return self.space.repair(genes), (one.number,)

    def _crossover(self, parents: list[Trial]) -> Child:
        """Of two that differ, where there are two."""
        chosen = self._rng.choice(len(parents), size=min(2, len(parents)), replace=False)
        mother, father = parents[chosen[0]], parents[chosen[-1]]
        genes = self.space.complete(mother.arch), self.space.complete(father.arch)
        return self.space.repair(self.space.cross(*genes, self._rng)), (mother.number, father.number)

    def _takes(self, arch: Arch) -> bool:
        """Whether an arch was never proposed before and breaks no limit that is known without measuring."""
        key, quick = arch_key(arch), self.setup.quick
        if key in self._visited or (quick is not None and violation(self.setup.limits, quick(arch)) > 0):
            return False
        self._visited.add(key)
        return True
