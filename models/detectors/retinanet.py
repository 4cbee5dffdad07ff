"""RetinaNet (arXiv 1708.02002), elastic in the widths of FPN and towers and in their depth, as in
United-Perception's BigNAS configs.

Cells of anchors, matching, box coding, focal loss and NMS are torchvision's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_convert, box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from models.detector import Batch, Network
from models.detectors.anchors import anchors_at, check_anchors, decoded, flat
from models.detectors.fpn import Fpn, levels_of
from models.elastic.blocks import Norm
from models.elastic.dims import Dim
from models.elastic.layers import ElasticConv2d, ElasticDepth
from models.elastic.parts import Part
from models.elastic.stages import Backbone, norm_of
from models.foreign_names import ClassRows, backbones, fpn, retina_head
from utils.training.distill import confidence, soft_scores, weighted

# Dims of each part -> their value where the YAML is silent (None: it must say); depth -> number of stages.
PARTS = {
    "neck": {"depth": 2, "out_channel": 128, "kernel_size": [1, 3]},  # laterals, then one output a level
    "head": {"depth": 1, "out_channel": None, "kernel_size": 3},  # both towers
}
OPTIONS = {
    "anchor_scales": [4.0, 5.0397, 6.3496],  # sides of anchors in strides of their level
    "anchor_ratios": [0.5, 1.0, 2.0],
    "synchronised_norm": False,
}
PRIOR = 0.01  # initial score of every class at every anchor (section 4.1 of the paper)
Raw = tuple[Tensor, Tensor, Tensor]


def build(
    backbone: Backbone, stride: int, parts: Mapping[str, Part], nc: int, options: Mapping[str, Any]
) -> Network:
    """Over any backbone. Raises UserError for options and necks that cannot be."""
    check_anchors(options)
    return RetinaNet(backbone, stride, parts["neck"], parts["head"], nc, options)


class RetinaNet(Network):
    """Raw output: class logits [B, A, nc] and box offsets [B, A, 4] of all A anchors, and those [A, 4], xyxy
    in pixels; from the finest level to the coarsest, row by row, the anchors of a position together.
    """

    aliases = (*backbones(), *fpn(), *retina_head())

    def __init__(
        self, backbone: Backbone, stride: int, neck: Part, head: Part, nc: int, options: Mapping[str, Any]
    ) -> None:
        laterals, levels = levels_of(neck, len(backbone.widths))
        strides = [stride >> (laterals - 1) << i for i in range(levels)]
        super().__init__(nc, stride, strides[-1])
        self.class_rows = {"cls.predict": ClassRows()}
        norm = norm_of(options)
        backbone.begin()
        self.backbone = backbone
        self.neck = Fpn(neck, backbone.widths[-laterals:], levels)
        ratios, scales = options["anchor_ratios"], options["anchor_scales"]
        anchors, width = len(ratios) * len(scales), neck.dim("out_channel", 1)
        self.cls = Tower(head, width, levels, anchors * nc, norm)
        self.box = Tower(head, width, levels, anchors * 4, norm)
        nn.init.constant_(self.cls.predict.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

        sizes = tuple(tuple(s * scale for scale in scales) for s in strides)
        self.coded = {"sizes": sizes, "ratios": tuple(ratios)}
        self.anchors = AnchorGenerator(sizes, (tuple(ratios),) * levels)
        self.coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
        self.matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)

    def raw(self, images: Tensor) -> Raw:
        """H and W multiples of `stride`."""
        maps = self.neck(self.backbone(images))
        logits, offsets = self.cls(maps), self.box(maps)
        anchors = torch.cat(
            [anchors_at(c, x, images) for c, x in zip(self.anchors.cell_anchors, logits, strict=True)]
        )
        return flat(logits, self.nc), flat(offsets, 4), anchors

    def losses(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """`cls` (focal) and `box` (GIoU). Each image's sums are divided by its matched anchors (at least 1),
        as in the paper."""
        with torch.autocast(raw[0].device.type, enabled=False):
            logits, offsets = raw[0].float(), raw[1].float()
            images = batch["img"]
            anchors = raw[2]
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

    def distil(self, raw: Raw, teacher: Raw) -> dict[str, Tensor]:
        """`cls` and `box`: towards a teacher's raw output on the same images, at every anchor.

        Scores by quality focal loss; offsets by smooth L1, weighted by how sure the teacher is of something
        there. Both are divided by the sum of those weights.
        """
        with torch.autocast(raw[0].device.type, enabled=False):
            sure = confidence(teacher[0].float(), -1)
            apart = F.smooth_l1_loss(raw[1].float(), teacher[1].float(), beta=0.1, reduction="none").sum(-1)
            cls = soft_scores(raw[0].float(), teacher[0].float(), sure)
        return {"cls": cls, "box": weighted(apart, sure)}

    def decode(self, raw: Raw, images: Tensor) -> tuple[Tensor, Tensor]:
        """The same numbers as torchvision's box coder gives."""
        logits, offsets, anchors = raw[0].float(), raw[1].float(), raw[2]
        return decoded(offsets, anchors, self.coder.bbox_xform_clip), logits.sigmoid()

    def _match(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Number of the box that each anchor answers for; negative where there is none."""
        if len(boxes) == 0:
            return torch.full((len(anchors),), Matcher.BELOW_LOW_THRESHOLD, device=anchors.device)
        return self.matcher(box_iou(boxes, anchors))


class Tower(nn.Module):
    """Convolutions shared by all levels, with norms of each level's own, and a last one that predicts."""

    def __init__(self, part: Part, inputs: Dim, levels: int, out: int, norm: Norm) -> None:
        super().__init__()
        blocks, width = [], inputs
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
