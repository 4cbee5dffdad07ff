"""How far a run has come, live, finished or killed, and what that took: its steps and its supernet."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.drawing import is_number
from utils.history import History, read_lines
from utils.runs import Cost, Run, read_json, run_state, sampled, search_cost

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
        planned=_count(run, "train", "epochs"),
        seconds=float(seconds),
        steps=steps if isinstance(steps, int) else None,
        devices=_count(run, "supernet", "devices") or 1,
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


# Steps ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepState:
    """One step of a run. parts, of: how many of its pieces (epochs, archs, trials) are finished, of how many;
    `of` is None where nobody can say."""

    name: str
    done: bool
    parts: int = 0
    of: int | None = None

    def __str__(self) -> str:
        if self.done or not self.parts:
            return self.name
        return f"{self.name} ({self.parts}{f' of {self.of}' if self.of else ''})"


def steps_of(run: Run) -> list[StepState]:
    """The steps that the experiment lists, in its order; of a run that finished, all are done."""
    listed = run.experiment.get("steps")
    names = [s for s in listed if isinstance(s, str)] if isinstance(listed, list) else []
    finished = run_state(run) == "finished"
    states = [StepState(name, *STEPS[name](run)) for name in names if name in STEPS]
    return [StepState(s.name, finished or s.done, s.parts, s.of) for s in states]


Parts = tuple[bool, int, int | None]  # done, and as StepState has them


def _supernet(run: Run) -> Parts:
    info, weights = supernet_info(run), run.folder / "supernet" / "weights.pt"
    return weights.exists(), info.epochs if info else 0, info.planned if info else None


def _sample(run: Run) -> Parts:
    return (run.folder / "sample.csv").exists(), 0, None


def _sample_accuracy(run: Run) -> Parts:
    folder, of = run.folder / "sample_accuracy", _count(run, "sample_accuracy", "n")
    parts = len(read_lines(folder / "history.jsonl"))
    rows = len(read_lines(folder / "results.csv")) - 1  # a range of costs may hold fewer than n
    return rows > 0 and (rows >= parts or (of is not None and rows >= of)), parts, of


def _search(run: Run) -> Parts:
    """Over by its budget, or by its time: then a later step has begun."""
    parts, of = len(run.trials), _count(run, "search", "max_trials")
    later = any(key in r for r in _top(run) for key in ("evaluated", "finetuned", "retrained", "exported"))
    return later or (of is not None and parts >= of), parts, of


def _baselines(run: Run) -> Parts:
    family = run.experiment.get("family")
    of = len(family) if isinstance(family, list) else None
    parts = sum(t.state == "complete" for t in History(run.folder / "baselines.jsonl").load())
    return of is not None and parts >= of > 0, parts, of


def _trainings(run: Run, folder: str, key: str, more: int = 0) -> Parts:
    """Of the top k, in folders of their own; `more` beside them. The records hear of them at the end."""
    records, of = _top(run), _wanted(run)
    parts = len(list(run.folder.glob(f"{folder}/*/result.json")))
    done = bool(records) and all(key in r for r in records)
    return done, parts, None if of is None else of + more


def _retrain(run: Run) -> Parts:
    baseline = run.has_baseline and all(r.get("trial") != 0 for r in _top(run))
    return _trainings(run, "retrain", "retrained", int(baseline))


def _finetune(run: Run) -> Parts:
    return _trainings(run, "finetune", "finetuned")


def _noted(run: Run, key: str) -> Parts:
    """What is written into the record of each of the top k."""
    records = _top(run)
    parts = sum(key in r for r in records)
    return bool(records) and parts == len(records), parts, _wanted(run)


def _evaluate(run: Run) -> Parts:
    return _noted(run, "evaluated")


def _export(run: Run) -> Parts:
    return _noted(run, "exported")


def _rank(run: Run) -> Parts:
    n, seeds = _count(run, "rank", "n"), _block(run, "rank").get("seeds")
    of = n * len(seeds) if n is not None and isinstance(seeds, list) else None
    trainings = History(run.folder / "rank" / "trainings.jsonl").load()
    parts = len({(t.key, t.seed) for t in trainings})  # what failed has a line for each attempt
    written = (run.folder / "rank" / "rank.json").exists()
    return written and (of is None or parts >= of), parts, of


def _report(run: Run) -> Parts:
    records, cards = _top(run), list((run.folder / "top").glob("[0-9]*.md"))
    return bool(records) and len(cards) >= len(records), 0, None


STEPS: dict[str, Callable[[Run], Parts]] = {
    "supernet": _supernet,
    "sample": _sample,
    "sample_accuracy": _sample_accuracy,
    "search": _search,
    "baselines": _baselines,
    "retrain": _retrain,
    "evaluate": _evaluate,
    "finetune": _finetune,
    "rank": _rank,
    "export": _export,
    "report": _report,
}


def _top(run: Run) -> list[dict[str, Any]]:
    return [read_json(p) for p in (run.folder / "top").glob("*.json") if p.stem.isdigit()]


def _wanted(run: Run) -> int | None:
    return len(_top(run)) or _count(run, "search", "top_k")


def _block(run: Run, name: str) -> dict[str, Any]:
    given = run.experiment.get(name)
    return given if isinstance(given, dict) else {}


def _count(run: Run, block: str, key: str) -> int | None:
    given = _block(run, block).get(key)
    return given if isinstance(given, int) else None


def steps_line(run: Run) -> str:
    """`done: supernet, sample; now: sample_accuracy (5 of 12); then: search, report`; "" without steps."""
    steps, alive = steps_of(run), run_state(run) == "running"
    done = [s.name for s in steps if s.done]
    left = [str(s) for s in steps if not s.done]
    parts = [f"done: {', '.join(done)}"] if done else []
    if left:
        parts.append(f"{'now' if alive else 'stopped in' if '(' in left[0] else 'next'}: {left[0]}")
    if left[1:]:
        parts.append(f"then: {', '.join(left[1:])}")
    return "; ".join(parts)
