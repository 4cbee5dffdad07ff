"""Trials that stop in time: the rule by hand, and whole searches with it."""

import json
from dataclasses import replace

import numpy as np
import pytest

import hello_nas
from experiments import evaluators, training
from experiments.config import EarlyStop, load_experiment
from experiments.early_stop import Judge, judge_of, no_dearer
from experiments.job import job_of
from experiments.run_folder import RunFolder
from utils.errors import UserError
from utils.history import History, Trial
from utils.report.results import status
from utils.report.runs import read_run, top_trials
from utils.report.summary import cost_rows, counts_line
from utils.training.train import TrainResult

KEY = "map50_95"


def curve(*values):
    return [{"epoch": i, "loss": 1.0} | ({} if v is None else {KEY: v}) for i, v in enumerate(values, 1)]


def rival(number, *values, gflops=1.0):
    metrics = {KEY: values[-1], "gflops": gflops}
    return Trial(number, {"a": number}, metrics, values[-1], curve=curve(*values))


RIVALS = [rival(0, 0.1, 0.3, 0.5), rival(1, 0.2, 0.2, 0.2), rival(2, 0.4, 0.8, 0.9), rival(3, 0.0, 0.1, 0.5)]
# their means after two epochs: .2, .2, .6, .05, so the median is .2


@pytest.mark.parametrize(
    ("values", "stops"),
    [
        ((0.19, 0.1), True),  # the best so far counts
        ((0.2, 0.1), False),  # the median itself is enough
        ((0.1, 0.21), False),
        ((0.0,), False),  # every trial has `after` epochs
        ((0.0, None), False),  # an epoch that was not scored decides nothing
        ((0.0, 0.0, 0.0), False),  # the last epoch: it has ended anyway
    ],
)
def test_the_rule_by_hand(values, stops):
    reason = Judge(EarlyStop(after=2), KEY, RIVALS, epochs=3).verdict(curve(*values))
    assert (reason is not None) is stops
    if stops:
        assert reason == (
            "stopped after epoch 2: mAP50-95 0.1900 is below 0.2000, the median of 4 trials that cost no more"
        )


def test_nobody_is_stopped_by_too_few_or_by_shorter_curves():
    assert Judge(EarlyStop(least=5), KEY, RIVALS).verdict(curve(0, 0)) is None
    short = [*RIVALS[:2], rival(4, 0.9), rival(5, 0.9)]
    assert Judge(EarlyStop(least=3), KEY, short).verdict(curve(0, 0)) is None
    assert Judge(EarlyStop(least=2), KEY, short).verdict(curve(0, 0))
    assert Judge(EarlyStop(after=1), KEY, []).verdict(curve(0)) is None


def test_only_those_that_cost_no_more_in_any_way():
    trials = [rival(i, 0.5, gflops=g) for i, g in enumerate((0.5, 1.0, 1.5))]
    assert [t.number for t in no_dearer(trials, {"gflops": 1.0}, ["gflops"])] == [0, 1]
    assert [t.number for t in no_dearer(trials, {"gflops": 1.0, "params_m": 9}, ["gflops", "params_m"])] == []
    assert len(list(no_dearer(trials, {}, []))) == 3


# ---------------------------------------------------------------- in a search


def search(tiny, *changes):
    arguments = ["train.epochs=3", "search.max_trials=6", "search.early_stop={after: 1, least: 1}", *changes]
    return hello_nas.main(["run", str(tiny), *arguments])


def history(tiny):
    return History(tiny.parent / "runs/tiny/history.jsonl").load()


@pytest.fixture
def scored(monkeypatch):
    """Every training is scored by its number: even ones are good, odd ones are bad."""
    real, seen = evaluators.train_and_measure, {}

    def measure(job, arch, folder, rows):
        seen["number"] = job.number
        return real(job, arch, folder, rows)

    def train(detector, loader, *, settings, on_epoch, on_resume, checkpoint, **how):
        """As the real one, without learning: every epoch is on disk before it is judged."""
        rows = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
        if rows:
            on_resume([dict(r) for r in rows])
        for epoch in range(len(rows) + 1, settings.epochs + 1):
            value = (0.1 if seen["number"] % 2 else 0.5) * epoch / settings.epochs
            rows.append({"epoch": epoch, "loss": 1.0, "lr": 0.1, KEY: value, "seconds": epoch})
            checkpoint.write_text(json.dumps(rows))
            if seen.get("dies") == (seen["number"], epoch):
                seen.pop("dies")
                raise KeyboardInterrupt
            on_epoch(dict(rows[-1]))
        return TrainResult(detector.eval(), rows, {KEY: rows[-1][KEY]}, 1.0, 1)

    monkeypatch.setattr(evaluators, "train_and_measure", measure)
    monkeypatch.setattr(training, "train", train)
    return seen


