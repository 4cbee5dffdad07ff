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

from utils.training.mimic import Features, features

RIDGE = 0.3  # of the mean square of the inputs; 1 and .1 serve as well, .01 does not (64 images)
ROWS = 8192  # places of the maps that a layer is fitted to
SAME = 1e-3  # of the norm of its maps: what a layer may be off before it is touched


Maps = dict[str, Tensor]  # what each inherited convolution gives [B, C, h, w]
Pairs = dict[str, tuple[Tensor, Tensor]]  # of each convolution, filters of one network and of the other


@torch.no_grad()
def refit(net: Any, teacher: Any, images: Tensor, target: Maps | None = None) -> int:
    """Fit the inherited convolutions of `net` to what those of `teacher` give; returns how many were changed.

    Both come from one source through `models.inherit`. images: [B, 3, H, W] float32 RGB 0..1, all of them in
    one pass; target: `maps(teacher, images)` where that is known. Batch norms of `net` take the statistics of
    these images where anything was changed; else it stays as it is. Left alone: grouped convolutions, what
    runs more than once in a pass, what is fresh.
    """
    norms = {name: buffer.clone() for name, buffer in net.named_buffers()}
    fitter = _Fitter(shared(net, teacher), maps(teacher, images) if target is None else target)
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
    theirs = maps(teacher, images) if target is None else target
    found = apart(maps(net, images), theirs, shared(net, teacher))
    later = found[len(found) // 2 :]
    return float(torch.stack(later).mean()) if later else float("inf")


def apart(ours: Maps, theirs: Maps, pairs: Pairs) -> list[Tensor]:
    """Of each map that both have, in the order of `theirs`, the mean square difference as a share of the
    variance of theirs, a float32 scalar from 0; a gradient reaches `ours`."""
    found = []
    for name, wanted in theirs.items():
        if name not in pairs or name not in ours or ours[name].shape[2:] != wanted.shape[2:]:
            continue
        rows = [place.to(wanted.device) for place in pairs[name]]
        mine, wanted = ours[name][:, rows[0]].float(), wanted[:, rows[1]].float()
        spread = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum()
        found.append((mine - wanted).square().sum() / spread.clamp(min=1e-12))
    return found


def shared(net: Any, teacher: Any) -> Pairs:
    """Of each convolution (filters here, the teacher's that come from the same filters of the source)."""
    found = {}
    for name in inherited(net):
        mine, theirs = (n.filters.get(f"{name}.weight", torch.empty(0)) for n in (net, teacher))
        pairs = ((mine[:, None] == theirs[None]) & (mine[:, None] >= 0)).nonzero(as_tuple=True)
        if len(pairs[0]):
            found[name] = (pairs[0], pairs[1])
    return found


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
    with features(teacher, inherited(teacher)) as found:
        _pass(teacher, images)
    return once(found)


def inherited(net: Any) -> list[str]:
    """The convolutions, grouped ones aside, whose weights `models.inherit` gave."""
    return [name for name, _ in _convolutions(net) if f"{name}.weight" in net.filters]


def once(found: Features) -> Maps:
    """The maps of what ran once."""
    return {name: outs[0] for name, outs in found.items() if len(outs) == 1}


class _Fitter:
    """Fits each convolution of a network at the moment at which it runs. changed: how many."""

    def __init__(self, pairs: Pairs, target: Maps) -> None:
        self.pairs, self.target = pairs, target
        self.changed = 0

    def hook(self, name: str) -> Any:
        def fit(conv: nn.Conv2d, args: tuple[Tensor], out: Tensor) -> Tensor | None:
            wanted = self.target.get(name)
            rows = self.pairs.get(name)
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
