"""JSON that somebody else wrote: every fault is one line, and no text can crash its reader."""

from __future__ import annotations

import json
from typing import Any

from utils.errors import Malformed

DEEPEST = 100  # levels of lists and objects inside each other; people write ten


def parse_json(text: str | bytes, deepest: int | None = DEEPEST, strict: bool = False) -> Any:
    """The values of a JSON text. Raises Malformed, and nothing else.

    deepest: levels of nesting that are taken; None spares large files a walk, where the values are checked
        for their shape anyway.
    strict: NaN and Infinity, which JSON has not but many write, are no values.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant if strict else None)
    except RecursionError:
        raise Malformed("cannot be read: it is nested too deeply") from None
    except ValueError as error:
        raise Malformed(f"is not JSON: {' '.join(str(error).split())}") from None
    if deepest is not None and _levels(value, deepest) > deepest:
        raise Malformed(f"cannot be read: it is nested too deeply, more than {deepest} levels")
    return value


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON value")


def _levels(value: Any, most: int) -> int:
    """How deep lists and objects of a JSON value lie in each other; counted no further than `most` + 1."""
    levels, inside = 0, [value] if isinstance(value, list | dict) else []
    while inside and levels <= most:
        levels += 1
        children = (v for part in inside for v in (part.values() if isinstance(part, dict) else part))
        inside = [v for v in children if isinstance(v, list | dict)]
    return levels
