"""Layers of a cut network are fitted to what they gave before the cut."""

import copy

import numpy as np
import pytest
import torch

from models.inherit import Source, inherit
from models.networks import open_any_space
from models.refit import refit
from tests.models.test_inherit import SPACES, amount, as_file, build, grown, outputs, trained

IMAGES = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()


@pytest.fixture(scope="module", params=SPACES)
def space(request):
    found = open_any_space(SPACES[request.param], nc=3)
    found.kind = request.param
    return found


def begun(space, arch, source):
    torch.manual_seed(0)  # what is fresh is alike
    net = build(space, arch)
    inherit(net, source)
    return net


def source_of(space, arch):
    return Source(as_file(trained(space, arch)), space.supernet().double())


@pytest.mark.parametrize("larger", [False, True])
def test_a_network_that_computes_what_its_source_does_stays_as_it_is(space, larger):
    arch = space.smallest()
    source, other = source_of(space, arch), grown(space, arch, np.random.default_rng(0)) if larger else arch
    net, teacher = begun(space, other, source), begun(space, arch, source)
    before = copy.deepcopy(net.state_dict())
    assert refit(net, teacher, IMAGES) == 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_cut_network_comes_nearer_to_what_was_cut(space):
    """Over the choices, each cut alone to its smallest, the larger part of the distance goes."""
    largest = space.largest()
    source = source_of(space, largest)
    teacher = begun(space, largest, source)
    wanted, left = outputs(teacher, train=True, images=IMAGES), []
    sizes = {label: values for label, values in space.choices.items() if not label.endswith("_act")}
    for label, values in list(sizes.items())[::4]:
        arch = space.canonical({**space.complete(largest), label: min(values, key=amount)})
        cut = begun(space, arch, source)
        modes, far = [m.training for m in cut.modules()], outputs(cut, train=True, images=IMAGES) - wanted
        if refit(cut, teacher, IMAGES):  # not in towers, which run on several maps
            left.append(((outputs(cut, train=True, images=IMAGES) - wanted).norm() / far.norm()).item())
        assert [m.training for m in cut.modules()] == modes
    assert len(left) > 1 and np.mean(left) < 0.7
