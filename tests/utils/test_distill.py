"""Distillation losses against closed forms and autograd."""

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from utils.distill import alpha_divergence, confidence, kl, soft_scores, weighted

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


def test_weights():
    scores = torch.tensor([[0.0, 2.0], [-1.0, -3.0]])
    assert confidence(scores, 1).tolist() == torch.tensor([2.0, -1.0]).sigmoid().tolist()
    assert weighted(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])) == 5 / 4
    assert weighted(torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.2])).item() == pytest.approx(
        0.5
    )  # never / < 1
