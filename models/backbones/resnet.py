"""ResNet-18 with a deep stem (arXiv 1512.03385, 1812.01187), elastic in width, depth and kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from models.elastic.blocks import BasicBlock, StemBlock
from models.elastic.parts import Part
from models.elastic.stages import Backbone, norm_of

# Dims of each part -> their value where the YAML is silent (None: it must say); depth -> number of stages.
PARTS = {
    "backbone": {
        "depth": 5,  # the stem, then four stages
        "out_channel": None,
        "kernel_size": 3,
        "expand_ratio": [0.5, 1, 1, 1, 1],
    },
}
STRIDE = 32
OPTIONS = {"kernel_transform": False, "synchronised_norm": False}


def build(part: Part, ch: int, options: Mapping[str, Any]) -> Backbone:
    return ResNet(part, ch, options)


class ResNet(Backbone):
    """Stem (stride 2), max pooling, four stages; maps of strides 4, 8, 16, 32."""

    def __init__(self, part: Part, ch: int, options: Mapping[str, Any]) -> None:
        norm, transform = norm_of(options), bool(options["kernel_transform"])
        width, kernel, expand = (part.dim(d) for d in ("out_channel", "kernel_size", "expand_ratio"))

        def block(inputs: Any, out: Any, stage: int, number: int) -> nn.Module:
            stride = 2 if number == 0 and stage > 1 else 1
            kernel, expand = part.dim("kernel_size", stage, number), part.dim("expand_ratio", stage, number)
            return BasicBlock(inputs, out, kernel, stride, expand, norm, transform)

        super().__init__(part, StemBlock(ch, width, kernel, expand, norm), block)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def enter(self, x: Tensor) -> Tensor:
        return self.pool(self.stem(x))
