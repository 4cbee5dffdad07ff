"""Image files: which ones there are, how large they are, whether training can decode them. Only reads."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from utils.errors import UserError
from utils.offline import quiet_ultralytics

if TYPE_CHECKING:
    from PIL.Image import Image

    from data.account import Account

# What the decoder of training reads; .heic and .heif only where the package pi-heif is installed.
SUFFIXES = {
    ".avif", ".bmp", ".dng", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip
# What lies beside images for a reason: labels, lists, descriptions, and the caches that Ultralytics leaves.
COMPANIONS = {
    "", ".cache", ".csv", ".data", ".json", ".md", ".names", ".npy", ".txt", ".xml", ".yaml", ".yml",
}  # fmt: skip
# Folders of copies and thumbnails that a Mac, a Synology and Windows leave; hidden ones need no list.
LEFTOVERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN"}
# Formats whose header and tail settle that they decode, under the names that lead to the same decoder.
CHEAP = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".mpo"},
    "PNG": {".png"},
    "WEBP": {".webp"},
}
ORIENTATION = 274  # the EXIF tag that turns a picture


# Which ones there are -------------------------------------------------------------------------------------


def list_images(folder: Path, account: Account | None = None, root: Path | None = None) -> list[Path]:
    """All images under `folder`, sorted by path: in linked folders too, no folder twice, no hidden ones.

    account: counts what is set aside (hidden images, files of other kinds, folders that a link leads to
    again), named as seen from `root`.
    """
    images, aside = [], []
    for entry, kind in walk(folder):
        suffix = os.path.splitext(entry.name)[1].lower()
        if kind == "file" and suffix in SUFFIXES:
            images.append(Path(entry.path))
        elif kind == "file" and suffix not in COMPANIONS:
            aside.append(("other file", entry.path))
        elif kind in ("linked again", "closed") or (kind == "hidden" and suffix in SUFFIXES):
            aside.append((kind, entry.path))
    if account is not None:
        for reason, path in sorted(aside):
            account.note(reason, os.path.relpath(path, root or folder))
    return sorted(images)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name holds copies and leftovers instead of data."""
    return name.startswith(".") or name in LEFTOVERS


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a path is not below a folder once links are followed."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def count_outside(images: Iterable[Path], roots: list[Path], shown_from: Path, account: Account) -> None:
    """Count images that are not below any of `roots` once links are followed."""
    outside: dict[Path, bool] = {}
    for image in sorted(images):
        if image.parent not in outside:
            outside[image.parent] = all(leads_out(image.parent, root) for root in roots)
        if outside[image.parent] or (image.is_symlink() and all(leads_out(image, root) for root in roots)):
            account.note("outside folder", os.path.relpath(image, shown_from))


def walk(folder: Path | str) -> Iterator[tuple[os.DirEntry[str], str]]:
    """(entry, "file" or "hidden") for every file under `folder`; a link to a folder seen before is "linked
    again", so that loops end; a folder that cannot be opened is "closed". Links are followed last: what has
    two names goes by its real one. UserError if `folder` itself cannot be opened.
    """
    seen: set[tuple[int, int]] = set()
    real: deque[tuple[os.DirEntry[str] | None, str]] = deque([(None, "file")])
    linked: deque[tuple[os.DirEntry[str] | None, str]] = deque()
    while real or linked:
        place, kind = (real or linked).popleft()
        try:
            stat = os.stat(place.path if place else folder)
            with os.scandir(place.path if place else folder) as found:
                entries = list(found)
        except OSError as e:
            if place is None:
                raise UserError(f"data {folder} cannot be opened: {e.strerror}") from None
            yield place, "closed"
            continue
        if (stat.st_dev, stat.st_ino) in seen and place:
            yield place, "linked again"
            continue
        seen.add((stat.st_dev, stat.st_ino))
        for entry in entries:
            now = "hidden" if kind == "hidden" or is_hidden(entry.name) else "file"
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                (linked if entry.is_symlink() else real).append((entry, now))
            else:
                yield entry, now


# What they are --------------------------------------------------------------------------------------------


class Probe(NamedTuple):
    """(height, width) as stored and as decoded for training, and the EXIF orientation in between."""

    stored: tuple[int, int]
    upright: tuple[int, int]
    orientation: int  # 1 (as it is) to 8


def probe(path: Path) -> Probe | None:
    """What an image file is for training, or None if its decoder gives nothing that can be trained on.

    The header is enough where it settles the matter (see `_by_header`), which keeps 100,000 images a matter
    of a minute; everything else is decoded once, as training will.
    """
    return (_by_header(path) or _by_decoding(path)) if path.is_file() else None


