"""Which channels of a network belong together, found by watching one forward pass.

    channels = watch(net)
    channels.of["stages.0.1.branch.0.conv.weight"]  # the channels that it makes, and those that it reads
    channels.order(state)  # of each set of channels, the most important first

What adds two maps, norms one, scales it channel by channel (squeeze-and-excitation) or convolves it group by
group ties their channels together; a concatenation puts sets of channels side by side. Whatever is not known
to leave channels as they are (a reshape in a head, an operator of somebody's own) makes the channels that
enter it `fixed`: they keep their order. So a network that nobody thought of is handled, only less well.
(Pruning finds its groups so: DepGraph, arXiv 2301.12900.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import lcm, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators of torch by what they do to channels, which are dimension 1. A trailing _ (in place) says nothing.
KEEP = {
    "relu",
    "silu",
    "hardtanh",
    "leaky_relu",
    "hardswish",
    "gelu",
    "mish",
    "sigmoid",
    "hardsigmoid",
    "elu",
}
KEEP |= {"tanh", "softplus", "clone", "detach", "alias", "_to_copy", "clamp", "clamp_min", "native_dropout"}
KEEP |= {"max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "roi_align", "constant_pad_nd"}
KEEP |= {"upsample_nearest2d", "upsample_bilinear2d", "_upsample_nearest_exact2d"}
TIE = {"add", "sub", "mul", "div", "maximum", "minimum"}
NORM = {"native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "miopen_batch_norm"}
WHOLE = {"slice", "detach", "alias", "view", "clone", "_to_copy"}  # a weight stays that weight, if all of it
SIZES_ONLY = "feats"  # an entry of Ultralytics' raw output that is read for the sizes of its maps alone
SIDE = 32  # pixels of the image that is passed through, at least


@dataclass(eq=False)
class Axis:
    """A set of channels with one order, in everything that holds them.

    width: how many, in the network that was watched.
    fixed: their order means something outside (classes), or nobody knows whether it does.
    blocks: weights of grouped convolutions: the channels of a group stay together.
    parts: of an axis that was cut into halves that go different ways (C2f): theirs, one after the other.
    """

    width: int
    fixed: bool = False
    blocks: list[str] = field(default_factory=list)
    tied: Axis | None = None
    parts: list[Axis] = field(default_factory=list)

    def whole(self) -> Axis:
        """The axis that this one was tied to, at last."""
        axis = self
        while axis.tied is not None:
            axis = axis.tied
        return axis

    def tie(self, other: Axis) -> None:
        """Make both one."""
        mine, theirs = self.whole(), other.whole()
        if mine is not theirs:
            mine.fixed |= theirs.fixed
            mine.blocks += theirs.blocks
            theirs.tied = mine

    def cut(self, at: int) -> None:
        """Make it two axes, the first of so many channels."""
        axis = self.whole()
        axis.parts = [Axis(at, axis.fixed), Axis(axis.width - at, axis.fixed)]

    def block(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """How many neighbours stay together in weights of these shapes."""
        return lcm(*(shapes[name][1] for name in self.blocks if name in shapes))


@dataclass(frozen=True)
class Segment:
    """An axis as a part of a dimension; each channel fills `repeat` places in a row (a flattened map)."""

    axis: Axis
    repeat: int = 1


Segments = tuple[Segment, ...]


def uncut(segments: Segments) -> Segments:
    """The same with each axis that was cut since replaced by its parts."""
    found: list[Segment] = []
    for s in segments:
        parts = s.axis.whole().parts
        found += uncut(tuple(Segment(p, s.repeat) for p in parts)) if parts else [s]
    return tuple(found)


@dataclass
class Channels:
    """What a forward pass shows of a network.

    of: parameter or buffer -> the segments of its first dimension and, of a weight, of its second. None where
        nothing is known of a dimension (colours, what comes out of a reshape).
    grouped: weights of grouped convolutions: their second dimension is one group of what they read.
    norms: weight of a convolution -> the weights of the norms that follow it.
    sums: what made the two sides of every addition: names of weights of convolutions or norms, else None.
    """

    of: dict[str, tuple[Segments | None, ...]] = field(default_factory=dict)
    grouped: set[str] = field(default_factory=set)
    norms: dict[str, list[str]] = field(default_factory=dict)
    sums: list[tuple[str | None, str | None]] = field(default_factory=list)

    def widths(self, shapes: Mapping[str, Sequence[int]]) -> dict[Axis, int]:
        """How many channels every axis has in tensors of these shapes, which may be another network's.

        Where they disagree, most of them are believed. An axis that none speaks of is absent.
        """
        votes: dict[Axis, dict[int, int]] = {}
        for name, dims in self.of.items():
            shape = shapes.get(name, ())[: 1 if name in self.grouped else 2]
            for segments, size in zip(dims, shape, strict=False):
                if segments is not None and len(segments) == 1 and size % segments[0].repeat == 0:
                    count, width = votes.setdefault(segments[0].axis.whole(), {}), size // segments[0].repeat
                    count[width] = count.get(width, 0) + 1
        found = {axis: max(count, key=count.__getitem__) for axis, count in votes.items()}
        return found | self._left_over(shapes, found)

    def _left_over(self, shapes: Mapping[str, Sequence[int]], known: dict[Axis, int]) -> dict[Axis, int]:
        """Widths of axes that are only seen beside others, which are known: a half of what was cut in two."""
        found: dict[Axis, int] = {}
        for name, dims in self.of.items():
            made = dims[0] if name in shapes else None
            axes = [segment.axis.whole() for segment in made or ()]
            new = {axis for axis in axes if axis not in known and axis not in found}
            if len(new) == 1 and all(segment.repeat == 1 for segment in made or ()):
                left = shapes[name][0] - sum({**known, **found}.get(axis, 0) for axis in axes)
                (axis,) = new
                if left > 0 and left % axes.count(axis) == 0:
                    found[axis] = left // axes.count(axis)
        return found

    def order(self, state: Mapping[str, Tensor]) -> dict[Axis, Tensor]:
        """For each axis that is not fixed, the numbers of its channels in `state`, the most important first.

        A channel is as important as what batch norm scales it to, times the norm of the weights that read it.
        (The norm of the weights that make it says less than nothing: dead channels have large ones. Halving
        the width of single blocks of YOLOv5n, that is worse than keeping the first channels, this better.)
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        widths = self.widths(shapes)
        made = {axis: torch.zeros(n) for axis, n in widths.items() if not axis.fixed}
        read = {axis: torch.zeros(n) for axis, n in widths.items() if not axis.fixed}
        for name, dims in self.of.items():
            if name not in state or state[name].dim() < 2:
                continue
            _add(made, widths, dims[0], self._scales(name, state))
            if name not in self.grouped:
                weight = state[name].float().transpose(0, 1).flatten(1)
                _add(read, widths, dims[1], weight.square().sum(1))
        found = {}
        for axis, scale in made.items():
            score = scale * read[axis] if read[axis].any() else scale
            found[axis] = _descending(score, axis.block(shapes))
        return found

    def places(
        self, order: Mapping[Axis, Tensor], shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, tuple[Tensor | None, ...]]:
        """What puts the channels of a network, of these shapes, in this order, the same in everything that
        holds them: name -> of each dimension the numbers of what comes first, second, ...; None: as it is."""
        widths, found = self.widths(shapes), {}
        for name, dims in self.of.items():
            shown = dims[: 1 if name in self.grouped else 2]
            rows = tuple(None if of is None else _numbers(of, order, widths) for of in shown)
            if any(row is not None for row in rows):
                sizes = [n for n, row in zip(shapes[name], rows, strict=False) if row is not None]
                assert sizes == [len(row) for row in rows if row is not None], (name, shapes[name])
                found[name] = rows
        return found

    def _scales(self, name: str, state: Mapping[str, Tensor]) -> Tensor:
        """The squared scale of each channel that a weight makes: batch norm's, the mean over several; without
        one the squared norm of its filter."""
        norms = [state[n].float().square() for n in self.norms.get(name, ()) if n in state]
        length = state[name].float().flatten(1).square().sum(1)
        norms = [scale for scale in norms if len(scale) == len(length)]
        return torch.stack(norms).mean(0) if norms else length


