"""Archs, their number and costs: worked out by hand, published, or counted on the built network."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.networks import build, describe
from models.yolo.parse import read
from models.yolo.space import YoloSpace
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SEED = Path(__file__).parent / "fixtures" / "yolov5s_seed.yaml"

# The decisions of the original on a yolov5s, its widths of bottlenecks left out: row 0 has 3 kernels x 3
# activations, rows 1, 3, 5, 7 have 2 x 3; each C3 has 3 widths x (2 kernels x 3 activations) for cv1 and cv2.
SEED_LAYER_CHOICES = 9 * 6**4 * 108**4


def small(**row):
    """One NASC3 behind a stem: a network that takes milliseconds to build."""
    return {
        "nc": 2,
        "backbone": [[-1, 1, "Conv", [8, 3, 16]], [-1, 2, "NASC3", [8, row]]],
        "head": [[[1], 1, "Detect", ["nc"]]],
    }


def counted(detector, imgsz):
    """params_m and gflops of a built network, as torch counts them."""
    model = detector.model.eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, imgsz, imgsz))
    params = sum(p.numel() for p in model.parameters())
    return {"params_m": params / 1e6, "gflops": counter.get_total_flops() / 1e9}


def signature(detector):
    """What makes two networks the same network: their layers and shapes."""
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.SiLU, nn.ReLU, nn.Identity)
    return tuple(
        f"{name} {module}" for name, module in detector.model.named_modules() if isinstance(module, kinds)
    )


def test_the_seeds_own_count():
    assert SEED_LAYER_CHOICES == 1_586_874_322_944
    model = YoloSpace(SEED).model
    only_layers = model | {"choices": {"NASC3": {"bottleneck": 1.0, "depth": "n"}}}
    assert len(YoloSpace(only_layers).choices) == 30
    assert YoloSpace(only_layers).size() == (SEED_LAYER_CHOICES, SEED_LAYER_CHOICES)
    with_bottlenecks = model | {
        "choices": {"NASC3": {"depth": "n"}}
    }  # 1 + 2 + 3 + 1 bottlenecks, 3 widths each
    assert YoloSpace(with_bottlenecks).size() == (SEED_LAYER_CHOICES * 3**7,) * 2


def test_bottlenecks_beyond_the_depth_are_not_counted():
    raw, distinct = YoloSpace(SEED).size()
    assert raw == SEED_LAYER_CHOICES * 3**7 * (2 * 3)  # depths 1..2 in row 4, 1..3 in row 6
    # per C3: 36 kernels and activations x 3 widths x (3^1 + ... + 3^n)
    assert distinct == 9 * 6**4 * (108 * 3) * (108 * (3 + 9)) * (108 * (3 + 9 + 27)) * (108 * 3)


@pytest.mark.parametrize(
    ("row", "by_hand"),
    [
        # 2 widths x (3 + 9) chains of bottlenecks
        ({"width": [1.0, 2.0], "kernel": 1, "act": "SiLU"}, (2 * 2 * 9, 2 * (3 + 9))),
        # hidden 4 -> bottlenecks of 4, 4, 6; hidden 12 -> 12, 13, 18: the first two are one only when narrow
        (
            {"width": [1.0, 3.0], "bottleneck": [1.0, 1.1, 1.5], "kernel": 1, "act": "SiLU"},
            (2 * 2 * 9, (2 + 4) + (3 + 9)),
        ),
        ({"width": 1.0, "bottleneck": 1.0, "depth": [1, 2]}, ((2 * 3) ** 2 * 2,) * 2),
        ({"width": 1.0, "kernel": [1, 3], "act": ["ReLU"], "bottleneck": [2.0, 1.0], "depth": 2}, (16, 16)),
    ],
)
def test_distinct_by_brute_force(row, by_hand):
    space = YoloSpace(small(**row))
    assert space.size() == by_hand
    raw = [dict(zip(space.choices, values, strict=True)) for values in product(*space.choices.values())]
    assert len(raw) == by_hand[0]
    forms = {tuple(space.canonical(arch).items()) for arch in raw}
    assert len(forms) == by_hand[1]
    networks = {signature(build(space, dict(form))) for form in forms}
    assert len(networks) == by_hand[1]  # no two canonical archs build the same


def test_canonical_and_complete():
    space = YoloSpace(small(width=[1.0, 3.0], bottleneck=[1.0, 1.1, 1.5], kernel=1, act="SiLU"))
    arch = {"c3_1_m1": 1.5, "c3_1_m0": 1.1, "c3_1_depth": 1, "c3_1_width": 1}
    assert space.canonical(arch) == {"c3_1_width": 1.0, "c3_1_depth": 1, "c3_1_m0": 1.0}
    assert list(space.canonical(arch)) == ["c3_1_width", "c3_1_depth", "c3_1_m0"]
    assert isinstance(space.canonical(arch)["c3_1_width"], float)  # one spelling, whatever a JSON file says
    assert space.complete(arch) == {"c3_1_width": 1.0, "c3_1_depth": 1, "c3_1_m0": 1.0, "c3_1_m1": 1.0}
    assert space.default() == {"c3_1_width": 1.0, "c3_1_depth": 2, "c3_1_m0": 1.0, "c3_1_m1": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"nasconv_00": "6x6"},
            "unknown choice in an arch of yolov5s_seed 'nasconv_00'; did you mean 'nasconv_0'",
        ),
        ({"nasconv_0": "7x7"}, "unknown value of nasconv_0 '7x7'"),
        ({"nasconv_0_act": "relu"}, "unknown value of nasconv_0_act 'relu'; did you mean 'ReLU'"),
        ({"c3_6_depth": 4}, "unknown value of c3_6_depth '4'; known: 3, 1, 2"),
        ({"c3_6_depth": "3"}, "unknown value of c3_6_depth '3'"),
        ({"c3_6_depth": [1]}, "unknown value of c3_6_depth '\\[1\\]'"),
    ],
)
def test_archs_of_another_space(change, message):
    space = YoloSpace(SEED)
    for refuse in (space.canonical, space.complete, lambda a: space.cost(a, 64), lambda a: build(space, a)):
        with pytest.raises(UserError, match=message):
            refuse(space.default() | change)


def test_an_arch_that_says_too_little():
    space = YoloSpace(SEED)
    arch = space.default()
    del arch["nasconv_3_act"]
    with pytest.raises(UserError, match="the arch says nothing about 'nasconv_3_act'"):
        space.canonical(arch)


def test_random_archs_follow_their_generator():
    space = YoloSpace(SEED)
    one, two = ([space.random(np.random.default_rng(s)) for _ in range(1)] for s in (3, 3))
    assert one == two
    rng = np.random.default_rng(0)
    archs = [space.random(rng) for _ in range(600)]
    assert all(space.canonical(a) == a for a in archs)
    depths = [a["c3_6_depth"] for a in archs]
    assert all(150 < depths.count(d) < 250 for d in (1, 2, 3))  # 200 expected, 4 sigma
    assert all(("c3_6_m2" in a) == (a["c3_6_depth"] == 3) for a in archs)


def test_cost_of_one_convolution_by_hand():
    row = {"kernel": [3, 5], "act": ["SiLU", "ReLU"]}
    space = YoloSpace(
        {"nc": 1, "backbone": [[-1, 1, "NASConv", [8, 3, 2, row]]], "head": [[[0], 1, "Detect", ["nc"]]]}
    )
    three, five = (space.cost({"nasconv_0": k, "nasconv_0_act": "ReLU"}, 64) for k in ("3x3", "5x5"))
    assert round((five["params_m"] - three["params_m"]) * 1e6) == 3 * 8 * (25 - 9)
    assert round((five["gflops"] - three["gflops"]) * 1e9) == 2 * 3 * 8 * (25 - 9) * 32 * 32
    # Detect on 8 channels: box tower 64 wide, class tower 8 wide, 16 bins, 1 class
    box = 8 * 64 * 9 + 128 + 64 * 64 * 9 + 128 + 64 * 64 + 64
    cls = 8 * 8 * 9 + 16 + 8 * 8 * 9 + 16 + 8 + 1
    assert round(three["params_m"] * 1e6) == (3 * 8 * 9 + 16) + box + cls + 16


@pytest.mark.parametrize(("letter", "params"), [("n", 2_654_816), ("s", 9_153_152), ("m", 25_111_456)])
def test_published_sizes(letter, params):
    """Ultralytics' own table for its v5 files at 80 classes (yolov5s 9.15 M)."""
    stock = YoloSpace(f"yolov5{letter}.yaml")
    assert stock.cost(stock.default(), 640)["params_m"] == params / 1e6
    space = YoloSpace(ROOT / "models" / f"yolov5{letter}_nas.yaml")
    assert space.cost(space.default(), 640) == stock.cost(stock.default(), 640)


