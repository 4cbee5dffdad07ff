"""The data set that needs no download: scenes composed from the 1,797 handwritten 8x8 digits of scikit-learn.

(E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, CC BY
4.0.) Each scene shows a few digits, enlarged, in random colours, on a soft random texture. Every split
draws from its own digit instances, so that no handwriting seen in training is ever scored on. Integer
arithmetic throughout: the same card gives the same bytes on every machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError, unknown
from utils.yaml_text import short

VERSION = 1  # of the recipe; part of the cache's name
DEFAULTS: dict[str, Any] = {
    "imgsz": 64,  # pixels, side of the square scene
    "scenes": {"search_train": 600, "search_val": 150, "val": 200},
    "digits": [2, 4],  # per scene, fewest and most
    "scale": [2, 4],  # enlargement of the 8x8 originals
    "texture": 10,  # grey levels of the background's slow variation
    "noise": 3,  # grey levels of its grain
    "seed": 0,
}
# What a card may ask for: more would fill the disk, the memory or the day.
MOST = {"imgsz": 4096, "digits": 1000, "texture": 255, "noise": 255, "seed": 2**64}
MOST_SCENES = 100_000  # of a split
SHARE = {"search_train": 0.6, "search_val": 0.15, "val": 0.25}  # of the digit instances
INK = 96  # of 255: how dark a pixel must be to belong to the digit's box
TRIES = 50  # to find a free place for a digit before the scene does without it


def read_card(card: dict[str, Any], path: Path, cache: Path) -> Any:
    """Make the scenes that a card asks for, once, in `cache`, and read them like any YOLO data set."""
    from data import yolo_format

    recipe = check_recipe(card, path)
    word = hashlib.sha1(json.dumps([VERSION, recipe], sort_keys=True).encode()).hexdigest()[:12]
    folder = cache.absolute() / f"digits-{word}"
    if not (folder / "data.yaml").exists():
        write_scenes(recipe, folder)
    reading = yolo_format.open_card(folder / "data.yaml")
    reading.name, reading.format, reading.watch = (
        str(card.get("name", "digits")),
        "digits",
        [path, *reading.watch],
    )
    return reading


def check_recipe(card: dict[str, Any], path: Path) -> dict[str, Any]:
    """The recipe of a card with the defaults filled in; UserError where a value cannot be."""
    for key in card:
        if key not in DEFAULTS and key not in ("name", "format", "licence", "names", "hyp"):
            raise unknown(f"key in data {path}:", key, DEFAULTS)
    recipe = {k: card.get(k, v) for k, v in DEFAULTS.items()}
    for key in ("imgsz", "texture", "noise", "seed"):
        if not isinstance(recipe[key], int) or isinstance(recipe[key], bool) or recipe[key] < 0:
            raise UserError(f"data {path}: {key} must be a whole number from 0, got {short(recipe[key])}")
    for key in ("digits", "scale"):
        span = recipe[key]
        if not (
            isinstance(span, list)
            and len(span) == 2
            and all(isinstance(v, int) for v in span)
            and 1 <= span[0] <= span[1]
        ):
            raise UserError(f"data {path}: {key} must be [fewest, most], whole numbers from 1, got {span!r}")
    if recipe["imgsz"] < 8 * recipe["scale"][1]:
        raise UserError(
            f"data {path}: a digit enlarged {recipe['scale'][1]} times needs imgsz of at least "
            f"{8 * recipe['scale'][1]}, got {recipe['imgsz']}"
        )
    for key, value in {**recipe, "digits": recipe["digits"][1]}.items():
        if key in MOST and value > MOST[key]:
            raise UserError(f"data {path}: {key} may be {MOST[key]} at most, got {short(value)}")
    if not isinstance(recipe["scenes"], dict):
        raise UserError(f"data {path}: scenes must say how many per split, e.g. {DEFAULTS['scenes']}")
    for split, n in recipe["scenes"].items():
        if split not in SHARE:
            raise unknown(f"split in scenes of data {path}:", split, SHARE)
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise UserError(f"data {path}: scenes of {split} must be a whole number from 1, got {short(n)}")
        if n > MOST_SCENES:
            raise UserError(f"data {path}: scenes of {split} may be {MOST_SCENES} at most, got {short(n)}")
    recipe["scenes"] = {**DEFAULTS["scenes"], **recipe["scenes"]}
    return recipe


def instances(seed: int) -> dict[str, np.ndarray]:
    """Which of the 1,797 digits each split may use: disjoint indices, drawn once from the seed."""
    order = np.random.default_rng([seed, 1]).permutation(1797)
    ends = np.cumsum([round(share * 1797) for share in SHARE.values()])[:-1]
    return dict(zip(SHARE, np.split(order, ends), strict=True))


def write_scenes(recipe: dict[str, Any], folder: Path) -> None:
    """Write all splits as a YOLO layout of PNGs; the folder appears whole or not at all."""
    import cv2

    from data.progress import progress

    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    for number, (split, of) in enumerate(instances(recipe["seed"]).items()):
        (partial / "images" / split).mkdir(parents=True)
        (partial / "labels" / split).mkdir(parents=True)
        rng = np.random.default_rng([recipe["seed"], 2, number])
        for i in progress(range(recipe["scenes"][split]), f"drawing {split}"):
            image, boxes, labels, _ = scene(recipe, of, rng)
            cv2.imwrite(str(partial / "images" / split / f"{i:04d}.png"), image[..., ::-1])
            size = recipe["imgsz"]
            rows = [
                f"{c} {(x1 + x2) / 2 / size} {(y1 + y2) / 2 / size} {(x2 - x1) / size} {(y2 - y1) / size}\n"
                for c, (x1, y1, x2, y2) in zip(labels, boxes, strict=True)
            ]
            (partial / "labels" / split / f"{i:04d}.txt").write_text("".join(rows))
    splits = "\n".join(f"{split}: images/{split}" for split in SHARE)
    (partial / "data.yaml").write_text(
        f"# Drawn by data/digits.py\n{splits}\nnames: {[str(d) for d in range(10)]}\n"
        "licence: CC BY 4.0 (UCI Optical Recognition of Handwritten Digits)\n"
    )
    try:
        partial.rename(folder)
    except OSError:  # another process was faster; its scenes are the same
        shutil.rmtree(partial)


def scene(
    recipe: dict[str, Any], of: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, int, int, int]], list[int], list[int]]:
    """One scene: image uint8 [S, S, 3] RGB, boxes xyxy in pixels, labels 0-9, digit instances shown."""
    size = recipe["imgsz"]
    image = _background(size, recipe["texture"], recipe["noise"], rng)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    shown: list[int] = []
    taken = np.zeros((size, size), bool)
    glyphs, digits = _bundled()
    for _ in range(int(rng.integers(recipe["digits"][0], recipe["digits"][1] + 1))):
        which = int(of[rng.integers(len(of))])
        side = int(rng.integers(8 * recipe["scale"][0], 8 * recipe["scale"][1] + 1))
        alpha = _enlarge(glyphs[which] * 255 // 16, side)
        rows, cols = np.flatnonzero((alpha > INK).any(1)), np.flatnonzero((alpha > INK).any(0))
        y1, y2, x1, x2 = int(rows[0]), int(rows[-1]) + 1, int(cols[0]), int(cols[-1]) + 1
        ink = rng.integers(150, 256, 3)
        for _ in range(TRIES):
            y, x = (int(v) for v in rng.integers(0, size - side + 1, 2))
            if not taken[y + y1 : y + y2, x + x1 : x + x2].any():
                break
        else:
            continue
        taken[y + y1 : y + y2, x + x1 : x + x2] = True
        patch = image[y : y + side, x : x + side]
        patch[:] = (patch * (255 - alpha[..., None]) + ink * alpha[..., None]) // 255
        boxes.append((x + x1, y + y1, x + x2, y + y2))
        labels.append(int(digits[which]))
        shown.append(which)
    return image.astype(np.uint8), boxes, labels, shown


_cache: dict[str, np.ndarray] = {}


def _bundled() -> tuple[np.ndarray, np.ndarray]:
    """The digits as int64 [1797, 8, 8], 0..16, and their labels; read from the installed package once."""
    if not _cache:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        _cache["images"], _cache["labels"] = bunch.images.astype(np.int64), bunch.target.astype(np.int64)
    return _cache["images"], _cache["labels"]


def _enlarge(grid: np.ndarray, side: int) -> np.ndarray:
    """Bilinear enlargement of a small square int grid to [side, side], in exact integer arithmetic."""
    n = len(grid)
    # the centre of target pixel t lies at ((2t + 1) n / side - 1) / 2 of the source; the denominator is kept
    at = np.clip((2 * np.arange(side) + 1) * n - side, 0, 2 * side * (n - 1))
    low = np.minimum(at // (2 * side), n - 2)
    high_part = at - low * 2 * side
    weights = np.zeros((side, n), np.int64)
    weights[np.arange(side), low] = 2 * side - high_part
    weights[np.arange(side), low + 1] = high_part
    return weights @ grid @ weights.T // (4 * side * side)


def _background(size: int, texture: int, noise: int, rng: np.random.Generator) -> np.ndarray:
    """A dim colour that varies slowly over the scene, with some grain: int64 [size, size, 3], 0..255."""
    base = rng.integers(30, 110, 3)
    slow = np.stack([_enlarge(rng.integers(-texture, texture + 1, (5, 5)), size) for _ in range(3)], -1)
    grain = rng.integers(-noise, noise + 1, (size, size, 1))
    return np.clip(base + slow + grain, 0, 255)
