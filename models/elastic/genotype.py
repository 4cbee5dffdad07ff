"""Archs as aw_nas writes them: `cell_0=1, cell_1=2, ..., cell_1_block_0=(3, 5), ..., head_0=(0.5, 3)`.

`cell_i` is the depth of a stage, `cell_i_block_j` (expansion, kernel) of a block, (0, 0) where it does not
run; `head_i` is (expansion, kernel) of a further map, `image_size` the resolution. The text is never run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from models.elastic.parts import Part
from models.space import Arch
from utils.errors import UserError, unknown

LONGEST = 20_000  # characters
PAIR = ("expand_ratio", "kernel_size")


def write(space: Any, arch: Mapping[str, Any]) -> str:
    """The genotype of an arch."""
    body, found = space.parts["backbone"], []
    if "resolution" in arch:
        found.append(f"image_size={arch['resolution']}")
    depths = [depth(arch) for depth in body.depth]
    found += [f"cell_{stage}={depth}" for stage, depth in enumerate(depths)]
    for stage, depth in enumerate(depths):
        for block in range(body.blocks(stage)):
            pair = _pair(body, stage, block, arch) if block < depth else (0, 0)
            found.append(f"cell_{stage}_block_{block}={pair}")
    neck = space.parts.get("neck")
    if neck is not None and set(PAIR) <= set(neck.ranges):
        found += [f"head_{stage}={_pair(neck, stage, 0, arch)}" for stage in range(neck.stages)]
    return ", ".join(found)


def read(space: Any, text: Any) -> Arch:
    """The arch of a genotype. What the space does not search may be left out.

    Raises UserError for what is no genotype, for a cell that is missing and one that the space does not have.
    """
    fields = _fields(text)
    neck = space.parts.get("neck")
    settings = {"backbone": _body(space.parts["backbone"], fields)}
    if neck is not None and any(name.startswith("head_") for name in fields):
        heads = [_take(fields, f"head_{stage}") for stage in range(neck.stages)]
        settings["neck"] = {"depth": [d.largest for d in neck.depth]} | {
            name: [
                _known(neck, name, stage, 0, f"head_{stage}", heads[stage]) for stage in range(neck.stages)
            ]
            for name in PAIR
        }
    side = fields.pop("image_size", None)
    if fields:
        raise UserError(f"genotype: {next(iter(fields))} is none of this space's")
    arch = space.from_settings(settings)
    return arch if side is None or "resolution" not in arch else space.canonical(arch | {"resolution": side})


def _body(part: Part, fields: dict[str, Any]) -> dict[str, list[Any]]:
    """The backbone's settings; takes its fields away."""
    depths: list[int] = []
    for stage, depth in enumerate(part.depth):
        value = _take(fields, f"cell_{stage}")
        if isinstance(value, bool) or value not in depth.values:
            raise unknown(f"depth cell_{stage} of the genotype", value, depth.values)
        depths.append(value)
    found: dict[str, list[Any]] = {name: [] for name in PAIR}
    for stage, live in enumerate(depths):
        pairs = [
            _take(fields, f"cell_{stage}_block_{block}", needed=block < live)
            for block in range(part.blocks(stage))
        ]
        for name, values in found.items():
            row = [
                _known(part, name, stage, block, f"cell_{stage}_block_{block}", pairs[block])
                for block in range(live)
            ]
            if part.ranges[name].sample == "block":
                values += row
                continue
            if any(value != row[0] for value in row):
                raise UserError(
                    f"genotype: the blocks of cell_{stage} have one {name} in this space, not {row}"
                )
            values.append(row[0])
    return {"depth": depths, **found}


def _pair(part: Part, stage: int, block: int, arch: Mapping[str, Any]) -> tuple[Any, Any]:
    expand, kernel = (part.dim(name, stage, block)(arch) for name in PAIR)
    return expand, kernel


def _known(part: Part, name: str, stage: int, block: int, field: str, pair: Any) -> Any:
    """The half of a pair that is `name`, as the space has it."""
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise UserError(f"genotype: {field} should be like (3, 5), expansion and kernel, got {pair!r}")
    value, known = pair[PAIR.index(name)], part.dim(name, stage, block).values
    if isinstance(value, bool) or value not in known:
        raise unknown(f"{name} {field} of the genotype", value, known)
    return known[known.index(value)]


def _take(fields: dict[str, Any], name: str, needed: bool = True) -> Any:
    if needed and name not in fields:
        raise UserError(f"genotype: {name} is missing")
    return fields.pop(name, None)


def _fields(text: Any) -> dict[str, Any]:
    """Name -> value of a genotype, with or without the name of its class around it."""
    try:
        if not isinstance(text, str) or len(text) > LONGEST:
            raise ValueError
        call = ast.parse(
            text.strip() if text.rstrip().endswith("))") else f"genotype({text})", mode="eval"
        ).body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        fields = dict(_literals(call))
        if len(fields) < len(call.keywords):
            raise ValueError
        return fields
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        said = repr(text) if len(repr(text)) < 60 else f"{repr(text)[:60]}..."
        raise UserError(f"genotype should be like 'cell_0=1, cell_0_block_0=(1, 3)', got {said}") from None


def _literals(call: ast.Call) -> Iterator[tuple[str, Any]]:
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError
        yield keyword.arg, ast.literal_eval(keyword.value)
