"""Distillation losses against closed forms and autograd."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from utils.errors import UserError
from utils.training.distill import alpha_divergence, confidence, kl, mimicry, soft_scores, weighted
from utils.training.mimic import features, mimic_loss
from utils.training.settings import Distil, Mimic, Outputs

RNG = torch.Generator().manual_seed(0)
STUDENT, TEACHER = torch.randn(5, 4, generator=RNG), torch.randn(5, 4, generator=RNG)


def test_kl_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    assert kl(student, teacher).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert kl(TEACHER, TEACHER).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_alpha_divergence_has_the_gradient_of_its_definition(alpha):
    """D_alpha(p || q) = (sum p^alpha q^(1 - alpha) - 1) / (alpha (alpha - 1)); the limits are the two KLs."""
    a, b = STUDENT.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    alpha_divergence(a, TEACHER, alpha, alpha, clip=1e9).backward()
    q, p = b.softmax(1), TEACHER.softmax(1)
    if alpha == 0:
        exact = (q * (q / p).log()).sum(1)
    elif alpha == 1:
        exact = (p * (p / q).log()).sum(1)
    else:
        exact = ((p**alpha * q ** (1 - alpha)).sum(1) - 1) / (alpha * (alpha - 1))
    exact.mean().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("alpha", "value"),
    [
        # p = (.25, .75), q = (.5, .5), ratios (.5, 1.5): - sum q x slope x ln q = ln 2 x the mean slope
        (-1.0, (-2 + 0.5 - 2 / 3 + 0.5) / 2),  # slope = ratio^-1 / -1 + 1 / (-1 x -2)
        (0.0, (math.log(0.5) - 1 + math.log(1.5) - 1) / 2),  # ln ratio - 1
        (0.5, (2 * 0.5**0.5 - 4 + 2 * 1.5**0.5 - 4) / 2),  # ratio^.5 / .5 + 1 / (.5 x -.5)
        (1.0, (0.5 + 1.5) / 2),  # ratio
        (2.0, (0.25 / 2 + 0.5 + 2.25 / 2 + 0.5) / 2),  # ratio^2 / 2 + 1 / (2 x 1)
    ],
)
def test_alpha_divergence_s_value_by_hand(alpha, value):
    student, teacher = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3.0)]])
    found = alpha_divergence(student, teacher, alpha, alpha, clip=1e9)
    assert found.item() == pytest.approx(value * math.log(2), rel=1e-5)
    if alpha == 2:  # clipped to 2, only the larger power is less
        clipped = alpha_divergence(student, teacher, alpha, alpha, clip=2.0)
        assert clipped.item() == pytest.approx((0.25 / 2 + 0.5 + 2 / 2 + 0.5) / 2 * math.log(2), rel=1e-5)


def test_each_row_takes_the_larger_divergence():
    rows = [alpha_divergence(STUDENT[i : i + 1], TEACHER[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(alpha_divergence(STUDENT, TEACHER), torch.stack(rows).mean())
    # The student is sure of one of ten classes, the teacher of none: q = (.4, .067, ...), p = (.1, .1, ...).
    # alpha -1: ((.16 + 9 x .00444) / .1 - 1) / 2 = .5; alpha 1: .1 ln .25 + .9 ln 1.5 = .226
    vague, sure = torch.zeros(1, 10), torch.zeros(1, 10)
    sure[0, 0] = math.log(6)
    assert torch.equal(alpha_divergence(sure, vague), alpha_divergence(sure, vague, -1, -1))
    # The student misses what the teacher sees: p = (.4, ...), q = (.1, .1, ...): .19 against .31.
    assert torch.equal(alpha_divergence(vague, sure), alpha_divergence(vague, sure, 1, 1))


def test_soft_scores_by_hand():
    student, teacher = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 2.0]])
    target, weight = torch.sigmoid(torch.tensor(1.0)), torch.tensor([4.0])
    bce = binary_cross_entropy_with_logits(torch.tensor(0.0), target)
    expected = (0.5 - target) ** 2 * bce / 4
    torch.testing.assert_close(soft_scores(student, teacher, weight), expected)
    assert soft_scores(teacher, teacher, weight) == 0
    torch.testing.assert_close(soft_scores(student, teacher, weight / 8), 4 * expected)  # never / < 1


def test_weights():
    scores = torch.tensor([[0.0, 2.0], [-1.0, -3.0]])
    assert confidence(scores, 1).tolist() == torch.tensor([2.0, -1.0]).sigmoid().tolist()
    assert weighted(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])) == 5 / 4
    assert weighted(torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.2])).item() == pytest.approx(
        0.5
    )  # never / < 1


# Features -------------------------------------------------------------------------------------------------


def test_mimicry_by_hand():
    # (3, 4) -> (.6, .8) against (1, 0): .16 + .64 = .8; (0, 2) -> (0, 1) against (0, 1): 0; mean .4.
    student = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]])
    teacher = torch.tensor([[[5.0, 0.0]], [[0.0, 7.0]]])
    assert mimicry([student], [teacher]).item() == pytest.approx(0.4)
    assert mimicry([student, student], [teacher, student]).item() == pytest.approx(0.2)
    assert mimicry([student], [-student]).item() == pytest.approx(4)


def test_dead_features_have_no_gradient():
    dead = torch.zeros(1, 3, requires_grad=True)
    loss = mimicry([dead], [torch.tensor([[0.0, 0.0, 2.0]])])
    loss.backward()
    assert loss == 1 and dead.grad.tolist() == [[0, 0, 0]]


def test_a_job_is_the_mean_over_its_layers():
    job = Mimic(layers=["a", "b"], teacher="big", teacher_layers=["x", "y"])
    student = {"a": [torch.tensor([[3.0, 4.0]])], "b": [torch.tensor([[1.0, 0.0]])]}
    teacher = {"x": [torch.tensor([[1.0, 0.0]])], "y": [torch.tensor([[0.0, 1.0]])]}
    assert mimic_loss(job, student, teacher).item() == pytest.approx((0.8 + 2) / 2)
    with pytest.raises(UserError, match="'a' gives 2 an image, 'x' of the teacher 'big' 3x1: only equal"):
        mimic_loss(job, student, teacher | {"x": [torch.ones(1, 3, 1)]})
    with pytest.raises(UserError, match="'b' does not run in every architecture"):
        mimic_loss(job, {"a": student["a"]}, teacher)


def test_features_are_those_before_work_in_place():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True), nn.Linear(2, 2))
    nn.init.eye_(net[0].weight)
    nn.init.zeros_(net[0].bias)
    with features(net, ["0", "1"]) as seen:
        net(torch.tensor([[-1.0, 2.0]]))
        net(torch.tensor([[5.0, 6.0]]))
    assert [t.tolist() for t in seen["0"]] == [[[-1, 2]], [[5, 6]]]
    assert [t.tolist() for t in seen["1"]] == [[[0, 2]], [[5, 6]]]
    net(torch.zeros(1, 2))
    assert len(seen["0"]) == 2  # no longer watched


# Settings -------------------------------------------------------------------------------------------------


def test_weights_grow_at_first():
    job = Outputs(teacher="big", weight=0.8, warm_up=4)
    assert [job.weight_at(step) for step in (0, 1, 3, 4, 99)] == pytest.approx([0.2, 0.4, 0.8, 0.8, 0.8])
    assert Mimic(layers=["a"]).weight_at(0) == 0.5
    assert list(Mimic(layers=["a", "b"]).pairs) == [("a", "a"), ("b", "b")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 0, "labels": 0}, "students need something to learn from"),
        ({"weight": -1}, "greater than or equal to 0"),
        ({"teachers": {"max": "a.pt"}}, "'max' is the supernet's own largest net"),
        (
            {"teachers": {"big": "a.pt"}},
            r"nothing is learnt from the teacher 'big'; add outputs: \[{teacher: big}",
        ),
        ({"mimic": [{"layers": ["a"], "teacher": "mx"}]}, "unknown teacher 'mx'; did you mean 'max'"),
        ({"outputs": [{"teacher": "max"}]}, "what is learnt from max's output is distil.weight"),
        ({"mimic": [{"layers": []}]}, "at least 1 item"),
        (
            {"mimic": [{"layers": ["a"], "teacher_layers": ["b", "c"]}]},
            "one layer for each of layers, 1, not 2",
        ),
        ({"mimik": []}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValidationError, match=message):
        Distil(**settings)


def test_a_teacher_from_a_file_may_be_all_that_students_have():
    distil = Distil(weight=0, labels=0, teachers={"big": "big.pt"}, outputs=[{"teacher": "big"}])
    assert [(job.teacher, job.weight, job.warm_up) for job in distil.outputs] == [("big", 1.0, 0)]
