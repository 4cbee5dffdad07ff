"""The YOLO space as a supernet: its slice is the stock detector of the arch with the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nni.nas.space import model_context
from torch import nn

from models.networks import build
from models.supernet import Supernet, calibrated, is_plain
from models.yolo.space import YoloSpace
from tests.models.elastic_kinds import scramble

torch.set_num_threads(1)
YAML = Path(__file__).resolve().parents[2] / "models" / "yolov5n_nas.yaml"
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BATCH = {
    "img": IMAGES,
    "batch_idx": torch.tensor([0.0, 1.0]),
    "cls": torch.tensor([[1.0], [2.0]]),
    "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.5, 0.2]]),
}


@pytest.fixture(scope="module")
def supernet():
    torch.manual_seed(0)
    net = Supernet(YoloSpace(YAML).model, nc=3)
    scramble(net)
    return net


def raw(net):
    """The stock model's raw maps, in train mode's form whatever the mode."""
    with torch.no_grad():
        found = net(IMAGES)
    found = found[1] if isinstance(found, tuple) else found
    return torch.cat([found["boxes"].flatten(), found["scores"].flatten()])


def kinds(net):
    return {name: type(m) for name, m in net.named_modules(remove_duplicate=False)}


def archs(space):
    rng = np.random.default_rng(0)
    return [space.default(), space.smallest(), space.largest(), *(space.random(rng) for _ in range(3))]


def test_slice_is_the_stock_detector_with_its_weights(supernet):
    seen = set()
    for arch in archs(supernet.space):
        supernet.set_arch(arch)
        for training in (False, True):
            supernet.train(training)
            net = supernet.extract(arch)
            assert is_plain(net)
            twin = build(supernet.space, arch)  # stock modules, other weights
            assert kinds(net) == kinds(twin)
            twin.load_state_dict(net.state_dict())
            twin.train(training)
            ours = raw(supernet)
            scale = max(1.0, ours.abs().max().item())
            assert (raw(net) - ours).abs().max() < 1e-5 * scale, arch
            assert (raw(twin) - ours).abs().max() < 1e-5 * scale, arch
            seen.add(ours.sum().item())
    assert len(seen) == 12


def test_the_loss_and_the_boxes_are_the_same(supernet):
    arch = supernet.space.random(np.random.default_rng(7))
    supernet.eval().set_arch(arch)
    net = supernet.extract(arch)
    for key, value in supernet.net.loss(BATCH).items():
        torch.testing.assert_close(net.loss(BATCH)[key], value, rtol=1e-4, atol=1e-5)
    ours, theirs = supernet.net.predict(IMAGES)[0], net.predict(IMAGES)[0]
    torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=1e-3, atol=1e-4)


def test_gradients_stay_inside_the_slice(supernet):
    space = supernet.space
    supernet.zero_grad()
    supernet.train().set_arch(space.smallest())
    sum(supernet.net.loss(BATCH).values()).backward()
    grad = supernet.net.model.model[2].cv3.conv.weight.grad
    # Hidden channels 8 to 32: the two halves of the concat have places of 32, whatever runs.
    assert grad.shape == (32, 64, 1, 1)
    used = grad.abs().sum((0, 2, 3)) > 0
    assert used.tolist() == ([True] * 8 + [False] * 24) * 2
    supernet.zero_grad()


def test_bottlenecks_that_add_start_as_the_identity():
    net = Supernet(YoloSpace(YAML).model, nc=3).net
    blocks = [b for i in (2, 4, 6, 8) for b in net.model.model[i].m]
    assert len(blocks) == 7 and all(block.add for block in blocks)
    for block in blocks:
        x = torch.randn(1, block.cv1.conv.in_channels, 8, 8)  # running at its largest
        assert torch.equal(block(x), x)


def test_nni_sees_the_same_choices(supernet):
    assert {k: m.values for k, m in supernet.simplify().items()} == supernet.space.choices
    arch = supernet.space.random(np.random.default_rng(3))
    supernet.eval().set_arch(arch)
    frozen = supernet.freeze(supernet.space.complete(arch))
    assert frozen.arch == arch and is_plain(frozen)
    assert (raw(frozen.net) - raw(supernet)).abs().max() < 1e-4
    with model_context(arch):
        rebuilt = Supernet(supernet.space.model, nc=3)
    assert rebuilt.arch == arch
    rebuilt.load_state_dict(frozen.state_dict())


def test_calibrated_statistics_are_those_of_the_candidate(supernet):
    arch = supernet.space.smallest()
    net = calibrated(supernet, arch, [IMAGES], images=2)
    first = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        x = net.model.model[0].conv(IMAGES)
    torch.testing.assert_close(first.running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(first.running_var, x.var((0, 2, 3)))