def _add(scores: dict[Axis, Tensor], widths: Mapping[Axis, int], of: Segments | None, values: Tensor) -> None:
    """Add a value for each place along a dimension to the scores of the channels there."""
    sizes = [widths.get(s.axis.whole(), 0) * s.repeat for s in of or ()]
    if of is None or sum(sizes) != len(values):
        return
    for segment, part in zip(of, values.split(sizes), strict=True):
        axis = segment.axis.whole()
        if axis in scores:
            scores[axis] += part.view(-1, segment.repeat).sum(1)


def _numbers(of: Segments, order: Mapping[Axis, Tensor], widths: Mapping[Axis, int]) -> Tensor | None:
    """The numbers of places along a dimension in the order of its axes; None: none of them has one."""
    if not any(segment.axis.whole() in order for segment in of):
        return None
    parts, start = [], 0
    for axis, n in ((segment.axis.whole(), segment.repeat) for segment in of):
        mine = order.get(axis, torch.arange(widths[axis]))
        parts.append(start + (mine[:, None] * n + torch.arange(n)).flatten())
        start += widths[axis] * n
    return torch.cat(parts)


def _descending(scores: Tensor, block: int) -> Tensor:
    if len(scores) % block:
        return torch.arange(len(scores))
    best = scores.view(-1, block).sum(1).argsort(descending=True, stable=True)
    return (best[:, None] * block + torch.arange(block)).flatten()