def test_a_stopped_trial_is_data_and_never_the_winner(tiny, scored, capsys):
    assert search(tiny, "search.early_stop.among=all") == 0
    trials = history(tiny)
    assert [t.state for t in trials] == ["complete", "stopped"] * 3
    bad = trials[1]
    assert bad.metrics[KEY] == pytest.approx(0.1 / 3) and bad.reward == pytest.approx(0.1 / 3)
    assert [row["epoch"] for row in bad.curve] == [1] and bad.metrics["gflops"] > 0
    assert "loss" not in bad.metrics and bad.reason.startswith(
        "stopped after epoch 1: mAP50-95 0.0333 is below"
    )
    folder = tiny.parent / "runs/tiny"
    assert not list((folder / "trials/0001").glob("*.pt"))
    assert {t.number for t in top_trials(trials)} == {0, 2, 4}
    assert {r["trial"] for r in json.loads((folder / "top_models.json").read_text())} <= {0, 2, 4}
    told = capsys.readouterr()
    assert "trial 1: stopped after epoch 1" in told.out + told.err

    run = read_run(folder)
    assert counts_line(run) == "3 complete, 3 stopped in time, 0 failed"
    assert "3 trials, after 1.0 epochs on average; about" in cost_rows(run)["stopped in time"]
    said = status(folder)
    assert "3 complete, 3 stopped in time, 0 failed" in said and "stopped     3 trials" in said
    assert "stopped in time" in (folder / "report.html").read_text()
    assert (folder / "results.csv").read_text().count(",stopped,") == 3


@pytest.mark.slow
def test_killed_before_the_decision_it_decides_alike(tiny, scored):
    assert search(tiny, "search.early_stop.among=all") == 0
    whole = [(t.number, t.arch, t.state, t.reason, t.metrics, t.curve) for t in history(tiny)]
    scored["dies"] = (3, 1)  # the epoch is on disk, the verdict is not
    assert search(tiny, "search.early_stop.among=all", "name=cut") != 0
    path = tiny.parent / "runs/cut/history.jsonl"
    assert len(History(path).load()) == 3
    assert search(tiny, "search.early_stop.among=all", "name=cut", "--resume") == 0
    assert [(t.number, t.arch, t.state, t.reason, t.metrics, t.curve) for t in History(path).load()] == whole


def test_the_unsearched_network_is_never_stopped_and_only_what_was_known_counts(tiny, scored):
    assert search(tiny, "search.early_stop=median", "search.max_trials=1") == 0
    folder = RunFolder.open(tiny.parent / "runs/tiny")
    job = job_of(str(folder.path))
    arch = job.space.random(np.random.default_rng(0))
    for number, after in ((1, [0]), (2, []), (3, [1])):
        line = {"number": number, "arch": {"n": number}, "after": after}
        with open(folder.path / "asked.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
    for number in (1, 2, 3):
        folder.history.append(rival(number, 0.5, gflops=0.0))
    assert judge_of(replace(job, number=0), arch) is None and judge_of(job, arch) is None
    free = replace(job, number=3)  # trial 2 was still running when 3 was asked for
    assert {t.number for t in judge_of(free, arch).rivals} <= {0, 1} and folder.told_before(3) == {0, 1}
    assert 1 in {t.number for t in judge_of(free, arch).rivals}


def test_an_evaluator_of_ones_own_is_stopped_in_its_report(tiny, tmp_path):
    (tmp_path / "mine.py").write_text(
        "seen = []\n"
        "def evaluate(arch, report):\n"
        "    seen.append(1)\n"
        "    for epoch in range(4):\n"
        "        report(0.5 if len(seen) == 1 else 0.1)\n"
        "    return 0.5\n"
    )
    own = ["search.evaluator=mine.py", "search.max_trials=2", "search.early_stop={least: 1, among: all}"]
    assert search(tiny, *own) == 0
    first, second = history(tiny)
    assert (first.state, len(first.curve)) == ("complete", 4)
    assert (second.state, second.metrics[KEY], len(second.curve)) == ("stopped", 0.1, 2)


def test_off_and_mistakes(tiny):
    for off in ("search.early_stop=off", "search.early_stop=null", "search.max_trials=2"):
        exp = load_experiment(tiny, [off])
        assert exp.search.early_stop is None and "early_stop" not in exp.search.model_dump()
    assert load_experiment(tiny, ["search.early_stop=median"]).search.early_stop == EarlyStop()
    assert load_experiment(tiny, ["search.early_stop.after=4"]).search.early_stop == EarlyStop(after=4)
    with pytest.raises(UserError, match="search.early_stop.rule.*'medain'; did you mean 'median'"):
        load_experiment(tiny, ["search.early_stop=medain"])
    with pytest.raises(UserError, match="search.early_stop.after: 0 does not fit"):
        load_experiment(tiny, ["search.early_stop.after=0"])
    with pytest.raises(UserError, match="slices of a supernet are not trained: say off"):
        load_experiment(tiny, ["search.early_stop=median", "supernet={}"])
