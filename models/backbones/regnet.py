"""RegNet (arXiv 2003.13678), elastic in width, depth and group width, as in United-Perception's BigNAS
configs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from models.elastic.blocks import Bottleneck, ConvBlock
from models.elastic.parts import Part
from models.elastic.stages import Backbone, norm_of

# Dims of each part -> their value where the YAML is silent (None: it must say); depth -> number of stages.
PARTS = {
    "backbone": {
        "depth": 5,  # the stem, then four stages
        "out_channel": None,
        "kernel_size": 3,
        "expand_ratio": 1,
        "group_width": None,
    },
}
STRIDE = 32
OPTIONS = {"squeeze": 0.0, "kernel_transform": False, "synchronised_norm": False}


def build(part: Part, ch: int, options: Mapping[str, Any]) -> Backbone:
    """Stem (stride 2), four stages of bottlenecks, each of which begins with stride 2."""
    norm, transform = norm_of(options), bool(options["kernel_transform"])

    def block(inputs: Any, out: Any, stage: int, number: int) -> nn.Module:
        kernel, expand, group = (
            part.dim(name, stage, number) for name in ("kernel_size", "expand_ratio", "group_width")
        )
        stride = 2 if number == 0 else 1
        return Bottleneck(inputs, out, kernel, stride, expand, group, options["squeeze"], norm, transform)

    stem = ConvBlock(ch, part.dim("out_channel"), part.dim("kernel_size"), 2, norm=norm)
    return Backbone(part, stem, block)
