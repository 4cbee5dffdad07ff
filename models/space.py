"""What every space is made of: choices with labels, and archs as plain dicts. No torch, no NNI."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import exp
from typing import Any

import numpy as np

from utils.errors import unknown

Value = str | int | float
Arch = dict[str, Value]


@dataclass(frozen=True)
class Choice:
    """One decision: its label in an arch and what it may be, default first. A single value is no choice."""

    label: str
    values: tuple[Value, ...]


def known_values(arch: Mapping[str, Any], values: Mapping[str, Mapping[Value, Value]], name: str) -> Arch:
    """`arch` with its values as the space `name` writes them (1 becomes 1.0 where that is the choice).

    Raises UserError for a label or a value that is not among `values`.
    """
    checked: Arch = {}
    for label, value in arch.items():
        if label not in values:
            raise unknown(f"choice in an arch of {name}", label, values)
        known = values[label]
        if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value not in known:
            raise unknown(f"value of {label}", value, known)
        checked[label] = known[value]
    return checked


def leaning(rng: np.random.Generator, tilt: float, n: int) -> int:
    """A number of 0 .. n - 1, drawn in proportion to exp(tilt * its share of the way)."""
    cdf = _lean(tilt, n)
    return bisect_right(cdf, rng.random() * cdf[-1], hi=n - 1)


@lru_cache(maxsize=64)  # one tilt serves all genes of a draw
def _lean(tilt: float, n: int) -> list[float]:
    return list(accumulate(exp(tilt * i / max(1, n - 1)) for i in range(n)))
