"""Fronts, volumes and knees worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.errors import UserError
from utils.history import Trial
from utils.pareto import as_costs, crowding, dominates, hypervolume, knee, pareto_front, sort_fronts

BOTH = {"map50_95": "max", "gflops": "min"}


def trial(number, map50_95, gflops, state="complete"):
    return Trial(number, {"x": number}, {"map50_95": map50_95, "gflops": gflops}, map50_95, state)


def test_a_literal_front():
    trials = [
        trial(0, 0.50, 2.0),  # on the front
        trial(1, 0.40, 3.0),  # dominated by 0
        trial(2, 0.60, 4.0),  # on the front
        trial(3, 0.10, 0.5),  # on the front, cheapest
        trial(4, 0.50, 2.5),  # dominated by 0: equal mAP, dearer
        trial(5, 0.99, 0.1, state="failed"),
        trial(6, float("nan"), 9.0),
        trial(7, 0.50, 2.0),  # equal to 0: neither dominates
    ]
    assert [t.number for t in pareto_front(trials, BOTH)] == [2, 0, 7, 3]
    assert [t.number for t in pareto_front(trials, {"gflops": "min"})] == [3]
    assert [t.number for t in pareto_front(trials, {"gflops": "min", "map50_95": "max"})] == [3, 0, 7, 2]


def test_no_trials_no_front():
    assert pareto_front([], BOTH) == []
    assert pareto_front([trial(0, 0.5, 1.0, state="failed")], BOTH) == []


def test_a_trial_without_the_metric_is_left_out_and_a_misspelt_metric_is_named():
    half = Trial(1, {}, {"map50_95": 0.9}, 0.9)
    assert [t.number for t in pareto_front([trial(0, 0.5, 1.0), half], BOTH)] == [0]
    with pytest.raises(UserError, match="unknown objective 'gflop'; did you mean 'gflops'"):
        pareto_front([trial(0, 0.5, 1.0)], {"map50_95": "max", "gflop": "min"})
    with pytest.raises(UserError, match="direction of objective 'gflops' 'mim'; did you mean 'min'"):
        pareto_front([], {"gflops": "mim"})
    with pytest.raises(UserError, match="objectives is empty"):
        pareto_front([], {})


def test_dominance():
    a, b, c = np.array([1.0, 2.0]), np.array([1.0, 3.0]), np.array([0.5, 9.0])
    assert dominates(a, b) and not dominates(b, a)
    assert not dominates(a, a.copy())
    assert not dominates(a, c) and not dominates(c, a)


def test_fronts_one_after_the_other():
    costs = np.array([[1.0, 4.0], [2.0, 2.0], [4.0, 1.0], [2.0, 5.0], [3.0, 3.0], [5.0, 5.0]])
    assert sort_fronts(costs) == [[0, 1, 2], [3, 4], [5]]
    assert sort_fronts(costs[:0]) == []


def test_crowding_of_a_front_by_hand():
    # Both spans are 4; a middle point gets (distance of its neighbours) / span in each objective.
    costs = np.array([[0.0, 4.0], [1.0, 2.0], [2.0, 1.0], [4.0, 0.0]])
    found = crowding(costs)
    assert np.isinf(found[[0, 3]]).all()
    assert found[1] / found[2] == pytest.approx((2 / 4 + 3 / 4) / (3 / 4 + 2 / 4))
    assert np.isinf(crowding(costs[:2])).all()
    assert np.isfinite(crowding(costs[:3])).tolist() == [False, True, False]


def test_hypervolume_by_hand():
    # Against mAP 0 and 4 GFLOPs: 0.5 x (4 - 1) + (0.8 - 0.5) x (4 - 3)
    front = [trial(0, 0.5, 1.0), trial(1, 0.8, 3.0)]
    reference = {"map50_95": 0.0, "gflops": 4.0}
    assert hypervolume(front, BOTH, reference) == pytest.approx(1.8)
    assert hypervolume([*front, trial(2, 0.4, 2.0)], BOTH, reference) == pytest.approx(1.8)  # dominated
    assert hypervolume([*front, trial(3, 0.9, 5.0)], BOTH, reference) == pytest.approx(
        1.8
    )  # beyond the reference
    assert hypervolume([], BOTH, reference) == 0.0
    with pytest.raises(UserError, match="no 'gflops'"):
        hypervolume(front, BOTH, {"map50_95": 0.0})


def test_knee_of_a_bent_front():
    bent = [trial(0, 1.0, 10.0), trial(1, 0.9, 2.0), trial(2, 0.5, 1.5), trial(3, 0.0, 0.0)]
    # scaled sums: 0+1, 0.1+0.2, 0.5+0.15, 1+0
    assert knee(bent, BOTH).number == 1
    assert knee(list(reversed(bent)), BOTH).number == 1
    near = trial(4, 0.97, 3.2)  # 0.03 + 0.32: better by mAP, but not at the knee
    assert knee([*bent, near], BOTH).number == 1


@pytest.mark.parametrize(
    "front",
    [
        [trial(4, 0.5, 1.0)],
        [trial(4, 0.5, 2.0), trial(1, 0.4, 1.0)],
        [trial(4, 0.6, 3.0), trial(1, 0.5, 2.0), trial(2, 0.4, 1.0)],  # straight
        [trial(4, 0.6, 3.0), trial(1, 0.41, 2.0), trial(2, 0.4, 1.0)],  # bulging away from the ideal
        [trial(4, 0.6, 3.0), trial(7, 0.6, 3.0)],  # equal
    ],
)
def test_without_a_knee_the_first_objective_decides(front):
    assert knee(front, BOTH).number == 4


def test_an_empty_front_has_no_knee():
    with pytest.raises(ValueError, match="empty"):
        knee([], BOTH)


values = st.integers(0, 6)


@given(st.lists(st.tuples(values, values, values), min_size=1, max_size=20))
def test_the_front_is_what_the_definition_says(points):
    ways = {"a": "max", "b": "min", "c": "min"}
    trials = [Trial(i, {}, dict(zip("abc", map(float, p), strict=True)), 0.0) for i, p in enumerate(points)]
    costs = as_costs([t.metrics for t in trials], ways)
    expected = {i for i in range(len(trials)) if not any(dominates(other, costs[i]) for other in costs)}
    assert {t.number for t in pareto_front(trials, ways)} == expected
