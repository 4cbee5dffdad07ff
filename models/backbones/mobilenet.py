"""MobileNetV2 and V3 (arXiv 1801.04381, 1905.02244), elastic in depth, expansion and kernels as in
Once-for-All (arXiv 1908.09791) and aw_nas: stages of up to four inverted residuals after a fixed first one.

Stage 0 is that first one, so `depth`, `kernel_size` and `expand_ratio` have an entry for it. Kernels are
7x7 -> 5x5 -> 3x3, each by a matrix from the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from models.elastic.blocks import ConvBlock, Norm, SqueezeExcite
from models.elastic.dims import Dim, combine, divisible, fixed
from models.elastic.layers import ElasticDepth
from models.elastic.parts import Part
from models.elastic.stages import Backbone, norm_of
from utils.errors import UserError, unknown

# Dims -> their value where the YAML is silent (None: it must say); depth -> number of stages (None: any).
PARTS = {"backbone": {"depth": None, "kernel_size": 3, "expand_ratio": None}}
STRIDE = 32
SPELLING = "genotype"
# version: 2 or 3. layer_channels: of the stem, of each stage and, in V3, of the convolution after them; one
# more, of ImageNet's classifier, may follow and is not built. strides: of each stage's first block. squeeze:
# stages with squeeze-and-excitation. hard_swish: the first stage with it. Where these four are null, the
# version's own. mult_ratio: of all channels but the stem's and the last, rounded to 8.
OPTIONS = {
    "version": 3,
    "layer_channels": None,
    "strides": None,
    "squeeze": None,
    "hard_swish": None,
    "mult_ratio": 1.0,
    "kernel_transform": True,
    "synchronised_norm": False,
}
LAYOUTS: dict[int, dict[str, Any]] = {
    2: {
        "layer_channels": [32, 16, 24, 32, 64, 96, 160, 320, 1280],
        "strides": [1, 2, 2, 2, 1, 2, 1],
        "squeeze": [],
        "hard_swish": None,
    },
    3: {
        "layer_channels": [16, 16, 24, 40, 80, 112, 160, 960, 1280],
        "strides": [1, 2, 2, 2, 1, 2],
        "squeeze": [2, 4, 5],
        "hard_swish": 3,
    },
}


def build(part: Part, ch: int, options: Mapping[str, Any]) -> Backbone:
    """Maps of strides 2, 4, 8, 16 and 32. Raises UserError for a layout that cannot be."""
    return MobileNet(part, ch, layout_of(part, options), options)


def layout_of(part: Part, options: Mapping[str, Any]) -> dict[str, Any]:
    """The version's layout as the options change it; of `layer_channels` those of stem, stages and tail."""
    version, ratio = options["version"], options["mult_ratio"]
    if version not in LAYOUTS:
        raise unknown("version of mobilenet", version, LAYOUTS)
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 16:
        raise UserError(f"option mult_ratio should be a number above 0, 16 at most, got {ratio!r}")
    layout = {k: v if options[k] is None else options[k] for k, v in LAYOUTS[version].items()}
    stages, tail = part.stages, version == 3
    for key, least, most, what in (
        ("strides", stages, stages, "one a stage"),
        ("layer_channels", stages + 1 + tail, stages + 2 + tail, "stem, stages" + ", tail" * tail),
    ):
        given = layout[key]
        whole = isinstance(given, list) and all(isinstance(v, int) and v > 0 for v in given)
        if not whole or not least <= len(given) <= most:
            raise UserError(
                f"option {key} should be {least} whole numbers ({what}) for the {stages} stages of "
                f"backbone.depth, got {given!r}"
            )
    if any(s not in (1, 2) for s in layout["strides"]) or 2 * prod(layout["strides"]) != STRIDE:
        raise UserError(
            f"option strides should be 1 or 2, four times 2, so that the last map has stride {STRIDE}, "
            f"got {layout['strides']}"
        )
    if not isinstance(layout["squeeze"], list):
        raise UserError(f"option squeeze should be a list of stages, got {layout['squeeze']!r}")
    for stage in layout["squeeze"]:
        if stage not in range(stages):
            raise unknown("stage of option squeeze", stage, list(range(stages)))
    stem, *widths = layout["layer_channels"][: stages + 1 + tail]
    ends = len(layout["layer_channels"]) == stages + 1 + tail  # its last is the last of all
    scaled = [divisible(w * ratio) for w in widths[:-1]]
    return layout | {"layer_channels": [stem, *scaled, widths[-1] if ends else divisible(widths[-1] * ratio)]}


