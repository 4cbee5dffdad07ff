"""A backbone of somebody's own: ShuffleNet v2 (arXiv 1807.11164) with four paths a block, as in single-path
one-shot search (arXiv 1904.00420).
"""

import torch
from torch import nn
from torchvision.models.shufflenetv2 import channel_shuffle

from models.elastic.blocks import ConvBlock
from models.elastic.layers import path
from models.elastic.stages import Backbone, norm_of

PARTS = {"backbone": {"depth": 4, "out_channel": None, "path": "shuffle3"}}
STRIDE = 16
OPTIONS = {"synchronised_norm": False}


def build(part, ch, options):
    norm = norm_of(options)

    def block(inputs, out, stage, number):
        stride = 2 if number == 0 else 1
        return path(part.dim("path", stage, number), lambda kind: Shuffle(inputs, out, stride, kind, norm))

    return Backbone(part, ConvBlock(ch, part.dim("out_channel"), 3, 2, norm=norm), block)


class Shuffle(nn.Module):
    """Half of the channels goes through, with stride 1; then both halves are shuffled."""

    def __init__(self, inputs, out, stride, kind, norm):
        super().__init__()
        self.stride, half = stride, out.largest // 2
        ins = inputs.largest if stride == 2 else inputs.largest // 2
        kernels = [3, 3, 3] if kind == "xception" else [int(kind.removeprefix("shuffle"))]
        layers = []
        for i, kernel in enumerate(kernels):
            width = ins if i == 0 and kind == "xception" else half
            if kind != "xception":
                layers.append(ConvBlock(ins, half, 1, norm=norm))
            layers.append(
                ConvBlock(width, width, kernel, stride if i == 0 else 1, width, act=None, norm=norm)
            )
            layers.append(ConvBlock(width, half, 1, norm=norm))
        self.branch = nn.Sequential(*layers)
        if stride == 2:
            side = ConvBlock(ins, ins, 3, 2, ins, act=None, norm=norm)
            self.side = nn.Sequential(side, ConvBlock(ins, half, 1, norm=norm))

    def forward(self, x):
        still, moved = x.chunk(2, 1) if self.stride == 1 else (self.side(x), x)
        return channel_shuffle(torch.cat((still, self.branch(moved)), 1), 2)
