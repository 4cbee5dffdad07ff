"""The code of experiments/GUIDE.md does what the guide says."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from experiments.strategies.contract import Setup
from models.elastic import composed
from models.networks import open_any_space
from utils.history import History, Trial
from utils.report.runs import Run
from utils.steps import STEPS, steps_line

GUIDE = (Path(__file__).parents[2] / "experiments" / "GUIDE.md").read_text()
BLOCKS = dict(re.findall(r"```python\n# (\w+)\n(.*?)```", GUIDE, flags=re.S))
SPACE = {
    "network": {"detector": "classifier", "backbone": "mine"},
    "nc": 3,
    "backbone": {"depth": [1, 2, 1], "out_channel": [8, [8, 16], 16], "kernel_size": 3},
}


@pytest.fixture
def backbone(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(BLOCKS["backbone"])
    monkeypatch.setitem(composed.BACKBONES, "mine", tmp_path / "mine.py")


def run_block(name):
    module = ModuleType(f"guide_{name}")
    sys.modules[module.__name__] = module
    exec(BLOCKS[name], vars(module))
    return module


def test_a_backbone_is_a_file_and_a_line(backbone):
    space = open_any_space(SPACE)
    assert space.smallest() != space.largest()
    assert space.cost(space.smallest(), 32)["gflops"] < space.cost(space.largest(), 32)["gflops"]
    torch.manual_seed(0)
    net = space.build(space.largest(), ["a", "b", "c"])
    found = net.predict(torch.rand(2, 3, 32, 32))
    assert found.shape == (2, 3) and torch.allclose(found.sum(1), torch.ones(2))


def test_a_detector_is_a_file_and_a_line(backbone, tmp_path, monkeypatch):
    (tmp_path / "brightest.py").write_text(BLOCKS["detector"])
    monkeypatch.setitem(composed.DETECTORS, "brightest", tmp_path / "brightest.py")
    space = open_any_space(SPACE | {"network": {"detector": "brightest", "backbone": "mine"}})
    assert space.task == "classify"
    net = space.build(space.smallest(), ["a", "b", "c"])
    batch = {"img": torch.rand(2, 3, 32, 32), "cls": torch.tensor([0, 2])}
    loss = sum(net.loss(batch).values())
    loss.backward()
    assert loss > 0 and net.head.linear.weight.grad.abs().sum() > 0


def test_a_strategy_climbs(backbone):
    space = open_any_space(SPACE)
    setup = Setup(space, seed=0, budget=9, objectives={"top1": "max"})
    searcher = run_block("strategy").climb(setup).searcher
    first = searcher.ask()
    searcher.tell(Trial(0, first, {"top1": 0.5}, 0.5))
    searcher.tell(Trial(1, first, {"top1": 0.1}, 0.1))
    assert space.canonical(searcher.ask()) and searcher.parents == (0,)


def test_a_step_is_a_function_and_a_row(tmp_path, monkeypatch):
    module = run_block("step")
    monkeypatch.setitem(STEPS, "count", module.STEP)
    history = History(tmp_path / "history.jsonl")
    history.append(Trial(0, {"x": 1}, {"map50_95": 0.5}, 0.5))
    run = Run(tmp_path, history.load(), [], {"map50_95": "max"}, {"steps": ["count"]})
    assert steps_line(run) == "next: count"
    module.count(SimpleNamespace(path=tmp_path, history=history))
    assert (tmp_path / "count.txt").read_text() == "1 trials"
    assert steps_line(run) == "done: count"


def test_the_guide_is_short_and_has_ten_words():
    assert len(GUIDE.split()) <= 1500 and set(BLOCKS) == {"strategy", "detector", "backbone", "step"}
    rows = GUIDE.partition("## Ten words")[2].partition("##")[0].strip().splitlines()
    assert len(rows) == 12
