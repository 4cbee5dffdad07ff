"""What the winner has to beat: who is trained, from what, and what a killed run keeps."""

import json

import numpy as np
import pytest
import torch
import yaml

from experiments import controls, retrain, slices
from experiments.config import finetune_settings, load_experiment
from experiments.job import job_of
from experiments.run_folder import RunFolder, cache_beside
from experiments.search import completed_or_failed
from models.weights import read_weights
from tests.experiments.test_supernet import BLOCKS, RETINANET, fails, run
from utils.history import History, Trial, arch_key
from utils.report.results import status
from utils.report.runs import read_run
from utils.steps import steps_of

EVERYONE = ["winner", "unsearched", "smallest", "largest", "random", "random_search"]


@pytest.fixture
def shared(tiny):
    """A supernet of a small RetinaNet, searched by evolution, with controls."""
    blocks = BLOCKS | {"controls": {"which": EVERYONE, "seeds": [0, 1], "within": 0.3}}
    experiment = yaml.safe_load(tiny.read_text()) | blocks | {"name": "shared", "space": "retinanet.yaml"}
    experiment["search"] = {"engine": "inline", "strategy": "pareto", "max_trials": 4, "top_k": 1}
    experiment["steps"] = ["supernet", "search", "finetune", "controls"]
    (tiny.parent / "retinanet.yaml").write_text(yaml.safe_dump(RETINANET))
    (tiny.parent / "shared.yaml").write_text(yaml.safe_dump(experiment))
    return tiny.parent / "shared.yaml"


def table(folder):
    found = json.loads((folder / "controls" / "controls.json").read_text())
    return found, {name: row for row in found["rows"] for name in row["names"]}


