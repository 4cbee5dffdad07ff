"""The one place that judges and converts boxes, so that every format keeps, cuts and drops the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.account import Account
from data.images import Probe

# A box may stick out of its image by this many pixels before it counts as wrong: text formats round.
SLACK_PIXELS = 0.5


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
    entirely outside or repeated are dropped; boxes that reach outside by more than half a pixel are cut
    to the image. All others keep the exact numbers they came with.
    """
    xywh, labels = np.array(boxes, np.float64).reshape(-1, 4), np.array(cls, np.int64)
    if not len(xywh):
        return np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    low, high = xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2

    flat = ~((xywh[:, 2:] > 0).all(1) & np.isfinite(xywh).all(1))
    outside = ~flat & ((high <= 0) | (low >= 1)).any(1)
    slack = SLACK_PIXELS / np.array([shape[1], shape[0]], np.float64)
    over = ~flat & ~outside & ((low < -slack) | (high > 1 + slack)).any(1)
    low[over], high[over] = low[over].clip(0, 1), high[over].clip(0, 1)
    xywh[over] = np.concatenate([(low[over] + high[over]) / 2, high[over] - low[over]], 1)

    first = np.zeros(len(xywh), bool)
    first[np.unique(np.column_stack([labels, xywh]), axis=0, return_index=True)[1]] = True
    keep = ~flat & ~outside & first
    for reason, which in (
        ("degenerate", flat),
        ("outside", outside),
        ("duplicate", ~flat & ~outside & ~first),
        ("clipped", over & first),
    ):
        account.note(reason, where, int(which.sum()))
    return xywh[keep].astype(np.float32), labels[keep]


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
    return np.concatenate([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], 1)


def _turn(xyxy: np.ndarray, orientation: int) -> np.ndarray:
    """Fractions of the stored picture to fractions of the upright one, where EXIF swaps the sides.

    5 transposes; 6 is shown turned clockwise, so what was on top goes right; 8 counter-clockwise;
    7 transverses.
    """
    x1, y1, x2, y2 = xyxy.T
    left, right = (1 - y2, 1 - y1) if orientation in {6, 7} else (y1, y2)
    top, bottom = (1 - x2, 1 - x1) if orientation in {7, 8} else (x1, x2)
    return np.stack([left, top, right, bottom], 1)
