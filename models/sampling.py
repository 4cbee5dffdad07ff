"""Which arch a supernet trains next: uniform, spread over FLOPs, or the best of a few. No torch.

    sampler = Stratified(space, imgsz=512, seed=0)
    arch = sampler(generator(seed, step, k))

A sampler is a function of a generator, and the generator one of (seed, step, k): every rank of a distributed
training draws the same arch without a word between them, and a resumed one what it would have drawn.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from models.space import Arch, Choice, Space, Take
from utils.errors import UserError, unknown
from utils.sides import Sides

Sampler = Callable[[np.random.Generator], Arch]
TILT = 6.0  # odds of e^6 between a gene's largest and smallest value at the ends of the pool
TRIES = 2000

GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples modulo 1 are evenly spread, however many are taken


def leaning(n: int) -> float:
    """Where the n-th of a few draws leans, from -4 (to small) to 4 (to large), for `Space.biased`: any number
    of them, n = 1, 2, ..., is evenly spread."""
    return 4.0 * (2 * (n * GOLDEN % 1) - 1)


def generator(seed: int, step: int, k: int = 0) -> np.random.Generator:
    """The generator of the k-th arch of a training step; equal on every rank and in every process."""
    return np.random.default_rng([seed, step, k])


def subnets(
    kinds: Sequence[str],
    space: Space | Narrowed,
    seed: int,
    step: int,
    sampler: Sampler | None = None,
    one_resolution: bool = True,
) -> list[Arch]:
    """The archs of a training step: 'max', 'min', and 'random' by the sampler, by default the space's own.

    one_resolution: where the resolution is searched, all archs of a step get the same one, drawn uniformly:
    outputs at every anchor can only be compared at one size. Classifiers may differ.

    Raises UserError for an unknown kind, and for a 'max' that does not come first: it teaches the others.
    """
    for kind in kinds:
        if kind not in ("max", "random", "min"):
            raise unknown("kind of subnet", kind, ("max", "random", "min"))
    if not kinds or "max" in kinds[1:]:
        raise UserError(f"the subnets of a step should be 'max' first, then others, got {list(kinds)}")
    draws = {"max": lambda rng: space.largest(), "min": lambda rng: space.smallest()}
    archs = [
        draws.get(kind, sampler or space.random)(generator(seed, step, k)) for k, kind in enumerate(kinds)
    ]
    sides = space.choices.get("resolution")
    if sides and one_resolution:
        side = sides[int(generator(seed, step, len(kinds)).integers(len(sides)))]
        archs = [arch | {"resolution": side} for arch in archs]
    return archs


class Phases:
    """What may be drawn in each epoch (progressive shrinking, Once-for-All, arXiv 1908.09791).

    schedule: label of a choice, or what labels begin with -> (epochs from 1 where a phase begins, values that
    may be drawn in each). `at(epoch)` is the space of that epoch, `said(epoch)` what is new then.

    Raises UserError for labels and values that the space does not have, and for boundaries that do not fit.
    """

    def __init__(
        self, space: Space, schedule: Mapping[str, tuple[list[int], list[list[Any]]]], epochs: int
    ) -> None:
        self.space, self.schedule = space, schedule
        self.phases: dict[str, tuple[list[int], list[list[Any]]]] = {}
        for key, (starts, values) in schedule.items():
            labels = [label for label in space.choices if label == key or label.startswith(f"{key}.")]
            if not labels:
                raise unknown("choice in supernet.schedule", key, space.choices)
            if len(starts) != len(values) or starts != sorted({1, *starts}):
                raise UserError(
                    f"supernet.schedule: {key} needs a list of values for each boundary, from 1 up"
                )
            if not all(values):
                raise UserError(f"supernet.schedule: {key} has a phase without a value: {values}")
            if starts[-1] > epochs:
                raise UserError(f"supernet.schedule: {key} changes in epoch {starts[-1]} of {epochs}")
            for value in (value for phase in values for value in phase):
                for label in labels:
                    if value not in space.choices[label]:
                        raise unknown(f"value of {label} in supernet.schedule", value, space.choices[label])
            self.phases |= dict.fromkeys(labels, (starts, values))

    def at(self, epoch: int) -> Space | Narrowed:
        if not self.phases:
            return self.space
        now = {k: values[bisect_right(starts, epoch) - 1] for k, (starts, values) in self.phases.items()}
        return Narrowed(self.space, now)

    def changes(self, epoch: int) -> bool:
        """Whether a phase begins with this epoch."""
        return any(epoch in starts for starts, _ in self.schedule.values())

    def first_below(self, labels: Sequence[str]) -> int:
        """The first epoch in which one of these choices may be drawn below its largest; 1 without a phase."""
        largest, found = self.space.largest(), []
        for label in labels:
            starts, values = self.phases.get(label, ([1], [self.space.choices[label]]))
            found += [at for at, may in zip(starts, values, strict=True) if set(may) - {largest.get(label)}]
        return min(found, default=1)

    def said(self, epoch: int) -> str:
        """`backbone.depth of 4, 3; ...`: what may be drawn in this epoch; "" without a schedule."""
        now = {k: values[bisect_right(starts, epoch) - 1] for k, (starts, values) in self.schedule.items()}
        return "; ".join(f"{key} of {', '.join(map(str, values))}" for key, values in now.items())


class Narrowed:
    """A space in which some choices have fewer values."""

    def __init__(self, space: Space, left: Mapping[str, Sequence[Any]]) -> None:
        self.space, self.left = space, left
        self.choices = {k: [v for v in vs if v in left.get(k, vs)] for k, vs in space.choices.items()}

    def _decided(self, take: Take) -> Arch:
        def among(choice: Choice) -> Any:
            left = [v for v in choice.values if v in self.choices[choice.label]]
            if not left:
                raise UserError(f"supernet.schedule leaves {choice.label} no value that its order allows")
            return take(choice.only(left))

        return self.space.decided(among)

    def largest(self) -> Arch:
        return self._decided(lambda choice: choice.largest)

    def smallest(self) -> Arch:
        return self._decided(lambda choice: choice.smallest)

    def random(self, rng: np.random.Generator) -> Arch:
        return self._decided(lambda choice: choice.values[int(rng.integers(len(choice.values)))])


class Stratified:
    """Archs whose cost is spread evenly over what the space offers.

    Choices drawn uniformly give costs crowded in the middle, and the ends of the range are hardly trained.
    Here a bin of the cost range is drawn (AttentiveNAS, arXiv 2011.09011, section 3, draws a target cost) and
    an arch of it, from a pool that leans to small and large values as often as to none.

    bins: of equal width between the smallest and the largest cost. pool: archs drawn once, from `seed`.
    key: which cost. `bin_counts`: archs of the pool in each bin; an empty bin is never drawn.
    """

    def __init__(
        self, space: Space, imgsz: Sides, seed: int = 0, bins: int = 16, pool: int = 2000, key: str = "gflops"
    ) -> None:
        if bins < 1 or pool < bins:
            raise UserError(f"stratified sampling needs bins >= 1 and pool >= bins, got {bins=}, {pool=}")
        rng = np.random.default_rng([seed, 0x57])  # not the stream of any training step
        archs = [space.smallest(), space.largest()]
        archs += [space.biased(rng, float(rng.uniform(-TILT, TILT))) for _ in range(pool - len(archs))]
        costs = np.array([space.cost(arch, imgsz)[key] for arch in archs])
        edges = np.linspace(costs.min(), costs.max(), bins + 1)
        which = np.clip(np.searchsorted(edges, costs, side="right") - 1, 0, bins - 1)
        self.edges = edges
        self.bin_counts = np.bincount(which, minlength=bins).tolist()
        self.strata = [
            [archs[i] for i in np.flatnonzero(which == b)] for b in range(bins) if (which == b).any()
        ]

    def __call__(self, rng: np.random.Generator) -> Arch:
        stratum = self.strata[int(rng.integers(len(self.strata)))]
        return dict(stratum[int(rng.integers(len(stratum)))])


def spread(space: Space, imgsz: Sides, n: int, seed: int = 0, key: str = "gflops") -> list[Arch]:
    """`n` different archs, as evenly over the cost range as the space allows; the smallest and largest first.

    More of them begin with the same ones, from 16 on. Fewer come out where the space, or the pool of 4000
    that they are taken from, has fewer.
    """
    bins = min(n, 16)
    rng = np.random.default_rng([seed, bins])
    strata = Stratified(space, imgsz, seed, bins, pool=4000, key=key).strata
    shuffled = [[stratum[i] for i in rng.permutation(len(stratum))] for stratum in strata]
    found: dict[tuple[object, ...], Arch] = {}
    for arch in (space.smallest(), space.largest()):
        found[tuple(arch.items())] = arch
    for turn in range(max(map(len, shuffled))):
        for stratum in shuffled:
            if turn < len(stratum) and len(found) < n:
                found.setdefault(tuple(stratum[turn].items()), stratum[turn])
    return list(found.values())[:n]


class BestOf:
    """The one of k archs with the lowest score: with a minibatch loss, AttentiveNAS's BestUp; with its
    negative, WorstUp (arXiv 2011.09011, section 3.2)."""

    def __init__(self, sampler: Sampler, score: Callable[[Arch], float], k: int = 3) -> None:
        if k < 1:
            raise UserError(f"best-of-k sampling needs k >= 1, got {k}")
        self.sampler, self.score, self.k = sampler, score, k

    def __call__(self, rng: np.random.Generator) -> Arch:
        return min((self.sampler(rng) for _ in range(self.k)), key=self.score)


def in_range(
    space: Space,
    rng: np.random.Generator,
    low: float,
    high: float,
    imgsz: Sides,
    n: int = 1,
    key: str = "gflops",
    tries: int = TRIES,
) -> list[Arch]:
    """`n` different random archs that cost between `low` and `high`, both included.

    Draws lean to small or large values, so that the ends of the space are met as well. Raises UserError after
    `tries` draws without a new one, with the nearest cost that was seen.
    """
    if not low <= high:  # or one is no number
        raise UserError(f"{key} range {low:g} to {high:g} is empty: the first is above the second")
    found: dict[tuple[object, ...], Arch] = {}
    nearest, missed = None, 0
    ends: Sequence[Arch] = [space.smallest(), space.largest()]
    while len(found) < n and missed < tries:
        tilted = rng.uniform(-TILT, TILT)
        arch = ends[missed] if missed < 2 and not found else space.biased(rng, float(tilted))
        cost = space.cost(arch, imgsz)[key]
        identity = tuple(arch.items())
        if low <= cost <= high and identity not in found:
            found[identity], missed = arch, 0
            continue
        missed += 1
        distance = max(low - cost, cost - high)
        if distance > 0 and (nearest is None or distance < nearest[0]):
            nearest = distance, cost
    if len(found) == n:
        return list(found.values())
    if found:
        raise UserError(
            f"only {len(found)} of {n} architectures with {key} from {low:g} to {high:g} met in {tries} draws"
        )
    assert nearest is not None
    raise UserError(
        f"no architecture met in {tries} draws has {key} from {low:g} to {high:g}; "
        f"the nearest has {nearest[1]:.6g}"
    )