@pytest.fixture
def killed_twice(shared, monkeypatch):
    """A run of all controls that was killed in the random search and then in the trainings. Gives its folder,
    the trials of the random search that were finished, and the trainings."""
    score, done = slices.measure_slice, []

    def killed(job, *rest):
        if "random_search" in str(job.run.path):
            done.append(rest[0])
            if len(done) == 3:
                raise KeyboardInterrupt
        return score(job, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(slices, "measure_slice", killed)
        assert run(shared) == 130
    folder = shared.parent / "runs" / "shared"
    beside = folder / "controls" / "random_search"
    kept = [t.key for t in History(beside / "history.jsonl").load()]
    assert kept == [arch_key(arch) for arch in done[:2]]

    train, trained = retrain.trained_in, []

    def stopped(*args):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(args[0])
        return train(*args)

    with monkeypatch.context() as patch:
        patch.setattr(controls, "trained_in", stopped)
        assert run("--run-dir", folder, "--resume") == 130
    assert [t.key for t in History(beside / "history.jsonl").load()][:2] == kept
    return folder, trained


def test_controls_are_fine_tuned_as_the_winner_is_and_a_killed_run_repeats_nothing(killed_twice, capsys):
    folder, trained = killed_twice
    beside = folder / "controls" / "random_search"
    before = {path: (path / "result.json").stat().st_mtime_ns for path in trained}
    stage = steps_of(read_run(folder))[-1]
    rows = table(folder)[0]["rows"]
    parts = sum(len(row["scores"]) for row in rows)
    assert str(stage) == f"controls ({parts} of {2 * len(rows)})" and parts >= 3
    assert run("--run-dir", folder, "--resume") == 0
    said = capsys.readouterr().out
    assert before == {path: (path / "result.json").stat().st_mtime_ns for path in trained}

    job, (found, rows) = job_of(str(folder)), table(folder)
    assert rows.keys() == set(EVERYONE) and found["by"] == "finetune" and found["seeds"] == [0, 1]
    best = json.loads((folder / "top" / "1.json").read_text())
    trials = History(beside / "history.jsonl").load()
    assert len(completed_or_failed(RunFolder.open(beside))) == len(job.run.history.load()) == 4
    top = max((t for t in trials if t.number >= 0), key=lambda t: t.reward)
    assert rows["winner"]["arch"] == best["arch"] and rows["random_search"]["arch"] == top.arch
    assert rows["winner"]["search_val"] == best["metrics"]["map50_95"]
    ends = {"unsearched": job.space.default, "smallest": job.space.smallest, "largest": job.space.largest}
    assert all(rows[name]["arch"] == end() for name, end in ends.items())
    assert abs(rows["random"]["gflops"] / rows["winner"]["gflops"] - 1) <= 0.3
    assert rows["random"]["arch"] != rows["winner"]["arch"]
    # what the step finetune has trained counts as it is; the other seed is a training of its own
    assert rows["winner"]["scores"]["0"] == best["finetuned"]["metrics"]["map50_95"]
    ours = {(row["digest"], seed) for row in found["rows"] for seed in row["scores"]}
    ours -= {(rows[name]["digest"], "0") for name in ("winner", "unsearched")}
    of_digest = {row["digest"]: row for row in found["rows"]}
    assert {p.parent.name for p in folder.glob("controls/*/result.json")} == {f"{d}-{s}" for d, s in ours}
    for digest, seed in ours:
        result = json.loads((folder / "controls" / f"{digest}-{seed}" / "result.json").read_text())
        row = of_digest[digest]
        assert (result["arch"], result["seed"], result["split"]) == (row["arch"], int(seed), "val")
        assert result["train"] == finetune_settings(job.exp).model_dump(mode="json")
        assert result["metrics"]["map50_95"] == row["scores"][seed]
        assert result["started_from"]["share"] == 1
    start = read_weights(folder / "controls" / "slices" / f"{rows['winner']['digest']}.pt")
    theirs = read_weights(folder / "trials" / f"{best['trial']:04d}" / "weights.pt")
    assert all(torch.equal(start.state[k], v) for k, v in theirs.state.items())
    assert said.count("controls, fine-tuned alike for 1 epoch, seeds 0, 1\n") == 1
    assert "the winner: " in status(folder)
    page = (folder / "report.html").read_text()
    assert "What the winner had to beat" in page and "then the controls" in page
    assert list(shared_caches(folder)) == []


def shared_caches(folder):
    """Caches of converted data inside a run: there should be none, runs share one."""
    return folder.rglob(".cache")


@pytest.mark.slow  # ten trainings
def test_where_trials_train_the_controls_are_retrained(tiny, capsys):
    which = "[winner,unsearched,random_search]"
    settings = [f"controls.which={which}", "controls.seeds=[0,3]", "search.strategy=evolution"]
    assert run(tiny, *settings, "steps=[search,controls]", "search.max_trials=3") == 0
    folder = tiny.parent / "runs" / "tiny"
    found, rows = table(folder)
    beside = History(folder / "controls" / "random_search" / "history.jsonl").load()
    assert len([t for t in beside if t.state == "complete"]) == 3
    assert all(t.start == {} for t in beside)
    assert found["by"] == "retrain" and found["seeds"] == [0, 3]
    assert all(len(row["scores"]) == 2 for row in found["rows"])
    # with the same seed on the same data the unsearched network is the same in both searches
    unsearched = History(folder / "history.jsonl").load()[0]
    assert unsearched.metrics["map50_95"] == beside[0].metrics["map50_95"]
    again = {p: p.stat().st_mtime_ns for p in folder.glob("controls/*/result.json")}
    assert run("--run-dir", folder, "--resume", "controls.seeds=[0]") == 0
    assert {p: p.stat().st_mtime_ns for p in folder.glob("controls/*/result.json")} == again
    assert table(folder)[0]["seeds"] == [0]
    # in processes of their own they come out the same
    before = {row["digest"]: row["scores"] for row in found["rows"]}
    (folder / "controls" / f"{found['rows'][0]['digest']}-3" / "result.json").unlink()
    assert run("--run-dir", folder, "--resume", "controls.seeds=[0,3]", "search.concurrency=2") == 0
    assert {row["digest"]: row["scores"] for row in table(folder)[0]["rows"]} == before


def trial(number, arch, reward, **more):
    return Trial(number, arch, {"map50_95": reward}, reward, **more)


def test_equal_networks_are_trained_once():
    ones = [
        controls.Contender(("winner",), {"a": 1}, 4, 0.5),
        controls.Contender(("smallest",), {"a": 2}),
        controls.Contender(("unsearched",), {"a": 1}),
        controls.Contender(("random_search",), {"a": 2}, 7, 0.4),
    ]
    first, second = controls.merged(ones)
    assert (first.names, first.trial, first.searched) == (("winner", "unsearched"), 4, 0.5)
    assert (second.names, second.arch, second.trial) == (("smallest", "random_search"), {"a": 2}, 7)
    assert first.digest != second.digest == ones[1].digest


def test_random_ones_cost_what_the_winner_does(shared, capsys):
    exp = load_experiment(shared, ["controls.random=3", "controls.within=0.2"])
    run_folder = RunFolder.create(shared.parent / "cost", exp)
    job = job_of(str(run_folder.path))
    winner = job.space.random(np.random.default_rng(5))
    cost = job.space.cost(winner, 64)["gflops"]
    drawn = controls.at_cost_of(job, winner)
    assert len({arch_key(arch) for arch in drawn} - {arch_key(winner)}) == len(drawn) == 3
    assert all(abs(job.space.cost(arch, 64)["gflops"] / cost - 1) <= 0.2 for arch in drawn)
    assert drawn == controls.at_cost_of(job, winner)  # the same in a resumed run

    narrow = exp.controls.model_copy(update={"within": 1e-6})
    alone = job.changed(controls=narrow)  # nothing else is as small as the smallest
    assert controls.at_cost_of(alone, job.space.smallest()) == []
    assert "no other architecture was drawn with gflops from " in capsys.readouterr().out


def test_the_serial_winner_is_of_the_trials_before_streams(tiny):
    folder = RunFolder.create(tiny.parent / "serial", load_experiment(tiny))
    for number, reward in enumerate([0.1, 0.3, 0.2, 0.5]):
        folder.history.append(trial(number, {"code": str(number)}, reward))
    assert controls.best_serial(folder).number == 3
    folder.update_meta(phases=[{"step": "reignition", "from": 1}, {"step": "parallel", "from": 3}])
    assert controls.best_serial(folder).number == 1


def test_the_random_search_has_the_same_budget_and_rules(tiny):
    settings = ["search.strategy={name: pareto, crossover_prob: 0.0}", "search.limits={gflops: <= baseline}"]
    settings += ["search.max_seconds=60", "search.inherit=parent"]
    exp = load_experiment(tiny, settings)
    beside = controls.random_experiment(exp, 22)
    changed = {"strategy", "inherit", "screen", "top_k", "max_trials", "max_seconds"}
    before, after = exp.search.model_dump(), beside.search.model_dump()
    assert {key for key in before if before[key] != after[key]} == changed
    assert after["strategy"] == {"name": "random"} and after["max_trials"] == 22
    assert after["max_seconds"] is after["inherit"] is None
    kept = ("space", "data", "imgsz", "seed", "train", "weights", "supernet")
    assert all(getattr(exp, key) == getattr(beside, key) for key in kept)

    folder = RunFolder.create(tiny.parent / "budget", exp)
    for number, state in ((0, "complete"), (-1, "infeasible"), (1, "failed"), (2, "complete")):
        folder.history.append(trial(number, {"n": f"{number}{state}"}, 0.1, state=state))
    assert controls.budget_of(folder) == 3  # what was never trained cost nothing


def test_a_run_in_a_run_shares_its_data(tmp_path, monkeypatch):
    monkeypatch.delenv("HELLO_NAS_CACHE", raising=False)
    beside = tmp_path / "runs" / "a" / "controls" / "random_search"
    assert cache_beside(beside) == beside.parent / ".cache"  # no run around it
    beside.mkdir(parents=True)
    (tmp_path / "runs" / "a" / "experiment.yaml").write_text("name: a\n")
    assert cache_beside(beside) == cache_beside(tmp_path / "runs" / "a") == tmp_path / "runs" / ".cache"


def test_mistakes_are_one_line(tiny, shared, capsys):
    for settings, said in (
        (["controls.which=[winner,wins]"], "unknown controls.which.1 'wins'; did you mean 'winner'?"),
        (["controls.which=[]"], "controls.which"),
        (["controls.seeds=[1,1]"], "each seed once"),
        (["controls.within=0"], "controls.within"),
        (["controls.by=finetune", "steps=[controls]"], "controls.by is 'finetune', but there is no"),
        (["retrain.start=trial", "steps=[controls]"], "retrain.start is 'trial': drop one of the two"),
        (["steps=[controls]", "name=no_search"], "has no top models yet; run its step `search` first"),
    ):
        assert said in fails(capsys, tiny, *settings), settings
