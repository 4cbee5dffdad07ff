"""Every strategy on spaces of supernets: in process through `run_search`, and where values have an order."""

import copy
import logging
from pathlib import Path

import numpy as np
import pytest
import yaml

from experiments.engine.nni_runtime import SearchRuntime, run_search
from experiments.engine.trial import report_final
from experiments.strategies import STRATEGIES, build_strategy
from models.elastic.space import ElasticSpace
from models.nni_space import ArchSpace
from tests.experiments.test_strategies import QUICK, archs, trials
from utils.limits import parse_limits, steer

GENERAL = [name for name in STRATEGIES if name != "streams"]  # that one wants serial codes

MODELS = Path(__file__).resolve().parents[2] / "models"
OBJECTIVES = {"map50_95": "max", "gflops": "min"}
RESNET = yaml.safe_load((MODELS / "bignas_retinanet_r18.yaml").read_text())
# Neither widths nor depths may fall from stage to stage: 90 of 486 combinations are archs.
ORDERED = {
    "network": "regnet",
    "nc": 3,
    "backbone": {
        "depth": {"values": [[1], [1, 2], [1, 2, 3], [1, 2, 3], [3]], "sample": "ordered_stage_wise_depth"},
        "out_channel": {
            "values": [[16], [16, 24, 32], [16, 24, 32], [16, 24, 32], [32]],
            "sample": "ordered_stage_wise",
        },
        "group_width": 8,
    },
}


@pytest.fixture(autouse=True)
def quick_and_quiet(monkeypatch):
    logging.getLogger("nni").setLevel(logging.CRITICAL)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def quality(arch):
    """Something to climb: every gene helps by its place among its values, the later ones more."""
    return sum(i * value for i, value in enumerate(arch.values(), start=1)) / 1e5


def evaluate(model, imgsz):
    cost = model.space.cost(model.arch, imgsz)
    report_final(quality(model.arch), {"map50_95": quality(model.arch), **cost})


def search(run_dir, name, model, *, budget, imgsz, limits=None):
    space = ArchSpace(model, 3)
    strategy = build_strategy(
        name,
        QUICK.get(name),
        space.space,
        seed=0,
        budget=budget,
        run_dir=run_dir,
        objectives=OBJECTIVES,
        limits=parse_limits(limits or {}),
        cost=lambda arch: space.space.cost(arch, imgsz),
        quick_cost=lambda arch: space.space.cost(arch, imgsz),
    )
    runtime = SearchRuntime(run_dir=run_dir, engine="inline")
    run_search(space, evaluate, {"imgsz": imgsz}, strategy, runtime, lambda line: None)
    return strategy


@pytest.mark.parametrize("name", GENERAL)
def test_a_search_without_a_network(name, tmp_path):
    space = ElasticSpace(RESNET, 3)
    search(tmp_path, name, RESNET, budget=30, imgsz=128)
    done = trials(tmp_path)
    assert [t.number for t in done] == list(range(30)) and len(set(archs(tmp_path))) == 30
    assert done[0].arch == space.default()
    for trial in done:
        assert trial.state == "complete" and space.canonical(trial.arch) == trial.arch
        assert trial.metrics == {"map50_95": quality(trial.arch), **space.cost(trial.arch, 128)}


@pytest.mark.parametrize("name", GENERAL)
def test_archs_keep_the_orders_of_their_space(name, tmp_path):
    space = ElasticSpace(ORDERED, 3)
    largest = space.cost(space.default(), 32)["gflops"]
    search(tmp_path, name, ORDERED, budget=25, imgsz=32, limits={"gflops": f"<= {0.8 * largest}"})
    done = trials(tmp_path)
    assert len(done) == 25
    for trial in done:
        assert trial.state == "complete" and space.canonical(trial.arch) == trial.arch
    assert all(t.metrics["gflops"] <= 0.8 * largest for t in done[1:])


@pytest.mark.parametrize("name", [name for name in GENERAL if name != "rl"])  # which may stop before
def test_an_ordered_space_is_searched_to_its_end(name, tmp_path):
    model = copy.deepcopy(ORDERED)
    model["backbone"]["depth"] = {
        "values": [[1], [1, 2], [1, 2], [1, 2], [3]],
        "sample": "ordered_stage_wise",
    }
    model["backbone"]["out_channel"]["values"] = [[16], [16, 24], [16], [24, 32], [32]]
    assert ElasticSpace(model, 3).size() == (2**5, 4 * 2)  # only 16 may come before 16
    found = search(tmp_path, name, model, budget=40, imgsz=32)
    assert len({t.key for t in trials(tmp_path)}) == len(trials(tmp_path)) == 8
    ended = "search ended before its budget: every architecture of the space was tried (8 trials and"
    assert found.message.startswith(ended)


def test_steering_keeps_the_order():
    space, rng = ElasticSpace(ORDERED, 3), np.random.default_rng(0)
    limits = parse_limits({"gflops": f"<= {1.1 * space.cost(space.smallest(), 32)['gflops']}"})
    for _ in range(10):
        raw = {label: values[int(rng.integers(len(values)))] for label, values in space.choices.items()}
        arch = steer(space, raw, limits, lambda a: space.cost(a, 32), rng)
        assert space.canonical(arch) == arch and space.cost(arch, 32)["gflops"] <= limits[0].bound
