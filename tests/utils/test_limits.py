"""Limits: what can be written, how much is broken, and whether any architecture meets them."""

import numpy as np
import pytest

from models.space import Choice, LabelledSpace
from utils.errors import UserError
from utils.limits import Limit, _downhill, broken, check_limits, parse_limits, steer, violation


class Blocks(LabelledSpace):
    """Ten blocks of width 1, 2 or 3: gflops is their sum, params_m the sum of their squares."""

    def __init__(self):
        self._label([Choice(f"b{i}", (2, 1, 3)) for i in range(10)])

    def random(self, rng):
        return {label: c[rng.integers(3)] for label, c in self.choices.items()}

    def canonical(self, arch):
        return dict(arch)

    _canonical = canonical

    def cost(self, arch, imgsz):
        return {"gflops": float(sum(arch.values())), "params_m": float(sum(v * v for v in arch.values()))}


def check(limits, **kwargs):
    return check_limits(Blocks(), parse_limits(limits), 64, np.random.default_rng(0), **kwargs)


def test_what_can_be_written():
    assert parse_limits({"gflops": "<= 4", "params_m": ">=0.5, <= 2", "latency_ms": 7}) == [
        Limit("gflops", "<=", 4.0),
        Limit("params_m", ">=", 0.5),
        Limit("params_m", "<=", 2.0),
        Limit("latency_ms", "<=", 7.0),
    ]
    assert parse_limits({}) == []


def test_a_bound_may_be_a_multiple_of_the_baseline():
    given = {"gflops": "<= baseline", "params_m": ">= 0.5 baseline, <= 3", "latency_ms": "<=baseline"}
    assert parse_limits(given, {"gflops": 0.0707, "params_m": 2.0}) == [
        Limit("gflops", "<=", 0.0707),
        Limit("params_m", ">=", 1.0),
        Limit("params_m", "<=", 3.0),
    ]  # the baseline's latency is not known here
    assert parse_limits(given) == [Limit("params_m", "<=", 3.0)]


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        ({"glops": "<= 4"}, "unknown limit 'glops'; did you mean 'gflops'"),
        ({"map50_95": ">= 0.4"}, "unknown limit 'map50_95'"),
        ({"gflops": "< 4"}, "limit of gflops is '< 4'; write '<= 4', '>= 4' or '<= 0.8 baseline'"),
        ({"gflops": "<= four"}, "limit of gflops is '<= four'"),
        ({"gflops": "<= nan"}, "limit of gflops is '<= nan'"),
        ({"gflops": "=< 4"}, "limit of gflops is '=< 4'"),
        ({"gflops": True}, "limit of gflops is True"),
        ({"gflops": ""}, "limit of gflops is ''"),
    ],
)
def test_what_a_user_gets_wrong(limits, line):
    with pytest.raises(UserError) as error:
        parse_limits(limits)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_violation_is_relative_to_the_bound():
    (at_most,) = parse_limits({"gflops": "<= 4"})
    assert [at_most.violation({"gflops": g}) for g in (3.0, 4.0, 5.0)] == [0.0, 0.0, 0.25]
    (at_least,) = parse_limits({"gflops": ">= 4"})
    assert [at_least.violation({"gflops": g}) for g in (3.0, 4.0, 5.0)] == [0.25, 0.0, 0.0]
    assert Limit("gflops", "<=", 0.0).violation({"gflops": 3.0}) == 3.0  # no bound to be relative to
    assert Limit("gflops", "<=", -2.0).violation({"gflops": 1.0}) == 1.5
    limits = parse_limits({"gflops": "<= 4", "params_m": "<= 2"})
    assert violation(limits, {"gflops": 5.0, "params_m": 3.0}) == 0.75
    assert broken(limits, {"gflops": 5.0, "params_m": 3.0}) == "gflops 5 breaks <= 4; params_m 3 breaks <= 2"
    assert broken(limits, {"gflops": 5.1, "params_m": 1.0}) == "gflops 5.1 breaks <= 4"
    assert broken(limits, {"gflops": 4.0, "params_m": 2.0}) is None


def test_limits_that_can_be_met():
    assert check({}) == 1.0
    assert check({"gflops": "<= 100"}) == 1.0
    assert 0.3 < check({"gflops": "<= 20"}) < 0.8
    assert check({"latency_ms": "<= 0"}) == 1.0  # not known before it is measured


def test_a_single_feasible_arch_is_found_though_no_sample_is():
    assert check({"gflops": "<= 10"}) == 0.0
    assert check({"gflops": ">= 30"}) == 0.0
    assert check({"gflops": ">= 11, <= 11"}) == 0.0


def test_limits_that_no_arch_meets_are_named_with_the_nearest_values():
    with pytest.raises(UserError, match=r"meets the limits gflops <= 9\.5; the nearest has gflops 10$"):
        check({"gflops": "<= 9.5"})
    # 29 GFLOPs need nine blocks of width 3, so at least 9 x 9 + 2 x 2 parameters
    line = r"gflops >= 29, params_m <= 84; the nearest has gflops \S+, params_m \S+$"
    with pytest.raises(UserError, match=line):
        check({"gflops": ">= 29", "params_m": "<= 84"})
    with pytest.raises(UserError, match="the nearest has latency_ms 10"):
        check({"latency_ms": "<= 9"}, cost=lambda arch: {"latency_ms": float(sum(arch.values()))})


def test_going_downhill_takes_the_best_step_and_stops_at_the_foot():
    asked = []

    def total(arch):
        asked.append(arch)
        return max(0.0, sum(arch.values()) - 18.5)

    space = Blocks()
    foot = _downhill(space, space.default(), total)
    assert sum(foot.values()) == 18 and len(asked) == 1 + 2 * 20  # two steps of ten choices with two others
    asked.clear()
    assert _downhill(space, foot, total) == foot and asked == [foot]  # nothing to gain: nothing is priced
    asked.clear()
    assert _downhill(space, space.default(), lambda arch: 1.0) == space.default()  # no step helps


def test_steering_ends_within_the_limits_and_changes_nothing_that_is():
    space, rng = Blocks(), np.random.default_rng(0)
    limits = parse_limits({"gflops": "<= 12"})

    def price(arch):
        return space.cost(arch, 64)

    ends = [steer(space, space.random(rng), limits, price, rng) for _ in range(20)]
    assert all(price(arch)["gflops"] <= 12 for arch in ends)
    assert len({str(arch) for arch in ends}) > 10
    assert steer(space, ends[0], limits, price, rng) == ends[0]
    # Where nothing meets them it comes as near as it can, and ends.
    impossible = parse_limits({"gflops": "<= 5"})
    assert price(steer(space, space.default(), impossible, price, rng))["gflops"] <= 12
