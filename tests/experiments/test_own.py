"""A user's own evaluator and reward: the examples, both engines, and every way to get them wrong."""

import pytest
import torch
import yaml

import hello_nas
from experiments.config import ROOT
from experiments.job import job_of
from models.weights import read_weights
from utils.history import History

EXAMPLES = ROOT / "experiments" / "examples"
BY_ARCH = "def evaluate(arch, depth=1.0):\n    return {'map50_95': len(arch) / 1000 * depth, 'mine': 7}\n"


def run(*arguments):
    return hello_nas.main(["run", *map(str, arguments)])


def trials_of(folder):
    return History(folder / "history.jsonl").load()


def test_the_examples_run_and_what_they_say_is_the_history(tiny):
    evaluator = f"search.evaluator={{name: {EXAMPLES / 'own_evaluator.py'}, epochs: 2, lr: 0.02}}"
    reward = f"search.reward={{name: {EXAMPLES / 'own_reward.py'}, price: 0.2}}"
    assert run(tiny, evaluator, reward, "search.max_trials=2") == 0
    folder = tiny.parent / "runs" / "tiny"
    trials = trials_of(folder)
    assert [t.state for t in trials] == ["complete", "complete"]
    base = trials[0].metrics["gflops"]
    for trial in trials:
        assert trial.reward == pytest.approx(trial.metrics["map50"] - 0.2 * trial.metrics["gflops"] / base)
        assert [row["epoch"] for row in trial.curve] == [1, 2]
        assert trial.curve[1]["loss"] != trial.curve[0]["loss"] > 0
        log = (folder / f"trials/{trial.number:04d}/log.csv").read_text().splitlines()
        assert len(log) == 3 and "map50_95" in log[0] and "loss" in log[0]
    weights = read_weights(folder / "trials/0000/weights.pt")
    assert weights.arch == trials[0].arch
    job = job_of(str(folder))  # the network that was trained is kept: it is no longer what seed 0 gives
    torch.manual_seed(0)
    fresh = job.build(trials[0].arch).state_dict()
    assert any(not torch.equal(fresh[k], v) for k, v in weights.state.items() if k in fresh)


def test_an_evaluator_may_ask_for_the_arch_alone_and_return_what_it_likes(tiny):
    (tiny.parent / "mine.py").write_text(BY_ARCH)
    assert run(tiny, "search.evaluator=mine.py", "search.evaluator.depth=2.0") == 0
    for trial in trials_of(tiny.parent / "runs" / "tiny"):
        assert trial.metrics["map50_95"] == trial.reward == len(trial.arch) / 500
        assert trial.metrics["mine"] == 7 and trial.metrics["gflops"] > 0


@pytest.mark.slow
def test_it_runs_in_trial_processes_too_and_a_resumed_run_keeps_its_copy(tiny, capsys):
    mine, folder = tiny.parent / "mine.py", tiny.parent / "runs" / "tiny"
    mine.write_text(BY_ARCH)
    (tiny.parent / "pay.py").write_text("def reward(metrics, price=1):\n    return metrics['mine'] * price\n")
    given = ["search.engine=nni", "search.evaluator=mine.py", "search.reward={name: pay.py, price: 3}"]
    assert run(tiny, *given, "search.max_trials=2", "--no-ui") == 0
    assert [t.reward for t in trials_of(folder)] == [21.0, 21.0]
    mine.write_text(BY_ARCH.replace("7", "8"))
    capsys.readouterr()
    assert run(tiny, *given, "search.max_trials=3", "--no-ui", "--resume") == 2
    assert "mine.py is not the search.evaluator of that run" in capsys.readouterr().err
    mine.unlink()
    more = ["search.max_trials=3", "search.engine=inline", "--resume", "--run-dir", folder]
    assert run(*more) == 0
    assert [t.reward for t in trials_of(folder)] == [21.0, 21.0, 21.0]


FAILURES = {
    "raise ValueError('no luck')": "mine.py, line 2: ValueError: no luck",
    "return {'map50': 1}": "mine.py returned map50 1; a finite map50_95 is needed",
    "return float('nan')": "mine.py returned map50_95 nan; a finite map50_95 is needed",
    "return 'high'": "mine.py returned map50_95 = 'high', which is no number",
    "pass": "mine.py returned map50_95 = None, which is no number",
    "import sys; sys.exit(3)": "SystemExit",
}


@pytest.mark.parametrize("body", FAILURES)
def test_what_goes_wrong_in_it_is_a_failed_trial_with_the_reason(body, tiny, capsys):
    (tiny.parent / "mine.py").write_text(f"def evaluate(arch):\n    {body}\n")
    assert run(tiny, "search.evaluator=mine.py", "search.max_trials=2") == 2
    trials = trials_of(tiny.parent / "runs" / "tiny")
    assert [t.state for t in trials] == ["failed", "failed"]
    assert all(FAILURES[body] in t.reason for t in trials)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return metrics['latency']", "pay.py, line 2: KeyError: 'latency'"),
        ("return None", "pay.py, somewhere below it: TypeError"),
        ("return float('inf')", "the reward is inf"),
    ],
)
def test_what_goes_wrong_in_a_reward_is_a_failed_trial_too(body, reason, tiny):
    (tiny.parent / "mine.py").write_text(BY_ARCH)
    (tiny.parent / "pay.py").write_text(f"def reward(metrics):\n    {body}\n")
    assert run(tiny, "search.evaluator=mine.py", "search.reward=pay.py", "search.max_trials=1") == 2
    (trial,) = trials_of(tiny.parent / "runs" / "tiny")
    assert trial.state == "failed" and reason in trial.reason


