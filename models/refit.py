"""What a cut cost is won back without training: layers learn, one after the other, to give what they gave.

    teacher = build(space, space.default()); inherit(teacher, source)  # the network that was cut
    net = build(space, arch);                inherit(net, source)
    refit(net, teacher, images)

A convolution whose inputs are not what they were (channels or blocks before it are gone, another activation)
no longer gives what the source's did, and all that follows drifts. Least squares repairs most of it: each
layer's weights become those that give the teacher's maps best from the inputs that it has now, with a ridge
towards the weights that it inherited (channel pruning, arXiv 1707.06168, here for all layers in the order in
which they run). A stem of 4x4 instead of 6x6 moves the neck's maps of YOLOv5n by .63 of their variance, and
fitted by .04; one bottleneck of three less by .78, fitted by .39.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RIDGE = 0.3  # of the mean square of the inputs; 1 and .1 serve as well, .01 does not (64 images)
ROWS = 8192  # places of the maps that a layer is fitted to
SAME = 1e-3  # of the norm of its maps: what a layer may be off before it is touched


Maps = dict[str, Tensor]  # what each inherited convolution gives [B, C, h, w]


@torch.no_grad()
def refit(net: Any, teacher: Any, images: Tensor, target: Maps | None = None) -> int:
    """Fit the inherited convolutions of `net` to what those of `teacher` give; returns how many were changed.

    Both come from one source through `models.inherit`. images: [B, 3, H, W] float32 RGB 0..1, all of them in
    one pass; target: `maps(teacher, images)` where that is known. Batch norms of `net` take the statistics of
    these images where anything was changed; else it stays as it is. Left alone: grouped convolutions, what
    runs more than once in a pass, what is fresh.
    """
    norms = {name: buffer.clone() for name, buffer in net.named_buffers()}
    fitter = _Fitter(net, teacher, maps(teacher, images) if target is None else target)
    hooks = [m.register_forward_hook(fitter.hook(name)) for name, m in _convolutions(net)]
    try:
        _pass(net, images)
    finally:
        for hook in hooks:
            hook.remove()
    if not fitter.changed:
        for name, buffer in net.named_buffers():
            buffer.copy_(norms[name])
    return fitter.changed


@torch.no_grad()
def drift(net: Any, teacher: Any, images: Tensor, target: Maps | None = None) -> float:
    """How far what `net` computes has come from what `teacher` does: the mean square difference of the maps
    of inherited convolutions as a share of their variance, the mean over the later half of them.

    images: [B, 3, H, W] float32 RGB 0..1, best others than those that it was fitted to; target:
    `maps(teacher, images)` where that is known. Batch norms take their statistics of them. Infinite where
    the two have no such map in common.
    """
    ours, theirs, shares = maps(net, images), maps(teacher, images) if target is None else target, []
    fitter = _Fitter(net, teacher, theirs)
    for name, wanted in theirs.items():
        rows = fitter.rows(f"{name}.weight")
        if rows is None or name not in ours or ours[name].shape[2:] != wanted.shape[2:]:
            continue
        wanted, found = wanted[:, rows[1]], ours[name][:, rows[0]]
        spread = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum()
        shares.append(float((found - wanted).square().sum() / spread.clamp(min=1e-12)))
    later = shares[len(shares) // 2 :]
    return sum(later) / len(later) if later else float("inf")


def _convolutions(net: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    return [(name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1]


def _pass(net: Any, images: Tensor) -> None:
    """One pass in which batch norms take the statistics of the images, and all else is in eval mode."""
    modes = [(m, m.training) for m in net.modules()]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    net.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    try:
        net.raw(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def maps(teacher: Any, images: Tensor) -> Maps:
    """What each inherited convolution of the teacher gives; without those that run twice."""
    found: dict[str, Tensor] = {}
    twice: set[str] = set()

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            twice.update({name} & found.keys())
            found[name] = out

        return hook

    known = [(name, m) for name, m in _convolutions(teacher) if f"{name}.weight" in teacher.filters]
    hooks = [m.register_forward_hook(keep(name)) for name, m in known]
    try:
        _pass(teacher, images)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: out for name, out in found.items() if name not in twice}


class _Fitter:
    """Fits each convolution of a network at the moment at which it runs. changed: how many."""

    def __init__(self, net: Any, teacher: Any, target: Maps) -> None:
        self.net, self.teacher, self.target = net, teacher, target
        self.changed = 0

    def hook(self, name: str) -> Any:
        def fit(conv: nn.Conv2d, args: tuple[Tensor], out: Tensor) -> Tensor | None:
            wanted = self.target.get(name)
            rows = self.rows(f"{name}.weight")
            if wanted is None or rows is None or wanted.shape[2:] != out.shape[2:] or len(wanted) != len(out):
                return None
            mine, theirs = rows
            wanted = wanted[:, theirs]
            if (wanted - out[:, mine]).norm() <= SAME * wanted.norm():
                return None
            _fit(conv, mine, args[0], wanted)
            self.changed += 1
            return conv._conv_forward(args[0], conv.weight, conv.bias)

        return fit

    def rows(self, name: str) -> tuple[Tensor, Tensor] | None:
        """(filters here, the teacher's that come from the same filters of the source); None without any."""
        mine, theirs = self.net.filters.get(name), self.teacher.filters.get(name)
        if mine is None or theirs is None:
            return None
        pairs = (mine[:, None] == theirs[None]) & (mine[:, None] >= 0)
        ours, others = pairs.nonzero(as_tuple=True)
        return (ours, others) if len(ours) else None


def _fit(conv: nn.Conv2d, rows: Tensor, x: Tensor, wanted: Tensor) -> None:
    """The filters `rows` become those that give `wanted` [B, rows, h, w] best from x, near what they were."""
    padding = conv.padding if not isinstance(conv.padding, str) else 0
    columns = F.unfold(x, conv.kernel_size, conv.dilation, padding, conv.stride)  # type: ignore[arg-type]
    a, y = columns.transpose(1, 2).flatten(0, 1), wanted.flatten(2).transpose(1, 2).flatten(0, 1)
    if len(a) > ROWS:
        some = torch.randperm(len(a), generator=torch.Generator().manual_seed(0))[:ROWS]
        a, y = a[some], y[some]
    means = a.mean(0), y.mean(0)
    a, y = a - means[0], y - means[1]
    before = conv.weight[rows].flatten(1).t()
    square = a.t() @ a
    ridge = RIDGE * square.diagonal().mean().clamp(min=1e-12)
    square.diagonal().add_(ridge)
    change = torch.cholesky_solve(a.t() @ (y - a @ before), torch.linalg.cholesky(square))
    after = before + change
    conv.weight[rows] = after.t().view(len(rows), *conv.weight.shape[1:])
    if conv.bias is not None:
        conv.bias[rows] = means[1] - means[0] @ after