class MobileNet(Backbone):
    """Maps of the last stage of each stride, the finest first. V3's last has a convolution behind it.

    widths: channels of each map.
    """

    def __init__(self, part: Part, ch: int, layout: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        nn.Module.__init__(self)
        v3 = options["version"] == 3
        plain: Callable[[], nn.Module] = nn.ReLU if v3 else nn.ReLU6
        swish: Callable[[], nn.Module] = nn.Hardswish if v3 else nn.ReLU6
        normal: Any = norm_of(options)
        norm: Norm = partial(normal, eps=1e-3 if v3 else 1e-5)  # as torchvision's files have it
        strides, first = layout["strides"], layout["hard_swish"]
        channels = [fixed(c) for c in layout["layer_channels"]]
        self.stem = ConvBlock(ch, channels[0], 3, 2, act=swish, norm=norm)
        stages = []
        for stage, (inputs, out) in enumerate(list(pairwise(channels))[: part.stages]):
            blocks = [
                InvertedResidual(
                    inputs if number == 0 else out,
                    out,
                    part.dim("kernel_size", stage, number),
                    strides[stage] if number == 0 else 1,
                    part.dim("expand_ratio", stage, number),
                    squeeze=stage in layout["squeeze"],
                    act=plain if first is None or stage < first else swish,
                    norm=norm,
                    transform=bool(options["kernel_transform"]),
                )
                for number in range(part.blocks(stage))
            ]
            stages.append(ElasticDepth(blocks, part.depth[stage]))
        self.stages = nn.ModuleList(stages)
        self.tail = ConvBlock(channels[-2], channels[-1], 1, act=swish, norm=norm) if v3 else nn.Identity()
        # The stages whose map is the last of its stride.
        self.shown = [i for i, after in enumerate([*strides[1:], 2]) if after == 2]
        self.widths = [channels[i + 1] for i in self.shown[:-1]] + [channels[-1]]

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.stem(x), []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in self.shown:
                maps.append(x)
        return [*maps[:-1], self.tail(maps[-1])]


class InvertedResidual(nn.Module):
    """1x1 that widens, k x k on each channel, 1x1 that narrows; added to its input where that has its shape.

    expand: the inner width is the input's times this, rounded to a multiple of 8; a fixed 1 has no first
        convolution.
    """

    def __init__(
        self,
        inputs: Dim,
        out: Dim,
        kernel: Dim,
        stride: int,
        expand: Dim,
        squeeze: bool = False,
        act: Callable[[], nn.Module] = nn.ReLU,
        norm: Norm | None = None,
        transform: bool = False,
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {} if norm is None else {"norm": norm}
        inner = combine(lambda c, e: divisible(c * e), inputs, expand)
        widens = expand.values != [1]
        self.expand = ConvBlock(inputs, inner, 1, act=act, **given) if widens else nn.Identity()
        self.depthwise = ConvBlock(
            inner, inner, kernel, stride, groups=inner, act=act, transform=transform, **given
        )
        self.squeeze = SqueezeExcite(inner, gate=F.hardsigmoid) if squeeze else nn.Identity()
        self.project = ConvBlock(inner, out, 1, act=None, **given)
        self.straight = stride == 1 and inputs == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.straight else y
