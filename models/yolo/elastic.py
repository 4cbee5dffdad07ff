"""The YOLO space as a supernet: rows with one set of weights for all their choices.

Around them the detector is the stock one, and extracted it is so throughout: `extract(arch)` has the modules
of `space.build(arch)`, with the supernet's weights. What `NASConv` and `NASC3` rows may be, kernels and
activations too, is written here; stock rows that vary are models/yolo/elastic_stock.py's.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from models.channels import Axis, watch
from models.elastic.dims import Dim, as_dim, combine, gene, lookup
from models.elastic.layers import (
    Elastic,
    ElasticBatchNorm2d,
    ElasticConv2d,
    ElasticDepth,
    MutableModule,
    PathChoice,
    Size,
    Sizes,
    frozen,
)
from models.space import Choice, Genes, Value
from models.yolo.blocks import HEADS, scales_width
from models.yolo.detector import (
    Conv,
    Detect,
    YoloDetector,
    activation,
    heads_like,
    stamped,
    stock_block,
    stock_c3,
    stock_conv,
    stock_head,
)
from models.yolo.elastic_stock import ElasticStock, Shares
from models.yolo.parse import FREE, C3Options, ConvOptions, Row
from models.yolo.reach import LevelOptions, sources_of
from models.yolo.rows import StockOptions
from utils.errors import UserError
from utils.unborn import without_numbers


def with_elastic_rows(
    detector: YoloDetector,
    rows: Sequence[Row],
    dead: Mapping[Value, Container[int]] = {},
    levels: Choice | None = None,
    moving: bool = True,
) -> YoloDetector:
    """The stock detector, which has all rows, with its searched rows elastic, and those that read channels
    that vary.

    dead: value of the choice `levels` -> numbers of the rows that do not run then. moving: whether channels
    out of rows vary; the detector has to be the largest one then.
    """
    others = StockRows(detector) if moving else None
    made: list[list[Size]] = []  # channels out of each row: the parts of a concat, else one
    for row in rows:
        stock = detector.model.model[row.index]
        maps = [made[j] for j in sources_of(row.index, row.source)]
        elastic: Elastic | None = None
        if isinstance(row.options, ConvOptions | C3Options):
            elastic, out = _elastic_row(row, stock, [c for parts in maps for c in parts])
        elif others is not None:
            elastic, out = others.elastic(row, stock, maps, made)
        else:
            out = [row.args[0]] if scales_width(row.module) else [c for parts in maps for c in parts]
        made.append(out)
        running = {value: row.index not in rest for value, rest in dead.items()}
        if levels is not None and not all(running.values()):
            elastic = Resting(elastic or stock, levels, running)
        if elastic is not None:
            detector.model.model[row.index] = stamped(elastic, stock)
    return detector


class StockRows:
    """Makes stock rows elastic, of the largest detector: those that vary, and those that read what does."""

    def __init__(self, detector: YoloDetector) -> None:
        self.channels = watch(detector)
        self.head = detector.model.model[-1]
        self.colours: int = detector.model.yaml["ch"]
        towers = int(detector.model.yaml.get("towers") or 0)
        self.heads = lru_cache(maxsize=1)(heads_like(self.head, towers))
        self.makers: dict[Axis, int] = {}  # the first row that makes a set of channels
        for name, dims in self.channels.of.items():
            for segment in dims[0] or ():
                self.makers.setdefault(segment.axis.whole(), row_of(name))

    def elastic(
        self, row: Row, stock: Any, maps: list[list[Size]], made: list[list[Size]]
    ) -> tuple[Elastic | None, list[Size]]:
        """(the row's elastic module; None where it stays as it is, channels out).

        maps: channels of each map that it reads, those of a concat one by one. made: the same of all rows
        before it.
        """
        parts = [c for parts in maps for c in parts]
        read = [as_dim(c) for c in parts]
        o, vary = row.options, any(dim.labels for dim in read)
        if row.module in FREE:
            return None, parts
        if isinstance(o, LevelOptions):
            return _elastic_head(row, stock, maps, o), []
        if row.module in HEADS:
            if vary:
                self._towers(row, [_sum(parts) for parts in maps], made)
            return None, []
        o = o if isinstance(o, StockOptions) else None
        own = [gene(choice) for choice in row.choices()]
        out: list[Size] = [row.args[0]] if scales_width(row.module) else parts
        if o is not None:
            out = parts if o.follows else [gene(o.width)]
        if not own and not vary:
            return None, out
        c1 = _sum(parts or self.colours)

        def make(arch: Genes) -> nn.Module:
            number, args = o.settled(arch, c1(arch)) if o is not None else (row.number, row.args)
            return stock_block(row.module, c1(arch), number, args)

        shares = self._shares(row, stock, f"model.model.{row.index}.", made)
        return ElasticStock(stock, make, own, read, shares), out

    def _towers(self, row: Row, read: list[Dim], made: list[list[Size]]) -> None:
        """Make the head's towers elastic, in place: apart from them nothing in it depends on channels."""
        for name in ("cv2", "cv3", "one2one_cv2", "one2one_cv3"):
            for i, tower in enumerate(getattr(self.head, name, ())):
                shares = self._shares(row, tower, f"model.model.{row.index}.{name}.{i}.", made)

                def make(arch: Genes, name: str = name, i: int = i) -> nn.Module:
                    return copy.deepcopy(getattr(self.heads(tuple(c(arch) for c in read)), name)[i])

                getattr(self.head, name)[i] = ElasticStock(tower, make, [], read, shares)

    def _shares(self, row: Row, stock: nn.Module, name: str, made: list[list[Size]]) -> Shares:
        foreign = {}
        for key, dims in self.channels.of.items():
            for segment in dims[1] or () if key.startswith(name) and len(dims) > 1 else ():
                axis = segment.axis.whole()
                maker = self.makers.get(axis, row.index)
                if maker != row.index:
                    foreign[axis] = _sum(made[maker])
        return Shares(stock, name, self.channels, foreign)


def row_of(name: str) -> int:
    """The row that a tensor `model.model.ROW....` of the detector is in."""
    return int(name.split(".")[2])


def _elastic_row(row: Row, stock: Any, read: list[Size]) -> tuple[Elastic, list[Size]]:
    """(the elastic module of a NAS row, channels out).

    read: channels of each part of what it reads.
    """
    varied = read if any(isinstance(c, Dim) for c in read) else None
    o = row.options
    if isinstance(o, ConvOptions):
        out = _channels(o.width, o.c2)
        return ElasticNASConv(o, out, varied), [out]
    assert isinstance(o, C3Options)
    out = _channels(o.out, o.c2)
    return ElasticNASC3(o, stock.cv3.act, out, varied), [out]


def _channels(choice: Choice | None, own: int) -> Size:
    return lookup(choice, choice.values) if choice and choice.values != (own,) else own


def _elastic_head(row: Row, stock: Any, maps: list[list[Size]], options: LevelOptions) -> ElasticDetect:
    if type(stock) is not Detect or hasattr(stock, "one2one_cv2") or not isinstance(stock.cv3[0][0], Conv):
        raise UserError(f"row {row.index}, {row.module}: in a supernet this head cannot vary")
    return ElasticDetect(stock, maps, options)


class _Conv(nn.Module):
    """Convolution, norm and activation under the names of a stock `Conv`."""

    stands_for = "Conv"

    def __init__(self, inputs: Sizes, out: Size, act: nn.Module, **conv: Any) -> None:
        super().__init__()
        self.conv = ElasticConv2d(inputs, out, **conv)
        self.bn = ElasticBatchNorm2d(out, eps=1e-3, momentum=0.03)  # as Ultralytics sets them
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def fill(self, stock: Any, sample: Mapping[str, Any]) -> None:
        """Put the slice's layers into a stock `Conv`, whose activation is right already."""
        stock.conv, stock.bn = self.conv.freeze(sample), self.bn.freeze(sample)


class ElasticNASConv(Elastic):
    """A Conv whose kernel and activation may vary. Extracted, it is a stock `Conv`.

    out: channels out, where they may vary as well. read: channels in, where those may, as `inputs` of
    ElasticConv2d.
    """

    vanishes = True

    def __init__(self, options: ConvOptions, out: Size | None = None, read: Sizes | None = None) -> None:
        super().__init__()
        self.options, o = options, options
        shapes = [o.kernel_padding(name) for name in o.kernel.values]
        self.block = _Conv(
            o.c1 if read is None else read,
            as_dim(o.c2) if out is None else out,
            choice_of_activations(o.act),
            kernel=lookup(o.kernel, [k for k, _ in shapes]),
            stride=o.s,
            padding=max(shapes)[1],
            groups=o.g,
        )

    def set_arch(self, arch: Mapping[str, Any]) -> None:
        """Nothing of its own: the layers inside vary."""

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)

    def freeze(self, sample: Mapping[str, Any]) -> nn.Module:
        self.require(sample)
        with without_numbers():  # all weights are put in next
            stock = stock_conv(self.options.settled(sample, self.options.c1), sample)
        return stamped(self.filled(stock, sample), self)

    def filled(self, stock: Any, sample: Mapping[str, Any]) -> Any:
        self.block.fill(stock, sample)
        return stock.train(self.training)

    @classmethod
    def create_fixed_module(
        cls,
        sample: Mapping[str, Any],
        options: ConvOptions,
        out: Size | None = None,
        read: Sizes | None = None,
    ) -> nn.Module:
        c1 = options.c1 if read is None else _sum(read)(sample)
        return stock_conv(options.settled(sample, c1), sample)