BEFORE = {
    "search.evaluator=nowhere.py": "search.evaluator: 'nowhere.py' does not exist",
    "search.evaluator=digits.yaml": "should be a Python file with a function evaluate",
    "search.evaluator=syntax.py": "syntax.py, line 1: SyntaxError",
    "search.evaluator=raises.py": "raises.py, line 2: ZeroDivisionError",
    "search.evaluator=missing.py": "ModuleNotFoundError: No module named 'nowhere_at_all'",
    "search.evaluator=misnamed.py": "has no function 'evaluate'; did you mean 'evaluat'?",
    "search.evaluator=stranger.py": "asks for 'colour', which is neither an option",
    "search.evaluator={name: mine.py, depht: 2}": "unknown option of",
    "search.evaluator={name: mine.py, arch: 2}": "unknown option of",
    "search.evaluator={epochs: 2}": "the key 'search.evaluator.name' is missing",
    "search.reward=nowhere.py": "search.reward: 'nowhere.py' does not exist",
    "search.reward=mine.py": "has no function 'reward'",
    "search.reward={name: pay.py, prize: 2}": "did you mean 'price'?",
}


@pytest.mark.parametrize("override", BEFORE)
def test_it_is_checked_before_there_is_a_run(override, tiny, capsys):
    files = {
        "mine": BY_ARCH,
        "pay": "def reward(metrics, price=1):\n    return price\n",
        "syntax": "def evaluate(:\n",
        "raises": "\n1 / 0\n",
        "missing": "import nowhere_at_all\n",
        "misnamed": "def evaluat(arch):\n    return 1\n",
        "stranger": "def evaluate(arch, colour):\n    return 1\n",
    }
    for name, text in files.items():
        (tiny.parent / f"{name}.py").write_text(text)
    assert run(tiny, override) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and BEFORE[override] in said[0]
    assert not (tiny.parent / "runs").exists()


def with_a_supernet(tiny):
    raw = yaml.safe_load(tiny.read_text())
    raw |= {"supernet": {"calibration": 8, "subnets": ["max", "min"]}, "steps": ["supernet", "search"]}
    tiny.write_text(yaml.safe_dump(raw))


@pytest.mark.slow
def test_slices_of_a_supernet_are_given_to_it(tiny):
    (tiny.parent / "mine.py").write_text(
        "def evaluate(network, data):\n"
        "    assert not network.training and len(data.names) == 10\n"
        "    return {'map50_95': sum(p.numel() for p in network.parameters()) / 1e9}\n"
    )
    with_a_supernet(tiny)
    assert run(tiny, "search.evaluator=mine.py", "search.max_trials=2") == 0
    trials = trials_of(tiny.parent / "runs" / "tiny")
    for trial in trials:
        assert trial.metrics["map50_95"] == pytest.approx(trial.metrics["params_m"] / 1000, rel=1e-6)


@pytest.mark.slow
def test_a_killed_worker_s_candidate_runs_again_and_is_counted_once(tiny, caplog):
    """Each slice's first worker is killed by SIGKILL, the last one's too; all three of the unsearched one."""
    (tiny.parent / "mine.py").write_text(
        "import os, pathlib, signal\n"
        "def evaluate(network, arch, data, kill=True):\n"
        "    size = sum(p.numel() for p in network.parameters())\n"
        "    mark = pathlib.Path(__file__).parent / f'attempts-{size}'\n"
        "    with open(mark, 'a') as file:\n"
        "        file.write('x')\n"
        "    if kill and mark.stat().st_size <= (1 if any(mark.parent.glob('seen-*')) else 3):\n"
        "        if mark.stat().st_size == 3:\n"
        "            (mark.parent / 'seen-3').touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return {'map50_95': size / 1e9}\n"
    )
    with_a_supernet(tiny)
    given = ["search.max_trials=4", "--no-ui"]
    assert run(tiny, "search.evaluator={name: mine.py, kill: false}", *given, "name=calm") == 0  # in process
    for mark in tiny.parent.glob("runs/**/attempts-*"):
        mark.unlink()
    given += ["search.engine=nni", "search.concurrency=1"]
    assert run(tiny, "search.evaluator=mine.py", *given) == 0
    calm, rough = (trials_of(tiny.parent / "runs" / name) for name in ("calm", "tiny"))
    assert rough[0].state == "failed" and rough[0].reason == "it was killed (out of memory?)"
    assert [(t.number, t.arch, t.reward) for t in rough[1:]] == [
        (t.number, t.arch, t.reward) for t in calm[1:]
    ]
    attempts = [len(mark.read_text()) for mark in tiny.parent.glob("runs/tiny/**/attempts-*")]
    assert sorted(attempts) == [2, 2, 2, 3]
    assert "trial 1 was killed (out of memory?); it runs again" in caplog.text
