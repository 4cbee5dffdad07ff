"""The one place that judges and converts boxes, so that every format keeps, cuts and drops the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from data.account import Account
from data.images import Probe
from utils.sides import Sides, longer, pair, scaled

if TYPE_CHECKING:
    from data.sample import Sample

# A box may stick out of its image by this many pixels before cutting it is worth a word: formats round.
SLACK_PIXELS = 0.5
# And by this fraction of the image before it is cut at all: six digits are what text formats keep.
ROUNDING = 1e-6

# Ultralytics' augmentation drops boxes whose width or height is not larger than this (box_candidates).
LEAST_SIDE = 2.0


def judge_boxes(
    boxes: Sequence[Sequence[float]],
    cls: Sequence[int],
    shape: tuple[int, int],
    where: object,
    account: Account,
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of one image that can be learned from.

    boxes: [n, 4] xywh (centre), as fractions of the image; cls: [n] class ids; shape: (height, width) in
    pixels. Returns float32 [m, 4] xywh and int64 [m], m <= n, in the given order. Boxes without area,
    entirely outside, repeated, or of numbers that are none (nan, inf) are dropped; what reaches outside is
    cut off, and counted where it is more than half a pixel. All others keep the exact numbers they came with.
    """
    xywh, labels = np.array(boxes, np.float64).reshape(-1, 4), np.array(cls, np.int64)
    if not len(xywh):
        return np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2
        finite = np.isfinite(np.concatenate([xywh, low, high], 1)).all(1)
        flat = finite & ~(xywh[:, 2:] > 0).all(1)
        inside = finite & ~flat & ((high > 0) & (low < 1)).all(1)
        reach = np.maximum(-low, high - 1)
        over = inside & (reach > ROUNDING).any(1)
        far = inside & (reach * np.array([shape[1], shape[0]]) > SLACK_PIXELS).any(1)
    low[over], high[over] = low[over].clip(0, 1), high[over].clip(0, 1)
    xywh[over] = np.concatenate([(low[over] + high[over]) / 2, high[over] - low[over]], 1)
    xywh[~inside] = 0
    xywh = xywh.astype(np.float32)
    flat |= inside & (xywh[:, 2:] == 0).any(1)  # what is left of it is nothing that float32 can tell
    inside &= ~flat

    first, seen = np.zeros(len(xywh), bool), set()  # a set, as np.unique takes a third of all reading time
    for i in np.flatnonzero(inside):
        row = (labels[i], *xywh[i].tolist())
        first[i] = row not in seen
        seen.add(row)
    keep = inside & first
    for reason, which in (
        ("unreadable", ~finite),
        ("degenerate", flat),
        ("outside", finite & ~flat & ~inside),
        ("duplicate", inside & ~first),
        ("clipped", far & first),
    ):
        account.note(reason, where, int(which.sum()))
    return xywh[keep], labels[keep]


def from_pixels(
    boxes: Sequence[Sequence[float]],
    declared: tuple[int, int] | None,
    probe: Probe,
    where: object,
    account: Account,
) -> np.ndarray:
    """Pixel corners to fractions of the upright image.

    boxes: [n, 4] xyxy in pixels; declared: the (height, width) that the annotation states, None if it
    does not. Returns float64 [n, 4] xywh (centre). Where an annotation was drawn on the picture as
    stored, ignoring its EXIF turn, the boxes are turned with it; where it states another size, boxes are
    fractions of the stated size, which is what resizing the pictures after labelling amounts to. Both are
    counted.
    """
    xyxy = np.array(boxes, np.float64).reshape(-1, 4)
    h, w = declared or probe.upright
    xyxy = xyxy / np.array([w, h, w, h], np.float64)
    if (h, w) != probe.upright:
        if (h, w) == probe.stored and probe.orientation >= 5:
            xyxy = _turn(xyxy, probe.orientation)
            account.note("turned", where)
        else:
            account.note("other size", where)
    with np.errstate(invalid="ignore", over="ignore"):  # inf stays no number, and is judged as that
        return np.concatenate([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], 1)


def small_boxes(samples: Sequence[Sample], imgsz: Sides) -> tuple[int, int, Sides]:
    """(boxes that are too small for a training at `imgsz`, of how many, an imgsz that keeps half of them)."""
    (height, width), most = pair(imgsz), longer(imgsz)
    # what the longer side of imgsz is to be for an image to keep its size
    full = [max(s.shape[0] * (most / height), s.shape[1] * (most / width)) for s in samples]
    sides = np.repeat(full, [len(s.cls) for s in samples])
    pixels = np.concatenate([s.boxes[:, 2:] * np.array([s.shape[1], s.shape[0]]) for s in samples]).min(1)
    needed = np.sort(LEAST_SIDE * sides / pixels)
    half = int(needed[len(needed) // 2]) // 32 * 32 + 32
    return int((needed >= most).sum()), len(needed), scaled(imgsz, half, 32)


def _turn(xyxy: np.ndarray, orientation: int) -> np.ndarray:
    """Fractions of the stored picture to fractions of the upright one, where EXIF swaps the sides.

    5 transposes; 6 is shown turned clockwise, so what was on top goes right; 8 counter-clockwise;
    7 transverses.
    """
    x1, y1, x2, y2 = xyxy.T
    left, right = (1 - y2, 1 - y1) if orientation in {6, 7} else (y1, y2)
    top, bottom = (1 - x2, 1 - x1) if orientation in {7, 8} else (x1, x2)
    return np.stack([left, top, right, bottom], 1)
