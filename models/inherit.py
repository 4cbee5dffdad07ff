"""Trained weights into any network: the one way that all trainings start from what is known.

    source = Source(read_weights("yolov5n_coco.pt"), build(space, space.largest()))  # once a run
    account = inherit(build(space, arch), source)  # milliseconds
    print(account)

What a layer has in common with its source is copied. Where they differ:

- kernels: the centre is copied, the rest is zero;
- width: of channels that are too many the least important go, the same in everything that holds them
  (`models.channels`); for channels that are new what makes them is fresh and what reads them is zero;
- depth: blocks are known by their number, so the last ones go; new residual blocks begin as the identity;
- groups of another width: weights between channels that share a group on both sides are copied, others zero;
- heads: rows of classes are copied by the name of the class, other rows are fresh; so is a layer whose
  outputs mean something else (another box coding).

So a network grown in kernels, width and depth computes what its source does (Net2Net, arXiv 1511.05641), and
one cut is the slice of a supernet that is sorted by importance (Once-for-All, arXiv 1908.09791). Activations
are the network's own, whatever the source had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.channels import Axis, Channels, Segment, Segments, watch
from models.foreign_names import ClassRows, published_names, same_classes
from models.weights import WeightFile, inside, named, plain_modules, read_weights
from utils.errors import UserError

LEAST = 0.05  # of the numbers; a source that gives less is of another network

AS_IT_IS: tuple[Callable[[], object], ...] = (lambda: None,)

Pair = tuple[Tensor, Tensor]  # numbers of places here, and in the source


class Source:
    """A weight file made ready for the networks of one space: its names translated, its channels sorted.

    Args:
        file: a weight file, or its path.
        like: a network of the space, best an elastic one, or the largest: one that has all of the layers.
        poses: see `models.channels.watch`.

    Attributes:
        state: tensors by the names of a plain network. order: name of a weight -> of each set of its filters
            the numbers, the most important first; None: as they are. strange: what was left out, being of
            another kind.
    """

    def __init__(
        self, file: WeightFile | str | Path, like: nn.Module, poses: Iterable[Callable[[], object]] = AS_IT_IS
    ) -> None:
        self.file = file if isinstance(file, WeightFile) else read_weights(file)
        file = self.file
        if hasattr(getattr(like, "backbone", None), "adopt"):  # whose blocks are known by ids, not by places
            file = replace(self.file, state=like.backbone.adopt(self.file))  # type: ignore[union-attr,operator]
        names, tensors = shared_names(like, file), like.state_dict()
        shapes = {plain: tuple(tensors[name].shape) for name, plain in names.items()}
        state, classes = named(file, like, shapes)
        strange = {name: f"{name} is {a}, here {b}" for name, (a, b) in classes.items() if a != b}
        strange = {n: said for n, said in strange.items() if any(k.startswith(f"{n}.") for k in shapes)}
        others = tuple(f"{name}." for name in strange)
        self.strange = list(strange.values())
        self.state = {
            k: v.float() if v.dtype in (torch.half, torch.bfloat16) else v
            for k, v in state.items()
            if not k.startswith(others)
        }
        self.known = set(names.values())
        self.order: dict[str, list[Tensor | None]] = {}
        if file.meta.get("supernet"):  # its channels are in their order already
            return
        channels, mine = watch(like, poses), {n: self.state[p] for n, p in names.items() if p in self.state}
        order = channels.order(mine)
        self.order = {
            names[name]: [order.get(segment.axis.whole()) for segment in dims[0]]
            for name, dims in channels.of.items()
            if dims[0] is not None and any(segment.axis.whole() in order for segment in dims[0])
        }


def shared_names(net: nn.Module, file: WeightFile) -> dict[str, str]:
    """Name of each tensor -> what it is called where file and network meet: as in a plain network, but for
    another supernet's file, which has each path of a block."""
    return {name: name for name in net.state_dict()} if file.meta.get("supernet") else plain_names(net)


