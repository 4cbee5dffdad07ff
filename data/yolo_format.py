"""The YOLO layout: images/ and labels/ side by side, a text file per image, `class x y w h` per object."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from data.account import Account, fail_if_most_is_bad
from data.boxes import judge_boxes
from data.card import how_to_get, licence_of, load_card, root_of
from data.dataset import Dataset, Reading, Sample
from data.images import SUFFIXES, list_images, probe
from data.progress import progress
from utils.errors import UserError
from utils.files import write_text

SPLITS = ("train", "search_train", "search_val", "val", "test")
TOLERANCE = 0.01  # how far outside 0..1 a written number may be, as Ultralytics allows: writers round


def yaml_inside(folder: Path) -> Path | None:
    """The data set YAML of a folder: one with a line `train:`, preferably data.yaml or dataset.yaml."""
    found = [
        p
        for p in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
        if re.search(r"^train\s*:", p.read_text(encoding="utf-8", errors="ignore"), re.MULTILINE)
    ]
    chosen = [p for p in found if p.stem in {"data", "dataset"}] or found
    if len(chosen) > 1:
        raise UserError(
            f"data {folder} holds several data set YAMLs; give one: {', '.join(p.name for p in chosen)}"
        )
    return chosen[0] if chosen else None


def read_card(card: dict[str, Any], path: Path) -> Reading:
    """Read a data set given by an Ultralytics data YAML.

    `path`, `train`, `val`, `test` are resolved as Ultralytics does, the YAML's own folder first; each
    split is a folder, a .txt list of images, or a list of those. Raises UserError for what cannot be read
    as meant.
    """
    if card["names"] is None:
        raise UserError(f"data {path}: names is missing; list the class names, e.g. names: [cat, dog]")
    check_splits(card, path)
    root = root_of(card, path)
    account, watch = Account(), [path]
    splits: dict[str, list[Sample]] = {}
    for split in SPLITS:
        if card.get(split):
            images = images_of(card[split], split, root, path, card, watch, account)
            splits[split] = read_images(images, split, card["names"], root, account)
    watch += sorted(
        {p.parent for samples in splits.values() for s in samples for p in (s.image, label_of(s.image))}
    )
    return Reading(
        str(card.get("name") or path.stem),
        "YOLO",
        card["names"],
        splits,
        watch,
        account,
        licence_of(card, root),
    )


def check_splits(card: dict[str, Any], path: Path) -> None:
    """UserError unless the card says what to train on: train, or both parts that a search uses, or all."""
    search = [split for split in ("search_train", "search_val") if card.get(split)]
    if len(search) == 1:
        raise UserError(
            f"data {path}: {search[0]} alone cannot be used; declare search_train and search_val, or neither"
        )
    if not card.get("train") and not search:
        raise UserError(f"data {path}: train is missing; say where the training images are")


def images_of(
    value: Any, split: str, root: Path, path: Path, card: dict[str, Any], watch: list[Path], account: Account
) -> list[Path]:
    """The image files of one split, in sorted order; what was looked through is added to `watch`."""
    images: list[Path] = []
    for item in value if isinstance(value, list) else [value]:
        place = (root / str(item)).resolve()
        if not place.exists() and str(item).startswith(
            "../"
        ):  # Roboflow writes ../train/images beside train/
            place = (root / str(item)[3:]).resolve()
        if not place.exists():
            raise UserError(f"data {path}: {split}: {place} does not exist{how_to_get(card, root)}")
        watch.append(place)
        if place.is_dir():
            images += list_images(place, account, root)
        elif place.suffix == ".txt":
            for line in filter(None, map(str.strip, place.read_text(encoding="utf-8-sig").splitlines())):
                image = Path(line)
                local = (
                    place.parent / line
                    if line.startswith("./") or not (root / line).exists()
                    else root / line
                )
                images.append(image if image.is_absolute() else local)
        else:
            raise UserError(
                f"data {path}: {split}: {place} is neither a folder of images nor a .txt list of them"
            )
    if not images:
        raise UserError(
            f"data {path}: no images in split {split!r}: {value} holds none of {', '.join(sorted(SUFFIXES))}"
        )
    return sorted(images)


def label_of(image: Path) -> Path:
    """Where the labels of an image are: the last folder `images` becomes `labels`, the suffix .txt."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def read_images(
    images: list[Path], split: str, names: list[str], root: Path, account: Account
) -> list[Sample]:
    """One Sample per image that exists and decodes; the others are counted, an error if they are most."""
    samples, seen, before = [], set(), account.counts
    for image in progress(images, f"reading {split}"):
        shown = os.path.relpath(image, root)
        if image in seen:
            account.note("listed twice", shown)
            continue
        seen.add(image)
        if not image.is_file():
            account.note("missing image", shown)
            continue
        found = probe(image)
        if found is None:
            account.note("corrupt image", shown)
            continue
        rows = read_label(label_of(image), names)
        boxes, cls = judge_boxes(
            [r[1:] for r in rows], [int(r[0]) for r in rows], found.upright, shown, account
        )
        samples.append(Sample(image, boxes, cls, found.upright))
    fail_if_most_is_bad(samples, split, account, before)
    return samples


