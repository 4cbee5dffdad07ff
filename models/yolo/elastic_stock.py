"""Stock rows that vary as a supernet: the largest block of Ultralytics' own holds the weights of all.

An arch runs as the stock block that it is, built once without weights, on its share of the largest one's.
Which share that is nobody writes down for each kind of block: the channels that belong together are those
that a forward pass shows (models/channels.py), and of each set of them an arch has the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.channels import Axis, Channels, Segments
from models.elastic.dims import Dim
from models.elastic.layers import Elastic
from models.elastic.slicing import leaf_of
from models.space import Genes
from models.yolo.detector import stamped
from utils.unborn import without_numbers

READY = 256  # blocks of each layer that are kept, without weights; some 70 kB each


class Shares:
    """Which numbers of the largest block's tensors a smaller one has.

    stock: the largest block. name: what its tensors are called in the network that `channels` was watched on,
    but for their own names. read: of sets of channels that other rows make, how many an arch has.
    """

    def __init__(self, stock: nn.Module, name: str, channels: Channels, read: Mapping[Axis, Dim]) -> None:
        own = {key.removeprefix(name): dims for key, dims in channels.of.items() if key.startswith(name)}
        self.channels = Channels(own, {key.removeprefix(name) for key in channels.grouped})
        self.shapes = {key: tuple(tensor.shape) for key, tensor in stock.state_dict().items()}
        self.heads, self.read = dict(_heads(stock)), read

    def places(self, block: nn.Module, arch: Genes) -> dict[str, list[Tensor | None]]:
        """Name of each tensor of a block -> of its first two dimensions the numbers in the largest one's;
        None where it has all."""
        shapes = {key: tuple(tensor.shape) for key, tensor in block.state_dict().items()}
        widths = self.channels.widths(shapes) | {axis: dim(arch) for axis, dim in self.read.items()}
        found = {}
        for key, shape in shapes.items():
            known = [*self.channels.of.get(key, ()), None, None]
            pairs = zip(known, shape[:2], self.shapes[key], strict=False)
            found[key] = [_firsts(segments, n, most, widths) for segments, n, most in pairs]
        for name, mine in _heads(block):
            rows = torch.empty(sum(len(part) for part in mine), dtype=torch.long)
            for here, there in zip(mine, self.heads[name], strict=True):
                rows[here] = there[: len(here)]
            for key in found:
                if key.startswith(f"{name}.") and found[key] and found[key][0] is not None:
                    found[key][0] = rows
        return found


def _firsts(segments: Segments | None, n: int, most: int, widths: Mapping[Axis, int]) -> Tensor | None:
    """The places along a dimension of `most` of those `n` that hold the first channels of each segment.

    Fewer segments make it up where a chain of blocks is shorter (C2f reads them all, one beside the other).
    """
    if n == most:
        return None
    parts, start, left = [], 0, n
    for segment in segments or ():
        axis, times = segment.axis.whole(), segment.repeat
        width = widths.get(axis, left + 1) * times
        if width > min(left, axis.width * times):
            break
        parts.append(torch.arange(start, start + width))
        start, left = start + axis.width * times, left - width
    return torch.arange(n) if left else torch.cat(parts)


def _counted(places: Sequence[Tensor | None], shape: Sequence[int]) -> tuple[int, ...] | None:
    """How many places there are along each dimension, if they are the first ones."""
    counts = [n if p is None else len(p) for p, n in zip(places, shape, strict=False)]
    first = all(p is None or bool((p == torch.arange(len(p))).all()) for p in places)
    return tuple(counts) if first else None


def _heads(block: nn.Module) -> Iterator[tuple[str, list[Tensor]]]:
    """(name of the convolution that makes queries, keys and values, numbers of its filters for each of them).

    The filters are in the order of the heads. Of these a smaller block may have fewer, or narrower ones: it
    has the first queries, keys and values, whosever they are.
    """
    for name, module in block.named_modules():
        if hasattr(module, "qkv"):
            heads, wide = module.num_heads, module.head_dim
            key = getattr(module, "key_dim", wide)
            numbers = torch.arange(heads * (2 * key + wide)).view(heads, -1)  # type: ignore[operator]
            parts = numbers.split([key, key, wide], 1)  # type: ignore[list-item]
            yield (f"{name}.qkv" if name else "qkv"), [part.flatten() for part in parts]


class _Pick(torch.autograd.Function):
    """Rows and columns of a tensor as a copy, whose gradient has zeros elsewhere."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, rows: Tensor | None, columns: Tensor | None = None) -> Tensor:
        ctx.shape, ctx.at = w.shape, (rows, columns)
        for dim, places in enumerate((rows, columns)):
            w = w if places is None else w.index_select(dim, places)
        return w

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (rows, columns), grad = ctx.at, grads[0]
        if columns is not None:
            wide = grad.new_zeros(len(grad), *ctx.shape[1:])
            grad = wide.index_copy_(1, columns, grad)
        if rows is not None:
            grad = grad.new_zeros(ctx.shape).index_copy_(0, rows, grad)
        return grad, None, None


