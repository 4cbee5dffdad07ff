"""Files and tables of a run, against answers worked out by hand."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.utils.synthetic import make_run, make_trials
from utils.errors import UserError
from utils.history import History, Trial
from utils.report.compare import write_comparison
from utils.report.report import write_report
from utils.report.results import extend_top, load_arch_file, results_table, status, write_csv, write_top
from utils.report.runs import device_hours, duration, read_run, search_cost, top_trials

OBJECTIVES = {"map50_95": "max", "gflops": "min"}


def trial(number: int, score: float, gflops: float, reward: float | None = None, **more: Any) -> Trial:
    fields: dict[str, Any] = {"number": number, "arch": {"width": f"w{number}"}, "seconds": 10.0} | more
    metrics = {"map50_95": score, "gflops": gflops}
    return Trial(metrics=metrics, reward=score if reward is None else reward, **fields)


# baseline; better and dearer; a little better and cheaper; dominated
FOUR = [trial(0, 0.50, 4.0), trial(1, 0.60, 5.0), trial(2, 0.55, 3.0, reward=0.65), trial(3, 0.40, 4.5)]


def test_table_has_a_line_a_network_with_its_gains_in_percent() -> None:
    assert results_table(FOUR, OBJECTIVES).splitlines() == [
        "trial  mAP50-95       GFLOPs         reward",
        "    0  0.5000         4.0000         0.5000         baseline",
        # the front is {1, 2}: two points have no knee, so the better one by the first objective stands
        "    1  0.6000 +20.0%  5.0000 +25.0%  0.6000 +20.0%  best mAP, knee of the front",
        "    2  0.5500 +10.0%  3.0000 -25.0%  0.6500 +30.0%  best reward",
    ]


def test_table_shows_what_val_says_beside_it() -> None:
    lines = results_table(FOUR[:2], OBJECTIVES, val={0: 0.48, 1: 0.36}).splitlines()
    assert lines[0].split() == ["trial", "mAP50-95", "on", "val", "GFLOPs", "reward"]
    assert lines[1].split()[:3] == ["0", "0.5000", "0.4800"]
    assert lines[2].split()[:5] == ["1", "0.6000", "+20.0%", "0.3600", "-25.0%"]
    assert lines[2].endswith("best mAP, best reward, knee of the front") and len(lines) == 3


def test_only_names_reach_beyond_a_narrow_terminal() -> None:
    val = {t.number: 0.5 for t in FOUR}
    for line in results_table(FOUR, OBJECTIVES, val=val).splitlines()[1:]:
        assert max(line.rfind("%"), 0) < 80


def test_table_without_a_baseline_says_so() -> None:
    assert "no complete baseline" in results_table(FOUR[1:], OBJECTIVES)
    assert "baseline" not in results_table(FOUR, OBJECTIVES, baseline=False).splitlines()[1]
    failed = [Trial(0, {}, state="failed", reason="loss became NaN")]
    assert results_table(failed, OBJECTIVES) == "no trial completed (1 in the history)"
    assert results_table([], OBJECTIVES) == "no trial completed (0 in the history)"


def test_table_survives_a_baseline_of_zero() -> None:
    text = results_table([trial(0, 0.0, 4.0), trial(1, 0.5, 4.0)], OBJECTIVES)
    assert "+0.5000" in text and "inf" not in text and "nan" not in text


def test_top_trials_rank_by_the_unrounded_reward_and_the_earlier_on_a_tie() -> None:
    a, b, c = trial(1, 0.5000001, 1), trial(2, 0.5000002, 1), trial(3, 0.5000002, 1)
    assert [t.number for t in top_trials([a, c, b])] == [2, 3, 1]
    assert [t.number for t in top_trials([a, trial(4, 0.5000002, 0.5), c, b])] == [4, 2, 3, 1]


def test_top_trials_leave_out_what_breaks_a_limit_while_something_does_not() -> None:
    baseline, small = replace(trial(0, 0.9, 4), reason="gflops 4 breaks <= 2"), trial(1, 0.5, 1)
    assert [t.number for t in top_trials([baseline, small])] == [1]
    assert top_trials([baseline]) == [baseline]


def test_csv_holds_every_cell_unrounded(tmp_path: Path) -> None:
    score = 0.1 + 0.2  # 0.30000000000000004
    trials = [
        Trial(1, {"b": "k4"}, {"map50_95": 0.25}, 0.125, seconds=2.5, seed=7),
        Trial(0, {"a": "x1.0"}, {"map50_95": score}, score, seconds=1.0, seed=7),
        Trial(2, {"a": "x2.0"}, state="failed", reason='out of memory, "1 GiB"', seconds=3.0),
        Trial(-1, {"a": "x3.0"}, state="infeasible", reason="gflops 9 breaks <= 4"),
    ]
    path = write_csv(tmp_path, trials)
    assert path == tmp_path / "results.csv"
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["number", "state", "reward", "map50_95", "arch.a", "arch.b", "seconds", "seed", "reason"],
        ["0", "complete", "0.30000000000000004", "0.30000000000000004", "x1.0", "", "1.0", "7", ""],
        ["1", "complete", "0.125", "0.25", "", "k4", "2.5", "7", ""],
        ["2", "failed", "", "", "x2.0", "", "3.0", "", 'out of memory, "1 GiB"'],
        ["-1", "infeasible", "", "", "x3.0", "", "0.0", "", "gflops 9 breaks <= 4"],
    ]


def top(folder: Path, trials: list[Trial], k: int) -> list[Path]:
    return write_top(folder, trials, k, space="s.yaml", data="d.yaml", imgsz=64, versions={"torch": "2"})


def test_top_models_have_the_promised_schema(tmp_path: Path) -> None:
    paths = top(tmp_path, FOUR, 3)
    assert [p.name for p in paths] == ["1.json", "2.json", "3.json"]
    assert json.loads(paths[0].read_text()) == {
        "schema": 1,
        "space": "s.yaml",
        "arch": {"width": "w2"},
        "metrics": {"map50_95": 0.55, "gflops": 3.0},
        "reward": 0.65,
        "trial": 2,
        "data": "d.yaml",
        "imgsz": 64,
        "versions": {"torch": "2"},
    }
    records = json.loads((tmp_path / "top_models.json").read_text())
    assert [r["trial"] for r in records] == [2, 1, 0]
    assert records == [load_arch_file(p) for p in paths]


def test_weights_of_another_trial_never_stay_beside_a_new_json(tmp_path: Path) -> None:
    top(tmp_path, FOUR[:2], 2)  # ranks: trial 1, trial 0
    (tmp_path / "top" / "1.pt").write_text("weights of trial 1")
    extend_top(tmp_path, 1, retrained={"metrics": {"map50_95": 0.7}})
    top(tmp_path, FOUR, 2)  # ranks: trial 2, trial 1
    assert not (tmp_path / "top" / "1.pt").exists()
    assert (tmp_path / "top" / "1.trial0001.pt").read_text() == "weights of trial 1"
    assert "retrained" not in load_arch_file(tmp_path / "top" / "1.json")
    assert load_arch_file(tmp_path / "top" / "2.json")["retrained"] == {"metrics": {"map50_95": 0.7}}


def test_fewer_models_than_before_leave_no_stale_rank(tmp_path: Path) -> None:
    top(tmp_path, FOUR, 3)
    assert len(top(tmp_path, FOUR, 1)) == 1
    assert sorted(p.name for p in (tmp_path / "top").iterdir()) == ["1.json"]


GOOD = {"schema": 1, "space": "s.yaml", "arch": {"a": "k4"}, "imgsz": 64}


def test_an_arch_file_needs_only_what_cannot_be_guessed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(GOOD))
    assert load_arch_file(path) == GOOD | {
        "metrics": {},
        "reward": None,
        "trial": None,
        "data": None,
        "versions": {},
    }


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "is not JSON"),
        (b"", "is not JSON"),
        (b"\x80\x02}q\x00(PK\x03\x04\xff\xfe", "binary file"),
        (b'{"schema": 1, "space": "s", "arch": {"a": NaN}, "imgsz": 64}', "NaN is no JSON value"),
        (json.dumps([GOOD, GOOD]).encode(), "a list of 2; give one architecture"),
        (b"3", "expected a JSON object"),
        (json.dumps({"schema": 1, "arch": {}}).encode(), "lacks 'space', 'imgsz'; it has schema, arch"),
        (json.dumps(GOOD | {"schema": 2}).encode(), "schema 2; this version reads schema 1"),
        (json.dumps(GOOD | {"arch": ["k4"]}).encode(), "arch is ['k4']; expected an object"),
        (json.dumps(GOOD | {"arch": {"a": None}}).encode(), "arch value of 'a' is None"),
        (json.dumps(GOOD | {"arch": {"a": True}}).encode(), "arch value of 'a' is True"),
        (json.dumps(GOOD | {"imgsz": "64"}).encode(), "imgsz is '64'; expected a whole number"),
        (json.dumps(GOOD | {"imgsz": -64}).encode(), "imgsz -64; it must be above 0"),
        (json.dumps(GOOD | {"metrics": []}).encode(), "metrics is []"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_arch_file_is_one_line_naming_the_file(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_arch_file(path)
    assert says in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_an_absent_arch_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        load_arch_file(tmp_path / "no.json")
    with pytest.raises(UserError, match="is a folder"):
        load_arch_file(tmp_path)


def test_cost_counts_overlap_once_and_leaves_pauses_out() -> None:
    trials = [
        trial(0, 0.5, 1, started=100.0, seconds=10.0),
        trial(1, 0.5, 1, started=105.0, seconds=10.0),  # overlaps by 5
        Trial(2, {}, state="failed", reason="x", started=1000.0, seconds=4.0),  # after a pause
    ]
    cost = search_cost(trials)
    assert (cost.trials, cost.trial_seconds, cost.wall_seconds) == (3, 24.0, 19.0)
    assert cost.parallel == 24 / 19
    assert search_cost([trial(0, 0.5, 1)]).wall_seconds is None


def test_device_hours_say_what_they_are() -> None:
    cost = search_cost([trial(0, 0.5, 1, started=1.0, seconds=3600.0)])
    assert device_hours(cost, {"device": "cuda:0"}) == "1.00 GPU hours"
    assert device_hours(cost, {"device": "cpu", "threads": 2}) == "2.00 CPU core hours (2 threads a trial)"
    assert device_hours(cost, {}) == "1.00 trial hours"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.2 s"), (43, "43 s"), (59.7, "1 min 00 s"), (725, "12 min 05 s"), (12_000, "3 h 20 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_status_of_a_killed_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", make_trials(3, infeasible=2))
    asked = [json.dumps({"number": n, "arch": {}, "parents": []}) for n in range(5)]
    (run / "asked.jsonl").write_text("\n".join(asked) + "\n{torn")
    text = status(run)
    assert "killed, process 999999999 is gone; go on with: " in text and text.splitlines()[1].endswith(
        " --resume"
    )
    assert "3 of 24: 3 complete, 0 failed, 2 unfinished; 2 infeasible" in text
    assert not any(line.startswith("running") for line in text.splitlines())  # nothing does
    assert "baseline" in text and "best mAP" in text
    assert len(text.splitlines()) < 40


def test_status_of_a_live_run_names_what_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", make_trials(9))
    (run / "run.json").write_text(json.dumps({"pid": os.getpid(), "started": 4e9, "state": "running"}))
    (run / "asked.jsonl").write_text('{"number": 8}\n{"number": 9}\n')
    text = status(run)
    assert f"running, process {os.getpid()}" in text
    assert "running     trial 9: begun" in text
    assert "    7  out of memory" in text
    (run / "asked.jsonl").write_text('{"number": 8}\n')
    assert not any(line.startswith("running") for line in status(run).splitlines())  # between two trials


def test_a_pid_that_was_given_to_a_later_process_is_not_ours(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", make_trials(1))
    (run / "run.json").write_text(json.dumps({"pid": os.getpid(), "started": 1000.0, "state": "running"}))
    assert "killed" in status(run)


def test_status_before_the_first_trial_and_of_a_foreign_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "new", [])
    assert "0 of 24: 0 complete" in status(run)
    bare = make_run(tmp_path / "bare", make_trials(3), bare=True)
    assert "unknown (no run.json)" in status(bare)


def test_a_retraining_says_how_far_it_is_and_is_no_run_to_report(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text("name: mine-1\ntrain: {epochs: 4}\n")
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "log.csv").write_text("epoch,loss,map50_95,seconds\n1,2.5,0.125,3\n2,1.5,0.25,6\n")
    assert "training    epoch 2/4, loss 1.5, mAP50-95 0.2500, 6.0 s left" in status(tmp_path).splitlines()
    (tmp_path / "result.json").write_text('{"metrics": {"map50_95": 0.375, "gflops": 0.5}}')
    assert status(tmp_path).splitlines()[-1] == "on val      map50_95 0.375, gflops 0.5"
    for write in (write_report, lambda folder: write_comparison([folder, folder])):
        with pytest.raises(UserError, match="is a retraining: its scores are in its result.json"):
            write(tmp_path)


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", make_trials(3, infeasible=0), bare=True)
    with open(run / "history.jsonl", "a") as file:
        file.write(make_trials(4)[3].to_json()[:100])
    assert [t.number for t in read_run(run).trials] == [0, 1, 2]


def test_reading_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        read_run(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no history.jsonl"):
        read_run(tmp_path)
    (tmp_path / "history.jsonl").write_text("not json\n")
    with pytest.raises(UserError, match="no trial that can be read"):
        read_run(tmp_path)


def test_damaged_side_files_do_not_hide_the_history(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", make_trials(2, infeasible=0))
    for name in ("experiment.yaml", "run.json", "meta.json"):
        (run / name).write_bytes(b"\xff\xfe{[")
    assert len(read_run(run).trials) == 2
    (run / "experiment.yaml").write_text("search: [1, 2]\nname: 3\n")
    assert read_run(run / "history.jsonl").name == "3"


def test_objectives_are_guessed_from_the_history_alone(tmp_path: Path) -> None:
    def guess(trials: list[Trial]) -> dict[str, str]:
        path = tmp_path / "history.jsonl"
        path.write_text("")
        for t in trials:
            History(path).append(t)
        return read_run(tmp_path).objectives

    assert guess([trial(0, 0.5, 1.0)]) == {"map50_95": "max", "gflops": "min"}
    only_params = replace(trial(0, 0.5, 1.0), metrics={"map50_95": 0.5, "params_m": 2.0})
    assert guess([only_params]) == {"map50_95": "max", "params_m": "min"}
    assert guess([replace(trial(0, 0.5, 1.0), metrics={"top1": 0.9})]) == {"top1": "max"}


def test_reading_results_needs_no_torch() -> None:
    modules = "import sys, utils.report.results, utils.report.report"
    code = f"{modules}; print('torch' in sys.modules, 'sklearn' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
