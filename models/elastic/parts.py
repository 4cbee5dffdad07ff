"""One part of an elastic network (backbone, neck, head): its genes, dims and orders, however written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from math import inf, prod
from typing import Any

from models.elastic.dims import Dim, combine
from models.space import Choice, Take, Value
from utils.errors import UserError, unknown


@dataclass(frozen=True)
class Order:
    """Each value lies between `low` and `high` times the one before it, from stage `start` to stage `end`."""

    low: float = 1.0
    high: float = inf
    start: int = 0
    end: int | None = None

    def allows(self, before: Any, value: Any, stage: int) -> bool:
        """Whether `value`, in `stage`, may follow `before`."""
        if stage <= self.start or stage > (inf if self.end is None else self.end):
            return True
        return self.low * before <= value <= self.high * before


@dataclass(frozen=True)
class Range:
    """A dim as written: its values in every stage, ascending, the default ones, and how it is sampled."""

    values: list[list[Value]]
    defaults: list[Value]
    sample: str = "stage"
    order: Order | None = None


@dataclass
class Chain:
    """Genes that are drawn one after the other, each within what `allows(i, value of i - 1, value of i)`."""

    what: str
    genes: list[Choice]
    allows: Callable[[int, Any, Any], bool]

    def draw(self, take: Take) -> dict[str, Value]:
        """A value for every gene; `take` decides among those that leave the rest a way to the end."""
        ways: list[list[Value]] = [list(self.genes[-1].values)] if self.genes else []
        for i in range(len(self.genes) - 1, 0, -1):
            after = ways[0]
            values = self.genes[i - 1].values
            ways.insert(0, [v for v in values if any(self.allows(i, v, w) for w in after)])
        found: dict[str, Value] = {}
        before: Any = None
        for i, choice in enumerate(self.genes):
            left = [v for v in ways[i] if i == 0 or self.allows(i, before, v)]
            if not left:
                raise UserError(f"{self.what}: no values meet the order")
            before = left[0]
            if len(choice.values) > 1:
                before = found[choice.label] = take(choice.only(left))
        return found

    def nearest(self, wanted: Mapping[str, Value]) -> dict[str, Value]:
        """The values that keep the order and are fewest steps from `wanted`, summed over the genes.

        A step leads from a number to the next larger or smaller one, or from a word to any other; a gene that
        `wanted` says nothing about costs none. Ties go to the values that come first.
        """
        best: dict[Value, tuple[int, tuple[Value, ...]]] = {}  # value -> steps from here on, and the values
        for i in range(len(self.genes) - 1, -1, -1):
            after, best = best, {}
            choice = self.genes[i]
            for value in choice.values:
                ways = [way for v, way in after.items() if self.allows(i + 1, value, v)]
                if i == len(self.genes) - 1:
                    ways = [(0, ())]
                if ways:
                    rest = min(ways, key=lambda way: way[0])
                    steps = choice.steps(value, wanted.get(choice.label, value))
                    best[value] = steps + rest[0], (value, *rest[1])
        if self.genes and not best:
            raise UserError(f"{self.what}: no values meet the order")
        values = min(best.values(), key=lambda way: way[0])[1] if best else ()
        chosen = zip(self.genes, values, strict=True)
        return {choice.label: value for choice, value in chosen if len(choice.values) > 1}


@dataclass
class Part:
    """A part of the network: `stages` stages of up to max depth blocks each.

    depth: a dim a stage. ranges: what the YAML says of each dim, depth among them.
    """

    name: str
    ranges: dict[str, Range]
    depth: list[Dim] = field(default_factory=list)
    _dims: dict[str, list[list[Dim]]] = field(default_factory=dict)

    @property
    def stages(self) -> int:
        return len(self.depth)

    def blocks(self, stage: int) -> int:
        """The most blocks that the stage may have."""
        return self.depth[stage].largest

    def dim(self, name: str, stage: int = 0, block: int = 0) -> Dim:
        """The dim of one block; the same object as its neighbour's where one gene decides both."""
        return self._dims[name][stage][block]

    def last(self, name: str, stage: int) -> Dim:
        """The dim of the last block that runs in the stage: what the next stage takes in."""
        dims = self._dims[name][stage]
        if all(d == dims[0] for d in dims):
            return dims[0]
        return combine(lambda depth, *values: values[depth - 1], self.depth[stage], *dims)

    def genes(self) -> Iterator[Choice]:
        """All genes, in the order of the network; those without an alternative included."""
        for stage in range(self.stages):
            yield from self.depth[stage].choices
            for dims in self._dims.values():
                for dim in dims[stage]:
                    yield from dim.choices

    def gated(self) -> dict[str, tuple[Dim, int]]:
        """Genes of single blocks -> (depth of their stage, number of the block): the others always matter."""
        found: dict[str, tuple[Dim, int]] = {}
        for name, dims in self._dims.items():
            for stage, blocks in enumerate(dims if self.ranges[name].sample == "block" else []):
                for block, dim in enumerate(blocks):
                    found |= dict.fromkeys(dim.labels, (self.depth[stage], block))
        return found

    def chains(self, arch: Mapping[str, Any]) -> Iterator[Chain]:
        """The genes in the order to draw them: depths first, because `arch`'s then say which blocks live."""
        yield self._chain("depth", self.depth, list(range(self.stages)), self._depth_allows)
        for name, range_ in self.ranges.items():
            if name == "depth" or (range_.sample == "depth" and range_.order):
                continue
            dims, stages = [], []
            for stage, blocks in enumerate(self._dims[name]):
                live = blocks[: self.depth[stage](arch)] if range_.sample == "block" else blocks[:1]
                dims += live
                stages += [stage] * len(live)
            yield self._chain(name, dims, stages, self._allows(name))

    @property
    def ordered(self) -> bool:
        return any(r.order for r in self.ranges.values())

    def check_order(self, arch: Mapping[str, Any]) -> None:
        """Raise UserError unless the arch keeps every order."""
        for name, range_ in self.ranges.items():
            if range_.order is None:
                continue
            before = None
            for stage, value in self._live_values(name, arch):
                if before is not None and not range_.order.allows(before, value, stage):
                    raise UserError(
                        f"{self.name}.{name} breaks its order: {value} in stage {stage} after {before}"
                    )
                before = value

    def distinct(self) -> int:
        """How many different parts there are: genes of blocks beyond the depth count once."""
        free = [n for n, r in self.ranges.items() if n != "depth" and not r.order]
        ordered = [n for n, r in self.ranges.items() if r.order and n != "depth" and r.sample != "depth"]
        depth_ordered = any(r.order for n, r in self.ranges.items() if n == "depth" or r.sample == "depth")
        tied = self.ranges["depth"].sample in ("net", "index")
        once = {c.label: len(c.values) for n in free for c in self._shared(n)}
        elsewhere = {*once, *(label for d in self.depth for label in d.labels)}

        def options(name: str, stage: int, depth: int) -> int:
            blocks = self._dims[name][stage][:depth]
            genes = {c.label: len(c.values) for d in blocks for c in d.choices}
            return prod(n for label, n in genes.items() if label not in elsewhere)

        def ways(name: str, stage: int, depth: int, before: Any) -> dict[Any, int]:
            """Last value -> in how many ways an ordered dim gets there through the stage."""
            order = self.ranges[name].order
            assert order is not None
            found: dict[Any, int] = {before: 1}
            for _ in range(depth if self.ranges[name].sample == "block" else 1):
                step: dict[Any, int] = {}
                for old, n in found.items():
                    for value in self.ranges[name].values[stage]:
                        if old is None or order.allows(old, value, stage):
                            step[value] = step.get(value, 0) + n
                found = step
            return found

        @cache
        def count(stage: int, before: Any, last: tuple[Any, ...]) -> int:
            if stage == self.stages:
                return 1
            total = 0
            for value in self._depth_values(stage):
                if before is not None and tied and value != before:
                    continue
                if before is not None and not self._depth_allows(stage - 1, stage, before, value):
                    continue
                depth = self.depth[stage](self._depth_arch(stage, value))
                each = prod(options(n, stage, depth) for n in free)
                tables = [ways(n, stage, depth, v) for n, v in zip(ordered, last, strict=True)]
                for combination in product(*(t.items() for t in tables)):
                    n = prod(w for _, w in combination)
                    keep = value if depth_ordered or tied else None
                    total += each * n * count(stage + 1, keep, tuple(v for v, _ in combination))
            return total

        return prod(once.values()) * count(0, None, (None,) * len(ordered))

    def settings(self, arch: Mapping[str, Any]) -> dict[str, list[Value]]:
        """Values per stage, or per live block of dims that are sampled so."""
        return {name: [v for _, v in self._live_values(name, arch)] for name in self.ranges}

    def from_settings(self, given: Any) -> dict[str, Value]:
        """The genes that give these values. Raises UserError where there are none."""
        if not isinstance(given, dict):
            raise UserError(f"settings of {self.name} should be like {{depth: [1, 2]}}, got {given!r}")
        if "depth" not in given:
            given = {"depth": [d.values[-1] for d in self.depth], **given} if self._fixed_depth else given
        if "depth" not in given:
            raise UserError(f"settings of {self.name} lack depth")
        fits: dict[str, list[Value]] = {}
        for name in sorted(given, key=lambda n: n != "depth"):  # depth says how many blocks there are
            if name not in self.ranges:
                raise unknown(f"dim of {self.name}", name, self.ranges)
            values = given[name]
            if name != "depth" and self.ranges[name].sample == "block":
                arch = {label: v[0] for label, v in fits.items()}
                dims = [d for s, b in enumerate(self._dims[name]) for d in b[: self.depth[s](arch)]]
            else:
                dims = self.depth if name == "depth" else [b[0] for b in self._dims[name]]
            if not isinstance(values, list) or len(values) != len(dims):
                raise UserError(f"{self.name}.{name} should list {len(dims)} values, got {values!r}")
            for dim, value in zip(dims, values, strict=True):
                if value not in dim.values:
                    raise unknown(f"value of {self.name}.{name}", value, dim.values)
                for choice in dim.choices:
                    left = fits.get(choice.label, list(choice.values))
                    fits[choice.label] = [v for v in left if dim({choice.label: v}) == value]
                    if not fits[choice.label]:
                        raise UserError(
                            f"{self.name}.{name} = {values} is not in the space: one gene, two values"
                        )
        return {label: values[0] for label, values in fits.items() if self._is_gene(label)}

    def _shared(self, name: str) -> list[Choice]:
        """The gene of a dim that has one for the whole net."""
        if self.ranges[name].sample not in ("net", "index"):
            return []
        return [c for blocks in self._dims[name] for d in blocks[:1] for c in d.choices]

    @property
    def _fixed_depth(self) -> bool:
        return not any(d.labels for d in self.depth)

    def _is_gene(self, label: str) -> bool:
        return any(c.label == label and len(c.values) > 1 for c in self.genes())

    def _chain(
        self, name: str, dims: Sequence[Dim], stages: list[int], allows: Callable[[int, int, Any, Any], bool]
    ) -> Chain:
        genes: dict[str, Choice] = {}
        at: list[int] = []
        drawn = {c.label for d in self.depth for c in d.choices} if name != "depth" else set()
        for i, (dim, stage) in enumerate(zip(dims, stages, strict=True)):
            # A constant takes part in an order as a gene without alternatives.
            choice = dim.choices[0] if dim.choices else Choice(f"constant {i}", (dim({}),))
            if choice.label not in genes and choice.label not in drawn:
                genes[choice.label] = choice
                at.append(stage)
        return Chain(
            f"{self.name}.{name}", list(genes.values()), lambda i, a, b: allows(at[i - 1], at[i], a, b)
        )

    def _allows(self, name: str) -> Callable[[int, int, Any, Any], bool]:
        order = self.ranges[name].order
        return lambda last, stage, a, b: order is None or order.allows(a, b, stage)

    def _depth_allows(self, last: int, stage: int, a: Any, b: Any) -> bool:
        """Whether depth gene b of a stage may follow a: the orders of depth and of all that hang on it."""
        for name, range_ in self.ranges.items():
            if range_.order is None or not (name == "depth" or range_.sample == "depth"):
                continue
            dims = self.depth if name == "depth" else [blocks[0] for blocks in self._dims[name]]
            before = dims[last](self._depth_arch(last, a))
            if not range_.order.allows(before, dims[stage](self._depth_arch(stage, b)), stage):
                return False
        return True

    def _depth_values(self, stage: int) -> list[Value]:
        choices = self.depth[stage].choices
        return list(choices[0].values) if choices else [self.depth[stage]({})]

    def _depth_arch(self, stage: int, value: Value) -> dict[str, Value]:
        return {c.label: value for c in self.depth[stage].choices}

    def _live_values(self, name: str, arch: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
        for stage in range(self.stages):
            if name == "depth":
                yield stage, self.depth[stage](arch)
            else:
                blocks = self._dims[name][stage]
                per_block = self.ranges[name].sample == "block"
                for dim in blocks[: self.depth[stage](arch)] if per_block else blocks[:1]:
                    yield stage, dim(arch)
