"""Two runs that were killed in their search, as an earlier version left them: today's reads them and goes on.

tests/fixtures/begun/trials   a YOLO space by the trial, 3 trials of 6, 4 epochs on 96 scenes, without weights
tests/fixtures/begun/slices   an elastic RetinaNet, its supernet trained, 3 slices of 6 scored
tests/fixtures/begun/next.json  what the same searches asked next where nobody killed them
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

import hello_nas
from tests.some import some

ROOT = Path(hello_nas.__file__).parent
BEGUN = ROOT / "tests" / "fixtures" / "begun"
RUNS = ("trials", "slices")


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """Gives the function that makes a copy of a run, with the paths of this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELLO_NAS_CACHE", str(tmp_path / "cache"))

    def copy(name):
        folder = tmp_path / "runs" / name
        shutil.copytree(BEGUN / name, folder)
        shutil.copy(BEGUN / "digits.yaml", tmp_path)
        for file in ("experiment.yaml", "meta.json"):
            text = (folder / file).read_text()
            (folder / file).write_text(text.replace("HERE", str(tmp_path)).replace("ROOT", str(ROOT)))
        return folder

    return copy


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", RUNS)
def test_status_and_report_of_a_run_begun_before(begun, name, capsys):
    folder = begun(name)
    assert hello_nas.main(["status", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "killed" in said and "--resume" in said
    assert "3 of 6: 3 complete, 0 failed; 0 infeasible" in said
    assert re.search(r"^ +0 .*  baseline$", said, re.M)
    history = (folder / "history.jsonl").read_bytes()
    assert hello_nas.main(["report", str(folder)]) == 0
    assert (folder / "report.html").stat().st_size > 100_000 and (folder / "pareto.png").is_file()
    rows = (folder / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 3
    for row, trial in zip(rows[1:], lines(folder / "history.jsonl"), strict=True):
        assert str(trial["reward"]) in row
    assert (folder / "history.jsonl").read_bytes() == history


@pytest.mark.parametrize("name", some(RUNS, ["trials"]))
def test_a_run_begun_before_goes_on_as_if_nobody_had_killed_it(begun, name, capsys):
    folder = begun(name)
    before = {p: p.read_bytes() for p in (folder / "history.jsonl", folder / "asked.jsonl")}
    weights = folder / "supernet" / "weights.pt"
    trained = weights.stat().st_mtime_ns if weights.is_file() else None
    assert hello_nas.main(["run", "--run-dir", str(folder), "--resume", "--no-ui"]) == 0, capsys.readouterr()
    for path, written in before.items():
        assert path.read_bytes().startswith(written)
    asked = lines(folder / "asked.jsonl")
    assert asked[3] == json.loads((BEGUN / "next.json").read_text())[name]
    done = lines(folder / "history.jsonl")
    assert [t["number"] for t in done] == [t["number"] for t in asked] == list(range(6))
    assert len({json.dumps(t["arch"], sort_keys=True) for t in done}) == 6
    assert [t["arch"] for t in done] == [t["arch"] for t in asked]
    assert all(t["state"] == "complete" for t in done)
    assert (weights.stat().st_mtime_ns if weights.is_file() else None) == trained
    best = max(done, key=lambda t: t["reward"])
    assert json.loads((folder / "top" / "1.json").read_text())["trial"] == best["number"]
    assert hello_nas.main(["status", str(folder)]) == 0
    assert "state       finished" in capsys.readouterr().out


def test_the_fixtures_hold_no_path_of_a_machine():
    for path in BEGUN.rglob("*.*"):
        if path.suffix in (".json", ".jsonl", ".yaml", ".txt"):
            text = path.read_text()
            assert "/home/" not in text and os.sep + "tmp" + os.sep not in text, path