class ElasticNASC3(Elastic):
    """A C3 whose hidden width, inner kernels and activations, depth and bottleneck widths may vary.

    The halves of its concat are as wide as each other in every arch, and cv3 knows where the second begins.
    Bottlenecks that add their input start as the identity (zero gamma).
    """

    stands_for = "C3"

    def __init__(
        self, options: C3Options, act: nn.Module, out: Size | None = None, read: Sizes | None = None
    ) -> None:
        super().__init__()
        self.options, o = options, options
        hidden = lookup(o.width, [o.hidden(w) for w in o.width.values])
        first = o.width.values[0]
        self.cv1 = ElasticNASConv(o.cv("cv1", first), hidden, read)
        self.cv2 = ElasticNASConv(o.cv("cv2", first), hidden, read)
        self.cv3 = _Conv([hidden, hidden], o.c2 if out is None else out, act)
        blocks = [_Bottleneck(o, hidden, choice, act) for choice in o.bottlenecks]
        self.m = ElasticDepth(blocks, gene(o.depth))

    @property
    def bottlenecks(self) -> list[_Bottleneck]:
        return [block for block in self.m if isinstance(block, _Bottleneck)]

    def set_arch(self, arch: Mapping[str, Any]) -> None:
        """Nothing of its own: the layers inside vary."""

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))

    def freeze(self, sample: Mapping[str, Any]) -> nn.Module:
        self.require(sample)
        with without_numbers():  # all weights are put in next
            stock: Any = stock_c3(self.options.settled(sample, self.options.c1), sample)
        self.cv1.filled(stock.cv1, sample)
        self.cv2.filled(stock.cv2, sample)
        self.cv3.fill(stock.cv3, sample)
        for elastic, block in zip(self.bottlenecks, stock.m, strict=False):  # as many as the depth
            elastic.cv1.fill(block.cv1, sample)
            elastic.cv2.fill(block.cv2, sample)
        return stamped(stock.train(self.training), self)

    @classmethod
    def create_fixed_module(
        cls,
        sample: Mapping[str, Any],
        options: C3Options,
        act: nn.Module,
        out: Size | None = None,
        read: Sizes | None = None,
    ) -> nn.Module:
        c1 = options.c1 if read is None else _sum(read)(sample)
        return stock_c3(options.settled(sample, c1), sample)


