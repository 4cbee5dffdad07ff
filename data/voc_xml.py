"""One Pascal VOC annotation file: its encoding, and what it says."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from data.text import mark_of
from utils.errors import UserError

# Encodings that files declare while holding more than these have: what Windows calls by the same name.
WIDER = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "shift-jis": "cp932",
    "euc-kr": "cp949",
    "big5": "big5hkscs",
    "iso-8859-1": "cp1252",
}
# Not encodings of files, and quadratic in their length.
NO_ENCODINGS = {"idna", "punycode"}
_DECLARED = re.compile(rb"^\s*<\?xml[^>]*?encoding\s*=\s*[\"']([A-Za-z][A-Za-z0-9._-]*)[\"']")


@dataclass(frozen=True)
class Thing:
    """An object: its class ("" where it has no name), xyxy pixels, and which of them is no number, if any."""

    name: str
    difficult: bool
    box: tuple[float, float, float, float]
    fault: str


@dataclass(frozen=True)
class Page:
    """What one XML says.

    filename: of its image, "" where it states none; folder: as stated beside it.
    size: (height, width), None where it states none, or one that cannot be: then `bad_size`.
    """

    filename: str
    folder: str
    size: tuple[int, int] | None
    bad_size: bool
    objects: list[Thing]


def read_xml(file: Path) -> Page:
    """What one annotation file says. Raises UserError naming the file and what is wrong in it.

    The challenge's own files count pixels from 1 and include the last one, so they are shifted to edges:
    (xmin - 1, xmax). Everybody else's tools write edges as they are drawn.
    """
    root = _parse(file)
    if root.tag.lower() != "annotation" and root.find("object") is None:
        raise UserError(
            f"{file} is not a Pascal VOC annotation: expected <annotation>, got <{root.tag[:40]}>"
        )
    official = (root.findtext("source/database") or "").startswith("The VOC")
    objects = [_thing(element, official) for element in root.iter("object")]
    sides = [_number(root.findtext(f"size/{side}")) for side in ("height", "width")]
    size = (int(sides[0]), int(sides[1])) if all(1 <= s < 1e9 for s in sides) else None
    filename, folder = ((root.findtext(key) or "").strip() for key in ("filename", "folder"))
    return Page(filename, folder, size, size is None and root.find("size") is not None, objects)


def _thing(element: ET.Element, official: bool) -> Thing:
    stated = {key: element.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")}
    x1, y1, x2, y2 = map(_number, stated.values())
    faults = (f"{key} {text!r}" for key, text in stated.items() if not math.isfinite(_number(text)))
    name, difficult = ((element.findtext(key) or "").strip() for key in ("name", "difficult"))
    box = (x1 - official, y1 - official, x2, y2)
    return Thing(name, difficult.lower() in {"1", "true", "yes"}, box, next(faults, ""))


def _number(text: str | None) -> float:
    """A number, nan for everything else."""
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def _parse(file: Path) -> ET.Element:
    """The root element. Entities are refused: no annotation needs one, and a few of them can fill memory."""
    try:
        text = _decode(file.read_bytes(), file)
    except OSError as e:
        raise UserError(f"{file} cannot be read: {e.strerror}") from None
    if "<!ENTITY" in text:
        raise UserError(f"{file} defines entities (<!ENTITY), which an annotation has no use for")
    try:
        return ET.fromstring(text.lstrip())  # some writers begin with an empty line
    except (ET.ParseError, ValueError) as e:
        raise UserError(f"{file} is not XML: {e}") from None


def _decode(raw: bytes, file: Path) -> str:
    """The text, by its byte order mark or else as declared; as UTF-8 where it declares an unknown encoding.

    The XML parser itself knows no encoding of several bytes but UTF-8 and UTF-16.
    """
    match = _DECLARED.match(raw[:200])
    declared = match[1].decode().lower() if match else ""
    guess = mark_of(raw) or {b"<\0": "utf-16-le", b"\0<": "utf-16-be"}.get(raw[:2])
    for encoding in filter(None, (guess, declared, WIDER.get(declared), "utf-8")):
        if encoding in NO_ENCODINGS:
            continue
        try:
            return raw.decode(encoding)
        except (LookupError, ValueError):  # no such encoding, or not written in it
            continue
    said = f"declares {declared}, but" if declared else "declares no encoding, and"
    raise UserError(f"{file} {said} cannot be read as {declared or 'UTF-8'}; save it as UTF-8")
