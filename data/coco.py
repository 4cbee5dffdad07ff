"""COCO JSON: images, categories, and annotations with boxes [x, y, width, height] in pixels.

(T.-Y. Lin et al.: Microsoft COCO, ECCV 2014.) What tools make of it is read too: ids as text, an image entry
for each box, paths of another machine. What cannot be told for sure is counted and left out.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data.account import Account
from data.boxes import from_pixels, judge_boxes
from data.card import check_splits, how_to_get, licence_of, root_of
from data.coco_file import BoxEntry, CategoryEntry, CocoFile, Id, ImageEntry, id_of, load, size_of
from data.images import count_outside, probe
from data.progress import progress
from data.sample import Reading, Sample, fail_if_most_is_bad
from data.text import SPLIT_WORDS, split_of
from utils.errors import UserError

# Where annotation files are, the first that has some. Where there are more files, each is of one image.
PATTERNS = (
    "annotations/instances_*.json",
    "annotations/*.json",
    "*/_annotations.coco.json",
    "*.json",
    "*/annotations/*.json",
    "*/*.json",
)
MOST_FILES = 100


Box = tuple[float, float, float, float]
Entries = dict[Id, tuple[int, int] | None]  # of one image: its ids, with the (height, width) stated or None


def looks_like(folder: Path) -> bool:
    """Whether a folder holds COCO annotation files."""
    return bool(_annotation_files(folder)[0])


def read_folder(folder: Path) -> Reading:
    """Read annotations/instances_*.json, train|valid|test/_annotations.coco.json, or *.json of a folder.

    Splits are told by the words train, val and test in the file's name or its folders'; a single file is
    'train'. Files that belong to no split are named.
    """
    files, others = _annotation_files(folder)
    splits: dict[str, Path] = {}
    for file in files:
        inner = file.relative_to(folder)
        split = next(filter(None, map(split_of, (inner.stem, *reversed(inner.parts[:-1])))), None)
        if split in splits:
            raise UserError(
                f"data {folder}: {splits[split]} and {file} both look like {split}; give one JSON or a card"
            )
        if split:
            splits[split] = file
    if len(files) == 1:
        splits = {"train": files[0]}
    splits = {split: splits[split] for split in SPLIT_WORDS if split in splits}
    if "train" not in splits:
        listed = ", ".join(str(f.relative_to(folder)) for f in files)
        raise UserError(f"data {folder}: none of {listed} is named for 'train'; give one JSON or rename")
    account = Account()
    for file in sorted({*files, *others} - set(splits.values())):
        account.note("unread", file.relative_to(folder))
    return _read(splits, None, folder, folder.name, licence_of({}, folder), [], account)


def read_file(file: Path) -> Reading:
    """Read one JSON; all of it is 'train', the other splits are carved from it."""
    parent = file.parent
    return _read({"train": file}, None, parent, file.stem, licence_of({}, parent), [], Account())


def read_card(card: dict[str, Any], path: Path) -> Reading:
    """Read a card with `format: coco`, whose splits are JSON files relative to `path`."""
    check_splits(card, path)
    root = root_of(card, path)
    files = {
        s: root / str(card[s]) for s in ("train", "search_train", "search_val", "val", "test") if card.get(s)
    }
    for split, file in files.items():
        if not os.path.isfile(file):
            raise UserError(f"data {path}: {split}: {file} does not exist{how_to_get(card, file)}")
    name, licence = str(card.get("name") or path.stem), licence_of(card, root)
    return _read(files, card["names"], root, name, licence, [path], Account())


def _annotation_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files to read, and others that look like them."""
    chosen: list[Path] = []
    others: list[Path] = []
    for pattern in PATTERNS:
        found = [f for f in islice(folder.glob(pattern), MOST_FILES + 1) if not f.name.startswith(".")]
        files = sorted(filter(_holds_coco, found)) if len(found) <= MOST_FILES else []
        others += files if chosen else []
        chosen = chosen or files
    return chosen, [f for f in others if f not in chosen]


