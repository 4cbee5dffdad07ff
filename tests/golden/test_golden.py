"""Seed 0 draws, proposes and prices what it always did: what was begun, every later version can resume."""

import json
import logging

import pytest

from tests.golden import doors
from tests.golden.record import FIXTURES, digest
from tests.some import some

# Spaces of the kind of a smaller one; policies and predictors, which are trained, on one space more.
LARGE = {"yolov5n_wide_nas", "yolo11n_nas", "detnas_300m", "detnas_small_retinanet"}
TRAINED = {
    *("rl on yolov5n_nas", "rl on ordered", "predictor on yolov5n_nas, limited"),
    *("predictor on bignas_retinanet_small", "predictor on bignas_regnet"),
}


def golden(kind):
    return json.loads((FIXTURES / f"{kind}.json").read_text())


@pytest.fixture(autouse=True)
def quick_and_quiet(monkeypatch):
    logging.getLogger("nni").setLevel(logging.CRITICAL)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.mark.parametrize("name", some(golden("draws"), golden("draws").keys() - LARGE))
def test_draws(name):
    drawn, expected = doors.draws(name), golden("draws")[name]
    assert drawn["random"][0] == expected.pop("example")
    for way, fingerprints in expected.items():
        assert digest(drawn[way]) == fingerprints, way


@pytest.mark.parametrize("name", some(golden("costs"), golden("costs").keys() - LARGE))
def test_costs(name):
    costs, expected = doors.costs(name), golden("costs")[name]
    assert costs[:2] == expected["example"]
    assert digest(costs) == expected["all"]


def test_every_space_file_and_every_strategy_is_pinned():
    assert golden("draws").keys() >= {*doors.FILES, "ordered"}
    assert golden("costs").keys() >= {*doors.FILES, "ordered"}
    assert {case.split()[0] for case in golden("strategies")} >= set(doors.GENERAL)


@pytest.mark.parametrize("case", some(golden("strategies"), golden("strategies").keys() - TRAINED))
def test_proposals(case, tmp_path):
    found = digest(doors.proposals(*doors.CASES[case], tmp_path))
    assert found == golden("strategies")[case]
    assert found.count(" ") == doors.BUDGET - 1
