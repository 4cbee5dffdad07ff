"""Decoded pixels, kept in memory once per process family.

A warm parent that calls `PIXELS.preload(...)` before it forks gives all its children the decoded images
for nothing: the pages are shared until somebody writes to them, and nobody does. These two, `PIXELS` of whole
images and `CROPS` of objects, are the process-wide state of the data code; they hold copies of what is on
disk, so they cannot change a result, only its speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data.images import read_pixels
from data.progress import progress
from data.sample import Sample
from utils.errors import UserError, printable
from utils.sides import Sides, pair, shown

SHARE_OF_MEMORY = 0.5  # of what is available when asked: training needs the rest
MARGIN = 0.1  # of a box's width and height, on each side: what surrounds an object helps to tell it
Key = tuple[Path, bytes, Sides]


def resized_shape(shape: tuple[int, int], imgsz: Sides) -> tuple[int, int]:
    """(height, width) of an image made as large as fits into `imgsz`, rounded up as Ultralytics does."""
    (h, w), (height, width) = shape, pair(imgsz)
    ratio = min(height / h, width / w)
    return (
        (h, w) if ratio == 1 else (min(int(np.ceil(h * ratio)), height), min(int(np.ceil(w * ratio)), width))
    )


def decode(sample: Sample, imgsz: Sides) -> np.ndarray:
    """The image as uint8 [h, w, 3] BGR, upright, as large as fits `imgsz`, as Ultralytics' loader has."""
    import cv2

    im = _imread(sample.image)
    h, w = resized_shape((im.shape[0], im.shape[1]), imgsz)
    return im if im.shape[:2] == (h, w) else cv2.resize(im, (w, h), interpolation=cv2.INTER_LINEAR)


class Undecodable(Exception):
    """An image could be decoded when the data were read, and now cannot. The argument is its path."""


def _imread(path: Path) -> np.ndarray:
    im = read_pixels(path)
    if im is None:
        raise Undecodable(path)
    return im


