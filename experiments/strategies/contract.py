"""What a strategy of our own is, and what every strategy gets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from models.space import Space
from utils.history import Arch, Trial
from utils.limits import Limit, steer, violation
from utils.pareto import as_costs, crowding, sort_fronts


class AskTell(Protocol):
    """A strategy of our own: one seeded generator, no torch, no NNI.

    `ask` may be called several times before the first `tell` (several trials run at once).
    """

    parents: tuple[int, ...]
    """Numbers of the trials that the arch of the last `ask` was made from; empty if it was drawn at random.
    """

    def ask(self) -> Arch | None:
        """A canonical arch to try next; None when nothing is left to propose."""

    def tell(self, trial: Trial) -> None:
        """What became of an arch: complete, stopped, failed or infeasible. Also told of the baseline, which
        was never asked for.
        """

    # May have `closing() -> str | None` as well: a line for the end of the search; and `waiting`: whether
    # the last `ask` gave None only until all that runs has been told of.


@dataclass(frozen=True)
class Setup:
    """What every strategy gets beside its options.

    budget:  trials of the whole search, the baseline included
    repeats: how many proposals in a row have been tried before, by now
    quick:   costs of an arch in microseconds, or None where only measuring tells
    known:   trials of an earlier step, measured as this search measures
    first:   archs to begin with, the best first, in the place of a head start from the known
    run_dir: where a strategy may write down what it found out, or None
    """

    space: Space
    seed: int
    budget: int
    objectives: Mapping[str, str]
    limits: Sequence[Limit] = ()
    repeats: Callable[[], int] = lambda: 0
    quick: Callable[[Arch], Mapping[str, float]] | None = None
    known: Sequence[Trial] = ()
    run_dir: Path | None = None
    first: Sequence[Arch] = ()

    def within_limits(self, arch: Arch, rng: np.random.Generator) -> Arch:
        """`arch`, or one near it that meets the limits: a random start would seldom find those on its own."""
        if self.quick is None or not self.limits:
            return self.space.repair(arch)
        return steer(self.space, arch, self.limits, self.quick, rng)

    def head_start(self, count: int) -> list[Arch]:
        """Up to `count` archs of the known trials, the best by all objectives first (rank, then crowding).

        They are for measuring again, so that they are in the history of this search; only within the limits.
        Where a search was given its `first`, all of those.
        """
        if self.first:
            return list(self.first)
        able: list[tuple[Arch, dict[str, float]]] = []
        for trial in self.known:
            metrics = {**trial.metrics, **(self.quick(trial.arch) if self.quick else {})}
            scored = all(math.isfinite(metrics.get(key, math.nan)) for key in self.objectives)
            if trial.state == "complete" and scored and violation(self.limits, metrics) == 0:
                able.append((trial.arch, metrics))
        costs = as_costs([metrics for _, metrics in able], self.objectives)
        found: list[Arch] = []
        for front in sort_fronts(costs):
            apart = crowding(costs[front])
            found += [able[front[i]][0] for i in np.argsort(-apart, kind="stable")]
        return found[:count]
