"""Any data set as a YOLO layout that stock tools read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from data.progress import progress
from data.sample import Dataset, Sample
from utils.errors import UserError, printable
from utils.files import write_text

SPLITS = ("train", "val", "test")
# Formats that we read and Ultralytics does not take for images; they are written anew, without loss.
OURS_ALONE = {".gif", ".jfif", ".jpe", ".pbm", ".pgm", ".pnm", ".ppm"}
LEAST = 10  # pixels: Ultralytics passes over smaller images


def export_yolo(dataset: Dataset, to: Path, *, link: bool = False) -> Path:
    """Write a data set as a YOLO layout: images/, labels/ per split, and data.yaml. Writes only inside `to`.

    Images are copied byte for byte, or linked with `link=True`, but for formats that Ultralytics does not
    know, which become PNGs. Boxes are written with all their digits, so that reading the result gives the
    same numbers. Returns the path of data.yaml. Raises UserError if `to` exists and is not an empty folder.
    The folder appears whole or not at all.
    """
    to = Path(os.path.abspath(to))
    if to.is_symlink() or (to.exists() and (not to.is_dir() or any(to.iterdir()))):
        raise UserError(f"{to} exists and is not empty; give a new folder")
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(f".{to.name}.{os.getpid()}")
    partial.mkdir()
    try:
        for split in (s for s in SPLITS if s in dataset.splits):
            _write_split(dataset.splits[split], split, partial, link)
        write_text(partial / "data.yaml", _yaml_text(dataset))
        if to.exists():
            to.rmdir()
        partial.rename(to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return to / "data.yaml"


def too_small(dataset: Dataset) -> int:
    """How many images Ultralytics will pass over because they are less than 10 pixels wide or high."""
    return sum(min(s.shape) < LEAST for split in SPLITS for s in dataset.splits.get(split, ()))


def _write_split(samples: list[Sample], split: str, to: Path, link: bool) -> None:
    (to / "images" / split).mkdir(parents=True)
    (to / "labels" / split).mkdir(parents=True)
    taken: set[str] = set()
    for sample in progress(samples, f"writing {split}"):
        stem = _stem(sample.image)  # a.jpg and a.png, or two folders' a.jpg, would share one label file
        while stem.casefold() in taken:  # on some disks A and a are one file
            stem += "_"
        taken.add(stem.casefold())
        target = to / "images" / split / (stem + sample.image.suffix)
        if target.suffix.lower() in OURS_ALONE:
            _write_png(sample.image, target.with_suffix(".png"))
        elif link:
            target.symlink_to(os.path.realpath(sample.image))
        else:
            shutil.copyfile(sample.image, target)
        (to / "labels" / split / f"{stem}.txt").write_text(_label_text(sample))


def _stem(image: Path) -> str:
    """A file name without what other tools cannot store in a list or a YAML."""
    return printable(image.stem).replace("\\", "_")


def _write_png(source: Path, target: Path) -> None:
    import cv2

    from data.images import read_pixels

    pixels = read_pixels(source)
    if pixels is None:
        raise UserError(f"image {source} cannot be decoded any more")
    cv2.imencode(".png", pixels)[1].tofile(target)


def _label_text(sample: Sample) -> str:
    rows = zip(sample.cls.tolist(), sample.boxes, strict=True)
    return "".join(
        f"{c} {' '.join(np.format_float_positional(v, unique=True) for v in box)}\n" for c, box in rows
    )


def _yaml_text(dataset: Dataset) -> str:
    import yaml

    card: dict[str, Any] = {"name": printable(dataset.name), "licence": printable(dataset.licence)}
    card |= {split: f"images/{split}" for split in SPLITS if split in dataset.splits}
    card["names"] = dict(enumerate(dataset.names))
    return yaml.safe_dump(card, sort_keys=False, allow_unicode=True)