def watch(net: Any, poses: Iterable[Callable[[], object]] = (lambda: None,)) -> Channels:
    """The channels of a network, which stays as it is: one image of zeros is passed through in eval mode.

    poses: called one after the other, each before such a pass: what brings an elastic network, its layers at
        their largest, to run one path after the other.
    """
    watcher, modes = _Watcher(net), [(m, m.training) for m in net.modules()]
    hooks = [
        block.register_forward_hook(watcher.alike(chain))
        for chain in net.modules()
        if getattr(chain, "any_may_be_last", False)
        for block in chain.children()
    ]
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    stride = getattr(net, "stride", SIDE)
    side = max(SIDE, stride if isinstance(stride, int) else SIDE)
    image = first.weight.new_zeros(1, first.weight.size(1), side, side)
    net.eval()
    try:
        for pose in poses:
            pose()
            watcher.last.clear()
            with torch.no_grad(), watcher:
                raw = net.raw(image) if hasattr(net, "raw") else net(image)
            watcher.fix(_leaves(raw))
        for name, known in watcher.channels.of.items():
            watcher.channels.of[name] = tuple(None if dim is None else uncut(dim) for dim in known)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return watcher.channels


def _leaves(raw: Any) -> list[Any]:
    """The tensors of a raw output that are read."""
    if isinstance(raw, dict):
        return [leaf for key, value in raw.items() if key != SIZES_ONLY for leaf in _leaves(value)]
    if isinstance(raw, list | tuple):
        return [leaf for value in raw for leaf in _leaves(value)]
    return [raw]


class _Tag(NamedTuple):
    """What is known of a map: its channels, and the weight of the convolution or norm that made it."""

    segments: Segments
    maker: str | None = None


