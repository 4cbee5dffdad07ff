"""What the file that ships scores and takes, in trials, of finalists and by the command."""

import json
from pathlib import Path

import pytest
import yaml

from experiments import measures, shipped
from experiments.config import load_experiment, wanted_metrics
from experiments.findings import evaluate_top
from experiments.job import costs, job_of
from experiments.run import check_names
from experiments.run_folder import RunFolder
from experiments.search import search
from hello_nas import main
from tests.experiments.test_handover import DIGITS, SPACE
from utils import file_measures
from utils.errors import UserError
from utils.target import Calibration, Latency
from utils.timing import RUNTIMES

MEASURE = ["onnx_ms", "int8_ms", "int8_map50_95", "onnx_map50_95"]


@pytest.fixture
def timings(monkeypatch):
    """What the target says: a millisecond for each ten kilobytes of a file; `said[metric]` makes it void."""
    said: dict[str, str] = {}
    calls: list[list[str]] = []

    def time_files(target, files, side, references, calibration):
        calls.append(sorted(files))
        size = {name: path.stat().st_size / 1e4 for name, (path, _) in files.items()}
        return {n: Latency(None if n in said else size[n], 0.1, said.get(n, "")) for n in files}

    monkeypatch.setattr(shipped, "time_files", time_files)
    monkeypatch.setattr(shipped, "calibrate", lambda *_: Calibration({"onnx": 1.0}, 64, "a board", {}))
    monkeypatch.setattr(shipped, "PAUSE", 0.0)
    return said, calls


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(DIGITS))
    search = {
        "measure": MEASURE,
        "target": {"calibration": 8, "predict": 0},
        "objectives": {"int8_map50_95": "max"},
    }
    search["objectives"]["int8_ms"] = "min"
    raw = {"name": "x", "space": "space.yaml", "data": "digits.yaml", "device": "cpu", "threads": 1}
    raw |= {
        "train": {"epochs": 1, "batch": 8},
        "search": search | {"engine": "inline", "top_k": 1, "max_trials": 1},
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(raw))
    made = RunFolder.create(tmp_path / "runs" / "x", check_names(load_experiment("x.yaml")))
    job_of.cache_clear()
    return made


def test_a_trial_a_finalist_and_the_command_measure_the_file(run, timings, capsys):
    said, calls = timings
    search(run)
    job = job_of(str(run.path))
    (trial,) = run.history.load()
    assert trial.state == "complete", trial.reason
    found = trial.metrics
    assert set(MEASURE) <= set(found) and found["int8_ms"] != found["onnx_ms"] > 0
    assert found["onnx_map50_95"] == pytest.approx(found["map50_95"], abs=1e-3)
    assert "onnx_ms_spread" in found
    # Timed once for an arch, however often its costs are asked for.
    before = len(calls)
    assert costs(job, trial.arch)["int8_ms"] == found["int8_ms"] and len(calls) == before

    said["int8_ms"] = "busy: very"
    evaluate_top(run)
    assert "int8_ms is void: busy: very" in capsys.readouterr().out
    assert calls[-3:] == [["int8_ms", "onnx_ms"], ["int8_ms"], ["int8_ms"]]  # three times, alone
    record = json.loads((run.path / "top" / "1.json").read_text())["evaluated"]
    assert record["void"] == {"int8_ms": "busy: very"} and record["metrics"]["onnx_ms"] > 0
    assert "int8_ms" not in record["metrics"] and "int8_map50_95" in record["metrics"]

    arguments = ["measure", str(run.path / "top" / "1.json"), "--out", "m.json", "--split", "search_val"]
    assert main(arguments) == 0
    told = json.loads(Path("m.json").read_text())
    assert told["metrics"]["int8_map50_95"] == pytest.approx(found["int8_map50_95"], abs=0.02)
    assert told["target"]["hardware"] == "a board" and told["void"] == {"int8_ms": "busy: very"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split()[0] == "int8" and lines[-1].endswith("void: busy: very")


def test_a_latency_that_a_search_needs_and_that_is_void_fails_the_trial(run, timings):
    timings[0]["int8_ms"] = "busy: very"
    job = job_of(str(run.path))
    with pytest.raises(UserError) as error:
        costs(job, job.space.default())
    assert str(error.value) == (
        "target this machine: int8_ms is void: busy: very (3 times); leave it to itself, then go on"
    )


def test_metrics_of_files_are_names_like_others(run):
    exp = run.experiment
    assert wanted_metrics(exp) >= {*MEASURE, "gflops"}

    def changed(**search):
        return exp.model_copy(update={"search": exp.search.model_copy(update=search)})

    for wrong in ("int8_mss", "int8_top1", "openvino"):
        with pytest.raises(UserError, match=f"unknown metric to measure '{wrong}'; did you mean"):
            check_names(changed(measure=[wrong]))
    limited = changed(limits={"int8_ms": "<= 0.8 baseline"}, measure=[])
    assert "int8_ms" in wanted_metrics(check_names(limited))


def test_a_missing_package_is_said_with_what_to_install(run, monkeypatch):
    monkeypatch.setattr(file_measures, "find_spec", lambda name: None if name == "nncf" else name)
    exp = run.experiment
    search = exp.search.model_copy(update={"measure": ["openvino_int8_map50_95"]})
    with pytest.raises(UserError, match="not installed: pip install openvino nncf$"):
        check_names(exp.model_copy(update={"search": search}))
    file_measures.check_packages(file_measures.kinds_of(["openvino_ms"], "map50_95"))


def test_every_kind_has_a_runtime_and_names_of_its_own():
    names = [n for k in file_measures.KINDS for n in (k.ms, k.quality("map50_95"))]
    assert len(set(names)) == len(names) and {k.runtime for k in file_measures.KINDS} == set(RUNTIMES)
    assert measures.table(file_measures.KINDS[:1], "map50_95", {"onnx_map50_95": 0.5}, {}).endswith(
        "not measured"
    )
