"""What is told of a space without training: every arch once, even strides, ranges of cost, files."""

import csv
from itertools import product

import pytest
import yaml

from experiments.sample import describe_space, draw, sample_costs, summary, traversed, write_sample
from models.networks import open_any_space
from tests.models.test_supernet import REGNET
from utils.errors import UserError
from utils.history import arch_key

MINI = {
    "name": "mini",
    "network": "retinanet",
    "nc": 10,
    "backbone": {
        "depth": {"min": 1, "max": [1, 2, 1, 1, 1]},
        "out_channel": {"min": [8, 8, 8, 16, 16], "max": [8, 16, 16, 16, 16], "stride": 8},
        "kernel_size": {"values": [[3], [3, 5], [3], [3], [3]], "sample": "block"},
    },
    "neck": {"depth": [2, 3], "out_channel": 16},
    "head": {"depth": [1], "out_channel": {"values": [8, 16]}},
    "options": {"anchor_scales": [1.0, 2.0], "anchor_ratios": [1.0]},
    "resolution": [32, 64],
}
ORDERED = {
    **REGNET,
    "backbone": {
        "depth": {"min": 1, "max": [1, 1, 2, 2, 1], "order": {}},
        "out_channel": {"min": 16, "max": 48, "stride": 16, "order": {}},
        "group_width": 8,
    },
}


def brute_force(space):
    """Every canonical arch, from the product of all choices."""
    found = set()
    for values in product(*space.choices.values()):
        try:
            found.add(arch_key(space.canonical(dict(zip(space.choices, values, strict=True)))))
        except UserError:  # an order is broken
            continue
    return found


@pytest.mark.parametrize("model", [MINI, ORDERED], ids=["gated", "ordered"])
def test_traversing_meets_every_arch_once(model):
    space = open_any_space(model)
    archs = traversed(space, 10**6)
    assert len(archs) == len({arch_key(a) for a in archs}) == space.size()[1]
    assert {arch_key(a) for a in archs} == brute_force(space)
    assert archs[0] == space.smallest() and archs[-1] == space.largest()


def test_even_strides_are_those_of_the_full_list():
    space = open_any_space(REGNET)
    every = traversed(space, 1152)
    assert len(every) == 1152
    some = traversed(space, 24)
    assert some == [every[i * 1151 // 23] for i in range(24)]
    assert traversed(space, 1) == [space.smallest()]


def test_strides_through_what_cannot_be_listed():
    space = open_any_space("models/yolov5n_nas.yaml")
    assert space.size()[1] > 10**17
    archs = traversed(space, 200)
    assert len({arch_key(a) for a in archs}) == len(archs) == 200
    assert archs == [space.canonical(a) for a in archs] == traversed(space, 200)
    first, values = next(iter(space.choices.items()))  # decided first, its values are met in equal shares
    counts = [sum(a[first] == v for a in archs) for v in values]
    assert max(counts) - min(counts) <= 2


def test_archs_of_a_cost_range():
    space = open_any_space(MINI)
    costs = sorted(space.cost(a, 64)["gflops"] for a in traversed(space, 10**6))
    low, high = costs[len(costs) // 4], costs[len(costs) // 2]
    inside = sum(low <= c <= high for c in costs)
    walked = draw(space, 64, 10**6, 0, low, high, traverse=True)
    assert len(walked.archs) == inside and walked.gflops.min() == low and walked.gflops.max() == high
    drawn = draw(space, 64, 20, 0, low, high)
    assert len({arch_key(a) for a in drawn.archs}) == 20
    assert low <= drawn.gflops.min() and drawn.gflops.max() <= high
    assert drawn.archs == draw(space, 64, 20, 0, low, high).archs
    with pytest.raises(UserError, match=f"the nearest has {costs[-1]:.6g}"):
        draw(space, 64, 10**6, 0, 2 * costs[-1], 3 * costs[-1], traverse=True)
    with pytest.raises(UserError, match=f"the nearest has {costs[-1]:.6g}"):
        draw(space, 64, 3, 0, 2 * costs[-1], 3 * costs[-1])


def test_ten_thousand_in_seconds():
    space = open_any_space("models/bignas_retinanet_r18.yaml")
    assert draw(space, 512, 10_000, 0).seconds < 8  # 0.7 s alone on a core
    assert draw(space, 512, 10_000, 0, traverse=True).seconds < 20  # 2.8 s


def test_the_files_of_a_sample(tmp_path):
    space = open_any_space(MINI)
    sample = draw(space, 64, 50, 0)
    table, picture = write_sample(sample, space, 64, tmp_path / "out")
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 50 and list(rows[0]) == ["params_m", "gflops", *space.choices]
    for row, arch in zip(rows, sample.archs, strict=True):
        assert {k: row[k] for k in space.choices if row[k]} == {k: str(v) for k, v in arch.items()}
        assert float(row["gflops"]) == space.cost(arch, 64)["gflops"]
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "50 random architectures of mini at their resolutions" in summary(sample, space, 64)


def test_the_files_of_a_sample_of_codes(tmp_path):
    space = open_any_space("models/spnas_small.yaml", nc=3)
    for traverse in (False, True):
        sample = draw(space, 64, 5, 0, traverse=traverse)
        table, _ = write_sample(sample, space, 64, tmp_path / str(traverse))
        assert [row["code"] for row in csv.DictReader(table.open())] == [a["code"] for a in sample.archs]


def test_the_commands(tiny, tmp_path):
    (tmp_path / "mini.yaml").write_text(yaml.safe_dump(MINI))
    overrides = ["space=mini.yaml"]
    text = describe_space(tiny, overrides)
    assert "mini: 10 classes, network retinanet with stages: backbone of 5, neck of 2, head of 1" in text
    assert "archs: 128 raw, 96 distinct" in text and "each at its resolution  params (M)" in text
    assert "96 architectures in even strides" in sample_costs(
        tiny, overrides, n=1000, out=tmp_path / "s", traverse=True
    )
    with pytest.raises(UserError, match="never overwritten"):
        sample_costs(tiny, overrides, n=10, out=tmp_path / "s")
    with pytest.raises(UserError, match="at least 1"):
        sample_costs(tiny, overrides, n=0, out=tmp_path / "t")
