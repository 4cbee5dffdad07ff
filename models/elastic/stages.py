"""The stages of a backbone: the one loop over its blocks, and what every backbone has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from models.elastic.blocks import SYNCHRONISED, Norm
from models.elastic.dims import Dim
from models.elastic.layers import ElasticBatchNorm2d, ElasticDepth
from models.elastic.parts import Part

Block = Callable[[Dim, Dim, int, int], nn.Module]  # (channels in, out, stage, number of the block) -> block


class Backbone(nn.Module):
    """Maps of the stages of an image, each half as large as the one before, the finest first.

    stem: its maps enter stage 1; it is stage 0 of the part. block: makes each block of a stage.

    widths: channels of each map.
    """

    def __init__(self, part: Part, stem: nn.Module, block: Block) -> None:
        super().__init__()
        self.stem = stem
        self.widths: list[Dim] = []
        stages, width = [], part.dim("out_channel", 0)
        for stage in range(1, part.stages):
            blocks = []
            for number in range(part.blocks(stage)):
                out = part.dim("out_channel", stage, number)
                blocks.append(block(width, out, stage, number))
                width = out
            width = part.last("out_channel", stage)
            stages.append(ElasticDepth(blocks, part.depth[stage]))
            self.widths.append(width)
        self.stages = nn.ModuleList(stages)

    def begin(self) -> None:
        """Draw the weights, for ReLU, as in torchvision's ResNet; the network around it says when."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def enter(self, x: Tensor) -> Tensor:
        """What stage 1 takes in."""
        return self.stem(x)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.enter(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def norm_of(options: Mapping[str, Any]) -> Norm:
    """The batch norm that the option `synchronised_norm` asks for."""
    return SYNCHRONISED if options["synchronised_norm"] else ElasticBatchNorm2d
