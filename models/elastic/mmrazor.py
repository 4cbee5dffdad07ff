"""Subnets of ShuffleNet's search space as MMRazor and DetNAS write them. No torch.

architecture.backbone.layers.0.2: {chosen: shuffle_5x5}  # a file of MMRazor 1.0; the prefix may be missing
stage_0_block_2: {chosen: [shuffle_5x5]}                 # of MMRazor 0.3
[1, 0, 0, 0, 3, ...]                                     # the numbers of the paths, one a block
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from models.space import Arch, Value
from utils.errors import UserError, unknown

OPS = {"3x3": "shuffle_3x3", "5x5": "shuffle_5x5", "7x7": "shuffle_7x7", "xception": "shuffle_xception"}
_LABEL = re.compile(r"backbone\.path\.(\d+)\.(\d+)")
_KEY = re.compile(r"(?:(?:architecture\.)?backbone\.layers\.(\d+)\.(\d+)|stage_(\d+)_block_(\d+))")


def blocks(choices: Mapping[str, Sequence[Value]]) -> list[str]:
    """The labels of the blocks' paths, in the order of the network; [] in spaces without."""
    return [label for label in choices if _LABEL.fullmatch(label)]


def mutable_cfg(arch: Mapping[str, Any], prefix: str = "") -> dict[str, dict[str, str]]:
    """The paths of an arch as MMRazor 1.0 writes them; prefix: `architecture.` for its algorithms."""
    found = {}
    for label, kind in arch.items():
        if at := _LABEL.fullmatch(label):
            found[f"{prefix}backbone.layers.{int(at[1]) - 1}.{at[2]}"] = {"chosen": OPS[kind]}
    return found


def write(space: Any, arch: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    return mutable_cfg(arch)


def read(space: Any, given: Any) -> Arch:
    """The arch of a mapping, or of a list of numbers."""
    return (from_genotype if isinstance(given, list) else from_mutable_cfg)(given, space.choices)


def from_mutable_cfg(given: Any, choices: Mapping[str, Sequence[Value]]) -> Arch:
    """The arch of such a mapping. UserError for keys, operators and numbers of blocks of another space."""
    wanted, names = blocks(choices), {op: kind for kind, op in OPS.items()}
    if not isinstance(given, Mapping):
        raise UserError(
            f"mutable_cfg should be like {{backbone.layers.0.0: {{chosen: shuffle_3x3}}}}, got {given!r}"
        )
    arch: Arch = {}
    for key, said in given.items():
        at = _KEY.fullmatch(str(key))
        numbers = [int(n) for n in at.groups() if n is not None] if at else None
        label = f"backbone.path.{numbers[0] + 1}.{numbers[1]}" if numbers else ""
        if label not in wanted:
            raise unknown("key of mutable_cfg", key, list(mutable_cfg(dict.fromkeys(wanted, "3x3"))))
        op = said.get("chosen") if isinstance(said, Mapping) else said
        op = op[0] if isinstance(op, list) and len(op) == 1 else op
        if op not in names:
            raise unknown(f"operator of {key}", op, names)
        arch[label] = names[op]
    return _whole(arch, wanted, len(given))


def from_genotype(given: Any, choices: Mapping[str, Sequence[Value]]) -> Arch:
    """The arch of DetNAS's numbers of paths, flat or one list a stage. UserError for others, or as many."""
    wanted, kinds = blocks(choices), list(OPS)
    rows = given if isinstance(given, list) else [given]
    flat = [n for row in rows for n in (row if isinstance(row, list) else [row])]
    for n in flat:
        if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < len(kinds):
            raise UserError(f"a genotype is of numbers 0 to {len(kinds) - 1} ({', '.join(kinds)}), got {n!r}")
    arch: Arch = {label: kinds[n] for label, n in zip(wanted, flat, strict=False)}
    return _whole(arch, wanted, len(flat))


def _whole(arch: Arch, wanted: list[str], given: int) -> Arch:
    if given != len(wanted) or len(arch) != len(wanted):
        raise UserError(
            f"it is a net of {given} blocks, this space has {len(wanted)}: is it of the other layout?"
        )
    return {label: arch[label] for label in wanted}
