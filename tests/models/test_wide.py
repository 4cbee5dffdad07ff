"""A space whose channels out, neck and detection levels vary: priced, built, sliced, started from weights and
exported as the same network."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.export import export
from models.inherit import Source, inherit
from models.networks import build
from models.supernet import Supernet, calibrated, inherit_supernet, is_plain
from models.yolo.space import YoloSpace
from tests.models.elastic_kinds import scramble
from tests.models.test_inherit import as_file, same
from tests.models.test_yolo_elastic import BATCH, IMAGES, kinds, raw
from utils.errors import UserError
from utils.training.measure import count_flops, count_params

MODELS = Path(__file__).resolve().parents[2] / "models"
WIDE = MODELS / "yolov5n_wide_nas.yaml"
SHAPE = ("depth", "width", "out", "levels")


@pytest.fixture(scope="module")
def space():
    return YoloSpace(WIDE, nc=3)


@pytest.fixture(scope="module")
def supernet(space):
    torch.manual_seed(0)
    net = Supernet(space.model, nc=3)
    scramble(net)
    return net


def archs(space, n=4):
    rng = np.random.default_rng(0)
    return [space.default(), space.smallest(), space.largest(), *(space.random(rng) for _ in range(n))]


def tiny(conv=None, c3=None, head=None, more=(), **keys):
    """A stem, a NASConv and a NASC3, levels P4 and P5, of which the head may read fewer."""
    fixed = {"kernel": "k", "act": "SiLU"}
    backbone = [
        [-1, 1, "Conv", [16, 3, 16]],
        [-1, 1, "NASConv", [32, 3, 2, fixed | (conv or {})]],
        [-1, 1, "NASC3", [32, {"kernel": 1, "act": "SiLU", "width": 1.0, "bottleneck": 1.0} | (c3 or {})]],
        *more,
    ]
    rows = [[-1, 1, "nn.Upsample", [None, 2, "nearest"]], [[-1, 0], 1, "Concat", [1]]]
    rows.append([-1, 1, "NASConv", [16, 3, 1, fixed]])
    n = len(backbone)
    return {
        "nc": 2,
        "backbone": backbone,
        "head": [*rows, [[2, n + 2], 1, "Detect", ["nc", *([head] if head else [])]]],
        **keys,
    }


def test_it_reaches_from_a_quarter_to_twice_the_unsearched_network(space):
    seed = YoloSpace(MODELS / "yolov5n_nas.yaml", nc=3)
    unsearched = space.cost(space.default(), 160)
    assert unsearched == seed.cost(seed.default(), 160)
    assert space.cost(space.smallest(), 160)["gflops"] < 0.25 * unsearched["gflops"]
    assert space.cost(space.largest(), 160)["gflops"] > 2 * unsearched["gflops"]
    for label, values in seed.choices.items():
        assert space.choices[label] == values
    arch = seed.random(np.random.default_rng(1))
    assert space.cost(space.default() | arch, 160) == seed.cost(arch, 160)


def test_costs_equal_the_built_network(space):
    for arch in archs(space, 3):
        net = build(space, arch)
        assert space.cost(arch, 96) == {
            "params_m": count_params(net) / 1e6,
            "gflops": count_flops(net, 96) / 1e9,
        }


def test_costs_do_not_hang_on_what_was_priced_before(space):
    rng = np.random.default_rng(5)
    found = [space.random(rng) for _ in range(200)]
    warm = [space.cost(arch, 160) for arch in found]
    cold = YoloSpace(WIDE, nc=3)
    assert [cold.cost(arch, 160) for arch in reversed(found)] == warm[::-1]


def test_widths_by_hand():
    """NASConv 16 -> 24 channels, 3x3 on a map of 2 x 2; the C3 that reads them keeps its hidden 16."""
    space = YoloSpace(tiny(conv={"width": [1.0, 24, 0.5]}, c3={"out": [1.0, 0.6]}))
    assert space.choices == {"nasconv_1_width": [32, 24, 16], "c3_2_out": [32, 24]}
    default = space.default()
    wide, narrow = space.cost(default, 64), space.cost({**default, "nasconv_1_width": 24}, 64)
    conv = 16 * 8 * 9 + 2 * 8  # 8 channels less: their filters and norms
    c3 = 2 * 8 * 16  # cv1 and cv2 read 8 channels less
    assert round((wide["params_m"] - narrow["params_m"]) * 1e6) == conv + c3
    assert round((wide["gflops"] - narrow["gflops"]) * 1e9) == 2 * 4 * (16 * 8 * 9 + c3)
    rows = space.stock({"nasconv_1_width": 24, "c3_2_out": 24})["backbone"]
    assert rows[1:] == [[-1, 1, "Conv", [24, 3, 2, 1, 1]], [-1, 1, "C3", [24, True, 1, 16 / 24]]]
    net = build(space, {"nasconv_1_width": 24, "c3_2_out": 24}).model.model
    assert (net[2].cv1.conv.weight.shape, net[2].cv3.conv.weight.shape) == ((16, 24, 1, 1), (24, 32, 1, 1))


def test_rows_that_no_level_reads_are_not_there():
    space = YoloSpace(tiny(head={"levels": ["P5", "P4-P5"]}, conv={"width": [1.0, 0.5]}))
    with pytest.raises(UserError, match="the arch says nothing about 'levels'"):
        space.canonical({"nasconv_1_width": 32})
    one, both = (space.default() | {"levels": levels} for levels in ("P5", "P4-P5"))
    assert space.stock(one)["head"] == [[-1, 1, "nn.Identity", []]] * 3 + [[[2], 1, "Detect", [2]]]
    assert space.stock(both)["head"][-1] == [[2, 5], 1, "Detect", [2]]
    assert [b["name"] for b in space.blocks(one, 64)] == ["0", "1", "2", "6"]
    net = build(space, one)
    assert net.model.stride.tolist() == [32] and len(net.model.model[-1].cv2) == 1


@pytest.mark.parametrize("levels", [["P5", "P4-P5"], ["P4-P5"]])
def test_distinct_by_brute_force(levels):
    model = tiny(head={"levels": levels}, conv={"width": [1.0, 0.5, 0.25]})
    model["head"][2][3][-1] = {
        "kernel": ["k", "k+2"],
        "act": "SiLU",
    }  # of the row that P5 alone does not need
    space = YoloSpace(model)
    raw_archs = [dict(zip(space.choices, v, strict=True)) for v in product(*space.choices.values())]
    forms = {tuple(space.canonical(arch).items()) for arch in raw_archs}
    assert space.size() == (len(raw_archs), len(forms)) == ((12, 9) if len(levels) == 2 else (6, 6))
    modules = {repr(build(space, dict(form)).model) for form in forms}
    assert len(modules) == len(forms)
    rng = np.random.default_rng(0)
    drawn = {tuple(sorted(space.biased(rng, 0.0).items())) for _ in range(200)}
    assert drawn == {tuple(sorted(form)) for form in forms}


def test_a_slice_is_the_stock_detector_with_its_weights(supernet, space):
    seen = set()
    for arch in archs(space, 1):
        supernet.set_arch(arch)
        for training in (False, True):
            supernet.train(training)
            net, twin = supernet.extract(arch), build(space, arch)
            assert is_plain(net) and kinds(net) == kinds(twin)
            twin.load_state_dict(net.state_dict())
            twin.train(training)
            ours = raw(supernet)
            scale = max(1.0, ours.abs().max().item())
            assert (raw(net) - ours).abs().max() < 1e-5 * scale
            assert (raw(twin) - ours).abs().max() < 1e-5 * scale
            seen.add(ours.sum().item())
        for key, value in supernet.net.loss(BATCH).items():
            torch.testing.assert_close(net.loss(BATCH)[key], value, rtol=1e-4, atol=1e-5)
        assert net.model.model[-1].stride.tolist() == twin.model.stride.tolist()
    assert len(seen) == 8


def test_boxes_of_a_slice_are_those_of_the_network(supernet, space):
    """One after the other at the same size: what the head keeps of the levels before would be wrong."""
    supernet.eval()
    for levels in space.choices["levels"]:
        arch = space.canonical(space.complete(space.default()) | {"levels": levels})
        supernet.set_arch(arch)
        net = supernet.extract(arch)
        ours, theirs = supernet.net.predict(IMAGES)[0], net.predict(IMAGES)[0]
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=1e-4, atol=1e-3)
        with torch.no_grad():
            torch.testing.assert_close(supernet.net.model(IMAGES)[0], net.model(IMAGES)[0])


def test_nni_sees_the_same_choices(supernet, space):
    assert {k: m.values for k, m in supernet.simplify().items()} == space.choices


def test_fewer_levels_learn_from_the_same_ones_of_the_teacher(supernet, space):
    supernet.train()
    with torch.no_grad():
        supernet.set_arch(space.largest())
        teacher = supernet.net.raw(IMAGES)
        assert teacher["scores"].size(2) == 8 * 8 + 4 * 4 + 2 * 2 + 16 * 16  # P3, P4, P5, P2 of 64 pixels
        supernet.set_arch(space.smallest())
        student = supernet.net.raw(IMAGES)
        first = {key: teacher[key][..., : 8 * 8 + 4 * 4] for key in ("boxes", "scores")}
        for key, value in supernet.net.distil(student, teacher).items():
            assert value.isfinite() and value == supernet.net.distil(student, first)[key]


def test_gradients_stay_inside_the_slice(supernet, space):
    supernet.zero_grad()
    supernet.train().set_arch(space.smallest())
    sum(supernet.net.loss(BATCH).values()).backward()
    model = supernet.net.model.model
    # Row 9 reads 64 of 256 channels and gives 256; the neck's row 13 reads 32 of 128, beside 32 of 128.
    assert (
        model[9].row.cv1.conv.weight.grad.abs().sum((0, 2, 3)).gt(0).tolist() == [True] * 64 + [False] * 192
    )
    used = model[13].cv1.block.conv.weight.grad.abs().sum((0, 2, 3)) > 0
    assert used.tolist() == ([True] * 32 + [False] * 96) * 2
    assert model[27].row.cv3.conv.weight.grad is None  # P2 does not run
    supernet.zero_grad()


def test_calibrated_statistics_are_those_of_the_candidate(supernet, space):
    net = calibrated(supernet, space.smallest(), [IMAGES], images=2)
    first = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        x = net.model.model[0].conv(IMAGES)
    torch.testing.assert_close(first.running_mean, x.mean((0, 2, 3)))


# From trained weights ---------------------------------------------------------------------------------------


def test_the_least_important_channels_are_cut():
    """A channel counts by its norm's scale and by what reads it; here by the scale alone."""
    space = YoloSpace(tiny(conv={"width": [1.0, 0.5]}))
    source = scramble(build(space, space.default()))
    with torch.no_grad():
        for i in (2, 4):
            for m in source.model.model[i].modules():
                if isinstance(m, nn.Conv2d):
                    m.weight.fill_(0.01)
        source.model.model[1].bn.weight.copy_(torch.tensor([0.1, 1.0]).repeat(16))
    net = build(space, {"nasconv_1_width": 16})
    account = inherit(net, Source(as_file(source), build(space, space.largest())))
    kept = source.model.model[1].conv.weight[1::2]  # every other one
    assert account.layers["model.model.1.conv"] == "cut"
    assert sorted(map(float, kept.flatten())) == sorted(map(float, net.model.model[1].conv.weight.flatten()))
    assert torch.equal(net.model.model[1].bn.weight, torch.ones(16))


