"""One door for data: whatever layout the labels came in, a `Dataset` of splits of `Sample`s comes out.

`open_dataset` reads the user's files once, keeps what it learned (paths, sizes, boxes: not the pixels) in one
file under the cache folder, and never writes anywhere else.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data import coco, digits, image_folder, voc, yolo_format, yolo_guess
from data.account import Account
from data.card import load_card
from data.crops import croppable, objects, with_objects
from data.images import contents, fingerprint
from data.sample import Dataset, Reading, Sample
from data.split import carve, shared_content
from utils.errors import UserError, printable, unknown

TASKS = ("detect", "classify")
VAL_SEED, VAL_FRACTION = 0, 0.2  # for sources that declare no val split
REPO = Path(__file__).resolve().parents[1]


def open_dataset(
    source: str | Path, cache: Path, *, seed: int = 0, val_fraction: float = 0.2, task: str = "detect"
) -> Dataset:
    """Open a YOLO data set YAML, a Pascal VOC folder, a COCO JSON (or a folder with some), or a card of ours;
    to classify also an ImageFolder.

    source: path of the YAML, JSON or folder; `data/digits.yaml` needs no files besides itself.
    cache: folder of ours to remember the conversion in; the second opening of unchanged data reads only that.
    seed, val_fraction: how 'search_train' and 'search_val' are carved from 'train' unless the source declares
    them. Same source, seed and fraction: same splits. A 'val' that the source does not declare is carved with
    a notice, and does not depend on either.
    task: "classify" makes each labelled object of detection data a sample of its own. Images are dealt out to
    the splits first, so the objects of one are never in two.

    Raises UserError, in one line, for everything that can be wrong with the user's data.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    path = find_source(source)
    reading = _read_or_recall(path, Path(cache), task)
    return _finish(reading, path, seed, val_fraction, task)


def find_source(source: str | Path) -> Path:
    """The absolute path of a data source; cards of ours (data/digits.yaml) are found from any folder."""
    path = Path(os.path.expanduser(source))
    for candidate in (path, REPO / path):
        if os.path.exists(candidate):
            return Path(os.path.abspath(candidate))
    raise UserError(
        f"data {str(source)!r} does not exist; give a YOLO data set YAML, a Pascal VOC folder, a COCO JSON, "
        "an ImageFolder (to classify), or data/digits.yaml"
    )


def _finish(reading: Reading, path: Path, seed: int, val_fraction: float, task: str) -> Dataset:
    """Check that the splits can be used, and carve those that the source does not declare."""
    account, nc, kind = deepcopy(reading.account), len(reading.names), reading.format
    declared = reading.splits
    if task == "classify":
        declared = {split: croppable(samples, account) for split, samples in declared.items()}
    declared = _usable(declared, path, account)
    if task == "classify":
        declared = {split: with_objects(samples, account) for split, samples in declared.items()}
        declared = _usable(declared, path, account)  # test may have had no labels
        _check_classes(declared, reading.names, path)
    train = declared.get("train") or declared["search_train"] + declared["search_val"]
    if "val" in declared:
        val = declared["val"]
    else:  # the same for every experiment: what is reported must not move with what is searched
        train, val = carve(train, nc, VAL_FRACTION, VAL_SEED, "val")
        account.say(f"no val split declared: {len(val)} of the images set aside for it, always the same")
    if "search_train" in declared:
        search_train, search_val = declared["search_train"], declared["search_val"]
    else:
        search_train, search_val = carve(train, nc, val_fraction, seed, "search_val")
    splits = {"train": train, "search_train": search_train, "search_val": search_val, "val": val}
    splits |= {"test": declared["test"]} if "test" in declared else {}
    _warn(splits, reading.names, account, "box" if task == "detect" else "object")
    if task == "classify":
        splits = {split: objects(samples) for split, samples in splits.items()}
        kind = kind if kind == "ImageFolder" else f"objects of {kind}"
    return Dataset(reading.name, reading.names, splits, str(path), kind, reading.licence, account, task)


