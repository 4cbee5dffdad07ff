"""Text files that somebody else wrote, in whatever encoding, and the words that name a split."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from pathlib import Path

from utils.errors import UserError

# How the subsets of a data set are called, in names of folders and files, in lower case.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
# A byte order mark settles the encoding. UTF-32 first: its mark begins like that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# What is tried where a text is not UTF-8; Latin-1 is the last because every file can be read as that.
OTHERS = ("cp1252", "gb18030", "cp932", "cp949", "big5hkscs", "cp1251", "latin-1")


def mark_of(raw: bytes) -> str | None:
    """The encoding that a file's byte order mark tells, None where it has no mark."""
    return next((encoding for mark, encoding in MARKS.items() if raw.startswith(mark)), None)


def read_text(file: Path, fits: Callable[[str], int] | None = None) -> str:
    """The text of a file, without its byte order mark.

    UTF-8 if it can be that; else the encoding whose text `fits` gives the highest number (how many known
    names it holds), the first of `OTHERS` where all are equal. UserError for a file that cannot be read.
    """
    try:
        raw = file.read_bytes()
    except OSError as e:
        raise UserError(f"{file} cannot be read: {e.strerror}") from None
    try:
        return raw.decode(mark_of(raw) or "utf-8")
    except UnicodeDecodeError:
        texts = []
        for encoding in OTHERS:
            try:
                texts.append(raw.decode(encoding))
            except UnicodeDecodeError:
                continue
        return max(texts, key=fits) if fits else texts[0]


def read_lines(file: Path, fits: Callable[[str], int] | None = None) -> list[str]:
    """The lines of a text file that hold something, without blanks around them."""
    return [line.strip() for line in re.split(r"[\r\n]+", read_text(file, fits)) if line.strip()]


def split_of(name: str) -> str | None:
    """'train', 'val' or 'test' for a name that holds such a word ('Validation', 'instances_train2017')."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((s for s, aliases in SPLIT_WORDS.items() if any(w in aliases for w in words)), None)