def test_costs_equal_the_built_network():
    model = {
        "nc": 3,
        "backbone": [
            [-1, 1, "NASConv", [8, 6, 2, 2]],
            [-1, 2, "NASC3", [16]],
            [-1, 1, "NASConv", [24, 3, 2]],
        ],
        "head": [[-1, 2, "NASC3", [32, False, 2, {"act": "SiLU"}]], [[1, 3], 1, "Detect", ["nc"]]],
    }
    space, rng = YoloSpace(model), np.random.default_rng(0)
    for _ in range(40):  # experiments/benchmarks/cost_model.py does 200 of a yolov5n
        arch = space.random(rng)
        assert space.cost(arch, 64) == counted(build(space, arch), 64)


def test_costs_equal_the_built_yolov5n():
    space, rng = YoloSpace(ROOT / "models/yolov5n_nas.yaml", nc=10), np.random.default_rng(1)
    for arch in [space.default(), space.smallest(), space.largest(), *(space.random(rng) for _ in range(5))]:
        assert space.cost(arch, 96) == counted(build(space, arch), 96)


@pytest.mark.parametrize(
    "row",
    [
        [-1, 1, "Conv", [16, 3, 2, None, 8]],
        [-1, 1, "Conv", [16, 3, 1, None, 1, 2]],
        [-1, 2, "Conv", [8, 3]],
        [-1, 1, "DWConv", [16, 3]],
        [-1, 1, "Focus", [16, 3]],
        [-1, 1, "GhostConv", [16, 3, 2]],
        [-1, 1, "GhostBottleneck", [16, 3, 2]],
        [-1, 2, "GhostBottleneck", [8]],
        [-1, 1, "Bottleneck", [16, False, 2]],
        [-1, 2, "BottleneckCSP", [16]],
        [-1, 2, "C3", [16, False, 2, 0.75]],
        [-1, 2, "C3x", [16]],
        [-1, 2, "C3Ghost", [16]],
        [-1, 2, "C2f", [16, True]],
        [-1, 1, "SPP", [16, [5, 9]]],
        [-1, 1, "SPPF", [16, 5]],
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [-1, 1, "nn.MaxPool2d", [2, 2, 0]],
        [-1, 1, "nn.ZeroPad2d", [[0, 1, 0, 1]]],
        [-1, 1, "nn.Identity", []],
    ],
)
@pytest.mark.parametrize("keys", [{}, {"reg_max": 1}, {"width_multiple": 0.5, "depth_multiple": 0.5}])
def test_every_stock_block_costs_what_it_costs(row, keys):
    if keys.get("width_multiple") and row[2] in ("GhostBottleneck", "Conv") and row[1] > 1:
        pytest.skip("does not fit after scaling, in the stock parser either")
    model = {"nc": 2, "backbone": [[-1, 1, "Conv", [8, 3, 2]], row], "head": [[[1], 1, "Detect", ["nc"]]]}
    model["choices"] = {}
    space = YoloSpace(model | keys)
    assert space.cost({}, 64) == counted(build(space, {}), 64)


