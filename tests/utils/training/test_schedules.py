"""torch's schedules by name: their rates, what is refused, and a training that is resumed among them."""

import pytest
import torch
from torch.optim import lr_scheduler

from tests.utils.training.test_train import Killed, Toy, loader, settings, weights
from utils.errors import UserError
from utils.training.optimize import Schedule
from utils.training.schedules import LEFT_OUT, known, rates
from utils.training.train import train

RESTARTS = {"name": "CosineAnnealingWarmRestarts", "T_0": 2, "eta_min": 0.001}
OPTIONS = {
    "StepLR": {"step_size": 2},
    "MultiStepLR": {"milestones": [1, 3]},
    "ConstantLR": {},
    "LinearLR": {},
    "ExponentialLR": {"gamma": 0.5},
    "PolynomialLR": {},
    "CosineAnnealingLR": {"T_max": 4},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 0.2, "step_size_up": 2},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "OneCycleLR": {"max_lr": 0.2, "total_steps": 6},
}


def test_every_schedule_of_torch_is_there_or_said_to_be_left_out():
    theirs = {n for n in lr_scheduler.__all__ if n != "LRScheduler"}
    assert {*known(), *LEFT_OUT} == theirs and set(OPTIONS) == set(known())


@pytest.mark.parametrize("name", OPTIONS)
def test_rates_are_those_of_torch(name):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    theirs = getattr(lr_scheduler, name)(optimizer, **OPTIONS[name])
    expected = []
    for _ in range(6):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates({"name": name, **OPTIONS[name]}, 0.1, 6) == expected


def test_a_rate_stays_for_an_epoch_and_is_never_below_the_floor():
    schedule = Schedule(settings(lr=0.1, epochs=4, warmup_epochs=0, lr_floor=0.3, schedule=RESTARTS), 3)
    found = [schedule.lr(step) for step in range(12)]
    middle = 0.001 + (0.1 - 0.001) / 2
    assert found == pytest.approx([0.1] * 3 + [middle] * 3 + [0.1] * 3 + [middle] * 3)
    short = {"name": "ExponentialLR", "gamma": 0.1}
    schedule = Schedule(settings(lr=0.1, epochs=4, warmup_epochs=0, lr_floor=0.3, schedule=short), 3)
    assert schedule.lr(11) == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("cosin", "unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"T_0": 3}, "unknown schedule 'None'"),
        (
            {"name": "StepLR", "step_size": 2, "gama": 1},
            "unknown option of StepLR 'gama'; did you mean 'gamma'",
        ),
        ("CosineAnnealingLR", "CosineAnnealingLR needs T_max"),
        (
            {"name": "CosineAnnealingWarmRestarts", "T_0": 0},
            "is refused by torch: Expected positive integer T_0",
        ),
        ("ReduceLROnPlateau", "cannot be written down: it waits for scores"),
        (7, "a name is needed, or {name: ..., and options}"),
    ],
)
def test_what_torch_does_not_have_is_one_line(schedule, said):
    with pytest.raises(ValueError) as caught:
        settings(schedule=schedule)
    assert said in str(caught.value)


def test_a_schedule_that_ends_too_early_is_one_line():
    with pytest.raises(UserError, match="OneCycleLR with .* ends before epoch 6 of 6") as caught:
        rates({"name": "OneCycleLR", "max_lr": 0.1, "total_steps": 4}, 0.1, 6)
    assert "\n" not in str(caught.value)


def test_a_resumed_training_has_the_same_rates_and_bits(tmp_path):
    options = {"settings": settings(epochs=5, schedule=RESTARTS), "seed": 7}
    net, again, file = Toy(noisy=True), Toy(noisy=True), tmp_path / "checkpoint.pt"
    whole = train(net, loader(), **options)

    def kill(row):
        if row["epoch"] == 3:
            raise Killed

    with pytest.raises(Killed):
        train(Toy(noisy=True), loader(), checkpoint=file, on_epoch=kill, **options)
    rest = train(again, loader(), checkpoint=file, **options)
    assert torch.equal(weights(net), weights(again))
    assert [row["lr"] for row in rest.curve] == [row["lr"] for row in whole.curve]
    assert rest.curve[2]["lr"] > rest.curve[1]["lr"]  # it restarted
