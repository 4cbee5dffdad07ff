"""Files of a run that were damaged: what can be found out again is, the rest is one line."""

from __future__ import annotations

import json
import os

import pytest
import yaml

import hello_nas
from experiments.config import Experiment
from experiments.engine.processes import load_records
from experiments.run_folder import RunFolder
from utils.files import own_json
from utils.history import History

GARBAGE = {"torn": b'{"a', "binary": b"\xff\xfe\x00", "list": b"[1, 2]", "deep": b"[" * 100_000, "empty": b""}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_a_damaged_file_is_set_aside_and_counts_as_missing(tmp_path, caplog, content):
    path = tmp_path / "meta.json"
    assert own_json(path) == {} and caplog.text == ""
    path.write_bytes(content)
    assert own_json(path) == {}
    assert f"{path} is damaged and counts as missing" in caplog.text
    assert not path.exists() and (tmp_path / "meta.json.damaged").read_bytes() == content
    path.write_text('{"a": 1}')
    assert own_json(path) == {"a": 1}
    assert own_json(path, lambda value: "b" in value) == {}


@pytest.mark.parametrize(
    "facts",
    [
        {"experiments": 5},
        {"processes": {}},
        {"processes": [7]},
        {"processes": [{"role": "NNI manager", "pid": "1", "started": 1.0, "marker": "x"}]},
        {"processes": [{"pid": 1}]},
    ],
)
def test_records_of_processes_that_make_no_sense_name_none(tmp_path, facts):
    (tmp_path / "nni.json").write_text(json.dumps(facts))
    assert load_records(tmp_path / "nni.json") == ({}, [])


@pytest.fixture
def finished(tiny):
    """A run whose search is done, latency included."""
    arguments = ["run", str(tiny), "search.measure=[latency_ms]", "--run-dir", "run", "--no-ui"]
    assert hello_nas.main([*arguments, "search.top_k=1", "search.baseline=false"]) == 0
    return tiny.parent / "run"


def test_a_run_goes_on_whatever_of_its_files_is_damaged(finished, capsys, caplog):
    """All at once; each is named, and the history is what it was."""
    before = History(finished / "history.jsonl").load()
    damaged = {
        "meta.json": b"{",
        "strategy.json": b"[]",
        "run.json": b"\xff",
        "nni.json": b'{"processes": [1]}',
        "latency.json": b'{"reference_ms": "fast"}',
        "predictor.json": b"{",
        "top_models.json": b"{",
        "top/1.json": b"{",
    }
    for name, content in damaged.items():
        (finished / name).write_bytes(content)
    (finished / "asked.jsonl").unlink()
    again = ["run", "--resume", "--run-dir", str(finished), "--no-ui", "search.max_trials=4"]
    assert hello_nas.main(again) == 0, capsys.readouterr().err
    trials = History(finished / "history.jsonl").load()
    assert trials[:3] == before and [t.number for t in trials] == [0, 1, 2, 3]
    assert all(t.metrics["latency_ms"] > 0 for t in trials)
    for name in ("meta.json", "strategy.json", "nni.json", "latency.json"):
        assert f"{name} is" in caplog.text, name
    assert "asked.jsonl lacked 3 trials" in caplog.text
    for name in ("meta.json", "strategy.json", "run.json", "latency.json", "top_models.json", "top/1.json"):
        json.loads((finished / name).read_text())
    for command in ("status", "report"):
        assert hello_nas.main([command, str(finished)]) == 0


@pytest.mark.parametrize("name", ["run.json", "meta.json"])
@pytest.mark.parametrize(
    "content", [*GARBAGE.values(), b'{"pid": "x", "started": [], "state": 5, "versions": 3}']
)
def test_the_status_of_a_damaged_run_is_no_traceback(tmp_path, capsys, name, content):
    (tmp_path / "history.jsonl").write_text(
        '{"number": 0, "arch": {"a": 1}, "state": "complete", "reward": 1.0}\n'
    )
    (tmp_path / name).write_bytes(content)
    assert hello_nas.main(["status", str(tmp_path)]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: {**raw, "space": 5},
        lambda raw: {k: v for k, v in raw.items() if k != "space"},
        lambda raw: {**raw, "search": [1]},
        lambda raw: [raw],
        lambda raw: "\0",
    ],
    ids=["space", "no space", "search", "list", "binary"],
)
def test_a_damaged_experiment_yaml_is_one_line(tiny, capsys, change):
    folder = tiny.parent / "run"
    folder.mkdir()
    (folder / "own" / "reward").mkdir(parents=True)
    (folder / "own" / "reward" / "mine.py").write_text("")
    raw = change(yaml.safe_load(tiny.read_text()))
    (folder / "experiment.yaml").write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw))
    assert hello_nas.main(["run", "--resume", "--run-dir", str(folder), "--no-ui"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said and "experiment.yaml" in said
    assert os.listdir(folder)


def test_a_torn_line_of_asked_jsonl_stops_no_trial(tmp_path):
    whole = ['{"number": 0, "arch": {"a": 1}}', '{"number": 2, "arch": {"a": 2}, "parents": [0]}']
    lines = [whole[0], '{"number": 1, "ar', "[]", "{}", whole[1]]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines) + "\n")
    run = RunFolder(tmp_path, Experiment(name="x", space="x.yaml"))
    assert run.asked({"a": 2}) == (2, (0,))
