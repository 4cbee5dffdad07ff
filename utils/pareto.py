"""Several objectives at once: dominance, fronts, crowding, hypervolume, the knee.

Objectives are `{"map50_95": "max", "gflops": "min"}`. Inside, everything is minimised: what is to be
maximised changes its sign once, in `as_costs`. pymoo does the sorting and the volume, imported when needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError, unknown
from utils.history import Trial

Objectives = Mapping[str, str]  # metric -> "max" or "min"
Costs = NDArray[np.float64]  # [points, objectives], less is better


def check_objectives(objectives: Objectives, known: Sequence[str] | None = None) -> None:
    """Raises UserError for no objective, a direction other than max/min, or a metric outside `known`."""
    if not objectives:
        raise UserError("objectives is empty; for example {map50_95: max, gflops: min}")
    for key, direction in objectives.items():
        if direction not in ("max", "min"):
            raise unknown(f"direction of objective {key!r}", direction, ["max", "min"])
        if known is not None and key not in known:
            raise unknown("objective", key, known)


def as_costs(metrics: Sequence[Mapping[str, float]], objectives: Objectives) -> Costs:
    """A row for each mapping, a column for each objective, all minimised. KeyError if a metric is missing."""
    signs = {"max": -1.0, "min": 1.0}
    rows = [[signs[way] * m[key] for key, way in objectives.items()] for m in metrics]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(objectives))


def dominates(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    """Is cost vector a nowhere worse than b, and somewhere better? Equals do not dominate each other."""
    return bool(np.all(a <= b) and np.any(a < b))


def sort_fronts(costs: Costs) -> list[list[int]]:
    """Row numbers by front, the non-dominated first (fast non-dominated sort, Deb 2002, section III A)."""
    if len(costs) == 0:
        return []
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    return [sorted(int(i) for i in front) for front in NonDominatedSorting().do(costs)]


def crowding(costs: Costs) -> NDArray[np.float64]:
    """Crowding distance of each row among the given ones (Deb 2002 section III B); infinite at the ends.

    An end that two equal rows share gives infinity to one of them only.
    """
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance

    if len(costs) <= 2:
        return np.full(len(costs), np.inf)
    return np.asarray(calc_crowding_distance(costs), dtype=np.float64)


def hypervolume(trials: Sequence[Trial], objectives: Objectives, reference: Mapping[str, float]) -> float:
    """Volume dominated by the trials and bounded by `reference`, in the product of the objectives' units.

    reference: a value for each objective in its own units, e.g. {"map50_95": 0.0, "gflops": 2.0}.
    Trials that are not better than the reference in every objective add nothing; no trial gives 0.
    """
    check_objectives(objectives)
    missing = [key for key in objectives if key not in reference]
    if missing:
        raise UserError(
            f"the reference point has no {missing[0]!r}; it has {', '.join(reference) or 'nothing'}"
        )
    corner = as_costs([reference], objectives)[0]
    costs = as_costs([t.metrics for t in _scored(trials, objectives)], objectives)
    inside = costs[np.all(costs < corner, axis=1)]
    if len(inside) == 0:
        return 0.0
    from pymoo.indicators.hv import HV

    return float(HV(ref_point=corner)(inside))


def trials_without_gain(trials: Sequence[Trial], objectives: Objectives) -> int:
    """How many trials ended, in this order, since the last one that was on the front when it ended."""
    since, front = 0, list[Trial]()
    for trial in trials:
        front = pareto_front([*front, trial], objectives)
        since = 0 if trial in front else since + 1
    return since


def pareto_front(trials: Sequence[Trial], objectives: Objectives) -> list[Trial]:
    """The complete trials that no other one dominates, best first by the first objective, then by number.

    Trials that are not complete, or lack a finite value of an objective, are left out; equal points all stay.
    Raises UserError when trials are complete and none of them has the objective: a misspelt key.
    """
    check_objectives(objectives)
    scored = _scored(trials, objectives)
    if not scored:
        return []
    costs = as_costs([t.metrics for t in scored], objectives)
    front = sort_fronts(costs)[0]
    front.sort(key=lambda i: (costs[i, 0], scored[i].number))
    return [scored[i] for i in front]


def knee(front: Sequence[Trial], objectives: Objectives) -> Trial:
    """The trial of a front where giving up a little of one objective stops paying much in another.

    Each objective is scaled to 0..1 over the front; the extremes then span the plane sum(f) = 1, and the knee
    is the point farthest from it towards the ideal (Das 1999, "On characterizing the 'knee' of the Pareto
    curve"). When no point is farther than the extremes themselves (one or two points, a straight or a bulging
    front) there is no knee, and the best by the first objective is returned. ValueError for an empty front.
    """
    if not front:
        raise ValueError("an empty front has no knee")
    costs = as_costs([t.metrics for t in front], objectives)
    low, high = costs.min(axis=0), costs.max(axis=0)
    spread = np.where(high > low, high - low, 1.0)
    sums = ((costs - low) / spread).sum(axis=1)
    nearest = [i for i in range(len(front)) if sums[i] <= sums.min() + 1e-9]
    best = min(nearest, key=lambda i: (costs[i, 0], front[i].number))
    return front[best]


def _scored(trials: Sequence[Trial], objectives: Objectives) -> list[Trial]:
    """Complete trials that have a finite value of every objective."""
    complete = [t for t in trials if t.state == "complete"]
    for key in objectives:
        if complete and not any(key in t.metrics for t in complete):
            raise unknown("objective", key, sorted({k for t in complete for k in t.metrics}))
    return [t for t in complete if all(math.isfinite(t.metrics.get(key, math.nan)) for key in objectives)]
