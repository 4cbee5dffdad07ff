"""What further systems need of a supernet's training: archs without a teacher, and spaces that grow."""

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from experiments.config import SupernetSettings
from models.networks import open_any_space
from models.sampling import Phases, generator, subnets
from models.supernet import Supernet
from tests.models.test_networks import YOLO, batch
from utils.errors import UserError
from utils.training.lessons import SandwichLesson
from utils.training.sandwich import Pupil, sandwich_step
from utils.training.settings import Distil

MODEL = {
    "network": {"detector": "classifier", "backbone": "resnet"},
    "nc": 3,
    "backbone": {
        "depth": [1, 1, 1, 1, 1],
        "out_channel": 8,
        "kernel_size": {"values": [[3], [3, 5, 7], [3, 5, 7], [3], [3]], "sample": "block"},
    },
}
SHRINKING = {"backbone.kernel_size": ([1, 3, 5], [[7], [7, 5], [7, 5, 3]])}
torch.set_num_threads(1)


def test_archs_without_a_teacher_learn_by_themselves():
    torch.manual_seed(0)
    supernet = Supernet(MODEL)
    supernet.eval()
    archs = subnets(["random", "random"], supernet.space, 0, 0)
    assert archs == [supernet.space.random(generator(0, 0, k)) for k in range(2)]
    alone = []
    for arch in archs:
        supernet.zero_grad()
        supernet.set_arch(arch)
        sum(supernet.net.loss(batch()).values()).backward()
        alone.append([torch.zeros(()) if p.grad is None else p.grad.clone() for p in supernet.parameters()])
    supernet.zero_grad()
    pupil = Pupil(supernet.net, Distil(weight=0.0))
    found = sandwich_step(pupil, supernet.set_arch, batch(), archs, teaches=False)
    assert [set(losses) for losses in found] == [{"cls"}] * 2
    for p, a, b in zip(supernet.parameters(), *alone, strict=True):
        expected = ((a + b) / 2).expand_as(p)
        torch.testing.assert_close(torch.zeros_like(p) if p.grad is None else p.grad, expected)


def test_a_lesson_of_random_archs_alone():
    torch.manual_seed(0)
    supernet = Supernet(MODEL)
    asked = []

    def archs(step, epoch, score):
        asked.append((step, epoch))
        return subnets(["random"], supernet.space, 0, step)

    lesson = SandwichLesson(supernet.net, Distil(weight=0.0), supernet.set_arch, ["random"], archs)
    fabric = Fabric(accelerator="cpu", devices=1)
    model = fabric.setup_module(lesson.module)
    lesson.epoch = 4
    loss, parts = lesson.backward(model, batch(), fabric, share=1.0, last=True, step=7)
    assert asked == [(7, 4)] and set(parts) == {"random_cls"} and torch.isfinite(loss)


def test_what_may_be_drawn_grows_with_the_epochs():
    space = open_any_space(MODEL)
    phases, rng = Phases(space, SHRINKING, epochs=6), np.random.default_rng(0)
    kernels = [label for label in space.choices if "kernel" in label]
    assert len(kernels) == 2
    for epoch, allowed in ((1, {7}), (2, {7}), (3, {5, 7}), (4, {5, 7}), (5, {3, 5, 7}), (6, {3, 5, 7})):
        now = phases.at(epoch)
        drawn = [now.random(rng) for _ in range(40)]
        assert {arch[label] for arch in drawn for label in kernels} == allowed
        assert all(space.canonical(arch) == arch for arch in drawn)
        assert {now.largest()[k] for k in kernels} == {7}
        assert {now.smallest()[k] for k in kernels} == {min(allowed)}
        top, _, low = subnets(["max", "random", "min"], now, 0, epoch)
        assert (top, low) == (now.largest(), now.smallest())
    assert Phases(space, {}, epochs=6).at(3) is space


def test_yolo_spaces_grow_too():
    space = open_any_space(YOLO)
    label = next(label for label, values in space.choices.items() if "3x3" in values and "5x5" in values)
    now = Phases(space, {label: ([1], [["3x3"]])}, epochs=2).at(2)
    rng = np.random.default_rng(0)
    assert {now.random(rng)[label] for _ in range(20)} == {"3x3"}


@pytest.mark.parametrize(
    "schedule, message",
    [
        ({"backbone.kernels": ([1], [[7]])}, "unknown choice in supernet.schedule 'backbone.kernels'"),
        ({"backbone.kernel_size": ([1, 2], [[7]])}, "needs a list of values for each boundary"),
        ({"backbone.kernel_size": ([2], [[7]])}, "for each boundary, from 1 up"),
        ({"backbone.kernel_size": ([1, 9], [[7], [5]])}, "changes in epoch 9 of 6"),
        ({"backbone.kernel_size": ([1], [[9]])}, "unknown value of backbone.kernel_size.1.0 .* '9'"),
    ],
)
def test_schedules_that_do_not_fit(schedule, message):
    with pytest.raises(UserError, match=message):
        Phases(open_any_space(MODEL), schedule, epochs=6)


def test_the_block_of_an_experiment():
    assert SupernetSettings(subnets=["random"], distil={"weight": 0}).subnets == ["random"]
    with pytest.raises(ValueError, match="max should come first"):
        SupernetSettings(subnets=["random"])
    with pytest.raises(ValueError, match="max should come first"):
        SupernetSettings(subnets=["random", "max"], distil={"weight": 0})
    with pytest.raises(ValueError, match="sampling: uniform"):
        SupernetSettings(
            sampling="stratified", schedule={"backbone.depth": {"boundary": [1], "value": [[1]]}}
        )
    assert "schedule" not in SupernetSettings().model_dump()  # as runs of before wrote it
