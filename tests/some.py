"""Properties that hold for many are tried with a few in `make test`, and with all by `pytest -m slow`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some(values: Iterable[Any], now: Collection[Any]) -> list[Any]:
    """Parameters of a test: all values, those that are not of `now` marked slow."""
    values = list(values)
    assert set(now) <= set(values), "a value that is kept is none of all"
    return [value if value in now else pytest.param(value, marks=pytest.mark.slow) for value in values]
