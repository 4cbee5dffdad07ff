"""Writes tests/fixtures/golden/*.json. Only for what is new: what is there already is a promise.

python -m tests.golden.record
"""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from tests.golden import doors

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "golden"


def digest(found: list[Any]) -> str:
    """A fingerprint of each."""
    return " ".join(map(doors.short, found))


def golden_draws() -> dict[str, Any]:
    """Of each way of drawing; the first random arch in full, to be read by people."""
    golden = {}
    for name in [*doors.FILES, "ordered"]:
        drawn = doors.draws(name)
        golden[name] = {"example": drawn["random"][0], **{way: digest(archs) for way, archs in drawn.items()}}
    return golden


def golden_costs() -> dict[str, Any]:
    golden = {}
    for name in [*doors.FILES, "ordered"]:
        costs = doors.costs(name)
        golden[name] = {"example": costs[:2], "all": digest(costs)}
    return golden


def golden_strategies() -> dict[str, Any]:
    golden = {}
    for case, arguments in doors.CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            golden[case] = digest(doors.proposals(*arguments, Path(folder)))
    return golden


if __name__ == "__main__":
    logging.getLogger("nni").setLevel(logging.CRITICAL)
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for kind in (golden_draws, golden_costs, golden_strategies):
        path = FIXTURES / f"{kind.__name__.removeprefix('golden_')}.json"
        path.write_text(json.dumps(kind(), indent=1) + "\n")
