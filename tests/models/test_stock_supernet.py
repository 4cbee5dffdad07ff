"""Supernets of Ultralytics' own networks, whose stock rows vary: slices of them are the stock networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nni.nas.space import model_context
from torch import nn

from models.elastic.gradients import cached_slices, direct_gradients
from models.inherit import Source, inherit
from models.networks import build
from models.supernet import Supernet, calibrated, extract, importance, inherit_supernet, is_plain
from models.yolo.elastic_stock import ElasticStock
from models.yolo.space import YoloSpace
from tests.models.elastic_kinds import scramble
from tests.models.test_inherit import as_file
from tests.models.test_yolo_elastic import BATCH, IMAGES, kinds
from tests.some import some

ALL = {"width": [1.0, 0.5], "depth": ["n", "n+1"], "e": [1.0, 0.5]}
# Enough of each network to have all of its blocks, every second level a concat of two rows that vary.
NECK = [[-1, 1, "nn.Upsample", [None, 2, "nearest"]], [[-1, 2], 1, "Concat", [1]]]
BLOCKS = {
    "C3": (["C3", [64]], "Detect"),
    "C2f": (["C2f", [64, True]], "Detect"),
    "C3k2 of C3k": (["C3k2", [64, True]], "Detect"),
    "attention": (["C3k2", [256, True, 0.5, True]], "Detect"),
    "C2fCIB": (["C2fCIB", [64, True]], "v10Detect"),
    "A2C2f": (["A2C2f", [256, True, 1]], "Detect"),
    "ghosts": (["C3Ghost", [64]], "Detect"),
    "csp": (["BottleneckCSP", [64]], "Detect"),
}
NOW = ["C2f", "C3k2 of C3k", "ghosts"]


def model(kind, **keys):
    (module, args), head = BLOCKS[kind]
    choices = {"Conv": {"width": ALL["width"]}, "SPPF": {"width": ALL["width"]}, "C2PSA": {"depth": [1, 2]}}
    choices[module] = {k: v for k, v in ALL.items() if not (module == "C3Ghost" and k == "e")}
    backbone = [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [32, 3, 4]],
        [-1, 1, module, args],
        [-1, 1, "SCDown" if kind == "C2fCIB" else "Conv", [128, 3, 2]],
        [-1, 1, "SPPF", [256, 5]],
    ]
    if kind == "attention":
        backbone.append([-1, 1, "C2PSA", [256]])
    end = len(backbone)
    rest = [*NECK, [-1, 1, module, args], [[end + 2, end - 1], 1, head, ["nc"]]]
    return {"nc": 3, "name": kind, "choices": choices, "backbone": backbone, "head": rest} | keys


def flat(found):
    if isinstance(found, dict):
        return [t for key, value in found.items() if key != "feats" for t in flat(value)]
    return [found]


def raw(net):
    net = net.net if isinstance(net, Supernet) else net
    images = IMAGES.to(next(net.parameters()).dtype)
    with torch.no_grad():
        return torch.cat([t.flatten() for t in flat(net.raw(images))])


def close(a, b):
    a, b = raw(a), raw(b)
    return bool((a - b).abs().max() <= 1e-8 * max(1.0, b.abs().max().item()))


def archs(space, n=1):
    rng = np.random.default_rng(0)
    return [space.default(), space.smallest(), space.largest(), *(space.random(rng) for _ in range(n))]


def made(kind, **keys):
    torch.manual_seed(0)
    net = Supernet(model(kind, **keys), nc=3)
    scramble(net)
    return net


@pytest.mark.parametrize("kind", some(BLOCKS, NOW))
def test_a_slice_is_the_stock_network_with_its_weights(kind):
    supernet, seen = made(kind), set()
    for arch in archs(supernet.space):
        supernet.set_arch(arch)
        for training in (False, True):
            supernet.train(training)
            net, twin = supernet.extract(arch), build(supernet.space, arch)
            assert is_plain(net) and kinds(net) == kinds(twin)
            twin.load_state_dict(net.state_dict())
            twin.train(training)
            ours = raw(supernet)
            assert torch.equal(raw(net), ours) and torch.equal(raw(twin), ours), arch
            seen.add(ours.sum().item())
    assert len(seen) == 8


@pytest.mark.parametrize("kind", some(BLOCKS, NOW))
def test_a_slice_is_what_the_same_arch_inherits(kind):
    """Cut from a supernet, whose channels are sorted by importance, or right from the source: the same."""
    space = YoloSpace(model(kind))
    source = scramble(build(space, space.largest())).double().eval()
    supernet = Supernet(space.model, nc=3).double()
    inherit_supernet(supernet, as_file(source))
    supernet.set_arch(space.largest())
    assert close(supernet.eval(), source)
    if kind in ("attention", "A2C2f", "ghosts"):
        return  # of an attention a narrower arch inherits nothing, as a slice it has a share
    ready = Source(as_file(source), source)
    for arch in archs(space):
        net = build(space, arch).double()
        inherit(net, ready)
        assert close(net.eval(), supernet.extract(arch).eval()), arch


def test_which_queries_keys_and_values_a_slice_has():
    """Two heads of 64 channels with keys of 32 as one head of 96 with keys of 48, and as one of 64."""
    space = YoloSpace(model("attention", choices={"C2PSA": {"e": [1.0, 0.75, 0.5]}}))
    supernet = Supernet(space.model, nc=3)
    whole = supernet.net.model.model[5].row.m[0].attn.qkv.conv.weight
    assert whole.shape[:2] == (4 * 128 // 2, 128)
    for e, first in ((0.375, [*range(32), *range(128, 144)]), (0.25, [*range(32)])):
        arch = space.canonical({**space.default(), "c2psa_5_e": e})
        cut = supernet.extract(arch).model.model[5].m[0].attn
        dim = int(256 * e)
        assert (cut.num_heads, cut.head_dim, cut.key_dim) == (1, dim, dim // 2)
        key = [row + 32 for row in first]
        value = [64 + i if i < 64 else 192 + i - 64 for i in range(dim)]
        assert torch.equal(cut.qkv.conv.weight, whole[first + key + value, :dim])


@pytest.mark.parametrize("kind", ["C2f", "C2fCIB"])
def test_gradients_are_those_of_the_slice(kind):
    supernet = made(kind).train()
    arch = supernet.space.smallest()
    supernet.set_arch(arch)
    net = supernet.extract(arch).train()
    sum(net.loss(BATCH).values()).backward()
    sum(supernet.net.loss(BATCH).values()).backward()
    for tensor, plain in zip(
        flat_grads(supernet.net, arch), (p.grad for p in net.parameters() if p.requires_grad), strict=True
    ):
        torch.testing.assert_close(tensor, plain)
    # cv1 makes two halves of 64 channels; at half the width and half the ratio, 16 of each are in use.
    used = supernet.net.model.model[2].row.cv1.conv.weight.grad.abs().sum((1, 2, 3)) > 0
    assert used.tolist() == ([True] * 8 + [False] * 24) * 2


def flat_grads(net, arch):
    """The gradients of a supernet, cut as its weights are."""
    with torch.no_grad():
        for p in net.parameters():
            if p.grad is not None:
                p.data.copy_(p.grad)
    return [p.data for p in extract(net, arch).parameters() if p.requires_grad]


def test_in_every_way_of_passing_gradients_the_same():
    grads = []
    for direct in (False, True):
        supernet = made("C2f").train()
        for p in supernet.parameters():
            p.grad = torch.zeros_like(p)
        supernet.set_arch(supernet.space.smallest())
        with direct_gradients(supernet.net) if direct else cached_slices(supernet.net):
            sum(supernet.net.loss(BATCH).values()).backward()
        grads.append([p.grad for p in supernet.parameters()])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_slices_are_cut_once_where_weights_stay():
    supernet = made("C2f").eval()
    supernet.set_arch(supernet.space.smallest())
    plain, layer = raw(supernet), supernet.net.model.model[2]
    with cached_slices(supernet.net):
        assert torch.equal(raw(supernet), plain)
        with torch.no_grad():
            layer.row.cv1.conv.weight.zero_()
        assert torch.equal(raw(supernet), plain)  # as promised, nobody looks
    assert not torch.equal(raw(supernet), plain)


def test_statistics_are_kept_in_their_places():
    """Batch norm of both halves of a cv1: of 32 channels each a slice has 8."""
    supernet = made("C2f").train()
    norm = supernet.net.model.model[2].row.cv1.bn
    before = norm.running_mean.clone()
    supernet.set_arch(supernet.space.smallest())
    raw(supernet)
    changed = norm.running_mean != before
    assert changed.tolist() == ([True] * 8 + [False] * 24) * 2
    net = calibrated(supernet, supernet.space.smallest(), [IMAGES], images=2)
    first = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        x = net.model.model[0].conv(IMAGES)
    torch.testing.assert_close(first.running_mean, x.mean((0, 2, 3)))


def test_nni_sees_the_same_choices():
    supernet = made("C2f")
    assert {k: m.values for k, m in supernet.simplify().items()} == supernet.space.choices
    arch = supernet.space.random(np.random.default_rng(3))
    supernet.eval().set_arch(arch)
    frozen = supernet.freeze(supernet.space.complete(arch))
    assert frozen.arch == arch and is_plain(frozen) and torch.equal(raw(frozen.net), raw(supernet))
    with model_context(arch):
        rebuilt = Supernet(supernet.space.model, nc=3)
    assert rebuilt.arch == arch
    rebuilt.load_state_dict(frozen.state_dict())


def test_channels_may_be_sorted_before_widths_shrink():
    """The largest network computes the same; a slice has the channels that count most."""
    supernet = made("C2f").double().eval()
    space = supernet.space
    supernet.set_arch(space.largest())
    before, state = raw(supernet), supernet.net.state_dict()
    orders = importance(supernet.net, space)
    assert "model.model.2.row.cv1.conv.weight" in orders
    with torch.no_grad():
        for name, places in orders.items():
            tensor = state[name]
            for dim, place in enumerate(places):
                tensor = tensor if place is None else tensor.index_select(dim, place)
            state[name].copy_(tensor)
    supernet.set_arch(space.largest())
    torch.testing.assert_close(raw(supernet.net), before)


def test_a_supernet_of_an_activation_keeps_it():
    net = made("C2f", activation="nn.ReLU()")
    acts = {
        type(m)
        for m in net.extract(net.space.smallest()).modules()
        if type(m).__module__.endswith("activation")
    }
    assert acts == {nn.ReLU}


def test_layers_that_do_not_vary_stay_as_they_are():
    choices = {"C2f": {"depth": ["n", "n+1"]}}
    net = Supernet(model("C2f", choices=choices), nc=3).net
    elastic = [i for i, m in enumerate(net.model.model) if isinstance(m, ElasticStock)]
    assert elastic == [2, 7]
    assert not any(isinstance(m, ElasticStock) for m in net.model.model[-1].modules())