def test_a_network_without_choices():
    space = YoloSpace(read("yolov5n.yaml") | {"choices": {}}, nc=2)
    assert space.random(np.random.default_rng(0)) == space.smallest() == space.largest() == {}
    assert space.size() == (1, 1)
    with pytest.raises(UserError, match="unknown choice in an arch of yolov5n 'nasconv_0'"):
        space.canonical({"nasconv_0": "6x6"})


def test_extremes_bound_every_arch():
    space, rng = YoloSpace(SEED), np.random.default_rng(0)
    low, high = space.cost(space.smallest(), 640), space.cost(space.largest(), 640)
    for _ in range(300):
        cost = space.cost(space.random(rng), 640)
        assert all(low[key] <= cost[key] <= high[key] for key in cost)
    assert space.smallest()["c3_6_depth"] == 1
    assert space.largest()["nasconv_0"] == "8x8"


def test_the_image_size_may_be_searched():
    plain, sizes = small(), {"resolution": {"values": [16, 32, 64], "middle": 32}}
    fixed, space = YoloSpace(plain), YoloSpace(plain | sizes)
    assert list(space.choices)[-1] == "resolution" and space.choices["resolution"] == [32, 16, 64]
    assert space.size() == tuple(3 * n for n in fixed.size())
    assert space.default() == fixed.default() | {"resolution": 32}
    assert space.smallest()["resolution"] == 16 and space.largest()["resolution"] == 64
    rng = np.random.default_rng(0)
    drawn = [space.random(rng) for _ in range(100)]
    assert {arch["resolution"] for arch in drawn} == {16, 32, 64}
    for arch in drawn:
        without = {k: v for k, v in arch.items() if k != "resolution"}
        assert space.cost(arch, 32) == fixed.cost(without, arch["resolution"])
        assert space.canonical(space.complete(arch)) == arch
        with pytest.raises(UserError, match="says nothing about 'resolution'"):
            space.canonical(without)
    assert space.decided(lambda choice: choice.largest)["resolution"] == 64
    with pytest.raises(UserError, match="resolution should be multiples of the stride 16, got 24"):
        YoloSpace(plain | {"resolution": [16, 24]})


@pytest.mark.parametrize("imgsz", [100, 0, -32, 31, True, 64.0])
def test_image_sizes_that_do_not_fit(imgsz):
    with pytest.raises(UserError, match=f"imgsz {imgsz} is not a multiple of the stride 32; try (32|64|96)"):
        YoloSpace(SEED).cost(YoloSpace(SEED).default(), imgsz)


def test_describe():
    model = small(width=[1.0, 2.0], kernel=1, act="SiLU", bottleneck=1.0)
    text = describe(YoloSpace(model | {"name": "demo"}), 64)
    assert text.splitlines()[:6] == [
        "demo: 2 classes, 3 rows, 2 choices",
        "",
        "  c3_1_width  1.0  2.0",
        "  c3_1_depth  2  1",
        "",
        "archs: 4 raw, 4 distinct",
    ]
    assert [line.split()[0] for line in text.splitlines()[-3:]] == ["smallest", "default", "largest"]
    assert "fixed" in describe(YoloSpace(read("yolov5n.yaml") | {"choices": {}}), 640)
    assert "1.58e12" in describe(
        YoloSpace(YoloSpace(SEED).model | {"choices": {"NASC3": {"bottleneck": 1, "depth": "n"}}}), 64
    )
