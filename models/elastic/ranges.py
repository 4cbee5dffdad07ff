"""One part of a supernet's space (backbone, neck, head): from the YAML's ranges to genes, dims and orders.

Every dim of United-Perception's BigNAS configs reads the same here, under its names (`sample_strategy:
ordered_stage_wise`, `space: {min, max, stride}`) or ours (`{min, max, stride, sample: stage, order: {}}`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.elastic.dims import Dim, combine, divisible, fixed, gene, lookup
from models.elastic.parts import Order, Part, Range
from models.space import Choice, Value, numbers
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
MOST_BLOCKS = 1000  # of a stage
MOST_VALUES = 10_000  # of one dim; a slip of the finger should not fill the memory
RANGE_KEYS = ("min", "max", "stride", "middle", "values", "dynamic_range", "space")
SAMPLE_KEYS = ("sample", "sample_strategy", "order")


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
            if any(not isinstance(v, int) or v < 1 for v in values):
                raise UserError(f"{name}.{dim} should be whole numbers, 1 or more, got {values}")
        for values in range_.values if dim == "expand_ratio" else ():
            if any(isinstance(v, str) or v <= 0 for v in values):
                raise UserError(f"{name}.{dim} should be positive numbers, got {values}")
    most: list[Any] = [max(values) for values in ranges["depth"].values]
    if max(most) > MOST_BLOCKS:
        raise UserError(f"{name}.depth should be {MOST_BLOCKS} blocks a stage at most")

    part = Part(name, ranges)
    part.depth = [blocks[0] for blocks in _dims(f"{name}.depth", ranges["depth"], [1] * stages, [])]
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
        if not numbers((a, b, step)) or step <= 0:
            raise UserError(
                f"{where}: min {a!r}, max {b!r}, stride {step!r} of stage {i} are not numbers to step by"
            )
        if a > b:
            raise UserError(f"{where}: min {a} is above max {b} in stage {i}")
        n = round((b - a) / step)
        if n > MOST_VALUES:
            raise UserError(f"{where}: from {a} to {b} by {step} are {n + 1} values in stage {i}, too many")
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
    return [list(Choice(where, tuple(dict.fromkeys(v))).ascending) for v in found]


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