def fail_if_most_are_corrupt(corrupt: int, good: int, split: str, account: Account) -> None:
    """A few bad files are a fact of life; most of them bad is a mistake to be told about."""
    if corrupt > good:
        first = account.examples["corrupt image"][0]
        raise UserError(
            f"{corrupt} of {corrupt + good} images in split {split!r} cannot be decoded (first: {first})"
        )


def read_label(file: Path, names: list[str]) -> list[list[float]]:
    """The rows [class, x, y, w, h] of one label file; polygons of segmentation become bounding boxes.

    A missing file means no objects. Raises UserError naming file and line for anything else than numbers
    in range.
    """
    if not file.is_file():
        return []
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        where = f"{file} line {number}"
        try:
            values = [float(w) for w in words]
        except ValueError:
            raise UserError(f"{where}: expected numbers 'class x y w h', got {line.strip()[:60]!r}") from None
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            raise UserError(
                f"{where}: expected 5 numbers 'class x y w h', got {len(values)}: {line.strip()[:60]!r}"
            )
        if not values[0].is_integer() or values[0] < 0:
            raise UserError(f"{where}: class id must be a whole number from 0, got {words[0]}")
        if values[0] >= len(names):
            raise UserError(
                f"{where}: class id {words[0]} is beyond names, "
                f"which has {len(names)} classes (0 to {len(names) - 1})"
            )
        bad = next(
            (w for w, v in zip(words[1:], values[1:], strict=True) if not -TOLERANCE <= v <= 1 + TOLERANCE),
            None,
        )
        if bad is not None:
            raise UserError(f"{where}: coordinates must be fractions of the image, 0 to 1, got {bad}")
        if len(values) > 5:
            xs, ys = values[1::2], values[2::2]
            values[1:] = [
                (min(xs) + max(xs)) / 2,
                (min(ys) + max(ys)) / 2,
                max(xs) - min(xs),
                max(ys) - min(ys),
            ]
        rows.append(values)
    return rows


def export_yolo(dataset: Dataset, to: Path, *, link: bool = False) -> Path:
    """Write a data set as a YOLO layout that stock tools read: images/, labels/ per split, and data.yaml.

    Images are copied byte for byte, or linked with `link=True`; boxes are written with all their digits,
    so that reading the result gives the same numbers. Returns the path of data.yaml. Raises UserError if
    `to` exists and is not an empty folder. The folder appears whole or not at all.
    """
    to = Path(to).absolute()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to} exists and is not empty; give a new folder")
    partial = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        for split in (s for s in ("train", "val", "test") if s in dataset.splits):
            (partial / "images" / split).mkdir(parents=True)
            (partial / "labels" / split).mkdir(parents=True)
            taken: set[str] = set()
            for sample in progress(dataset.splits[split], f"writing {split}"):
                stem = sample.image.stem  # a.jpg and a.png, or two folders' a.jpg, would share one label file
                while stem in taken:
                    stem += "_"
                taken.add(stem)
                target = partial / "images" / split / (stem + sample.image.suffix)
                if link:
                    target.symlink_to(sample.image.resolve())
                else:
                    shutil.copyfile(sample.image, target)
                (partial / "labels" / split / f"{stem}.txt").write_text(_label_text(sample))
        write_text(partial / "data.yaml", _yaml_text(dataset))
        if to.exists():
            to.rmdir()
        to.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return to / "data.yaml"


def _label_text(sample: Sample) -> str:
    rows = zip(sample.cls.tolist(), sample.boxes, strict=True)
    return "".join(
        f"{c} {' '.join(np.format_float_positional(v, unique=True) for v in box)}\n" for c, box in rows
    )


def _yaml_text(dataset: Dataset) -> str:
    import yaml

    card: dict[str, Any] = {"name": dataset.name, "licence": dataset.licence}
    card |= {split: f"images/{split}" for split in ("train", "val", "test") if split in dataset.splits}
    card["names"] = dict(enumerate(dataset.names))
    return yaml.safe_dump(card, sort_keys=False, allow_unicode=True)


def open_card(path: Path) -> Reading:
    """Read a YOLO data YAML by its path."""
    return read_card(load_card(path), path)
