"""The backbone that a serial code says (models/serial/code.py): residual blocks of torchvision, in stages.

A stem of stride 4, then the blocks. Maps are what the last block of each stride makes, the finest first: in
the paper's dialect these are the ends of the stages. Where a code has extra streams, a stage runs once more
for each of them before it runs on the trunk, and what a stream made comes back, through a 1x1 convolution
and a norm, to what the next one takes in (SP-NAS, section 3.3; after CBNet, arXiv 1909.03625).

Blocks have ids. They are a buffer, so they are in every weight file, and `adopt` finds by them where the
weights of another code belong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from models.elastic.dims import Dim, fixed
from models.serial.code import Code, heir, parse, with_ids
from models.weights import WeightFile
from utils.errors import UserError

PARTS: dict[str, dict[str, Any]] = {"backbone": {"depth": None}}
STRIDE = 32
OPTIONS = {"own_streams": False}  # whether extra streams have weights of their own

BLOCKS = {"b": (BasicBlock, 1), "r": (Bottleneck, 4), "x": (Bottleneck, 4)}


def build(part: Any, ch: int, options: Mapping[str, Any], base: int = 64) -> SerialBackbone:
    """part: the code. Raises UserError where there is none."""
    if not isinstance(part, Code):
        raise UserError("a serial backbone is what a code says: add `code: r_111-2111-211111-211`")
    return SerialBackbone(part, ch, base, bool(options["own_streams"]))


def strides(code: Code) -> list[int]:
    """Of what each block makes."""
    stride, found = 4, []
    for stage in code.shapes():
        for _, step in stage:
            stride *= step
            found.append(stride)
    return found


def maps(code: Code, base: int) -> list[tuple[int, int]]:
    """(channels, stride) of the maps, the finest first."""
    wide = BLOCKS[code.kind][1]
    planes = [p for stage in code.shapes(base) for p, _ in stage]
    found = {stride: p * wide for p, stride in zip(planes, strides(code), strict=True)}
    return [(channels, stride) for stride, channels in found.items()]


class SerialBackbone(nn.Module):
    """Maps of an image [B, ch, H, W], H and W multiples of the last stride.

    base: planes of the first stage. own: whether extra streams have weights of their own, or their stage's.

    widths: channels of each map. ids: of the blocks, from the input on.
    """

    ids: Tensor

    def __init__(self, code: Code, ch: int = 3, base: int = 64, own: bool = False) -> None:
        super().__init__()
        self.code, self.own = code, own
        self.stem = nn.Sequential(
            nn.Conv2d(ch, base, 7, 2, 3, bias=False),
            nn.BatchNorm2d(base),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        stages, extra, connect, width = [], [], [], base
        for number, k in enumerate(code.streams):
            before = width
            stage, width = _stage(code, number, before, base)
            stages.append(stage)
            extra.append(nn.ModuleList(_stage(code, number, before, base)[0] for _ in range(k if own else 0)))
            connect.append(nn.ModuleList(_connection(width, before) for _ in range(k)))
        self.stages, self.extra = nn.ModuleList(stages), nn.ModuleList(extra)
        self.connect = nn.ModuleList(connect)
        self.register_buffer("ids", torch.tensor([block.id for block in code.blocks]))
        self.widths: list[Dim] = [fixed(channels) for channels, _ in maps(code, base)]
        at = strides(code) + [0]
        self._last = {i for i in range(len(at) - 1) if at[i] != at[i + 1]}

    def begin(self) -> None:
        """Draw the weights, as in torchvision's ResNet; every branch begins at zero, extra streams too."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(_last_norm(module).weight)
        for streams in self.connect:
            for stream in streams:  # type: ignore[attr-defined]
                nn.init.zeros_(stream[1].weight)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, place = self.stem(x), 0
        found: list[Tensor] = []
        streams: list[Tensor] = []
        rows: Iterator[Any] = zip(self.stages, self.extra, self.connect, strict=True)
        for stage, extra, connect in rows:
            size, now = x.shape[-2:], list[Tensor]()
            back: Tensor | None = None
            for m in reversed(range(len(connect))):
                source = streams[min(m, len(streams) - 1)] if streams else x
                y = source if back is None else source + back
                for block in extra[m] if self.own else stage:
                    y = block(y)
                now.insert(0, y)
                back = F.interpolate(connect[m](y), size=size, mode="nearest")
            if back is not None:
                x = x + back
            for block in stage:
                x = block(x)
                if place in self._last:
                    found.append(x)
                place += 1
            streams = now
        return found

    def adopt(self, file: WeightFile) -> dict[str, Tensor]:
        """A file's tensors under the names that they have in this network: weights go from block to block by
        ids, whatever its place; extra streams that the file lacks take those of their stage. This backbone
        takes over the ids, and shortcuts that may be new pass on what they get.

        file: of ours, or with torchvision's names (of a ResNet alone, or inside a detector). What belongs to
        no backbone stays as it is.
        """
        state = file.state
        parent, layers = _parent(self.code, file)
        if parent is None:
            return dict(state)
        self.code = heir(self.code, parent)
        self.ids = torch.tensor([block.id for block in self.code.blocks], device=self.ids.device)
        for name, layer in self.named_modules():
            if name.endswith("downsample.0"):
                nn.init.dirac_(layer.weight)  # type: ignore[arg-type]
        theirs = {block.id: place for place, block in _places(parent)}
        found = {k: v for k, v in state.items() if k not in {n for _, _, n in layers}}
        by_place: dict[str, list[tuple[str, str]]] = {}
        for place, rest, name in layers:
            by_place.setdefault(place, []).append((rest, name))
        for place, block in _places(self.code):
            source, number = theirs.get(block.id), place.split(".")
            for rest, name in by_place.get(f"stages.{source}", []):
                found[f"backbone.stages.{place}.{rest}"] = state[name]
                if self.own:
                    for m in range(len(self.extra[int(number[0])])):  # type: ignore[arg-type]
                        found.setdefault(f"backbone.extra.{number[0]}.{m}.{number[1]}.{rest}", state[name])
        for place, rest, name in layers:
            if place == "stem":
                found[f"backbone.stem.{rest}"] = state[name]
        found["backbone.ids"] = self.ids
        return found