def _check_classes(splits: dict[str, list[Sample]], names: list[str], path: Path) -> None:
    """UserError unless there are two classes to tell apart."""
    train = [s for split in ("train", "search_train", "search_val") for s in splits.get(split, [])]
    seen = np.unique(np.concatenate([s.cls for s in train]))
    if len(seen) < 2:
        raise UserError(
            f"data {path}: everything in train is of one class, {names[seen[0]]!r}; a classifier needs two"
        )


def _usable(splits: dict[str, list[Sample]], path: Path, account: Account) -> dict[str, list[Sample]]:
    """The declared splits, all with images and, except for test, with labels; else UserError."""
    usable = dict(splits)
    if not usable.get("test", True):
        account.say("split test is empty and left out")
        del usable["test"]
    for split, samples in usable.items():
        if not samples:
            raise UserError(f"data {path}: no images in split {split!r}{account.why()}")
        if split != "test" and not any(len(s.cls) for s in samples):
            count = f"{len(samples)} images without boxes"
            raise UserError(f"data {path}: no labels at all in split {split!r} ({count}){account.why()}")
    return usable


def _warn(splits: dict[str, list[Sample]], names: list[str], account: Account, thing: str) -> None:
    """Say what will make figures misleading."""
    for a, b in (("train", "val"), ("train", "test"), ("search_train", "search_val")):
        same = shared_content(splits[a], splits.get(b, []))
        if same:
            account.say(f"{same} images of {b} are also in {a}: scores on {b} will flatter")
    seen = set(np.concatenate([s.cls for s in splits["train"]]).tolist())
    unseen = [name for i, name in enumerate(names) if i not in seen]
    if unseen:
        shown = ", ".join(unseen[:8]) + (", ..." if len(unseen) > 8 else "")
        account.say(f"no {thing} in train for {len(unseen)} of {len(names)} classes: {shown}")


# Reading once --------------------------------------------------------------------------------------------


def _read_or_recall(path: Path, cache: Path, task: str) -> Reading:
    """The reading of `path` from the cache if nothing changed since, else from the source."""
    stem = printable(path.stem).replace("\\", "_")[:40] or "data"
    memory = cache / f"{stem}-{hashlib.sha1(os.fsencode(path)).hexdigest()[:12]}.npz"
    if memory.exists():
        recalled = _recall(memory)
        if recalled and (task == "classify" or recalled.format != "ImageFolder"):
            return recalled
    reading = read(path, cache, task)
    keys = iter(contents([s.image for samples in reading.splits.values() for s in samples]))
    reading.splits = {k: [replace(s, content=next(keys)) for s in v] for k, v in reading.splits.items()}
    _remember(memory, reading, fingerprint(reading.watch))
    return reading


def read(path: Path, cache: Path, task: str = "detect") -> Reading:
    """Read a source by what it looks like. `cache` is only for data we make ourselves (the digits)."""
    if path.is_dir():
        card_file = yolo_format.yaml_inside(path)
        if card_file is None and voc.looks_like(path):
            return voc.read_folder(path)
        if card_file is None and (line := yolo_guess.card_for(path)):
            raise UserError(
                f"data {path} holds YOLO labels but no data YAML; write {path / 'data.yaml'} with this line, "
                f"check the names, and give it again: {line}"
            )
        if card_file is None and coco.looks_like(path):
            return coco.read_folder(path)
        if card_file is None and image_folder.looks_like(path):
            if task == "detect":
                raise image_folder.has_no_boxes(path)
            return image_folder.read_folder(path)
        if card_file is None:
            folders = ", a folder of images for each class (ImageFolder)" if task == "classify" else ""
            raise UserError(
                f"data {path} is none of the known layouts: looked for data.yaml (YOLO), Annotations/*.xml "
                f"(Pascal VOC), annotations/*.json and *.json (COCO){folders}"
            )
        path = card_file
    if path.suffix.lower() == ".json":
        return coco.read_file(path)
    if path.suffix.lower() not in {".yaml", ".yml"}:
        kind = path.suffix or "file without suffix"
        raise UserError(f"data {path}: expected a .yaml, a .json or a folder, got a {kind}")
    card_dict = load_card(path)
    readers: dict[str, Callable[[dict[str, Any], Path], Reading]] = {
        "yolo": yolo_format.read_card,
        "voc": voc.read_card,
        "coco": coco.read_card,
    }
    if card_dict["format"] == "digits":
        return digits.read_card(card_dict, path, cache)
    return readers[card_dict["format"]](card_dict, path)


