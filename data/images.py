"""Image files: which ones there are, how large they are, whether they decode. Reads, never writes."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_ORIENTATION = 274  # the EXIF tag that turns a picture


def list_images(folder: Path) -> list[Path]:
    """All images under `folder`, sorted by path."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


class Probe(NamedTuple):
    """(height, width) as stored and as decoded for training, and the EXIF orientation in between."""

    stored: tuple[int, int]
    upright: tuple[int, int]
    orientation: int  # 1 (as it is) to 8


def probe(path: Path) -> Probe | None:
    """What an image file is, or None if it is corrupt.

    OpenCV, and so Ultralytics, turns a picture upright by its EXIF tag while decoding: sizes agree with that.
    The header is read, and PNGs check their sums; the pixels are decoded only where a file looks suspicious
    (a turned one, a JPEG that does not end as JPEGs do), which keeps 100,000 images a matter of seconds.
    """
    from PIL import Image

    try:
        with Image.open(path) as im:
            stored, kind = (im.height, im.width), im.format
            im.verify()
        orientation = _orientation(path, kind)
        if orientation in range(2, 9):
            return _turned(path, stored, orientation)
        if kind in {"JPEG", "MPO"} and not _ends_like_jpeg(path):
            with Image.open(path) as im:
                im.load()  # raises where data is missing; trailing bytes after a whole picture are fine
        return Probe(stored, stored, 1)
    except Exception:  # PIL raises a dozen kinds on hostile bytes; any of them means: not usable
        return None


def _orientation(path: Path, kind: str | None) -> int:
    """The EXIF orientation, 1 (upright) to 8."""
    from PIL import Image

    if kind == "BMP" or (kind == "PNG" and b"eXIf" not in path.read_bytes()):
        return 1  # asking PIL about a PNG would decode it
    with Image.open(path) as im:
        return int(im.getexif().get(_ORIENTATION, 1))


def _turned(path: Path, stored: tuple[int, int], orientation: int) -> Probe | None:
    """Which decoders honour the tag depends on format and version: ask the one that training uses."""
    import cv2
    import numpy as np

    im = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    if im is None:
        return None
    upright = (im.shape[0], im.shape[1])
    honoured = upright == (stored[::-1] if orientation >= 5 else stored)
    return Probe(stored, upright, orientation if honoured else 1)


def _ends_like_jpeg(path: Path) -> bool:
    with path.open("rb") as f:
        f.seek(0, 2)
        f.seek(max(0, f.tell() - 64))
        return b"\xff\xd9" in f.read()


def fingerprint(paths: Iterable[Path]) -> str:
    """Changes when a file under `paths` (files or folders) is added, removed, resized or touched."""
    digest = hashlib.sha1()
    for path in sorted({str(p) for p in paths}):
        for name, size, time in sorted(_stats(path)):
            digest.update(f"{name}\0{size}\0{time}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _stats(path: str) -> Iterator[tuple[str, int, int]]:
    """(path, bytes, time of change) of a file, or of all files in a folder; nothing where nothing is."""
    if not os.path.isdir(path):
        if os.path.exists(path):
            yield path, os.stat(path).st_size, os.stat(path).st_mtime_ns
        return
    for entry in os.scandir(path):  # four times as fast as Path.rglob on 100,000 files
        if entry.is_dir():
            yield from _stats(entry.path)
        elif entry.is_file():
            yield entry.path, entry.stat().st_size, entry.stat().st_mtime_ns


def contents(paths: list[Path]) -> list[str]:
    """A key per image that is equal exactly where the bytes are equal. Only files of equal size are read."""
    sizes = [p.stat().st_size for p in paths]
    times = Counter(sizes)
    return [
        hashlib.sha1(p.read_bytes()).hexdigest() if times[size] > 1 else f"size-{size}"
        for p, size in zip(paths, sizes, strict=True)
    ]
