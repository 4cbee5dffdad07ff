"""Properties that hold for many are tried with a few in `make test`, and with all by `pytest -m slow`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some(values: Iterable[Any], now: Collection[Any]) -> list[Any]:
    """Parameters of a test: all values, those that are not of `now` marked slow. A tuple is several."""
    values = list(values)
    assert set(now) <= set(values), "a value that is kept is none of all"
    several = [value if isinstance(value, tuple) else (value,) for value in values]
    marks = [[] if value in now else [pytest.mark.slow] for value in values]
    return [pytest.param(*value, marks=mark) for value, mark in zip(several, marks, strict=True)]
