"""How a batch becomes gradients: of one network, or of several slices of a supernet. Knows no model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from utils.training.batch import resized
from utils.training.optimize import Orders
from utils.training.sandwich import Arch, Pupil, Seen, sandwich_step, searched
from utils.training.settings import Distil

Losses = dict[str, Tensor]


class Lesson(Protocol):
    """module: what Fabric wraps; its forward is the call that DDP hooks into.

    `backward` adds `share` times the batch's gradients and returns (loss, its parts), detached scalars whose
    names stay the same. last: the optimizer steps next, so devices exchange gradients. step: optimizer steps
    done so far.
    """

    def begin(self, epoch: int) -> Orders:
        """What happens before an epoch, from 1: the new order of the channels of some tensors, or {}."""
        ...

    @property
    def module(self) -> nn.Module: ...

    def backward(
        self, model: Any, batch: dict[str, Any], fabric: Fabric, *, share: float, last: bool, step: int
    ) -> tuple[Tensor, Losses]: ...


class Plain:
    """One forward, one backward."""

    def __init__(self, detector: nn.Module) -> None:
        self.module: nn.Module = LossOf(detector)

    def begin(self, epoch: int) -> Orders:
        return {}

    def backward(
        self, model: Any, batch: dict[str, Any], fabric: Fabric, *, share: float, last: bool, step: int
    ) -> tuple[Tensor, Losses]:
        with fabric.no_backward_sync(model, enabled=not last):
            losses = model(batch)
            loss = sum(losses.values(), torch.zeros((), device=fabric.device))
            fabric.backward(loss * share)
        return loss.detach(), {name: value.detach() for name, value in losses.items()}


class LossOf(nn.Module):
    """Makes `loss` the forward."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch: dict[str, Any]) -> Losses:
        return self.detector.loss(batch)  # type: ignore[operator]


class SandwichLesson:
    """The sandwich rule: several archs on one batch, one backward each (utils/training/sandwich.py).

    kinds:  of the archs of a step: max, random, min. Parts of the loss are named after them, `max_cls`, means
            over archs of one kind.
    archs:  (step, epoch from 1, score) -> the archs of a step, the same on every device: else `backward`
            raises a RuntimeError there. score(arch): its loss on this batch, the same on every device, for
            samplers that choose by it.
    direct: a context for each step, in which slices add their gradients in place
            (models/elastic/gradients.py); not used with DDP, which waits for hooks.
    begin:  what happens before an epoch, as of `Lesson`.
    seen:   as of `sandwich_step`.
    """

    def __init__(
        self,
        net: nn.Module,
        distil: Distil,
        set_arch: Callable[[Arch], Any],
        kinds: Sequence[str],
        archs: Callable[[int, int, Callable[[Arch], float]], list[Any]],
        teachers: Mapping[str, nn.Module] | None = None,
        direct: AbstractContextManager[Any] | None = None,
        begin: Callable[[int], Orders] = lambda epoch: {},
        seen: Seen = searched,
    ) -> None:
        self.module = Pupil(net, distil, teachers or {})
        self.set_arch, self.kinds, self.archs = set_arch, kinds, archs
        self.direct = direct or nullcontext()
        self.before, self.seen, self.epoch = begin, seen, 1

    def begin(self, epoch: int) -> Orders:
        self.epoch = epoch
        return self.before(epoch)

    def backward(
        self, model: Any, batch: dict[str, Any], fabric: Fabric, *, share: float, last: bool, step: int
    ) -> tuple[Tensor, Losses]:
        @torch.no_grad()
        def score(arch: Arch) -> float:
            self.set_arch(arch)
            sized = resized(batch, self.seen(arch))
            losses = self.module.net.loss(sized)  # type: ignore[operator]
            return float(fabric.all_reduce(torch.stack(list(losses.values())).sum()))  # type: ignore[arg-type]

        alone = fabric.world_size == 1
        archs = self.archs(step, self.epoch, score)
        check_agreement(archs, fabric, step)
        with self.direct if alone else nullcontext(), fabric.no_backward_sync(model, enabled=not last):
            found = sandwich_step(
                model,
                self.set_arch,
                batch,
                archs,
                backward=lambda loss: fabric.backward(loss * share),
                no_sync=lambda: fabric.no_backward_sync(model),
                touch=not alone,
                step=step,
                teaches=self.kinds[0] == "max",
                seen=self.seen,
            )
        loss = torch.stack([torch.stack(list(losses.values())).sum() for losses in found]).mean()
        parts: dict[str, list[Tensor]] = {}
        for kind, losses in zip(self.kinds, found, strict=True):
            for name, value in losses.items():
                parts.setdefault(f"{kind}_{name}", []).append(value)
        return loss, {name: torch.stack(values).mean() for name, values in parts.items()}


def check_agreement(archs: Sequence[Arch], fabric: Fabric, step: int) -> None:
    """Raises a RuntimeError on every device where they do not train the same archs.

    Otherwise one would wait for ever for sums over devices, of synchronised norms and gradients, that another
    does not ask for: the deadlock of aw_nas, whose devices drew each from a generator of its own.
    """
    if fabric.world_size == 1:
        return
    said = hashlib.sha256(json.dumps(list(archs), sort_keys=True).encode()).digest()
    mine = int.from_bytes(said[:7], "big")
    high, low = fabric.all_reduce(torch.tensor([mine, -mine], device=fabric.device), reduce_op="max")
    if high != -low:
        raise RuntimeError(
            f"the {fabric.world_size} devices drew different architectures for step {step}: "
            "they must come from (seed, step) alone (models/sampling.py)"
        )
