"""ImageFolder, as torchvision calls it: a folder for each class, its images inside.

root/train/<class>/*.jpg with root/val/ (or valid/) and perhaps root/test/ beside it, or root/<class>/*.jpg.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from data.account import Account
from data.card import licence_of
from data.images import SUFFIXES, count_outside, is_hidden, list_images, probe
from data.progress import progress
from data.sample import Reading, Sample, fail_if_most_is_bad
from data.text import SPLIT_WORDS
from utils.errors import UserError

FORMAT = "ImageFolder"
# Subfolders of detection layouts: what holds such is no folder of classes.
DETECTION = {"images", "labels", "annotations", "jpegimages", "imagesets"}


def looks_like(folder: Path) -> bool:
    """Whether a folder, or its train folder, holds folders with images."""
    return _holds_classes(folder) or any(map(_holds_classes, _parts(folder).get("train", ())))


def read_folder(folder: Path) -> Reading:
    """One Sample an image: the box is the whole image, the class its folder.

    Classes are the class folders of train that hold images, by name, as torchvision sorts them. Raises
    UserError where the images of val have none of these classes, or most images cannot be decoded.
    """
    account, parts = Account(), _parts(folder)
    roots = {"train": folder}
    if any(map(_holds_classes, parts.get("train", ()))):
        roots = {split: places[0] for split, places in parts.items()}
        for place in (p for places in parts.values() for p in places[1:]):
            account.note("unread", place.name, len(list_images(place)))
    files = {split: _files(root, folder, account) for split, root in roots.items()}
    every = [image for found in files.values() for some in found.values() for image in some]
    count_outside(every, [folder], folder, account)
    names = sorted(files["train"])
    splits = {split: _samples(found, split, names, folder, account) for split, found in files.items()}
    licence = licence_of({}, folder)
    return Reading(folder.name, FORMAT, names, splits, [folder], account, licence)


def has_no_boxes(folder: Path) -> UserError:
    """What to say to somebody who wants to train a detector on it."""
    place = next(filter(_holds_classes, _parts(folder).get("train", ())), folder)
    names = [p.name for p in _class_folders(place)]
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return UserError(
        f"data {folder} is an ImageFolder ({shown}): images "
        "with classes but without boxes, for a classifier's space; a detector needs YOLO, VOC or COCO labels"
    )


def _parts(folder: Path) -> dict[str, list[Path]]:
    """split -> the subfolders that are called so."""
    found: dict[str, list[Path]] = {}
    for place in _class_folders(folder):
        for split, words in SPLIT_WORDS.items():
            if place.name.lower() in words:
                found.setdefault(split, []).append(place)
    return found


def _holds_classes(folder: Path) -> bool:
    places = _class_folders(folder)
    words = {word for words in SPLIT_WORDS.values() for word in words}
    if any(p.name.lower() in DETECTION for p in places) or {p.name.lower() for p in places} <= words:
        return False
    return any(
        os.path.splitext(name)[1].lower() in SUFFIXES and not is_hidden(name)
        for place in places
        for name in os.listdir(place)
    )


def _class_folders(folder: Path) -> list[Path]:
    """Subfolders, but for hidden ones and what archives of a Mac leave."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name))


def _files(root: Path, shown_from: Path, account: Account) -> dict[str, list[Path]]:
    """class -> its images; folders without any, and images in no folder of a class, are counted."""
    found: dict[str, list[Path]] = {}
    for image in list_images(root, account, shown_from):
        inner = image.relative_to(root).parts
        if len(inner) > 1:
            found.setdefault(inner[0], []).append(image)
        else:
            account.note("unread", os.path.relpath(image, shown_from))
    for place in _class_folders(root):
        if place.name not in found:
            account.note("empty class", os.path.relpath(place, shown_from))
    return found


def _samples(
    found: dict[str, list[Path]], split: str, names: list[str], root: Path, account: Account
) -> list[Sample]:
    ids = {name: i for i, name in enumerate(names)}
    whole = np.array([[0.5, 0.5, 1, 1]], np.float32)
    samples, before = [], account.counts
    images = [(name, image) for name in sorted(found) for image in found[name]]
    for name, image in progress(images, f"reading {split}"):
        shown = os.path.relpath(image, root)
        if name not in ids:
            account.note("unknown class", shown)
            continue
        seen = probe(image)
        if seen is None:
            account.note("corrupt image", shown)
            continue
        samples.append(Sample(image, whole.copy(), np.array([ids[name]], np.int64), seen.upright))
    fail_if_most_is_bad(samples, split, account, before)
    if images and not samples and split != "test":
        raise UserError(
            f"data {root}: no folder of {split} is a class of train: {', '.join(sorted(found)[:4])} there, "
            f"{', '.join(names[:4])} in train"
        )
    return samples
