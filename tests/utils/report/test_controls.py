"""The table of what the winner had to beat, against answers worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.utils.report.test_report import page, trial
from tests.utils.synthetic import make_run
from utils.report.controls import controls_info
from utils.report.model_card import write_model_card
from utils.report.progress import later_spent
from utils.report.results import status, write_top
from utils.report.runs import read_run
from utils.report.summary import cost_rows
from utils.steps import StepState, steps_of

TRIALS = [trial(0, 0.50, 2.0), trial(1, 0.56, 1.5), trial(2, 0.55, 1.0)]


def row(names: list[str], scores: dict[str, float], gflops: float = 1.5, **more: Any) -> dict[str, Any]:
    facts = {"arch": {"depth": len(names)}, "digest": "0a1b2c3d", "trial": None, "search_val": None}
    return facts | {"names": names, "scores": scores, "gflops": gflops, "params_m": 0.5} | more


ROWS = [
    row(["winner", "serial"], {"0": 0.60, "1": 0.62}, trial=1, search_val=0.56),
    row(["unsearched"], {"0": 0.52, "1": 0.50}, 2.0),
    row(["random"], {"0": 0.61, "1": 0.59}),
    row(["random_search"], {"0": 0.62}, trial=7, search_val=0.57),
]


def controlled(folder: Path, rows: list[Any] = ROWS, **facts: Any) -> Path:
    run = make_run(folder, TRIALS)
    experiment = yaml.safe_load((run / "experiment.yaml").read_text())
    experiment |= {"steps": ["search", "controls"], "controls": {"seeds": [0, 1]}}
    (run / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    (run / "controls").mkdir()
    found = {"by": "finetune", "epochs": 8, "seeds": [0, 1], "rows": rows} | facts
    (run / "controls" / "controls.json").write_text(json.dumps(found))
    return run


def test_means_spreads_and_what_the_winner_gains(tmp_path: Path) -> None:
    info = controlled_info(controlled(tmp_path / "run"))
    assert [r.mean for r in info.rows] == pytest.approx([0.61, 0.51, 0.60, 0.62])
    # two values that are .02 apart: sd .02 / sqrt 2; one value has none
    sd = 0.02 / math.sqrt(2)
    assert [r.spread for r in info.rows] == [*[pytest.approx(sd)] * 3, None]
    assert info.spread == pytest.approx(sd)
    against = {d.name: d for d in info.differences}
    assert list(against) == ["unsearched", "random", "random_search"]
    assert against["unsearched"].value == pytest.approx(0.10)
    assert against["random"].value == pytest.approx(0.01)
    assert against["random_search"].value == pytest.approx(-0.02)  # of seed 0 alone, which both have
    assert against["random"].error == pytest.approx(sd)  # sd x sqrt(2 / 2 seeds)
    assert against["random_search"].error == pytest.approx(0.02)  # sd x sqrt(2 / 1 seed)
    assert [d.shown for d in against.values()] == [True, False, False]
    lines = info.lines()
    assert lines[0] == "controls, fine-tuned alike for 8 epochs, seeds 0, 1"
    heads = "mAP50-95 on val sd seed 0 seed 1 search_val GFLOPs params (M) arch"
    assert " ".join(lines[1].split()) == heads
    cells = "0.6100 0.0141 0.6000 0.6200 0.5600 1.5000 0.5000 0a1b2c3d winner, serial"
    assert " ".join(lines[2].split()) == cells
    assert lines[5].endswith("0a1b2c3d  random_search") and "0.6200  " in lines[5]
    assert lines[6:] == [
        "the winner: +0.1000 on unsearched, more than seeds do (+-0.0283)",
        "the winner: +0.0100 on random, no more than seeds do (+-0.0283)",
        "the winner: -0.0200 on random_search, no more than seeds do (+-0.0400)",
    ]


def controlled_info(run: Path):
    info = controls_info(read_run(run))
    assert info is not None
    return info


def test_one_seed_shows_nothing(tmp_path: Path) -> None:
    rows = [row(["winner"], {"0": 0.6}), row(["random"], {"0": 0.5})]
    info = controlled_info(controlled(tmp_path / "run", rows, seeds=[0], by="retrain", epochs=1))
    assert info.spread is None and not info.differences[0].shown
    assert info.lines()[0] == "controls, retrained alike for 1 epoch, seed 0"
    assert info.lines()[-1] == "the winner: +0.1000 on random; one seed says nothing of what others would do"


def test_status_report_and_costs_show_them(tmp_path: Path) -> None:
    run = controlled(tmp_path / "run")
    (run / "controls" / "0a1b2c3d-0").mkdir()
    (run / "controls" / "0a1b2c3d-0" / "result.json").write_text(json.dumps({"seconds": 30.0}))
    said = status(run)
    assert "the winner: +0.1000 on unsearched" in said
    shown = page(run).text
    for text in (
        "What the winner had to beat",
        "fine-tuned alike for 8 epochs, seeds 0, 1",
        "winner, serial",
        "0.6100",
        "+0.1000 on unsearched, more than seeds do",
        "with other seeds, a network scores 0.0141 higher or lower (standard deviation of 3 networks",
    ):
        assert text in shown
    assert "so the spread between seeds is unknown" not in shown
    assert later_spent(read_run(run)) == {"controls": (1, 30.0)}
    assert cost_rows(read_run(run))["then the controls"] == "30 s, 1 training"


def test_a_model_card_says_what_its_network_beat(tmp_path: Path) -> None:
    run = controlled(tmp_path / "run")
    write_top(run, TRIALS, 2, space="models/yolov5n_nas.yaml", data="d", imgsz=64)
    first, second = (write_model_card(run, n).read_text() for n in (1, 2))
    gained = "It and others fine-tuned alike for 8 epochs, seeds 0, 1, on val: +0.1000 on unsearched, more"
    assert gained in first and gained not in second  # the winner is trial 1, which is first by reward
    for card in (first, second):
        assert "with other seeds, a network scores 0.0141 higher or lower" in card
        assert "The spread between seeds is not known" not in card


def test_the_step_is_done_when_every_seed_of_the_experiment_is(tmp_path: Path) -> None:
    run = controlled(tmp_path / "run")
    (run / "run.json").unlink(missing_ok=True)
    state = steps_of(read_run(run))[1]
    assert (state.done, state.parts, state.of) == (False, 7, 8)
    whole = controlled(tmp_path / "whole", ROWS[:3])
    (whole / "run.json").unlink(missing_ok=True)
    assert steps_of(read_run(whole))[1] == StepState("controls", True, 6, 6)
    more = controlled(tmp_path / "more", ROWS[:3], seeds=[0])  # it was asked for two since
    (more / "run.json").unlink(missing_ok=True)
    assert not steps_of(read_run(more))[1].done


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"rows": 3}', '{"rows": [3, {"names": "winner"}]}', '{"rows": [{"names": []}]}']
)
def test_a_damaged_table_is_as_if_there_were_none(tmp_path: Path, text: str) -> None:
    run = controlled(tmp_path / "run")
    (run / "controls" / "controls.json").write_text(text)
    assert controls_info(read_run(run)) is None
    assert "What the winner had to beat" not in page(run).text and "controls" in status(run)
