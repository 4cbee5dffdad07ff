"""RetinaNet (arXiv 1708.02002) on a ResNet-18 like backbone with deep stem, elastic throughout, as in
United-Perception's BigNAS configs: widths, depths and kernels of the backbone, width of FPN and towers.

A network file for `models/elastic/space.py`: which reads PARTS, STRIDE and OPTIONS and calls `build`.
Anchors, matching, box coding, focal loss and NMS are torchvision's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import (
    batched_nms,
    box_convert,
    box_iou,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

from models.detector import Batch, Detections
from models.elastic.blocks import SYNCHRONISED, BasicBlock, Norm, StemBlock
from models.elastic.dims import Dim
from models.elastic.layers import ElasticBatchNorm2d, ElasticConv2d, ElasticDepth
from utils.distill import confidence, soft_scores, weighted
from utils.errors import UserError

if TYPE_CHECKING:
    from models.elastic.space import ElasticSpace

# Dims of each part -> their value where the YAML is silent (None: it must say); depth -> number of stages.
PARTS = {
    "backbone": {
        "depth": 5,  # the stem, then four stages
        "out_channel": None,
        "kernel_size": 3,
        "expand_ratio": [0.5, 1, 1, 1, 1],
    },
    "neck": {"depth": 2, "out_channel": 128, "kernel_size": [1, 3]},  # laterals, then one output a level
    "head": {"depth": 1, "out_channel": None, "kernel_size": 3},  # both towers
}
STRIDE = 32
OPTIONS = {
    "anchor_scales": [4.0, 5.0397, 6.3496],  # sides of anchors in strides of their level
    "anchor_ratios": [0.5, 1.0, 2.0],
    "kernel_transform": False,
    "synchronised_norm": False,
}

CANDIDATES = 5000  # boxes of one image that enter NMS
PRIOR = 0.01  # initial score of every class at every anchor (section 4.1 of the paper)


def build(space: ElasticSpace) -> RetinaNet:
    """The network of a space, fresh weights of torch's generator."""
    neck = space.parts["neck"]
    laterals, levels = neck.depth
    if laterals.labels or levels.labels or not 1 <= laterals.largest <= min(4, levels.largest):
        raise UserError(
            "neck.depth should be two fixed numbers, laterals (1 to 4) and levels (no fewer), "
            f"got {[laterals.values, levels.values]}"
        )
    for key in ("anchor_scales", "anchor_ratios"):
        given = space.options[key]
        if (
            not isinstance(given, list)
            or not given
            or not all(isinstance(v, (int, float)) and v > 0 for v in given)
        ):
            raise UserError(f"option {key} should be positive numbers, got {given!r}")
    return RetinaNet(space)


