"""The YOLO layout: images/ and labels/ side by side, a text file per image, `class x y w h` per object."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from data.account import Account
from data.boxes import judge_boxes
from data.card import check_splits, how_to_get, licence_of, load_card, root_of
from data.images import SUFFIXES, count_outside, is_hidden, leads_out, list_images, probe
from data.progress import progress
from data.sample import Reading, Sample, fail_if_most_is_bad
from data.text import read_lines, read_text
from data.yolo_labels import Labels, find_label, label_of
from utils.errors import UserError
from utils.yaml_text import short

SPLITS = ("train", "search_train", "search_val", "val", "test")
# Text files that lie among labels and are none.
NO_LABELS = {"classes", "labels", "names", "notes", "obj", "predefined_classes", "readme", *SPLITS, "valid"}


def yaml_inside(folder: Path) -> Path | None:
    """The data set YAML of a folder: one with a line `train:`, preferably data.yaml or dataset.yaml."""
    found = [
        p
        for p in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
        if p.is_file()
        and not is_hidden(p.name)
        and re.search(r"^(\{\s*)?[\"']?train(ing)?[\"']?\s*:", read_text(p), re.MULTILINE | re.IGNORECASE)
    ]
    chosen = [p for p in found if p.stem in {"data", "dataset"}] or found
    if len(chosen) > 1:
        raise UserError(
            f"data {folder} holds several data set YAMLs; give one: {', '.join(p.name for p in chosen)}"
        )
    return chosen[0] if chosen else None


def open_card(path: Path) -> Reading:
    """Read a YOLO data YAML by its path."""
    return read_card(load_card(path), path)


def read_card(card: dict[str, Any], path: Path) -> Reading:
    """Read a data set given by an Ultralytics data YAML.

    `path`, `train`, `val`, `test` are resolved as Ultralytics does, the YAML's own folder first; each
    split is a folder, a .txt list of images, or a list of those. A test split that is not there is left out.
    Raises UserError for what cannot be read as meant.
    """
    if card["names"] is None:
        raise UserError(f"data {path}: names is missing; list the class names, e.g. names: [cat, dog]")
    check_splits(card, path)
    root = root_of(card, path)
    account, labels = Account(), Labels(path, len(card["names"]), card.get("kpt_shape"))
    places = {split: _places(card, split, root, path, account) for split in SPLITS if card.get(split)}
    images = {
        split: _images(card, split, some, root, path, account) for split, some in places.items() if some
    }
    files = {image: find_label(image) for some in images.values() for image in some}
    splits = {split: _read(some, files, split, labels, root, account) for split, some in images.items()}
    named = [place for some in places.values() for place in some]
    count_outside(files, [root, path.parent], root, account)
    _count_unread(files, named, root, account)
    watch = {path, *named} | {
        p.parent for image in files for p in (image, label_of(image), files[image]) if p
    }
    return Reading(
        str(card.get("name") or path.stem),
        "YOLO",
        card["names"],
        splits,
        sorted(watch),
        account,
        licence_of(card, root),
    )


# Which images ---------------------------------------------------------------------------------------------


def _places(card: dict[str, Any], split: str, root: Path, path: Path, account: Account) -> list[Path]:
    """The folders and lists of one split; none, and a notice, where a test split is not there."""
    places = []
    for item in card[split] if isinstance(card[split], list) else [card[split]]:
        if not isinstance(item, str):
            raise UserError(
                f"data {path}: {split}: expected a folder, a .txt list, or several of them, got {short(item)}"
            )
        place = _find(item, root)
        if place is None:
            missing = f"{split}: {os.path.abspath(root / item)} does not exist"
            if split != "test":
                raise UserError(f"data {path}: {missing}{how_to_get(card, root)}")
            account.say(f"split test is left out: {missing}")
            continue
        if not place.is_dir() and place.suffix != ".txt":
            raise UserError(
                f"data {path}: {split}: {place} is neither a folder of images nor a .txt list of them"
                f"{_unpacked_link(place)}"
            )
        places.append(place)
    return places


def _unpacked_link(place: Path) -> str:
    """A hint where a link to a folder was written as a text, as git and zip do where there are no links."""
    text = read_text(place) if place.stat().st_size < 1000 else ""
    if len(text.splitlines()) == 1 and os.path.isdir(place.parent / text.strip()):
        return "; it holds the path of a folder, a link that was unpacked as text: make it one again (ln -s)"
    return ""


def _find(text: str, *folders: Path) -> Path | None:
    """What a path in somebody's file leads to from one of `folders`; None where there is nothing.

    Windows writes \\; Roboflow writes ../train/images beside train/; CVAT writes data/ before what is here.
    """
    text = text.replace("\\", "/") if "\\" in text and not os.path.exists(folders[0] / text) else text
    names = [text, text.removeprefix("../"), text.removeprefix("data/")]
    for name in dict.fromkeys(names):
        for folder in folders:
            if os.path.exists(folder / name):
                return Path(os.path.abspath(folder / name))
    return None


def _images(
    card: dict[str, Any], split: str, places: list[Path], root: Path, path: Path, account: Account
) -> list[Path]:
    """The image files of one split, in sorted order; UserError where there are none, but for test."""
    images: list[Path] = []
    for place in places:
        images += list_images(place, account, root) if place.is_dir() else _listed(place, root, account)
    if not images and split != "test":
        why = account.why(("missing image", "hidden", "other file"))
        known = f" of {', '.join(sorted(SUFFIXES))}"
        raise UserError(
            f"data {path}: no images in split {split!r}: {short(card[split])} holds none{why or known}"
        )
    return sorted(images)


def _listed(file: Path, root: Path, account: Account) -> list[Path]:
    """The images that a list names, a line each; what is not there is counted.

    What a list holds that a link leads to elsewhere is nobody's business: its lines are named by number.
    """
    images, foreign = [], leads_out(file, root)
    for number, line in enumerate(read_lines(file), 1):
        folders = (file.parent, root) if line.startswith("./") else (root, file.parent)
        image = _find(line, *folders)
        if image is not None and image.is_file():
            images.append(image)
        else:
            account.note("missing image", f"{os.path.relpath(file, root)} line {number}" if foreign else line)
    return images


def _count_unread(files: dict[Path, Path | None], places: list[Path], root: Path, account: Account) -> None:
    """Count what lies beside the images and labels that are used, and belongs to no split or to no image.

    files: image -> its label file or None; places: the folders and lists that the YAML names.
    """
    folders = {folder for folder in {image.parent for image in files} if not leads_out(folder, root)}
    real = {os.path.realpath(folder) for folder in folders}
    unread: set[Path] = set()
    for folder in sorted(folders.union(*(_beside(place, root) for place in places))):
        if any(p.is_relative_to(folder) for p in folders):
            names = [n for n in os.listdir(folder) if not is_hidden(n)]
            found = [folder / n for n in names if os.path.splitext(n)[1].lower() in SUFFIXES]
        else:
            found = list_images(folder) if os.path.realpath(folder) not in real else []
        new = set(found) - files.keys()
        account.note("unread", os.path.relpath(folder, root), len(new))
        unread |= new
    stems = {image.stem for image in unread.union(files)}
    for folder in sorted({file.parent for file in files.values() if file}):
        for name in sorted(os.listdir(folder)) if not leads_out(folder, root) else ():
            stem, suffix = os.path.splitext(name)
            known = stem in stems or stem.lower() in NO_LABELS or is_hidden(name)
            if suffix == ".txt" and not known:
                account.note("label alone", os.path.relpath(folder / name, root))


def _beside(place: Path, root: Path) -> list[Path]:
    """The folders that are to a split's what images/train is to images/val, or train/images to val/images."""
    if place.name == "images" and root in place.parents[1:]:
        found = place.parents[1].glob("*/images")
    elif place.parent.name == "images" and root in place.parents:
        found = place.parent.glob("*")
    else:
        return []
    return [p for p in found if p.is_dir() and not is_hidden(p.name) and not is_hidden(p.parent.name)]


# Reading them ---------------------------------------------------------------------------------------------


def _read(
    images: list[Path],
    files: dict[Path, Path | None],
    split: str,
    labels: Labels,
    root: Path,
    account: Account,
) -> list[Sample]:
    """One Sample per image that decodes; the others are counted, an error if they are most.

    files: the label file of each image, or None.
    """
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
        file = files[image]
        rows = labels.read(file, os.path.relpath(file, root), account) if file else []
        boxes, cls = judge_boxes(
            [r[1:] for r in rows], [int(r[0]) for r in rows], found.upright, shown, account
        )
        samples.append(Sample(image, boxes, cls, found.upright))
    labels.check_pose()
    fail_if_most_is_bad(samples, split, account, before)
    return samples
