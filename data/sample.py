"""What every reader hands over and everybody else works with: samples, in named splits of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.account import BAD, Account
from utils.errors import UserError, printable


@dataclass(frozen=True)
class Sample:
    """One image and its objects.

    image: path of a file that is read, never written.
    boxes: float32 [n, 4], centre x, centre y, width, height as fractions (0..1) of the upright image.
    cls: int64 [n], 0 is the first class. n may be 0: a background image.
    shape: (height, width) in pixels of the upright image, that is after the turn its EXIF tag asks for.
    content: equal for two samples exactly where their files hold the same bytes.
    """

    image: Path
    boxes: np.ndarray
    cls: np.ndarray
    shape: tuple[int, int]
    content: str = ""


@dataclass(frozen=True)
class Dataset:
    """Named splits of samples over one list of class names.

    splits: 'train' (all that may be learned from), 'search_train' and 'search_val' (disjoint parts of it:
    a search learns from one and scores on the other), 'val' (reported on, never searched on), sometimes
    'test'.
    task: "detect", or "classify": then each sample has exactly one box and class, the object (or the whole
    image), and several samples may be of one image, always of one split.
    """

    name: str
    names: list[str]
    splits: dict[str, list[Sample]]
    source: str
    format: str
    licence: str = "not stated"
    account: Account = field(default_factory=Account)
    task: str = "detect"

    @property
    def nc(self) -> int:
        """Number of classes."""
        return len(self.names)

    def boxes_per_class(self, split: str) -> dict[str, int]:
        """How many boxes of each class a split holds."""
        counts = np.zeros(self.nc, np.int64)
        for sample in self.splits[split]:
            counts += np.bincount(sample.cls, minlength=self.nc)
        return dict(zip(self.names, counts.tolist(), strict=True))

    def summary(self) -> str:
        """Images, boxes (or objects) and classes per split; what was dropped or changed, and why."""
        lines = [f"data: {self.name} ({self.format}) from {self.source}; licence: {self.licence}"]
        shown = self.names if self.nc <= 12 else []
        boxes = self.task == "detect"
        head = ["split", "images", *(["no boxes", "boxes"] if boxes else ["objects"])]
        rows = [[*head, *(shown or ["classes seen"])]]
        for split, samples in self.splits.items():
            per_class = self.boxes_per_class(split)
            seen = [str(per_class[n]) for n in shown] or [
                f"{sum(v > 0 for v in per_class.values())} of {self.nc}"
            ]
            empty = [str(sum(len(s.cls) == 0 for s in samples))] if boxes else []
            images = len({s.image for s in samples})
            rows.append([split, str(images), *empty, str(sum(per_class.values())), *seen])
        lines += ["  " + line for line in _table(rows) + self.account.lines()]
        return "\n".join(map(printable, lines))


def _table(rows: list[list[str]]) -> list[str]:
    """Columns to one width each: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


@dataclass
class Reading:
    """What a format reader hands over: splits as declared, and the files whose change makes it stale."""

    name: str
    format: str
    names: list[str]
    splits: dict[str, list[Sample]]
    watch: list[Path]
    account: Account
    licence: str = "not stated"


def mixed(samples: Sequence[Sample], n: int) -> list[Sample]:
    """`n` of the samples, or all where there are fewer, always the same ones in the same random order.

    What is estimated from a few batches needs batches that look alike, and data sets are often sorted: an
    ImageFolder by class, a video by time.
    """
    order = np.random.default_rng(0).permutation(len(samples))
    return [samples[i] for i in order[:n]]


def fail_if_most_is_bad(
    samples: Sequence[Sample], split: str, account: Account, before: dict[str, int]
) -> None:
    """A few bad files or boxes are a fact of life; most of them bad is a mistake to be told about.

    samples: what came out of a split; before: `account.counts` when its reading began.
    """
    new = Counter(account.counts)
    new.subtract(before)
    corrupt, good = new["corrupt image"], len(samples)
    if corrupt > good:
        first = account.examples["corrupt image"][0]
        raise UserError(
            f"{corrupt} of {corrupt + good} images in split {split!r} cannot be decoded (first: {first})"
        )
    bad, good = sum(new[reason] for reason in BAD), sum(len(s.cls) for s in samples)
    if bad > good:
        pixels = (
            "; YOLO counts in fractions of the image, VOC and COCO in pixels"
            if new["outside"] * 2 > bad
            else ""
        )
        raise UserError(
            f"{bad} of {bad + good} boxes in split {split!r} cannot be used{account.why(BAD)}{pixels}"
        )
