"""COCO JSON: images, categories, and annotations with boxes [x, y, width, height] in pixels.

(T.-Y. Lin et al.: Microsoft COCO, ECCV 2014.) Read with the standard library: a reader that counts what
it drops is shorter than one around a library that does not.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from data.account import Account
from data.boxes import from_pixels, judge_boxes
from data.card import how_to_get, licence_of, root_of
from data.dataset import Reading, Sample
from data.images import probe
from data.progress import progress
from data.yolo_format import check_splits, fail_if_most_are_corrupt
from utils.errors import UserError

SPLIT_WORDS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def looks_like(folder: Path) -> bool:
    """Whether a folder holds COCO annotation files."""
    return bool(_annotation_files(folder))


def read_folder(folder: Path) -> Reading:
    """Read annotations/instances_*.json, train|valid|test/_annotations.coco.json, or *.json of a folder.

    Splits are told by the words train, val and test in the file's name or its folder's; a single file is
    'train'.
    """
    files = _annotation_files(folder)
    if len(files) == 1:
        return _read({"train": files[0]}, None, folder, folder.name, licence_of({}, folder), [])
    splits: dict[str, Path] = {}
    for file in files:
        split = _split_of(file)
        if split in splits:
            raise UserError(
                f"data {folder}: {splits[split]} and {file} both look like {split}; give one JSON or a card"
            )
        if split:
            splits[split] = file
    if "train" not in splits:
        listed = ", ".join(str(f.relative_to(folder)) for f in files)
        raise UserError(f"data {folder}: none of {listed} is named for 'train'; give one JSON or rename")
    return _read(splits, None, folder, folder.name, licence_of({}, folder), [])


def read_file(file: Path) -> Reading:
    """Read one JSON; all of it is 'train', the other splits are carved from it."""
    return _read({"train": file}, None, file.parent, file.stem, licence_of({}, file.parent), [])


def read_card(card: dict[str, Any], path: Path) -> Reading:
    """Read a card with `format: coco`, whose splits are JSON files relative to `path`."""
    check_splits(card, path)
    root = root_of(card, path)
    files = {
        s: root / str(card[s]) for s in ("train", "search_train", "search_val", "val", "test") if card.get(s)
    }
    for split, file in files.items():
        if not file.is_file():
            raise UserError(f"data {path}: {split}: {file} does not exist{how_to_get(card, file)}")
    return _read(
        files, card["names"], root, str(card.get("name") or path.stem), licence_of(card, root), [path]
    )


def _annotation_files(folder: Path) -> list[Path]:
    for pattern in (
        "annotations/instances_*.json",
        "annotations/*.json",
        "*/_annotations.coco.json",
        "*.json",
    ):
        files = [f for f in sorted(folder.glob(pattern)) if _holds_coco(f)]
        if files:
            return files
    return []


def _holds_coco(file: Path) -> bool:
    """Whether a JSON mentions images and annotations, without parsing half a gigabyte to know."""
    with file.open("rb") as f:
        head = f.read(1 << 16)
        f.seek(max(0, file.stat().st_size - (1 << 16)))
        text = head + f.read()
    return any(key in text for key in (b'"annotations"', b'"categories"', b'"images"'))


def _split_of(file: Path) -> str | None:
    for text in (file.stem, file.parent.name):
        words = re.split(r"[^a-z]+", text.lower())
        for split, aliases in SPLIT_WORDS.items():
            if any(word in aliases for word in words):
                return split
    return None


def load_json(file: Path) -> dict[str, Any]:
    """The parsed file; UserError unless it is a COCO detection file."""
    try:
        content = json.loads(file.read_bytes())
    except ValueError as e:
        raise UserError(f"data {file} is not JSON: {e}") from None
    missing = [
        k
        for k in ("images", "annotations", "categories")
        if not isinstance(content, dict) or k not in content
    ]
    if missing:
        raise UserError(f"data {file} is not a COCO detection file: it has no {' and no '.join(missing)}")
    for kind, needed in (("images", ("id", "file_name")), ("categories", ("id", "name"))):
        for number, entry in enumerate(content[kind]):
            for key in needed:
                if not isinstance(entry, dict) or key not in entry:
                    raise UserError(f"data {file}: entry {number} of {kind} has no {key!r}")
    return content


def _read(
    files: dict[str, Path], names: list[str] | None, root: Path, name: str, licence: str, watch: list[Path]
) -> Reading:
    account, splits, folders = Account(), {}, set()
    contents = {split: load_json(file) for split, file in files.items()}
    if names is None:
        names = _names(next(iter(contents.values())), next(iter(files.values())), account)
    ids = {n: i for i, n in enumerate(names)}
    for split, content in contents.items():
        folder = _image_folder(content, files[split], root)
        folders.add(folder)
        splits[split] = _samples(content, files[split], folder, ids, split, account)
    return Reading(name, "COCO", names, splits, [*watch, *files.values(), *sorted(folders)], account, licence)


def _names(content: dict[str, Any], file: Path, account: Account) -> list[str]:
    """Class names in the order of their ids; ids start anywhere and may have holes."""
    categories = sorted(content["categories"], key=lambda c: c["id"])
    names, ids = [str(c["name"]) for c in categories], [c["id"] for c in categories]
    if not names:
        raise UserError(f"data {file}: categories is empty")
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UserError(f"data {file}: category {twice[0]!r} stands twice in categories")
    if ids != list(range(len(ids))):
        account.say(f"category ids {ids[0]} to {ids[-1]} ({len(ids)} of them) renumbered 0 to {len(ids) - 1}")
    return names


def _image_folder(content: dict[str, Any], file: Path, root: Path) -> Path:
    """The folder that file names are relative to: the first of the usual places that has one of them."""
    split_name = re.sub(r"^(instances|annotations)_", "", file.stem)
    places = [root / "images" / split_name, root / split_name, root / "images", file.parent]
    places += [
        file.parent / "images",
        file.parent.parent / "images" / split_name,
        file.parent.parent / split_name,
    ]
    places += [file.parent.parent / "images", root]
    first = [str(image.get("file_name")) for image in content["images"][:10]]
    for place in places:
        if any((place / name).is_file() for name in first):
            return place
    if not first:
        raise UserError(f"data {file}: no images in it")
    looked = ", ".join(dict.fromkeys(str(p) for p in places))
    raise UserError(f"data {file}: image {first[0]!r} not found; looked in {looked}")


def _samples(
    content: dict[str, Any], file: Path, folder: Path, ids: dict[str, int], split: str, account: Account
) -> list[Sample]:
    names = {c["id"]: str(c["name"]) for c in content["categories"]}
    objects: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        box = annotation.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
            raise UserError(
                f"data {file}: annotation {annotation.get('id')}: bbox must be [x, y, w, h], got {box!r}"
            )
        where = f"annotation {annotation.get('id')}"
        if annotation.get("image_id") not in objects:
            account.note("no image", where)
        elif annotation.get("iscrowd"):
            account.note("crowd", where)
        elif names.get(annotation.get("category_id")) not in ids:
            account.note("unknown class", f"{where} (category_id {annotation.get('category_id')})")
        else:
            objects[annotation["image_id"]].append(annotation)
    samples, corrupt, seen = [], 0, set()
    for image in progress(sorted(content["images"], key=lambda i: str(i["file_name"])), f"reading {split}"):
        name = str(image["file_name"])
        if name in seen:
            account.note("listed twice", name)
            continue
        seen.add(name)
        if not (folder / name).is_file():
            account.note("missing image", name)
            continue
        found = probe(folder / name)
        if found is None:
            corrupt += 1
            account.note("corrupt image", name)
            continue
        h, w = int(image.get("height") or 0), int(image.get("width") or 0)
        mine = objects[image["id"]]
        corners = [(x, y, x + bw, y + bh) for x, y, bw, bh in (a["bbox"] for a in mine)]
        fractions = from_pixels(corners, (h, w) if h > 0 and w > 0 else None, found, name, account)
        cls = [ids[names[a["category_id"]]] for a in mine]
        boxes, labels = judge_boxes(fractions.tolist(), cls, found.upright, name, account)
        samples.append(Sample(folder / name, boxes, labels, found.upright))
    fail_if_most_are_corrupt(corrupt, len(samples), split, account)
    return samples
