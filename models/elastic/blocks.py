"""Blocks of elastic networks. Written once: elastic where they are built as such, plain under `model_context`
and once extracted, because only the layers inside them change.

Every residual block starts as its shortcut: the gamma of the last norm of its branch is zero (BigNAS, section
3.2). The shortcut is the identity only where input and output are the same dim: no arch changes its kind.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from models.elastic.dims import Dim, as_dim, combine, divisible
from models.elastic.layers import ElasticBatchNorm2d, ElasticConv2d, ElasticLinear, Size, Sizes

Norm = Callable[[Sizes], nn.Module]

SYNCHRONISED: Norm = partial(ElasticBatchNorm2d, synchronised=True)


def middle(out: Size, expand: Size | float) -> Dim:
    """Channels inside a block: out x expand, rounded to a multiple of 8."""
    return combine(lambda o, e: divisible(o * e), as_dim(out), as_dim(expand))


class ConvBlock(nn.Sequential):
    """Convolution, norm, activation. act: None for none."""

    def __init__(
        self,
        inputs: Sizes,
        out: Size,
        kernel: Size = 3,
        stride: int = 1,
        groups: Size = 1,
        act: Callable[[], nn.Module] | None = nn.ReLU,
        norm: Norm = ElasticBatchNorm2d,
        transform: bool = False,
    ) -> None:
        super().__init__()
        self.conv = ElasticConv2d(inputs, out, kernel, stride, groups=groups, transform=transform)
        self.norm = norm(out)
        if act is not None:
            self.act = act()


class StemBlock(nn.Sequential):
    """Three convolutions, the first with stride 2, inner widths out x expand (ResNet-D's deep stem)."""

    def __init__(
        self,
        inputs: Size,
        out: Size,
        kernel: Size = 3,
        expand: Size | float = 0.5,
        norm: Norm = ElasticBatchNorm2d,
    ) -> None:
        inner = middle(out, expand)
        super().__init__(
            ConvBlock(inputs, inner, kernel, 2, norm=norm),
            ConvBlock(inner, inner, kernel, norm=norm),
            ConvBlock(inner, out, kernel, norm=norm),
        )


class Residual(nn.Module):
    """relu(branch(x) + shortcut(x)); the last norm of the branch starts at zero."""

    def __init__(
        self, branch: nn.Sequential, last: nn.Module, inputs: Size, out: Size, stride: int, norm: Norm
    ) -> None:
        super().__init__()
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        self.branch = branch
        straight = stride == 1 and as_dim(inputs) == as_dim(out)
        self.shortcut = nn.Identity() if straight else ConvBlock(inputs, out, 1, stride, act=None, norm=norm)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.branch(x) + self.shortcut(x))


class BasicBlock(Residual):
    """Two k x k convolutions (ResNet-18)."""

    def __init__(
        self,
        inputs: Size,
        out: Size,
        kernel: Size = 3,
        stride: int = 1,
        expand: Size | float = 1,
        norm: Norm = ElasticBatchNorm2d,
        transform: bool = False,
    ) -> None:
        inner = middle(out, expand)
        last = ConvBlock(inner, out, kernel, act=None, norm=norm, transform=transform)
        branch = nn.Sequential(ConvBlock(inputs, inner, kernel, stride, norm=norm, transform=transform), last)
        super().__init__(branch, last.norm, inputs, out, stride, norm)


class Bottleneck(Residual):
    """1x1, k x k, 1x1 (ResNet-50); with group_width a ResNeXt or RegNet block, with squeeze a RegNetY block.

    group_width: channels of a group of the inner convolution, which must divide the inner width.
    squeeze: inner width of squeeze-and-excitation as a share of the block's; 0 is none.
    """

    def __init__(
        self,
        inputs: Size,
        out: Size,
        kernel: Size = 3,
        stride: int = 1,
        expand: Size | float = 0.25,
        group_width: Size | None = None,
        squeeze: float = 0.0,
        norm: Norm = ElasticBatchNorm2d,
        transform: bool = False,
    ) -> None:
        inner = middle(out, expand)
        groups = 1 if group_width is None else combine(_groups, inner, group_width)
        last = ConvBlock(inner, out, 1, act=None, norm=norm)
        branch = nn.Sequential(
            ConvBlock(inputs, inner, 1, norm=norm),
            ConvBlock(inner, inner, kernel, stride, groups, norm=norm, transform=transform),
            SqueezeExcite(inner, squeeze) if squeeze else nn.Identity(),
            last,
        )
        super().__init__(branch, last.norm, inputs, out, stride, norm)


class SqueezeExcite(nn.Module):
    """Channels weighted by a sigmoid of two 1x1 convolutions of their means (arXiv 1709.01507).

    gate: what stands for the sigmoid.
    """

    def __init__(
        self, channels: Size, squeeze: float = 0.25, gate: Callable[[Tensor], Tensor] = torch.sigmoid
    ) -> None:
        super().__init__()
        self.gate = gate
        inner = middle(channels, squeeze)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = ElasticConv2d(channels, inner, 1, bias=True)
        self.expand = ElasticConv2d(inner, channels, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.reduce(self.pool(x)).relu()))


class LinearBlock(nn.Sequential):
    """Dropout, linear, activation; each only if asked for."""

    def __init__(
        self,
        inputs: Size,
        out: Size,
        dropout: float = 0.0,
        act: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if dropout:
            self.dropout = nn.Dropout(dropout)
        self.linear = ElasticLinear(inputs, out)
        if act is not None:
            self.act = act()


def _groups(channels: int, width: int) -> int:
    """How many groups of `width` channels; 0, which no convolution takes, where they are not whole."""
    return 0 if channels % width else channels // width
