"""What a small net may learn from a large one's output on the same batch. Knows no network.

Teachers' outputs are expected detached; every function is 0 or smallest where student and teacher agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError


def no_distillation(net: nn.Module) -> UserError:
    """For who wants a network without a loss towards a teacher's output to learn from one."""
    return UserError(
        f"{type(net).__name__} has no distillation; set supernet.distil.weight=0, without distil.outputs"
    )


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of KL(teacher || student) of class logits [N, C]."""
    return F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")


def alpha_divergence(
    student: Tensor, teacher: Tensor, low: float = -1.0, high: float = 1.0, clip: float = 5.0
) -> Tensor:
    """Adaptive alpha-divergence of class logits [N, C], mean over rows (AlphaNet, arXiv 2102.07954, eq. 9).

    Of two divergences each row takes the larger: `low` < 0 punishes students that are too sure, `high` > 0
    those that miss what the teacher sees. Powers of the ratio teacher / student are clipped, and carry no
    gradient. The value itself is a surrogate: only its gradient means something.
    """
    at_low, surrogate_low = _divergence(student, teacher, low, clip)
    at_high, surrogate_high = _divergence(student, teacher, high, clip)
    return torch.where(at_low > at_high, surrogate_low, surrogate_high).mean()


def _divergence(student: Tensor, teacher: Tensor, alpha: float, clip: float) -> tuple[Tensor, Tensor]:
    """([N] the divergence, [N] what has its gradient)."""
    log_q = student.log_softmax(1)
    with torch.no_grad():
        q = log_q.exp()
        log_ratio = teacher.log_softmax(1) - log_q
        if abs(alpha) < 1e-3:  # the limit: KL(student || teacher)
            value, slope = -log_ratio, log_ratio - 1
        elif abs(alpha - 1) < 1e-3:  # the limit: KL(teacher || student)
            ratio = log_ratio.exp()
            value, slope = ratio * log_ratio, ratio
        else:
            power = (alpha * log_ratio).exp().clamp(max=clip)
            value = (power - 1) / (alpha * (alpha - 1))
            slope = power / alpha + 1 / (alpha * (alpha - 1))
    return (q * value).sum(1), -(q * slope * log_q).sum(1)


def soft_scores(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Quality focal loss (arXiv 2006.04388, eq. 3, beta 2) of multi-label logits to the teacher's scores.

    student, teacher: logits of one shape. weight: the loss is divided by its sum, at least 1: how much there
    is to see, by `confidence`. Easy background weighs next to nothing, as in the focal loss.
    """
    target = teacher.sigmoid()
    bce = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    return ((student.sigmoid() - target).square() * bce).sum() / weight.sum().clamp(min=1)


def confidence(teacher: Tensor, classes: int) -> Tensor:
    """The teacher's best class score at every anchor; classes: the axis of the logits."""
    return teacher.sigmoid().amax(classes)


def weighted(losses: Tensor, weight: Tensor) -> Tensor:
    """Sum of losses times weights, divided by the weights' sum, at least 1."""
    return (losses * weight).sum() / weight.sum().clamp(min=1)


def mimicry(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Squared distance of features [B, ...], each sample's divided by its norm; mean over samples and maps.

    From 0 (the same up to a factor) to 4. The mimic loss of United-Perception, for one layer.
    """
    apart = [(_unit(s) - _unit(t)).square().sum(1).mean() for s, t in zip(student, teacher, strict=True)]
    return torch.stack(apart).mean()


def _unit(x: Tensor) -> Tensor:
    """[B, ...] -> [B, n] float32 of length 1; zeros stay zeros and have no gradient."""
    flat = x.float().flatten(1)
    length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return flat / length.where(length > 1e-6, torch.inf)