def test_a_supernet_computes_what_its_source_does(space):
    """YOLOv5n, whose head is row 24, in a supernet where it is row 28, with a fourth level."""
    stock = YoloSpace("yolov5n.yaml", nc=3)
    source = scramble(build(stock, stock.default())).double().eval()
    net = build(space, space.default()).double()
    account = inherit(net, as_file(source))
    assert account.share == 1.0 and set(account.layers.values()) == {"exact"}
    assert same(net.eval(), source)
    supernet = Supernet(space.model, nc=3).double()
    inherit_supernet(supernet, as_file(source))
    supernet.set_arch(space.default())
    assert same(supernet.eval().net, source)
    assert same(supernet.extract(space.default()), source)


# As a file of stock Ultralytics ----------------------------------------------------------------------------


def test_stock_training_keeps_every_exported_network(space, tmp_path):
    for i, arch in enumerate([*archs(space, 2)[3:], space.smallest()]):
        net = scramble(build(space, arch, ["a", "b", "c"]), i)
        said = export(net, tmp_path / f"{i}.pt", "pt", space=space, arch=arch, imgsz=64)
        assert said.values == {"stock_train_keeps_it": True, "lost": []}
        assert said.max_difference == 0.0
        told = torch.load(tmp_path / f"{i}.pt", weights_only=False)["model"]
        rebuilt = type(told)(copy.deepcopy(told.yaml), ch=3, verbose=False)
        assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {
            k: v.shape for k, v in told.state_dict().items()
        }


# Mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            tiny(conv={"width": [1.0, 20]}),
            "row 1, NASConv: width 20 is not a multiple of 8: a stock YAML cannot say it; try 16 or 24",
        ),
        (tiny(c3={"out": [36]}), "row 2, NASC3: out 36 is not a multiple of 8: .* try 32 or 40"),
        (
            tiny(c3={"out": [0]}),
            "row 2, NASC3: out should be factors of 32 channels or multiples of 8, got 0",
        ),
        (tiny(conv={"width": ["wide"]}), "row 1, NASConv: width should be factors .*, got 'wide'"),
        (tiny(conv={"width": [200000]}), "row 1, NASConv: width should be 100,000 channels at most"),
        (tiny(conv={"width": []}), "row 1, NASConv: width offers nothing"),
        (
            tiny(head={"levels": ["P4-P5", "P3-P5"]}),
            "row 6, Detect: levels P3-P5: no row of the head is P3; those in its list are P5, P4",
        ),
        (tiny(head={"levels": ["P4"]}), "levels P4 should be the first rows of the head's list, .* P5, P4"),
        (tiny(head={"levels": ["all"]}), "row 6, Detect: levels should be like P3-P5, got 'all'"),
        (tiny(head={"levels": []}), "row 6, Detect: levels offers nothing"),
        (tiny(head={"level": ["P5"]}), "choices of a head should be like .*, got 'level'"),
        (tiny(resolution=[64, 72]), "resolution should be multiples of the stride 32, got 72"),
    ],
)
def test_mistakes(model, message):
    with pytest.raises(UserError, match=message):
        YoloSpace(model)