def _stage(code: Code, number: int, width: int, base: int) -> tuple[nn.Sequential, int]:
    """The blocks of a stage that takes in `width` channels, and how many come out."""
    kind, wide = BLOCKS[code.kind]
    blocks: list[nn.Module] = []
    for planes, stride in code.shapes(base)[number]:
        down = None
        if stride != 1 or width != planes * wide:
            down = nn.Sequential(
                nn.Conv2d(width, planes * wide, 1, stride, bias=False), nn.BatchNorm2d(planes * wide)
            )
        blocks.append(kind(width, planes, stride, down, code.groups, code.group_width))
        width = planes * wide
    return nn.Sequential(*blocks), width


def _connection(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out))


def _last_norm(block: BasicBlock | Bottleneck) -> Any:
    return block.bn2 if isinstance(block, BasicBlock) else block.bn3


def _places(code: Code) -> Iterator[tuple[str, Any]]:
    """(stage.number in it, block)."""
    for number, stage in enumerate(code.stages):
        for place, block in enumerate(stage):
            yield f"{number}.{place}", block


OURS = re.compile(r"backbone\.(stem|stages\.\d+\.\d+)\.(.*)")
TORCHVISION = re.compile(r"(?:(?:.*\.)?body\.|(?:module|model|backbone)\.)?layer([1-9])\.(\d+)\.(.*)")
STEM = re.compile(r"(?:(?:.*\.)?body\.|(?:module|model|backbone)\.)?(conv1|bn1)\.(.*)")
Layers = list[tuple[str, str, str]]  # place here ("stem", "stages.0.2"), name in the block, name in the file


def _parent(code: Code, file: WeightFile) -> tuple[Code | None, Layers]:
    """What code a file is of, with its ids, and its backbone's tensors. None where it has none."""
    state = file.state
    layers = [(m[1], m[2], name) for name in state if (m := OURS.fullmatch(name))]
    if layers and file.arch and "code" in file.arch:
        parent = parse(str(file.arch["code"]), (file.space or {}).get("dialect", code.dialect))
        ids = state.get("backbone.ids")
        return parent if ids is None else with_ids(parent, ids.tolist()), layers
    layers = []
    depth: dict[int, int] = {}
    for name in state:
        if m := TORCHVISION.fullmatch(name):
            stage, place = int(m[1]) - 1, int(m[2])
            depth[stage] = max(depth.get(stage, 0), place + 1)
            layers.append((f"stages.{stage}.{place}", m[3], name))
        elif m := STEM.fullmatch(name):
            layers.append(("stem", f"{'0' if m[1] == 'conv1' else '1'}.{m[2]}", name))
    if sorted(depth) != list(range(len(depth))) or not depth:
        return None, []
    stages = ["12"[stage > 0] + "1" * (depth[stage] - 1) for stage in sorted(depth)]
    return parse("-".join(stages), code.dialect), layers


def aliases() -> list[tuple[str, str]]:
    """torchvision's names of the stem and of four stages, as models/foreign_names.py has them."""
    head = r"(?:(?:.*\.)?body\.|(?:module|model|backbone)\.)?"
    stem = [(rf"{head}conv1\.(.*)", r"backbone.stem.0.\1"), (rf"{head}bn1\.(.*)", r"backbone.stem.1.\1")]
    return stem + [(rf"{head}layer{i + 1}\.(.*)", rf"backbone.stages.{i}.\1") for i in range(4)]
