"""The space as NNI sees it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import nni
import numpy as np
import pytest
import torch
from nni.mutable import Categorical
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.nn.pytorch.base import recursive_freeze
from nni.nas.space import SimplifiedModelSpace, model_context
from torch import nn

from models.elastic.space import ElasticSpace
from models.networks import build
from models.nni_space import ArchSpace
from models.yolo.nas import NASC3, NASConv, YoloModelSpace
from models.yolo.parse import C3Options, ConvOptions, read
from models.yolo.space import YoloSpace
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NANO = YoloSpace(ROOT / "models" / "yolov5n_nas.yaml", nc=4)


@pytest.fixture(scope="module")
def space():
    return YoloModelSpace(NANO.model, 4)


@pytest.fixture
def arch():
    return NANO.random(np.random.default_rng(2))


def shapes(model):
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def test_nni_sees_the_labels_and_values_of_the_space(space):
    simple = space.simplify()
    assert all(isinstance(mutable, Categorical) for mutable in simple.values())
    assert {label: list(mutable.values) for label, mutable in simple.items()} == NANO.choices
    assert list(simple) == list(NANO.choices)


def test_the_image_size_is_a_choice_that_builds_nothing():
    model = NANO.model | {"resolution": [32, 64]}
    space, rng = YoloModelSpace(model, 4), np.random.default_rng(0)
    assert {k: list(m.values) for k, m in space.simplify().items()} == space.space.choices
    arch = space.space.random(rng)
    frozen = space.freeze(space.space.complete(arch))
    assert frozen.arch == arch and frozen.detector is not None
    without = {k: v for k, v in arch.items() if k != "resolution"}
    assert shapes(frozen.detector) == shapes(build(NANO, without))


def test_every_choice_is_a_layer_choice_with_named_candidates(space):
    found = {m.label: m for m in space.modules() if isinstance(m, LayerChoice)}
    assert set(found) == set(NANO.choices)
    assert {label: m.names for label, m in found.items()} == NANO.choices
    assert all(p.is_meta for p in space.parameters())


def test_candidates_are_what_their_names_say(space):
    row: Any = space.layers[6]
    assert isinstance(space.layers[6], NASC3)
    assert row.total[1.5].cv1.conv["3x3"].weight.shape == (96, 128, 3, 3)
    assert len(row.total[2.0].m[3]) == 3
    assert row.total[2.0].m[3][2][1.5].cv1.conv.out_channels == 192
    assert isinstance(space.layers[0].act["Identity"], nn.Identity)
    with torch.device("meta"):
        maps = space(torch.empty(1, 3, 64, 64))  # the default network, dry
    assert maps["scores"].shape == (1, 4, 64 + 16 + 4)


def test_three_ways_to_one_network(space, arch):
    frozen = space.freeze(NANO.complete(arch))
    with model_context(NANO.complete(arch)):
        rebuilt = YoloModelSpace(NANO.model, 4)
    built = build(NANO, arch)
    assert frozen.arch == rebuilt.arch == arch
    assert shapes(frozen.detector) == shapes(rebuilt.detector) == shapes(built)
    for torchs_seed in (0, 0):
        torch.manual_seed(torchs_seed)
        frozen = space.freeze(arch).detector  # a canonical arch will do too
    torch.manual_seed(0)
    twin = build(NANO, arch)
    assert all(torch.equal(a, b) for a, b in zip(frozen.parameters(), twin.parameters(), strict=True))


def test_frozen_is_stock_and_has_no_choices_left(space, arch):
    frozen = space.freeze(arch)
    assert dict(frozen.simplify()) == {}
    modules = {type(m).__module__.split(".")[0] for m in frozen.detector.model.modules()}
    assert modules == {"torch", "ultralytics"}
    assert [type(m).__name__ for m in frozen.children()] == ["YoloDetector"]
    x = torch.rand(1, 3, 64, 64)
    frozen.eval()
    with torch.no_grad():
        assert frozen(x)[0].shape == (1, 4 + 4, 84)
        assert copy.deepcopy(frozen)(x)[0].shape == (1, 8, 84)


@pytest.mark.parametrize("seed", range(3))
def test_nnis_own_freezing_agrees_with_ours(space, seed):
    """Take the candidates that NNI would take by itself: the same convolutions, in the same places."""
    arch = NANO.complete(NANO.random(np.random.default_rng(seed)))
    for row in NANO.rows:
        if isinstance(row.options, C3Options):
            block = space.layers[row.index].total[arch[row.options.width.label]]
            chosen = [block.cv1.conv.freeze(arch), block.cv2.conv.freeze(arch), block.cv3[0]]
            inner = recursive_freeze(block.m, arch)[0]
            chosen += [conv for b in inner for conv in (b.cv1.conv, b.cv2.conv)]
            stock: Any = NASC3.create_fixed_module(arch, row.options)
            wanted = [stock.cv1.conv, stock.cv2.conv, stock.cv3.conv]
            wanted += [conv for b in stock.m for conv in (b.cv1.conv, b.cv2.conv)]
        elif isinstance(row.options, ConvOptions):
            chosen = [space.layers[row.index].conv.freeze(arch)]
            wanted = [NASConv.create_fixed_module(arch, row.options).conv]
        else:
            continue
        assert [repr(c) for c in chosen] == [repr(w) for w in wanted]


def test_blocks_freeze_by_themselves_in_any_model_space(arch):
    conv: Any = NANO.rows[1].options
    c3: Any = NANO.rows[6].options

    class Other(ModelSpace):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(NASConv(conv), nn.Conv2d(conv.c2, c3.c1, 1), NASC3(c3))

        def forward(self, x):
            return self.net(x)

    sample = NANO.complete(arch)
    frozen = Other().freeze(sample)
    with model_context(sample):
        rebuilt = Other()
    assert shapes(frozen) == shapes(rebuilt)
    assert {type(m).__name__ for m in frozen.net} == {"Conv", "Conv2d", "C3"}
    assert frozen.net[0].bn.eps == 1e-3
    assert frozen(torch.rand(1, conv.c1, 32, 32)).shape == (1, c3.c2, 16, 16)


def test_what_a_trial_receives_builds_the_same(space, arch):
    """NNI's path: the space simplified, a sample frozen in, sent as JSON, rebuilt elsewhere."""
    sent = SimplifiedModelSpace.from_model(space, None).freeze(NANO.complete(arch))
    wire = nni.dump(sent)
    assert "path:models.yolo.nas.YoloModelSpace" in wire
    assert len(wire) < 16_000
    model = nni.load(wire).executable_model()
    assert model.arch == arch
    assert shapes(model.detector) == shapes(build(NANO, arch))
    json.dumps(NANO.model)


