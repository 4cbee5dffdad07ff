"""The winner's architecture as a drawing: its blocks from the image to the head, and what differs from the
unsearched network. `blueprint_info` computes; the report's template draws its boxes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

from utils.report.drawing import is_number
from utils.report.runs import Run, read_json
from utils.run_files import Files
from utils.sides import both, told

LEAST = 18.0  # percent of the width that a narrow block takes at least


@dataclass(frozen=True)
class Box:
    """A block.

    size:    `64 channels, 12 x 12`
    wide:    percent of the widest, by the root of the channels; before: that of the unsearched network where
             it is another
    reads:   the blocks it reads besides the one before
    changes: (what, in the unsearched network, here)
    state:   `same`, `changed`, `added` or `removed`
    """

    name: str
    kind: str
    size: str
    wide: float
    before: float | None
    reads: str
    changes: list[tuple[str, str, str]]
    state: str


@dataclass(frozen=True)
class Blueprint:
    """parts: name -> its boxes, in the order of the network; imgsz: size of the images; before: that of the
    unsearched network."""

    trial: int
    parts: dict[str, list[Box]]
    imgsz: str | None
    before: str | None

    @property
    def changed(self) -> int:
        return sum(box.state != "same" for boxes in self.parts.values() for box in boxes)


def blueprint_of(run: Run, trial: int) -> Blueprint | None:
    """The drawing of a trial beside trial 0; None where `evaluate` left no blocks of it."""
    ours = read_json(Files(run.folder).of_trial("evaluate", trial) / "network.json")
    theirs = read_json(run.folder / "evaluate" / "0000" / "network.json") if run.has_baseline else {}
    return blueprint_info(trial, ours, theirs)


def blueprint_info(trial: int, ours: dict[str, Any], theirs: dict[str, Any]) -> Blueprint | None:
    """ours, theirs: network.json of the winner and of the unsearched network ({} without one)."""
    blocks, base = _blocks(ours), _blocks(theirs)
    if not blocks:
        return None
    widest = max((b["channels"] or 0 for b in [*blocks.values(), *base.values()]), default=0)
    parts: dict[str, list[Box]] = {}
    for name in [*blocks, *(n for n in base if n not in blocks)]:
        block, before = blocks.get(name), base.get(name)
        box = _box(block, before, widest, compared=bool(base))
        parts.setdefault(str((block or before or {}).get("part", "")), []).append(box)
    sizes = [told(n["imgsz"]) if n.get("imgsz") else None for n in (ours, theirs)]
    return Blueprint(trial, parts, *sizes)


def _blocks(network: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """name -> block, those that can be read."""
    given = network.get("blocks")
    found = {}
    for block in given if isinstance(given, list) else []:
        if isinstance(block, dict) and "name" in block and isinstance(block.get("facts"), dict):
            channels = block.get("channels")
            found[str(block["name"])] = block | {"channels": channels if is_number(channels) else None}
    return found


def _box(block: dict[str, Any] | None, before: dict[str, Any] | None, widest: float, compared: bool) -> Box:
    shown = block or before
    assert shown is not None
    changes = _changes(before, block) if block and before else []
    state = "changed" if changes else "same"
    if compared and (block is None or before is None):
        state = "removed" if block is None else "added"
    old = before["channels"] if block and before and before["channels"] != block["channels"] else None
    size = [f"{shown['channels']} channels"] if shown["channels"] else []
    size += [told(shown["side"], both)] if shown.get("side") else []
    reads = shown.get("sources")
    return Box(
        name=str(shown["name"]),
        kind=_kind(shown),
        size=", ".join(size),
        wide=_wide(shown["channels"], widest),
        before=_wide(old, widest) if old else None,
        reads=", ".join(map(str, reads)) if isinstance(reads, list) else "",
        changes=changes,
        state=state,
    )


def _kind(block: dict[str, Any]) -> str:
    """`C3 x 2`, `Conv 6x6 SiLU`: what the drawing says of a block that is as it was."""
    facts, kind = block["facts"], str(block.get("kind", ""))
    many = facts.get("bottlenecks", facts.get("blocks"))
    if many is not None:
        counted = f"{many} block{'s' * (many != 1)}"
        return counted if "blocks" in facts else f"{kind} x {many}"
    return " ".join([kind, *(str(facts[k]) for k in ("kernel", "act") if k in facts)])


def _wide(channels: float | None, widest: float) -> float:
    return 100.0 if not channels or not widest else round(LEAST + (100 - LEAST) * sqrt(channels / widest), 1)


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str, str]]:
    old = {"channels": before["channels"], **before["facts"]}
    new = {"channels": after["channels"], **after["facts"]}
    names = [*new, *(k for k in old if k not in new)]
    return [(k, _said(old.get(k)), _said(new.get(k))) for k in names if old.get(k) != new.get(k)]


def _said(value: Any) -> str:
    return "none" if value is None or value == "" else str(value)
