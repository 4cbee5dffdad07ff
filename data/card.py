"""Data set cards: the small YAML files that say where images are and what the classes are called."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from data.images import leads_out
from data.text import SPLIT_WORDS, read_lines, read_text
from utils.errors import UserError, did_you_mean, printable, unknown
from utils.yaml_text import load_yaml, short

# Keys that a user may misspell with effect; other unknown keys (authors, dates) are nobody's business.
CHECKED = (
    "name",
    "format",
    "path",
    "train",
    "val",
    "test",
    "search_train",
    "search_val",
    "names",
    "nc",
    "licence",
    "hyp",  # augmentation that `train.hyp: auto` takes for this data: data/hyp.py
)
# Near enough to be taken for a misspelling, but right: what the data files of Ultralytics and of tools hold.
FINE = {"author", "authors", "channels", "class_names", "data", "download", "kpt_names", "license", "minival",
        "test_json", "train_json", "type", "types", "val_json", "valid", "validation"}  # fmt: skip
MOST_CLASSES = 1_000_000
FORMATS = ("yolo", "voc", "coco", "digits")


def load_card(path: Path) -> dict[str, Any]:
    """Read and check a card. Returns its dict with `format` filled in and `names` as a list (or None).

    Raises UserError for text that is not YAML, no mapping, a likely misspelt key, names that cannot be,
    an nc that disagrees with names.
    """
    card = load_yaml(read_text(path), f"data {path}", as_text=("names",))
    if not isinstance(card, dict):
        raise UserError(f"data {path} is not a data set YAML: expected keys like train, val, names")
    for key in list(card):
        split = next((s for s, words in SPLIT_WORDS.items() if str(key).lower() in words), None)
        if split and split not in card:  # Train, valid, validation, ...
            card[split] = card.pop(key)
    for key in card:
        known = not isinstance(key, str) or key in CHECKED or key in FINE
        hint = "" if known else did_you_mean(key, set(CHECKED) - set(card))
        if hint and card.get("format") != "digits":
            raise UserError(f"data {path}: unknown key {short(key)}{hint}")
    card.setdefault("format", "yolo")
    if card["format"] not in FORMATS:
        raise unknown(f"format in data {path}:", short(card["format"]).strip("'"), FORMATS)
    for key in ("path", "name"):
        if not isinstance(card.get(key) or "", str | int | float):
            raise UserError(f"data {path}: {key} must be a text, got {short(card[key])}")
    card["names"] = _names(card, path)
    _check_keypoints(card.get("kpt_shape"), path)
    return card


def _check_keypoints(shape: object, path: Path) -> None:
    """UserError unless `kpt_shape` says how many keypoints a pose has, and of how many numbers each."""
    if shape is None:
        return
    numbers = shape if isinstance(shape, list) and all(type(n) is int for n in shape) else []
    if len(numbers) != 2 or not 1 <= numbers[0] <= 10_000 or numbers[1] not in (2, 3):
        raise UserError(
            f"data {path}: kpt_shape must be [keypoints, 2 or 3 numbers for each], got {short(shape)}"
        )


def _names(card: dict[str, Any], path: Path) -> list[str] | None:
    """Class names by id: from a list, from {0: a, 1: b}, or made up from nc alone as Ultralytics does."""
    names, nc = card.get("names"), card.get("nc")
    if isinstance(names, dict):
        keys = list(names)
        try:
            ids = sorted(int(k) for k in keys)
        except (TypeError, ValueError):
            raise UserError(
                f"data {path}: keys of names must be class ids 0, 1, ..., got {short(keys[:3])}"
            ) from None
        if ids != list(range(len(ids))):
            raise UserError(f"data {path}: names must number the classes 0 to {len(ids) - 1}, not {ids[:9]}")
        names = [names[k] for k in sorted(keys, key=int)]
    if names is not None and names != "" and (not isinstance(names, list) or not names):
        raise UserError(f"data {path}: names must be a list of class names, got {short(names)}")
    if nc is not None and (type(nc) is not int or not 1 <= nc <= MOST_CLASSES):
        raise UserError(f"data {path}: nc must be a whole number of classes from 1, got {short(nc)}")
    if not names:
        return None if nc is None else [f"class_{i}" for i in range(nc)]
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"data {path}: names must be texts, but that of class {i} is {short(name)}")
    if nc is not None and nc != len(names):
        raise UserError(
            f"data {path}: nc is {nc} but names lists {len(names)} classes; correct one, or leave nc out"
        )
    twice = [n for n, times in Counter(names).items() if times > 1]
    if twice:
        raise UserError(f"data {path}: class name {twice[0]!r} stands twice in names")
    return names


def licence_of(card: dict[str, Any], folder: Path) -> str:
    """The licence a card states, else the first line of a LICENSE file in `folder`, else 'not stated'."""
    stated = card.get("licence") or card.get("license")
    roboflow = card.get("roboflow")
    if not stated and isinstance(roboflow, dict):
        stated = roboflow.get("license")
    if stated:
        return printable(stated) if isinstance(stated, str) else short(stated)
    for name in ("LICENSE", "LICENSE.txt", "LICENCE", "LICENSE.md"):
        file = folder / name
        if file.is_file() and not leads_out(file, folder):
            lines = [line.strip("# \t") for line in read_lines(file)]
            if lines:
                return lines[0]
    return "not stated"


def root_of(card: dict[str, Any], path: Path) -> Path:
    """The folder that a card's splits are relative to.

    `path:` is looked for beside the YAML first, then where Ultralytics looks: the working folder, its
    `datasets` and `../datasets`. Without `path:` it is the YAML's own folder.
    """
    stated = Path(os.path.expanduser(str(card.get("path") or "")))
    if stated.is_absolute():
        places = [stated]
    else:
        here = Path.cwd()
        places = [base / stated for base in (path.parent, here, here / "datasets", here.parent / "datasets")]
    for place in places:
        if os.path.isdir(place):
            return Path(os.path.abspath(place))
    looked = ", ".join(dict.fromkeys(str(p) for p in places))
    raise UserError(
        f"data {path}: folder path {str(stated)!r} not found (looked for {looked})"
        f"{how_to_get(card, places[0])}"
    )


def how_to_get(card: dict[str, Any], place: Path) -> str:
    """What to download to where; nothing is ever downloaded behind the user's back."""
    download = card.get("download")
    if isinstance(download, str) and download.strip() and "\n" not in download.strip():
        return f"; get {download.strip()} and unpack it so that {place} exists"
    return ""


def check_splits(card: dict[str, Any], path: Path) -> None:
    """UserError unless the card says what to train on: train, or both parts that a search uses, or all."""
    search = [split for split in ("search_train", "search_val") if card.get(split)]
    if len(search) == 1:
        raise UserError(
            f"data {path}: {search[0]} alone cannot be used; declare search_train and search_val, or neither"
        )
    if not card.get("train") and not search:
        raise UserError(f"data {path}: train is missing; say where the training images are")
