"""What elastic layers compute with: slices of weights, their gradients, batch norm over several ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from models.elastic.dims import Dim


def spans_of(parts: Sequence[Dim], active: Sequence[int], channels: int) -> list[tuple[int, int]]:
    """(start, length) of the first active[j] channels of every part j."""
    if channels != sum(active):
        raise ValueError(f"the input has {channels} channels, the parts of this arch {list(active)}")
    found, start = [], 0
    for part, n in zip(parts, active, strict=True):
        found.append((start, n))
        start += part.largest
    return found


class Slice(torch.autograd.Function):
    """Weight [O, I, K, K] -> a dense copy of its first `out` filters, `spans` of its inputs, k x k centre.

    Indexing does the same, with one zero-filled gradient of the full size for each index; here it is one.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, out: int, spans: list[tuple[int, int]], k: int) -> Tensor:
        ctx.shape, ctx.at = w.shape, (out, spans, k)
        pieces = pieces_of(w, out, spans, k)
        return torch.cat(pieces, 1) if len(pieces) > 1 else pieces[0].clone()  # channels_last if `w` is

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        whole, done = grads[0].new_zeros(ctx.shape), 0
        for piece in pieces_of(whole, *ctx.at):
            piece.copy_(grads[0].narrow(1, done, piece.size(1)))
            done += piece.size(1)
        return whole, None, None, None


def leaf_of(p: Any, cut: Callable[[Tensor], list[Tensor]], axis: int = 0) -> Any:
    """The pieces of a parameter, joined, as a leaf whose gradient lands in its places in `p.grad`.

    The parameter itself where that is all of it.
    """
    if p is None:
        return None
    pieces = cut(p.detach())
    if sum(t.numel() for t in pieces) == p.numel():
        return p
    leaf = torch.cat(pieces, axis) if len(pieces) > 1 else pieces[0]
    if axis and not (leaf.is_contiguous() or leaf.is_contiguous(memory_format=torch.channels_last)):
        leaf = leaf.clone()  # once, not by every convolution forward and backward; channels_last if `p` is
    leaf = leaf.detach()  # no view any more: autocast keeps casts of leaves, but not of views
    if not p.requires_grad:
        return leaf
    places = cut(p.grad)
    leaf.requires_grad_()
    if len(places) == 1:
        leaf.grad = places[0]
        return leaf

    def scatter(leaf: Tensor) -> None:
        assert leaf.grad is not None
        for place, g in zip(places, leaf.grad.split([t.size(axis) for t in places], axis), strict=True):
            place.add_(g)
        leaf.grad = None

    leaf.register_post_accumulate_grad_hook(scatter)
    return leaf


def pieces_of(w: Tensor, out: int, spans: list[tuple[int, int]], k: int) -> list[Tensor]:
    return [centre(w[:out, start : start + n], k) for start, n in spans]


def centre(w: Tensor, k: int) -> Tensor:
    edge = (w.size(-1) - k) // 2
    return w[..., edge : edge + k, edge : edge + k]


def ranks() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def mean_over_ranks(x: Tensor) -> Tensor:
    """Without a gradient; every rank has to ask for it. Of one rank the tensor itself."""
    if ranks() == 1:
        return x
    total = x.clone()
    torch.distributed.all_reduce(total)
    return total / ranks()


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient is all-reduced as well: each rank's output depends on every rank's input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        torch.distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        torch.distributed.all_reduce(grad)
        return grad


def synchronised_norm(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, factor: float, eps: float
) -> Tensor:
    """Batch norm over the batches of all ranks; updates the running `mean` and `var` in place.

    The mean first and the variance around it second, because E[x^2] - E[x]^2 cancels in float32. torch's own
    SyncBatchNorm is for CUDA alone.
    """
    wide = x.float()
    over = [0, *range(2, x.dim())]
    view = [1, -1, *[1] * (x.dim() - 2)]
    n = torch.tensor([x.numel() / x.size(1)], device=x.device)
    totals = _SumOverRanks.apply(torch.cat((wide.sum(over), n)))
    count = totals[-1].detach()
    centre = totals[:-1] / count
    centred = wide - centre.view(view)
    variance = _SumOverRanks.apply(centred.square().sum(over)) / count
    with torch.no_grad():
        mean.lerp_(centre.to(mean.dtype), factor)
        var.lerp_((variance * count / (count - 1)).to(var.dtype), factor)
    y = centred * (variance + eps).rsqrt().view(view) * weight.view(view) + bias.view(view)
    return y.to(x.dtype)
