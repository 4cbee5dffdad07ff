"""What report, status and model card say of a search in a supernet, against answers worked out by hand."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import yaml

from tests.utils.report.test_report import Page, page, trial
from tests.utils.synthetic import make_run, make_trials
from utils.history import History, Trial
from utils.report.model_card import write_model_card
from utils.report.plots import SAMPLED, draw_pareto, pareto_info, save_pareto_png
from utils.report.progress import device_cost, later_spent, search_spent, supernet_info
from utils.report.report import write_report
from utils.report.results import extend_top, status, write_top
from utils.report.runs import device_hours, read_run, sampled
from utils.report.summary import cost_rows, final_rows, final_title, rank_rows, supernet_facts
from utils.report.supernet_report import (
    draw_rank,
    draw_supernet,
    places,
    predictor_line,
    rank_report,
    regret_sentence,
    tau_rows,
    tau_verdict,
)
from utils.steps import StepState, steps_line, steps_of

STEPS = ["supernet", "sample", "sample_accuracy", "search", "evaluate", "finetune", "rank", "report"]
# trial -> mAP, GFLOPs; 2 is better and cheaper than the baseline 0
TRIALS = [
    trial(0, 0.50, 4.0, started=1000.0),
    trial(1, 0.60, 5.0, started=1010.0),
    trial(2, 0.55, 3.0, started=1020.0),
]
# log.csv as it is written: scored every other epoch only; `seconds` is of all sittings together
LOG = """epoch,loss,loss/max_box,loss/max_cls,loss/min_box,loss/min_kd_box,seconds,max_map50_95,min_map50_95
1,9.0,5.0,4.0,6.0,0.5,20.0,,
2,5.0,3.0,2.0,4.0,0.25,40.0,0.30,0.35
3,4.0,2.0,2.0,3.0,0.25,60.0,,
"""


def supernet_run(folder: Path, trials: list[Trial], **changes: Any) -> Path:
    """A run with a `supernet:` block around these trials; `changes` of its experiment."""
    run = make_run(folder, trials)
    experiment = yaml.safe_load((run / "experiment.yaml").read_text())
    experiment |= {
        "supernet": {
            "subnets": ["max", "random", "random", "min"],
            "sampling": {"name": "stratified"},
            "calibration": 256,
            "devices": 1,
        },
        "sample_accuracy": {"n": 4},
        "rank": {"n": 4, "seeds": [0, 1], "train": {"epochs": 3}},
        "steps": STEPS,
    }
    experiment["search"] |= {"max_trials": 3, "top_k": 2}
    experiment |= changes
    (run / "experiment.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    if not trials:
        (run / "history.jsonl").unlink()
    return run


def training(run: Path, log: str = LOG) -> Path:
    """Its supernet is being trained."""
    (run / "supernet").mkdir()
    (run / "supernet" / "log.csv").write_text(log)
    (run / "supernet" / "checkpoint.pt").write_text("x")
    return run


def trained(run: Path) -> Path:
    """Its supernet is trained, in 120 s."""
    training(run)
    curve = [
        {"epoch": e, "loss": 9.0 / e, "loss/max_box": 3.0 / e, "seconds": 20.0 * e}
        | {"max_map50_95": 0.1 * e, "min_map50_95": 0.05 * e}
        for e in range(1, 7)
    ]
    versions = {"device": "cuda:0", "threads": 3, "torch": "2.14.1"}
    result = {"metrics": {}, "seconds": 120.0, "steps": 76, "curve": curve, "versions": versions}
    (run / "supernet" / "result.json").write_text(json.dumps(result))
    (run / "supernet" / "weights.pt").write_text("x")
    (run / "supernet" / "checkpoint.pt").unlink()
    return run


def scored(run: Path, n: int = 4) -> Path:
    """n slices scored before the search, 2 s each, from 1 GFLOPs upwards, each twice the last."""
    for i in range(n):
        t = trial(i, 0.2 + 0.05 * i, 2.0**i, seconds=2.0, started=500.0 + 2 * i)
        History(run / "sample_accuracy" / "history.jsonl").append(t)
    return run


def handed_over(run: Path) -> Path:
    """The top 2 evaluated as slices and fine-tuned."""
    write_top(run, TRIALS, 2, space="models/yolov5n_nas.yaml", data="d", imgsz=64)
    for rank, number, slice_, tuned in ((1, 1, 0.57, 0.66), (2, 2, 0.54, 0.53)):
        weights = f"trials/{number:04d}/weights.pt"
        extend_top(run, rank, evaluated={"weights": weights, "metrics": {"map50_95": slice_}})
        (run / "finetune" / f"{number:04d}").mkdir(parents=True)
        result = {"metrics": {"map50_95": tuned}, "seconds": 15.0}
        (run / "finetune" / f"{number:04d}" / "result.json").write_text(json.dumps(result))
        (run / "finetune" / f"{number:04d}" / "last.pt").write_text("x")
        extend_top(run, rank, finetuned=result | {"epochs": 1, "seeds": [0], "split": "val"})
    (run / "finetune" / "0000").mkdir()
    (run / "finetune" / "0000" / "result.json").write_text(json.dumps({"metrics": {"map50_95": 0.58}}))
    return run


def rank_row(number: int, supernet: float, uncalibrated: float, alone: list[float], gflops: float) -> dict:
    scores = {str(seed): score for seed, score in enumerate(alone)}
    costs = {"params_m": 10 - gflops, "gflops": gflops}
    both = {"supernet": supernet, "uncalibrated": uncalibrated}
    return {"number": number, "arch": {"w": number}, "standalone": scores} | both | costs


# The means of training alone are .1 .2 .3 .4; each seed has the same order.
# supernet: one of six pairs is turned: tau (5 - 1) / 6; uncalibrated: all are: -1; GFLOPs: 1, parameters: -1
RANKED = [
    rank_row(0, 0.15, 0.04, [0.09, 0.11], 1.0),
    rank_row(1, 0.26, 0.03, [0.18, 0.22], 2.0),
    rank_row(2, 0.25, 0.02, [0.29, 0.31], 3.0),
    rank_row(3, 0.35, 0.01, [0.38, 0.42], 4.0),
]


def ranked(run: Path, rows: list[dict] | None = None) -> Path:
    (run / "rank").mkdir()
    (run / "rank" / "rank.json").write_text(json.dumps({"rows": RANKED if rows is None else rows}))
    return run


# --- the supernet's training ---


def test_a_supernet_that_trains_is_read_from_its_log(tmp_path: Path) -> None:
    run = read_run(training(supernet_run(tmp_path / "run", [])))
    info = supernet_info(run)
    assert info is not None
    assert (info.trained, info.epochs, info.planned, info.seconds, info.steps) == (False, 3, 6, 60.0, None)
    assert info.left == 60.0  # three of six epochs took 60 s
    assert info.scores == {"max": [(2, 0.30)], "min": [(2, 0.35)]}
    assert info.losses == {
        "loss": [(1, 9.0), (2, 5.0), (3, 4.0)],
        "max": [(1, 9.0), (2, 5.0), (3, 4.0)],
        "min": [(1, 6.5), (2, 4.25), (3, 3.25)],
    }
    assert supernet_facts(run, info) == {
        "epochs": "3 of 6",
        "time": "1 min 00 s so far",
        "on each batch": "largest, random, random, smallest",
        "random ones": "stratified",
        "largest scores": "mAP50-95 0.3000 at epoch 2",
        "smallest scores": "mAP50-95 0.3500 at epoch 2",
    }


def test_a_trained_supernet_is_read_from_its_result(tmp_path: Path) -> None:
    run = read_run(trained(supernet_run(tmp_path / "run", [])))
    info = supernet_info(run)
    assert info is not None
    assert (info.trained, info.epochs, info.seconds, info.steps, info.left) == (True, 6, 120.0, 76, None)
    assert info.scores["min"][-1] == (6, pytest.approx(0.3))
    assert supernet_facts(run, info) | {"epochs": "6", "steps": "76", "time": "2 min 00 s"} == supernet_facts(
        run, info
    )
    assert run.meta["device"] == "cpu"  # where the search ran goes before where the supernet was trained
    (run.folder / "meta.json").unlink()
    assert read_run(run.folder).meta["device"] == "cuda:0"


def test_a_log_that_is_torn_or_absent(tmp_path: Path) -> None:
    assert supernet_info(read_run(supernet_run(tmp_path / "none", []))) is None
    assert supernet_info(read_run(make_run(tmp_path / "other", TRIALS))) is None
    for i in range(len(LOG)):  # wherever a reader or a full disk cuts it
        log = LOG[:i]
        (tmp_path / "none" / "supernet").mkdir(exist_ok=True)
        (tmp_path / "none" / "supernet" / "log.csv").write_text(log)
        info = supernet_info(read_run(tmp_path / "none"))
        assert info is None or info.epochs <= log.count("\n")
        if info is not None:
            draw_supernet(info)


def test_the_curves_are_named_for_people(tmp_path: Path) -> None:
    info = supernet_info(read_run(training(supernet_run(tmp_path / "run", []))))
    assert info is not None
    figures = draw_supernet(info)
    assert list(figures) == ["scores", "loss"]
    names = [[s["name"] for s in figure["data"]] for figure in figures.values()]
    assert names == [
        ["largest architecture", "smallest architecture"],
        ["mean of a step", "largest architecture", "smallest architecture"],
    ]
    assert figures["scores"]["layout"]["yaxis"]["title"]["text"] == "mAP50-95"


# --- what it took ---


def test_the_cost_counts_the_supernet_and_the_sampled_slices(tmp_path: Path) -> None:
    run = handed_over(scored(trained(supernet_run(tmp_path / "run", TRIALS))))
    parts = search_spent(read_run(run))
    assert {name: (c.trials, c.trial_seconds, c.wall_seconds) for name, c in parts.items()} == {
        "supernet": (1, 120.0, 120.0),
        "sampled": (4, 8.0, 8.0),
        "trials": (3, 30.0, 30.0),
    }
    assert device_cost(parts).trial_seconds == device_cost(parts).wall_seconds == 158.0
    assert cost_rows(read_run(run)) == {
        "training the supernet": "2 min 00 s",
        "scoring sampled slices": "8.0 s, 4 of them",
        "scoring its slices": "30 s",
        "all together": "2 min 38 s",
        "device time": "0.04 CPU core hours (1 thread a trial)",
        "wall time while trials ran": "30 s",
        "trials at a time": "1.0 on average",
        "mean trial": "10 s",
        "then fine-tuning": "30 s, 2 trainings",
        "device": "cpu",
    }
    assert later_spent(read_run(run)) == {"finetune": (2, 30.0)}
    shown = page(run)
    assert "supernet and search took" in shown.text and "2 min 38 s" in shown.text


def test_the_cost_counts_what_backbones_learnt_before_they_detect(tmp_path: Path) -> None:
    """The supernet's, on its devices; those that were reignited, one still at it; and those of winners."""

    def learnt(folder: Path, seconds: float) -> None:
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({"seconds": seconds, "metrics": {}, "train": {}}))

    run = handed_over(trained(supernet_run(tmp_path / "run", TRIALS)))
    learnt(run / "pretrain", 40.0)
    learnt(run / "finetune" / "0002" / "pretrain", 5.0)
    learnt(run / "reignition" / "0001" / "classifier", 7.0)
    (run / "reignition" / "0002" / "classifier").mkdir(parents=True)
    (run / "reignition" / "0002" / "classifier" / "log.csv").write_text("epoch,seconds\n1,2.0\n2,3.0\n")
    parts = search_spent(read_run(run))
    assert (parts["pretrain"].trial_seconds, parts["reignition"].trials) == (40.0, 2)
    assert device_cost(parts).trial_seconds == 120.0 + 30.0 + 40.0 + 7.0 + 3.0
    rows = cost_rows(read_run(run))
    assert rows["pre-training its backbone"] == "40 s" and rows["reigniting backbones"] == "10 s, 2 of them"
    assert rows["all together"] == "3 min 20 s" and rows["then fine-tuning"] == "35 s, 2 trainings"
    took = "40 s pre-training its backbone; 2 min 00 s training the supernet; 10 s reigniting backbones"
    assert f"in trials; {took}" in status(run)