def region(box: np.ndarray, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in whole pixels of an object with its margin, inside the image.

    box: xywh (centre) as fractions; shape: (height, width). A box that is the whole image gives just that.
    """
    height, width = shape
    x, y, w, h = (float(v) for v in box)
    left, right = (x - w * (0.5 + MARGIN)) * width, (x + w * (0.5 + MARGIN)) * width
    top, bottom = (y - h * (0.5 + MARGIN)) * height, (y + h * (0.5 + MARGIN)) * height
    # a thousandth of a pixel is what float32 fractions leave of an edge between two pixels
    left, top = min(max(0, int(left + 1e-3)), width - 1), min(max(0, int(top + 1e-3)), height - 1)
    right, bottom = min(int(np.ceil(right - 1e-3)), width), min(int(np.ceil(bottom - 1e-3)), height)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def cut(samples: Sequence[Sample], imgsz: Sides) -> list[np.ndarray]:
    """The objects of one image, decoded once: each uint8 [h, w, 3] BGR, as large as fits into `imgsz`."""
    import cv2

    im = _imread(samples[0].image)
    crops = []
    for sample in samples:
        left, top, right, bottom = region(sample.boxes[0], (im.shape[0], im.shape[1]))
        crop = im[top:bottom, left:right]
        h, w = resized_shape((crop.shape[0], crop.shape[1]), imgsz)
        shrinks = h * w < crop.shape[0] * crop.shape[1]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR  # a photo shrunk tenfold by the latter flickers
        crops.append(cv2.resize(crop, (w, h), interpolation=how))
    return crops


class Pixels:
    """Resized images by (path, size). `get` answers from memory or from disk; `preload` fills the memory.

    lost: images that cannot be decoded any more, each said once.
    """

    def __init__(self) -> None:
        self._kept: dict[Key, np.ndarray] = {}
        self.lost: set[Path] = set()

    def key(self, sample: Sample, imgsz: Sides) -> Key:
        return (sample.image, b"", imgsz)

    def shape(self, sample: Sample, imgsz: Sides) -> tuple[int, int]:
        """(height, width) of what `read` gives for a sample."""
        return resized_shape(sample.shape, imgsz)

    def read(self, samples: Sequence[Sample], imgsz: Sides) -> list[np.ndarray]:
        """From disk; all `samples` are of one image."""
        return [decode(s, imgsz) for s in samples]

    def preload(self, samples: Sequence[Sample], imgsz: Sides, budget: int | None = None) -> bool:
        """Decode all `samples` not yet here, if they fit; returns whether all are in memory now.

        budget: bytes that may be used; by default half of the memory that is available now.
        """
        missing = {self.key(s, imgsz): s for s in samples if s.image not in self.lost}
        missing = {key: s for key, s in missing.items() if key not in self._kept}
        if not missing:
            return True
        shapes = [self.shape(s, imgsz) for s in missing.values()]
        need = 3 * sum(h * w for h, w in shapes)
        if need > (_available_memory() if budget is None else budget):
            return False
        of_image: dict[Path, list[Sample]] = {}
        for sample in missing.values():
            of_image.setdefault(sample.image, []).append(sample)
        groups = list(of_image.values())
        # one block for all: forked children that only read keep sharing its pages, whatever Python's
        # counters do
        block, start = np.empty(need, np.uint8), 0
        with ThreadPoolExecutor(2) as pool:  # OpenCV decodes outside the interpreter's lock
            decoded = pool.map(lambda group: self._try(group, imgsz), groups)
            for group, images in zip(
                progress(groups, f"decoding at {shown(imgsz)} px"), decoded, strict=True
            ):
                for sample, image in zip(group, images, strict=False):  # none of a lost image
                    key = self.key(sample, imgsz)
                    if image.size > need - start:  # the file has grown since it was read: keep it apart
                        self._kept[key] = image
                        continue
                    view = block[start : start + image.size].reshape(image.shape)
                    view[:] = image
                    self._kept[key], start = view, start + image.size
        for key in missing.keys() & self._kept.keys():
            self._kept[key].flags.writeable = False
        gone = sorted(self.lost & of_image.keys())
        if 2 * len(gone) > len(of_image):
            raise UserError(
                f"{len(gone)} of {len(of_image)} images cannot be decoded any more "
                f"(first: {printable(gone[0])}); are the data still where they were?"
            )
        return True

    def get(self, sample: Sample, imgsz: Sides) -> np.ndarray:
        """uint8 [h, w, 3] BGR; read-only where it comes from memory. Raises Undecodable for a lost image."""
        kept = self._kept.get(self.key(sample, imgsz))
        if kept is not None:
            return kept
        found = self._try([sample], imgsz)
        if not found:
            raise Undecodable(sample.image)
        return found[0]

    def _try(self, samples: Sequence[Sample], imgsz: Sides) -> list[np.ndarray]:
        """As `read`, but nothing, and a word the first time, where the image cannot be decoded any more."""
        path = samples[0].image
        if path in self.lost:
            return []
        try:
            return self.read(samples, imgsz)
        except Undecodable:
            self.lost.add(path)
            print(f"skipped: image {printable(path)} cannot be decoded any more ({len(self.lost)} so far)")
            return []

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.lost.clear()


class Crops(Pixels):
    """The same for the one object of each sample, cut out with its margin. An image is decoded once for all
    of its objects while memory is filled, and once for each object that does not fit there."""

    def key(self, sample: Sample, imgsz: Sides) -> Key:
        return (sample.image, sample.boxes.tobytes(), imgsz)

    def shape(self, sample: Sample, imgsz: Sides) -> tuple[int, int]:
        left, top, right, bottom = region(sample.boxes[0], sample.shape)
        return resized_shape((bottom - top, right - left), imgsz)

    def read(self, samples: Sequence[Sample], imgsz: Sides) -> list[np.ndarray]:
        return cut(samples, imgsz)


def _available_memory() -> int:
    """Bytes we may use: half of what the machine has free, or of what its container's limit leaves."""
    import psutil

    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")  # version 2; psutil sees the whole machine and would have us killed
    try:
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        if limit != "max":
            free = min(free, max(0, int(limit) - int(used)))
    except (OSError, ValueError):
        pass
    return int(free * SHARE_OF_MEMORY)


PIXELS = Pixels()
CROPS = Crops()
