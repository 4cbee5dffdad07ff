"""A YOLO architecture block by block, as plain values for a drawing (`Space.blocks` of models/space.py)."""

from __future__ import annotations

from typing import Any

from models.space import Arch, Block, pick
from models.yolo.blocks import Shape, Tally
from models.yolo.parse import C3Options, ConvOptions, Network, Row, inputs, run


def blocks_of(network: Network, backbone: int, arch: Arch, side: int) -> list[Block]:
    """A block a row; `backbone`: how many of them are."""
    image: Shape = (network.ch, side)
    shapes: list[Shape] = []
    blocks: list[Block] = []
    for row in network.rows:
        read = row.source if isinstance(row.source, list) else [row.source]
        sources = [j % row.index for j in read] if row.index else []
        shapes.append(run(row, image, shapes, Tally(), network.head))
        head = row.module == "Detect"
        blocks.append(
            {
                "part": "head" if head else "backbone" if row.index < backbone else "neck",
                "name": str(row.index),
                "kind": row.module.removeprefix("NAS").removeprefix("nn."),
                "channels": None if head else shapes[-1][0],
                "side": None if head else shapes[-1][1],
                "sources": [] if sources == [row.index - 1] else [str(j) for j in sources],
                "facts": _facts(row, arch, inputs(row, image, shapes[:-1])),
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
    return {"maps": ", ".join(str(side) for _, side in read)} if row.module == "Detect" else {}
