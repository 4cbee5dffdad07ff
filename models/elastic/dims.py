"""Numbers that an arch decides: widths, kernels, depths. No torch.

    width = gene(Choice("backbone.out_channel.1", (48, 64)))
    middle = combine(lambda w, e: divisible(w * e), width, fixed(0.5))
    middle({"backbone.out_channel.1": 64})  # 32

Whatever layers need to know (channels of a weight, groups, which blocks run) is such a `Dim`, so that a
network, its cost and its extracted weights all read the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from models.space import Choice, Value
from utils.errors import UserError

MOST = 100_000  # entries of a table


@dataclass(frozen=True)
class Dim:
    """A function of a few choices, spelled out: one entry of `table` for each combination of their values.

    A dim without choices is a constant. Two dims are equal when they are the same function.
    """

    choices: tuple[Choice, ...]
    table: dict[tuple[Value, ...], Any]

    def __call__(self, arch: Mapping[str, Any]) -> Any:
        """The number in `arch`; a gene that the arch leaves out stands at its default."""
        return self.table[tuple(arch.get(c.label, c.values[0]) for c in self.choices)]

    @property
    def values(self) -> list[Any]:
        """All it may be, ascending where it is a number."""
        return list(Choice("", tuple(dict.fromkeys(self.table.values()))).ascending)

    @property
    def largest(self) -> Any:
        return self.values[-1]

    @property
    def labels(self) -> list[str]:
        return [c.label for c in self.choices if len(c.values) > 1]

    def needs(self, arch: Mapping[str, Any]) -> list[str]:
        """Labels that `arch` leaves out although the number depends on them."""
        absent = [c.label for c in self.choices if len(c.values) > 1 and c.label not in arch]
        if not absent:
            return []
        labels = [c.label for c in self.choices]
        fitting = {
            number
            for values, number in self.table.items()
            if all(arch.get(label, v) == v for label, v in zip(labels, values, strict=True))
        }
        return absent if len(fitting) > 1 else []


def fixed(value: Any) -> Dim:
    """A number that no arch changes."""
    return Dim((), {(): value})


def gene(choice: Choice) -> Dim:
    """The value of one choice."""
    return Dim((choice,), {(v,): v for v in choice.values})


def lookup(choice: Choice, values: Iterable[Any]) -> Dim:
    """The i-th of `values` for the i-th value of the choice: how several numbers hang on one gene."""
    return Dim((choice,), {(v,): new for v, new in zip(choice.values, values, strict=True)})


def as_dim(value: Dim | Value) -> Dim:
    return value if isinstance(value, Dim) else fixed(value)


def combine(function: Callable[..., Any], *dims: Dim | Value) -> Dim:
    """The dim `function(a, b, ...)` of other dims. Evaluated here, once for every combination."""
    parts = [as_dim(d) for d in dims]
    choices = list({c.label: c for d in parts for c in d.choices}.values())
    assert all(c in choices for d in parts for c in d.choices), "one label, two lists of values"
    size = prod(len(c.values) for c in choices)
    if size > MOST:
        labels = ", ".join(c.label for c in choices)
        raise UserError(
            f"a width hangs on {size:,} combinations of {labels}; sample widths by stage, not by block"
        )
    table = {}
    for values in product(*(c.values for c in choices)):
        arch = {c.label: v for c, v in zip(choices, values, strict=True)}
        table[values] = function(*(d(arch) for d in parts))
    return Dim(tuple(choices), table)


def divisible(value: float, by: int = 8) -> int:
    """`value` rounded to a multiple of `by`, never below 90 % of it (MobileNet's rounding, and BigNAS's)."""
    rounded = max(by, int(value + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * value else rounded
