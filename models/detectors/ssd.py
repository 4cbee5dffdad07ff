"""SSD (arXiv 1512.02325) with separable predictors (SSDLite), as in aw_nas's OFA + SSD: on the last maps of a
backbone and further ones of stride 2. The neck's blocks may be elastic in kernels and expansion.

Default boxes and box coding are torchvision's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.ops import box_convert, box_iou, sigmoid_focal_loss

from models.backbones.mobilenet import InvertedResidual
from models.detector import Batch, Network, evaluating
from models.detectors.anchors import flat
from models.elastic.blocks import ConvBlock, Norm
from models.elastic.dims import Dim, fixed
from models.elastic.layers import ElasticConv2d
from models.elastic.parts import Part
from models.elastic.slicing import mean_over_ranks, ranks
from models.elastic.stages import Backbone, norm_of
from models.foreign_names import ClassRows, backbones
from utils.errors import UserError, unknown

# Dims of each part -> their value where the YAML is silent (None: it must say); depth -> number of stages.
PARTS = {
    "neck": {"depth": None, "out_channel": None, "kernel_size": 3, "expand_ratio": 0.5},  # a map a stage
    "head": {"depth": 1, "kernel_size": 3},
}
STRIDE = 4  # its maps are rounded up, so 300 pixels will do
# loss: focal (a sigmoid a class) or multibox (softmax with the background, hard negatives). levels: how many
# of the backbone's maps. scales: sides of boxes as shares of the image, one a map and one more.
# aspect_ratios: one list a map, beside 1.
OPTIONS = {
    "loss": "focal",
    "levels": 2,
    "scales": [0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05],
    "aspect_ratios": [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
    "synchronised_norm": False,
}
PRIOR = 0.01  # initial score of every class at every anchor, with the focal loss (arXiv 1708.02002)
NEGATIVES = 3  # for each positive anchor, with the multibox loss
Raw = tuple[Tensor, Tensor, Tensor]
Targets = list[tuple[Tensor, Tensor, Tensor]]


def build(
    backbone: Backbone, stride: int, parts: Mapping[str, Part], nc: int, options: Mapping[str, Any]
) -> Network:
    """Over any backbone. Raises UserError for options and necks that cannot be."""
    if options["loss"] not in ("focal", "multibox"):
        raise unknown("option loss", options["loss"], ("focal", "multibox"))
    levels, maps = options["levels"], len(backbone.widths)
    if isinstance(levels, bool) or levels not in range(1, maps + 1):
        raise UserError(f"option levels should be 1 to {maps}, the maps of the backbone, got {levels!r}")
    if any(depth.values != [1] for depth in parts["neck"].depth):
        blocks = [depth.values for depth in parts["neck"].depth]
        raise UserError(f"neck.depth should be a 1 for each map, got {blocks}")
    maps = levels + parts["neck"].stages
    for key, count in (("aspect_ratios", maps), ("scales", maps + 1)):
        given = options[key]
        rows = given if isinstance(given, list) else [None]
        numbers = [v for row in rows for v in (row if isinstance(row, list) else [row])]
        nested = all(isinstance(row, list) == (key == "aspect_ratios") for row in rows)
        if len(rows) != count or not nested or not all(_positive(v) for v in numbers):
            kind = "lists of positive numbers, one a map," if key == "aspect_ratios" else "positive numbers"
            raise UserError(f"option {key} should be {count} {kind} for {maps} maps, got {given!r}")
    return SSD(backbone, stride, parts["neck"], parts["head"], nc, options)


class SSD(Network):
    """Raw output: class logits [B, A, nc, or 1 + nc with multibox], box offsets [B, A, 4], and the anchors
    [A, 4], xyxy in pixels; from the finest map to the coarsest, row by row, those of a position together.
    """

    aliases = backbones()

    def __init__(
        self, backbone: Backbone, stride: int, neck: Part, head: Part, nc: int, options: Mapping[str, Any]
    ) -> None:
        super().__init__(nc, STRIDE, stride << neck.stages)
        self.multibox = options["loss"] == "multibox"
        self.kinds = nc + self.multibox  # the background is column 0, where there is one
        norm, levels = norm_of(options), options["levels"]
        self.backbone = backbone
        blocks: list[nn.Module] = []
        widths = list(backbone.widths[-levels:])
        for stage in range(neck.stages):
            out, kernel = neck.dim("out_channel", stage), neck.dim("kernel_size", stage)
            expand = neck.dim("expand_ratio", stage)
            blocks.append(InvertedResidual(widths[-1], out, kernel, 2, expand, norm=norm))
            widths.append(out)
        self.neck = nn.ModuleList(blocks)
        ratios, scales = options["aspect_ratios"], options["scales"]
        each, kernel = [2 + 2 * len(r) for r in ratios], head.dim("kernel_size")
        sizes = list(zip(widths, each, strict=True))
        self.cls = nn.ModuleList(Predictor(w, n * self.kinds, kernel, norm) for w, n in sizes)
        self.box = nn.ModuleList(Predictor(w, n * 4, kernel, norm) for w, n in sizes)
        self.class_rows = {
            f"cls.{i}.predict": ClassRows(before=int(self.multibox)) for i in range(len(widths))
        }
        backbone.begin()
        self._begin()
        self.levels = levels
        self.coded = {"scales": scales, "aspect_ratios": ratios, "maps": [levels, neck.stages]}
        self.anchors = DefaultBoxGenerator(ratios, scales=scales)
        self.coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
        self.matcher = Matcher(0.5, 0.4)

    def _begin(self) -> None:
        for part in (self.neck, self.cls, self.box):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, std=0.03)  # as torchvision's SSDLite
        for predictor in self.cls:
            bias = predictor.predict.bias  # type: ignore[union-attr]
            nn.init.constant_(bias, 0.0 if self.multibox else -math.log((1 - PRIOR) / PRIOR))  # type: ignore

    def raw(self, images: Tensor) -> Raw:
        maps = self.backbone(images)[-self.levels :]
        with ExitStack() as stack:
            if self.training and len(images) == 1:
                # The last maps may be one position, of which one image has no statistics: those there are do.
                for part in (self.neck, self.cls, self.box):
                    stack.enter_context(evaluating(part))
            for block in self.neck:
                maps.append(block(maps[-1]))
            logits = [predict(x) for predict, x in zip(self.cls, maps, strict=True)]
            offsets = [predict(x) for predict, x in zip(self.box, maps, strict=True)]
        anchors = torch.cat([self._anchors(i, x, images) for i, x in enumerate(logits)])
        return flat(logits, self.kinds), flat(offsets, 4), anchors

    def losses(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """`cls` and `box` (smooth L1), means over the images.

        focal: each image's sums are divided by its matched anchors (at least 1: images without objects teach
        what background is; aw_nas leaves them out). multibox: the batch's sums by its matched anchors, in
        training those of the batches of all ranks.
        """
        with torch.autocast(raw[0].device.type, enabled=False):
            logits, offsets, targets = raw[0].float(), raw[1].float(), self._targets(raw, batch)
            counts: list[float] = [int((matched >= 0).sum()) for matched, _, _ in targets]
            if self.multibox:
                total = logits.new_tensor(float(sum(counts)))
                total = mean_over_ranks(total) if self.training else total
                counts = [max(1 / ranks(), total.item()) / len(targets)] * len(targets)
            cls_losses, box_losses = [], []
            for i, (matched, boxes, labels) in enumerate(targets):
                positive = matched >= 0
                of = matched[positive]
                classify = self._multibox if self.multibox else self._focal
                count = max(1, counts[i]) if not self.multibox else counts[i]
                cls_losses.append(classify(logits[i], matched, labels) / count)
                wanted = self.coder.encode_single(boxes[of], raw[2][positive])
                beta, mean = (1.0, 1) if self.multibox else (1 / 9, 4)
                apart = F.smooth_l1_loss(offsets[i][positive], wanted, beta=beta, reduction="sum")
                box_losses.append(apart / mean / count)
        return {"cls": torch.stack(cls_losses).mean(), "box": torch.stack(box_losses).mean()}

    def distil(
        self,
        raw: Raw,
        teacher: Raw,
        batch: Batch | None = None,
        beta: float = 1.5,
        gamma: float = 1.0,
        temperature: float = 2.0,
        anchors: str = "positive",
    ) -> dict[str, Tensor]:
        """`cls`: adaptive distillation (arXiv 1901.00366) of class scores towards a teacher's raw output on
        the same images: divergences, those that are large or whose teacher is unsure weighted up, by
        (1 - exp(-KL - beta H(teacher))) ^ gamma. Mean over the images of the sum over anchors, divided by the
        image's matched ones.

        anchors: positive, those that an object of `batch` is matched to; all, the easy background too, which
            aw_nas's authors saw to cost accuracy. Without a batch all.
        """
        if anchors not in ("positive", "all"):
            raise unknown("option anchors of distillation", anchors, ("positive", "all"))
        if raw[0].shape != teacher[0].shape:
            raise UserError(f"a teacher of {list(teacher[0].shape[1:])} class scores an image cannot teach")
        with torch.autocast(raw[0].device.type, enabled=False):
            student, taught = raw[0].float() / temperature, teacher[0].float() / temperature
            cross, own = self._entropies(student, taught)
            divergence = (cross - own).clamp(min=0)  # which rounding alone takes below 0
            weight = (1 - torch.exp(-divergence - beta * own)) ** gamma
            apart = (weight * divergence).sum(-1)  # [B, A]
            counts = apart.new_ones(len(apart))
            if batch is not None:
                positive = torch.stack([m >= 0 for m, _, _ in self._targets(raw, batch)])
                apart = apart * positive if anchors == "positive" else apart
                counts = positive.sum(1).clamp(min=1).to(apart)
        return {"cls": (apart.sum(1) / counts).mean()}

    def _entropies(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """(H(teacher, student), H(teacher)), [B, A, classes] of sigmoids, [B, A, 1] of a softmax."""
        if self.multibox:
            q = teacher.softmax(-1)
            logs = (student.log_softmax(-1), teacher.log_softmax(-1))
            cross, own = (-(q * log).sum(-1, keepdim=True) for log in logs)
            return cross, own
        q = teacher.sigmoid()
        cross = F.binary_cross_entropy_with_logits(student, q, reduction="none")
        return cross, F.binary_cross_entropy_with_logits(teacher, q, reduction="none")

    def decode(self, raw: Raw, images: Tensor) -> tuple[Tensor, Tensor]:
        """The same numbers as torchvision's box coder gives, cut at the edges of the image."""
        logits, offsets, anchors = raw[0].float(), raw[1].float(), raw[2]
        sides = anchors[:, 2:] - anchors[:, :2]
        centres = offsets[..., :2] / 10 * sides + (anchors[:, :2] + sides / 2)
        halves = (offsets[..., 2:] / 5).clamp(max=self.coder.bbox_xform_clip).exp() * sides / 2
        scores = logits.softmax(-1)[..., 1:] if self.multibox else logits.sigmoid()
        return _inside(torch.cat((centres - halves, centres + halves), -1), images), scores

    def _anchors(self, level: int, x: Tensor, images: Tensor) -> Tensor:
        """[h x w x anchors of a position, 4] of a map, xyxy in pixels, as of torchvision's generator."""
        (h, w), (height, width) = x.shape[-2:], images.shape[-2:]
        ys = ((torch.arange(h, device=x.device) + 0.5) / h)[:, None].expand(h, w).flatten()
        xs = ((torch.arange(w, device=x.device) + 0.5) / w)[None].expand(h, w).flatten()
        halves = self.anchors._wh_pairs[level].to(x.device).clamp(0, 1)[None] / 2
        centres = torch.stack((xs, ys), 1)[:, None]
        corners = torch.cat((centres - halves, centres + halves), -1).flatten(0, 1)
        x1, y1, x2, y2 = corners.unbind(1)
        return torch.stack((x1 * width, y1 * height, x2 * width, y2 * height), 1)

    @torch.no_grad()
    def _targets(self, raw: Raw, batch: Batch) -> Targets:
        """Of each image: number of the object that each anchor answers for [A], negative where there is none;
        boxes [n, 4] xyxy in pixels; labels [n]. Objects without an area are left out."""
        images, found = batch["img"], []
        scale = images.new_tensor([images.size(3), images.size(2)] * 2).float()
        for i in range(len(images)):
            mine = (batch["batch_idx"] == i) & (batch["bboxes"][:, 2:] > 0).all(1)
            boxes = box_convert(batch["bboxes"][mine].float(), "cxcywh", "xyxy") * scale
            found.append((self._match(boxes, raw[2]), boxes, batch["cls"][mine].long().flatten()))
        return found

    def _match(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """IoU 0.5 or more is a match, below 0.4 background, between is not told; each object's best anchor is
        its own whatever their IoU."""
        if len(boxes) == 0:
            return torch.full((len(anchors),), Matcher.BELOW_LOW_THRESHOLD, device=anchors.device)
        quality = box_iou(boxes, anchors)
        matched = self.matcher(quality)
        matched[quality.argmax(1)] = torch.arange(len(boxes), device=anchors.device)
        return matched

    def _focal(self, logits: Tensor, matched: Tensor, labels: Tensor) -> Tensor:
        """Sum over the anchors that are told what they are."""
        targets, positive = torch.zeros_like(logits), matched >= 0
        targets[positive, labels[matched[positive]]] = 1.0
        told = matched != Matcher.BETWEEN_THRESHOLDS
        return sigmoid_focal_loss(logits[told], targets[told], reduction="sum")

    def _multibox(self, logits: Tensor, matched: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy summed over positive anchors and three times as many negative ones, the hardest."""
        positive, negative = matched >= 0, matched == Matcher.BELOW_LOW_THRESHOLD
        kinds = torch.zeros_like(matched)
        kinds[positive] = 1 + labels[matched[positive]]
        losses = F.cross_entropy(logits, kinds, reduction="none")
        hardest = losses[negative].sort(descending=True).values[: NEGATIVES * int(positive.sum())]
        return losses[positive].sum() + hardest.sum()


class Predictor(nn.Sequential):
    """k x k on each channel, then 1x1 to the numbers of all anchors of a position."""

    def __init__(self, inputs: Dim, out: int, kernel: Dim, norm: Norm) -> None:
        super().__init__()
        self.spatial = ConvBlock(inputs, inputs, kernel, groups=inputs, norm=norm)
        self.predict = ElasticConv2d(inputs, fixed(out), 1, bias=True)
        nn.init.zeros_(self.predict.bias)  # type: ignore[arg-type]


def _inside(boxes: Tensor, images: Tensor) -> Tensor:
    """xyxy in pixels, cut at the edges: by shares, so that an exporter can follow it to any size."""
    height, width = images.shape[-2:]
    sides = zip(boxes.unbind(-1), (width, height, width, height), strict=True)
    return torch.stack([(x / side).clamp(0, 1) * side for x, side in sides], -1)


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