class _Watcher(TorchDispatchMode):
    """Sees every operator of a forward pass, and writes down what it does to channels."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.channels = Channels()
        self.names = {id(t): name for name, t in net.state_dict(keep_vars=True).items()}
        self.tags: dict[int, _Tag] = {}
        self.turned: dict[int, str] = {}  # transposed weights of linear layers
        self.last: dict[nn.Module, list[Any]] = {}  # outputs of the block before, where any may be the last
        self.alive: list[Any] = []  # everything that `tags` speaks of by its id

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.alive.append((args, out))
        name = func.overloadpacket.__name__.removesuffix("_")
        y = out[0] if isinstance(out, tuple | list) and name in KEEP | NORM else out
        own = self.names.get(id(args[0])) if args else None
        if own is not None and name == "t":
            self.turned[id(y)] = own
        elif own is not None and name in WHOLE and y.shape == args[0].shape:
            self.names[id(y)] = own
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not any(id(t) in self.tags for t in inputs) and name != "convolution":
            return out
        tag = self._tag(name, args, y)
        if tag is None:
            self.fix(inputs)
        elif isinstance(tag, list):
            for part, segments in zip(out, tag, strict=True):
                self.tags[id(part)] = _Tag(segments)
        else:
            self.tags[id(y)] = tag
        return out

    def alike(self, chain: nn.Module) -> Callable[..., None]:
        """A hook for the blocks of a chain that may be cut anywhere: what one makes is read as another's."""

        def hook(block: nn.Module, args: Any, out: Any) -> None:
            for before, now in zip(self.last.get(chain, ()), _leaves(out), strict=False):
                first, second = self.tag_of(before), self.tag_of(now)
                if first is not None and second is not None:
                    self._tied(first.segments, second.segments)
            self.last[chain] = _leaves(out)

        return hook

    def fix(self, tensors: Iterable[Any]) -> None:
        """The channels of these keep their order."""
        for t in tensors:
            tag = self.tag_of(t)
            for segment in tag.segments if tag else ():
                segment.axis.whole().fixed = True

    def tag_of(self, t: Any) -> _Tag | None:
        """What is known of a map by now."""
        tag = self.tags.get(id(t))
        return None if tag is None else _Tag(uncut(tag.segments), tag.maker)

    def _tag(self, name: str, args: Any, y: Any) -> _Tag | list[Segments] | None:
        """Of what an operator returns; None where nothing is known of it."""
        if name == "convolution":
            return self._convolution(*args)
        if name == "cat":
            return self._cat(*args)
        if name == "addmm" and id(args[2]) in self.turned:
            return self._linear(*args)
        mine = self.tag_of(args[0]) if args and isinstance(args[0], Tensor) else None
        if name in TIE:
            return self._tie(name, args[0], args[1])
        if mine is None:
            return None
        if name in KEEP:
            return mine if y.shape[:2] == args[0].shape[:2] else None
        if name in NORM:
            return self._norm(mine, *args)
        if name == "mean" and len(args) > 1 and all(d % args[0].dim() > 1 for d in args[1]):
            return mine
        if name in ("view", "_unsafe_view", "reshape"):
            return self._view(mine, args[0], y)
        if name in ("split", "split_with_sizes") and args[2:3] == (1,):
            return _parts(mine.segments, [t.size(1) for t in y])
        if name == "slice" and args[1] == 1:
            start, end = args[2] or 0, min(args[3], args[0].size(1))
            sizes = [start, end - start, args[0].size(1) - end]
            found = _parts(mine.segments, sizes)
            return None if found is None else _Tag(found[1])
        return None

    def _convolution(self, x: Tensor, w: Tensor, b: Any, *settings: Any) -> _Tag | None:
        name, tag, groups = self.names.get(id(w)), self.tag_of(x), settings[-1]
        if name is None or settings[3]:  # a weight that was computed, or a transposed convolution
            return None
        read = None if tag is None else tag.segments
        if groups == 1:
            return self._made(name, w, b, read)
        self.channels.grouped.add(name)
        if read is None or w.size(0) != x.size(1) or (len(read) > 1 and w.size(1) > 1):
            if tag is not None:
                self.fix([x])
            made = self._made(name, w, b, None)
            made.segments[0].axis.whole().fixed = True
            return made
        if w.size(1) > 1:
            read[0].axis.whole().blocks.append(name)
        return self._made(name, w, b, read, read)

    def _made(
        self, name: str, w: Tensor, b: Any, read: Segments | None, makes: Segments | None = None
    ) -> _Tag:
        """Of what a weight makes: channels of its own, or those that it `makes`."""
        known = self.channels.of.get(name)
        if known is None:
            made = makes or (Segment(Axis(w.size(0))),)
            self.channels.of[name] = (made, read)
            if b is not None and id(b) in self.names:
                self.channels.of[self.names[id(b)]] = (made,)
            return _Tag(made, name)
        for before, now in zip(known, (makes, read), strict=True):  # a layer that is used again
            if before is not None and now is not None:
                self._tied(before, now)
        assert known[0] is not None
        return _Tag(known[0], name)

    def _linear(self, b: Any, x: Tensor, turned: Tensor) -> _Tag:
        tag, name = self.tag_of(x), self.turned[id(turned)]
        return self._made(name, turned.t(), b, None if tag is None else tag.segments)

    def _norm(self, mine: _Tag, x: Tensor, *args: Any) -> _Tag:
        names = [self.names.get(id(t)) for t in args[:4] if t is not None]
        for name in names:
            if name is not None:
                known = self.channels.of.setdefault(name, (mine.segments,))[0]
                assert known is not None
                self._tied(known, mine.segments)
        if names and names[0] and mine.maker:
            self.channels.norms.setdefault(mine.maker, []).append(names[0])
        return _Tag(mine.segments, names[0] if names else None)

    def _tie(self, name: str, a: Any, b: Any) -> _Tag | None:
        left, right = (self.tag_of(t) if isinstance(t, Tensor) else None for t in (a, b))
        for tag, other in ((left, b), (right, a)):
            if tag is not None and (not isinstance(other, Tensor) or other.numel() == 1):
                return _Tag(tag.segments)
        if left is None or right is None:
            return None
        if name == "add":
            self.channels.sums.append((left.maker, right.maker))
        if 1 in (a.size(1), b.size(1)):  # one map for all channels
            return _Tag((left if b.size(1) == 1 else right).segments)
        self._tied(left.segments, right.segments)
        return _Tag(left.segments)

    def _tied(self, a: Segments, b: Segments) -> None:
        a, b = _aligned(uncut(a), uncut(b))
        if [(s.axis.width, s.repeat) for s in a] == [(s.axis.width, s.repeat) for s in b]:
            for mine, theirs in zip(a, b, strict=True):
                mine.axis.tie(theirs.axis)
            return
        for segment in (*a, *b):
            segment.axis.whole().fixed = True

    def _cat(self, tensors: Sequence[Tensor], dim: int = 0) -> _Tag | None:
        tags = [self.tag_of(t) for t in tensors]
        known = [t for t in tags if t is not None]
        if len(known) < len(tags):
            return None
        if dim == 1:
            return _Tag(tuple(s for t in known for s in t.segments))
        for tag in known[1:]:
            self._tied(known[0].segments, tag.segments)
        return known[0] if dim % tensors[0].dim() > 1 else None

    def _view(self, mine: _Tag, x: Tensor, y: Tensor) -> _Tag | None:
        if y.dim() >= 2 and y.shape[:2] == x.shape[:2]:
            return mine
        area = prod(x.shape[2:])
        if y.dim() == 2 and y.shape == (x.size(0), x.size(1) * area):
            return _Tag(tuple(Segment(s.axis, s.repeat * area) for s in mine.segments))
        return None


def _aligned(a: Segments, b: Segments) -> tuple[Segments, Segments]:
    """The same two, the axis of one cut where the other consists of several."""
    if len(a) != len(b) and 1 in (len(a), len(b)):
        one, several = (a, b) if len(a) == 1 else (b, a)
        sizes = [s.axis.width * s.repeat for s in several]
        if one[0].axis.width == sum(sizes) and _parts(one, sizes) is not None:
            return uncut(a), uncut(b)
    return a, b


def _parts(segments: Segments, sizes: Sequence[int]) -> list[Segments] | None:
    """The segments cut into parts of these sizes; None where a cut falls into what cannot be cut."""
    found, left = [], list(segments)
    for size in sizes:
        part: list[Segment] = []
        while size > 0 and left:
            first = left[0].axis.whole()
            if size < first.width and left[0].repeat == 1 and not first.blocks:
                first.cut(size)
                left[:1] = [Segment(half) for half in first.parts]
            size -= left[0].axis.width * left[0].repeat
            part.append(left.pop(0))
        if size:
            return None
        found.append(tuple(part))
    return found
