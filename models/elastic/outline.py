"""An elastic architecture stage by stage, as plain values for a drawing (`Space.blocks`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.elastic.parts import Part
from models.space import Arch, Block


def blocks_of(parts: Mapping[str, Part], arch: Arch) -> list[Block]:
    """A block a stage."""
    blocks: list[Block] = []
    for name, part in parts.items():
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
