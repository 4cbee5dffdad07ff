"""How far the supernet and the trials of a run have come, live, finished or killed; what the run took."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.history import History, Trial, read_lines
from utils.json_text import parse_json
from utils.report.drawing import is_number, title
from utils.report.runs import Cost, Run, duration, read_json, sampled, search_cost
from utils.run_files import Files

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
    folder = Files(run.folder).supernet
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


# Trials that run -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrialProgress:
    """A trial that has begun and has no line of history, as its log.csv tells it.

    epoch, of: finished epochs of how many, None = unknown; loss: of the last one
    score: the last quality on search_val; seconds: of training until that epoch's end
    """

    number: int
    epoch: int = 0
    of: int | None = None
    loss: float | None = None
    score: float | None = None
    seconds: float = 0.0

    @property
    def left(self) -> float | None:
        """Seconds until its end at the pace so far; None before its first epoch."""
        if not self.epoch or self.of is None or not self.seconds:
            return None
        return self.seconds / self.epoch * max(0, self.of - self.epoch)

    def line(self, quality: str) -> str:
        """`trial 3: epoch 4/6, loss 1.93, mAP50-95 .31, 12 s left`."""
        return f"trial {self.number}: {self.said(quality)}"

    def said(self, quality: str) -> str:
        """The same without its number."""
        if not self.epoch:
            return "begun"
        parts = [f"epoch {self.epoch}" + (f"/{self.of}" if self.of else "")]
        parts += [f"loss {self.loss:.3g}"] if self.loss is not None else []
        parts += [f"{title(quality)} {self.score:.4f}"] if self.score is not None else []
        parts += [f"{duration(self.left)} left"] if self.left else []
        return ", ".join(parts)


def in_flight(run: Run) -> list[int]:
    """Numbers that were handed out (`asked.jsonl`) and have no line of history."""
    done = {t.number for t in run.trials}
    asked = []
    for line in read_lines(run.folder / "asked.jsonl"):
        try:
            asked.append(parse_json(line)["number"])
        except (ValueError, TypeError, KeyError):
            continue
    return sorted(n for n in set(asked) if isinstance(n, int) and n not in done)


def running_trials(run: Run) -> list[TrialProgress]:
    """How far each trial without a line of history has come."""
    ours = run.search.get("evaluator") is None and not run.shares_weights
    of = count(run, "train", "epochs") if ours else None
    return [_trained(Files(run.folder).of_trial("trials", n), n, of, run.quality) for n in in_flight(run)]


def retraining(run: Run) -> TrialProgress | None:
    """How far a folder that `retrain` made has come; None for that of a search."""
    if not run.is_retraining:
        return None
    return _trained(run.folder, 0, count(run, "train", "epochs"), run.quality)


def _trained(folder: Path, number: int, of: int | None, quality: str) -> TrialProgress:
    rows = [r for r in _log(folder / "log.csv") if "epoch" in r]
    if not rows:
        return TrialProgress(number, 0, of)
    last = rows[-1]
    score = next((r[quality] for r in reversed(rows) if quality in r), None)
    return TrialProgress(number, int(last["epoch"]), of, last.get("loss"), score, last.get("seconds", 0.0))


def search_left(run: Run, running: Sequence[TrialProgress]) -> float | None:
    """Seconds until the search has spent its budget of trials, or of time, at the pace of those that ended or
    run; None where nothing tells."""
    budget, at_a_time = run.planned, run.search.get("concurrency")
    ended = [t.seconds for t in run.trials if t.seconds > 0]
    guesses = [p.seconds + p.left for p in running if p.left is not None]
    each = ended or guesses
    left = None
    if isinstance(budget, int) and each:
        mean = sum(each) / len(each)
        spent = sum(min(p.seconds, mean) for p in running)
        left = max(0.0, (budget - len(run.trials)) * mean - spent) / max(1, at_a_time or 1)
    limit, cost = run.search.get("max_seconds"), search_cost(run.trials)
    if is_number(limit) and cost.wall_seconds is not None:
        by_time = max(0.0, limit - cost.wall_seconds)
        left = by_time if left is None else min(left, by_time)
    return left


def _series(epochs: list[int], values: list[Any]) -> list[tuple[int, float]]:
    return [(epoch, float(v)) for epoch, v in zip(epochs, values, strict=True) if is_number(v)]


def _loss_of(row: dict[str, Any], kind: str) -> float | None:
    """All parts of the loss that archs of a kind had: `loss/max_box`, `loss/max_cls`, ..."""
    parts = [v for key, v in row.items() if key.startswith(f"loss/{kind}_") and is_number(v)]
    return sum(parts) if parts else None


# Trials that were ended in time ----------------------------------------------------------------------------


@dataclass(frozen=True)
class StoppedInfo:
    """Trainings that were ended as hopeless. trials: how many; epochs: trained by all of them together;
    saved: seconds that the rest of their epochs would have taken at their pace, None = unknown."""

    trials: int
    epochs: int
    saved: float | None

    @property
    def line(self) -> str:
        """`4 trials, after 2.5 epochs on average; about 55 s saved`."""
        text = f"{self.trials} trial{'s' * (self.trials != 1)}, after {self.epochs / self.trials:.1f} epochs"
        text += " on average" if self.trials > 1 else ""
        return text + (f"; about {duration(self.saved)} saved" if self.saved is not None else "")


def stopped_info(trials: Sequence[Trial], epochs: int | None) -> StoppedInfo | None:
    """None where no trial was stopped. epochs: of a whole training."""
    stopped = [t for t in trials if t.state == "stopped"]
    if not stopped:
        return None
    saved = None
    if epochs is not None:
        saved = sum(t.seconds / len(t.curve) * max(0, epochs - len(t.curve)) for t in stopped if t.curve)
    return StoppedInfo(len(stopped), sum(len(t.curve) for t in stopped), saved)


# What it took -----------------------------------------------------------------------------------------------


def search_spent(run: Run) -> dict[str, Cost]:
    """What finding took, part by part: `pretrain`, `supernet`, `sampled`, `reignition` (all only where there
    are) and `trials`."""
    parts: dict[str, Cost] = {}
    files, supernet = Files(run.folder), supernet_info(run)
    alone, shared = (sum(_seconds([f])) for f in (files.pretrained_alone.parent, files.pretrain))
    if alone or shared:
        devices = count(run, "supernet", "devices") or 1
        parts["pretrain"] = Cost(1, alone + shared * devices, alone + shared)
    if supernet is not None:
        parts["supernet"] = Cost(1, supernet.seconds * supernet.devices, supernet.seconds)
    scored = sampled(run)
    if scored:
        parts["sampled"] = search_cost(scored)
    classifiers = _seconds(sorted(run.folder.glob("reignition/*/classifier")))
    if classifiers:  # one after the other, while no trial runs
        parts["reignition"] = Cost(len(classifiers), sum(classifiers), sum(classifiers))
    return parts | {"trials": search_cost(run.trials)}


def device_cost(parts: Mapping[str, Cost]) -> Cost:
    """One after the other, for `device_hours`: what all archs share counts once for each of its
    devices."""
    there = {name: cost for name, cost in parts.items() if cost.trials}
    walls = [c.trial_seconds if name in SHARED else c.wall_seconds for name, c in there.items()]
    known = [wall for wall in walls if wall is not None]
    trials, seconds = sum(c.trials for c in there.values()), sum(c.trial_seconds for c in there.values())
    return Cost(trials, seconds, sum(known) if walls and len(known) == len(walls) else None)


SHARED = ("pretrain", "supernet")  # trained once for all archs, on `supernet.devices`


def _seconds(folders: Iterable[Path]) -> list[float]:
    """How long the training in each folder took, or has taken so far; without those that have not begun."""
    found = []
    for folder in folders:
        rows = [read_json(folder / "result.json"), *_log(folder / "log.csv")[-1:]]
        known = [float(row["seconds"]) for row in rows if is_number(row.get("seconds"))]
        found += known[:1]
    return found


def later_spent(run: Run) -> dict[str, tuple[int, float]]:
    """What came after the search: `finetune`, `retrain`, `controls`, `rank` -> (trainings, seconds, those in
    which their backbones learnt to classify included)."""
    found = {}
    for kind in ("finetune", "retrain", "controls"):
        results = [read_json(p) for p in run.folder.glob(f"{kind}/*/result.json")]
        took = [r["seconds"] for r in results if is_number(r.get("seconds"))]
        if took:
            before = _seconds(run.folder.glob(f"{kind}/*/pretrain"))
            found[kind] = (len(took), float(sum(took) + sum(before)))
    trainings = History(Files(run.folder).rank / "trainings.jsonl").load()
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