def read_pixels(path: Path) -> np.ndarray | None:
    """uint8 [h, w, 3] BGR, upright, as Ultralytics' own loader has it; None where there is no such picture.

    Floating-point and two-channel TIFFs are none: they decode, but to something else than a network takes.
    """
    quiet_ultralytics()
    import cv2
    from ultralytics.utils.patches import imread

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # we say which file is bad, once
    try:
        im = imread(path)
    except Exception:  # decoders raise a dozen kinds on hostile bytes; any of them means: no picture
        return None
    return im if im is not None and im.dtype == np.uint8 and im.shape[2:] == (3,) and im.size else None


def _by_header(path: Path) -> Probe | None:
    """What the header says of an upright JPEG, PNG or WebP that is whole; None where that takes decoding.

    Whole is a JPEG that ends as JPEGs do, a PNG whose sums are right up to its end, a WebP as long as it
    says. Other formats can be cut anywhere without a sign of it.
    """
    import PIL.Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # whatever PIL wonders about (size, EXIF), the decoder shall judge
            with PIL.Image.open(path) as im:
                size, kind = (im.height, im.width), im.format or ""
                upright = kind == "PNG" or _orientation(im) == 1
                im.verify()  # of a PNG, all of it
        if path.suffix.lower() not in CHEAP.get(kind, ()) or not upright or not _whole(path, kind):
            return None
    except Exception:  # as above
        return None
    return Probe(size, size, 1)


def _whole(path: Path, kind: str) -> bool:
    if kind == "PNG":
        return b"eXIf" not in path.read_bytes()  # asking PIL for its orientation would decode it
    with path.open("rb") as f:
        head = f.read(12)
        length = f.seek(0, 2)
        if kind == "WEBP":
            return length >= int.from_bytes(head[4:8], "little") + 8
        f.seek(max(0, length - 64))
        return b"\xff\xd9" in f.read()


def _by_decoding(path: Path) -> Probe | None:
    """What the decoder of training makes of a file, and which turn it made.

    Which decoder honours which tag of which type depends on format and version, so the picture is asked.
    """
    upright = read_pixels(path)
    if upright is None:
        return None
    shape = (upright.shape[0], upright.shape[1])
    stored, tag = _stated(path)
    if tag in range(5, 9) and stored == shape[::-1] != shape:
        return Probe(stored, shape, tag)
    turn = 1 if tag == 1 else _turn_made(path, upright)
    return Probe(shape[::-1] if turn >= 5 else shape, shape, turn)


def _stated(path: Path) -> tuple[tuple[int, int], int]:
    """(height, width) and EXIF orientation that a header states; 0 stands for an odd or unknown one."""
    import PIL.Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PIL.Image.open(path) as im:
                return (im.height, im.width), _orientation(im)
    except Exception:  # as above
        return (0, 0), 0


def _orientation(im: Image) -> int:
    """The EXIF orientation 1 to 8 of an opened picture; 0 where its tag is odd: decoders differ on those."""
    tag = im.getexif().get(ORIENTATION)
    if tag is None:  # PIL passes over a tag of an unknown type
        exif = im.info.get("exif") or b""
        return 0 if any(ORIENTATION.to_bytes(2, order) in exif for order in ("little", "big")) else 1
    return tag if type(tag) is int and 1 <= tag <= 8 else 0


def _turn_made(path: Path, upright: np.ndarray) -> int:
    """The EXIF orientation that turns the picture as stored into `upright`; 1 where none does."""
    import cv2

    raw = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if raw is None:
        return 1
    across = raw.transpose(1, 0, 2)
    turns = (
        raw, raw[:, ::-1], raw[::-1, ::-1], raw[::-1],
        across, across[:, ::-1], across[::-1, ::-1], across[::-1],
    )  # fmt: skip
    return next((o for o, turned in enumerate(turns, 1) if np.array_equal(turned, upright)), 1)


# Whether they changed -------------------------------------------------------------------------------------


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
    for entry, _ in walk(path):
        if os.path.isfile(entry.path):
            yield entry.path, entry.stat().st_size, entry.stat().st_mtime_ns


def contents(paths: list[Path]) -> list[str]:
    """A key per image that is equal exactly where the bytes are equal. Only files of equal size are read."""
    sizes = [p.stat().st_size for p in paths]
    times = Counter(sizes)
    return [
        hashlib.sha1(p.read_bytes()).hexdigest() if times[size] > 1 else f"size-{size}"
        for p, size in zip(paths, sizes, strict=True)
    ]
