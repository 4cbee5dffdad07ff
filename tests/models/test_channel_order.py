"""Channels sorted by importance: the largest network stays what it is, narrower ones get the best."""

import copy

import pytest
import torch

from models.supernet import Supernet, importance
from tests.models.elastic_kinds import scramble
from tests.models.test_networks import YOLO
from tests.models.test_ssd import TINY as SSD
from tests.models.test_supernet import REGNET, RETINANET
from utils.training.optimize import Ema, Flat, build_optimizer, freeze, put, reorder
from utils.training.settings import TrainSettings

torch.set_num_threads(1)
SPACES = {"ssd": SSD, "retinanet": RETINANET, "regnet": REGNET, "yolo": YOLO}


def sort(net, orders):
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            tensor.copy_(put(tensor.clone(), orders.get(name, ())))


def outputs(supernet, arch, x):
    supernet.set_arch(arch)
    found, todo = [], [supernet.net.raw(x)]
    while todo:
        part = todo.pop(0)
        todo += part.values() if isinstance(part, dict) else part if isinstance(part, (tuple, list)) else []
        found += [part.flatten()] if isinstance(part, torch.Tensor) else []
    return torch.cat(found).detach()


@pytest.mark.parametrize("kind", SPACES)
def test_the_largest_network_computes_the_same(kind):
    torch.manual_seed(0)
    supernet = Supernet(SPACES[kind])
    scramble(supernet.net).eval()
    space, x = supernet.space, torch.rand(1, 3, 64, 64)
    archs = (space.largest(), space.smallest())
    before = [outputs(supernet, arch, x) for arch in archs]
    orders = importance(supernet.net, space)
    assert orders and any((order != torch.arange(len(order))).any() for order, *_ in orders.values())
    sort(supernet.net, orders)
    largest, smallest = (outputs(supernet, arch, x) for arch in archs)
    torch.testing.assert_close(largest, before[0], rtol=1e-4, atol=1e-4 * float(before[0].abs().max()))
    assert not torch.allclose(smallest, before[1], rtol=1e-3)
    again = importance(supernet.net, space)  # sorted already
    assert all((o == torch.arange(len(o))).all() for rows in again.values() for o in rows if o is not None)


def test_what_is_wanted_alone_is_sorted():
    supernet = Supernet(SSD)
    scramble(supernet.net)
    orders = importance(supernet.net, supernet.space, lambda labels: "backbone.expand_ratio.1.0" in labels)
    inside = "backbone.stages.1.0."
    assert orders and all(name.startswith(inside) for name in orders)
    projected = orders[f"{inside}project.conv.weight"]
    assert projected[0] is None and torch.equal(projected[1], orders[f"{inside}expand.conv.weight"][0])


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_the_average_and_the_optimizer_move_along(optimizer):
    """One more step after sorting is the step that would have been taken, sorted."""
    torch.manual_seed(0)
    supernet = Supernet(SSD)
    net = scramble(supernet.net).to(memory_format=torch.channels_last)
    freeze(net, ["neck"])
    settings = TrainSettings(optimizer=optimizer, lr=0.01)
    flat = Flat(net)
    ema, stepper = Ema(net, flat, 0.5, 1.0), build_optimizer(flat, settings)

    def step(pulls, n):
        for p, pull in pulls:
            p.grad.copy_(pull)
        stepper.step()
        stepper.zero_grad(set_to_none=False)
        ema.update(n)

    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    pulls = {name: torch.randn_like(p) for name, p in trained.items()}
    step([(p, pulls[name]) for name, p in trained.items()], 0)
    state = copy.deepcopy((net.state_dict(), ema.detector.state_dict(), stepper.state_dict(), flat.buffer))
    orders = importance(net, supernet.space)
    assert any(name.startswith("neck.") for name in orders)
    frozen = "neck.0.expand.conv.weight"

    step([(p, pulls[name]) for name, p in trained.items()], 1)
    expected = [
        {k: put(v.clone(), orders.get(k, ())) for k, v in n.state_dict().items()} for n in (net, ema.detector)
    ]
    net.load_state_dict(state[0])
    ema.detector.load_state_dict(state[1])
    stepper.load_state_dict(state[2])
    reorder(net, flat, ema, stepper, orders)
    assert torch.equal(net.state_dict()[frozen], put(state[0][frozen], orders[frozen]))
    step([(p, put(pulls[name], orders.get(name, ()))) for name, p in trained.items()], 1)
    for n, wanted in zip((net, ema.detector), expected, strict=True):
        for name, value in n.state_dict().items():
            torch.testing.assert_close(value, wanted[name], msg=name)
