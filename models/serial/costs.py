"""What a serial backbone costs, from its code alone, as the built one does (models/backbones/serial.py)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from torch import Tensor, nn

from models.elastic.dims import Dim, fixed
from models.serial.code import Code
from utils.sides import Sides, Size, area, pair


class Maps(nn.Module):
    """Stands for a backbone where only its maps count: (channels, stride) of each."""

    def __init__(self, maps: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.maps = list(maps)
        self.widths: list[Dim] = [fixed(channels) for channels, _ in maps]

    def begin(self) -> None:
        """It has no weights."""

    def forward(self, x: Tensor) -> list[Tensor]:
        b, _, h, w = x.shape
        return [x.new_zeros(b, channels, h // stride, w // stride) for channels, stride in self.maps]


@lru_cache(maxsize=65_536)
def backbone_cost(code: Code, ch: int, base: int, own: bool, imgsz: Sides) -> tuple[int, int]:
    """(parameters, MACs of convolutions for one image) of a code's backbone.

    own: extra streams have weights of their own.
    """
    size = _half(pair(imgsz))
    params, macs = 49 * ch * base + 2 * base, 49 * ch * base * area(size)
    size, width, wide = _half(size), base, 1 if code.kind == "b" else 4
    for stage, k in zip(code.shapes(base), code.streams, strict=True):
        entry, inputs, weights, work = size, width, 0, 0
        for planes, stride in stage:
            out = size if stride == 1 else _half(size)
            p, m = _block(code, width, planes, planes * wide, size, out, stride)
            weights, work = weights + p, work + m
            size, width = out, planes * wide
        params += weights * (1 + k * own) + k * (width * inputs + 2 * inputs)
        macs += work * (1 + k) + k * width * inputs * area(size)
        assert size <= entry
    return params, macs


def _half(size: Size) -> Size:
    """Of a convolution or pooling of stride 2 that keeps the size otherwise."""
    height, width = size
    return (height - 1) // 2 + 1, (width - 1) // 2 + 1


def _block(
    code: Code, inputs: int, planes: int, outputs: int, size: Size, out: Size, stride: int
) -> tuple[int, int]:
    """(parameters, MACs) of one block between maps of these sizes."""
    if code.kind == "b":
        layers = [(9 * inputs * planes, planes, out), (9 * planes * planes, planes, out)]
    else:
        inner = int(planes * (code.group_width / 64)) * code.groups
        layers = [
            (inputs * inner, inner, size),
            (9 * inner * inner // code.groups, inner, out),
            (inner * outputs, outputs, out),
        ]
    if stride != 1 or inputs != outputs:
        layers.append((inputs * outputs, outputs, out))
    return (
        sum(weights + 2 * channels for weights, channels, _ in layers),
        sum(weights * area(at) for weights, _, at in layers),
    )
