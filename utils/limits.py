"""Hard limits on what an architecture may cost, checked before anything is trained.

`{"gflops": "<= 4", "params_m": ">= 0.5, <= 2", "latency_ms": "<= 0.8 baseline"}`: an arch that breaks one is
infeasible, and limits that no arch of the space meets are found before the search starts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.errors import UserError, unknown
from utils.history import Arch
from utils.rewards import COST_KEYS
from utils.sides import Sides

_CONDITION = re.compile(r"\s*(<=|>=)\s*(\S+?)??\s*(baseline)?\s*")  # `<= 4`, `<= baseline`, `<= 0.8 baseline`


@dataclass(frozen=True)
class Limit:
    """`key <= bound` or `key >= bound`."""

    key: str
    sign: str
    bound: float

    def violation(self, metrics: Mapping[str, float]) -> float:
        """0 when met, else by how much of the bound it is broken (of 1 where the bound is 0).

        KeyError when the metric was not measured.
        """
        excess = metrics[self.key] - self.bound if self.sign == "<=" else self.bound - metrics[self.key]
        return max(0.0, excess / (abs(self.bound) or 1.0))

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}"


def parse_limits(limits: Mapping[str, Any], baseline: Mapping[str, float] | None = None) -> list[Limit]:
    """The limits of an experiment. A bare number means "at most"; two conditions are joined by a comma.

    baseline: costs of the unsearched network, which a bound may be a multiple of; conditions that speak of
        one that is not given here are left out.
    Raises UserError for a metric that is not a cost, and for anything but `<= number` and `>= number`.
    """
    found = []
    for key, text in limits.items():
        if key not in COST_KEYS:
            raise unknown("limit", key, COST_KEYS)
        if isinstance(text, int | float) and not isinstance(text, bool):
            text = f"<= {text}"
        for condition in str(text).split(","):
            match = _CONDITION.fullmatch(condition)
            relative = match is not None and match[3] is not None
            try:
                bound = float(match[2] or (1.0 if relative else math.nan)) if match else math.nan
            except ValueError:
                bound = math.nan
            if match is None or not math.isfinite(bound):
                raise UserError(f"limit of {key} is {text!r}; write '<= 4', '>= 4' or '<= 0.8 baseline'")
            if not relative:
                found.append(Limit(key, match[1], bound))
            elif key in (baseline or {}):
                found.append(Limit(key, match[1], bound * (baseline or {})[key]))
    return found


def violation(limits: Sequence[Limit], metrics: Mapping[str, float]) -> float:
    """The sum of what is broken; 0 when every limit is met. A metric not given breaks nothing."""
    return sum(limit.violation(metrics) for limit in limits if limit.key in metrics)


def broken(limits: Sequence[Limit], metrics: Mapping[str, float]) -> str | None:
    """`gflops 5.1 breaks <= 4`, or None when every limit is met. A metric not given breaks nothing."""
    lines = [
        f"{limit.key} {metrics[limit.key]:.6g} breaks {limit}"
        for limit in limits
        if limit.key in metrics and limit.violation(metrics) > 0
    ]
    return "; ".join(lines) or None


def steer(
    space: Any,
    arch: Arch,
    limits: Sequence[Limit],
    price: Callable[[Arch], Mapping[str, float]],
    rng: np.random.Generator,
) -> Arch:
    """An arch near `arch` that meets the limits, or breaks them less: random changes, kept if they help.

    Where one arch in a million is cheap enough, drawing until one is would never end. What comes out lies
    close to the limit more often than a fair draw among the feasible archs would. Bounded: 20 tries a label.
    """
    current = space.repair(arch)
    genes = space.complete(current)
    value = violation(limits, price(current))
    for _ in range(20 * len(space.choices)):
        if value == 0:
            break
        changed = space.change(genes, rng)
        candidate = space.repair(changed)
        broken_by = violation(limits, price(candidate))
        if broken_by < value:
            genes, current, value = changed, candidate, broken_by
    return current


def check_limits(
    space: Any,
    limits: Sequence[Limit],
    imgsz: Sides,
    rng: np.random.Generator,
    *,
    cost: Callable[[Arch], Mapping[str, float]] | None = None,
    samples: int = 500,
) -> float:
    """Can the limits be met at all? The share of random archs that meet them, 0..1 (1 without limits).

    Tries `samples` random archs; when none is feasible, goes downhill in the total violation, one choice at a
    time, from the best of them, the default, the cheapest and the dearest. Costs are sums over layers, so
    single changes find their way; what is missed would have to need several changes at once.

    cost: prices an arch; default `space.cost(arch, imgsz)`. It is called some thousand times, so leave out
    what is slow to measure: limits on a metric it does not give (latency_ms) are not checked here.
    Raises UserError that names the limits and the nearest values found when no arch meets them.
    """

    def price(arch: Arch) -> Mapping[str, float]:
        return cost(arch) if cost else space.cost(arch, imgsz)

    first = price(space.default())
    limits = [limit for limit in limits if limit.key in first]
    if not limits:
        return 1.0

    def total(arch: Arch) -> float:
        return violation(limits, price(arch))

    drawn = [space.random(rng) for _ in range(samples)]
    violations = [total(arch) for arch in drawn]
    share = sum(v == 0 for v in violations) / max(1, samples)
    if share > 0:
        return share
    starts = [space.default(), space.smallest(), space.largest()]
    if drawn:
        starts.append(drawn[int(np.argmin(violations))])
    ends = [_downhill(space, arch, total) for arch in starts]
    best = min(ends, key=total)
    if total(best) == 0:
        return share
    metrics = price(best)
    wanted = ", ".join(f"{limit.key} {limit}" for limit in limits)
    nearest = ", ".join(f"{key} {metrics[key]:.4g}" for key in dict.fromkeys(limit.key for limit in limits))
    raise UserError(f"no architecture of the space meets the limits {wanted}; the nearest has {nearest}")


def _downhill(space: Any, arch: Arch, total: Callable[[Arch], float]) -> Arch:
    """Take the best change of a single choice until none lessens the violation."""
    current, value = arch, total(arch)
    while value > 0:
        changed = [space.repair(genes) for genes in space.changes(space.complete(current))]
        values = [total(c) for c in changed]
        if not values or min(values) >= value:
            break
        value = min(values)
        current = changed[values.index(value)]
    return current
