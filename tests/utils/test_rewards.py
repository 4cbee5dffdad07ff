"""Rewards by hand, and the property that points a search the right way: faster never scores less."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from utils.errors import UserError
from utils.rewards import (
    build_reward,
    check_reward,
    draw_iso_reward,
    iso_reward_info,
    resolve_target,
    task_objectives,
)


def metrics(map50_95, gflops, **more):
    return {"map50_95": map50_95, "map50": 0.9, "gflops": gflops, **more}


def test_map_is_the_map():
    assert build_reward("map")(metrics(0.4, 3.0)) == 0.4
    assert build_reward("map", {"metric": "map50"})(metrics(0.4, 3.0)) == 0.9


def test_weighted_product_by_hand():
    soft = build_reward("weighted_product", {"target": 2.0, "exponent": -0.07})
    assert soft(metrics(0.5, 2.0)) == 0.5
    assert soft(metrics(0.5, 4.0)) == pytest.approx(0.5 * 2**-0.07)
    assert soft(metrics(0.5, 1.0)) == pytest.approx(0.5 * 2**0.07)
    # MnasNet section 3.2: at w = -0.07, twice the cost is worth about 5 % accuracy.
    assert soft(metrics(1.05 * 0.5, 4.0)) == pytest.approx(soft(metrics(0.5, 2.0)), rel=1e-3)


def test_the_metric_follows_the_task():
    found = {"top1": 0.6, "top5": 0.9, "gflops": 4.0}
    assert build_reward("accuracy", metric="top1")(found) == build_reward("map", metric="top1")(found) == 0.6
    assert build_reward("accuracy", {"metric": "top5"}, metric="top1")(found) == 0.9
    reward = build_reward("weighted_product", {"target": 2.0}, metric="top1")
    assert reward(found) == pytest.approx(0.6 * 2**-0.07)
    linear = build_reward("linear", {"weight": 0.1}, baseline={"gflops": 2.0}, metric="top1")
    assert linear(found) == pytest.approx(0.6 - 0.1 * 2)
    assert build_reward("map", metric="map50_95")(metrics(0.4, 3.0)) == 0.4
    assert check_reward("map", {"metric": "top1"}) == {"metric": "top1"}  # while the task is not known
    for metric, other, known in (
        ("top1", "map50", "known: top1, top5"),
        ("map50_95", "top1", "known: map50_95, map50"),
    ):
        with pytest.raises(UserError, match=f"unknown metric of the reward '{other}'.*{known}"):
            build_reward("map", {"metric": other}, metric=metric)


def test_objectives_follow_the_task():
    default = {"map50_95": "max", "gflops": "min"}
    assert list(task_objectives(default, "top1").items()) == [("top1", "max"), ("gflops", "min")]
    assert task_objectives(default, "map50_95") == default
    assert task_objectives({"top1": "max"}, "map50_95") == {"map50_95": "max"}
    with pytest.raises(UserError, match=r"unknown metric in search.objectives 'map50'.*top1, top5, .*gflops"):
        task_objectives({"map50": "max"}, "top1")


def test_hard_exponents_are_indifferent_below_the_target_and_harsh_above():
    hard = build_reward("weighted_product", {"target": 2.0, "alpha": 0, "beta": -1})
    assert hard(metrics(0.5, 0.1)) == 0.5
    assert hard(metrics(0.5, 2.0)) == 0.5
    assert hard(metrics(0.5, 4.0)) == pytest.approx(0.25)


def test_linear_by_hand():
    reward = build_reward("linear", {"target": 4.0, "weight": 0.2, "cost": "params_m"})
    assert reward(metrics(0.5, 99.0, params_m=2.0)) == pytest.approx(0.5 - 0.2 * 0.5)


def test_the_target_baseline_is_its_cost():
    options = {"cost": "params_m", "target": "baseline"}
    assert resolve_target(options, {"params_m": 1.9, "gflops": 4.5}) == 1.9
    assert resolve_target({"target": 3}, None) == 3.0
    reward = build_reward("weighted_product", {}, baseline={"gflops": 4.5})
    assert reward(metrics(0.3, 4.5)) == 0.3
    with pytest.raises(UserError, match="needs the baseline's latency_ms; known of it: gflops"):
        build_reward("linear", {"cost": "latency_ms"}, baseline={"gflops": 4.5})
    with pytest.raises(UserError, match="needs the baseline's gflops; known of it: nothing yet"):
        build_reward("linear")


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("wieghted_product", {}, "unknown reward 'wieghted_product'; did you mean 'weighted_product'"),
        ("map", {"cost": "gflops"}, "unknown option of reward 'map' 'cost'"),
        ("linear", {"wieght": 1}, "unknown option of reward 'linear' 'wieght'; did you mean 'weight'"),
        ("linear", {"exponent": -1}, "unknown option of reward 'linear' 'exponent'"),
        ("linear", {"cost": "glops"}, "unknown cost of the reward 'glops'; did you mean 'gflops'"),
        ("map", {"metric": "map"}, "unknown metric of the reward 'map'"),
        ("linear", {"weight": -0.1}, "would reward slower networks"),
        ("weighted_product", {"exponent": 0.07}, "would reward slower networks"),
        ("weighted_product", {"alpha": -1, "beta": 0.1}, "would reward slower networks"),
        ("weighted_product", {"alpha": -1, "exponent": -1}, "exponent sets alpha and beta at once"),
        ("weighted_product", {"target": 0}, "a cost above 0 is needed"),
        ("weighted_product", {"target": "baselin"}, "a number or 'baseline' is needed"),
        ("weighted_product", {"exponent": "-0.07"}, "reward alpha is '-0.07'; a number is needed"),
        ("linear", {"weight": True}, "reward weight is True; a number is needed"),
        ("linear", {"weight": math.nan}, "a number is needed"),
    ],
)
def test_what_a_user_gets_wrong(name, options, line):
    with pytest.raises(UserError) as error:
        build_reward(name, {"target": 1.0, **options} if name != "map" else options)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_cost_that_was_not_measured():
    reward = build_reward("linear", {"cost": "latency_ms", "target": 5.0})
    with pytest.raises(UserError, match="needs the metric 'latency_ms'; measured: map50_95, map50, gflops"):
        reward(metrics(0.5, 1.0))
    with pytest.raises(UserError, match="needs latency_ms above 0"):
        reward(metrics(0.5, 1.0, latency_ms=0.0))


accuracy = st.floats(0.0, 1.0)
positive = st.floats(1e-3, 1e3)
exponent = st.floats(-2.0, 0.0)
OPTIONS = st.one_of(
    st.tuples(st.just("map"), st.just({})),
    st.tuples(
        st.just("weighted_product"),
        st.fixed_dictionaries({"target": positive, "alpha": exponent, "beta": exponent}),
    ),
    st.tuples(st.just("linear"), st.fixed_dictionaries({"target": positive, "weight": st.floats(0.0, 2.0)})),
)


@given(OPTIONS, accuracy, positive, positive)
def test_cheaper_never_scores_lower_at_equal_map(chosen, acc, one, other):
    reward = build_reward(*chosen)
    cheap, dear = sorted([one, other])
    assert reward(metrics(acc, cheap)) >= reward(metrics(acc, dear))


@given(st.floats(-2.0, -0.01), positive, st.floats(0.01, 1.0), positive, st.floats(1.001, 10.0))
def test_cheaper_scores_strictly_higher_with_soft_exponents(w, target, acc, cost, factor):
    reward = build_reward("weighted_product", {"target": target, "exponent": w})
    assert reward(metrics(acc, cost)) > reward(metrics(acc, cost * factor))


@given(OPTIONS, accuracy, accuracy, positive)
def test_higher_map_always_scores_higher(chosen, one, other, cost):
    assume(abs(one - other) > 1e-6)
    reward = build_reward(*chosen)
    low, high = sorted([one, other])
    assert reward(metrics(high, cost)) > reward(metrics(low, cost))


def test_iso_reward_lines_by_hand():
    info = iso_reward_info("linear", {"target": 2.0, "weight": 0.1}, [1.0, 2.0, 4.0], [0.3])
    assert info.lines[0.3] == pytest.approx([0.35, 0.4, 0.5])
    assert info.title == "linear, weight 0.1"
    info = iso_reward_info(
        "weighted_product", {"target": 2.0, "alpha": 0, "beta": -1}, [1.0, 2.0, 4.0], [0.3]
    )
    assert info.lines[0.3] == pytest.approx([0.3, 0.3, 0.6])
    assert iso_reward_info("map", {}, [1.0, 2.0], [0.3]).lines[0.3] == [0.3, 0.3]


@given(OPTIONS, st.floats(0.05, 0.9), positive)
def test_every_point_of_a_line_has_the_reward_of_the_line(chosen, level, cost):
    name, options = chosen
    info = iso_reward_info(name, options, [cost], [level])
    assert build_reward(name, options)(metrics(info.lines[level][0], cost)) == pytest.approx(level)


def test_the_picture_is_written(tmp_path):
    names = ("map", "weighted_product", "linear")
    infos = [iso_reward_info(n, {"target": 2.0} if n != "map" else {}, [1.0, 3.0], [0.3]) for n in names]
    draw_iso_reward(infos, tmp_path / "iso.png")
    assert (tmp_path / "iso.png").read_bytes().startswith(b"\x89PNG")
