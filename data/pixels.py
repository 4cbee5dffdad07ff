"""Decoded pixels, kept in memory once per process family.

A warm parent that calls `PIXELS.preload(...)` before it forks gives all its children the decoded images
for nothing: the pages are shared until somebody writes to them, and nobody does. This is the one piece of
process-wide state in the data code; it holds copies of what is on disk, so it cannot change a result,
only its speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data.dataset import Sample
from data.progress import progress
from utils.errors import UserError
from utils.offline import quiet_ultralytics

SHARE_OF_MEMORY = 0.5  # of what is available when asked: training needs the rest


def resized_shape(shape: tuple[int, int], imgsz: int) -> tuple[int, int]:
    """(height, width) with the longer side at `imgsz`, rounded up as Ultralytics does."""
    h, w = shape
    ratio = imgsz / max(h, w)
    return (
        (h, w) if ratio == 1 else (min(int(np.ceil(h * ratio)), imgsz), min(int(np.ceil(w * ratio)), imgsz))
    )


def decode(sample: Sample, imgsz: int) -> np.ndarray:
    """The image as uint8 [h, w, 3] BGR, upright, longer side `imgsz`, as Ultralytics' own loader has it."""
    quiet_ultralytics()
    import cv2
    from ultralytics.utils.patches import imread

    im = imread(sample.image)
    if im is None:
        raise UserError(
            f"image {sample.image} cannot be decoded (any more); remove it from the data or repair it"
        )
    h, w = resized_shape((im.shape[0], im.shape[1]), imgsz)
    return im if im.shape[:2] == (h, w) else cv2.resize(im, (w, h), interpolation=cv2.INTER_LINEAR)


class Pixels:
    """Resized images by (path, size). `get` answers from memory or from disk; `preload` fills the memory."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Path, int], np.ndarray] = {}

    def preload(self, samples: Sequence[Sample], imgsz: int, budget: int | None = None) -> bool:
        """Decode all `samples` not yet here, if they fit; returns whether all are in memory now.

        budget: bytes that may be used; by default half of the memory that is available now.
        """
        missing = {(s.image, imgsz): s for s in samples if (s.image, imgsz) not in self._kept}
        if not missing:
            return True
        shapes = [resized_shape(s.shape, imgsz) for s in missing.values()]
        need = 3 * sum(h * w for h, w in shapes)
        if need > (_available_memory() if budget is None else budget):
            return False
        # one block for all: forked children that only read keep sharing its pages, whatever Python's
        # counters do
        block, start = np.empty(need, np.uint8), 0
        with ThreadPoolExecutor(2) as pool:  # OpenCV decodes outside the interpreter's lock
            decoded = pool.map(lambda s: decode(s, imgsz), missing.values())
            for key, image in zip(progress(list(missing), f"decoding at {imgsz} px"), decoded, strict=True):
                if image.size > need - start:  # the file has grown since it was read: keep it apart
                    self._kept[key] = image
                    continue
                view = block[start : start + image.size].reshape(image.shape)
                view[:] = image
                self._kept[key], start = view, start + image.size
        for key in missing:
            self._kept[key].flags.writeable = False
        return True

    def get(self, sample: Sample, imgsz: int) -> np.ndarray:
        """uint8 [h, w, 3] BGR; read-only where it comes from memory."""
        kept = self._kept.get((sample.image, imgsz))
        return decode(sample, imgsz) if kept is None else kept

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()


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
