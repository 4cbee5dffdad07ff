"""Serial search, reignition, streams and retraining as one experiment, also when it is killed in each."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml

import hello_nas
from experiments import serial
from experiments.config import load_experiment
from experiments.run_folder import RunFolder
from experiments.strategies import population_of
from models.weights import read_weights
from tests.models.test_serial_space import SMALL
from utils.errors import UserError
from utils.history import History, Trial
from utils.pareto import trials_without_gain
from utils.report.results import status
from utils.report.runs import read_run
from utils.run_files import Files
from utils.steps import steps_line

torch.set_num_threads(1)
PHASES = ["search", "reignition", "parallel", "retrain"]
BLOCKS = {
    "name": "serial",
    "space": "codes.yaml",
    "imgsz": 64,
    "train": {"epochs": 1, "batch": 12, "lr": 0.001, "inherited_lr": 0.25},
    "pretrain": {"imgsz": 64, "train": {"epochs": 1}},
    "search": {
        "engine": "inline",
        "strategy": {"name": "pareto", "start": "front", "crossover_prob": 0.0, "population_size": 1},
        "inherit": "parent",
        "max_trials": 2,
        "top_k": 1,
        "objectives": {"map50_95": "max", "params_m": "min"},
    },
    "reignition": {"patience": 1, "times": 2, "max_trials": 1},
    "parallel": {"max_trials": 1},
    "retrain": {"start": "trial", "inherited_lr": None},
    "steps": PHASES,
}


@pytest.fixture
def codes(tiny):
    """The whole of SP-NAS on networks of a few thousand parameters; gives its file."""
    experiment = yaml.safe_load(tiny.read_text()) | BLOCKS
    tiny.with_name("codes.yaml").write_text(yaml.safe_dump(SMALL | {"name": "codes"}))
    tiny.with_name("spnas.yaml").write_text(yaml.safe_dump(experiment))
    return tiny.with_name("spnas.yaml")


@pytest.fixture
def stalled(monkeypatch):
    """Every front has stalled, however it grew."""
    monkeypatch.setattr(serial, "trials_without_gain", lambda trials, objectives: 100)


def run(*arguments):
    return hello_nas.main(["run", *map(str, arguments)])


def told(folder):
    trials = History(folder / "history.jsonl").load()
    return [(t.number, t.arch, timeless(t.metrics), t.parents, t.start) for t in trials]


def timeless(metrics):
    return {key: value for key, value in metrics.items() if key != "val_ms_per_image"}


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not_in_every_phase(codes, stalled, monkeypatch):
    assert run(codes, "--run-dir", "whole") == 0
    whole = Path("whole").resolve()
    trials = History(whole / "history.jsonl").load()
    assert [t.number for t in trials] == list(range(5)) and all(t.state == "complete" for t in trials)
    assert read_run(whole).phases == [("reignition", 2), ("reignition", 3), ("parallel", 4)]
    assert steps_line(read_run(whole)) == "done: search, reignition, parallel, retrain"
    assert "trials      5 of 5: 5 complete" in status(whole)

    killed = Path("killed").resolve()
    for module, name, call in (
        ("experiments.evaluators", "train_and_measure", 2),  # in the search
        ("experiments.pretrain", "train_in_full", 1),  # while a backbone learns to classify
        ("experiments.serial", "save_weights", 1),  # before it is put into its detector
        ("experiments.evaluators", "train_and_measure", 1),  # in the search that goes on
        ("experiments.evaluators", "train_and_measure", 2),  # among the streams
        ("experiments.training", "train", 1),  # in the retraining
    ):
        die_in(monkeypatch, module, name, call)
        before = told(killed) if killed.exists() else []
        arguments = ("--resume", "--run-dir", killed) if killed.exists() else (codes, "--run-dir", killed)
        assert run(*arguments) == 130, (module, name)
        monkeypatch.undo()
        monkeypatch.setattr(serial, "trials_without_gain", lambda trials, objectives: 100)
        monkeypatch.chdir(killed.parent)
        assert told(killed)[: len(before)] == before
    assert run("--resume", "--run-dir", killed) == 0
    assert told(killed) == told(whole)
    results = [
        json.loads(p.read_text()) for f in (whole, killed) for p in sorted(f.glob("retrain/*/result.json"))
    ]
    half = len(results) // 2
    assert half and [timeless(r["metrics"]) for r in results[:half]] == [
        timeless(r["metrics"]) for r in results[half:]
    ]


@pytest.mark.slow
def test_a_round_that_is_killed_goes_on_where_it_was(codes, stalled, monkeypatch):
    options = ("--steps", "search,reignition", "reignition.times=1", "reignition.max_trials=2")
    assert run(codes, *options, "--run-dir", "whole") == 0
    files = Files(Path("whole").resolve())
    trials = History(files.folder / "history.jsonl").load()
    assert [t.start["from"] for t in trials[2:]] == [f"trial {t.parents[0]}, reignited" for t in trials[2:]][
        :2
    ]
    for number in {t.parents[0] for t in trials[2:]}:
        reignited = files.reignited(number)
        kept, learnt = (
            read_weights(p).state for p in (files.of_trial("trials", number) / "weights.pt", reignited)
        )
        classifier = read_weights(reignited.parent / "classifier/last.pt").state
        for name, tensor in learnt.items():
            assert torch.equal(tensor, (classifier if name.startswith("backbone.") else kept)[name]), name
        assert any(not torch.equal(t, kept[n]) for n, t in learnt.items() if n.startswith("backbone."))
    die_in(monkeypatch, "experiments.serial", "save_weights", 1)
    assert run(codes, *options, "--run-dir", "killed") == 130
    die_in(monkeypatch, "experiments.evaluators", "train_and_measure", 1)
    assert run("--resume", "--run-dir", "killed") == 130
    assert run("--resume", "--run-dir", "killed") == 0
    assert told(Path("killed")) == told(Path("whole"))
    assert "trials      4 of 4: 4 complete" in status(Path("killed"))


@pytest.mark.slow
def test_a_moved_run_goes_on(codes, stalled, monkeypatch, capsys):
    """Resumed, retrained by the step and by the command, and reported; and no file names the old place."""
    options = ("search.max_trials=1", "reignition.times=1", "--steps")
    die_in(monkeypatch, "experiments.evaluators", "train_and_measure", 2)
    assert run(codes, *options, "search,reignition", "--run-dir", "old/there") == 130
    old, new = Path("old/there").resolve(), Path("new").resolve()
    old.rename(new)
    assert run("--resume", "--run-dir", new, *options, "search,reignition,retrain") == 0
    assert not old.exists()
    files = Files(new)
    trials = History(new / "history.jsonl").load()
    assert [t.state for t in trials] == ["complete"] * 2
    for folder, json_file in ((p.parent, p) for p in new.glob("*/*/start.json")):
        said = Path(json.loads(json_file.read_text())["path"])
        assert not said.is_absolute() and (folder / said).is_file(), json_file
    start = json.loads((files.of_trial("trials", 1) / "start.json").read_text())["path"]
    assert start == "../../reignition/0000/weights.pt"
    retrained = json.loads(next(new.glob("retrain/0000/result.json")).read_text())
    assert retrained["started_from"]["path"] == "../../trials/0000/weights.pt"
    assert hello_nas.main(["retrain", str(new / "top/1.json"), "--out", str(new.parent / "again")]) == 0
    assert hello_nas.main(["report", str(new)]) == 0 and (new / "report.html").is_file()
    ours = [p for p in new.rglob("*.json*") if str(old) in p.read_text()]
    assert ours == [], capsys.readouterr().out


def test_an_interrupted_retraining_knows_weights_that_were_moved(codes, stalled, monkeypatch):
    assert run(codes, "--steps", "search", "search.max_trials=1", "--run-dir", "r") == 0
    arch, weights = "r/top/1.json", Path("r/trials/0000/weights.pt")
    die_in(monkeypatch, "experiments.training", "train", 1)
    command = ["retrain", arch, "--out", "out", "train.epochs=1"]
    assert hello_nas.main([*command, "--weights", str(weights)]) == 130
    weights.rename("elsewhere.pt")
    Path("other.pt").write_bytes(b"another one")
    assert hello_nas.main([*command, "--weights", "other.pt", "--resume"]) == 2
    assert hello_nas.main([*command, "--weights", "elsewhere.pt", "--resume"]) == 0
    assert json.loads(Path("out/result.json").read_text())["start"] == "weights"


@pytest.mark.slow
def test_retraining_from_trials_from_reignited_ones_and_from_scratch(codes):
    """What a retraining began with, its result says; another start is another training."""
    options = ("--steps", "search,retrain", "search.max_trials=1", "train.epochs=1")

    def started():
        result = json.loads(Path("r/retrain/0000/result.json").read_text())
        return result["start"], (result["started_from"] or {}).get("path"), result["seconds"]

    assert run(codes, *options, "retrain.start=reignited", "--run-dir", "r") == 0
    first = started()
    assert first[:2] == ("reignited", "../../reignition/0000/weights.pt")
    classifier, detector = (
        read_weights(Path("r/reignition/0000") / f).state for f in ("classifier/last.pt", "weights.pt")
    )
    backbone = [name for name in detector if name.startswith("backbone.")]
    assert backbone and all(torch.equal(detector[n], classifier[n]) for n in backbone)
    assert run("--resume", "--run-dir", "r", *options, "retrain.start=reignited") == 0
    assert started() == first
    assert run("--resume", "--run-dir", "r", *options, "retrain.start=trial") == 0
    second = started()
    assert second[:2] == ("trial", "../../trials/0000/weights.pt")
    assert run("--resume", "--run-dir", "r", *options, "retrain={}") == 0
    assert started()[:2] == ("scratch", None)


def die_in(monkeypatch, module, name, call):
    """The `call`-th call of a function from now on is a Ctrl-C."""
    real, seen = getattr(import_module(module), name), []

    def dies(*args, **kwargs):
        seen.append(name)
        if len(seen) == call:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(f"{module}.{name}", dies)


def test_a_front_that_grows_is_left_alone(codes, capsys):
    assert run(codes, "--steps", "search,reignition", "reignition.patience=9", "search.max_trials=1") == 0
    assert "the front did not stall: 0 trials since it last grew, 9 would do" in capsys.readouterr().out
    folder = Path("runs/serial").resolve()
    assert not (folder / "reignition").exists() and read_run(folder).phases == []
    (folder / "trials/0000/weights.pt").unlink()
    assert run("--resume", "--run-dir", folder, "--steps", "reignition,retrain", "reignition.patience=1") == 2
    assert "its start, " in (said := capsys.readouterr().err) and "weights.pt, is missing" in said


def test_a_stall_is_counted_in_the_ledger():
    objectives = {"map50_95": "max", "gflops": "min"}
    points = [(0.5, 2.0), (0.6, 2.0), (0.4, 3.0), (0.1, 1.0), (0.5, 2.5), (0.6, 2.1)]
    trials = [Trial(n, {}, {"map50_95": m, "gflops": g}, m, "complete") for n, (m, g) in enumerate(points)]
    assert [trials_without_gain(trials[: n + 1], objectives) for n in range(6)] == [0, 0, 1, 0, 1, 2]
    failed = Trial(6, {}, state="failed", reason="loss became nan")
    assert trials_without_gain([*trials, failed], objectives) == 3
    assert population_of({"population_size": 4}, 100) == 4 and population_of({}, 12) == 4


@pytest.mark.parametrize(
    ("history", "said"),
    [
        ([], "nothing was searched yet; list the step search before it"),
        (
            [Trial(0, {"code": "b_11-21-2-2"}, state="failed", reason="loss became nan")],
            "all 1 trials .* nan",
        ),
    ],
)
def test_a_front_that_stays_empty_says_why(codes, history, said):
    folder = RunFolder.create(Path("r"), load_experiment(codes))
    for trial in history:
        folder.history.append(trial)
    with pytest.raises(UserError, match=f"no front to go on from: {said}"):
        serial.reignition(folder)


def test_a_parent_without_weights_is_not_reignited(codes, stalled):
    folder = RunFolder.create(Path("r"), load_experiment(codes))
    metrics = {"map50_95": 0.5, "params_m": 1.0}
    folder.history.append(Trial(0, {"code": "b_11-21-2-2"}, metrics, 0.5, "complete"))
    with pytest.raises(UserError, match="cannot reignite trial 0: no trials/0000/weights.pt"):
        serial.reignition(folder)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("search.inherit=null", "the step reignition needs `search.inherit: parent`"),
        ("retrain.start=trail", "retrain.start is 'trail'; expected `trial`"),
        ("reignition.times=3", "reignition.times"),
        (
            "pretrain={winners: true, train: {epochs: 1}}",
            "both train the backbones as classifiers; drop one of the two",
        ),
        (
            "space=" + str(Path("models/bignas_retinanet_small.yaml").resolve()),
            "needs a space of serial codes",
        ),
    ],
)
def test_what_an_experiment_gets_wrong(codes, capsys, override, said):
    start = ["retrain.start=reignited"] if "winners" in override else []
    assert run(codes, override, *start, "--steps", "reignition", "--run-dir", "r") == 2
    assert said in capsys.readouterr().err
