"""What a step does with gradients: optimizer groups, learning rate, average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from utils.errors import UserError, unknown
from utils.training.schedules import OURS, rates
from utils.training.settings import INHERITED_LR, TrainSettings

# Name of a tensor -> of its first dimensions the numbers of what comes first, second, ...; None: as it is.
Orders = Mapping[str, Sequence[Tensor | None]]


def weight_groups(net: nn.Module, apart: Collection[str] = ()) -> dict[str, list[Tensor]]:
    """The trained parameters: weights of two or more dimensions (decayed), other weights, and biases, which
    are warmed up apart; beside them the buffers that are averaged but not trained.

    Biases that are inherited (models/inherit.py notes it on the network) are among the other weights: they
    have no prior to unlearn, which is what the warm-up of biases is for.

    A parameter that is marked `no_decay` is among the others whatever its shape. apart: names of parameters
    with groups of their own, `decayed apart` and so on.
    """
    inherited = frozenset(getattr(net, "inherited", ()))

    def kind(name: str, p: Tensor) -> str:
        if name.endswith("bias"):
            return "others" if name in inherited else "biases"
        return "decayed" if decays(p) else "others"

    found: dict[str, list[Tensor]] = {}
    for where in ("", " apart") if apart else ("",):
        named = [(n, p) for n, p in net.named_parameters() if p.requires_grad and (n in apart) == bool(where)]
        for group in ("decayed", "others", "biases"):
            found[group + where] = [p for n, p in named if kind(n, p) == group]
    return {**found, "buffers": [b for b in net.buffers() if b.is_floating_point()]}


def names_of(net: Any, part: str) -> frozenset[str]:
    """Names of the parameters of a part of the network. Raises UserError where it has no such part."""
    parts = net.parameter_parts() if hasattr(net, "parameter_parts") else {}
    if part not in parts:
        raise unknown(f"part of {type(net).__name__}", part, list(parts) or ["none"])
    chosen = {id(p) for p in parts[part]}
    return frozenset(n for n, p in net.named_parameters() if id(p) in chosen)


def apart(net: Any, settings: TrainSettings) -> frozenset[str]:
    """Names of the parameters that have a learning rate of their own: the backbone's, or what is inherited
    (models/inherit.py notes it on the network). All of them are trained."""
    if settings.backbone_lr is not None:
        return names_of(net, "backbone")
    return frozenset(n for n, _ in net.named_parameters()) & frozenset(getattr(net, "inherited", ()))


def freeze(net: nn.Module, parts: Sequence[str]) -> list[nn.Module]:
    """Train these parts no more. Returns their batch norms, which stay in eval mode: their statistics are
    part of what they are. Raises UserError for a part that the network lacks, and for all of them."""
    frozen = {name for part in parts for name in names_of(net, part)}
    for name, parameter in net.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if parts and not any(p.requires_grad for p in net.parameters()):
        raise UserError(
            f"train.freeze: {', '.join(parts)} is all of {type(net).__name__}: nothing would learn"
        )
    norms = {name: m for name, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    return [norm for name, norm in norms.items() if f"{name}.weight" in frozen]


def decays(p: Tensor) -> bool:
    return p.dim() > 1 and not getattr(p, "no_decay", False)


class Flat:
    """The float32 tensors of `weight_groups` moved into one buffer, of which they stay views.

    Clipping, the optimizer step and the average are then a few long operations instead of hundreds of short
    ones: of a YOLOv5n's step at 64 px they took 15.1 ms, now 9.3 of 93. `release` gives the tensors their own
    memory back.
    """

    def __init__(
        self, net: nn.Module, apart: Collection[str] = (), groups: Mapping[str, list[Tensor]] | None = None
    ) -> None:
        self.groups = weight_groups(net, apart) if groups is None else groups
        self.tensors = [t for group in self.groups.values() for t in group]
        assert all(t.dtype == torch.float32 for t in self.tensors), {t.dtype for t in self.tensors}
        self.buffer = torch.empty(sum(t.numel() for t in self.tensors), device=self.tensors[0].device)
        offset = 0
        for t in self.tensors:
            view = self.buffer.as_strided(t.shape, torch.empty_like(t).stride(), offset)  # its memory format
            t.data = view.copy_(t.detach())
            offset += t.numel()

    def parameters(self) -> dict[str, nn.Parameter]:
        """Each group as one long parameter, for an optimizer; gradients of the net's go to its `.grad`."""
        parameters, offset = {}, 0
        for name in (name for name in self.groups if name != "buffers"):
            start = offset
            gradient = torch.zeros_like(
                self.buffer[start : start + sum(t.numel() for t in self.groups[name])]
            )
            for t in self.groups[name]:
                t.grad = gradient.as_strided(t.shape, t.stride(), offset - start)
                offset += t.numel()
            parameters[name] = nn.Parameter(self.buffer[start:offset])
            parameters[name].grad = gradient
        return parameters

    def places(self, net: nn.Module, orders: Orders) -> Tensor:
        """Where each number of the buffer is found, once the network's tensors are in these orders."""
        names = {id(t): name for name, t in _named(net)}
        numbers = torch.arange(len(self.buffer))
        found, offset = numbers.clone(), 0
        for t in self.tensors:
            where = numbers.as_strided(t.shape, t.stride(), offset)
            found.as_strided(t.shape, t.stride(), offset).copy_(put(where, orders.get(names[id(t)], ())))
            offset += t.numel()
        return found.to(self.buffer.device)

    def of_copy(self, net: nn.Module, copied: nn.Module) -> Flat:
        """The same places for the tensors of a copy of the network, whose marks (`no_decay`) a copy lacks."""
        pairs = zip(_named(net), _named(copied), strict=True)
        twin = {id(mine): theirs for (_, mine), (_, theirs) in pairs}
        return Flat(copied, groups={k: [twin[id(t)] for t in group] for k, group in self.groups.items()})

    def release(self) -> None:
        for t in self.tensors:
            t.data, t.grad = t.data.clone(), None


