"""One training step of a supernet: several archs on one batch, one backward each, then one update.

The sandwich rule and in-place distillation of BigNAS (arXiv 2003.11142, section 3): the largest net first,
whose output on this very batch teaches the others, a few random ones and the smallest. Knows no model.

    archs = models.sampling.subnets(["max", "random", "random", "min"], space, seed, step)
    losses = sandwich_step(Pupil(net, settings), supernet.set_arch, batch, archs, touch=world_size > 1)
    optimizer.step()

Weight decay by the optimizer acts once an update on all weights, which are the largest net's: as BigNAS wants
it, the others add none. Dropout is not theirs either: it is off while they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from utils.batch import resized
from utils.errors import UserError

Arch = Mapping[str, Any]


class Learner(Protocol):
    """A network whose loss is made of its raw output, so that the output serves twice."""

    def raw(self, images: Tensor) -> Any: ...
    def losses(self, raw: Any, batch: Any) -> dict[str, Tensor]: ...
    def distil(self, raw: Any, teacher: Any, **options: Any) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Sandwich:
    """distil: weight of what the students learn from the largest net; 0 is no distillation.
    labels: weight of the ground truth in the students' loss; BigNAS has 0, detectors do better with some.
    options: of the network's own `distil`, e.g. {"divergence": "alpha"}."""

    distil: float = 1.0
    labels: float = 1.0
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.distil < 0 or self.labels < 0 or self.distil + self.labels == 0:
            raise UserError(
                f"students need something to learn from: distil {self.distil:g} and labels {self.labels:g} "
                "should not be negative, and not both 0"
            )


class Pupil(nn.Module):
    """One pass of one arch, as a module: what DDP wraps, and where its hooks begin."""

    def __init__(self, net: nn.Module, settings: Sandwich) -> None:
        super().__init__()
        self.net, self.settings = net, settings

    def forward(
        self, batch: Mapping[str, Any], teacher: Any = None, touch: bool = False
    ) -> tuple[dict[str, Tensor], Any]:
        """(named scalar losses, raw output). Without a teacher's output, the plain loss.

        touch: adds 0 x every parameter, so that DDP finds all of them used.
        """
        net: Any = self.net
        raw = net.raw(batch["img"])
        losses: dict[str, Tensor] = {}
        labels = 1.0 if teacher is None else self.settings.labels
        if labels:
            losses = {k: labels * v for k, v in net.losses(raw, batch).items()}
        if teacher is not None and self.settings.distil:
            taught = net.distil(raw, teacher, **(self.settings.options or {}))
            losses |= {f"distil_{k}": self.settings.distil * v for k, v in taught.items()}
        if touch:
            losses["touch"] = 0 * torch.stack([p.sum() for p in net.parameters() if p.requires_grad]).sum()
        return losses, raw


def sandwich_step(
    model: nn.Module,
    set_arch: Callable[[Arch], Any],
    batch: Mapping[str, Any],
    archs: Sequence[Arch],
    *,
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
    touch: bool = False,
) -> list[dict[str, Tensor]]:
    """Add the gradients of the mean over `archs` of their losses to `.grad`; returns the losses, detached.

    model:    a `Pupil`, or DDP around one. archs[0] teaches the others on this batch.
    set_arch: makes the network inside run an arch. An arch with a `resolution` sees the images at that size.
    backward: e.g. Fabric's. Called once for each arch, so that only one graph is alive at a time.
    no_sync:  e.g. DDP's. Around all passes but the last: gradients are exchanged once.
    touch:    with DDP, count the parameters that the last arch does not use as used.
    """
    teacher: Any = None
    found = []
    dropouts = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training]
    try:
        for k, arch in enumerate(archs):
            set_arch(arch)
            last = k + 1 == len(archs)
            with nullcontext() if last else no_sync():
                sized = resized(batch, arch["resolution"]) if "resolution" in arch else batch
                losses, raw = model(sized, teacher, touch and last)
                backward(torch.stack(list(losses.values())).sum() / len(archs))
            found.append({name: v.detach() for name, v in losses.items() if name != "touch"})
            if k == 0:
                teacher = detached(raw)
                for dropout in dropouts:
                    dropout.eval()
            del losses, raw  # the graph, before the next one grows
    finally:
        for dropout in dropouts:
            dropout.train()
    return found


def detached(raw: Any) -> Any:
    """The same output without its graph: tensors in tuples, lists and dicts."""
    if isinstance(raw, Tensor):
        return raw.detach()
    if isinstance(raw, Mapping):
        return {k: detached(v) for k, v in raw.items()}
    if isinstance(raw, (tuple, list)):
        return type(raw)(detached(v) for v in raw)
    return raw
