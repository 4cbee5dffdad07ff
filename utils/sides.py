"""How large images are: the side of a square in pixels, 640, or (height, width) where they are not square.

Files and people write 640, [384, 640] or 384x640. `read_sides` and `parse_sides` are the doors; inside, a
square is always its side alone, so that it is written and named as it always was, and `pair` gives both where
they are needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from utils.errors import UserError

Size = tuple[int, int]  # height, width
Sides = int | Size


def read_sides(given: Any) -> Sides:
    """What a file says. ValueError, with what would be right, for anything else."""
    if type(given) is int:
        return given
    if not isinstance(given, list | tuple) or len(given) != 2 or any(type(side) is not int for side in given):
        raise ValueError("a whole number is needed, or two of them, [height, width]")
    height, width = given
    return height if height == width else (height, width)


def sides_in(file: Any, given: Any) -> Sides:
    """What a file of ours says. UserError for anything else."""
    try:
        imgsz = read_sides(given)
    except ValueError:
        what = "a whole number of pixels, or [height, width]"
        raise UserError(f"{str(file)!r}: imgsz is {given!r}; expected {what}") from None
    if min(pair(imgsz)) <= 0:
        raise UserError(f"{str(file)!r} has imgsz {shown(imgsz)}; it must be above 0")
    return imgsz


def parse_sides(text: str) -> Sides:
    """What a person says: 640, 384x640 or [384, 640]. ValueError as of `read_sides`."""
    said = re.fullmatch(r"(\d+)|(\d+)x(\d+)|\[\s*(\d+)\s*,\s*(\d+)\s*\]", text.strip())
    sides = [int(side) for side in said.groups() if side] if said else []
    return read_sides(sides if len(sides) == 2 else sides[0] if sides else text)


def pair(sides: Sides) -> Size:
    """(height, width), pixels, also of what was a list in a file."""
    height, width = sides if isinstance(sides, tuple | list) else (sides, sides)
    return height, width


def shown(sides: Sides) -> str:
    """`640`, `384x640`: as it may be given again."""
    height, width = pair(sides)
    return f"{height}" if height == width else f"{height}x{width}"


def both(sides: Sides) -> str:
    """`640 x 640`, `384 x 640`."""
    height, width = pair(sides)
    return f"{height} x {width}"


def told(given: Any, say: Callable[[Sides], str] = shown) -> str:
    """What a file says, for people, whatever it may be."""
    try:
        return say(read_sides(given))
    except ValueError:
        return str(given)


def longer(sides: Sides) -> int:
    """Pixels of the longer side."""
    return max(pair(sides))


def area(sides: Sides) -> int:
    """Pixels of an image."""
    height, width = pair(sides)
    return height * width


def scaled(sides: Sides, longest: int, stride: int) -> Sides:
    """The same shape with its longer side at `longest`, both at the nearest multiples of `stride`."""
    most = longer(sides) * stride
    return read_sides([max(1, round(side * longest / most)) * stride for side in pair(sides)])
