"""A MobileNetV3, and an SSD over it, in torchvision's own parts: settings, and state dicts under its names.

    said = torch.load("1.torchvision.pth", weights_only=True)
    blocks = [InvertedResidual(InvertedResidualConfig(*row, 1.0), norm) for row in said["blocks"]]
    stem = Conv2dNormActivation(3, said["stem"], 3, 2, norm_layer=norm, activation_layer=nn.Hardswish)
    tail = Conv2dNormActivation(*said["tail"], 1, norm_layer=norm, activation_layer=nn.Hardswish)
    features = nn.Sequential(stem, *blocks, tail)  # norm = partial(nn.BatchNorm2d, eps=said["eps"])
    features.load_state_dict(said["state_dict"])

Where the last convolution is six times as wide as the last block, that is the `features` of torchvision's
MobileNetV3. They give the backbone's coarsest map. An SSD's file has the whole of torchvision's `SSD`, too:
`detector` below builds it of `said["detector"]`. Other heads have no like there: see the `.pt2` and `.onnx`.

What torchvision's SSD cannot say: it takes scores from a softmax whose first column is the background, so
those of the option `loss: focal`, a sigmoid a class without a background, are not its own. Boxes and
`cls_logits` are; `"scores": "sigmoid"` says so. And it stretches all images to the exported size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig
from torchvision.ops import Conv2dNormActivation

from models.detector import evaluating
from models.detectors.ssd import SSD as OwnSSD
from models.exported import TOLERANCE, Exported, ExportFailed, other_sizes
from utils.sides import pair


def export_torchvision(
    net: Any, folder: Path, about: Mapping[str, Any], data: str | None, threads: int
) -> Exported:
    """A plain network, or the backbone of one that is no SSD; built again from the file by torchvision alone
    and compared."""
    backbone, path = net.backbone, folder / "model.torchvision.pth"
    said = settings_of(backbone) | {key: about[key] for key in ("arch", "imgsz")}
    whole = isinstance(net, OwnSSD)
    if whole:
        said["detector"] = detector_settings(net, said, about["names"])
    torch.save(said, path)
    said = torch.load(path, weights_only=True)
    worst, sizes = 0.0, other_sizes(about["imgsz"], net.stride)
    device = next(backbone.parameters()).device
    with evaluating(net), torch.no_grad():
        net.cpu()
        again = detector(said) if whole else features(said).eval()
        for size in sizes:
            images = torch.rand(size)
            theirs, ours = (
                (raw_of(again, images), net.raw(images))
                if whole
                else ([again(images)], [backbone(images)[-1]])
            )
            for one, other in zip(theirs, ours, strict=True):
                worst = max(worst, float((one - other).abs().max() / other.abs().max().clamp(min=1)))
        net.to(device)
    if not worst <= TOLERANCE:
        raise ExportFailed(f"torchvision's parts differ from the network by {worst:.2g}")
    return Exported(path, "torchvision", worst, sizes, [_note(said)])


def _note(said: Mapping[str, Any]) -> str:
    if "detector" not in said:
        return f"the backbone alone, as {len(said['blocks'])} blocks of torchvision's MobileNetV3"
    if said["detector"]["scores"] == "softmax":
        return "all of torchvision's SSD"
    return "all of torchvision's SSD but its scores: sigmoids of cls_logits, which it takes for a softmax"


def detector_settings(net: Any, backbone: Mapping[str, Any], names: Any) -> dict[str, Any]:
    """What torchvision builds the SSD over that backbone from, as plain data.

    taps: numbers of the backbone's layers whose outputs are maps, the finest first. extra: blocks of stride 2
    that make further maps, as rows of `InvertedResidualConfig`. kernel: of predictors. state_dict: of all.
    """
    state = {f"backbone.features.{name}": tensor for name, tensor in backbone["state_dict"].items()}
    rows = []
    for number, block in enumerate(net.neck):
        row, tensors = _block(block, f"backbone.extra.{number}")
        rows.append(row)
        state |= tensors
    for ours, theirs in (("cls", "classification_head"), ("box", "regression_head")):
        for number, predictor in enumerate(getattr(net, ours)):
            place = f"head.{theirs}.module_list.{number}"
            state |= _named(f"{place}.0", predictor.spatial)
            state |= {f"{place}.1.{k}": _plain(v) for k, v in predictor.predict.state_dict().items()}
    ends, blocks = [], 0
    for stage in net.backbone.stages:
        blocks += len(stage)
        ends.append(blocks)
    shown = [ends[stage] for stage in net.backbone.shown[:-1]] + [blocks + 1]
    spatial = net.cls[0].spatial
    return {
        "taps": shown[-net.levels :],
        "extra": rows,
        "widths": [predictor.spatial.conv.out_channels for predictor in net.cls],
        "kernel": spatial.conv.kernel_size[0],
        "eps": spatial.norm.eps,
        "scales": list(net.coded["scales"]),
        "aspect_ratios": [list(ratios) for ratios in net.coded["aspect_ratios"]],
        "scores": "softmax" if net.multibox else "sigmoid",
        "columns": net.kinds,
        "names": list(names),
        "state_dict": state,
    }


class Maps(nn.Module):
    """The backbone of torchvision's SSD: `features`, whose outputs at `taps` are maps, then `extra`."""

    def __init__(self, features: nn.Sequential, taps: list[int], extra: list[nn.Module]) -> None:
        super().__init__()
        self.features, self.taps, self.extra = features, taps, nn.ModuleList(extra)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                maps.append(x)
        for block in self.extra:
            x = block(x)
            maps.append(x)
        return OrderedDict((str(number), each) for number, each in enumerate(maps))


