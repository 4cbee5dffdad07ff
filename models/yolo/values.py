"""Values of options as people write them in a YAML: `[1.0, 0.5]`, `1..n`, `k+2`."""

from __future__ import annotations

import re
from typing import Any

from utils.errors import UserError

MOST_BLOCKS = 1000  # of a row; a slip of the finger should not fill the memory


def read_depths(given: Any, n: int) -> tuple[int, ...]:
    found = []
    for item in items("depth", given, n):  # one after the other: a range may go on to a million
        found.append(relative("depth", item, "n", n))
        if found[-1] > MOST_BLOCKS:
            raise UserError(f"depth should be {MOST_BLOCKS} at most, got {short(given)}")
    return tuple(stock_first("depth", [d for d in found if d >= 1], n, given))


def read_factors(option: str, given: Any) -> tuple[float, ...]:
    found = items(option, given)
    for factor in found:
        if not is_positive(factor):
            raise UserError(f"{option} should be positive factors such as [1.0, 1.5], got {factor!r}")
    return tuple(stock_first(option, [float(f) for f in found], 1.0, given))


def items(option: str, given: Any, n: int = 0) -> list[Any]:
    """A list as written, a single value as a list of one, and `1..n` spelled out."""
    if isinstance(given, str) and ".." in given:
        low, high = (relative(option, part.strip(), "n", n) for part in given.split("..", 1))
        return list(range(low, high + 1))
    return given if isinstance(given, list) else [given]


def relative(option: str, item: Any, letter: str, value: int) -> int:
    """A number as written, or `k`, `k+2`, `n-1` relative to the row's own."""
    match = re.fullmatch(rf"{letter}(?:\s*([+-])\s*(\d{{1,6}}))?|(\d{{1,6}})", str(item))
    if not match or isinstance(item, bool):
        raise UserError(f"{option} should be whole numbers or {letter}, {letter}+2, {letter}-2, got {item!r}")
    if match[3]:
        return int(match[3])
    return value + int(f"{match[1]}{match[2]}" if match[1] else 0)


def stock_first(option: str, found: list[Any], stock: Any, given: Any) -> list[Any]:
    """Without repeats, the unsearched network's value first where it is offered: it is the default."""
    if not found:
        raise UserError(f"{option} offers nothing: {given!r}")
    return sorted(dict.fromkeys(found), key=lambda value: value != stock)


def is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
