"""A YOLO architecture block by block, as plain values for a drawing (`Space.blocks` of models/space.py)."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from models.space import Arch, Block, pick
from models.yolo.blocks import HEADS, Head, Shape, Tally
from models.yolo.parse import C3Options, ConvOptions, Row, count
from models.yolo.reach import sources_of
from utils.sides import read_sides, shown


def blocks_of(
    rows: Sequence[tuple[Row, list[Shape]]], backbone: int, dead: Container[int], arch: Arch, head: Head
) -> list[Block]:
    """A block a row, but for the `dead` ones, which are none in this arch.

    rows: as they are in the arch, with the shapes that they read. backbone: how many of them are.
    """
    blocks: list[Block] = []
    for row, xs in rows:
        if row.index in dead:
            continue
        sources, last = sources_of(row.index, row.source), row.module in HEADS
        channels, size = count(row, xs, Tally(), head)
        before = int(blocks[-1]["name"]) if blocks else -1
        blocks.append(
            {
                "part": "head" if last else "backbone" if row.index < backbone else "neck",
                "name": str(row.index),
                "kind": row.module.removeprefix("NAS").removeprefix("nn."),
                "channels": None if last else channels,
                "side": None if last else read_sides(size),
                "sources": [] if sources == [before] else [str(j) for j in sources],
                "facts": _facts(row, arch, xs),
            }
        )
    return blocks


def _facts(row: Row, arch: Arch, read: list[Shape]) -> dict[str, Any]:
    options = row.options
    if isinstance(options, ConvOptions):
        return {"kernel": pick(arch, options.kernel), "act": pick(arch, options.act)}
    if isinstance(options, C3Options):
        width, depth = pick(arch, options.width), int(pick(arch, options.depth))
        inner = [options.bottleneck_hidden(width, pick(arch, c)) for c in options.bottlenecks[:depth]]
        return {
            "bottlenecks": depth,
            "hidden channels": options.hidden(width),
            "in the bottlenecks": ", ".join(map(str, inner)),
            "cv1": f"{pick(arch, options.cv1_kernel)} {pick(arch, options.cv1_act)}",
            "cv2": f"{pick(arch, options.cv2_kernel)} {pick(arch, options.cv2_act)}",
        }
    return {"maps": ", ".join(shown(size) for _, size in read)} if row.module in HEADS else {}