def detector(said: Mapping[str, Any], conf: float = 0.01, iou: float = 0.45, max_det: int = 200) -> SSD:
    """torchvision's SSD in eval mode, from a file with a `detector`: images float32 RGB 0..1, no mean and
    deviation; label 1 is the first class."""
    own = said["detector"]
    norm = partial(nn.BatchNorm2d, eps=own["eps"])
    extra = [InvertedResidual(InvertedResidualConfig(*row, 1.0), norm) for row in own["extra"]]
    boxes = DefaultBoxGenerator(own["aspect_ratios"], scales=own["scales"])
    each, k = boxes.num_anchors_per_location(), own["kernel"]
    head = SSDHead(own["widths"], each, own["columns"])
    for part, columns in ((head.classification_head, own["columns"]), (head.regression_head, 4)):
        part.module_list = nn.ModuleList(
            nn.Sequential(
                Conv2dNormActivation(w, w, k, groups=w, norm_layer=norm), nn.Conv2d(w, n * columns, 1)
            )
            for w, n in zip(own["widths"], each, strict=True)
        )
    built = SSD(
        Maps(features(said), own["taps"], extra),
        boxes,
        pair(said["imgsz"]),
        own["columns"],
        [0.0] * 3,
        [1.0] * 3,
        head,
        score_thresh=conf,
        nms_thresh=iou,
        detections_per_img=max_det,
        topk_candidates=5000,
    )
    built.load_state_dict(own["state_dict"])
    return built.eval()


def raw_of(built: SSD, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Class logits [B, A, columns], box offsets [B, A, 4] and anchors [A, 4], of images of any size."""
    maps = list(built.backbone(images).values())
    found = built.head(maps)
    sizes = [(images.size(2), images.size(3))] * len(images)
    return (
        found["cls_logits"],
        found["bbox_regression"],
        built.anchor_generator(ImageList(images, sizes), maps)[0],
    )


def settings_of(backbone: Any) -> dict[str, Any]:
    """What torchvision builds the backbone from, as plain data."""
    rows, state = [], _named("0", backbone.stem)
    blocks = [block for stage in backbone.stages for block in stage]
    for number, block in enumerate(blocks, 1):
        row, tensors = _block(block, str(number))
        rows.append(row)
        state |= tensors
    state |= _named(str(len(blocks) + 1), backbone.tail)
    tail = backbone.tail.conv
    return {
        "stem": backbone.stem.conv.out_channels,
        "blocks": rows,
        "tail": [tail.in_channels, tail.out_channels],
        "eps": backbone.stem.norm.eps,
        "state_dict": state,
    }


def _block(block: Any, place: str) -> tuple[list[Any], dict[str, Tensor]]:
    """An inverted residual: its `InvertedResidualConfig`, and its tensors under torchvision's names."""
    layers = [x for x in (block.expand, block.depthwise, block.squeeze) if not isinstance(x, nn.Identity)]
    conv, squeezes = block.depthwise.conv, not isinstance(block.squeeze, nn.Identity)
    entry = block.expand.conv if hasattr(block.expand, "conv") else conv
    act = "HS" if isinstance(block.depthwise.act, nn.Hardswish) else "RE"
    row = [entry.in_channels, conv.kernel_size[0], conv.out_channels, block.project.conv.out_channels]
    state: dict[str, Tensor] = {}
    for i, layer in enumerate([*layers, block.project]):
        state |= _named(f"{place}.block.{i}", layer)
    return [*row, squeezes, act, conv.stride[0], 1], state


def _named(place: str, layer: Any) -> dict[str, Tensor]:
    """The tensors of a layer under torchvision's names."""
    parts = {"conv": "0", "norm": "1", "reduce": "fc1", "expand": "fc2"}
    found = {}
    for name, tensor in layer.state_dict().items():
        part, _, rest = name.partition(".")
        found[f"{place}.{parts[part]}.{rest}"] = _plain(tensor)
    return found


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


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
