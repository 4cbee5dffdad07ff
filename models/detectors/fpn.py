"""Feature pyramid network, elastic in width."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.elastic.dims import Dim
from models.elastic.layers import ElasticConv2d
from models.elastic.parts import Part
from utils.errors import UserError


def levels_of(part: Part, maps: int) -> tuple[int, int]:
    """(laterals, levels) of a neck over a backbone of so many maps. Raises UserError for what cannot be."""
    laterals, levels = part.depth
    if laterals.labels or levels.labels or not 1 <= laterals.largest <= min(maps, levels.largest):
        raise UserError(
            f"neck.depth should be two fixed numbers, laterals (1 to {maps}) and levels (no fewer), "
            f"got {[laterals.values, levels.values]}"
        )
    return laterals.largest, levels.largest


class Fpn(nn.Module):
    """FPN (arXiv 1612.03144): laterals summed top-down, one convolution each; further levels by stride 2.

    pooled: further levels are every second position of the one before, without weights (Faster R-CNN).
    """

    def __init__(self, part: Part, widths: Sequence[Dim], levels: int, pooled: bool = False) -> None:
        super().__init__()
        inner, out = part.dim("out_channel", 0), part.dim("out_channel", 1)
        lateral, kernel = part.dim("kernel_size", 0), part.dim("kernel_size", 1)
        self.laterals = nn.ModuleList(ElasticConv2d(w, inner, lateral, bias=True) for w in widths)
        self.outputs = nn.ModuleList(ElasticConv2d(inner, out, kernel, bias=True) for _ in widths)
        self.more = levels - len(widths)
        convs = 0 if pooled else self.more
        self.further = nn.ModuleList(ElasticConv2d(out, out, kernel, 2, bias=True) for _ in range(convs))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        xs = [conv(x) for conv, x in zip(self.laterals, maps[-len(self.laterals) :], strict=True)]
        for i in range(len(xs) - 1, 0, -1):
            xs[i - 1] = xs[i - 1] + F.interpolate(xs[i], scale_factor=2.0, mode="nearest")
        found = [conv(x) for conv, x in zip(self.outputs, xs, strict=True)]
        for conv in self.further:
            found.append(conv(found[-1]))
        for _ in range(self.more - len(self.further)):
            found.append(F.max_pool2d(found[-1], 1, 2))
        return found
