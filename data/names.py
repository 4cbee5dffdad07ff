"""Files by the names that other files call them: with and without suffix, with some of their folders."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from data.images import SUFFIXES

# Folders whose names say what kind of file is in them, not which part of the data.
KINDS = {
    "annotation", "annotations", "image", "images", "img", "imgs", "jpegimages", "label", "labels",
    "pictures", "voc", "xml", "xmls",
}  # fmt: skip


class Index:
    """Files under one folder, found by a text that may be a path of another machine's."""

    def __init__(self, root: Path, files: Iterable[Path]) -> None:
        self.root = root
        self.inner = {file: PurePosixPath(file.relative_to(root).as_posix()) for file in files}
        self._full: dict[str, list[Path]] = defaultdict(list)
        self._bare: dict[str, list[Path]] = defaultdict(list)
        for file, inner in self.inner.items():
            for i in range(len(inner.parts)):
                self._full[_fold("/".join(inner.parts[i:]))].append(file)
                self._bare[_fold("/".join((*inner.parts[i:-1], inner.stem)))].append(file)

    def find(self, text: str, near: PurePosixPath | None = None) -> list[Path]:
        """The files that `text` may mean: one where it is clear, several where it is not, or none.

        near: path, inside its own folder, of the file that says `text`: of several the one that shares most
        folders with it is meant, and one from another part of the data is not.
        """
        for name, known in ((text, self._full), (text, self._bare), (bare(text), self._bare)):
            hits = self._hits(tidy(name), known)
            if near is not None:
                hits = [file for file in hits if _agree(self.inner[file], near)]
            if len(hits) > 1:
                hits = self._narrow(hits, tidy(name), near or PurePosixPath())
            if hits:
                return hits
        return []

    def _hits(self, text: str, known: dict[str, list[Path]]) -> list[Path]:
        """Files whose path ends in `text`; where none does, those whose whole path `text` ends in."""
        parts = text.split("/")
        if hits := known.get(_fold(text)):
            return hits
        for i in range(1, len(parts)):
            hits = [
                f
                for f in known.get(_fold("/".join(parts[i:])), [])
                if _depth(self.inner[f]) == len(parts) - i
            ]
            if hits:
                return hits
        return []

    def _narrow(self, hits: list[Path], text: str, near: PurePosixPath) -> list[Path]:
        """Of several files those with the very same letters, then those nearest to `near`."""
        exact = [f for f in hits if _nfc(str(self.inner[f])).endswith(text)]
        exact = exact or [f for f in hits if _nfc(str(self.inner[f].with_suffix(""))).endswith(text)]
        ranks = {f: (_shared(self.inner[f], near), -_depth(self.inner[f])) for f in exact or hits}
        return [f for f, rank in ranks.items() if rank == max(ranks.values())]


def tidy(text: str) -> str:
    """A path as written on any machine, with / between its parts and without . at its beginning."""
    return _nfc(text.strip().replace("\\", "/")).removeprefix("./").strip("/")


def bare(text: str) -> str:
    """A name without the suffix of an image or an annotation; any other dot belongs to the name."""
    stem, dot, suffix = text.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in SUFFIXES | {".xml"} else text


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)  # a Mac writes é as two characters, others as one


def _fold(text: str) -> str:
    return _nfc(text).casefold()


def _depth(path: PurePosixPath) -> int:
    return len(path.parts)


def _shared(a: PurePosixPath, b: PurePosixPath) -> int:
    """How many folders two paths have in common, from the left."""
    return next(
        (i for i, (x, y) in enumerate(zip(a.parts[:-1], b.parts[:-1], strict=False)) if x != y),
        min(_depth(a), _depth(b)) - 1,
    )


def _agree(a: PurePosixPath, b: PurePosixPath) -> bool:
    """Whether two files can be of one part of the data: not if each has a folder that the other has not."""
    ours, theirs = ({p.lower() for p in path.parts[:-1]} - KINDS for path in (a, b))
    return ours <= theirs or theirs <= ours
