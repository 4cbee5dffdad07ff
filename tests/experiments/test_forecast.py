"""Latencies predicted for every arch from a few that were timed."""

import json

import numpy as np
import pytest

from experiments import shipped
from experiments.forecast import Forecast, Line, left_out, skill, to_be_timed
from experiments.job import costs, job_of, quick_costs
from experiments.search import search
from models.yolo.space import YoloSpace
from tests.experiments.test_handover import SPACE
from tests.experiments.test_measures import run, timings  # noqa: F401
from utils.errors import UserError
from utils.history import arch_key
from utils.report.results import forecast_lines, status

TINY = YoloSpace(SPACE)


def price(arch):
    return TINY.cost(arch, 64)


def law(arch):
    """Milliseconds that are a power of both costs: a straight line in logarithms."""
    cost = price(arch)
    return {"onnx_ms": 3 * cost["gflops"] ** 0.7 * cost["params_m"] ** 0.2}


def test_a_line_finds_a_power_law():
    x = np.log([[1.0, 2.0], [2.0, 3.0], [3.0, 1.0], [5.0, 4.0]])
    y = 0.5 + x @ [0.7, 0.2]
    assert Line().fit(x, y).predict(np.log([[10.0, 10.0]])) == pytest.approx(0.5 + 0.9 * np.log(10))
    np.testing.assert_allclose(left_out(Line, x, y), y)


def test_each_value_is_predicted_without_itself():
    x, y = np.log([[1.0], [2.0], [4.0], [8.0]]), np.array([0.0, 0.0, 0.0, 9.0])
    assert left_out(Line, x, y)[3] == pytest.approx(0)  # the others lie on a level line


def test_errors_are_shares_of_what_was_timed():
    found = skill(np.array([1.1, 2.0, 3.6]), np.array([1.0, 2.0, 4.0]), "line")
    assert (found.n, found.tau) == (3, 1.0)
    assert (found.error, found.worst) == (pytest.approx(0.2 / 3), pytest.approx(0.1))
    assert str(found) == (
        "predicted from 3 timed networks by a line; leave-one-out error 6.7% (at worst 10.0%), tau 1.00"
    )


def test_what_is_timed_is_distinct_and_spans_the_space():
    archs = to_be_timed(TINY, 20, 0)
    assert len({arch_key(a) for a in archs}) == len(archs) == 20
    assert archs[:3] == [TINY.default(), TINY.smallest(), TINY.largest()]
    assert archs == to_be_timed(TINY, 20, 0) != to_be_timed(TINY, 20, 1)


def test_a_forecast_knows_what_was_timed_and_predicts_the_rest():
    archs = to_be_timed(TINY, 12, 0)
    forecast = Forecast(TINY, price, ["onnx_ms"], [(a, law(a)) for a in archs])
    assert forecast.skills["onnx_ms"].error < 1e-6 and forecast.skills["onnx_ms"].by == "line"
    other = next(a for a in to_be_timed(TINY, 20, 3) if a not in archs)
    assert forecast(other)["onnx_ms"] == pytest.approx(law(other)["onnx_ms"])
    odd = Forecast(
        TINY, price, ["onnx_ms"], [(archs[0], {"onnx_ms": 9.0}), *((a, law(a)) for a in archs[1:])]
    )
    assert odd(archs[0]) == {"onnx_ms": 9.0}


def test_where_genes_matter_the_process_is_taken():
    def acts(arch):
        slow = sum(value == "SiLU" for value in arch.values())
        return {"int8_ms": law(arch)["onnx_ms"] * (1 + 0.5 * slow)}

    archs = to_be_timed(TINY, 20, 0)
    forecast = Forecast(TINY, price, ["int8_ms"], [(a, acts(a)) for a in archs])
    assert forecast.skills["int8_ms"].by == "gaussian process"


def test_too_few_that_are_not_void_are_said():
    archs = to_be_timed(TINY, 8, 0)
    seen = [(a, law(a) if n < 5 else {}) for n, a in enumerate(archs)]
    with pytest.raises(UserError, match="onnx_ms: 5 networks could be timed, and a prediction needs 6"):
        Forecast(TINY, price, ["onnx_ms"], seen)


def test_trials_have_predicted_latencies_and_the_run_says_how_good(run, timings, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(
        shipped, "export", lambda net, path, *_, **__: path.write_bytes(bytes(4 * count(net)))
    )
    monkeypatch.setitem(shipped.QUANTISERS, "onnx", lambda plain, path, images: half(plain, path))
    monkeypatch.setattr("experiments.training.quality_of_files", lambda *_: {"int8_map50_95": 0.5})
    search_settings = run.experiment.search
    target = search_settings.target.model_copy(update={"predict": 8})
    run.experiment = run.experiment.model_copy(
        update={"search": search_settings.model_copy(update={"target": target})}
    )
    run.save_experiment()
    job_of.cache_clear()
    search(run)
    job, (trial,) = job_of(str(run.path)), run.history.load()
    assert trial.state == "complete" and trial.metrics["int8_ms"] > 0
    assert len(timings[1]) == 8  # the unsearched network is one of them
    told = json.loads((run.path / "target" / "forecast.json").read_text())
    assert set(told) == {"onnx_ms", "int8_ms"} and told["onnx_ms"]["n"] == 8
    said = capsys.readouterr().out
    assert "target: 8 networks are timed, to predict onnx_ms, int8_ms of the others" in said
    assert "target: onnx_ms predicted from 8 timed networks by a " in said
    other = job.space.random(np.random.default_rng(5))
    assert quick_costs(job, other) == costs(job, other) and len(timings[1]) == 8
    assert "8 networks that were timed" in forecast_lines(run.path)["int8_ms"]
    assert "leave-one-out error" in status(run.path)


def count(net):
    return sum(p.numel() for p in net.parameters())


def half(plain, path):
    path.write_bytes(plain.read_bytes()[::4])
    return path