def _named(net: nn.Module) -> list[tuple[str, Tensor]]:
    return [*net.named_parameters(), *net.named_buffers()]


def put(t: Tensor, orders: Sequence[Tensor | None]) -> Tensor:
    """A tensor with its first dimensions in these orders; None: as it is."""
    for dim, order in enumerate(orders):
        t = t if order is None else t.index_select(dim, order.to(t.device))
    return t


@torch.no_grad()
def reorder(net: nn.Module, flat: Flat, ema: Ema, optimizer: Any, orders: Orders) -> None:
    """Put the channels of a network into another order, and with them its average and what the optimizer
    remembers of them. What is frozen, and so in no buffer, moves too."""
    places, inside = flat.places(net, orders), {id(t) for t in flat.tensors}
    for (name, mine), (_, average) in zip(_named(net), _named(ema.detector), strict=True):
        if name in orders and id(mine) not in inside:
            for t in (mine, average):
                t.copy_(put(t, orders[name]))
    for buffer in (flat.buffer, ema.flat.buffer):
        buffer.copy_(buffer[places])
    for p, remembered in getattr(optimizer, "optimizer", optimizer).state.items():
        here = places[p.storage_offset() : p.storage_offset() + p.numel()] - p.storage_offset()
        for value in remembered.values():
            if torch.is_tensor(value) and value.shape == p.shape:
                value.copy_(value[here])


def build_optimizer(flat: Flat, settings: TrainSettings, fused: bool = True) -> Optimizer:
    """AdamW or SGD over the groups. Gradients are zeroed with `zero_grad(set_to_none=False)`."""
    scale = settings.inherited_lr or INHERITED_LR
    if settings.backbone_lr is not None:
        scale = settings.backbone_lr / settings.lr
    groups: list[dict[str, Any]] = [
        {
            "params": [p],
            "weight_decay": settings.weight_decay * name.startswith("decayed"),
            "bias": name.startswith("biases"),
            "scale": scale if name.endswith("apart") else 1.0,
        }
        for name, p in flat.parameters().items()
        if len(p)
    ]
    if settings.optimizer == "SGD":
        return torch.optim.SGD(
            groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=fused
        )
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.momentum, 0.999), fused=fused)


class Schedule:
    """The learning rate of optimizer step n = 0 .. steps - 1.

    From lr at step 0 to exactly lr * lr_final at the last step, in a line or half a cosine, never below
    lr * lr_floor (the constant ending of BigNAS, arXiv 2003.11142, section 3.1). In the first
    `warmup` steps (at most half of the run) it is scaled by n / warmup; that of biases goes in a line from
    warmup_bias_lr to the schedule instead. One of torch's by name stays what it is for each epoch.
    """

    def __init__(self, settings: TrainSettings, steps_per_epoch: int) -> None:
        self.settings = settings
        self.steps = settings.epochs * steps_per_epoch
        self.warmup = min(round(settings.warmup_epochs * steps_per_epoch), self.steps // 2)
        self.of_epochs: list[float] = []
        if settings.schedule not in OURS:
            self.of_epochs = rates(settings.schedule, settings.lr, settings.epochs)
        self.steps_per_epoch = steps_per_epoch

    def lr(self, step: int, bias: bool = False) -> float:
        s = self.settings
        if self.of_epochs:
            lr = max(s.lr * s.lr_floor, self.of_epochs[step // self.steps_per_epoch])
        else:
            done = step / (self.steps - 1) if self.steps > 1 else 1.0
            left = 1 - done if s.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
            lr = s.lr * max(s.lr_floor, s.lr_final + (1 - s.lr_final) * left)
        if step < self.warmup:
            start = s.warmup_bias_lr if bias else 0.0
            lr = start + (lr - start) * step / self.warmup
        return lr

    def apply(self, optimizer: Optimizer, step: int) -> float:
        """Set the rates of all groups; returns that of the weights."""
        for group in optimizer.param_groups:
            group["lr"] = self.lr(step, group.get("bias", False)) * group.get("scale", 1.0)
        return self.lr(step)


class Ema:
    """Average of a detector's weights and buffers: ema += (1 - d) (weights - ema), where
    d = decay * (1 - exp(-n / tau)) grows with the update n = 1, 2, ... (as Ultralytics' ModelEMA).

    A tau that is small against the run's length averages over all of it, its beginning included; one that is
    large averages nothing.
    """

    def __init__(self, detector: nn.Module, flat: Flat, decay: float, tau: float) -> None:
        self.detector = copy.deepcopy(detector).eval()
        self.flat = flat.of_copy(detector, self.detector)
        self.detector.requires_grad_(False)
        self.source, self.decay, self.tau = flat.buffer, decay, tau
        pairs = zip(self.detector.buffers(), detector.buffers(), strict=True)
        self.counts = [(ours, theirs) for ours, theirs in pairs if not ours.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step` = 0, 1, ..."""
        d = self.decay * (1 - math.exp(-(step + 1) / self.tau))
        self.flat.buffer.lerp_(self.source, 1 - d)
        for ours, theirs in self.counts:
            ours.copy_(theirs)
