"""Anchors, and boxes told as offsets from them: what detectors share, for exporters to follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError


def check_anchors(options: Mapping[str, Any]) -> None:
    """Raise UserError unless `anchor_scales` and `anchor_ratios` are lists of positive numbers."""
    for key in ("anchor_scales", "anchor_ratios"):
        given = options[key]
        if (
            not isinstance(given, list)
            or not given
            or not all(isinstance(v, (int, float)) and v > 0 for v in given)
        ):
            raise UserError(f"option {key} should be positive numbers, got {given!r}")


def anchors_at(cells: Tensor, x: Tensor, images: Tensor) -> Tensor:
    """[h x w x anchors of a position, 4] of the map `x`: the numbers of torchvision's generator.

    cells: [anchors of a position, 4] around the origin.
    """
    (h, w), (height, width) = x.shape[-2:], images.shape[-2:]
    ys = torch.arange(h, device=x.device)[:, None].expand(h, w).flatten() * (height // h)
    xs = torch.arange(w, device=x.device)[None].expand(h, w).flatten() * (width // w)
    shifts = torch.stack((xs, ys, xs, ys), 1).float()
    return (shifts[:, None] + cells.to(x.device)).flatten(0, 1)


def decoded(offsets: Tensor, anchors: Tensor, clip: float, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """Boxes [..., 4] xyxy of offsets [..., 4] from boxes that they broadcast with.

    The same numbers as torchvision's box coder of these weights gives. clip: of the logarithm of a side.
    """
    sides = anchors[..., 2:] - anchors[..., :2]
    x, y, w, h = weights
    moved = offsets / offsets.new_tensor([x, y, w, h]) if any(v != 1 for v in weights) else offsets
    centres = moved[..., :2] * sides + (anchors[..., :2] + sides / 2)
    halves = moved[..., 2:].clamp(max=clip).exp() * sides / 2
    return torch.cat((centres - halves, centres + halves), -1)


def flat(maps: Sequence[Tensor], values: int) -> Tensor:
    """[B, anchors x values, H, W] of each level -> [B, all anchors, values]."""
    rows = [x.unflatten(1, (-1, values)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in maps]
    return torch.cat(rows, 1)
