"""Small networks of every kind of elastic block, for the tests: name -> a function that builds one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.elastic.blocks import BasicBlock, Bottleneck, ConvBlock, LinearBlock, StemBlock
from models.elastic.dims import Dim, gene
from models.elastic.layers import ElasticBatchNorm2d, ElasticConv2d, ElasticDepth, ElasticLinear, PathChoice
from models.space import Choice, Value


def dim(label: str, *values: Value) -> Dim:
    return gene(Choice(label, values))


class Concat(nn.Module):
    """Two elastic branches, joined: what a C3 and every neck do."""

    def __init__(self, norm_over_concat: bool = False) -> None:
        super().__init__()
        a, b = dim("a", 4, 8), dim("b", 2, 6)
        self.left, self.right = ConvBlock(3, a), ConvBlock(3, b, 1)
        self.norm = ElasticBatchNorm2d([a, b]) if norm_over_concat else nn.Identity()
        self.join = ConvBlock([a, b], dim("out", 8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.norm(torch.cat((self.left(x), self.right(x)), 1)))


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = dim("w", 8, 16)
        self.conv, self.linear = ConvBlock(3, width), LinearBlock(width, dim("l", 6, 4), act=nn.ReLU)
        self.last = ElasticLinear(dim("l", 6, 4), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.linear(self.conv(x).mean((2, 3))))


def _residual() -> nn.Module:
    width = dim("w", 16, 8)
    blocks = [
        BasicBlock(8 if i == 0 else width, width, dim("k", 3, 5), expand=dim("e", 1, 0.5)) for i in range(3)
    ]
    return nn.Sequential(ConvBlock(3, 8), ElasticDepth(blocks, dim("d", 1, 2, 3)))


def _grouped(squeeze: float = 0.0) -> nn.Module:
    width, groups = dim("w", 16, 32), dim("g", 8, 16)
    first = Bottleneck(8, width, dim("k", 3, 5), 2, expand=1, group_width=groups, squeeze=squeeze)
    second = Bottleneck(width, width, 3, expand=1, group_width=groups, squeeze=squeeze)
    return nn.Sequential(ConvBlock(3, 8), first, second)


def _depthwise() -> nn.Module:
    width = dim("w", 8, 12)
    return nn.Sequential(ConvBlock(3, width, 1), ConvBlock(width, width, dim("k", 3, 5, 7), groups=width))


def _paths() -> nn.Module:
    width = dim("w", 8, 4)
    paths = {"3x3": ConvBlock(width, width, 3), "1x1": ConvBlock(width, width, 1), "none": nn.Identity()}
    return nn.Sequential(ConvBlock(3, width), PathChoice(Choice("path", tuple(paths)), paths))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: ConvBlock(3, dim("w", 8, 4), dim("k", 5, 3), stride=2),
    "conv with bias": lambda: ElasticConv2d(3, dim("w", 8, 4), dim("k", 5, 3, 1), bias=True),
    "kernel transform": lambda: ConvBlock(3, dim("w", 8, 4), dim("k", 7, 5, 3), transform=True),
    "even kernel": lambda: ElasticConv2d(3, 4, dim("k", 6, 4), 2, padding=2),
    "stem": lambda: StemBlock(3, dim("w", 16, 32), dim("k", 3, 5, 7)),
    "linear": Flat,
    "depthwise": _depthwise,
    "residual, depth": _residual,
    "bottleneck": lambda: nn.Sequential(
        ConvBlock(3, dim("w", 32, 16)), Bottleneck(dim("w", 32, 16), dim("v", 32, 64))
    ),
    "grouped bottleneck": _grouped,
    "squeeze and excite": lambda: _grouped(0.25),
    "concat": Concat,
    "concat with norm": lambda: Concat(norm_over_concat=True),
    "paths": _paths,
}


def scramble(net: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics everywhere: zero-initialised gammas would hide half of a network."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, t in [*net.named_parameters(), *net.named_buffers()]:
            if t.is_floating_point():
                noise = torch.randn(t.shape, generator=rng)
                t.copy_(noise.abs() + 0.5 if name.endswith("running_var") else t + 0.1 * noise)
    return net
