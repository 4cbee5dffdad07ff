"""Multi-objective evolution: NSGA-II (Deb et al. 2002, IEEE TEC 6(2)), one child at a time.

Where we depart from the paper: a child replaces the worst of the population as soon as it is known (steady
state) instead of generation by generation, so that no worker waits for the slowest trial of a generation;
variation is the space's own (models/space.py): for labels uniform crossover and another of a label's values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.space import Space
from utils.errors import UserError
from utils.history import Arch, Trial, arch_key
from utils.limits import Limit, violation
from utils.pareto import as_costs, check_objectives, crowding, sort_fronts

VARIATIONS = 200  # children tried before we draw at random
DRAWS = 500  # random archs tried before we call the space exhausted


@dataclass(frozen=True)
class Individual:
    """violation: by how much limits are broken. Infeasible ones were never trained and have no objectives,
    stopped ones not those of a whole training."""

    trial: Trial
    violation: float

    @property
    def feasible(self) -> bool:
        return self.violation == 0 and self.trial.state == "complete"


class ParetoEvolution:
    """Ask/tell NSGA-II over the labels of a space; see `AskTell`.

    objectives:      metric -> "max" or "min", read from the metrics of the trials
    mutation_prob:   for each label, to take another of its values; default 1 / number of labels
    crossover_prob:  to mix two parents, label by label with equal chances, instead of copying one
    start:           where the first population comes from: "baseline" = it fans out from the unsearched
                     network, the i-th of n with each label redrawn with probability (i/n)^2, so that a
                     small budget begins where things are known to work; "random" = as in the paper;
                     "front" = all are children of the front from the first on, of the unsearched network
                     until anything is known, so that each has the weights of a parent to start from
    limits:          an arch that breaks one loses against any that breaks none, and against any that breaks
                     less (constraint-dominance, section VI of the paper)
    within_limits:   moves a random arch into the limits
    first:           archs to begin the first population with
    """

    def __init__(
        self,
        space: Space,
        objectives: Mapping[str, str],
        *,
        seed: int,
        population_size: int,
        mutation_prob: float | None = None,
        crossover_prob: float = 0.9,
        start: str = "baseline",
        limits: Sequence[Limit] = (),
        within_limits: Callable[[Arch, np.random.Generator], Arch] | None = None,
        first: Sequence[Arch] = (),
    ) -> None:
        check_objectives(objectives)
        self.space = space
        self.objectives = dict(objectives)
        self.limits = list(limits)
        self.within_limits = within_limits or (lambda arch, rng: arch)
        self.population_size = population_size
        self.mutation_prob = 1 / max(1, len(space.choices)) if mutation_prob is None else mutation_prob
        self.crossover_prob = crossover_prob
        self.start = start
        self._first = list(first)
        self.parents: tuple[int, ...] = ()
        self.population: list[Individual] = []
        self._fitness: list[tuple[int, float]] = []  # of the population: (rank, -crowding), less is better
        self._proposed: set[str] = set()
        self._told: set[str] = set()
        self._rng = np.random.default_rng(seed)

    def ask(self) -> Arch | None:
        """An arch never proposed before: of the first population, then a child; None = exhausted."""
        while self._first:
            arch = self._first.pop(0)
            if self._is_new(arch):
                self.parents = ()
                return arch
        begun = self.start == "front" or (
            len(self._proposed) >= self.population_size and len(self.population) >= 2
        )
        for _ in range(VARIATIONS if begun else 0):
            child, parents = self._child()
            if self._is_new(child):
                self.parents = parents
                return child
        for _ in range(DRAWS):
            arch = self.space.random(self._rng) if begun or self.start == "random" else self._near_baseline()
            arch = self.within_limits(arch, self._rng)
            if self._is_new(arch):
                self.parents = ()
                return arch
        return None

    def tell(self, trial: Trial) -> None:
        """Take a trial into the population and let the worst go. Failed and repeated ones change nothing; a
        stopped one loses against all that were trained to their end.

        Raises UserError when a complete trial was not measured for an objective.
        """
        self.tell_all([trial])

    def tell_all(self, trials: Sequence[Trial]) -> None:
        """The same for several at once, which then compete as a generation."""
        taken = [trial for trial in trials if self._take(trial)]
        for trial in taken:
            self.population.append(Individual(trial, violation(self.limits, trial.metrics)))
        if taken:
            self._select()

    def _take(self, trial: Trial) -> bool:
        self._proposed.add(trial.key)
        if trial.key in self._told or trial.state == "failed":
            return False
        if trial.state == "complete":
            for key in self.objectives:
                if key not in trial.metrics:
                    have = ", ".join(trial.metrics) or "nothing"
                    raise UserError(f"objective {key!r} was not measured; trial {trial.number} has {have}")
            if not all(math.isfinite(trial.metrics[key]) for key in self.objectives):
                return False
        self._told.add(trial.key)
        return True

    def _near_baseline(self) -> Arch:
        redrawn = (len(self._proposed) / self.population_size) ** 2
        genes = self.space.complete(self.space.default())
        return self.space.repair(self.space.redraw(genes, self._rng, redrawn))

    def _is_new(self, arch: Arch) -> bool:
        key = arch_key(arch)
        if key in self._proposed:
            return False
        self._proposed.add(key)
        return True

    def _child(self) -> tuple[Arch, tuple[int, ...]]:
        if self.start == "front" and not self.population:
            genes = self.space.complete(self.space.default())
            return self.space.repair(self.space.mutate(genes, self._rng, self.mutation_prob)), (0,)
        mother, father = self._parent(), self._parent()
        genes = self.space.complete(mother.trial.arch)
        parents = [mother]
        if mother is not father and self._rng.random() < self.crossover_prob:
            genes = self.space.cross(genes, self.space.complete(father.trial.arch), self._rng)
            parents.append(father)
        child = self.space.repair(self.space.mutate(genes, self._rng, self.mutation_prob))
        # An infeasible parent is no trial and has no number (-1): nothing to point to.
        return child, tuple(p.trial.number for p in parents if p.trial.number >= 0)

    def _parent(self) -> Individual:
        if self.start != "front":
            return self._tournament()
        front = [p for p, (rank, _) in zip(self.population, self._fitness, strict=True) if rank == 0]
        return front[int(self._rng.integers(len(front)))]

    def _tournament(self) -> Individual:
        """The better of two by rank, then by crowding (the crowded-comparison operator, section III B)."""
        i, j = self._rng.choice(len(self.population), size=2, replace=False)
        return self.population[i if self._fitness[i] <= self._fitness[j] else j]

    def _select(self) -> None:
        """Rank everybody, keep the best `population_size`; the order of the population is that of fitness."""
        feasible = [p for p in self.population if p.feasible]
        broken = sorted((p for p in self.population if not p.feasible), key=lambda p: p.violation)
        ranked: list[tuple[tuple[int, float], Individual]] = []
        costs = as_costs([p.trial.metrics for p in feasible], self.objectives)
        fronts = sort_fronts(costs)
        for rank, front in enumerate(fronts):
            for i, distance in zip(front, crowding(costs[front]), strict=True):
                ranked.append(((rank, -float(distance)), feasible[i]))
        for rank, individual in enumerate(broken, start=len(fronts)):
            ranked.append(((rank, 0.0), individual))
        ranked = sorted(ranked, key=lambda pair: pair[0])[: self.population_size]
        self._fitness = [fitness for fitness, _ in ranked]
        self.population = [individual for _, individual in ranked]