def plain_names(net: nn.Module) -> dict[str, str]:
    """Name of each tensor -> its name once the network is plain, where some elastic layers are gone."""
    found: dict[str, str] = {}
    for module, name, plain in plain_modules(net):
        for key, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            found[inside(name, key)] = inside(plain, key)
    return {name: found[name] for name in net.state_dict()}


@dataclass(frozen=True)
class Account:
    """What became of a network's layers.

    layers: name -> what it is made of: `exact`, `cut` (the source had more), `padded` (it has less), both, or
        `fresh`. share: of the network's numbers that come from the source.
    classes: name here -> name in the source, whose rows were copied; fresh_classes: those without.
    identities: new residual blocks, by the norm that silences them.
    left_over: tensors of the source without a place here. strange: modules of another kind here and there.
    """

    path: Path
    kind: str
    into: str
    share: float
    layers: dict[str, str]
    classes: dict[str, str]
    fresh_classes: list[str]
    identities: list[str]
    left_over: list[str]
    strange: list[str]

    def of(self, kind: str) -> list[str]:
        """The layers that are (also) `kind`."""
        return [name for name, what in self.layers.items() if kind in what]

    def __str__(self) -> str:
        """Three lines for people; `to_dict` has every name."""
        kinds = {kind: self.of(kind) for kind in ("exact", "cut", "padded", "fresh")}
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items())
        lines = [
            f"weights {self.path} ({self.kind}): {100 * self.share:.1f} % of the numbers of {self.into}; "
            f"of its layers {counts}"
        ]
        apart = [f"{kind}: {_short(names)}" for kind, names in kinds.items() if names and kind != "exact"]
        lines += ["  " + "; ".join(apart)] if apart else []
        said = []
        if self.classes or self.fresh_classes:
            said.append(f"classes known to the source: {_short(list(self.classes)) or 'none'}")
            otherwise = [f"{a} as {b}" for a, b in self.classes.items() if a != b]
            said += [f"spelt otherwise there: {_short(otherwise)}"] if otherwise else []
            said += [f"fresh: {_short(self.fresh_classes)}"] if self.fresh_classes else []
        said += [f"of another kind: {_short(self.strange)}"] if self.strange else []
        layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in self.left_over))
        said += [f"left over in the source: {_short(layers)}"] if layers else []
        return "\n".join(lines + (["  " + "; ".join(said)] if said else []))

    def to_dict(self) -> dict[str, Any]:
        """For a result JSON."""
        return {"path": str(self.path)} | {k: v for k, v in vars(self).items() if k != "path"}


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def inherit(
    net: Any,
    source: Source | WeightFile | str | Path,
    *,
    into: str = "",
    sort: bool = False,
    poses: Iterable[Callable[[], object]] = AS_IT_IS,
    least: float = LEAST,
) -> Account:
    """Give a network what it has in common with a source; returns the account of it, for printing.

    source: one that was made for networks of this space spares the work of making one.
    into: what the network is called in messages. sort: order all channels by importance, not only those of
        which some have to go: for a supernet, whose slices are its first channels. poses: as of `Source`.

    UserError where less than the share `least` of the numbers can be inherited; the network is unchanged
    then.
    """
    poses, adopts = tuple(poses), hasattr(getattr(net, "backbone", None), "adopt")
    file = source.file if isinstance(source, Source) else source
    file = file if isinstance(file, WeightFile) else read_weights(file)
    names = shared_names(net, file)
    if not isinstance(source, Source) or adopts or not source.known.issuperset(names.values()):
        source = Source(file, net, poses)
    here: dict[str, Tensor] = net.state_dict()
    fit = _Fit(net, here, names, source, watch(net, poses), sort)
    values, counts = fit.values(here)
    made_of: dict[str, set[str]] = {}
    for name, tensor in here.items():
        kinds = made_of.setdefault(names[name].rpartition(".")[0] or names[name], set())
        kinds |= fit.kinds(name, tensor, counts[name]) if name in values else {"fresh"}
    share = sum(counts[name] for name in values) / max(1, sum(t.numel() for t in here.values()))
    into = into or type(net).__name__
    if share < least or not share:
        raise UserError(
            f"weights {source.file.path} ({source.file.kind}) do not fit {into}: {100 * share:.1f} % of its "
            f"numbers could be inherited, at least {100 * least:.0f} % are needed"
        )
    identities = _silenced(fit.channels, here, values)
    with torch.no_grad():
        for name, value in values.items():
            here[name].copy_(value)
        for name in identities:
            here[name].zero_()
    # For `train.inherited_lr`; what an earlier source gave still counts.
    net.inherited = getattr(net, "inherited", frozenset()) | values.keys() - set(identities)
    net.filters = fit.filters(here, values)  # for `models.refit`
    return Account(
        source.file.path,
        source.file.kind,
        into,
        share,
        {layer: _made_of(kinds) for layer, kinds in made_of.items()},
        fit.classes,
        fit.fresh_classes,
        [names[name] for name in identities],
        [name for name in source.state if name not in set(names.values())],
        source.strange,
    )


