"""One contract for all strategies, on NNI's sequential engine with an arithmetic evaluator: no network is
trained.
"""

import json
import logging
from collections import Counter
from itertools import product

import nni
import numpy as np
import pytest
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.space import SimplifiedModelSpace, current_model

from experiments.strategies import STRATEGIES, build_strategy
from models.space import Choice, LabelledSpace
from tests.some import some
from utils.errors import UserError
from utils.history import History, arch_key
from utils.limits import parse_limits

OBJECTIVES = {"map50_95": "max", "gflops": "min"}
NAMES = [name for name in STRATEGIES if name != "streams"]  # of serial codes alone: test_serial_search.py
CHEAP = [name for name in NAMES if name != "rl"]  # it trains a policy
QUICK = {"predictor": {"evaluations": 30, "batch": 6}}  # options that make a test short
torch.set_num_threads(1)


class Space(LabelledSpace):
    """`depth` blocks with a width each and an activation: the width of a block beyond the depth does
    nothing.
    """

    def __init__(self, blocks=4, widths=(2, 1, 3), activations=("silu", "relu"), shallowest=1):
        self.name, self.blocks = "toy", blocks
        depth = Choice("depth", tuple(range(blocks, shallowest - 1, -1)))
        each = [Choice(f"w{i}", tuple(widths)) for i in range(1, blocks + 1)]
        self._label([Choice("act", tuple(activations)), depth, *each])

    def canonical(self, arch):
        return {k: v for k, v in arch.items() if not (k[0] == "w" and int(k[1:]) > arch["depth"])}

    _canonical = canonical

    def random(self, rng):
        return self.canonical({k: v[rng.integers(len(v))] for k, v in self.choices.items()})

    def size(self):
        widths, acts = len(self.choices["w1"]), len(self.choices["act"])
        return acts * self.blocks * widths**self.blocks, acts * sum(widths**d for d in self.choices["depth"])

    def cost(self, arch, imgsz=64):
        return {"gflops": float(sum(v for k, v in arch.items() if k[0] == "w"))}


class Net(ModelSpace):
    def __init__(self, choices):
        super().__init__()
        for label, values in choices.items():
            self.add_mutable(nni.choice(label, values))
        self.sample = dict(current_model() or {})


def scores(arch):
    """Something to climb: wide and deep helps, with diminishing returns; relu is a little worse."""
    width = sum(v for k, v in arch.items() if k[0] == "w")
    return {"map50_95": 1 - 1 / (1 + width) - 0.05 * (arch["act"] == "relu"), "gflops": float(width)}


def search(
    run_dir,
    name,
    *,
    space=None,
    budget=14,
    seed=0,
    limits=(),
    kill_at=None,
    fail=lambda n: False,
    options=None,
    **kwargs,
):
    """Run a search; returns (search, archs in the order of asking). kill_at: die in the n-th trial of this
    start.
    """
    space = space or Space()
    ran = []

    def evaluate(model):
        arch = space.canonical(model.sample)
        ran.append(arch)
        if len(ran) == kill_at:
            raise KeyboardInterrupt
        if fail(len(ran)):
            raise RuntimeError("a failing trial")
        metrics = scores(arch)
        nni.report_final_result({"default": metrics["map50_95"], **metrics})

    limits = parse_limits(dict(limits))
    found = build_strategy(
        name,
        QUICK.get(name) if options is None else options,
        space,
        seed=seed,
        budget=budget,
        run_dir=run_dir,
        objectives=OBJECTIVES,
        limits=limits,
        cost=space.cost,
        **kwargs,
    )
    engine = SequentialExecutionEngine(continue_on_failure=True)
    model_space = SimplifiedModelSpace.from_model(Net(space.choices), FunctionalEvaluator(evaluate))
    try:
        found(model_space, engine)
    except KeyboardInterrupt:
        assert kill_at
    found.ran = ran
    return found


def asked(run_dir):
    return [json.loads(line) for line in (run_dir / "asked.jsonl").read_text().splitlines()]


def archs(run_dir):
    return [arch_key(line["arch"]) for line in asked(run_dir)]


def trials(run_dir):
    return [t for t in History(run_dir / "history.jsonl").load() if t.number >= 0]


@pytest.fixture(autouse=True)
def quick_and_quiet(monkeypatch):
    logging.getLogger("nni").setLevel(logging.CRITICAL)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # thousands of lines; no power fails here


@pytest.mark.parametrize("name", some(NAMES, CHEAP))
def test_same_seed_same_archs_and_another_seed_others(name, tmp_path):
    for run, seed in [("a", 0), ("b", 0), ("c", 1)]:
        search(tmp_path / run, name, seed=seed)
    assert archs(tmp_path / "a") == archs(tmp_path / "b")
    assert archs(tmp_path / "a") != archs(tmp_path / "c")


@pytest.mark.parametrize("name", NAMES)
def test_the_budget_is_met_with_the_baseline_first_and_nothing_twice(name, tmp_path):
    found = search(tmp_path, name)
    assert (found.message or "").startswith("predictor: held-out tau" if name == "predictor" else "")
    assert [line["number"] for line in asked(tmp_path)] == list(range(14))
    assert asked(tmp_path)[0]["arch"] == Space().default()
    assert len(set(archs(tmp_path))) == 14
    done = trials(tmp_path)
    assert [t.number for t in done] == list(range(14))
    assert [t.arch for t in done] == found.ran == [line["arch"] for line in asked(tmp_path)]
    said = {path: path.read_bytes() for path in tmp_path.glob("*.json*")}
    assert search(tmp_path, name, known=done).message is None  # nothing was left to do
    assert {path: path.read_bytes() for path in tmp_path.glob("*.json*")} == said
    for trial in done:
        assert trial.state == "complete" and trial.metrics == scores(trial.arch)
        assert trial.reward == trial.metrics["map50_95"]
        assert all(0 <= p < trial.number for p in trial.parents)


