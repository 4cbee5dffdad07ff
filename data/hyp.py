"""Augmentation settings and loss gains: one strict YAML file, keys as Ultralytics names them."""

from __future__ import annotations

import os
from pathlib import Path

from data.text import read_text
from utils.errors import UserError, unknown
from utils.yaml_text import load_yaml, short

REPO = Path(__file__).resolve().parents[1]

# key: (lowest, highest, value of a file that does not say). The defaults mean: no augmentation,
# Ultralytics' gains.
KEYS: dict[str, tuple[float, float, float]] = {
    "hsv_h": (0, 1, 0.0),  # colour jitter: hue, saturation, value, as fractions
    "hsv_s": (0, 1, 0.0),
    "hsv_v": (0, 1, 0.0),
    "degrees": (0, 180, 0.0),  # rotation, +-
    "translate": (0, 1, 0.0),  # shift, +- fraction of the image
    "scale": (0, 1, 0.0),  # zoom, +- gain
    "shear": (0, 180, 0.0),  # +- degrees
    "perspective": (0, 0.001, 0.0),
    "flipud": (0, 1, 0.0),  # probabilities from here on
    "fliplr": (0, 1, 0.0),
    "bgr": (0, 1, 0.0),
    "mosaic": (0, 1, 0.0),
    "mixup": (0, 1, 0.0),
    "cutmix": (0, 1, 0.0),
    "close_mosaic": (
        0,
        10_000,
        0.0,
    ),  # last epochs without mosaic, mixup, cutmix; below 1: that share of all epochs
    "box": (0, 1000, 7.5),  # loss gains: box regression, classification, distribution focal loss
    "cls": (0, 1000, 0.5),
    "dfl": (0, 1000, 1.5),
}


def load_hyp(path: str | Path) -> dict[str, float]:
    """Read a file of data/hyps: every key of KEYS with the file's value or the default.

    Raises UserError for a missing file, text that is not YAML, an unknown key (did you mean), a value out
    of range.
    """
    file = next((p for p in (Path(path), REPO / path) if os.path.isfile(p)), None)
    if file is None:
        raise UserError(f"hyp file {str(path)!r} does not exist; data/hyps/ holds {', '.join(shipped())}")
    given = load_yaml(read_text(file), f"hyp file {path}") or {}
    if not isinstance(given, dict):
        raise UserError(f"hyp file {path} must hold lines like 'mosaic: 1.0', got {type(given).__name__}")
    return check_hyp(given, f"hyp file {path}")


def hyp_of(source: str | Path) -> str | None:
    """The file of augmentation settings that the card of a data source names (`hyp: FILE`), or None.

    A relative path is looked for beside the card, then in our data/ folder, then as `load_hyp` does. Drawn
    digits whose card names none have `hyps/default.yaml`: mirrored, a 2 and a 5 are no digits.
    Raises UserError for a name that is no path of a file; what else may be wrong, its reader says.
    """
    from data.yolo_format import yaml_inside

    card = Path(source)
    found = yaml_inside(card) if card.is_dir() else card
    if found is None or found.suffix.lower() not in {".yaml", ".yml"} or not found.is_file():
        return None
    said = load_yaml(read_text(found), f"data {found}")
    if not isinstance(said, dict):
        return None
    name = said.get("hyp", "hyps/default.yaml" if said.get("format") == "digits" else None)
    if name is None:
        return None
    places = [base / str(name) for base in (found.parent, REPO / "data", Path(), REPO)]
    file = next((p for p in places if isinstance(name, str) and os.path.isfile(p)), None)
    if file is None:
        raise UserError(
            f"data {found}: hyp must name a file of augmentation settings, got {short(name)}; "
            f"data/hyps/ holds {', '.join(shipped())}"
        )
    return os.path.abspath(file)


def check_hyp(given: dict[str, object], where: str = "hyp") -> dict[str, float]:
    """Fill in defaults and check the values of a dict as `load_hyp` does; `where` names it in errors."""
    hyp = {key: default for key, (_, _, default) in KEYS.items()}
    for key, value in given.items():
        if key not in KEYS:
            raise unknown(f"key in {where}:", key, KEYS)
        low, high, _ = KEYS[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise UserError(f"{where}: {key} must be a number from {low} to {high}, got {value!r}")
        hyp[key] = float(value)
    return hyp


def shipped() -> list[str]:
    """Names of the files that come with us."""
    return sorted(p.name for p in (REPO / "data" / "hyps").glob("*.yaml"))