def test_each_device_of_a_supernet_counts(tmp_path: Path) -> None:
    run = trained(supernet_run(tmp_path / "run", TRIALS, supernet={"devices": 4}))
    cost = device_cost(search_spent(read_run(run)))
    assert cost.wall_seconds == 4 * 120.0 + 30.0
    assert device_hours(cost, {"device": "cuda:0"}) == "0.14 GPU hours"


def test_a_run_without_a_supernet_costs_what_its_trials_do(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", TRIALS))
    assert list(search_spent(run)) == ["trials"]
    assert cost_rows(run) == {
        "time in trials": "30 s",
        "device time": "0.01 CPU core hours (1 thread a trial)",
        "wall time while trials ran": "30 s",
        "trials at a time": "1.0 on average",
        "mean trial": "10 s",
        "device": "cpu",
    }


# --- sampled architectures beside the trials ---


def test_sampled_slices_are_a_series_of_their_own(tmp_path: Path) -> None:
    run = read_run(scored(supernet_run(tmp_path / "run", TRIALS)))
    info = pareto_info(run.trials, "gflops", sampled=sampled(run))
    assert [(p.number, p.x, p.y) for p in info.sampled] == [
        (0, 1.0, 0.2),
        (1, 2.0, 0.25),
        (2, 4.0, pytest.approx(0.3)),
        (3, 8.0, pytest.approx(0.35)),
    ]
    assert info.sampled[3].text.startswith("<b>sampled 3</b><br>mAP50-95 0.35")
    assert info.front == [2, 1]  # of trials only: the sampled one at 1 GFLOPs is cheaper than all of them
    assert info.wide  # 8 GFLOPs against 1
    figure = draw_pareto(info)
    assert [s["name"] for s in figure["data"]][:2] == [SAMPLED, "dominated"]
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert figure["layout"]["xaxis"]["ticktext"] == ["1", "2", "5", "10", "20", "50"]
    assert figure["layout"]["annotations"][0]["x"] == pytest.approx(
        0.47712125
    )  # log10 of 3, as plotly wants it
    near = pareto_info(run.trials, "gflops", sampled=sampled(run)[1:3])
    assert not near.wide and "type" not in draw_pareto(near)["layout"]["xaxis"]
    for shown in (info, replace(info, points=[], front=[], baseline=None)):
        save_pareto_png(shown, tmp_path / "p.png")


# --- ranking ---


def test_places() -> None:
    assert places([0.2, 0.5, 0.5, 0.1]) == [3, 1, 1, 4]


def test_the_comparison_with_training_alone(tmp_path: Path) -> None:
    report = rank_report(read_run(ranked(supernet_run(tmp_path / "run", TRIALS))))
    assert report is not None and report.uncalibrated is not None
    assert report.tau.value == pytest.approx(4 / 6)
    assert [(r["name"], r["value"]) for r in tau_rows(report)] == [
        ("slices of the supernet", "0.67"),
        ("slices, batch norm as training left it", "-1.00"),
        ("counting GFLOPs", "1.00"),
        ("counting parameters", "-1.00"),
        ("training alone, seed against seed", "1.00"),
    ]
    assert tau_rows(report)[2]["bar"] == {"left": 100.0, "width": 0.0, "at": 100.0}
    assert rank_rows(report) == [
        {
            "number": number,
            "costs": [(10 - gflops, f"{10 - gflops:.4g}"), (gflops, f"{gflops:.4g}")],
            "alone": (pytest.approx(alone), f"{alone:.4f}", place),
            "seeds": seeds,
            "uncalibrated": (before, f"{before:.4f}", 5 - place),
            "supernet": (after, f"{after:.4f}", by_slice),
        }
        for number, gflops, alone, place, seeds, before, after, by_slice in [
            (3, 4.0, 0.4, 1, "0.3800 to 0.4200", 0.01, 0.35, 1),
            (2, 3.0, 0.3, 2, "0.2900 to 0.3100", 0.02, 0.25, 3),
            (1, 2.0, 0.2, 3, "0.1800 to 0.2200", 0.03, 0.26, 2),
            (0, 1.0, 0.1, 4, "0.0900 to 0.1100", 0.04, 0.15, 4),
        ]
    ]
    # of three drawn from four the best is missed once in four: (0.4 - 0.3) / 4
    assert regret_sentence(report) == (
        "The best of its first 3 is 0.0000 below the best of all, of the first 3 by GFLOPs 0.0000, "
        "of 3 picked blindly 0.0250 in the mean."
    )
    figure = draw_rank(report)["batch norm re-estimated"]["data"][0]
    assert figure["x"] == [0.35, 0.25, 0.26, 0.15]
    assert figure["y"] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert figure["error_y"]["array"] == pytest.approx([0.02, 0.01, 0.02, 0.01])
    for drawn in draw_rank(report).values():
        go.Figure(drawn)


def rows_of(scores: list[float], gflops: list[float]) -> list[dict]:
    """Archs whose score alone is 0.01, 0.02, ... with one seed."""
    return [
        rank_row(i, s, s, [0.01 * (i + 1)], g) for i, (s, g) in enumerate(zip(scores, gflops, strict=True))
    ]


@pytest.mark.parametrize(
    ("scores", "gflops", "says"),
    [
        # GFLOPs: 15 pairs in each half agree, the 36 between the halves do not: (30 - 36) / 66
        (list(range(12)), [*range(6, 12), *range(6)], "Even the lower end is above counting GFLOPs (-0.09)."),
        (list(range(12)), list(range(12)), "Counting GFLOPs does as well (1.00), for nothing."),
        ([1, 2, 1, 2, 1, 2], [1, 2, 1, 2, 1, 2], "So it is not shown to rank better than chance."),
        (
            [5] * 6,
            [1, 2, 3, 4, 5, 6],
            "All of the 6 architectures score the same, so there is no order to compare.",
        ),
        ([1, 0, 2, 3, 5, 4, 6, 7, 9, 8], [0, 2, 1, 4, 3, 6, 5, 9, 8, 7], "but within the doubt."),
    ],
)
def test_what_the_taus_say_together(
    tmp_path: Path, scores: list[float], gflops: list[float], says: str
) -> None:
    run = ranked(supernet_run(tmp_path / "run", TRIALS), rows_of(scores, gflops))
    report = rank_report(read_run(run))
    assert report is not None
    assert tau_verdict(report).endswith(says), tau_verdict(report)
    if "same" not in says:
        start = (
            f"Of {len(scores)} architectures that were trained alone, the supernet's order has Kendall's tau "
        )
        assert tau_verdict(report).startswith(start)
    assert report.supernet.ceiling is None and len(tau_rows(report)) == 4  # one seed
    shown = page(run)  # nothing undefined reaches the page
    assert "nan" not in shown.text.lower()


def test_a_ranking_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    run = supernet_run(tmp_path / "run", TRIALS)
    assert rank_report(read_run(run)) is None
    ranked(run)
    for rows in (
        RANKED[:2],
        [],
        "rows",
        [3, None, {}],
        [r | {"standalone": {"0": None}} for r in RANKED],
        [r | {"supernet": float("nan")} for r in RANKED],
    ):
        (run / "rank" / "rank.json").write_text(json.dumps({"rows": rows}))
        assert rank_report(read_run(run)) is None
        assert "rank architectures rightly" not in page(run).text
    (run / "rank" / "rank.json").write_text(json.dumps({"rows": RANKED})[:300])
    assert rank_report(read_run(run)) is None
    rows = [{k: v for k, v in r.items() if k != "uncalibrated"} for r in RANKED]
    (run / "rank" / "rank.json").write_text(json.dumps({"rows": rows}))
    report = rank_report(read_run(run))
    assert (
        report is not None
        and report.uncalibrated is None
        and list(draw_rank(report)) == ["batch norm re-estimated"]
    )


# --- the top k, the predictor ---


def test_the_way_from_a_slice_to_a_network(tmp_path: Path) -> None:
    run = supernet_run(tmp_path / "run", TRIALS)
    write_top(run, TRIALS, 2, space="s", data="d", imgsz=64)
    assert final_rows(read_run(run)) == []
    assert "the search never saw; the scores of" not in page(run).text
    handed_over(run)
    rows = final_rows(read_run(run))
    first, second, unsearched = rows
    assert final_title(rows) == "As a slice, fine-tuned"
    assert (unsearched["rank"], unsearched["number"]) == ("unsearched", 0)
    assert {k: c["value"] for k, c in unsearched["cells"].items()} == {
        "search_val": "0.5000",
        "as a slice, val": "–",
        "fine-tuned, val": "0.5800",
    }
    assert "As a slice, fine-tuned" in page(run).text
    assert (first["rank"], first["number"], first["costs"]) == (1, 1, ["5", "–"])
    tuned = {"value": "0.6600", "gain": "+0.0900", "tone": "good", "note": "1 epoch, seed 0"}
    assert first["cells"] == {
        "search_val": {"value": "0.6000", "gain": "", "tone": "", "note": ""},
        "as a slice, val": {"value": "0.5700", "gain": "", "tone": "", "note": ""},
        "fine-tuned, val": tuned,
    }
    assert second["cells"]["fine-tuned, val"]["gain"] == "-0.0100"
    assert second["cells"]["fine-tuned, val"]["tone"] == "bad"
    later = {"metrics": {"map50_95": 0.7}, "epochs": 50, "seeds": [0, 1]}
    evaluated = {"weights": "finetune/0002/last.pt", "metrics": {"map50_95": 0.53}}
    extend_top(run, 2, retrained=later, evaluated=evaluated)
    first, second, _ = final_rows(read_run(run))
    assert first["cells"]["retrained, val"]["value"] == "–"
    assert second["cells"]["as a slice, val"]["value"] == "–"  # nobody says so any more
    # without a score of its slice on val there is nothing to compare with
    alone = {"value": "0.7000", "gain": "", "tone": "", "note": "50 epochs, seeds 0, 1"}
    assert second["cells"]["retrained, val"] == alone


def test_a_search_that_trains_each_network_speaks_of_no_slices(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", TRIALS)
    write_top(run, TRIALS, 2, space="models/yolov5n_nas.yaml", data="d", imgsz=64)
    for kind, scores in (("evaluate", {0: 0.48, 1: 0.58, 2: 0.47}), ("retrain", {0: 0.70, 1: 0.72})):
        for number, score in scores.items():
            (run / kind / f"{number:04d}").mkdir(parents=True)
            result = {"metrics": {"map50_95": score}, "train": {"epochs": 9}, "seed": 3}
            (run / kind / f"{number:04d}" / "result.json").write_text(json.dumps(result))
    rows = final_rows(read_run(run))
    assert final_title(rows) == "On images that the search never saw"
    assert [(r["rank"], r["number"]) for r in rows] == [(1, 1), (2, 2), ("unsearched", 0)]
    assert {k: (c["value"], c["gain"], c["note"]) for k, c in rows[0]["cells"].items()} == {
        "search_val": ("0.6000", "", ""),
        "val": ("0.5800", "+0.1000", ""),
        "retrained, val": ("0.7200", "+0.1400", "9 epochs, seed 3"),
    }
    for text in (page(run).text, write_model_card(run, 1).read_text(), status(run)):
        assert not re.search(r"\bslice", text, re.I), text


def test_the_predictor_in_one_line(tmp_path: Path) -> None:
    run = supernet_run(tmp_path / "run", TRIALS)
    assert predictor_line(read_run(run)) == ""
    skill = {"n": 21, "tau": 0.719, "rmse": 0.00712, "mae": 0.006}
    fits = [{"held_out": {"n": 13, "tau": 0.1, "rmse": 0.02, "mae": 0.01}, "cost": None, "cost_alone": None}]
    fits.append({"held_out": skill, "cost": "gflops", "cost_alone": skill | {"tau": -0.62, "rmse": 0.0096}})
    facts = {"quality": "map50_95", "fits": fits, "proposed": skill | {"n": 8, "tau": None, "rmse": 0.003}}
    (run / "predictor.json").write_text(json.dumps(facts))
    assert predictor_line(read_run(run)) == (
        "The predictor's held-out tau is 0.72, its error 0.0071 mAP50-95 (root mean square, 21 "
        "architectures; GFLOPs alone: -0.62, 0.0096). Of the 8 that it chose, predicted before they were "
        "scored: tau undefined, error 0.0030."
    )
    assert "The predictor's held-out tau is 0.72" in page(run).text
    for broken in ({}, {"fits": []}, {"fits": [3]}, {"fits": [{"held_out": None}]}, {"fits": "x"}):
        (run / "predictor.json").write_text(json.dumps(broken))
        assert predictor_line(read_run(run)) == ""


# --- steps and status ---


def test_steps_from_first_to_last(tmp_path: Path) -> None:
    run = supernet_run(tmp_path / "run", [])
    assert steps_line(read_run(run)) == f"next: supernet; then: {', '.join(STEPS[1:])}"
    training(run)
    assert steps_of(read_run(run))[0] == StepState("supernet", False, 3, 6)
    assert steps_line(read_run(run)).startswith("stopped in: supernet (3 of 6); then: sample, ")
    (run / "supernet" / "weights.pt").write_text("x")
    (run / "sample.csv").write_text("x")
    scored(run, 3)
    assert steps_line(read_run(run)).startswith(
        "done: supernet, sample; stopped in: sample_accuracy (3 of 4); then: search, "
    )
    (run / "sample_accuracy" / "results.csv").write_text("number\n0\n1\n2\n")  # the range holds three only
    assert steps_of(read_run(run))[2] == StepState("sample_accuracy", True, 3, 4)
    (run / "history.jsonl").write_text(TRIALS[0].to_json() + "\n")
    (run / "run.json").write_text(json.dumps({"pid": os.getpid(), "started": 4e9, "state": "running"}))
    assert "; now: search (1 of 3); then: evaluate, finetune, rank, report" in steps_line(read_run(run))
    (run / "history.jsonl").write_text("".join(t.to_json() + "\n" for t in TRIALS))
    handed_over(run)
    for seed in (0, 1):
        History(run / "rank" / "trainings.jsonl").append(trial(0, 0.3, 1.0, seed=seed))
    assert steps_line(read_run(run)) == (
        "done: supernet, sample, sample_accuracy, search, evaluate, finetune; "
        "now: rank (2 of 8); then: report"
    )
    (run / "run.json").write_text(json.dumps({"state": "finished"}))
    assert steps_line(read_run(run)) == f"done: {', '.join(STEPS)}"


def test_other_steps(tmp_path: Path) -> None:
    steps = ["search", "baselines", "retrain", "export"]
    run = supernet_run(tmp_path / "run", TRIALS, steps=steps, supernet=None, family=["n.yaml", "s.yaml"])
    History(run / "baselines.jsonl").append(trial(0, 0.3, 1.0))
    write_top(
        run, TRIALS, 2, space="s", data="d", imgsz=64
    )  # trials 1 and 2; the baseline is retrained beside them
    (run / "retrain" / "0001").mkdir(parents=True)
    (run / "retrain" / "0001" / "result.json").write_text("{}")
    extend_top(run, 1, exported={})
    assert steps_of(read_run(run)) == [
        StepState("search", True, 3, 3),
        StepState("baselines", False, 1, 2),
        StepState("retrain", False, 1, 3),
        StepState("export", False, 1, 2),
    ]


def test_status_while_the_supernet_trains(tmp_path: Path) -> None:
    run = training(supernet_run(tmp_path / "run", []))
    (run / "run.json").write_text(json.dumps({"pid": os.getpid(), "started": 4e9, "state": "running"}))
    lines = status(run).splitlines()
    assert lines[2].startswith("steps       now: supernet (3 of 6); then: sample, ")
    assert lines[3] == (
        "supernet    epoch 3 of 6, loss 4.0000, about 1 min 00 s left; "
        "mAP50-95 at epoch 2: largest 0.3000, smallest 0.3500"
    )
    assert lines[5] == "time        0.0 s; 0.0 s in trials; 1 min 00 s training the supernet"


def test_status_of_a_supernet_before_and_after(tmp_path: Path) -> None:
    assert "supernet    not trained yet" in status(supernet_run(tmp_path / "new", []))
    done = status(trained(supernet_run(tmp_path / "run", TRIALS)))
    assert (
        "supernet    trained for 6 epochs in 2 min 00 s; "
        "mAP50-95 at epoch 6: largest 0.6000, smallest 0.3000\n" in done
    )
    assert "\nsupernet " not in status(make_run(tmp_path / "other", TRIALS))


# --- the page ---


def test_the_page_of_a_whole_run(tmp_path: Path) -> None:
    run = ranked(handed_over(scored(trained(supernet_run(tmp_path / "run", TRIALS)))))
    for name in ("sample.csv", "sample.png"):
        (run / name).write_text("x")
    shown = Page(write_report(run).read_text())
    assert {"supernet", "rank", "pareto"} <= set(shown.figures)
    assert shown.figures["pareto"]["GFLOPs"]["data"][0]["name"] == SAMPLED
    for words in (
        "weights shared in a supernet",
        "The supernet\n",
        "only its batch norm re-estimated on 256 training images",
        "Does the supernet rank architectures rightly?",
        "Every architecture, before and after its batch norm was re-estimated",
        "As a slice, fine-tuned",
        "Grey rings: 4 architectures scored before the search",
        "a slice, on search_val",
        "scored in the same way, as a slice of the supernet",
        "tau 0.67 [",
        "4 architectures trained by themselves for 3 epochs",
    ):
        assert words in shown.text or words.strip() in shown.text, words
    for wrong in (
        "trained once. Two",
        "Trials trained for",
        "Every architecture was trained once",
        "trained in the same",
    ):
        assert wrong not in shown.text, wrong
    assert {"sample.csv", "sample.png", "rank/rank.json", "finetune/0001/last.pt"} <= set(shown.addresses)
    for tabs in shown.figures.values():
        for figure in tabs.values():
            go.Figure(figure)


def test_without_a_ranking_the_page_says_that_it_is_not_known(tmp_path: Path) -> None:
    shown = page(trained(supernet_run(tmp_path / "run", TRIALS)))
    assert "How well they rank the architectures is not known here." in shown.text
    assert "How far the order of the slices is the order of trained networks is not known here." in shown.text
    assert "rank" not in shown.figures


def test_the_page_while_the_supernet_trains(tmp_path: Path) -> None:
    run = training(supernet_run(tmp_path / "run", []))
    (run / "meta.json").write_text("{}")
    shown = page(run)
    assert set(shown.figures) == {"supernet"}
    assert (
        "The supernet is not trained yet, so nothing has been searched. 3 epochs of its training are done."
        in shown.text
    )
    assert "with one seed, for 3 of 6 epochs" in shown.text
    assert "from 0 trials" in shown.text and "trial hours" not in shown.text
    (run / "supernet" / "log.csv").unlink()
    assert not page(run).figures
    scored(trained_again := supernet_run(tmp_path / "sampled", []))
    assert set(page(trained_again).figures) == {"pareto"}  # only the sampled ones, before the first trial


def test_a_run_killed_in_its_search(tmp_path: Path) -> None:
    run = scored(trained(supernet_run(tmp_path / "run", TRIALS[:2])))
    with open(run / "history.jsonl", "a") as file:
        file.write(TRIALS[2].to_json()[:60])
    with open(run / "sample_accuracy" / "history.jsonl", "a") as file:
        file.write('{"number": 4, "arch"')
    shown = page(run)
    assert "killed" in shown.text and "from 2 trials" in shown.text and "Grey rings: 4" in shown.text


def test_other_runs_speak_as_before(tmp_path: Path) -> None:
    shown = page(make_run(tmp_path / "run", make_trials()))
    assert "supernet" not in shown.text.lower() and "slice" not in shown.text
    assert "Each architecture was trained once." in shown.text and "Trials trained for 6 epochs" in shown.text


def test_a_classifier_in_a_supernet_speaks_of_top_1(tmp_path: Path) -> None:
    trials = [
        replace(t, metrics={"top1": t.metrics["map50_95"], "gflops": t.metrics["gflops"]}) for t in TRIALS
    ]
    objectives = {"search": {"objectives": {"top1": "max", "gflops": "min"}, "max_trials": 3, "top_k": 1}}
    run = ranked(
        training(supernet_run(tmp_path / "run", trials, **objectives), LOG.replace("map50_95", "top1"))
    )
    shown = page(run)
    text = shown.text + json.dumps(shown.figures) + status(run)
    assert not re.search(r"\bm?map(50|\b)", text, re.I)
    assert "top-1 at epoch 2: largest 0.3000" in text


# --- the model card ---


def test_the_model_card_says_where_the_weights_come_from(tmp_path: Path) -> None:
    run = handed_over(scored(trained(supernet_run(tmp_path / "run", TRIALS))))
    text = write_model_card(run, 1).read_text()
    heads = [
        "as a slice, on search_val",
        "gain on the baseline",
        "as a slice, on val",
        "fine-tuned, on val",
        "baseline fine-tuned, on val",
    ]
    assert f"| metric | {' | '.join(heads)} |" in text
    assert "| mAP50-95 | 0.6000 | +20.0 % | 0.5700 | 0.6600 | 0.5800 |" in text
    assert "On val, which the search never saw, fine-tuned: 0.6600, the baseline 0.5800." in text
    assert "In the search: its slice of the supernet, not trained by itself" in text
    assert "trained in 6 epochs (2 min 00 s)" in text and "re-estimated on 256 of these images." in text
    assert "From there: fine-tuned for 1 epoch on the full training split." in text
    assert "The best on val: `finetune/0001/last.pt`." in text
    assert "--weights finetune/0001/last.pt --format pt" in text
    assert (
        "- the supernet: 2 min 00 s\n- the search: 7 slices scored in 38 s\n"
        "- all together: 0.04 CPU core hours (1 thread a trial)\n- fine-tuning: 15 s\n"
    ) in text
    assert "one training of" not in text

    write_top(run, TRIALS[:1], 1, space="s", data="d", imgsz=64)
    text = write_model_card(run, 1).read_text()
    assert "fine-tune before you use them" in text and "`trials/0000/weights.pt`" in text
