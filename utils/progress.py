"""How far the supernet of a run has come, live, finished or killed, and what the run took."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.drawing import is_number
from utils.history import History
from utils.runs import Cost, Run, read_json, sampled, search_cost

# The archs of a step of a supernet's training.
KINDS = {"max": "largest", "random": "random", "min": "smallest"}
ENDS = ("max", "min")  # those that are scored while it trains


@dataclass(frozen=True)
class SupernetInfo:
    """The training of a run's supernet as far as it has come.

    trained: to its end; epochs: finished ones; planned: all of them, None = unknown
    seconds: of all sittings together; steps: optimizer steps, None while it trains
    scores:  `max` and `min` (the largest and the smallest arch) -> (epoch, quality on search_val)
    losses:  `loss` (mean over the archs of a step), `max`, `random`, `min` -> (epoch, training loss); that of
             random and min holds what they learn from the largest as well
    """

    quality: str
    trained: bool
    epochs: int
    planned: int | None
    seconds: float
    steps: int | None
    devices: int
    scores: dict[str, list[tuple[int, float]]]
    losses: dict[str, list[tuple[int, float]]]

    @property
    def left(self) -> float | None:
        """Seconds until it is trained, at the pace so far; None where that is unknown."""
        if self.trained or not self.epochs or self.planned is None:
            return None
        return self.seconds / self.epochs * max(0, self.planned - self.epochs)


def supernet_info(run: Run) -> SupernetInfo | None:
    """None for a run without a supernet, and before the first epoch of its training."""
    folder = run.folder / "supernet"
    result = read_json(folder / "result.json")
    given = result.get("curve")
    rows = [r for r in given if isinstance(r, dict)] if isinstance(given, list) else _log(folder / "log.csv")
    curve = {int(r["epoch"]): r for r in rows if is_number(r.get("epoch"))}
    if not curve:
        return None
    last = curve[max(curve)]
    seconds = next((v for v in (result.get("seconds"), last.get("seconds")) if is_number(v)), 0.0)
    steps = result.get("steps")
    epochs = sorted(curve)
    scores = {k: _series(epochs, [curve[e].get(f"{k}_{run.quality}") for e in epochs]) for k in ENDS}
    losses = {"loss": _series(epochs, [curve[e].get("loss") for e in epochs])}
    losses |= {k: _series(epochs, [_loss_of(curve[e], k) for e in epochs]) for k in KINDS}
    return SupernetInfo(
        quality=run.quality,
        trained=bool(result) or (folder / "weights.pt").exists(),
        epochs=max(curve),
        planned=count(run, "train", "epochs"),
        seconds=float(seconds),
        steps=steps if isinstance(steps, int) else None,
        devices=count(run, "supernet", "devices") or 1,
        scores={kind: points for kind, points in scores.items() if points},
        losses={kind: points for kind, points in losses.items() if points},
    )


def _log(path: Path) -> list[dict[str, float]]:
    """The rows of a log.csv that may be written to at this moment; what is no number is left out."""
    if not path.is_file():
        return []
    rows = []
    for row in csv.DictReader(path.read_text(errors="replace").splitlines()):
        values = {}
        for key, text in row.items():
            try:
                values[str(key)] = float(text or "")
            except (TypeError, ValueError):
                continue
        rows.append(values)
    return rows


def _series(epochs: list[int], values: list[Any]) -> list[tuple[int, float]]:
    return [(epoch, float(v)) for epoch, v in zip(epochs, values, strict=True) if is_number(v)]


def _loss_of(row: dict[str, Any], kind: str) -> float | None:
    """All parts of the loss that archs of a kind had: `loss/max_box`, `loss/max_cls`, ..."""
    parts = [v for key, v in row.items() if key.startswith(f"loss/{kind}_") and is_number(v)]
    return sum(parts) if parts else None


# What it took -----------------------------------------------------------------------------------------------


def search_spent(run: Run) -> dict[str, Cost]:
    """What finding took, part by part: `supernet`, `sampled` (both only where there are) and `trials`."""
    parts: dict[str, Cost] = {}
    supernet = supernet_info(run)
    if supernet is not None:
        parts["supernet"] = Cost(1, supernet.seconds * supernet.devices, supernet.seconds)
    scored = sampled(run)
    if scored:
        parts["sampled"] = search_cost(scored)
    return parts | {"trials": search_cost(run.trials)}


def device_cost(parts: Mapping[str, Cost]) -> Cost:
    """One after the other, for `device_hours`: the supernet counts once for each of its devices."""
    there = {name: cost for name, cost in parts.items() if cost.trials}
    walls = [c.trial_seconds if name == "supernet" else c.wall_seconds for name, c in there.items()]
    known = [wall for wall in walls if wall is not None]
    trials, seconds = sum(c.trials for c in there.values()), sum(c.trial_seconds for c in there.values())
    return Cost(trials, seconds, sum(known) if walls and len(known) == len(walls) else None)


def later_spent(run: Run) -> dict[str, tuple[int, float]]:
    """What came after the search: `finetune`, `retrain`, `rank` -> (trainings, seconds in all)."""
    found = {}
    for kind in ("finetune", "retrain"):
        results = [read_json(p) for p in run.folder.glob(f"{kind}/*/result.json")]
        took = [r["seconds"] for r in results if is_number(r.get("seconds"))]
        if took:
            found[kind] = (len(took), float(sum(took)))
    trainings = History(run.folder / "rank" / "trainings.jsonl").load()
    if trainings:
        found["rank"] = (len(trainings), float(sum(t.seconds for t in trainings if is_number(t.seconds))))
    return found


def block(run: Run, name: str) -> dict[str, Any]:
    """A block of the run's experiment; {} where it has none."""
    given = run.experiment.get(name)
    return given if isinstance(given, dict) else {}


def count(run: Run, where: str, key: str) -> int | None:
    """A whole number of a block of the run's experiment; None where it is none."""
    given = block(run, where).get(key)
    return given if isinstance(given, int) else None