class _Bottleneck(nn.Module):
    """A C3's bottleneck: 1x1, 3x3, and the input added."""

    stands_for = "Bottleneck"

    def __init__(self, o: C3Options, hidden: Dim, factor: Choice, act: nn.Module) -> None:
        super().__init__()
        inner = combine(o.bottleneck_hidden, gene(o.width), gene(factor))
        self.cv1 = _Conv(hidden, inner, act)
        self.cv2 = _Conv(inner, hidden, act, kernel=3, groups=o.g)
        self.add = o.shortcut
        if self.add:
            nn.init.zeros_(self.cv2.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class ElasticDetect(Elastic, Detect):
    """A head that may read fewer levels: the first of them, whose channels may vary.

    Its class towers are as wide as the first level's map, as in the stock head.
    """

    stands_for = "Detect"

    def __init__(self, stock: Any, maps: Sequence[Sizes], options: LevelOptions) -> None:
        c1 = [tower[0].conv.in_channels for tower in stock.cv2]
        super(MutableModule, self).__init__(stock.nc, stock.reg_max, ch=c1)  # past NNI's, without arguments
        bins, finest = 4 * stock.reg_max, _sum(maps[0])
        box = combine(lambda c: max(16, c // 4, bins), finest)
        cls = combine(lambda c: max(c, min(self.nc, 100)), finest)
        act = stock.cv2[0][0].act
        kinds = (self.cv2, stock.cv2, box, bins), (self.cv3, stock.cv3, cls, self.nc)
        for towers, plain, width, out in kinds:
            for i, read in enumerate(maps):
                first, second = (_Conv(c, width, act, kernel=3) for c in (read, width))
                last = ElasticConv2d(width, out, bias=True)
                with torch.no_grad():  # what the stock head begins with
                    last.bias.copy_(plain[i][2].bias)  # type: ignore[union-attr]
                towers[i] = nn.Sequential(first, second, last)
        self.read = [_sum(read) for read in maps]
        self.levels = lookup(options.levels, [options.counts[v] for v in options.levels.values])
        self.dims = (self.levels,)
        self.strides_of = [float(s) for s in stock.stride]
        self.stride = stock.stride
        self.set_arch(self.largest())

    def set_arch(self, arch: Mapping[str, Any]) -> None:
        n = self.levels(arch)
        if n != self.nl:  # the anchor points that the stock head keeps are those of other maps
            stride = torch.tensor(self.strides_of[:n], device=self.stride.device)
            self.write(nl=n, stride=stride, shape=None)

    def running(self, arch: Mapping[str, Any]) -> list[nn.Module]:
        n = self.levels(arch)
        return [*self.cv2[:n], *self.cv3[:n]]

    def forward(self, x: list[Tensor]) -> Any:
        return Detect.forward(self, x[: self.nl])

    def freeze(self, sample: Mapping[str, Any]) -> nn.Module:
        self.require(sample)
        n = self.levels(sample)
        with without_numbers():  # all weights are put in next
            stock: Any = stock_head(self.nc, self.reg_max, [c(sample) for c in self.read[:n]])
        for elastic, plain in ((self.cv2, stock.cv2), (self.cv3, stock.cv3)):
            for i in range(n):
                for j in (0, 1):
                    elastic[i][j].fill(plain[i][j], sample)
                    plain[i][j].act = copy.deepcopy(elastic[i][j].act)
                plain[i][2] = elastic[i][2].freeze(sample)
        stock.dfl = copy.deepcopy(self.dfl)
        stock.stride = torch.tensor(self.strides_of[:n], device=self.stride.device)
        stock.inplace = getattr(self, "inplace", True)
        stamped(stock.train(self.training), self)
        stock.f = list(self.f[:n])
        return stock


class Resting(Elastic):
    """A row that does not run at some levels; what comes of it then nobody reads."""

    vanishes = True

    def __init__(self, row: nn.Module, levels: Choice, running: Mapping[Value, bool]) -> None:
        super().__init__()
        self.row = row
        self.runs = lookup(levels, [running[value] for value in levels.values])
        self.dims = (self.runs,)
        self.set_arch(self.largest())

    def set_arch(self, arch: Mapping[str, Any]) -> None:
        self.write(active=self.runs(arch))

    def running(self, arch: Mapping[str, Any]) -> list[nn.Module]:
        return [self.row] if self.runs(arch) else []

    def forward(self, x: Any) -> Any:
        if self.active:
            return self.row(x)
        return x[0] if isinstance(x, list) else x

    def freeze(self, sample: Mapping[str, Any]) -> nn.Module:
        self.require(sample)
        if self.runs(sample):
            return stamped(frozen(self.row, sample), self)
        rest: Any = stamped(nn.Identity(), self)
        rest.f, rest.type = -1, "torch.nn.modules.linear.Identity"
        return rest.train(self.training)


def _sum(sizes: Sizes) -> Dim:
    parts = sizes if isinstance(sizes, Sequence) else [sizes]
    return combine(lambda *c: sum(c), *parts)


def choice_of_activations(choice: Choice) -> nn.Module:
    """The activation, or a path choice where there are several."""
    acts = {name: activation(str(name)) for name in choice.values}
    return PathChoice(choice, acts) if len(acts) > 1 else acts[choice.values[0]]
