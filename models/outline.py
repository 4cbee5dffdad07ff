"""An architecture block by block, as plain values for a drawing: what each block is and how large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.elastic.space import ElasticSpace
from models.space import Arch, Space
from models.yolo.blocks import Shape, Tally
from models.yolo.parse import C3Options, ConvOptions, Row, inputs, run
from models.yolo.space import YoloSpace, pick

Block = dict[str, Any]  # part, name, kind, channels, side (None: not known), sources, facts


def outline(space: Space, arch: Mapping[str, Any], imgsz: int) -> list[Block]:
    """The blocks of an arch from the image to the head, at images of imgsz x imgsz.

    A block: `part` (backbone, neck, head); `name`, the same in every arch of the space; `kind`; `channels`
    that come out (None for a head) and the `side` of their map; `sources`, names of the blocks it reads where
    that is not the one before; `facts`, name -> value of all that makes it up. [] for a space of a kind that
    has no drawing.
    """
    complete = space.complete(space.canonical(arch))
    side = int(complete.get("resolution", imgsz))
    if isinstance(space, YoloSpace):
        return _rows(space, complete, side)
    return _stages(space, complete) if isinstance(space, ElasticSpace) else []


def _rows(space: YoloSpace, arch: Arch, side: int) -> list[Block]:
    """A block a row of a YOLO file."""
    image: Shape = (space.ch, side)
    shapes: list[Shape] = []
    backbone = len(space.model["backbone"])
    blocks: list[Block] = []
    for row in space.rows:
        read = row.source if isinstance(row.source, list) else [row.source]
        sources = [j % row.index for j in read] if row.index else []
        shapes.append(run(row, image, shapes, Tally(), space.network.reg_max))
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


def _stages(space: ElasticSpace, arch: Arch) -> list[Block]:
    """A block a stage of an elastic network."""
    blocks: list[Block] = []
    for name, part in space.parts.items():
        for stage in range(part.stages):
            depth = int(part.depth[stage](arch))
            facts: dict[str, Any] = {"blocks": depth}
            for dim in part.ranges:
                if dim != "depth":
                    values = [part.dim(dim, stage, block)(arch) for block in range(depth)]
                    same = len(set(values)) == 1
                    facts[dim.replace("_", " ")] = values[0] if same else ", ".join(map(str, values))
            channels = (
                part.last("out_channel", stage)(arch) if "out_channel" in part.ranges and depth else None
            )
            facts.pop("out channel", None)
            blocks.append(
                {
                    "part": name,
                    "name": f"{name} {stage}",
                    "kind": "stage" if part.stages > 1 else "blocks",
                    "channels": channels,
                    "side": None,
                    "sources": [],
                    "facts": facts,
                }
            )
    return blocks
