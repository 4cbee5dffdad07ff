"""Files that are either whole or not there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: to a neighbour first, fsynced, then renamed over `path`.

    UTF-8; broken bytes of file names are escaped, so that every reader takes the file.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`, for bytes. OSError (disk full) passes through and leaves the old file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(neighbour, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(neighbour, path)
    finally:
        neighbour.unlink(missing_ok=True)


@contextmanager
def printed_to(path: Path) -> Iterator[None]:
    """What is printed meanwhile is appended to a file as well, line by line."""
    with (
        open(path, "a", encoding="utf-8", errors="backslashreplace", buffering=1) as log,
        redirect_stdout(Tee(sys.stdout, log)),
    ):
        yield


class Tee:
    """A text stream that repeats what it is given; everything else is the first stream's."""

    def __init__(self, stream: TextIO, copy: TextIO) -> None:
        self._stream, self._copy = stream, copy

    def write(self, text: str) -> int:
        self._copy.write(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
