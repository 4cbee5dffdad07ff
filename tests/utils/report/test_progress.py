"""How far running trials and their search have come, from the files that they write."""

import json
import os
import time

import pytest
import yaml

from utils.history import History, Trial
from utils.report.progress import TrialProgress, running_trials, search_left
from utils.report.results import status
from utils.report.runs import read_run


@pytest.fixture
def live(tmp_path):
    """Of 8 trials, two at a time, two (10 and 30 s) are done; 2 has trained 3 of 6 epochs, 3 has begun."""
    folder = tmp_path / "live"
    search = {"max_trials": 8, "concurrency": 2, "objectives": {"map50_95": "max", "gflops": "min"}}
    folder.mkdir()
    (folder / "experiment.yaml").write_text(yaml.safe_dump({"train": {"epochs": 6}, "search": search}))
    for number, seconds in ((0, 10.0), (1, 30.0)):
        trial = Trial(number, {"a": number}, {"map50_95": 0.5}, 0.5, seconds=seconds, started=1000.0)
        History(folder / "history.jsonl").append(trial)
    asked = [json.dumps({"number": n, "arch": {"a": n}}) for n in range(4)]
    (folder / "asked.jsonl").write_text("\n".join(asked) + "\n{torn")
    log = folder / "trials" / "0002" / "log.csv"
    log.parent.mkdir(parents=True)
    rows = ["epoch,loss,map50_95,seconds", "1,3.5,,4.0", "2,2.5,0.25,8.0", "3,2.25,,12.0"]
    log.write_text("\n".join(rows))
    return folder


def test_a_running_trial_tells_epoch_loss_last_score_and_time_left(live):
    second, third = running_trials(read_run(live))
    assert second == TrialProgress(2, epoch=3, of=6, loss=2.25, score=0.25, seconds=12.0)
    assert second.left == 12.0
    assert second.line("map50_95") == "trial 2: epoch 3/6, loss 2.25, mAP50-95 0.2500, 12 s left"
    assert third.left is None and third.line("map50_95") == "trial 3: begun"


def test_a_search_ends_when_its_trials_would_have_or_its_time(live):
    run = read_run(live)
    running = running_trials(run)
    assert search_left(run, running) == (6 * 20.0 - 12.0) / 2  # the mean of those that ended is 20 s
    raw = yaml.safe_load((live / "experiment.yaml").read_text())
    raw["search"]["max_seconds"] = 45.0  # the two ran for 30 s, at once
    (live / "experiment.yaml").write_text(yaml.safe_dump(raw))
    assert search_left(read_run(live), running) == 15.0
    (live / "history.jsonl").write_text("")
    del raw["search"]["max_seconds"]
    (live / "experiment.yaml").write_text(yaml.safe_dump(raw))
    first = read_run(live)
    assert search_left(first, running) == (8 * 24.0 - 12.0) / 2  # nothing has ended: as the one that runs
    assert search_left(first, []) is None


def test_an_evaluator_of_ones_own_has_epochs_that_nobody_knows(live):
    raw = yaml.safe_load((live / "experiment.yaml").read_text())
    raw["search"]["evaluator"] = {"name": "mine.py"}
    (live / "experiment.yaml").write_text(yaml.safe_dump(raw))
    second, _ = running_trials(read_run(live))
    assert (second.of, second.left) == (None, None)
    assert second.line("map50_95") == "trial 2: epoch 3, loss 2.25, mAP50-95 0.2500"


def test_status_of_a_live_run_follows_its_trials(live):
    (live / "run.json").write_text(
        json.dumps({"state": "running", "pid": os.getpid(), "started": time.time()})
    )
    text = status(live)
    assert "running     trial 2: epoch 3/6, loss 2.25, mAP50-95 0.2500, 12 s left\n" in text
    assert "running     trial 3: begun\n" in text
    assert "; about 54 s left to search\n" in text
