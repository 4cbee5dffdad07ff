"""One part of a supernet's space (backbone, neck, head): from the YAML's ranges to genes, dims and orders.

Every dim of United-Perception's BigNAS configs reads the same here, under its names (`sample_strategy:
ordered_stage_wise`, `space: {min, max, stride}`) or ours (`{min, max, stride, sample: stage, order: {}}`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from math import inf, prod
from typing import Any

from models.dims import Dim, combine, divisible, fixed, gene, lookup
from models.parse import Choice, Value
from utils.errors import UserError, unknown

# How many genes a dim has: one for the net (the same value, or the same index, in all stages), one a stage,
# one a block, or none: it hangs on the stage's depth.
SAMPLES = {"net": "net", "net_index": "index", "stage": "stage", "depth": "depth", "block": "block"}
SAMPLES |= {"net_wise": "net", "net_wise_index": "index", "stage_wise": "stage"}
SAMPLES |= {"stage_wise_depth": "depth", "block_wise": "block"}
WHOLE = (
    "depth",
    "out_channel",
    "kernel_size",
    "group_width",
)  # numbers from 1; a plugin's own dims may be else
RANGE_KEYS = ("min", "max", "stride", "middle", "values", "dynamic_range", "space")
SAMPLE_KEYS = ("sample", "sample_strategy", "order")


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

    def draw(self, pick: Callable[[list[Value]], Value]) -> dict[str, Value]:
        """A value for every gene; `pick` takes from those that leave the rest a way to the end."""
        open_: list[list[Value]] = [list(self.genes[-1].values)] if self.genes else []
        for i in range(len(self.genes) - 1, 0, -1):
            after = open_[0]
            values = self.genes[i - 1].values
            open_.insert(0, [v for v in values if any(self.allows(i, v, w) for w in after)])
        found: dict[str, Value] = {}
        before: Any = None
        for i, choice in enumerate(self.genes):
            left = [v for v in open_[i] if i == 0 or self.allows(i, before, v)]
            if not left:
                raise UserError(f"{self.what}: no values meet the order")
            before = left[0]
            if len(choice.values) > 1:
                before = found[choice.label] = pick(left)
        return found

    def nearest(self, wanted: Mapping[str, Value]) -> dict[str, Value]:
        """The values that keep the order and are fewest steps from `wanted`, summed over the genes.

        A step leads from a number to the next larger or smaller one, or from a word to any other; a gene that
        `wanted` says nothing about costs none. Ties go to the values that come first.
        """
        best: dict[Value, tuple[int, tuple[Value, ...]]] = {}  # value -> steps from here on, and the values
        for i in range(len(self.genes) - 1, -1, -1):
            after, best = best, {}
            steps = _steps_from(self.genes[i], wanted)
            for value in self.genes[i].values:
                ways = [way for v, way in after.items() if self.allows(i + 1, value, v)]
                if i == len(self.genes) - 1:
                    ways = [(0, ())]
                if ways:
                    rest = min(ways, key=lambda way: way[0])
                    best[value] = steps[value] + rest[0], (value, *rest[1])
        if self.genes and not best:
            raise UserError(f"{self.what}: no values meet the order")
        values = min(best.values(), key=lambda way: way[0])[1] if best else ()
        chosen = zip(self.genes, values, strict=True)
        return {choice.label: value for choice, value in chosen if len(choice.values) > 1}


def _steps_from(choice: Choice, wanted: Mapping[str, Value]) -> dict[Value, int]:
    """How far each value of a gene is from the wanted one; see `Chain.nearest`."""
    if choice.label not in wanted:
        return dict.fromkeys(choice.values, 0)
    value = wanted[choice.label]
    if any(isinstance(v, str) for v in choice.values):
        return {v: int(v != value) for v in choice.values}
    rank = {v: i for i, v in enumerate(sorted(choice.values))}
    return {v: abs(i - rank[value]) for v, i in rank.items()}


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


def read_part(name: str, given: Any, known: Mapping[str, Any]) -> Part:
    """A part from its YAML. `known`: the dims that the network has here -> their value if unsaid (None: must
    be said); `depth` -> the number of stages it must have (None: any).

    Raises UserError for everything that can be wrong.
    """
    if not isinstance(given, dict):
        raise UserError(f"{name} should be like {{depth: ..., out_channel: ...}}, got {given!r}")
    for dim in given:
        if dim not in known:
            raise unknown(f"dim of {name}", dim, known)
    if given.get("depth") is None:
        raise UserError(f"{name} lacks depth: the number of blocks of each stage, e.g. depth: [1, 2, 2]")
    stages = known["depth"] or _length(name, given["depth"])
    ranges = {
        dim: _range(f"{name}.{dim}", given.get(dim, value), stages)
        for dim, value in known.items()
        if dim != "depth"
    }
    ranges = {"depth": _range(f"{name}.depth", given["depth"], stages), **ranges}
    if ranges["depth"].sample == "block":
        raise UserError(f"{name}.depth cannot differ by block; sample it by stage or net")
    for dim, range_ in ranges.items():
        for values in range_.values if dim in WHOLE else ():
            if any(isinstance(v, (str, float)) or v < 1 for v in values):
                raise UserError(f"{name}.{dim} should be whole numbers, 1 or more, got {values}")

    part = Part(name, ranges)
    part.depth = [blocks[0] for blocks in _dims(f"{name}.depth", ranges["depth"], [1] * stages, [])]
    most: list[Any] = [max(values) for values in ranges["depth"].values]
    for dim in known:
        if dim != "depth":
            part._dims[dim] = _dims(f"{name}.{dim}", ranges[dim], most, part.depth)
    _check_groups(part)
    return part


def read_choice_list(where: str, label: str, given: Any) -> Choice:
    """One gene from `[a, b]`, `{min, max, stride}` or a single value; the default first."""
    range_ = _range(where, given if isinstance(given, dict) else {"values": given}, 1)
    return _choice(label, range_.values[0], range_.defaults[0])


def read_resolution(given: Any, stride: int) -> Choice | None:
    """The image sides that may be chosen, the default first; None where the YAML leaves it to the experiment.

    Raises UserError for what is no multiple of the network's largest stride.
    """
    if given is None:
        return None
    choice = read_choice_list("resolution", "resolution", given)
    for side in choice.values:
        if isinstance(side, bool) or not isinstance(side, int) or side < 1 or side % stride:
            raise UserError(f"resolution should be multiples of the stride {stride}, got {side!r}")
    return choice


def _range(where: str, given: Any, stages: int) -> Range:
    """A dim as written, in any of its forms."""
    if given is None:
        raise UserError(f"{where} is not said; give a value, a list or {{min, max, stride}}")
    if not isinstance(given, dict):
        values = _per_stage(where, given, stages)
        return Range(values, [v[-1] for v in values])
    for key in given:
        if key not in (*RANGE_KEYS, *SAMPLE_KEYS):
            raise unknown(f"key of {where}", key, (*RANGE_KEYS, *SAMPLE_KEYS))
    written = {**given, **_mapping(f"{where}.space", given.get("space", {}))}
    for key in given.get("space", {}):
        if key not in RANGE_KEYS:
            raise unknown(f"key of {where}.space", key, RANGE_KEYS)
    listed = written.get("values", written.get("dynamic_range"))
    values = (
        _steps(where, written, stages) if listed is None else _per_stage(where, listed, stages, many=True)
    )
    defaults = [v[-1] for v in values]
    if "middle" in written:
        defaults = [v[0] for v in _per_stage(f"{where}.middle", written["middle"], stages)]
        for value, known in zip(defaults, values, strict=True):
            if value not in known:
                raise unknown(f"middle of {where}", value, known)
    sample, order = _sample(where, given)
    return Range(values, defaults, sample, order)


def _steps(where: str, written: Mapping[str, Any], stages: int) -> list[list[Value]]:
    """min, min + stride, ..., max in every stage."""
    for key in ("min", "max"):
        if key not in written:
            raise UserError(f"{where} has no {key}; give min, max and stride, or values")
    rows: list[list[Any]] = [
        [v[0] for v in _per_stage(f"{where}.{key}", written.get(key, 1), stages)]
        for key in ("min", "max", "stride")
    ]
    found: list[list[Value]] = []
    for i, (a, b, step) in enumerate(zip(*rows, strict=True)):
        if any(isinstance(v, str) for v in (a, b, step)) or step <= 0:
            raise UserError(
                f"{where}: min {a!r}, max {b!r}, stride {step!r} of stage {i} are not numbers to step by"
            )
        if a > b:
            raise UserError(f"{where}: min {a} is above max {b} in stage {i}")
        n = round((b - a) / step)
        if abs(a + n * step - b) > 1e-9 * max(1, abs(b)):
            raise UserError(
                f"{where}: stride {step} from {a} misses max {b} in stage {i}; nearest is {a + n * step:g}"
            )
        whole = all(isinstance(v, int) for v in (a, b, step))
        found.append([a + j * step if whole else round(a + j * step, 9) for j in range(n + 1)])
    return found


def _per_stage(where: str, given: Any, stages: int, many: bool = False) -> list[list[Value]]:
    """Values of every stage. many: a flat list is the alternatives of each stage, not one value a stage."""
    items = given if isinstance(given, list) else [given]
    if not items:
        raise UserError(f"{where} offers nothing")
    nested = any(isinstance(i, list) for i in items)
    if isinstance(given, list) and (nested or not many):
        if len(items) != stages:
            raise UserError(f"{where} should have {stages} entries, one a stage, got {len(items)}: {given!r}")
        found = [i if isinstance(i, list) else [i] for i in items]
    else:
        found = [list(items) for _ in range(stages)]
    for values in found:
        if not values or any(isinstance(v, bool) or not isinstance(v, (int, float, str)) for v in values):
            raise UserError(f"{where} should be numbers, got {given!r}")
    return [list(dict.fromkeys(v)) if any(isinstance(x, str) for x in v) else sorted(set(v)) for v in found]


def _sample(where: str, given: Mapping[str, Any]) -> tuple[str, Order | None]:
    said: Any = given.get("sample", given.get("sample_strategy", "stage"))
    options: dict[str, Any] = {}
    if isinstance(said, dict):
        said, options = said.get("name"), _mapping(f"{where}.sample", said.get("kwargs") or {})
    name = str(said)
    ordered = name.startswith("ordered_") or "order" in given
    if name.removeprefix("ordered_") not in SAMPLES:
        raise unknown(f"sample of {where}", said, [*SAMPLES, *(f"ordered_{n}" for n in SAMPLES)])
    sample = SAMPLES[name.removeprefix("ordered_")]
    if where.endswith(".depth") and sample == "depth":
        sample = "stage"
    if ordered and sample in ("net", "index"):
        raise UserError(f"{where}: one gene for the whole net has no order; sample it by stage or block")
    options = {k: v for k, v in options.items() if k != "mode"}  # how long UP's list is; nothing here
    options |= _mapping(f"{where}.order", given.get("order") or {})
    keys = {"min_slope": "low", "max_slope": "high", "start_stage": "start", "end_stage": "end"}
    for key in options:
        if key not in keys:
            raise unknown(f"key of the order of {where}", key, keys)
    if not ordered:
        return sample, None
    if sample == "block":
        if options:
            raise UserError(f"{where}: the order of blocks is never descending and takes no options")
        return sample, Order(start=-1)  # the blocks of stage 0 too
    return sample, Order(**{keys[k]: v for k, v in options.items()})


def _dims(where: str, range_: Range, blocks: Sequence[int], depth: Sequence[Dim]) -> list[list[Dim]]:
    """The dim of every block of every stage."""
    values, defaults = range_.values, range_.defaults
    searched = [i for i, v in enumerate(values) if len(v) > 1]
    if range_.sample == "net" and searched:
        if any(v != values[0] for v in values):
            raise UserError(
                f"{where}: one value for the whole net needs one range in all stages, got {values}"
            )
        one = gene(_choice(where, values[0], defaults[0]))
        return [[one] * n for n in blocks]
    if range_.sample == "index" and searched:
        counts = {len(values[i]) for i in searched}
        if len(counts) > 1:
            raise UserError(
                f"{where}: one index for the whole net needs equally many values, got {sorted(counts)}"
            )
        first = searched[0]
        choice = _choice(where, list(range(counts.pop())), values[first].index(defaults[first]))
        return [
            [_at_rank(choice, v) if len(v) > 1 else fixed(v[0])] * n
            for v, n in zip(values, blocks, strict=True)
        ]

    found = []
    for stage, (options, default, n) in enumerate(zip(values, defaults, blocks, strict=True)):
        label = f"{where}.{stage}"
        if len(options) == 1:
            found.append([fixed(options[0])] * n)
        elif range_.sample == "depth" and len(depth[stage].values) == len(options):
            found.append([_at_rank(depth[stage].choices[0], options)] * n)
        elif range_.sample == "block":
            found.append([gene(_choice(f"{label}.{b}", options, default)) for b in range(n)])
        elif range_.sample == "depth" and range_.order:
            raise UserError(
                f"{where}: tied to depth it needs as many values as depths, stage {stage} differs"
            )
        else:  # also what United-Perception does where the depths are not as many as the values
            found.append([gene(_choice(label, options, default))] * n)
    return found


def _at_rank(choice: Choice, values: Sequence[Value]) -> Dim:
    """The i-th smallest of `values` for the i-th smallest value of the gene."""
    ranks = sorted(choice.values)  # type: ignore[type-var]
    return lookup(choice, [values[ranks.index(v)] for v in choice.values])


def _choice(label: str, values: Sequence[Value], default: Value) -> Choice:
    return Choice(label, tuple(sorted(values, key=lambda v: v != default)))


def _check_groups(part: Part) -> None:
    """Middle channels, out_channel x expand_ratio rounded to 8, must be whole groups of group_width."""
    if not {"group_width", "out_channel"} <= part.ranges.keys():
        return
    for stage in range(part.stages):
        for block in range(part.blocks(stage)):
            expand: Any = part.dim("expand_ratio", stage, block) if "expand_ratio" in part.ranges else 1
            sizes = combine(
                lambda w, e, g: (divisible(w * e), g),
                part.dim("out_channel", stage, block),
                expand,
                part.dim("group_width", stage, block),
            )
            for middle, width in sizes.table.values():
                if middle % width:
                    raise UserError(
                        f"{part.name}.group_width {width} does not divide the {middle} channels "
                        f"inside the blocks of stage {stage}"
                    )


def _mapping(where: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise UserError(f"{where} should be a mapping, got {given!r}")
    return given


def _length(name: str, depth: Any) -> int:
    """The number of stages, from whatever list the depth is written with."""
    if isinstance(depth, dict):
        inner = {**depth, **(depth["space"] if isinstance(depth.get("space"), dict) else {})}
        for key in ("min", "max", "values", "dynamic_range"):
            if isinstance(inner.get(key), list):
                return len(inner[key])
        return 1
    return len(depth) if isinstance(depth, list) else 1
