"""A network that begins with trained weights learns to give the maps that they gave.

    lesson = Mimicking(net, teacher)  # teacher: the network that the weights are of
    train(net, ..., lesson=lambda net: lesson)

Without labels it recovers what a cut has moved, further than least squares can (`models.refit`): layers
learn together, on images as they are trained on. These are hints of all layers, where FitNets (arXiv
1412.6550) have one. With labels it is held near what the weights knew while it learns what is on the
images, less and less with the epochs: DELTA (arXiv 1901.09229) without its attention over channels. Filters
that only one of the two has are left out (`models.refit.shared`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.refit import apart, once, shared
from utils.training.lessons import Losses, LossOf, Plain
from utils.training.mimic import features


class Mimicking(Plain):
    """The loss `mimic`: how far the network's maps are from the teacher's, the mean over convolutions of
    `models.refit.apart`.

    net, teacher: as `models.inherit` left them, with weights of one source.
    weight, epochs: beside the labels' losses, so much in the first epoch, falling in a line that would be 0
    after the last; by default there are no labels.
    """

    def __init__(self, net: nn.Module, teacher: nn.Module, weight: float = 1.0, epochs: int = 0) -> None:
        self.weight, self.epochs = weight, epochs
        self.module: Mimicry = Mimicry(net, teacher, labels=epochs > 0)

    def begin(self, epoch: int) -> dict[str, Any]:
        if self.epochs:
            self.module.weight = self.weight * (1 - (epoch - 1) / self.epochs)
        return {}


class Mimicry(LossOf):
    """One pass of both, as a module: what DDP wraps.

    The teacher is frozen, and moves along, but is no submodule: no optimizer, DDP or checkpoint meets it. Its
    batch norms take the statistics of the batch, as those of the network do.
    """

    def __init__(self, net: nn.Module, teacher: nn.Module, labels: bool = False) -> None:
        super().__init__(net)
        self.pairs, self.weight, self.labels = shared(net, teacher), 1.0, labels
        teacher.eval().requires_grad_(False)
        for norm in (m for m in teacher.modules() if isinstance(m, _BatchNorm)):
            norm.train().track_running_stats = False
        self.teachers = [teacher.to(memory_format=torch.channels_last)]  # type: ignore[call-overload]

    def forward(self, batch: dict[str, Any]) -> Losses:
        losses: Losses = {}
        with torch.no_grad(), features(self.teachers[0], self.pairs) as theirs:
            self.teachers[0].raw(batch["img"])  # type: ignore[operator]
        with features(self.detector, self.pairs) as ours:
            if self.labels:
                losses = super().forward(batch)
            else:
                self.detector.raw(batch["img"])  # type: ignore[operator]
        distances = apart(once(ours), once(theirs), self.pairs)
        mean = torch.stack(distances).mean() if distances else batch["img"].new_zeros(())
        return losses | {"mimic": self.weight * mean}

    def _apply(self, fn: Any, recurse: bool = True) -> Mimicry:
        for teacher in self.teachers:  # to a device, a memory format
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)
