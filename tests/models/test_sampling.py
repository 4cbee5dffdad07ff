"""Which archs a supernet trains."""

from pathlib import Path

import numpy as np
import pytest

from models.elastic.space import ElasticSpace
from models.sampling import BestOf, Stratified, generator, in_range, spread
from models.yolo.space import YoloSpace
from utils.errors import UserError

MODELS = Path(__file__).resolve().parents[2] / "models"
SPACE = ElasticSpace(MODELS / "bignas_regnet.yaml")


def gflops(arch):
    return SPACE.cost(arch, 64)["gflops"]


def test_every_rank_draws_the_same_arch_and_every_step_another():
    archs = [[SPACE.random(generator(0, step, k)) for k in range(4)] for step in range(50)]
    assert archs == [[SPACE.random(generator(0, step, k)) for k in range(4)] for step in range(50)]
    assert len({str(a) for step in archs for a in step}) > 190  # of 200, in a space of 11,340
    assert archs[0] != [SPACE.random(generator(1, 0, k)) for k in range(4)]  # the run's seed counts


def test_stratified_draws_are_spread_evenly_over_cost():
    sampler = Stratified(SPACE, 64, seed=0, bins=8, pool=600)
    assert min(sampler.bin_counts) > 0 and sum(sampler.bin_counts) == 600
    rng = np.random.default_rng(0)
    costs = [gflops(sampler(rng)) for _ in range(800)]
    spread = np.histogram(costs, sampler.edges)[0]
    assert spread.min() > 70 and spread.max() < 130  # 100 expected in each
    uniform = np.histogram([gflops(SPACE.random(rng)) for _ in range(800)], sampler.edges)[0]
    assert uniform[0] + uniform[-1] < 20  # what it repairs
    assert Stratified(SPACE, 64, seed=0, bins=8, pool=600).bin_counts == sampler.bin_counts


def test_the_yolo_space_is_stratified_alike():
    space = YoloSpace(MODELS / "yolov5n_nas.yaml", nc=3)
    sampler = Stratified(space, 64, seed=0, bins=6, pool=300)
    assert min(sampler.bin_counts) > 5
    rng = np.random.default_rng(0)
    arch = sampler(rng)
    assert space.canonical(arch) == arch
    wide = [space.biased(rng, 6.0)["c3_2_width"] for _ in range(200)]
    flat = [space.biased(rng, 0.0)["c3_2_width"] for _ in range(200)]
    assert wide.count(2.0) > 160 and 30 < flat.count(2.0) < 70  # .87 and .25 of 200


def test_a_few_archs_are_spread_over_all_costs():
    archs = spread(SPACE, 64, 15, seed=0)
    assert archs == spread(SPACE, 64, 15, seed=0) and len({str(a) for a in archs}) == 15
    assert archs[:2] == [SPACE.smallest(), SPACE.largest()]
    ends = [gflops(a) for a in archs[:2]]
    bins = np.histogram([gflops(a) for a in archs], np.linspace(*ends, 6))[0]
    assert bins.min() >= 2  # of three in each fifth
    assert spread(SPACE, 64, 40)[:20] == spread(SPACE, 64, 20)
    few = {"network": "regnet", "nc": 2, "backbone": {"depth": [1] * 5, "out_channel": 8, "group_width": 8}}
    few["backbone"]["kernel_size"] = {"min": 3, "max": 5, "stride": 2, "sample": "net"}
    assert len(spread(ElasticSpace(few), 64, 15)) == 2  # all there are


def test_best_of_k_keeps_the_lowest_score():
    drawn = []

    def sampler(rng):
        drawn.append(SPACE.random(rng))
        return drawn[-1]

    best = BestOf(sampler, gflops, k=5)(np.random.default_rng(0))
    assert len(drawn) == 5 and gflops(best) == min(map(gflops, drawn))


def test_archs_of_a_cost_range():
    rng = np.random.default_rng(0)
    middle = gflops(SPACE.default()) * 0.6
    found = in_range(SPACE, rng, 0.95 * middle, 1.05 * middle, 64, n=20)
    assert len({str(a) for a in found}) == 20
    assert all(0.95 * middle <= gflops(a) <= 1.05 * middle for a in found)
    smallest = gflops(SPACE.smallest())
    assert in_range(SPACE, rng, 0, smallest, 64) == [SPACE.smallest()]


def test_a_cost_range_that_no_arch_meets_is_bounded_and_says_the_nearest():
    rng, smallest = np.random.default_rng(0), gflops(SPACE.smallest())
    with pytest.raises(
        UserError, match=f"in 100 draws has gflops from 0 to 0.001; the nearest has {smallest:.6g}"
    ):
        in_range(SPACE, rng, 0, 0.001, 64, tries=100)
    with pytest.raises(UserError, match="only 1 of 2 architectures"):
        in_range(SPACE, rng, 0, smallest, 64, n=2, tries=50)
    with pytest.raises(UserError, match="range 2 to 1 is empty"):
        in_range(SPACE, rng, 2, 1, 64)