def test_groups_have_to_divide_what_may_be_read():
    grouped = [-1, 1, "NASConv", [32, 3, 1, 1, 16]]
    with pytest.raises(UserError, match="row 3, NASConv: 16 groups do not divide the 24 channels"):
        YoloSpace(tiny(c3={"out": [1.0, 24]}, more=[grouped]))
    with pytest.raises(UserError, match="width 24 is 24 channels, which 16 groups cannot use"):
        YoloSpace(tiny(more=[[*grouped[:3], [*grouped[3], {"width": [1.0, 24]}]]]))


def test_any_stock_row_may_read_channels_that_vary():
    space = YoloSpace(tiny(c3={"out": [1.0, 0.5]}, more=[[-1, 1, "SPP", [32]], [-1, 1, "C2f", [32]]]))
    assert space.cost(space.smallest(), 64)["gflops"] < space.cost(space.default(), 64)["gflops"]
    supernet = Supernet(space.model, nc=space.nc)
    scramble(supernet)
    for arch in (space.smallest(), space.largest()):
        supernet.eval().set_arch(arch)
        twin = build(space, arch)
        twin.load_state_dict(supernet.extract(arch).state_dict())
        assert (raw(twin.eval()) - raw(supernet)).abs().max() < 1e-5


def test_an_image_side_may_be_a_choice():
    space = YoloSpace(tiny(resolution=[64, 96], conv={"width": [1.0, 0.5]}))
    small, large = (space.default() | {"resolution": side} for side in (64, 96))
    assert (space.side(large, 64), space.side(small, 96)) == (96, 64)
    assert space.cost(large, 64)["gflops"] == pytest.approx(space.cost(small, 64)["gflops"] * 2.25)
    assert space.cost(large, 64)["params_m"] == space.cost(small, 64)["params_m"]