def _made_of(kinds: set[str]) -> str:
    """One word for a layer from those of its tensors."""
    if kinds in ({"fresh"}, {"exact"}):
        return next(iter(kinds))
    changed = (kinds - {"exact", "fresh"}) | ({"padded"} if "fresh" in kinds else set())
    return ", ".join(sorted(changed))


def _silenced(channels: Channels, here: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> list[str]:
    """The norms at the end of new branches that are added to something inherited."""
    found: list[str] = []
    for pair in channels.sums:
        for branch, past in (pair, pair[::-1]):
            new = branch is not None and branch in here and here[branch].dim() == 1 and branch not in values
            if new and branch is not None and (past is None or past in values):
                found.append(branch)
    return list(dict.fromkeys(found))


class _NoFitError(Exception):
    """A tensor cannot be inherited."""


class _Fit:
    """Where the numbers of a source belong in a network.

    state: of the source, by the names of the network. ours, theirs: how many channels each axis has.
    """

    def __init__(
        self,
        net: Any,
        here: Mapping[str, Tensor],
        names: Mapping[str, str],
        source: Source,
        channels: Channels,
        sort: bool,
    ) -> None:
        self.channels, self.sort, self.file = channels, sort, source.file
        self.state = {name: source.state[plain] for name, plain in names.items() if plain in source.state}
        self.ours = channels.widths({name: t.shape for name, t in here.items()})
        self.theirs = channels.widths({name: t.shape for name, t in self.state.items()})
        self.order: dict[Axis, Tensor] = {}
        for name, dims in channels.of.items():
            found = source.order.get(names[name], [])
            if dims[0] is not None and len(dims[0]) == len(found):
                for segment, order in zip(dims[0], found, strict=True):
                    if order is not None:
                        self.order.setdefault(segment.axis.whole(), order)
        self.places: dict[Axis, Pair | None] = {}
        self.rows: Mapping[str, ClassRows] = getattr(net, "class_rows", {})
        self.names: list[str] = list(getattr(net, "names", []))
        self.classes: dict[str, str] = {}
        self.fresh_classes: list[str] = []

    def values(self, here: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
        """What the tensors that can be inherited become, and how many numbers of each come from the source.

        A norm whose convolution is fresh is left fresh too: it would scale something else.
        """
        values, counts = {}, {}
        for name, tensor in here.items():
            try:
                values[name], counts[name] = self.value(name, tensor)
            except _NoFitError:
                continue
        for weight, norms in self.channels.norms.items():
            if weight not in values:
                orphans = tuple(f"{norm.rpartition('.')[0]}." for norm in norms)
                values = {name: value for name, value in values.items() if not name.startswith(orphans)}
        return values, counts

    def kinds(self, name: str, here: Tensor, count: int) -> set[str]:
        """What an inherited tensor is, `count` numbers of which come from the source."""
        short = {"cut": count < self.state[name].numel(), "padded": count < here.numel()}
        return {kind for kind, so in short.items() if so} or {"exact"}

    def value(self, name: str, here: Tensor) -> tuple[Tensor, int]:
        """What a tensor becomes, and how many numbers of it come from the source.

        Raises _NoFitError where none does.
        """
        there = self.state.get(name)
        if there is None or there.dim() != here.dim():
            raise _NoFitError
        there, dims = there.to(here.dtype), self.channels.of.get(name, ())
        if name.rpartition(".")[0] in self.rows:
            rows = self._class_rows(name.rpartition(".")[0], len(here), len(there))
        elif dims:
            rows = self._dimension(dims[0], len(here), len(there))
        elif here.shape == there.shape:
            return there, here.numel()
        else:
            raise _NoFitError
        if here.dim() == 1:
            return _put(here, there, rows, None)
        read = dims[1] if len(dims) > 1 else None
        if name in self.channels.grouped and here.size(1) == there.size(1) == 1:
            return _put(here, there, rows, None)  # depthwise
        if read is not None and len(read) == 1 and self._differ(read[0], here.size(1), there.size(1)):
            return self._grouped(here, there, rows, read[0].axis.whole())
        return _put(here, there, rows, self._dimension(read, here.size(1), there.size(1)))

    def filters(self, here: Mapping[str, Tensor], values: Iterable[str]) -> dict[str, Tensor]:
        """Of each weight that was inherited, the number of each of its filters in the source; -1: fresh."""
        found = {}
        for name in values:
            dims, n = self.channels.of.get(name, ()), len(here[name]) if here[name].dim() > 1 else 0
            layer = name.rpartition(".")[0]
            if not n or not dims:
                continue
            if layer in self.rows:
                pair = self._class_rows(layer, n, len(self.state[name]))
            else:
                pair = self._dimension(dims[0], n, len(self.state[name]))
            if pair is None:
                found[name] = torch.arange(n)
            else:
                found[name] = torch.full((n,), -1)
                found[name][pair[0]] = pair[1]
        return found

    def _differ(self, read: Segment, here: int, there: int) -> bool:
        """Whether a weight sees, of what it reads, so many channels only: those of a group."""
        axis = read.axis.whole()
        if axis not in self.ours or axis not in self.theirs:
            return False
        return (here, there) != (self.ours[axis] * read.repeat, self.theirs[axis] * read.repeat)

    def _dimension(self, segments: Segments | None, here: int, there: int) -> Pair | None:
        """The places along a dimension of channels; None: all, as they are."""
        axes = [s.axis.whole() for s in segments or ()]
        if not axes or any(axis not in self.ours for axis in axes):
            if here != there:
                raise _NoFitError
            return None
        if here == there and any(axis not in self.theirs for axis in axes):
            return None
        pairs, a, b, moved = [], 0, 0, False
        for axis, n in zip(axes, [s.repeat for s in segments or ()], strict=True):
            # What a chain of blocks gives, one beside the other (C2f): the source may have fewer or more.
            if b == there:
                a += self.ours[axis] * n
                continue
            if axis not in self.theirs:
                raise _NoFitError
            pair = self._axis(axis)
            moved |= pair is not None
            mine, theirs = pair or (torch.arange(self.ours[axis]),) * 2
            if n > 1:
                mine, theirs = ((i[:, None] * n + torch.arange(n)).flatten() for i in (mine, theirs))
            pairs.append((mine + a, theirs + b))
            a, b = a + self.ours[axis] * n, b + self.theirs[axis] * n
        more = there - b
        if a != here or not pairs or more < 0 or (more and (len(axes) < 2 or more % self.theirs[axes[-1]])):
            raise _NoFitError
        if not moved and here == there == b:
            return None
        return torch.cat([p for p, _ in pairs]), torch.cat([p for _, p in pairs])

    def _axis(self, axis: Axis) -> Pair | None:
        """The places of the channels of an axis; None: all, as they are."""
        if axis not in self.places:
            mine, theirs = self.ours[axis], self.theirs[axis]
            if mine == theirs and (axis.fixed or not self.sort):
                self.places[axis] = None
            elif axis.fixed:
                raise _NoFitError
            else:
                kept, order = torch.arange(min(mine, theirs)), self.order.get(axis)
                sort = (self.sort or mine < theirs) and order is not None and len(order) == theirs
                self.places[axis] = kept, order[: len(kept)] if sort else kept  # type: ignore[index]
        return self.places[axis]

    def _grouped(self, here: Tensor, there: Tensor, rows: Pair | None, axis: Axis) -> tuple[Tensor, int]:
        """A weight [out, channels of a group, k, k] that reads `axis`, in groups on either side: what is in
        one group on both sides."""
        wide, narrow = here.size(1), there.size(1)
        if self.ours[axis] % wide or self.theirs[axis] % narrow:
            raise _NoFitError
        each = (
            len(here) * wide // self.ours[axis],
            len(there) * narrow // self.theirs[axis],
        )  # rows of a group
        if min(each) < 1:
            raise _NoFitError
        mine, theirs = rows or (torch.arange(len(here)),) * 2
        into, out_of = self._axis(axis) or (torch.arange(self.ours[axis]),) * 2
        source_of = torch.full((self.ours[axis],), -1)
        source_of[into] = out_of
        read = source_of[(mine // each[0] * wide)[:, None] + torch.arange(wide)]  # [kept, wide]
        first = (theirs // each[1] * narrow)[:, None]
        inside = (read >= first) & (read < first + narrow)
        picked = there[theirs[:, None], (read - first).clamp(0, narrow - 1)]
        picked = picked * inside.view(*inside.shape, *[1] * (there.dim() - 2))
        value, count = _put(here, picked, (mine, torch.arange(len(mine))), None)
        return value, count * int(inside.sum()) // max(1, inside.numel())

    def _class_rows(self, layer: str, here: int, there: int) -> Pair | None:
        """The rows of classes that the source knows by the same name."""
        rows, names = self.rows[layer], self.file.names
        times = rows.times(here, len(self.names))
        count = rows.classes(there, times)
        if count < 1:
            raise _NoFitError
        if not names and here == there:
            return None  # a file that names no classes: they are taken to be ours
        names = names if len(names) == count else published_names(count)
        same = same_classes(self.names, names)
        self.classes = {self.names[i]: names[j] for i, j in same.items()}
        self.fresh_classes = [name for name in self.names if name not in self.classes]
        if not same:
            raise _NoFitError
        kept = [(i, i) for i in range(rows.before)]
        kept += [(rows.before + i, rows.before + j) for i, j in same.items()]
        ours, theirs = (torch.tensor(side) for side in zip(*kept, strict=True))
        places = []
        for numbers, classes in ((ours, len(self.names)), (theirs, count)):
            whole = (rows.before + classes) * rows.inner
            inner = (numbers[:, None] * rows.inner + torch.arange(rows.inner)).flatten()
            places.append((torch.arange(times)[:, None] * whole + inner).flatten())
        return places[0], places[1]


def _put(here: Tensor, there: Tensor, rows: Pair | None, columns: Pair | None) -> tuple[Tensor, int]:
    """`here` with the rows, columns and centre of `there` in their places; of these rows the rest is zero.

    Returns how many numbers of `there` it holds as well. _NoFitError where kernels have no common centre.
    """
    if rows is None and columns is None and here.shape == there.shape:
        return there, here.numel()
    ours, theirs = rows or (torch.arange(len(here)),) * 2
    kept = there[theirs]
    if columns is not None:
        kept = kept[:, columns[1]]
    into, out_of = [], []
    for a, b in zip(here.shape[2:], there.shape[2:], strict=True):
        if (a - b) % 2:
            raise _NoFitError
        n = min(a, b)
        into.append(slice((a - n) // 2, (a + n) // 2))
        out_of.append(slice((b - n) // 2, (b + n) // 2))
    kept = kept[(slice(None), slice(None), *out_of)] if out_of else kept
    if kept.shape[1:] == here.shape[1:] and columns is None:
        block = kept
    else:
        block = here.new_zeros(len(ours), *here.shape[1:])
        where = slice(None) if columns is None else columns[0]
        block[(slice(None), where, *into)] = kept
    value = torch.empty_like(here) if len(ours) == len(here) else here.clone()
    value[ours] = block
    return value, kept.numel()
