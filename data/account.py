"""Nothing is dropped silently: one tally of what a reader left out or changed, and the one place that judges boxes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

# A box may stick out of its image by this many pixels before it counts as wrong: text formats round.
SLACK_PIXELS = 0.5

REASONS = {
    "degenerate": "box without width or height",
    "outside": "box entirely outside its image",
    "duplicate": "box written twice in one image",
    "unknown class": "box of a class that is not in names",
    "crowd": "crowd region (iscrowd=1), not one object",
    "difficult": "object marked difficult",
    "no image": "box of an image that is not listed",
    "missing image": "image listed but not found",
    "corrupt image": "image that cannot be decoded",
    "listed twice": "image listed twice in one split",
}
KEPT = {"clipped": "box reaching outside its image, cut to the image"}


@dataclass
class Account:
    """Counts per reason, with the first few places of each; `notices` are sentences about the set as a whole."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def note(self, reason: str, where: object, n: int = 1) -> None:
        """Count `n` things left out (or changed) for `reason`, found at `where`."""
        assert reason in REASONS or reason in KEPT, reason
        if n:
            self.counts[reason] = self.counts.get(reason, 0) + int(n)
            places = self.examples.setdefault(reason, [])
            if len(places) < 3 and str(where) not in places:
                places.append(str(where))

    def say(self, notice: str) -> None:
        """Add a sentence to the summary, once."""
        if notice not in self.notices:
            self.notices.append(notice)

    def lines(self) -> list[str]:
        """One line per reason: how many, why, and where the first ones are."""
        out = []
        for reason, n in self.counts.items():
            what = "kept" if reason in KEPT else "dropped"
            places = ", ".join(self.examples[reason]) + (", ..." if n > len(self.examples[reason]) else "")
            out.append(f"{what}: {n} x {reason} ({ {**REASONS, **KEPT}[reason] }): {places}")
        return out + [f"note: {notice}" for notice in self.notices]


def judge_boxes(
    boxes: Iterable[Iterable[float]],
    cls: Iterable[int],
    shape: tuple[int, int],
    where: object,
    account: Account,
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of one image that can be learned from.

    boxes: [n, 4] xywh (centre), as fractions of the image; cls: [n] class ids; shape: (height, width) in pixels.
    Returns float32 [m, 4] xywh and int64 [m], m <= n, in the given order. Boxes without area, entirely outside
    or repeated are dropped; boxes that reach outside by more than half a pixel are cut to the image. All others
    keep the exact numbers they came with.
    """
    xywh = np.asarray(list(boxes), np.float64).reshape(-1, 4)
    labels = np.asarray(list(cls), np.int64)
    if not len(xywh):
        return np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    low, high = xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2

    flat = ~(xywh[:, 2:] > 0).all(1)  # written so that NaN counts as flat
    account.note("degenerate", where, flat.sum())
    outside = ~flat & ((high <= 0) | (low >= 1)).any(1)
    account.note("outside", where, outside.sum())

    slack = SLACK_PIXELS / np.array([shape[1], shape[0]], np.float64)
    over = ~flat & ~outside & ((low < -slack) | (high > 1 + slack)).any(1)
    account.note("clipped", where, over.sum())
    low[over], high[over] = low[over].clip(0, 1), high[over].clip(0, 1)
    xywh[over] = np.concatenate([(low[over] + high[over]) / 2, high[over] - low[over]], 1)

    rows = np.concatenate([labels[:, None], xywh], 1)
    first = np.zeros(len(rows), bool)
    first[np.unique(rows, axis=0, return_index=True)[1]] = True
    keep = ~flat & ~outside & first
    account.note("duplicate", where, (~flat & ~outside & ~first).sum())
    return xywh[keep].astype(np.float32), labels[keep]
