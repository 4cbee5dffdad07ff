"""What a step does with gradients: optimizer groups, learning rate, average of the weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from utils.settings import TrainSettings


def build_optimizer(detector: nn.Module, settings: TrainSettings, fused: bool = True) -> Optimizer:
    """Three groups: weights of two or more dimensions (decayed), other weights, biases (warmed up apart)."""
    named = [(n, p) for n, p in detector.named_parameters() if p.requires_grad]
    biases = [p for n, p in named if n.endswith("bias")]
    decayed = [p for n, p in named if not n.endswith("bias") and p.dim() > 1]
    others = [p for n, p in named if not n.endswith("bias") and p.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
        {"params": biases, "weight_decay": 0.0, "bias": True},
    ]
    if settings.optimizer == "SGD":
        return torch.optim.SGD(
            groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=fused
        )
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.momentum, 0.999), fused=fused)


class Schedule:
    """The learning rate of optimizer step n = 0 .. steps - 1.

    From lr at step 0 to exactly lr * lr_final at the last step, in a line or half a cosine. In the first
    `warmup` steps (at most half of the run) it is scaled by n / warmup; that of biases goes in a line from
    warmup_bias_lr to the schedule instead.
    """

    def __init__(self, settings: TrainSettings, steps_per_epoch: int) -> None:
        self.settings = settings
        self.steps = settings.epochs * steps_per_epoch
        self.warmup = min(round(settings.warmup_epochs * steps_per_epoch), self.steps // 2)

    def lr(self, step: int, bias: bool = False) -> float:
        s = self.settings
        done = step / (self.steps - 1) if self.steps > 1 else 1.0
        left = 1 - done if s.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        lr = s.lr * (s.lr_final + (1 - s.lr_final) * left)
        if step < self.warmup:
            start = s.warmup_bias_lr if bias else 0.0
            lr = start + (lr - start) * step / self.warmup
        return lr

    def apply(self, optimizer: Optimizer, step: int) -> float:
        """Set the rates of all groups; returns that of the weights."""
        for group in optimizer.param_groups:
            group["lr"] = self.lr(step, group.get("bias", False))
        return self.lr(step)


class Ema:
    """Average of a detector's weights and buffers: ema += (1 - d) (weights - ema), where
    d = decay * (1 - exp(-n / tau)) grows with the update n = 1, 2, ... (as Ultralytics' ModelEMA).

    A tau that is small against the run's length averages over all of it, its beginning included; one that is
    large averages nothing.
    """

    def __init__(self, detector: nn.Module, decay: float, tau: float) -> None:
        self.detector = copy.deepcopy(detector).eval().requires_grad_(False)
        self.decay, self.tau = decay, tau
        source, average = detector.state_dict(), self.detector.state_dict()
        floating = [k for k, v in average.items() if v.dtype.is_floating_point]
        self._pairs = [average[k] for k in floating], [source[k] for k in floating]
        self._counts = [(average[k], source[k]) for k in average.keys() - set(floating)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step` = 0, 1, ..."""
        d = self.decay * (1 - math.exp(-(step + 1) / self.tau))
        torch._foreach_lerp_(*self._pairs, 1 - d)
        for average, source in self._counts:
            average.copy_(source)