@pytest.mark.parametrize("name", NAMES)
def test_limits_are_respected_and_what_breaks_them_is_no_trial(name, tmp_path):
    search(tmp_path, name, limits={"gflops": "<= 7"})
    done = trials(tmp_path)
    assert len(done) == 14
    assert all(t.metrics["gflops"] <= 7 for t in done[1:])  # trial 0 is the baseline, with 8
    infeasible = [t for t in History(tmp_path / "history.jsonl").load() if t.state == "infeasible"]
    assert infeasible or name == "grid"
    assert len({t.key for t in infeasible}) == len(infeasible)
    for trial in infeasible:
        assert trial.number == -1 and trial.reward is None and trial.metrics["gflops"] > 7
        assert trial.reason == f"gflops {trial.metrics['gflops']:g} breaks <= 7"


@pytest.mark.parametrize("name", ["random", "evolution", "tpe", "pareto", "predictor"])
def test_limits_that_one_arch_in_a_million_meets_still_leave_a_search(name, tmp_path):
    space = Space(blocks=16, widths=(4, 1, 2, 3), shallowest=15)
    limits = {"gflops": "<= 19"}
    rng = np.random.default_rng(0)
    assert not any(space.cost(space.random(rng))["gflops"] <= 19 for _ in range(2000))
    search(tmp_path, name, space=space, limits=limits, quick_cost=space.cost)
    assert len(trials(tmp_path)) == 14
    assert all(t.metrics["gflops"] <= 19 for t in trials(tmp_path)[1:])


@pytest.mark.parametrize("name", NAMES)
def test_failed_trials_are_survived_and_count(name, tmp_path):
    search(tmp_path, name, fail=lambda n: n % 3 == 0)
    done = trials(tmp_path)
    assert [t.state for t in done] == ["failed" if t.number % 3 == 2 else "complete" for t in done]
    assert len(done) == 14
    assert all(
        t.reward is None and t.reason == "it ended with status failed" for t in done if t.state == "failed"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_search_of_nothing_but_failures_ends(name, tmp_path):
    search(tmp_path, name, budget=8, fail=lambda n: True)
    assert [t.state for t in trials(tmp_path)] == ["failed"] * 8


@pytest.mark.parametrize("name", NAMES)
def test_a_small_space_is_exhausted_with_a_message(name, tmp_path):
    space = Space(blocks=2, widths=(1, 2), activations=("silu", "relu"))
    assert space.size() == (16, 12)
    found = search(tmp_path, name, space=space, budget=50)
    assert len(trials(tmp_path)) == 12
    tried = "every architecture of the space was tried (12 trials and 0 infeasible)"
    assert found.message.splitlines()[0] == f"search ended before its budget: {tried}"


@pytest.mark.parametrize("name", NAMES)
def test_a_small_space_under_a_limit_is_exhausted_with_a_message(name, tmp_path):
    space = Space(blocks=2, widths=(1, 2), activations=("silu", "relu"))
    found = search(tmp_path, name, space=space, budget=50, limits={"gflops": "<= 2"})
    # silu and relu, each with one block of width 1 or 2, or two blocks of width 1 (the baseline)
    assert len(trials(tmp_path)) == 2 * 3
    assert "every architecture of the space was tried (6 trials and 6 infeasible)" in found.message


@pytest.mark.parametrize("name", some(NAMES, CHEAP))
def test_limits_that_nothing_meets_end_with_their_name(name, tmp_path):
    with pytest.raises(UserError, match="no architecture within the limits gflops <= 0.5 was found"):
        search(tmp_path, name, limits={"gflops": "<= 0.5"}, patience=60)
    assert len(trials(tmp_path)) == 1


@pytest.mark.parametrize(
    ("kill_at", "name"), some(product([1, 5, 11], NAMES), {*product([1, 11], CHEAP), *product([5], NAMES)})
)
def test_resumed_equals_uninterrupted(name, kill_at, tmp_path):
    options = {"limits": {"gflops": "<= 10"}, "fail": lambda n: n == 4}
    search(tmp_path / "whole", name, **options)
    search(tmp_path / "cut", name, kill_at=kill_at, **options)
    assert len(trials(tmp_path / "cut")) == kill_at - 1
    # The trial that died runs again as the first of this start; failures are counted from there.
    resumed = search(tmp_path / "cut", name, **options | {"fail": lambda n: n == 5 - kill_at})
    assert len(resumed.ran) == 14 - (kill_at - 1)
    assert archs(tmp_path / "cut") == archs(tmp_path / "whole")
    assert asked(tmp_path / "cut") == asked(tmp_path / "whole")
    key = [(t.number, t.key, t.reward, t.state, t.parents) for t in trials(tmp_path / "whole")]
    assert [(t.number, t.key, t.reward, t.state, t.parents) for t in trials(tmp_path / "cut")] == key
    lines = Counter(t.key for t in History(tmp_path / "cut" / "history.jsonl").load())
    assert set(lines.values()) == {1}


@pytest.mark.parametrize("name", some(NAMES, CHEAP))
def test_a_finished_search_resumes_with_a_larger_budget(name, tmp_path):
    search(tmp_path / "whole", name, budget=14)
    search(tmp_path / "more", name, budget=8)
    assert search(tmp_path / "more", name, budget=8).ran == []
    assert len(search(tmp_path / "more", name, budget=14).ran) == 6
    assert len(set(archs(tmp_path / "more"))) == 14