@functools.cache
def _version() -> str:
    """Of all that reads and keeps data: what another version remembered is read again."""
    texts = [p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha1(b"".join(texts)).hexdigest()


def _remember(memory: Path, reading: Reading, mark: str) -> None:
    """Write a reading as one .npz: numbers as arrays, the rest as one JSON text. Whole or not at all."""
    samples = [s for split in reading.splits.values() for s in split]
    header = {
        "version": _version(),
        "fingerprint": mark,
        "name": reading.name,
        "format": reading.format,
        "names": reading.names,
        "licence": reading.licence,
        "watch": [str(p) for p in reading.watch],
        "account": vars(reading.account),
        "splits": {split: len(members) for split, members in reading.splits.items()},
        "images": [str(s.image) for s in samples],
        "contents": [s.content for s in samples],
    }
    memory.parent.mkdir(parents=True, exist_ok=True)
    neighbour = memory.with_name(f".{os.getpid()}-{memory.name}")
    try:
        np.savez(
            neighbour,
            header=np.frombuffer(json.dumps(header).encode(), np.uint8),
            boxes=np.concatenate([s.boxes for s in samples]) if samples else np.zeros((0, 4), np.float32),
            cls=np.concatenate([s.cls for s in samples]) if samples else np.zeros(0, np.int64),
            counts=np.array([len(s.cls) for s in samples], np.int64),
            shapes=np.array([s.shape for s in samples], np.int64).reshape(-1, 2),
        )
        os.replace(neighbour, memory)
    finally:
        neighbour.unlink(missing_ok=True)


def _recall(memory: Path) -> Reading | None:
    """A remembered reading, or None where it is of another version, damaged, or the source has changed."""
    try:
        with np.load(memory, allow_pickle=False) as file:
            arrays = {k: file[k] for k in file.files}
        header = json.loads(arrays["header"].tobytes())
        watch = [Path(p) for p in header["watch"]] if header["version"] == _version() else []
        if not watch or header["fingerprint"] != fingerprint(watch):
            return None
        return _remembered(header, arrays, watch)
    except Exception:  # a cache file is nobody's only copy: whatever is odd in it, the source is read again
        return None


def _remembered(header: dict[str, Any], arrays: dict[str, np.ndarray], watch: list[Path]) -> Reading:
    """The reading in a cache file. Raises whatever a damaged one makes it raise."""
    ends = np.cumsum(arrays["counts"])
    shapes = [(int(h), int(w)) for h, w in arrays["shapes"]]
    boxes = np.split(arrays["boxes"].astype(np.float32).reshape(-1, 4), ends[:-1])
    cls = np.split(arrays["cls"].astype(np.int64), ends[:-1])
    columns = (header["images"], boxes, cls, shapes, header["contents"])
    samples = [Sample(Path(image), *rest) for image, *rest in zip(*columns, strict=True)]
    names = [str(name) for name in header["names"]]
    if any(len(s.boxes) != len(s.cls) or (s.cls >= len(names)).any() for s in samples) or sum(
        header["splits"].values()
    ) != len(samples):
        raise ValueError("its parts do not fit together")
    splits, start = {}, 0
    for split, n in header["splits"].items():
        splits[split], start = samples[start : start + n], start + n
    kept = Account(**header["account"])
    kept.lines()
    return Reading(header["name"], header["format"], names, splits, watch, kept, header["licence"])
