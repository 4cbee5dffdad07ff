"""YOLO labels without a data YAML, as CVAT, Label Studio and labelImg export them: the YAML to write."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from data.images import leads_out, list_images
from data.text import read_lines, split_of
from data.yolo_labels import find_label, numbers_of

NAMES = ("obj.names", "*.names", "classes.txt", "labels.txt", "predefined_classes.txt", "names.txt")
LOOKED_AT = 200  # images of a folder, to tell whether it has labels


def card_for(folder: Path) -> str | None:
    """The line of YAML that describes a folder's YOLO labels; None where it holds none.

    Splits go by the names of the folders, what has no such name is for training; class names come from the
    file that the tool wrote. A COCO set's labels are not looked at: its JSON says more.
    """
    import yaml

    if any((folder / name).is_dir() for name in ("annotations", "Annotations")):
        return None
    splits: dict[str, list[str]] = {}
    files: list[Path] = []
    by_folder: dict[Path, list[Path]] = {}
    for image in list_images(folder):
        by_folder.setdefault(image.parent, []).append(image)
    for place, images in by_folder.items():
        labels = [file for file in map(find_label, islice(images, LOOKED_AT)) if file and _is_label(file)]
        if labels:
            files += labels
            inner = place.relative_to(folder)
            split = next(filter(None, map(split_of, reversed(inner.parts))), "train")
            splits.setdefault(split, []).append(inner.as_posix())
    if not files:
        return None
    card: dict[str, Any] = {s: p[0] if len(p) == 1 else p for s, p in splits.items()}
    card["names"] = _names(folder, files)
    return yaml.safe_dump(
        card, default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf")
    ).strip()


def _is_label(file: Path) -> bool:
    """Whether a text begins with a line `class x y w h ...`."""
    lines = read_lines(file)
    words = lines[0].split() if lines else []
    return len(words) >= 5 and numbers_of(words) is not None


def _names(folder: Path, labels: list[Path]) -> list[str]:
    """The class names that a tool left in a file, or a place for each class that was seen."""
    for place in dict.fromkeys([folder, *(file.parent for file in labels)]):
        for pattern in NAMES:
            for file in sorted(place.glob(pattern)):
                if file.is_file() and not leads_out(file, folder) and (names := read_lines(file)):
                    return names
    notes = folder / "notes.json"  # of Label Studio
    if notes.is_file() and not leads_out(notes, folder):
        try:
            entries = json.loads(notes.read_bytes())["categories"]
            return [str(entry["name"]) for entry in sorted(entries, key=lambda entry: entry["id"])]
        except (ValueError, LookupError, TypeError, RecursionError):
            pass
    lines = [line.split() for file in labels for line in read_lines(file)]
    most = max(int(values[0]) for words in lines if words and (values := numbers_of(words)))
    return [f"name of {i}" for i in range(min(most + 1, 100))]
