"""What a search from trained weights begins with: the archs that drift least for their cost."""

import json

import numpy as np
import pytest

from experiments import screen
from experiments.config import load_experiment
from experiments.job import Job
from experiments.run_folder import RunFolder
from hello_nas import main
from models.networks import build, open_any_space
from models.weights import save_weights
from tests.models.elastic_kinds import scramble
from utils.history import Trial


@pytest.fixture
def trained(tiny):
    space = open_any_space("thin_nas.yaml", nc=10)
    save_weights(tiny.parent / "w.pt", scramble(build(space, space.default())), space, {}, imgsz=64)
    return tiny.parent / "w.pt"


def experiment(tiny, *overrides):
    return load_experiment(
        tiny, ["weights=w.pt", "search.strategy=pareto", "search.screen=4", "search.max_trials=8", *overrides]
    )


def job(tiny, exp):
    return Job.open(RunFolder.create(tiny.parent / "r", exp, "another"))


@pytest.mark.slow
def test_it_begins_with_cheaper_archs_that_drift_less_than_others_of_their_cost(tiny, trained):
    found = job(tiny, experiment(tiny, "search.screen=6", "search.limits.gflops=<= 0.97 baseline"))
    first = screen.screened(found)
    rows = json.loads((tiny.parent / "r" / "screened.json").read_text())
    begins = [row for row in rows if row["begins"]]
    assert sorted(first, key=str) == sorted((r["arch"] for r in begins), key=str) and 1 < len(first) <= 4
    assert screen.screened(found) == first  # from the file
    space, full = found.space, found.space.cost(found.space.default(), 64)["gflops"]
    costs = [space.cost(arch, 64)["gflops"] for arch in first]
    assert all(cost <= 0.97 * full for cost in costs) and costs == sorted(costs, reverse=True)
    drifts = [row["drift"] for row in rows if row["begins"]]
    look, rng = found.look, np.random.default_rng(0)
    others = []
    while len(others) < 4:
        arch = space.random(rng)
        if 0.9 * costs[-1] <= space.cost(arch, 64)["gflops"] <= 0.97 * full:
            others.append(look.drift(arch))
    assert drifts[0] < np.median(others)
    assert look.drift(space.default()) == 0.0


@pytest.mark.slow
def test_a_search_runs_them_first_and_resumes_with_them(tiny, trained):
    said = [
        "weights=w.pt",
        "search.strategy=pareto",
        "search.max_trials=3",
        "search.screen=3",
        "train.epochs=1",
    ]
    assert main(["run", str(tiny), "--run-dir", "r", "--no-ui", *said]) == 0
    rows = json.loads((tiny.parent / "r" / "screened.json").read_text())
    trials = RunFolder.open(tiny.parent / "r").history.load()
    assert [t.arch for t in trials if t.number == 1] == [row["arch"] for row in rows if row["begins"]]
    said[2] = "search.max_trials=4"
    assert main(["run", str(tiny), "--run-dir", "r", "--no-ui", "--resume", *said]) == 0
    again = RunFolder.open(tiny.parent / "r").history.load()
    assert [t.arch for t in again][: len(trials)] == [t.arch for t in trials] and len(again) > len(trials)


def test_a_limit_of_drift_keeps_a_search_near_the_weights(tiny, trained, capsys):
    said = ["search.strategy=pareto", "search.max_trials=3", "search.screen=2", "train.epochs=1"]
    limit = "search.limits={drift: <= 0.3}"
    assert main(["run", str(tiny), "--run-dir", "r", "--no-ui", "weights=w.pt", limit, *said]) == 0
    run = RunFolder.open(tiny.parent / "r")
    trials = [t for t in run.history.load() if t.state == "complete"]
    assert len(trials) == 3 and trials[0].metrics["drift"] == 0.0
    look = Job.open(run).look
    assert [t.metrics["drift"] for t in trials[1:]] == [look.drift(t.arch) for t in trials[1:]]
    assert all(0 <= t.metrics["drift"] <= 0.3 for t in trials[1:])  # what only grows stays as it was
    refused = [t.reason for t in run.history.load() if t.state == "infeasible"]
    assert any(reason.startswith("drift ") and reason.endswith("breaks <= 0.3") for reason in refused)
    assert "limits: drift <= 0.3, which is measured of each architecture" in capsys.readouterr().out
    assert main(["run", str(tiny), "--run-dir", "s", "--no-ui", limit, *said]) == 2
    assert "there are none: give weights=FILE" in capsys.readouterr().err


@pytest.mark.parametrize("override", ["search.screen=0", "search.strategy=random", "search.inherit=parent"])
def test_what_has_nothing_to_keep_is_not_screened(tiny, trained, override):
    assert screen.screens(experiment(tiny))
    assert not screen.screens(experiment(tiny, override))


def test_the_slices_of_a_supernet_with_weights_are_screened_too(tiny, trained):
    assert screen.screens(experiment(tiny, "supernet={}"))


def test_by_default_four_are_looked_at_for_each_trial(tiny, trained):
    exp = load_experiment(tiny, ["weights=w.pt", "search.strategy=pareto"])
    assert (
        screen.screens(exp)
        and screen.looks(exp) == 4
        and screen.looks(experiment(tiny, "search.screen=2")) == 2
    )


def test_a_run_that_began_without_a_screen_goes_on_without(tiny, trained, monkeypatch):
    found = job(tiny, experiment(tiny, "search.screen=0"))
    found.run.resume_with(
        load_experiment(tiny, ["weights=w.pt", "search.strategy=pareto", "search.max_trials=8"])
    )
    assert not screen.screens(found.run.experiment)
    found = Job.open(
        RunFolder.create(tiny.parent / "old", experiment(tiny), "another")
    )  # of before there was one
    found.run.history.append(Trial(0, found.space.default()))
    monkeypatch.setattr(screen, "_screen", lambda job: pytest.fail("screened"))
    assert screen.screened(found) == []


def test_without_weights_nothing_is_screened(tiny):
    assert not screen.screens(load_experiment(tiny, ["search.strategy=pareto", "search.screen=4"]))