class RetinaNet(nn.Module):
    """The detector contract of models/detector.py, elastic or plain.

    Raw output, for losses and distillation: class logits [B, A, nc] and box offsets [B, A, 4] of all A
    anchors, from the finest level to the coarsest, row by row, the anchors of a position together.
    """

    def __init__(self, space: ElasticSpace) -> None:
        super().__init__()
        norm: Norm = SYNCHRONISED if space.options["synchronised_norm"] else ElasticBatchNorm2d
        laterals, levels = (d.largest for d in space.parts["neck"].depth)
        self.backbone = Backbone(space, norm)
        self.neck = Neck(space, self.backbone.widths[-laterals:], levels, norm)
        ratios, scales = space.options["anchor_ratios"], space.options["anchor_scales"]
        anchors, width = len(ratios) * len(scales), space.parts["neck"].dim("out_channel", 1)
        self.cls = Tower(space, width, levels, anchors * space.nc, norm)
        self.box = Tower(space, width, levels, anchors * 4, norm)
        nn.init.constant_(self.cls.predict.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

        self.stride, self.nc = STRIDE, space.nc
        self.names = [str(i) for i in range(space.nc)]
        strides = [2 ** (6 - laterals + i) for i in range(levels)]
        sizes = tuple(tuple(s * scale for scale in scales) for s in strides)
        self.anchors = AnchorGenerator(sizes, (tuple(ratios),) * levels)
        self.coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
        self.matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)

    @property
    def names(self) -> list[str]:
        """Class names in the order of the labels."""
        return self._names

    @names.setter
    def names(self, names: Sequence[str]) -> None:
        if len(names) != self.nc:
            raise UserError(f"{len(names)} class names for a detector of {self.nc} classes")
        self._names = list(names)

    def forward(self, x: Batch | Tensor) -> Any:
        """The loss of a batch, or the raw output for images [B, 3, H, W]: one door for wrappers (DDP)."""
        return self.loss(x) if isinstance(x, dict) else self.raw(x)

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(class logits [B, A, nc], box offsets [B, A, 4]); H and W multiples of `stride`."""
        maps = self.neck(self.backbone(images))
        return _flat(self.cls(maps), self.nc), _flat(self.box(maps), 4)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`cls` (focal) and `box` (GIoU) losses, float32 scalars; their sum is a mean over the images."""
        return self.losses(self.raw(batch["img"]), batch)

    def losses(self, raw: tuple[Tensor, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The same from a raw output that is at hand.

        Each image's sums are divided by its matched anchors (at least 1), as in the paper.
        """
        with torch.autocast(raw[0].device.type, enabled=False):
            logits, offsets = raw[0].float(), raw[1].float()
            images = batch["img"]
            anchors = self.grid(images)
            scale = images.new_tensor([images.size(3), images.size(2)] * 2).float()
            cls_losses, box_losses = [], []
            for i in range(len(images)):
                mine = batch["batch_idx"] == i
                boxes = box_convert(batch["bboxes"][mine].float(), "cxcywh", "xyxy") * scale
                labels = batch["cls"][mine].long().flatten()
                matched = self._match(boxes, anchors)
                positive = matched >= 0
                of = matched[positive]
                targets = torch.zeros_like(logits[i])
                targets[positive, labels[of]] = 1.0
                told = matched != Matcher.BETWEEN_THRESHOLDS
                count = max(1, len(of))
                focal = sigmoid_focal_loss(logits[i][told], targets[told], reduction="sum")
                found = self.coder.decode_single(offsets[i][positive], anchors[positive])
                giou = generalized_box_iou_loss(found, boxes[of], reduction="sum")
                cls_losses.append(focal / count)
                box_losses.append(giou / count)
        return {"cls": torch.stack(cls_losses).mean(), "box": torch.stack(box_losses).mean()}

    def distil(self, raw: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """`cls` and `box`: towards a teacher's raw output on the same images, at every anchor.

        Scores by quality focal loss; offsets by smooth L1, weighted by how sure the teacher is of something
        there. Both are divided by the sum of those weights.
        """
        with torch.autocast(raw[0].device.type, enabled=False):
            sure = confidence(teacher[0].float(), -1)
            apart = F.smooth_l1_loss(raw[1].float(), teacher[1].float(), beta=0.1, reduction="none").sum(-1)
            cls = soft_scores(raw[0].float(), teacher[0].float(), sure)
        return {"cls": cls, "box": weighted(apart, sure)}

    @torch.no_grad()
    def predict(
        self, images: Tensor, conf: float = 0.001, iou: float = 0.7, max_det: int = 300
    ) -> list[Detections]:
        """What is in the images [B, 3, H, W], float32 RGB 0..1. Leaves train or eval mode as it was.

        A box may be reported once for each class above `conf`; the best `CANDIDATES` of an image enter NMS.
        """
        modes = [(m, m.training) for m in self.modules()]
        self.eval()
        try:
            logits, offsets = self.raw(images)
        finally:
            for module, mode in modes:
                module.training = mode
        anchors, found = self.grid(images), []
        for scores, moved in zip(logits.float().sigmoid(), offsets.float(), strict=True):
            flat, order = scores.flatten().sort(descending=True)
            flat, order = flat[:CANDIDATES], order[:CANDIDATES]
            order = order[flat > conf]
            which, labels = order // self.nc, order % self.nc
            boxes, sure = self.coder.decode_single(moved[which], anchors[which]), scores.flatten()[order]
            keep = batched_nms(boxes, sure, labels, iou)[:max_det]
            found.append(Detections(boxes=boxes[keep], scores=sure[keep], labels=labels[keep]))
        return found

    def grid(self, images: Tensor) -> Tensor:
        """All anchors [A, 4], xyxy pixels, in the order of the raw output."""
        height, width = images.shape[-2:]
        maps = [torch.empty((1, 1, h, w), device=images.device) for h, w in self.neck.sizes(height, width)]
        return self.anchors(ImageList(images[:1].float(), [(height, width)]), maps)[0]

    def _match(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Number of the box that each anchor answers for; negative where there is none."""
        if len(boxes) == 0:
            return torch.full((len(anchors),), Matcher.BELOW_LOW_THRESHOLD, device=anchors.device)
        return self.matcher(box_iou(boxes, anchors))


class Backbone(nn.Module):
    """Stem (stride 2), max pooling, four stages; returns the maps of strides 4, 8, 16, 32."""

    def __init__(self, space: ElasticSpace, norm: Norm) -> None:
        super().__init__()
        part, transform = space.parts["backbone"], bool(space.options["kernel_transform"])
        width = part.dim("out_channel", 0)
        self.stem = StemBlock(space.ch, width, part.dim("kernel_size"), part.dim("expand_ratio"), norm)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.widths: list[Dim] = []
        stages = []
        for stage in range(1, part.stages):
            blocks = []
            for block in range(part.blocks(stage)):
                out = part.dim("out_channel", stage, block)
                blocks.append(
                    BasicBlock(
                        width,
                        out,
                        part.dim("kernel_size", stage, block),
                        2 if block == 0 and stage > 1 else 1,
                        part.dim("expand_ratio", stage, block),
                        norm,
                        transform,
                    )
                )
                width = out
            width = part.last("out_channel", stage)
            stages.append(ElasticDepth(blocks, part.depth[stage]))
            self.widths.append(width)
        self.stages = nn.ModuleList(stages)
        for module in self.modules():  # as torchvision's ResNet
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.pool(self.stem(x)), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Neck(nn.Module):
    """FPN (arXiv 1612.03144): laterals summed top-down, one convolution each; further levels by stride 2."""

    def __init__(self, space: ElasticSpace, widths: Sequence[Dim], levels: int, norm: Norm) -> None:
        super().__init__()
        part = space.parts["neck"]
        inner, out = part.dim("out_channel", 0), part.dim("out_channel", 1)
        lateral, kernel = part.dim("kernel_size", 0), part.dim("kernel_size", 1)
        self.first = 6 - len(widths)  # log2 of the stride of the finest level
        self.laterals = nn.ModuleList(ElasticConv2d(w, inner, lateral, bias=True) for w in widths)
        self.outputs = nn.ModuleList(ElasticConv2d(inner, out, kernel, bias=True) for _ in widths)
        more = levels - len(widths)
        self.further = nn.ModuleList(ElasticConv2d(out, out, kernel, 2, bias=True) for _ in range(more))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        xs = [conv(x) for conv, x in zip(self.laterals, maps[-len(self.laterals) :], strict=True)]
        for i in range(len(xs) - 1, 0, -1):
            xs[i - 1] = xs[i - 1] + F.interpolate(xs[i], scale_factor=2.0, mode="nearest")
        found = [conv(x) for conv, x in zip(self.outputs, xs, strict=True)]
        for conv in self.further:
            found.append(conv(found[-1]))
        return found

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(height, width) of every level's map for an image of that size."""
        found = [(height >> (self.first + i), width >> (self.first + i)) for i in range(len(self.laterals))]
        for _ in self.further:  # kernel k, stride 2, padding k // 2
            found.append(((found[-1][0] + 1) // 2, (found[-1][1] + 1) // 2))
        return found


class Tower(nn.Module):
    """Convolutions shared by all levels, with norms of each level's own, and a last one that predicts."""

    def __init__(self, space: ElasticSpace, inputs: Dim, levels: int, out: int, norm: Norm) -> None:
        super().__init__()
        part, blocks, width = space.parts["head"], [], inputs
        for block in range(part.blocks(0)):
            wide = part.dim("out_channel", 0, block)
            blocks.append(TowerBlock(width, wide, part.dim("kernel_size", 0, block), levels, norm))
            width = wide
        self.blocks = ElasticDepth(blocks, part.depth[0])
        self.predict = ElasticConv2d(part.last("out_channel", 0), out, 3, bias=True)
        for module in self.modules():  # section 4.1 of the paper
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(self.predict.bias)  # type: ignore[arg-type]

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [self.predict(x) for x in self.blocks(maps)]


class TowerBlock(nn.Module):
    """One convolution for the maps of all levels. Its norms are inside, so that depth drops all of it."""

    def __init__(self, inputs: Dim, out: Dim, kernel: Dim, levels: int, norm: Norm) -> None:
        super().__init__()
        self.conv = ElasticConv2d(inputs, out, kernel)
        self.norms = nn.ModuleList(norm(out) for _ in range(levels))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [_norm(norm, self.conv(x)).relu() for norm, x in zip(self.norms, maps, strict=True)]


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    """`norm(x)`, by its running statistics where one value a channel has none of its own: the coarsest map of
    a small image, in an epoch's last batch of one. Torch's batch norm raises there."""
    if norm.training and x.numel() == x.size(1):
        try:
            return norm.eval()(x)
        finally:
            norm.train()
    return norm(x)


def _flat(maps: list[Tensor], values: int) -> Tensor:
    """[B, anchors x values, H, W] of each level -> [B, all anchors, values]."""
    rows = [x.unflatten(1, (-1, values)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in maps]
    return torch.cat(rows, 1)
