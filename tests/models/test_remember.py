"""Networks that begin with trained weights are held near the maps that these gave in their own network."""

import copy

import pytest
import torch
from torch import nn

from models import networks
from models.inherit import Source, inherit
from models.networks import open_any_space
from models.refit import drift, shared
from models.remember import Mimicking, Mimicry
from tests.models.test_inherit import SPACES, as_file, trained

IMAGES = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=SPACES)
def space(request):
    return open_any_space(SPACES[request.param], nc=3)


@pytest.fixture(scope="module")
def source(space):
    """Weights of the largest network."""
    return Source(as_file(trained(space, space.largest())), space.supernet())


def begun(space, arch, source):
    torch.manual_seed(0)
    net = networks.build(space, arch)
    inherit(net, source)
    return net


def without_dropout(net):
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net


def mimicry_of(lesson):
    """The loss for IMAGES, whatever is on them."""
    lesson.detector.train()
    return lesson({"img": IMAGES})["mimic"]


def mimicry(net, teacher, weight=1.0):
    lesson = Mimicry(net, teacher)
    lesson.weight = weight
    return mimicry_of(lesson)


def test_a_network_that_gives_what_its_teacher_gives_has_nothing_to_mimic(space, source):
    arch = space.largest()
    net, teacher = (without_dropout(begun(space, arch, source)) for _ in range(2))
    assert mimicry(net, teacher).item() == pytest.approx(0, abs=1e-9)


def test_the_loss_is_the_mean_distance_over_the_variance(space, source):
    """By hand: one convolution whose map is one and a half times its teacher's, the last to run."""
    net, teacher = (without_dropout(begun(space, space.largest(), source)) for _ in range(2))
    ran = []
    for name in shared(net, teacher):
        teacher.get_submodule(name).register_forward_hook(lambda m, a, y, name=name: ran.append((name, y)))
    mimicry(net, teacher)
    once = [(name, y) for name, y in ran if [n for n, _ in ran].count(name) == 1]
    name, wanted = once[-1]
    with torch.no_grad():
        net.get_submodule(name).weight.mul_(1.5)
        if net.get_submodule(name).bias is not None:
            net.get_submodule(name).bias.mul_(1.5)
    spread = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum()
    expected = (0.5 * wanted).square().sum() / spread / len(once)
    assert mimicry(net, teacher, weight=3.0).item() == pytest.approx(3 * expected.item(), rel=1e-4)


def test_a_cut_network_comes_nearer_to_its_teacher_which_stays_as_it_was(space, source):
    cut, teacher = begun(space, space.smallest(), source), begun(space, space.largest(), source)
    before, far = (
        copy.deepcopy(teacher.state_dict()),
        drift(copy.deepcopy(cut), copy.deepcopy(teacher), IMAGES),
    )
    optimizer = torch.optim.Adam(cut.parameters(), lr=0.003)
    lesson = Mimicking(cut, teacher)
    lesson.begin(1)
    assert list(lesson.module.parameters()) == list(cut.parameters())  # no teacher among what learns
    assert lesson.module.state_dict().keys() == {f"detector.{name}" for name in cut.state_dict()}
    for _ in range(20):
        optimizer.zero_grad()
        mimicry_of(lesson.module).backward()
        optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert drift(cut, teacher, IMAGES) < 0.8 * far


def test_the_weight_falls_with_the_epochs(space, source):
    lesson = Mimicking(*(begun(space, space.smallest(), source) for _ in range(2)), weight=6.0, epochs=3)
    found = []
    for epoch in (1, 2, 3, 2):  # a training that is resumed begins where it was
        assert lesson.begin(epoch) == {}
        found.append(lesson.module.weight)
    assert found == pytest.approx([6, 4, 2, 4])