def test_archs_of_another_space_are_refused(space):
    with pytest.raises(UserError, match="unknown choice in an arch of yolov5n_nas 'nasconv_99'"):
        space.freeze({"nasconv_99": "3x3"})


def test_a_network_without_choices_is_a_space_too():
    fixed = YoloSpace(read("yolov5n.yaml") | {"choices": {}}, nc=2)
    space: Any = YoloModelSpace(fixed.model, 2)
    assert dict(space.simplify()) == {}
    assert space.freeze({}).arch == {}
    assert space.freeze({}).detector.nc == 2


def test_the_biggest_space_weighs_nothing():
    big = YoloSpace(ROOT / "models" / "yolov5x_nas.yaml", nc=4)
    space = YoloModelSpace(big.model, 4)
    assert all(p.is_meta for p in space.parameters())
    assert sum(p.numel() for p in space.parameters()) > 500e6  # what its candidates would take: gigabytes


RESNET = ElasticSpace(ROOT / "models" / "bignas_retinanet_r18.yaml", nc=4)


@pytest.mark.parametrize("plain", [NANO, RESNET])
def test_a_space_of_labels_only(plain):
    space = ArchSpace(plain.model, 4)
    assert space.arch is None
    simple = space.simplify()
    assert all(isinstance(mutable, Categorical) for mutable in simple.values())
    assert {label: list(mutable.values) for label, mutable in simple.items()} == plain.choices
    arch = plain.random(np.random.default_rng(0))
    frozen = space.freeze(arch)
    assert frozen.arch == arch and dict(frozen.simplify()) == {}
    assert frozen.space is space.space  # with its tables of costs
    assert not list(frozen.parameters())
    sent = SimplifiedModelSpace.from_model(space, None).freeze(plain.complete(arch))
    model = nni.load(nni.dump(sent)).executable_model()
    assert isinstance(model, ArchSpace) and model.arch == arch
    assert model.space.choices == plain.choices
    with pytest.raises(UserError, match="unknown choice in an arch of"):
        space.freeze({"nasconv_99": "3x3"})
