"""Pascal VOC: one XML per image in Annotations/, images in JPEGImages/, lists of names in ImageSets/Main/.

(M. Everingham et al.: The PASCAL Visual Object Classes Challenge, IJCV 2010.) Also the two shapes in which
tools export it: XML files beside the images in one folder, and such folders called train, valid and test.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.account import Account
from data.boxes import from_pixels, judge_boxes
from data.card import how_to_get, licence_of, root_of
from data.dataset import Reading, Sample
from data.images import list_images, probe
from data.progress import progress
from data.yolo_format import check_splits, fail_if_most_are_corrupt
from utils.errors import UserError

SUBFOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class Page:
    """What one XML says: (height, width) or None; per object its class, whether difficult, xyxy pixels."""

    size: tuple[int, int] | None
    objects: list[tuple[str, bool, tuple[float, float, float, float]]]


@dataclass(frozen=True)
class Part:
    """The images of one split in one folder: `stems` names them, or is None for all that have an XML."""

    annotations: Path
    images: Path
    stems: list[str] | None


def looks_like(folder: Path) -> bool:
    """Whether a folder holds VOC annotations."""
    return bool(_annotations(folder) or any(_annotations(folder / sub) for sub in SUBFOLDERS["train"]))


def read_folder(folder: Path) -> Reading:
    """Read a VOC folder. Its splits are those of ImageSets/Main, or its subfolders, or there is only 'train'.

    Classes are those of classes.txt if there is one, else all that occur, by name. Raises UserError for a
    list or an XML that cannot be read; objects marked difficult are dropped, as Ultralytics' own
    conversion does.
    """
    parts: dict[str, list[Part]] = {}
    annotations = _annotations(folder)
    lists = folder / "ImageSets" / "Main"
    watch = []
    if annotations is None:
        for split, subs in SUBFOLDERS.items():
            found = [folder / sub for sub in subs if _annotations(folder / sub)]
            if found:
                parts[split] = [Part(found[0], found[0], None)]
    elif any((lists / f"{name}.txt").is_file() for name in ("train", "trainval")):
        train = "train" if (lists / "train.txt").is_file() else "trainval"
        for split, name in (("train", train), ("val", "val"), ("test", "test")):
            if (lists / f"{name}.txt").is_file():
                parts[split] = [_listed(folder, name)]
        watch.append(lists)
    else:
        parts["train"] = [Part(annotations, _images(folder), None)]
    classes = folder / "classes.txt"
    names = [s.strip() for s in classes.read_text().splitlines() if s.strip()] if classes.is_file() else None
    watch += [classes] if names else []
    return _read(parts, names, folder, folder.name, licence_of({}, folder), watch)


def read_card(card: dict[str, Any], path: Path) -> Reading:
    """Read a card with `format: voc`, whose splits are lists like [VOC2012/trainval, VOC2007/trainval]."""
    check_splits(card, path)
    root = root_of(card, path)
    parts: dict[str, list[Part]] = {}
    for split in ("train", "search_train", "search_val", "val", "test"):
        declared = card.get(split) or []
        for item in declared if isinstance(declared, list) else [declared]:
            folder, _, name = str(item).rpartition("/")
            if not (root / folder / "ImageSets" / "Main" / f"{name}.txt").is_file():
                raise UserError(
                    f"data {path}: {split}: {root / folder}/ImageSets/Main/{name}.txt does not exist"
                    f"{how_to_get(card, root / folder)}"
                )
            parts.setdefault(split, []).append(_listed(root / folder, name))
    watch = [path, *{p.annotations.parent / "ImageSets" / "Main" for some in parts.values() for p in some}]
    return _read(
        parts, card["names"], root, str(card.get("name") or path.stem), licence_of(card, root), watch
    )


def _annotations(folder: Path) -> Path | None:
    """Where the XML files of a VOC folder are."""
    for place in (folder / "Annotations", folder / "annotations", folder):
        if place.is_dir() and next(place.glob("*.xml"), None):
            return place
    return None


def _images(folder: Path) -> Path:
    places = [folder / name for name in ("JPEGImages", "images", "Images")]
    return next((p for p in places if p.is_dir()), folder)


def _listed(folder: Path, name: str) -> Part:
    lines = (folder / "ImageSets" / "Main" / f"{name}.txt").read_text(encoding="utf-8-sig").splitlines()
    stems = [line.split()[0] for line in lines if line.strip()]
    return Part(_annotations(folder) or folder / "Annotations", _images(folder), stems)


def _read(
    parts: dict[str, list[Part]],
    names: list[str] | None,
    root: Path,
    name: str,
    licence: str,
    watch: list[Path],
) -> Reading:
    account = Account()
    pages = {  # of every split, before any sample: the class list must be known first
        part.annotations / f"{stem}.xml": page
        for some in parts.values()
        for part in some
        for stem, page in _pages(part)
    }
    if names is None:
        names = sorted({cls for page in pages.values() for cls, _, _ in page.objects})
    if not names:
        raise UserError(f"data {root}: no labels at all: none of {len(pages)} XML files holds an object")
    ids = {n: i for i, n in enumerate(names)}
    splits: dict[str, list[Sample]] = {}
    for split, some in parts.items():
        corrupt, samples = 0, list[Sample]()
        for part in some:
            got, bad = _samples(part, pages, ids, split, account)
            samples, corrupt = samples + got, corrupt + bad
        fail_if_most_are_corrupt(corrupt, len(samples), split, account)
        splits[split] = sorted(samples, key=lambda s: str(s.image))
    watch = watch + sorted(
        {folder for some in parts.values() for p in some for folder in (p.annotations, p.images)}
    )
    return Reading(name, "Pascal VOC", names, splits, watch, account, licence)


def _pages(part: Part) -> list[tuple[str, Page]]:
    stems = part.stems if part.stems is not None else sorted(p.stem for p in part.annotations.glob("*.xml"))
    files = [(stem, part.annotations / f"{stem}.xml") for stem in stems]
    return [(stem, read_xml(file)) for stem, file in progress(files, "reading XML") if file.is_file()]


def _samples(
    part: Part, pages: dict[Path, Page], ids: dict[str, int], split: str, account: Account
) -> tuple[list[Sample], int]:
    """The samples of one part, and how many of its images are corrupt."""
    by_stem = {image.stem: image for image in reversed(list_images(part.images))}
    stems = part.stems if part.stems is not None else sorted(p.stem for p in part.annotations.glob("*.xml"))
    if part.stems is None and len(by_stem) > len(stems):
        account.say(f"{len(by_stem) - len(stems)} images without an XML are not used")
    samples, corrupt, seen = [], 0, set()
    for stem in progress(stems, f"reading {split}"):
        if stem in seen:
            account.note("listed twice", stem)
            continue
        seen.add(stem)
        if stem not in by_stem:
            account.note("missing image", stem)
            continue
        found = probe(by_stem[stem])
        if found is None:
            corrupt += 1
            account.note("corrupt image", by_stem[stem].name)
            continue
        page = pages.get(part.annotations / f"{stem}.xml")
        if page is None:
            account.note("no annotation", stem)
        cls, corners = [], []
        for name, difficult, box in page.objects if page else []:
            if name not in ids:
                account.note("unknown class", f"{stem} ({name})")
            elif difficult:
                account.note("difficult", stem)
            else:
                cls.append(ids[name])
                corners.append(box)
        fractions = from_pixels(corners, page.size if page else None, found, stem, account)
        boxes, labels = judge_boxes(fractions.tolist(), cls, found.upright, stem, account)
        samples.append(Sample(by_stem[stem], boxes, labels, found.upright))
    return samples, corrupt


def read_xml(file: Path) -> Page:
    """What one annotation file says. Raises UserError naming the file and what is wrong in it.

    The challenge's own files count pixels from 1 and include the last one, so they are shifted to edges:
    (xmin - 1, xmax). Everybody else's tools write edges as they are drawn.
    """
    try:
        root = ET.parse(file).getroot()
    except ET.ParseError as e:
        raise UserError(f"{file} is not XML: {e}") from None
    official = (root.findtext("source/database") or "").startswith("The VOC")
    size = tuple(int(float(root.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    objects = []
    for number, element in enumerate(root.iter("object"), 1):
        name = (element.findtext("name") or "").strip()
        corners = []
        for key in ("xmin", "ymin", "xmax", "ymax"):
            text = element.findtext(f"bndbox/{key}")
            try:
                corners.append(float(text or "") - (official and key in ("xmin", "ymin")))
            except ValueError:
                raise UserError(
                    f"{file}: object {number} ({name}): {key} must be a number, got {text!r}"
                ) from None
        if not name:
            raise UserError(f"{file}: object {number} has no name")
        difficult = (element.findtext("difficult") or "0").strip() == "1"
        objects.append((name, difficult, (corners[0], corners[1], corners[2], corners[3])))
    return Page((size[0], size[1]) if all(s > 0 for s in size) else None, objects)
