"""YOLO's space as NNI sees it: `NASConv` and `NASC3` made of LayerChoice, and their ModelSpace.

An unfrozen space only says what may vary, so its candidates live on torch's meta device and weigh nothing,
whatever the size of the network. Frozen, by `space.freeze(sample)` or by NNI rebuilding it under
`model_context(sample)`, it holds one detector of stock modules (models/yolo/detector.py) and nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.space import Arch, Choice, Value
from models.yolo.detector import YoloDetector, activation, bottleneck, layers, stock_c3, stock_conv
from models.yolo.parse import C3Options, ConvOptions
from models.yolo.space import YoloSpace
from utils.unborn import without_numbers

with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)  # NNI 3.0 meets names in torch.nn that are no modules
    from nni.mutable import Categorical
    from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableModule
from nni.nas.space import current_model, model_context


class NumberChoice(LayerChoice):
    """A LayerChoice whose candidates are named by numbers, so that an arch reads `c3_2_width: 1.5`.

    NNI registers candidates as submodules under their names, and torch allows no dot in those.
    """

    @staticmethod
    def _init_names(candidates: dict[Value, nn.Module]) -> tuple[list[Value], list[nn.Module]]:
        return list(candidates), list(candidates.values())

    def add_module(self, name: str, module: nn.Module | None) -> None:
        super().add_module(name.replace(".", "_"), module)

    def __getitem__(self, name: Value) -> nn.Module:
        return self._modules[str(name).replace(".", "_")]

    def forward(self, x: Tensor) -> Tensor:
        return self[self._dry_run_choice](x)


def choose(choice: Choice, candidates: Mapping[Value, nn.Module]) -> nn.Module:
    """A LayerChoice of the candidates, or the only one where nothing is to be chosen."""
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    kind = LayerChoice if isinstance(choice.values[0], str) else NumberChoice
    return kind(dict(candidates), label=choice.label)


class NASConv(MutableModule):
    """Conv2d, BatchNorm2d, activation; the kernel (same output size) and the activation are choices.

    Frozen, it is a stock `Conv`.
    """

    def __init__(self, options: ConvOptions) -> None:
        super().__init__()
        self.options, o = options, options
        kernels = {}
        for name in o.kernel.values:
            k, p = o.kernel_padding(name)
            kernels[name] = nn.Conv2d(o.c1, o.c2, k, o.s, p, groups=o.g, bias=False)
        self.conv = choose(o.kernel, kernels)
        self.bn = nn.BatchNorm2d(o.c2)
        self.act = choose(o.act, {name: activation(str(name)) for name in o.act.values})

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def freeze(self, sample: Mapping[str, Any]) -> nn.Module:
        return stock_conv(self.options, sample)

    @classmethod
    def create_fixed_module(cls, sample: dict[str, Any], options: ConvOptions) -> nn.Module:
        return stock_conv(options, sample)


class NASC3(MutableModule):
    """A C3 whose hidden width, inner convolutions, number of bottlenecks and their widths are choices.

    Everything inside depends on the hidden width, so each width is a candidate with its own insides; the same
    label in several of them is one choice. Frozen, it is a stock `C3`.
    """

    def __init__(self, options: C3Options) -> None:
        super().__init__()
        self.options, o = options, options
        self.total = choose(o.width, {width: _C3(o, width) for width in o.width.values})

    def forward(self, x: Tensor) -> Tensor:
        return self.total(x)

    def freeze(self, sample: Mapping[str, Any]) -> nn.Module:
        return stock_c3(self.options, sample)

    @classmethod
    def create_fixed_module(cls, sample: dict[str, Any], options: C3Options) -> nn.Module:
        return stock_c3(options, sample)


class _C3(nn.Module):
    """NASC3 at one hidden width."""

    def __init__(self, o: C3Options, width: Value) -> None:
        super().__init__()
        h = o.hidden(width)
        self.cv1, self.cv2 = NASConv(o.cv("cv1", width)), NASConv(o.cv("cv2", width))
        self.cv3 = nn.Sequential(nn.Conv2d(2 * h, o.c2, 1, bias=False), nn.BatchNorm2d(o.c2), nn.SiLU())
        blocks = []
        for c in o.bottlenecks:
            blocks.append(choose(c, {f: bottleneck(h, o.bottleneck_hidden(width, f), o) for f in c.values}))
        self.m = choose(o.depth, {d: nn.Sequential(*blocks[: int(d)]) for d in o.depth.values})

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class YoloModelSpace(ModelSpace):
    """The NNI model space of a detector YAML.

    Args (plain data, so that a trial process can rebuild the space):
        model: the YAML as a dict, `Space(...).model`.
        nc: number of classes. ch: input channels.

    Attributes:
        space: what may vary, as plain dicts; `simplify()` has the labels and values of `space.choices`.
        arch: once frozen, the canonical arch of what was built; None before.
    """

    arch: Arch | None

    def __init__(self, model: dict[str, Any], nc: int, ch: int = 3) -> None:
        super().__init__()
        self._built: YoloDetector | None = None
        self.space = YoloSpace(model, nc, ch)
        sample = current_model()
        if sample is not None:
            self.arch = self.space.canonical(sample)
            return
        self.arch = None
        with without_numbers():
            self.layers = layers(self.space.stock(self.space.default()), self.space.ch)
            for row in self.space.rows:
                if isinstance(row.options, ConvOptions):
                    self.layers[row.index] = NASConv(row.options)
                elif isinstance(row.options, C3Options):
                    self.layers[row.index] = NASC3(row.options)
        if "resolution" in self.space.choices:  # no layer's business, but the evaluator's
            self.add_mutable(Categorical(self.space.choices["resolution"], label="resolution"))

    def freeze(self, sample: Mapping[str, Any]) -> YoloModelSpace:
        """The space with this sample built for real; canonical archs and NNI's complete samples alike."""
        with model_context(self.space.complete(sample)):
            return YoloModelSpace(self.space.model, self.space.nc, self.space.ch)

    @property
    def detector(self) -> YoloDetector | None:
        """Once frozen, the detector with fresh weights from torch's generator, built when it is first asked
        for: evaluators build their own. None before."""
        if self.arch is not None and self._built is None:
            self._built = self.space.build(self.arch)
        return self._built

    def forward(self, x: Tensor) -> Any:
        """The detector's raw output; before freezing, a dry run of the default on the meta device."""
        if self.detector is not None:
            return self.detector.model(x)
        maps: list[Any] = []
        for row, layer in zip(self.space.rows, self.layers, strict=True):
            sources = row.source if isinstance(row.source, list) else [row.source]
            xs = [maps[j] for j in sources] if maps else [x]
            maps.append(layer(xs if isinstance(row.source, list) else xs[0]))
        return maps[-1]
