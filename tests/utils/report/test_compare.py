"""The page that compares several runs."""

from __future__ import annotations

import json
from pathlib import Path

import plotly.graph_objects as go
import pytest
import yaml

from hello_nas import main
from tests.utils.report.test_report import Page, on_val, trial
from tests.utils.synthetic import make_run
from utils.errors import UserError
from utils.report.compare import compare_info, compare_rows, draw_fronts, unique_names, write_comparison
from utils.report.runs import read_run

A = [trial(0, 0.50, 4.0), trial(1, 0.60, 5.0), trial(2, 0.55, 3.0), trial(3, 0.40, 4.5)]
B = [trial(0, 0.48, 4.0), trial(1, 0.52, 3.5)]


def both(tmp_path: Path) -> list[Path]:
    return [make_run(tmp_path / "a", A), make_run(tmp_path / "b", B)]


def test_fronts_of_each_run_cheapest_first(tmp_path: Path) -> None:
    info = compare_info([read_run(run) for run in both(tmp_path)])
    assert info.names == ["a", "b"] and info.differ == {} and list(info.fronts) == ["gflops"]
    first, second = info.fronts["gflops"]
    assert [p.number for p in first.points] == [2, 1] and [p.number for p in second.points] == [1]
    assert first.baseline is not None and (first.baseline.x, first.baseline.y) == (4.0, 0.5)
    figure = draw_fronts(info, "gflops")
    go.Figure(figure)
    assert [s["name"] for s in figure["data"]] == ["a", "a, unsearched", "b", "b, unsearched"]
    assert figure["data"][0]["line"]["color"] != figure["data"][2]["line"]["color"]


def test_rows_give_each_winner_its_gain_on_its_own_baseline(tmp_path: Path) -> None:
    runs = both(tmp_path)
    on_val(runs[0], "evaluate", {0: 0.47, 2: 0.49})
    first, second = compare_rows([read_run(run) for run in runs], ["a", "b"])
    assert (first["winner"], first["kind"], first["trials"]) == ("trial 2", "better", "4 of 4")
    assert first["search"] == {"value": "0.5500", "gain": "+10.0 %", "tone": "good"}
    assert first["val"] == {"value": "0.4900", "gain": "+4.3 %", "tone": "good", "note": ""}
    assert first["costs"]["gflops"] == {"value": "3", "gain": "-25.0 %", "tone": "good"}
    assert second["val"]["value"] == "–" and second["unsearched"]["value"] == "0.4800"


def test_what_the_runs_do_not_share_is_said_first(tmp_path: Path) -> None:
    runs = both(tmp_path)
    experiment = yaml.safe_load((runs[1] / "experiment.yaml").read_text())
    (runs[1] / "experiment.yaml").write_text(yaml.safe_dump(experiment | {"imgsz": 96}))
    assert compare_info([read_run(r) for r in runs]).differ == {"image size": ["64", "96"]}
    text = Page(write_comparison(runs).read_text()).text
    assert "These runs differ in image size: their scores are not of the same thing." in text
    meta = json.loads((runs[1] / "meta.json").read_text())
    (runs[1] / "meta.json").write_text(json.dumps(meta | {"start": {"from": "w.pt", "share": 0.7}}))
    assert compare_info([read_run(r) for r in runs]).differ["start"] == ["scratch", "w.pt"]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / place / "run", A) for place in ("x", "y")]
    assert unique_names([read_run(r) for r in runs]) == ["x/run", "y/run"]


def test_runs_that_cannot_be_compared_are_one_line(tmp_path: Path) -> None:
    runs = both(tmp_path)
    text = (runs[1] / "history.jsonl").read_text().replace("map50_95", "top1")
    (runs[1] / "history.jsonl").write_text(text)
    (runs[1] / "experiment.yaml").unlink()
    with pytest.raises(UserError, match="judged by different scores .*a: mAP50-95, .*b: top-1"):
        write_comparison(runs)
    with pytest.raises(UserError, match="given twice"):
        write_comparison([runs[0], runs[0]])


def test_the_command_writes_one_offline_page_and_overwrites_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(run) for run in both(tmp_path)]
    assert main(["report", *runs]) == 0
    path = tmp_path / "a" / "comparison.html"
    assert f"written: {path}" in capsys.readouterr().out
    shown = Page(path.read_text())
    assert "2 runs compared" in shown.text and list(shown.figures["fronts"]) == ["GFLOPs"]
    assert [a for a in shown.addresses if ":" in a] == ["data:,"]
    assert path.stat().st_size < 6_000_000
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    assert main(["report", *runs, "--out", str(mine)]) == 2
    assert "never overwritten" in capsys.readouterr().err and mine.read_text() == "mine"
    assert main(["report", runs[0], "--out", str(mine)]) == 2
    assert "comparing several runs" in capsys.readouterr().err
