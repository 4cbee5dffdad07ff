"""Label files of the YOLO layout: where they are, and what their lines say."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.account import Account
from data.text import read_text
from utils.errors import UserError

LOOKED_AT = 200  # rows, to tell what a set's long rows are


def label_of(image: Path) -> Path:
    """Where the labels of an image belong: the last folder `images` becomes `labels`, the suffix .txt."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def find_label(image: Path) -> Path | None:
    """The label file of an image, or None.

    An image that a link leads to may have its labels under the name it goes by here, or where it really is;
    the first come first. A file system may spell é in two ways, so one name may stand for the other.
    """
    here = label_of(image)
    if os.path.isfile(here):
        return here
    there = label_of(Path(os.path.realpath(image)))
    if os.path.isfile(there):
        return there
    if not here.name.isascii():
        for form in ("NFC", "NFD"):
            other = here.with_name(unicodedata.normalize(form, here.name))
            if os.path.isfile(other):
                return other
    return None


class Labels:
    """The label files of one data set.

    card: the YAML that describes them; nc: number of classes; keypoints: `kpt_shape` of poses, else None.
    """

    def __init__(self, card: Path, nc: int, keypoints: Sequence[int] | None) -> None:
        self.card, self.nc = card, nc
        self.pose = 5 + keypoints[0] * keypoints[1] if keypoints else None
        self._long: list[list[float]] = []

    def read(self, file: Path, shown: str, account: Account) -> list[list[float]]:
        """The rows [class, x, y, w, h] of one file, fractions of the image as they are written.

        Polygons of segmentation and the four corners of turned boxes become bounding boxes; of pose rows the
        box is taken. Lines that are something else are counted, as found in the file called `shown`. Raises
        UserError for a class that has no name: labels and names then disagree, and nobody knows how.
        """
        rows: list[list[float]] = []
        bad: list[int] = []
        for number, line in enumerate(read_text(file).splitlines(), 1):
            words = line.split()
            if not words:
                continue
            values = numbers_of(words)
            box = self._box(values) if values else None
            if values is None or box is None:
                bad.append(number)
                continue
            if values[0] >= self.nc:
                raise UserError(
                    f"{file} line {number}: class id {int(values[0])} is beyond names, "
                    f"which has {self.nc} classes (0 to {self.nc - 1})"
                )
            rows.append([values[0], *box])
        if bad:
            account.note("unreadable", f"{shown} line {bad[0]}", len(bad))
        return rows

    def _box(self, values: list[float]) -> list[float] | None:
        """[x, y, w, h] of a row, None for one of a wrong length."""
        n = len(values)
        if n == 5 or n == self.pose:
            return values[1:5]
        if self.pose or n < 7 or n % 2 == 0:
            if self.pose is None and len(self._long) < LOOKED_AT and n > 7:
                self._long.append(values)
            return None
        if len(self._long) < LOOKED_AT:
            self._long.append(values)
        xs, ys = values[1::2], values[2::2]
        return [(min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)]

    def check_pose(self) -> None:
        """UserError where the long rows that were read are no polygons but boxes with keypoints.

        Nothing else has in each row a box within the image and, in each third place behind it, a 0, 1 or 2.
        """
        if self.pose or not self._long or len({len(row) for row in self._long}) > 1:
            return
        rows = np.array(self._long)[:, 1:]
        (xy, wh), points = (rows[:, :2], rows[:, 2:4]), rows[:, 4:]
        if points.shape[1] == 0 or points.shape[1] % 3:
            return
        inside = (wh > 0) & (xy - wh / 2 > -0.01) & (xy + wh / 2 < 1.01)
        if inside.all() and np.isin(points[:, 2::3], (0, 1, 2)).all():
            number = points.shape[1] // 3
            raise UserError(
                f"data {self.card}: label rows of {rows.shape[1] + 1} numbers look like boxes with {number} "
                f"keypoints, not like polygons; say so in the YAML: kpt_shape: [{number}, 3]"
            )


def numbers_of(words: list[str]) -> list[float] | None:
    """The numbers of a line that begins with a class id, None where one is no number."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        return None
    whole = values[0].is_integer() and values[0] >= 0
    return values if whole and all(map(math.isfinite, values)) and "_" not in "".join(words) else None
