"""What lets a space reach further than its YAML's own network: channels out of NAS rows, detection levels.

    [-1, 1, NASConv, [256, 3, 2, {width: [1.0, 0.5, 1.5]}]]         # channels out
    [-1, 6, NASC3, [256, {out: [1.0, 0.5, 2.0]}]]                   # also: 48 for so many channels
    [[17, 20, 23, 27], 1, Detect, [nc, {levels: [P3-P5, P2-P5, P3-P4]}]]

A level is the map that an image of side s becomes one of side s / 2^level on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from models.space import Choice, Value, pick
from models.yolo.values import is_positive, items, stock_first
from utils.errors import UserError

STEP = 8  # the stock parser rounds the channels of every row up to a multiple of it
MOST = 100_000  # channels; a slip of the finger should not fill the memory


def read_widths(option: str, given: Any, own: int, groups: int = 1) -> tuple[int, ...]:
    """Channels out, the row's own first where they are offered, each once.

    given: factors of the row's `own` channels, rounded up to multiples of 8 as Ultralytics does, or whole
        numbers from 8 on: channels as they are. Raises UserError for channels that stock YAML cannot say.
    """
    found = []
    for item in items(option, given):
        if not is_positive(item):
            raise UserError(
                f"{option} should be factors of {own} channels or multiples of {STEP}, got {item!r}"
            )
        if isinstance(item, int) and item >= STEP:
            channels = item
            if item % STEP:
                near = f"{item // STEP * STEP} or {ceil(item / STEP) * STEP}"
                raise UserError(
                    f"{option} {item} is not a multiple of {STEP}: a stock YAML cannot say it; try {near}"
                )
        else:
            channels = ceil(own * item / STEP) * STEP
        if channels > MOST:
            raise UserError(f"{option} should be {MOST:,} channels at most, got {channels:,}")
        if channels % groups:
            raise UserError(f"{option} {item} is {channels} channels, which {groups} groups cannot use")
        found.append(channels)
    return tuple(stock_first(option, found, own, given))


@dataclass(frozen=True)
class LevelOptions:
    """A head that reads the first rows of its list. counts: value of the choice `levels` -> how many."""

    levels: Choice
    counts: dict[Value, int]

    def read(self, arch: Any) -> int:
        """How many rows the head reads in an arch."""
        return self.counts[pick(arch, self.levels)]


def read_levels(given: dict[str, Any], strides: Sequence[int]) -> LevelOptions:
    """The levels that a head may read. strides: of the rows in its list.

    Weights of a level are known by its place in the list: so each value has to be the first of the rows.
    Raises UserError for what is no level, for one without a row, and for one that leaves out an earlier row.
    """
    for key in given:
        if key != "levels":
            raise UserError(f"choices of a head should be like {{levels: [P3-P5, P3-P4]}}, got {key!r}")
    have = [stride.bit_length() - 1 for stride in strides]
    names = ", ".join(f"P{level}" for level in have)
    counts: dict[Value, int] = {}
    for item in items("levels", given["levels"]) if given else []:
        match = re.fullmatch(r"P(\d)(?:-P(\d))?", str(item))
        wanted = set(range(int(match[1]), int(match[2] or match[1]) + 1)) if match else set()
        if not wanted:
            raise UserError(f"levels should be like P3-P5, got {item!r}")
        for level in sorted(wanted - set(have)):
            raise UserError(f"levels {item}: no row of the head is P{level}; those in its list are {names}")
        if wanted != set(have[: len(wanted)]) or len(have) != len(set(have)):
            raise UserError(
                f"levels {item} should be the first rows of the head's list, which are {names}: order it so"
            )
        counts[str(item)] = len(wanted)
    if not counts:
        raise UserError(f"levels offers nothing: {given.get('levels')!r}")
    ascending = tuple(sorted(counts, key=counts.__getitem__))
    return LevelOptions(Choice("levels", tuple(counts), ascending), counts)


def sources_of(index: int, source: int | list[int]) -> list[int]:
    """Numbers of the rows that a row reads; [] of the first, which reads the image."""
    listed = source if isinstance(source, list) else [source]
    return [j % index for j in listed] if index else []


def dead_rows(rows: Sequence[Any], levels: LevelOptions) -> dict[Value, frozenset[int]]:
    """Value of the choice -> numbers of the rows that nothing reads then, but for another value."""

    def live(count: int) -> set[int]:
        found, ahead = {len(rows) - 1}, sources_of(len(rows) - 1, rows[-1].source[:count])
        while ahead:
            row = ahead.pop()
            if row not in found:
                found.add(row)
                ahead += sources_of(row, rows[row].source)
        return found

    every = live(len(rows[-1].source))
    return {value: frozenset(every - live(count)) for value, count in levels.counts.items()}
