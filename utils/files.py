"""Files that are either whole or not there."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

from utils.errors import Malformed
from utils.json_text import parse_json

log = logging.getLogger(__name__)


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


def own_json(path: Path, usable: Callable[[dict[str, Any]], bool] = lambda value: True) -> dict[str, Any]:
    """What a JSON file of ours holds; {} without it.

    One that is damaged, or whose object is not `usable`, counts as missing: it is set aside as NAME.damaged,
    and a line says so. What such files hold can be found out again.
    """
    try:
        value = parse_json(path.read_bytes())
        if isinstance(value, dict) and usable(value):
            return value
    except FileNotFoundError:
        return {}
    except (OSError, Malformed):
        pass
    with suppress(OSError):
        os.replace(path, path.with_name(path.name + ".damaged"))
    log.warning("%s is damaged and counts as missing; it is kept as %s.damaged", path, path.name)
    return {}


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