def _holds_coco(file: Path) -> bool:
    """Whether a JSON mentions images and annotations, without parsing half a gigabyte to know."""
    if not file.is_file():
        return False
    with file.open("rb") as f:
        head = f.read(1 << 16)
        f.seek(max(0, file.stat().st_size - (1 << 16)))
        text = (head + f.read()).replace(b"\0", b"")  # UTF-16 too
    return any(key in text for key in (b'"annotations"', b'"categories"', b'"images"'))


def _read(
    files: dict[str, Path],
    names: list[str] | None,
    root: Path,
    name: str,
    licence: str,
    watch: list[Path],
    account: Account,
) -> Reading:
    splits, folders = {}, set()
    contents = {split: load(file) for split, file in files.items()}
    if names is None:
        names = _names(next(iter(contents.values())), next(iter(files.values())), account)
    ids = {n: i for i, n in enumerate(names)}
    for split, content in contents.items():
        before = account.counts
        listed, shared = _images(content, files[split], account)
        folder, paths = _paths(list(listed), files[split], root)
        count_outside(paths.values(), [root, folder], root, account)
        folders |= {folder, *(p.parent for p in paths.values() if not p.is_relative_to(folder))}
        boxes = _boxes(content, files[split], listed, shared, ids, account)
        splits[split] = _samples(listed, paths, boxes, split, account)
        fail_if_most_is_bad(splits[split], split, account, before)
    return Reading(name, "COCO", names, splits, [*watch, *files.values(), *sorted(folders)], account, licence)


def _categories(content: CocoFile, file: Path) -> dict[Id, str]:
    """id -> name. UserError where two names share an id."""
    names: dict[Id, str] = {}
    for entry in content.categories:
        assert isinstance(entry, CategoryEntry)
        key, name = id_of(entry.id), str(entry.name)
        assert key is not None
        if names.setdefault(key, name) != name:
            raise UserError(f"data {file}: category id {key} stands for {names[key]!r} and for {name!r}")
    return names


def _names(content: CocoFile, file: Path, account: Account) -> list[str]:
    """Class names in the order of their ids; ids start anywhere, may have holes and may be texts."""
    categories = sorted(_categories(content, file).items(), key=lambda c: (isinstance(c[0], str), c[0]))
    names, ids = [name for _, name in categories], [key for key, _ in categories]
    if not names:
        raise UserError(f"data {file}: categories is empty")
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UserError(f"data {file}: category {twice[0]!r} stands twice in categories")
    if ids != list(range(len(ids))):
        account.say(f"category ids {ids[0]} to {ids[-1]} ({len(ids)} of them) renumbered 0 to {len(ids) - 1}")
    return names


def _images(content: CocoFile, file: Path, account: Account) -> tuple[dict[str, Entries], set[Id]]:
    """file_name -> its entries, by name; and the ids of those left out.

    Names that share an id are left out with all their entries: nobody can tell whose boxes are whose.
    UserError where that is most of them.
    """
    listed: dict[str, Entries] = defaultdict(dict)
    owners: dict[Id, dict[str, None]] = defaultdict(dict)
    for number, entry in enumerate(content.images):
        key = id_of(entry.id) if isinstance(entry, ImageEntry) else None
        if key is None:
            account.note("broken entry", f"entry {number} of images")
            continue
        name, size = os.path.normpath(str(entry.file_name).strip().replace("\\", "/")), size_of(entry)
        if key in listed[name]:
            account.note("listed twice", name)
            continue
        listed[name][key] = size
        owners[key][name] = None
        if size is None and (entry.height, entry.width) != (None, None):
            account.note("no size", name)
    shared = {name for names in owners.values() if len(names) > 1 for name in names}
    if len(shared) > len(listed) - len(shared):
        key, names = next((k, list(n)) for k, n in owners.items() if len(n) > 1)
        raise UserError(
            f"data {file}: image id {key!r} stands for {names[0]!r} and for {names[1]!r}, and {len(shared)} "
            f"of {len(listed)} images share an id: whose boxes are whose cannot be told; give each its own"
        )
    for name in sorted(shared):
        account.note("shared id", name)
    kept = {name: entries for name, entries in sorted(listed.items()) if name not in shared}
    for name, entries in kept.items():
        account.note("several entries", name, len(entries) - 1)
    return kept, {key for name in shared for key in listed[name]}


