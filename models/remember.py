"""A network that begins with trained weights learns, beside its labels, to give the maps that they gave.

    lesson = Mimicking(net, teacher, weight=5.0, epochs=12)  # teacher: the network that the weights are of
    train(net, ..., lesson=lambda net: lesson)

A few hundred images of one's own teach a network what is on them, and make it forget much of what its weights
knew of all others; a network that was cut out of the one that the weights are of has to find that first. Both
mend if the maps of its convolutions are held near those of that network, which stays as it was: the
regularisation of DELTA (arXiv 1901.09229), here without its attention over channels, on whatever filters both
have (`models.refit.shared`), and falling to 0 with the epochs.
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
    """The loss of a batch and, as `mimic`, how far the network's maps are from the teacher's.

    net, teacher: as `models.inherit` left them, with weights of one source. weight: of that distance
    (`models.refit.apart`, the mean over the convolutions) in the first epoch; it falls in a line and would be
    0 after the last.
    """

    def __init__(self, net: nn.Module, teacher: nn.Module, weight: float, epochs: int) -> None:
        self.weight, self.epochs = weight, epochs
        self.module: LossAndMimicry = LossAndMimicry(net, teacher)

    def begin(self, epoch: int) -> dict[str, Any]:
        self.module.weight = self.weight * (1 - (epoch - 1) / self.epochs)
        return {}


class LossAndMimicry(LossOf):
    """One pass of both, as a module: what DDP wraps.

    The teacher is frozen, and moves along, but is no submodule: no optimizer, DDP or checkpoint meets it. Its
    batch norms take the statistics of the batch, as those of the network do.
    """

    def __init__(self, net: nn.Module, teacher: nn.Module) -> None:
        super().__init__(net)
        self.pairs, self.weight = shared(net, teacher), 0.0
        teacher.eval().requires_grad_(False)
        for norm in (m for m in teacher.modules() if isinstance(m, _BatchNorm)):
            norm.train().track_running_stats = False
        self.teachers = [teacher.to(memory_format=torch.channels_last)]  # type: ignore[call-overload]

    def forward(self, batch: dict[str, Any]) -> Losses:
        with torch.no_grad(), features(self.teachers[0], self.pairs) as theirs:
            self.teachers[0].raw(batch["img"])  # type: ignore[operator]
        with features(self.detector, self.pairs) as ours:
            losses = super().forward(batch)
        distances = apart(once(ours), once(theirs), self.pairs)
        mean = torch.stack(distances).mean() if distances else batch["img"].new_zeros(())
        return losses | {"mimic": self.weight * mean}

    def _apply(self, fn: Any, recurse: bool = True) -> LossAndMimicry:
        for teacher in self.teachers:  # to a device, a memory format
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)