@dataclass
class Slot:
    """A tensor of a block without weights: where it belongs, and where its numbers are.

    here, there: what holds it, in this block and in the largest, both under `key`.
    places: numbers along its first dimensions; () where it has all. firsts: how many there are along each,
    where they are the first ones.
    """

    here: dict[str, Any]
    there: dict[str, Any]
    key: str
    places: tuple[Tensor | None, ...]
    firsts: tuple[int, ...] | None
    trained: bool

    def cut(self, direct: bool = False) -> Tensor:
        """The share: a copy, of statistics a view where that is possible; the tensor itself if that is all.

        direct: its gradient is added right into its place in the largest block's, if that is one piece.
        """
        whole: Tensor = self.there[self.key]
        if not self.places:
            return whole
        if self.firsts is not None and not self.trained:
            return self._view(whole)[0]
        if self.firsts is not None and direct:
            return cast(Tensor, leaf_of(whole, self._view, axis=int(whole.dim() > 1)))
        return _Pick.apply(whole, *self.places) if self.trained else whole[self.places[0]]

    def _view(self, whole: Tensor) -> list[Tensor]:
        assert self.firsts is not None
        return [whole[tuple(slice(n) for n in self.firsts)]]

    def write_back(self, tensor: Tensor) -> None:
        """Statistics that have changed in a copy."""
        if self.places and not self.trained and self.firsts is None:
            self.there[self.key].index_copy_(0, self.places[0], tensor)


@dataclass
class Cut:
    """The stock block of some archs, without weights. modes: its `training`, at the top and inside."""

    block: Any
    slots: list[Slot]
    modes: tuple[bool, bool] | None = None


class ElasticStock(Elastic):
    """A stock block that varies, or reads channels that do. Extracted, it is the stock block of the arch.

    Args:
        stock: the block at its largest, with its weights.
        make: an arch -> the block that it has here; its weights do not matter.
        own: the block's own choices. read: all others that it depends on.
        shares: which numbers of the largest block's a smaller one has.
    """

    vanishes = True

    def __init__(
        self,
        stock: nn.Module,
        make: Callable[[Genes], nn.Module],
        own: Sequence[Dim],
        read: Sequence[Dim],
        shares: Shares,
    ) -> None:
        super().__init__()
        self.row, self.make, self.shares = stock, make, shares
        self.own, self.dims = [label for dim in own for label in dim.labels], (*own, *read)
        self.defaults = {c.label: c.default for dim in self.dims for c in dim.choices}
        labels = dict.fromkeys(label for dim in self.dims for label in dim.labels)
        self.decides: Callable[[Genes], Any] = itemgetter(*labels) if labels else len
        self.cuts: dict[Any, Cut] = {}
        self.arch = self.largest()

    def set_arch(self, arch: Mapping[str, Any]) -> None:
        self.write(arch={**self.defaults, **arch})

    def running(self, arch: Mapping[str, Any]) -> list[nn.Module]:
        return []  # nothing in it is elastic by itself

    def makes(self) -> Iterator[tuple[str, list[str]]]:
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                yield f"{name}.weight", self.own

    def forward(self, x: Any) -> Any:
        key = self.decides(self.arch)
        cut = self._ready(key)
        modes = self.training, self.row.training
        if modes != cut.modes:
            cut.block.train(modes[1])
            cut.modes, cut.block.training = modes, modes[0]
        if self.direct or not self.may_reuse():
            tensors = [slot.cut(self.direct and torch.is_grad_enabled()) for slot in cut.slots]
        else:
            tensors = self.reused(key, lambda: [slot.cut() for slot in cut.slots])
        for slot, tensor in zip(cut.slots, tensors, strict=True):
            slot.here[slot.key] = tensor
        try:
            return cut.block(x)
        finally:
            for slot, tensor in zip(cut.slots, tensors, strict=True):
                slot.here[slot.key] = None
                if modes[1]:
                    slot.write_back(tensor)

    def freeze(self, sample: Mapping[str, Any]) -> nn.Module:
        self.require(sample)
        cut = self._made({**self.defaults, **sample})
        for slot in cut.slots:
            tensor = slot.cut().detach().clone()
            learns = slot.trained and slot.there[slot.key].requires_grad
            slot.here[slot.key] = nn.Parameter(tensor, learns) if slot.trained else tensor
        block = cut.block.train(self.row.training)
        return stamped(block, self.row) if hasattr(self.row, "i") else block

    def _ready(self, key: Any) -> Cut:
        if key not in self.cuts:
            if len(self.cuts) >= READY:
                del self.cuts[next(iter(self.cuts))]
            self.cuts[key] = self._made(self.arch)
        return self.cuts[key]

    def _made(self, arch: Genes) -> Cut:
        with without_numbers():
            block = self.make(arch)
        largest = dict(self.row.named_modules())
        device = next(self.row.parameters()).device
        places = self.shares.places(block, arch)
        slots = []
        for name, module in block.named_modules():
            like = largest[name]
            if hasattr(module, "act"):  # an activation that the YAML has asked for
                module.act = like.act
            for kind in ("_parameters", "_buffers"):
                here, there = getattr(module, kind), getattr(like, kind)
                for key in (key for key, tensor in here.items() if tensor is not None):
                    at = places[f"{name}.{key}" if name else key]
                    moved = (
                        ()
                        if all(p is None for p in at)
                        else tuple(p if p is None else p.to(device) for p in at)
                    )
                    firsts = _counted(at, there[key].shape)
                    slots.append(Slot(here, there, key, moved, firsts, kind == "_parameters"))
        for slot in slots:
            slot.here[slot.key] = None
        return Cut(block, slots)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.cuts.clear()  # their places are on the device that it is leaving
        return super()._apply(fn, recurse)
