"""A MobileNetV3 backbone as torchvision has it: its own blocks' settings, and a state dict under its names.

    said = torch.load("1.torchvision.pth", weights_only=True)
    blocks = [InvertedResidual(InvertedResidualConfig(*row, 1.0), norm) for row in said["blocks"]]
    stem = Conv2dNormActivation(3, said["stem"], 3, 2, norm_layer=norm, activation_layer=nn.Hardswish)
    tail = Conv2dNormActivation(*said["tail"], 1, norm_layer=norm, activation_layer=nn.Hardswish)
    features = nn.Sequential(stem, *blocks, tail)  # norm = partial(nn.BatchNorm2d, eps=said["eps"])
    features.load_state_dict(said["state_dict"])

Where the last convolution is six times as wide as the last block, that is the `features` of torchvision's
MobileNetV3. They give the backbone's coarsest map; heads have no like there: see the `.pt2` and `.onnx`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig
from torchvision.ops import Conv2dNormActivation

from models.exported import TOLERANCE, Exported, ExportFailed, other_sizes


def export_backbone(
    net: Any, folder: Path, about: Mapping[str, Any], data: str | None, threads: int
) -> Exported:
    """The backbone of a plain network; built again from the file by torchvision alone and compared."""
    backbone, path = net.backbone, folder / "model.torchvision.pth"
    said = settings_of(backbone) | {key: about[key] for key in ("arch", "imgsz")}
    torch.save(said, path)
    again = features(torch.load(path, weights_only=True)).eval()
    worst, sizes = 0.0, other_sizes(about["imgsz"], net.stride)
    training, device = backbone.training, next(backbone.parameters()).device
    backbone.eval().cpu()
    try:
        for size in sizes:
            images = torch.rand(size)
            with torch.no_grad():
                theirs, ours = again(images), backbone(images)[-1]
            worst = max(worst, float((theirs - ours).abs().max() / ours.abs().max().clamp(min=1)))
    finally:
        backbone.train(training).to(device)
    if not worst <= TOLERANCE:
        raise ExportFailed(f"torchvision's blocks differ from the backbone by {worst:.2g}")
    note = f"the backbone alone, as {len(said['blocks'])} blocks of torchvision's MobileNetV3"
    return Exported(path, "torchvision", worst, sizes, [note])


def settings_of(backbone: Any) -> dict[str, Any]:
    """What torchvision builds the backbone from, as plain data."""
    rows, state = [], _named("0", backbone.stem)
    blocks = [block for stage in backbone.stages for block in stage]
    for number, block in enumerate(blocks, 1):
        layers = [x for x in (block.expand, block.depthwise, block.squeeze) if not isinstance(x, nn.Identity)]
        conv, squeezes = block.depthwise.conv, not isinstance(block.squeeze, nn.Identity)
        entry = block.expand.conv if hasattr(block.expand, "conv") else conv
        act = "HS" if isinstance(block.depthwise.act, nn.Hardswish) else "RE"
        out = block.project.conv.out_channels
        sizes = [entry.in_channels, conv.kernel_size[0], conv.out_channels, out]
        rows.append([*sizes, squeezes, act, conv.stride[0], 1])
        for i, layer in enumerate([*layers, block.project]):
            state |= _named(f"{number}.block.{i}", layer)
    state |= _named(str(len(blocks) + 1), backbone.tail)
    tail = backbone.tail.conv
    return {
        "stem": backbone.stem.conv.out_channels,
        "blocks": rows,
        "tail": [tail.in_channels, tail.out_channels],
        "eps": backbone.stem.norm.eps,
        "state_dict": state,
    }


def _named(place: str, layer: Any) -> dict[str, Tensor]:
    """The tensors of a layer under torchvision's names."""
    parts = {"conv": "0", "norm": "1", "reduce": "fc1", "expand": "fc2"}
    found = {}
    for name, tensor in layer.state_dict().items():
        part, _, rest = name.partition(".")
        found[f"{place}.{parts[part]}.{rest}"] = tensor.detach().cpu().contiguous().clone()
    return found


def features(said: Mapping[str, Any]) -> nn.Sequential:
    """The backbone in torchvision's own blocks."""
    norm = partial(nn.BatchNorm2d, eps=said["eps"])
    around = partial(Conv2dNormActivation, norm_layer=norm, activation_layer=nn.Hardswish)
    blocks = [InvertedResidual(InvertedResidualConfig(*row, 1.0), norm) for row in said["blocks"]]
    colours = said["state_dict"]["0.0.weight"].size(1)
    stem, tail = around(colours, said["stem"], 3, stride=2), around(*said["tail"], kernel_size=1)
    built = nn.Sequential(stem, *blocks, tail)
    built.load_state_dict(said["state_dict"])
    return built
