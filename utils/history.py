"""The history of a search: one JSON line for each trial, append-only, on disk before anybody learns from it.

Every report, resume and export reads only this file, so it stays readable after everything else is gone.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from utils.json_text import parse_json

Arch = dict[str, Any]
STATES = ("complete", "stopped", "infeasible", "failed")


def is_real(value: Any) -> TypeGuard[float]:
    """A number that can be compared: not NaN, not infinite, not true or false."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return good and abs(value) <= sys.float_info.max  # NaN is not; nor whole numbers beyond all floats


def fits(key: str, value: Any) -> bool:
    """Whether a trial's field may hold this; what does not fit is as if it were not said."""
    if key in ("reward", "seconds", "started"):
        return is_real(value)
    if key == "parents":
        return isinstance(value, list) and all(type(number) is int for number in value)
    kind = {"number": int, "seed": int, "state": str, "reason": str, "curve": list}.get(key, dict)
    return isinstance(value, kind) and not isinstance(value, bool)


def arch_key(arch: Mapping[str, Any]) -> str:
    """The identity of an architecture: its JSON with sorted keys."""
    return json.dumps(arch, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Trial:
    """One evaluated architecture.

    number:  order of submission, 0 = the unsearched baseline; -1 for `infeasible` (rejected before training,
             so not a trial)
    metrics: units in the key: map50_95 (0..1), params_m (millions), gflops (2 x MACs), latency_ms
             metrics of a `stopped` one are those of its last score, of a training that had not ended
    reward:  what the strategy maximises; None unless `complete`, or `stopped`, for what it had reached
    reason:  why it failed or stopped, or what limit it breaks; of the complete ones only the baseline may
             break one
    seconds: wall time of the trial; started: unix seconds
    curve:   one dict an epoch, as the training loop logged it
    start:   `from`, the file or parent whose weights the training began with, and the `share` of the numbers
             that it inherited; empty where it began from scratch
    """

    number: int
    arch: Arch
    metrics: dict[str, float] = field(default_factory=dict)
    reward: float | None = None
    state: str = "complete"
    reason: str | None = None
    seconds: float = 0.0
    seed: int | None = None
    parents: tuple[int, ...] = ()
    started: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    start: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return arch_key(self.arch)

    def to_json(self) -> str:
        """One line of strict JSON (NaN and infinity, which JSON cannot say, become null)."""
        said = asdict(self)
        if not self.start:
            del said["start"]
        return json.dumps(_jsonable(said), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Trial:
        """Read a line back, ignoring keys of later versions and values of the wrong kind, whoever wrote them.
        ValueError for anything that is not a trial: it lacks a number or an arch."""
        raw = parse_json(line)
        if not isinstance(raw, dict):
            raise ValueError(f"not a trial: {line[:80]!r}")
        if type(raw.get("number")) is not int or not isinstance(raw.get("arch"), dict):
            raise ValueError(f"not a trial: {line[:80]!r}")
        known = {k: raw[k] for k in cls.__dataclass_fields__ if k in raw and fits(k, raw[k])}
        known["parents"] = tuple(known.get("parents", ()))
        known["metrics"] = {k: v for k, v in known.get("metrics", {}).items() if is_real(v)}
        known["curve"] = [row for row in known.get("curve", ()) if isinstance(row, dict)]
        return cls(**known)


class History:
    """`history.jsonl` of a run; safe for several processes that append at once."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, trial: Trial) -> None:
        """Write one line; returns only when it is on disk. OSError (disk full) passes through."""
        append_line(self.path, trial.to_json())

    def load(self) -> list[Trial]:
        """All trials by number, infeasible ones (-1) first. A line torn by a crash is left out."""
        trials = []
        for line in read_lines(self.path):
            try:
                trials.append(Trial.from_json(line))
            except (ValueError, TypeError):
                continue
        return sorted(trials, key=lambda t: t.number)


def append_line(path: Path, line: str) -> None:
    """Append one line under a lock, after repairing a torn last line, and fsync it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        torn = False
        if end:
            file.seek(end - 1)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a file; an absent file has none."""
    if not path.exists():
        return []
    return [line for line in path.read_text(errors="replace").splitlines() if line.strip()]


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    if hasattr(value, "item"):  # a numpy or torch scalar
        return _jsonable(value.item())
    return value
