"""ShuffleNet v2 (arXiv 1807.11164) with four paths a block, as in single-path one-shot search (1904.00420)
and DetNAS (1903.10979).

    path: {values: [[3x3], [3x3, 5x5, 7x7, xception], ...], middle: 3x3, sample: block}

A path has weights of its own. Trained ones of 3x3 blocks, torchvision's for instance, are the middle of
larger kernels where a network begins with them (models/inherit.py), because the layers have the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import channel_shuffle

from models.elastic.blocks import ConvBlock, Norm
from models.elastic.dims import Dim
from models.elastic.layers import path
from models.elastic.parts import Part
from models.elastic.stages import Backbone, norm_of
from utils.errors import UserError, unknown

# Dims of each part -> their value where the YAML is silent (None: it must say); depth -> number of stages.
PARTS = {
    "backbone": {"depth": None, "out_channel": None, "path": "3x3"}
}  # the stem, then four or three stages
STRIDE = 32
SPELLING = "mutable_cfg"
OPTIONS = {
    "max_pool": False,  # after the stem, before three stages: torchvision's layout; without, four stages
    "synchronised_norm": False,
}
PATHS = ("3x3", "5x5", "7x7", "xception")


def build(part: Part, ch: int, options: Mapping[str, Any]) -> Backbone:
    return ShuffleNet(part, ch, options)


class ShuffleNet(Backbone):
    """Stem (stride 2), and stages that each begin with stride 2. Raises UserError for what cannot be."""

    def __init__(self, part: Part, ch: int, options: Mapping[str, Any]) -> None:
        norm, pooled = norm_of(options), bool(options["max_pool"])
        stages = 4 if pooled else 5
        if part.stages != stages or any(d.labels for d in part.depth):
            raise UserError(
                f"backbone.depth should be {stages} fixed numbers, of the stem and {stages - 1} stages "
                f"(max_pool={pooled}), got {[d.values for d in part.depth]}"
            )

        def block(inputs: Dim, out: Dim, stage: int, number: int) -> nn.Module:
            if out.labels or out.largest % 2:
                raise UserError(
                    f"backbone.out_channel should be one even number a stage, stage {stage} has {out.values}"
                )
            kinds = part.dim("path", stage, number)
            for kind in kinds.values:
                if kind not in PATHS:
                    raise unknown("path of a block", kind, PATHS)
            make = partial(shuffle, inputs.largest, out.largest, 2 if number == 0 else 1, norm)
            return path(kinds, make)

        super().__init__(part, ConvBlock(ch, part.dim("out_channel"), 3, 2, norm=norm), block)
        self.pool = nn.MaxPool2d(3, 2, 1) if pooled else nn.Identity()

    def enter(self, x: Tensor) -> Tensor:
        return self.pool(self.stem(x))


def shuffle(inputs: int, out: int, stride: int, norm: Norm, kind: str) -> nn.Module:
    """One path of a block."""
    return (
        Xception(inputs, out, stride, norm)
        if kind == "xception"
        else Shuffle(inputs, out, stride, norm, kind)
    )


class Halves(nn.Module):
    """Half of the channels as they are (with stride 2: from a branch of their own), half from `branch`."""

    def __init__(
        self, branch: nn.Module, inputs: int, half: int, stride: int, kernel: int, norm: Norm
    ) -> None:
        super().__init__()
        if stride == 2:
            depthwise = ConvBlock(inputs, inputs, kernel, 2, inputs, act=None, norm=norm)
            self.side = nn.Sequential(depthwise, ConvBlock(inputs, half, 1, norm=norm))
        self.branch, self.stride = branch, stride

    def forward(self, x: Tensor) -> Tensor:
        still, moved = x.chunk(2, 1) if self.stride == 1 else (self.side(x), x)
        return channel_shuffle(torch.cat((still, self.branch(moved)), 1), 2)


class Shuffle(Halves):
    """1x1, depthwise k x k, 1x1."""

    def __init__(self, inputs: int, out: int, stride: int, norm: Norm, kind: str) -> None:
        half, kernel = out // 2, int(kind[0])
        branch = nn.Sequential()
        branch.add_module("first", ConvBlock(inputs if stride == 2 else half, half, 1, norm=norm))
        branch.add_module("depthwise", ConvBlock(half, half, kernel, stride, half, act=None, norm=norm))
        branch.add_module("last", ConvBlock(half, half, 1, norm=norm))
        super().__init__(branch, inputs, half, stride, kernel, norm)


class Xception(Halves):
    """Three times depthwise 3x3, 1x1."""

    def __init__(self, inputs: int, out: int, stride: int, norm: Norm) -> None:
        half, branch = out // 2, nn.Sequential()
        width = inputs if stride == 2 else half
        for i in (1, 2, 3):
            depthwise = ConvBlock(width, width, 3, stride if i == 1 else 1, width, act=None, norm=norm)
            branch.add_module(f"depthwise{i}", depthwise)
            branch.add_module(f"point{i}", ConvBlock(width, half, 1, norm=norm))
            width = half
        super().__init__(branch, inputs, half, stride, 3, norm)
