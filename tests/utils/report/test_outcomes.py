"""Which weights of a trial are the best, with all that a run may have on disk."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from tests.utils.synthetic import make_run, make_trials
from utils.report.model_card import write_model_card
from utils.report.outcomes import KINDS, alike, best_outcome, best_weights, on_val, outcomes
from utils.report.results import extend_top, write_top
from utils.report.runs import read_run


def put(run: Path, kind: str, trial: int, score: float | None, weights: bool = True) -> None:
    """Weights and their score on val, as the steps leave them."""
    name, scored = KINDS[kind]
    for folder in {kind, scored}:
        (run / folder / f"{trial:04d}").mkdir(parents=True, exist_ok=True)
    if weights:
        (run / kind / f"{trial:04d}" / name).write_text("x")
    if score is not None:
        result = {"metrics": {"map50_95": score}, "train": {"epochs": 3}, "seed": 1}
        (run / scored / f"{trial:04d}" / "result.json").write_text(json.dumps(result))


@pytest.mark.parametrize("order", list(itertools.permutations(KINDS)))
def test_the_best_on_val_wins_whatever_it_is(tmp_path: Path, order: tuple[str, ...]) -> None:
    for score, kind in zip((0.3, 0.5, 0.4), order, strict=True):
        put(tmp_path, kind, 7, score)
    name, _ = KINDS[order[1]]
    assert best_weights(tmp_path, 7, "map50_95") == tmp_path / order[1] / "0007" / name
    assert best_weights(tmp_path, 8, "map50_95") is None


def test_equal_scores_go_to_the_longer_trained(tmp_path: Path) -> None:
    for kind in KINDS:
        put(tmp_path, kind, 0, 0.5)
        found = best_weights(tmp_path, 0, "map50_95")
        assert found is not None and found.parts[-3] == kind


def test_what_has_no_score_or_no_file_is_not_taken_for_the_best(tmp_path: Path) -> None:
    put(tmp_path, "trials", 1, None)
    put(tmp_path, "retrain", 1, None)  # its training goes on
    put(tmp_path, "finetune", 1, 0.9, weights=False)
    found = best_weights(tmp_path, 1, "map50_95")
    assert found == tmp_path / "trials/0001/weights.pt"
    put(tmp_path, "finetune", 1, 0.01)  # scored, where the trial's own is not
    assert best_weights(tmp_path, 1, "map50_95") == tmp_path / "finetune/0001/last.pt"


@pytest.mark.parametrize("better", ["finetune", "retrain"])
def test_the_card_names_the_weights_that_everybody_takes(tmp_path: Path, better: str) -> None:
    trials = make_trials()
    run = make_run(tmp_path / "run", trials)
    write_top(run, trials, 1, space="models/yolov5n_nas.yaml", data="d", imgsz=64)
    trial = json.loads((run / "top/1.json").read_text())["trial"]
    for kind in ("finetune", "retrain"):
        put(run, kind, trial, 0.8 if kind == better else 0.7)
    best = best_weights(run, trial, "map50_95")
    assert best is not None and best.parts[-3] == better
    assert f"--weights {best.relative_to(run)} " in write_model_card(run, 1).read_text()
    found = best_outcome(outcomes(read_run(run))[trial], "map50_95")
    assert found is not None and (found.kind, found.note) == (better, "3 epochs, seed 1")


def test_scores_are_compared_between_weights_that_were_trained_alike(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", make_trials(3, infeasible=0))
    put(run, "trials", 0, 0.4)
    put(run, "retrain", 0, 0.6)
    put(run, "trials", 2, 0.5)
    put(run, "finetune", 2, 0.55)
    assert alike(read_run(run), 2) == [("trials", 0.5, 0.4)]
    put(run, "retrain", 2, 0.5)
    assert alike(read_run(run), 2) == [("trials", 0.5, 0.4), ("retrain", 0.5, 0.6)]
    assert on_val(read_run(run)) == {0: 0.4, 2: 0.5}


def test_a_record_alone_tells_as_much(tmp_path: Path) -> None:
    trials = make_trials()
    run = make_run(tmp_path / "run", trials)
    write_top(run, trials, 1, space="s", data="d", imgsz=64)
    number = json.loads((run / "top/1.json").read_text())["trial"]
    metrics = {"map50_95": 0.5, "note": "no number"}
    extend_top(run, 1, evaluated={"weights": f"trials/{number:04d}/weights.pt", "metrics": metrics})
    extend_top(run, 1, retrained={"metrics": {"map50_95": 0.6}, "epochs": 50, "seeds": [0, 1]})
    known = outcomes(read_run(run))[number]
    assert {k: (o.metrics, o.note) for k, o in known.items()} == {
        "trials": ({"map50_95": 0.5}, ""),
        "retrain": ({"map50_95": 0.6}, "50 epochs, seeds 0, 1"),
    }
    (run / "evaluate").mkdir()
    (run / "evaluate" / "notes").mkdir()
    (run / "evaluate" / "notes" / "result.json").write_text("{torn")
    assert outcomes(read_run(run))[number] == known
