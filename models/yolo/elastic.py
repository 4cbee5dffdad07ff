"""The YOLO space as a supernet: `NASConv` and `NASC3` rows with one set of weights for all their choices.

Around them the detector is the stock one, and extracted it is so throughout: `extract(arch)` has the modules
of `space.build(arch)`, with the supernet's weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.elastic.dims import Dim, as_dim, combine, gene, lookup
from models.elastic.layers import (
    Elastic,
    ElasticBatchNorm2d,
    ElasticConv2d,
    ElasticDepth,
    PathChoice,
    Size,
    Sizes,
)
from models.space import Choice
from models.yolo.detector import YoloDetector, activation, stock_c3, stock_conv
from models.yolo.parse import C3Options, ConvOptions, Row

STAMPS = ("i", "f", "type")  # what Ultralytics writes on a row's module to find its inputs


def with_elastic_rows(detector: YoloDetector, rows: Sequence[Row]) -> YoloDetector:
    """The stock detector with its searched rows elastic."""
    for row in rows:
        if not isinstance(row.options, ConvOptions | C3Options):
            continue
        stock = detector.model.model[row.index]
        if isinstance(row.options, ConvOptions):
            elastic: Elastic = ElasticNASConv(row.options)
        else:
            elastic = ElasticNASC3(row.options, stock.cv3.act)
        _stamp(elastic, stock)
        detector.model.model[row.index] = elastic
    return detector


class _Conv(nn.Module):
    """Convolution, norm and activation under the names of a stock `Conv`."""

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

    out: channels out, where they may vary as well (inside a C3).
    """

    vanishes = True

    def __init__(self, options: ConvOptions, out: Dim | None = None) -> None:
        super().__init__()
        self.options, o = options, options
        shapes = [o.kernel_padding(name) for name in o.kernel.values]
        self.block = _Conv(
            o.c1,
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
        with torch.device("meta"):  # all weights are put in next
            stock = stock_conv(self.options, sample)
        return _stamp(self.filled(stock, sample), self)

    def filled(self, stock: Any, sample: Mapping[str, Any]) -> Any:
        self.block.fill(stock, sample)
        return stock.train(self.training)

    @classmethod
    def create_fixed_module(
        cls, sample: Mapping[str, Any], options: ConvOptions, out: Dim | None = None
    ) -> nn.Module:
        return stock_conv(options, sample)


class ElasticNASC3(Elastic):
    """A C3 whose hidden width, inner kernels and activations, depth and bottleneck widths may vary.

    The halves of its concat are as wide as each other in every arch, and cv3 knows where the second begins.
    Bottlenecks that add their input start as the identity (zero gamma).
    """

    def __init__(self, options: C3Options, act: nn.Module) -> None:
        super().__init__()
        self.options, o = options, options
        hidden = lookup(o.width, [o.hidden(w) for w in o.width.values])
        first = o.width.values[0]
        self.cv1 = ElasticNASConv(o.cv("cv1", first), hidden)
        self.cv2 = ElasticNASConv(o.cv("cv2", first), hidden)
        self.cv3 = _Conv([hidden, hidden], o.c2, act)
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
        with torch.device("meta"):  # all weights are put in next
            stock: Any = stock_c3(self.options, sample)
        self.cv1.filled(stock.cv1, sample)
        self.cv2.filled(stock.cv2, sample)
        self.cv3.fill(stock.cv3, sample)
        for elastic, block in zip(self.bottlenecks, stock.m, strict=False):  # as many as the depth
            elastic.cv1.fill(block.cv1, sample)
            elastic.cv2.fill(block.cv2, sample)
        return _stamp(stock.train(self.training), self)

    @classmethod
    def create_fixed_module(cls, sample: Mapping[str, Any], options: C3Options, act: nn.Module) -> nn.Module:
        return stock_c3(options, sample)


class _Bottleneck(nn.Module):
    """A C3's bottleneck: 1x1, 3x3, and the input added."""

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


def choice_of_activations(choice: Choice) -> nn.Module:
    """The activation, or a path choice where there are several."""
    acts = {name: activation(str(name)) for name in choice.values}
    return PathChoice(choice, acts) if len(acts) > 1 else acts[choice.values[0]]


def _stamp(module: Any, like: Any) -> Any:
    for name in STAMPS:
        if hasattr(like, name):
            setattr(module, name, getattr(like, name))
    module.np = sum(p.numel() for p in module.parameters())
    return module
