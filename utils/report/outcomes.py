"""What became of a trial after the search: its scores on val, and which of its weights are the best.

A trial has up to three sets of weights: those that the search scored (`trials/`), fine-tuned ones
(`finetune/`) and retrained ones (`retrain/`). Whoever needs its weights takes `best_weights`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.report.drawing import is_number
from utils.report.runs import Run, read_json
from utils.run_files import Files
from utils.steps import STEPS

TRAININGS = sorted(
    (step for step in STEPS.values() if step.folder and step.record), key=lambda step: step.name == "retrain"
)
# Folder of the weights -> (their file, folder of their score on val), from the least to the longest trained.
KINDS = {"trials": ("weights.pt", "evaluate")}
KINDS |= {str(step.folder): ("last.pt", str(step.folder)) for step in TRAININGS}
IN_RECORDS = {str(step.folder): str(step.record) for step in TRAININGS}  # what top/N.json calls them


@dataclass(frozen=True)
class Outcome:
    """One score on val. kind: of KINDS; metrics: of that network; note: `3 epochs, seed 0`, where known."""

    kind: str
    metrics: dict[str, float]
    note: str = ""


def says_of(shares_weights: bool) -> dict[str, str]:
    """How each kind of weights is called in a run whose networks do, or do not, share a supernet's."""
    return {"trials": "as a slice" if shares_weights else ""} | {str(s.folder): s.column for s in TRAININGS}


def best_weights(folder: Path, trial: int, quality: str) -> Path | None:
    """The file of a trial's weights whose network is best on val; None where the trial has none.

    folder: of the run. Weights without a score (the step `evaluate` gives the trial's own one) come after
    those with one; of equal scores the longer trained are taken.
    """
    best: tuple[float, Path] | None = None
    for kind, (name, scored) in KINDS.items():
        path = Files(folder).of_trial(kind, trial) / name
        metrics = read_json(Files(folder).of_trial(scored, trial) / "result.json").get("metrics")
        score = metrics.get(quality) if isinstance(metrics, dict) else None
        if not path.is_file() or (kind != "trials" and not is_number(score)):  # a training that goes on
            continue
        ranked = score if is_number(score) else -1.0
        if best is None or ranked >= best[0]:
            best = ranked, path
    return best[1] if best else None


def outcomes(run: Run) -> dict[int, dict[str, Outcome]]:
    """trial -> kind of weights -> its score on val, for all that there are, from their own files or, where
    only the records of the top models tell of them, from those."""
    found: dict[int, dict[str, Outcome]] = {}
    for path in sorted(run.folder.glob("top/*.json")):
        record = read_json(path)
        if path.stem.isdigit() and isinstance(record.get("trial"), int):
            found[record["trial"]] = _of_record(record)
    for kind, (_, scored) in KINDS.items():
        for path in sorted(run.folder.glob(f"{scored}/*/result.json")):
            outcome = _outcome(kind, read_json(path))
            if path.parent.name.isdigit() and outcome is not None:
                # a record knows as much or, of several seeds, more
                found.setdefault(int(path.parent.name), {}).setdefault(kind, outcome)
    return {n: {k: by[k] for k in KINDS if k in by} for n, by in found.items() if by}


def _of_record(record: dict[str, Any]) -> dict[str, Outcome]:
    found = {}
    evaluated = record.get("evaluated")
    if isinstance(evaluated, dict) and str(evaluated.get("weights")).startswith("trials/"):
        found["trials"] = _outcome("trials", evaluated)
    for kind, key in IN_RECORDS.items():
        found[kind] = _outcome(kind, record.get(key))
    return {kind: outcome for kind, outcome in found.items() if outcome is not None}


def _outcome(kind: str, result: Any) -> Outcome | None:
    metrics = result.get("metrics") if isinstance(result, dict) else None
    if not isinstance(metrics, dict):
        return None
    train = result.get("train") if kind != "trials" else None
    epochs = train.get("epochs") if isinstance(train, dict) else result.get("epochs")
    seeds = result.get("seeds", [result["seed"]] if "seed" in result else [])
    parts = [f"{epochs} epoch{'s' * (epochs != 1)}"] if isinstance(epochs, int) else []
    if isinstance(seeds, list) and seeds and kind != "trials":
        parts.append(f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}")
    return Outcome(kind, {k: v for k, v in metrics.items() if is_number(v)}, ", ".join(parts))


def best_outcome(by_kind: dict[str, Outcome], quality: str) -> Outcome | None:
    """The score on val of the weights that `best_weights` takes."""
    scored = [o for o in by_kind.values() if quality in o.metrics]
    return max(reversed(scored), key=lambda o: o.metrics[quality], default=None)


def on_val(run: Run) -> dict[int, float]:
    """trial -> the score on val of the very weights that the search scored on search_val."""
    scored = {n: by_kind["trials"].metrics for n, by_kind in outcomes(run).items() if "trials" in by_kind}
    return {n: metrics[run.quality] for n, metrics in scored.items() if run.quality in metrics}


def alike(run: Run, trial: int, other: int = 0) -> list[tuple[str, float, float]]:
    """(kind, score of `trial`, score of `other`) on val for the kinds of weights that both have."""
    known, key = outcomes(run), run.quality
    ours, theirs = known.get(trial, {}), known.get(other, {})
    return [
        (kind, ours[kind].metrics[key], theirs[kind].metrics[key])
        for kind in KINDS
        if kind in ours and kind in theirs and key in ours[kind].metrics and key in theirs[kind].metrics
    ]
