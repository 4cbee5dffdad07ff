"""One training step of a supernet: several archs on one batch, one backward each, then one update.

The sandwich rule and in-place distillation of BigNAS (arXiv 2003.11142, section 3): the largest net first,
whose output on this very batch teaches the others, a few random ones and the smallest. Where
nobody teaches, any archs will do (single path one-shot, arXiv 1904.00420). Knows no model.

    pupil = Pupil(net, Distil(labels=0.5))
    archs = models.sampling.subnets(["max", "random", "random", "min"], space, seed, step)
    losses = sandwich_step(pupil, supernet.set_arch, batch, archs, step=step, touch=world_size > 1)
    optimizer.step()

Beside the largest net others may teach, from files, all archs: by their raw outputs or by features of layers.

Weight decay by the optimizer acts once an update on all weights, which are the largest net's: as BigNAS wants
it, the others add none. Dropout is not theirs either: it is off while they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor, nn

from utils.sides import Sides
from utils.training.batch import resized
from utils.training.mimic import Features, check, features, mapped, mimic_loss, options_of
from utils.training.settings import MAX, Distil

Arch = Mapping[str, Any]


class Learner(Protocol):
    """A network whose loss is made of its raw output, so that the output serves twice."""

    def raw(self, images: Tensor) -> Any: ...
    def losses(self, raw: Any, batch: Any) -> dict[str, Tensor]: ...
    def distil(self, raw: Any, teacher: Any, **options: Any) -> dict[str, Tensor]: ...


class Answer(TypedDict):
    """What a network makes of a batch, for others to learn: its raw output, and features of layers."""

    raw: Any
    features: Features


class Pupil(nn.Module):
    """One pass of one arch, as a module: what DDP wraps, and where its hooks begin.

    teachers: by name, for each of `distil.teachers` a network with `raw`. They are frozen here, run in eval
        mode and move along, but are no submodules: no optimizer, DDP or checkpoint meets them.

    Raises UserError for what cannot be distilled: see `utils.training.mimic.check`.
    """

    def __init__(
        self, net: nn.Module, distil: Distil, teachers: Mapping[str, nn.Module] | None = None
    ) -> None:
        super().__init__()
        check(net, distil, teachers or {})
        self.net, self.distil = net, distil
        self.sees_labels = "batch" in options_of(net)
        self.teachers = {name: (teachers or {})[name] for name in distil.teachers}
        for teacher in self.teachers.values():
            teacher.eval().requires_grad_(False)

    def forward(
        self,
        batch: Mapping[str, Any],
        taught: Mapping[str, Answer] | None = None,
        touch: bool = False,
        step: int = 0,
    ) -> tuple[dict[str, Tensor], dict[str, Answer]]:
        """(named scalar losses, answers that teach the other archs).

        taught: None for the largest net: it learns the ground truth and from `teachers`, which run now.
            Others learn from its answers and theirs, and give none.
        touch:  adds 0 x every parameter, so that DDP finds all of them used.
        step:   optimizer steps done so far, for the weights' warm-up.
        """
        net: Any = self.net
        distil, largest = self.distil, taught is None
        with features(net, self._watched(largest)) as seen:
            raw = net.raw(batch["img"])
        if taught is None:
            taught = {name: self._ask(name, batch) for name in self.teachers}

        losses: dict[str, Tensor] = {}
        options = distil.options | ({"batch": batch} if self.sees_labels else {})
        labels = 1.0 if largest else distil.labels
        if labels:
            losses = {k: labels * v for k, v in net.losses(raw, batch).items()}
        if not largest and distil.weight:
            parts = net.distil(raw, taught[MAX]["raw"], **options)
            losses |= {f"distil_{k}": distil.weight * v for k, v in parts.items()}
        for learnt in distil.outputs:
            parts = net.distil(raw, taught[learnt.teacher]["raw"], **options)
            for k, v in parts.items():
                _add(losses, f"distil_{learnt.teacher}_{k}", learnt.weight_at(step) * v)
        for job in distil.mimic:
            if job.teacher in taught:
                loss = mimic_loss(job, seen, taught[job.teacher]["features"])
                _add(losses, f"mimic_{job.teacher}", job.weight_at(step) * loss)
        if touch:
            losses["touch"] = 0 * torch.stack([p.sum() for p in net.parameters() if p.requires_grad]).sum()
        return losses, {**taught, MAX: Answer(raw=raw, features=seen)} if largest else {}

    def _watched(self, largest: bool) -> list[str]:
        """Layers of the network whose features matter in this pass."""
        found = [
            layer for job in self.distil.mimic if job.teacher != MAX or not largest for layer in job.layers
        ]
        return found + (self._shown(MAX) if largest else [])

    def _shown(self, teacher: str) -> list[str]:
        return [layer for job in self.distil.mimic if job.teacher == teacher for _, layer in job.pairs]

    @torch.no_grad()
    def _ask(self, name: str, batch: Mapping[str, Any]) -> Answer:
        teacher: Any = self.teachers[name]
        with features(teacher, self._shown(name)) as seen:
            return Answer(raw=teacher.raw(batch["img"]), features=seen)

    def _apply(self, fn: Any, recurse: bool = True) -> Pupil:
        for teacher in self.teachers.values():  # to a device, a memory format
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)


def _add(losses: dict[str, Tensor], name: str, loss: Tensor) -> None:
    losses[name] = losses[name] + loss if name in losses else loss


Seen = Callable[[Arch], Sides | None]  # the size at which an arch sees images; None: as they are


def searched(arch: Arch) -> int | None:
    """The side of the square images that an arch says it sees."""
    return arch.get("resolution")


def sandwich_step(
    model: nn.Module,
    set_arch: Callable[[Arch], Any],
    batch: Mapping[str, Any],
    archs: Sequence[Arch],
    *,
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
    touch: bool = False,
    step: int = 0,
    teaches: bool = True,
    seen: Seen = searched,
) -> list[dict[str, Tensor]]:
    """Add the gradients of the mean over `archs` of their losses to `.grad`; returns the losses, detached.

    model:    a `Pupil`, or DDP around one. archs[0], the largest, teaches the others on this batch.
    set_arch: makes the network inside run an arch.
    backward: e.g. Fabric's. Called once for each arch, so that only one graph is alive at a time.
    no_sync:  e.g. DDP's. Around all passes but the last: gradients are exchanged once.
    touch:    with DDP, count the parameters that the last arch does not use as used.
    step:     optimizer steps done so far, for weights that grow at first.
    seen:     the size at which an arch sees the images; by default its `resolution`, where it has one.
    teaches:  False where archs[0] is not the largest: each then learns by itself, as the largest would.
    """
    taught: Mapping[str, Answer] | None = None
    found = []
    dropouts = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training]
    try:
        for k, arch in enumerate(archs):
            set_arch(arch)
            last = k + 1 == len(archs)
            with nullcontext() if last else no_sync():
                sized = resized(batch, seen(arch))
                losses, answers = model(sized, taught, touch and last, step)
                backward(torch.stack(list(losses.values())).sum() / len(archs))
            found.append({name: v.detach() for name, v in losses.items() if name != "touch"})
            if k == 0 and teaches:
                taught = detached(answers)
                for dropout in dropouts:
                    dropout.eval()
            del losses, answers  # the graph, before the next one grows
    finally:
        for dropout in dropouts:
            dropout.train()
    return found


def detached(raw: Any) -> Any:
    """The same output without its graph."""
    return mapped(raw, Tensor.detach)
