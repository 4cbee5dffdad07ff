"""Data set cards: the small YAML files that say where images are and what the classes are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.errors import UserError, did_you_mean, unknown

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
)
# Near enough to be taken for a misspelling, but right: other spellings, and what Ultralytics' own files hold.
FINE = {"validation", "valid", "license", "download", "minival", "channels", "roboflow", "author"}
FORMATS = ("yolo", "voc", "coco", "digits")


def load_card(path: Path) -> dict[str, Any]:
    """Read and check a card. Returns its dict with `format` filled in and `names` as a list (or None).

    Raises UserError for text that is not YAML, no mapping, a likely misspelt key, names that cannot be,
    an nc that disagrees with names.
    """
    import yaml

    try:
        card = yaml.safe_load(path.read_text(encoding="utf-8", errors="ignore"))
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"data {path} is not YAML: {getattr(e, 'problem', e)}{line}") from None
    if not isinstance(card, dict):
        raise UserError(f"data {path} is not a data set YAML: expected keys like train, val, names")
    for key in card:
        hint = "" if key in CHECKED or key in FINE else did_you_mean(key, set(CHECKED) - set(card))
        if hint and card.get("format") != "digits":
            raise UserError(f"data {path}: unknown key {key!r}{hint}")
    card = dict(card)
    card.setdefault("format", "yolo")
    if card["format"] not in FORMATS:
        raise unknown(f"format in data {path}:", card["format"], FORMATS)
    for alias in ("validation", "valid"):
        if alias in card:
            card.setdefault("val", card.pop(alias))
    card["names"] = _names(card, path)
    return card


def _names(card: dict[str, Any], path: Path) -> list[str] | None:
    """Class names by id: from a list, from {0: a, 1: b}, or made up from nc alone as Ultralytics does."""
    names, nc = card.get("names"), card.get("nc")
    if isinstance(names, dict):
        try:
            names = {int(k): v for k, v in names.items()}
        except (TypeError, ValueError):
            raise UserError(
                f"data {path}: keys of names must be class ids 0, 1, ..., got {list(names)[:3]}"
            ) from None
        if sorted(names) != list(range(len(names))):
            raise UserError(
                f"data {path}: names must number the classes 0 to {len(names) - 1}, not {sorted(names)[:9]}"
            )
        names = [names[i] for i in range(len(names))]
    if names is not None and (not isinstance(names, list) or not names):
        raise UserError(f"data {path}: names must be a list of class names, got {names!r}")
    if nc is not None and (not isinstance(nc, int) or isinstance(nc, bool) or nc < 1):
        raise UserError(f"data {path}: nc must be a whole number of classes from 1, got {nc!r}")
    if names is None:
        return None if nc is None else [f"class_{i}" for i in range(nc)]
    names = [str(n) for n in names]
    if nc is not None and nc != len(names):
        raise UserError(
            f"data {path}: nc is {nc} but names lists {len(names)} classes; correct one, or leave nc out"
        )
    twice = sorted({n for n in names if names.count(n) > 1})
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
        return str(stated)
    for name in ("LICENSE", "LICENSE.txt", "LICENCE", "LICENSE.md"):
        file = folder / name
        if file.is_file():
            lines = [
                line.strip("# \t") for line in file.read_text(errors="ignore").splitlines() if line.strip()
            ]
            if lines:
                return lines[0]
    return "not stated"


def root_of(card: dict[str, Any], path: Path) -> Path:
    """The folder that a card's splits are relative to.

    `path:` is looked for beside the YAML first, then where Ultralytics looks: the working folder, its
    `datasets` and `../datasets`. Without `path:` it is the YAML's own folder.
    """
    stated = Path(str(card.get("path") or "")).expanduser()
    if stated.is_absolute():
        places = [stated]
    else:
        here = Path.cwd()
        places = [base / stated for base in (path.parent, here, here / "datasets", here.parent / "datasets")]
    for place in places:
        if place.is_dir():
            return place.resolve()
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
