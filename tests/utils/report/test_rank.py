"""Rankings compared: taus and regrets counted by hand, intervals by what they must contain."""

import math

import numpy as np
import pytest
from scipy.stats import kendalltau

from utils.report.rank import RankRow, Tau, draw_rank, kendall_tau, rank_info, tau_interval, warning


def test_tau_by_hand():
    assert kendall_tau([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert kendall_tau([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # of six pairs five agree: (5 - 1) / 6
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    # one tie in x: of five untied pairs all agree; tau-b = 5 / sqrt(5 * 6)
    assert kendall_tau([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(5 / math.sqrt(30))
    assert math.isnan(kendall_tau([1, 1, 1], [1, 2, 3]))
    assert math.isnan(kendall_tau([1], [1]))


def test_the_interval_is_that_of_resampled_taus():
    rng = np.random.default_rng(3)
    x = rng.normal(size=12)
    y = x + rng.normal(size=12)
    y[3] = y[4]
    low, high = tau_interval(x, y, resamples=4000)
    slow = []
    for _ in range(1500):
        i = rng.integers(12, size=12)
        slow.append(kendalltau(x[i], y[i]).statistic)
    assert (low, high) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.05)
    assert low < kendall_tau(x, y) < high
    narrow = tau_interval(x, y, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert tau_interval(x, y, resamples=4000) == (low, high) != tau_interval(x, y, resamples=4000, seed=1)


def test_intervals_of_samples_that_say_little():
    assert tau_interval([1, 2, 3], [1, 2, 3]) == pytest.approx((1, 1))  # resamples of one value left out
    assert all(map(math.isnan, tau_interval([1, 1, 1], [1, 2, 3])))
    assert all(map(math.isnan, tau_interval([1], [1])))
    assert all(map(math.isnan, tau_interval([], [])))


def rows():
    """Truth .1, .2, .3, .4 in the mean; the supernet swaps the upper two; FLOPs go the wrong way."""
    alone = [(0.10, 0.10), (0.18, 0.22), (0.32, 0.28), (0.37, 0.43)]
    supernet, params, flops = [0.05, 0.06, 0.09, 0.08], [1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]
    return [RankRow(i, supernet[i], alone[i], params[i], flops[i]) for i in range(4)]


def test_the_figures_of_a_comparison_by_hand():
    info = rank_info(rows())
    assert info.seeds == 2 and info.quality == "map50_95"
    assert {k: t.value for k, t in info.tau.items()} == pytest.approx(
        {"supernet": 4 / 6, "gflops": -1, "params_m": 1}
    )
    assert info.ceiling.value == pytest.approx(1)  # both seeds rank alike
    # deviations 0, .02, .02 and .03 from the mean of two: variances 0, .0008, .0008, .0018
    assert info.seed_spread == pytest.approx(math.sqrt(0.0034 / 4))
    # Its first is the one with .3; among its first three is the best of all.
    assert info.regret["supernet"] == pytest.approx({1: 0.1, 3: 0.0})
    assert info.regret["gflops"] == pytest.approx({1: 0.3, 3: 0.1})
    # Three of four drawn: without the best in one of four cases, and then .3 is the best.
    assert info.regret["random"] == pytest.approx({1: 0.15, 3: 0.025})
    assert info.lines()[0].startswith("supernet against training alone: tau 0.67 [")
    assert info.lines()[-1] == (
        "the best of its first 3 is 0.0000 below the best of all (by GFLOPs 0.1000, blindly 0.0250)"
    )


def test_the_ceiling_is_the_mean_over_pairs_of_seeds():
    three = [
        RankRow(i, 0.1 * i, alone, 1.0, 1.0 + i)
        for i, alone in enumerate([(1, 1, 3), (2, 2, 2), (3, 3, 1)])  # taus 1, -1, -1
    ]
    info = rank_info(three)
    assert info.ceiling.value == pytest.approx(-1 / 3)
    assert info.ceiling.low <= -1 / 3 <= info.ceiling.high
    assert math.isnan(info.tau["params_m"].value)


def test_one_seed_has_no_ceiling():
    info = rank_info([RankRow(r.number, r.supernet, r.alone[:1], r.params_m, r.gflops) for r in rows()])
    assert info.ceiling is None and info.seed_spread is None
    assert not any("another" in line for line in info.lines())
    with pytest.raises(ValueError, match=r"same number of seeds, got \[1, 2\]"):
        rank_info([RankRow(0, 0.1, (0.1,), 1, 1), RankRow(1, 0.1, (0.1, 0.2), 1, 1)])
    with pytest.raises(ValueError, match="same number of seeds"):
        rank_info([])


def test_the_picture_is_written(tmp_path):
    path = draw_rank(rank_info(rows(), "top1"), tmp_path / "rank.png")
    assert path.read_bytes()[:4] == b"\x89PNG" and [p.name for p in tmp_path.iterdir()] == ["rank.png"]
    assert str(Tau(0.5, -0.1, 0.9)) == "0.50 [-0.10, 0.90]"


@pytest.mark.parametrize(
    ("supernet", "said"),
    [
        (range(12), ""),
        ([5, 2, 9, 0, 7, 11, 3, 8, 1, 10, 6, 4], "the supernet cannot rank: tau 0.06 ["),
        (range(12, 0, -1), "the supernet cannot rank: tau -1.00 ["),
        ([1] * 12, "the supernet cannot rank: tau nan ["),
        ([1, 0, 2, 3], "the supernet is not shown to rank: tau 0.67 ["),
    ],
)
def test_a_supernet_that_does_not_rank_is_warned_of(supernet, said):
    rows = [RankRow(i, float(s), (float(i), i + 0.5), 1.0, float(-i)) for i, s in enumerate(supernet)]
    line = warning(rank_info(rows))
    assert line.startswith(said) if said else line == ""
    if said:
        assert "GFLOPs alone -1.00 [" in line and f"of {len(rows)} architectures" in line