def _boxes(
    content: CocoFile,
    file: Path,
    listed: dict[str, Entries],
    shared: set[Id],
    ids: dict[str, int],
    account: Account,
) -> dict[Id, list[tuple[Box, int]]]:
    """image id -> its boxes [x, y, width, height] with their class ids."""
    names = _categories(content, file)
    found: dict[Id, list[tuple[Box, int]]] = {key: [] for entries in listed.values() for key in entries}
    for number, entry in enumerate(content.annotations):
        if not isinstance(entry, BoxEntry):
            account.note("unreadable", _shown(entry, number))
            continue
        key, category = id_of(entry.image_id), id_of(entry.category_id)
        name = None if category is None else names.get(category)
        cls = None if name is None else ids.get(name)
        if key in shared:
            account.note("no owner", f"image_id {key!r}")
        elif key is None or key not in found:
            account.note("no image", f"image_id {entry.image_id!r}")
        elif entry.iscrowd not in (None, 0, "0", "", "false", "False"):
            account.note("crowd", f"annotation {number if entry.id is None else entry.id}")
        elif cls is None:
            account.note(
                "unknown class", f"category_id {entry.category_id!r} ({name or 'not in categories'})"
            )
        else:
            found[key].append((entry.bbox, cls))
    return found


def _shown(entry: Any, number: int) -> str:
    """How an annotation is called that has no box."""
    if not isinstance(entry, dict):
        return f"annotation number {number} ({str(entry)[:40]})"
    return f"annotation {str(entry.get('id', number))[:40]} (bbox {str(entry.get('bbox'))[:40]})"


def _paths(names: list[str], file: Path, root: Path) -> tuple[Path, dict[str, Path]]:
    """The folder that file names are relative to, and the files that are there.

    Of the usual places it is the one that has most of them. Where none has any, names are of another machine
    and their last part is looked for, if no two names end alike. UserError if nothing is found.
    """
    places = _places(file, root)
    if not names:
        raise UserError(f"data {file}: no images in it")
    some = names[:: len(names) // 200 + 1]
    last = {name: name.rpartition("/")[2] for name in names}
    for called in ({name: name for name in names}, last if len(set(last.values())) == len(names) else {}):
        for these in (some, names):
            counts = [sum(os.path.isfile(place / called.get(name, "")) for name in these) for place in places]
            if max(counts):
                place = places[counts.index(max(counts))]
                paths = {name: place / inner for name, inner in called.items()}
                return place, {name: path for name, path in paths.items() if os.path.isfile(path)}
    looked = ", ".join(map(str, places))
    raise UserError(f"data {file}: image {names[0]!r} not found; looked in {looked}")


def _places(file: Path, root: Path) -> list[Path]:
    """Folders that the images of a JSON usually are in, all that there are."""
    called = dict.fromkeys([re.sub(r"^(instances|annotations)_", "", file.stem), split_of(file.stem) or ""])
    near, above = file.parent, file.parent.parent
    places = [
        base / inner / word for word in called if word for base in (root, above) for inner in ("images", "")
    ]
    places += [
        root / "images",
        near,
        near / "images",
        above / "images",
        root / "data",
        root / "JPEGImages",
        root,
    ]
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def _samples(
    listed: dict[str, Entries],
    paths: dict[str, Path],
    boxes: dict[Id, list[tuple[Box, int]]],
    split: str,
    account: Account,
) -> list[Sample]:
    samples = []
    for name, entries in progress(list(listed.items()), f"reading {split}"):
        found = probe(paths[name]) if name in paths else None
        if found is None:
            account.note("corrupt image" if name in paths else "missing image", name)
            continue
        fractions, cls = [np.zeros((0, 4))], list[int]()
        for key, size in entries.items():
            corners = [(x, y, x + w, y + h) for (x, y, w, h), _ in boxes[key]]
            fractions.append(from_pixels(corners, size, found, name, account))
            cls += [c for _, c in boxes[key]]
        xywh, labels = judge_boxes(np.concatenate(fractions).tolist(), cls, found.upright, name, account)
        samples.append(Sample(paths[name], xywh, labels, found.upright))
    return samples
