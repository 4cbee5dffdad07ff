"""Faster R-CNN with FPN (arXiv 1506.01497, 1612.03144) over any backbone, elastic in its widths.

Anchors, matching, sampling, box coding, both losses, NMS and RoIAlign are torchvision's, and so are the names
of its layers. What it predicts has as many rows for every image: `candidates` anchors of each level are
thinned out by NMS, `proposals` of them are classified, and where fewer are left the others are empty boxes
with scores of 0. So it can be counted without weights, and exported for any size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import log2
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign, box_convert, nms, roi_align
from torchvision.ops.poolers import initLevelMapper

from models.detector import Batch, Network
from models.detectors.anchors import anchors_at, check_anchors, decoded, flat
from models.detectors.fpn import Fpn, levels_of
from models.elastic.blocks import ConvBlock, LinearBlock, Norm
from models.elastic.dims import Dim, combine
from models.elastic.layers import ElasticConv2d, ElasticDepth, ElasticLinear
from models.elastic.parts import Part
from models.elastic.stages import Backbone, norm_of
from models.foreign_names import ClassRows, backbones, faster_head, fpn
from utils.errors import UserError

# Dims of each part -> their value where the YAML is silent (None: it must say); depth -> number of stages.
PARTS = {
    "neck": {"depth": 2, "out_channel": 256, "kernel_size": [1, 3]},  # laterals, then one output a level
    "head": {"depth": 1, "out_channel": 1024},  # linear layers of the second stage
}
OPTIONS = {
    "anchor_scales": [8.0],  # sides of anchors in strides of their level
    "anchor_ratios": [0.5, 1.0, 2.0],
    "candidates": 1000,  # anchors of each level that enter NMS
    "proposals": 1000,  # what is left of them for the second stage
    "canonical": 224,  # pixels of a box that is looked at on the map of stride 16
    "rpn_convs": 1,  # before the first stage predicts
    "head_convs": 0,  # before the linear layers: with 4 of them, one is enough (4conv1fc)
    "synchronised_norm": False,
}
SIDE = 7  # of what RoIAlign cuts out
SAMPLES = {"rpn": (256, 0.5), "box": (512, 0.25)}  # an image's anchors and proposals to learn from: objects'
GRID = 64  # NMS decides by boxes in 64ths of a pixel, so that it decides alike wherever they are moved to
ROWS = 5000  # of an image, at most
Raw = dict[str, Any]


def build(
    backbone: Backbone, stride: int, parts: Mapping[str, Part], nc: int, options: Mapping[str, Any]
) -> Network:
    """Over any backbone. Raises UserError for options and necks that cannot be."""
    check_anchors(options)
    for key, least in (
        ("candidates", 1),
        ("proposals", 1),
        ("canonical", 1),
        ("rpn_convs", 0),
        ("head_convs", 0),
    ):
        given = options[key]
        if isinstance(given, bool) or not isinstance(given, int) or given < least:
            raise UserError(f"option {key} should be a whole number, {least} or more, got {given!r}")
    most = options["candidates"] * parts["neck"].depth[1].largest
    if options["proposals"] > most:
        raise UserError(
            f"option proposals should be at most candidates x levels, {most}, got {options['proposals']}"
        )
    return FasterRcnn(backbone, stride, parts["neck"], parts["head"], nc, options)


class FasterRcnn(Network):
    """Raw output: a dict.

    feats: maps of the neck that the second stage looks at. anchors [A, 4], objectness [B, A], offsets
    [B, A, 4]: of the first stage. proposals [B, P, 4] xyxy in pixels, real [B, P]: whether each is one.
    In eval mode also logits [B, P, 1 + nc] and shifts [B, P, 1 + nc, 4] of the second stage, the background
    first; in training that stage sees a sample of proposals, which `losses` takes.
    """

    aliases = (*backbones(), *fpn(), *faster_head())

    def __init__(
        self, backbone: Backbone, stride: int, neck: Part, head: Part, nc: int, options: Mapping[str, Any]
    ) -> None:
        laterals, levels = levels_of(neck, len(backbone.widths))
        strides = [stride >> (laterals - 1) << i for i in range(levels)]
        super().__init__(nc, stride, strides[-1])
        rows = {"cls_score": ClassRows(before=1), "bbox_pred": ClassRows(before=1, inner=4)}
        self.class_rows = {f"roi_heads.box_predictor.{name}": of for name, of in rows.items()}
        self.candidates_a_level, self.proposals = options["candidates"], options["proposals"]
        self.strides = strides[:laterals]
        backbone.begin()
        self.backbone = backbone
        self.neck = Fpn(neck, backbone.widths[-laterals:], levels, pooled=True)
        width, norm = neck.dim("out_channel", 1), norm_of(options)

        ratios, scales = options["anchor_ratios"], options["anchor_scales"]
        sizes = tuple(tuple(s * scale for scale in scales) for s in strides)
        anchors = AnchorGenerator(sizes, (tuple(ratios),) * levels)
        first = FirstStage(width, len(ratios) * len(scales), options["rpn_convs"])
        self.rpn = RegionProposalNetwork(anchors, first, 0.7, 0.3, *SAMPLES["rpn"], {}, {}, 0.7)
        pool = MultiScaleRoIAlign([str(i) for i in range(laterals)], SIDE, 2)
        pool.scales = [1 / s for s in self.strides]
        k = [int(log2(s)) for s in self.strides]
        pool.map_levels = initLevelMapper(k[0], k[-1], canonical_scale=options["canonical"])
        self.roi_heads = RoIHeads(
            pool,
            BoxHead(head, width, options["head_convs"], norm),
            BoxPredictor(head.last("out_channel", 0), 1 + nc),
            *(0.5, 0.5, *SAMPLES["box"], None, 0.05, 0.5, 100),
        )

    def raw(self, images: Tensor) -> Raw:
        """H and W multiples of `stride`."""
        maps = self.neck(self.backbone(images))
        objectness, offsets = self.rpn.head(maps)
        cells = self.rpn.anchor_generator.cell_anchors
        anchors = [anchors_at(c, x, images) for c, x in zip(cells, objectness, strict=True)]
        raw: Raw = {
            "feats": tuple(maps[: len(self.strides)]),
            "anchors": torch.cat(anchors),
            "objectness": flat(objectness, 1)[..., 0],
            "offsets": flat(offsets, 4),
        }
        with torch.no_grad():
            found = [self._best(*level, images) for level in zip(objectness, offsets, anchors, strict=True)]
            raw["proposals"], raw["real"] = self._thinned(found, images)
        if not self.training:
            raw["logits"], raw["shifts"] = self._second(raw["feats"], raw["proposals"])
        return raw

    def losses(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """`objectness` and `anchors` of the first stage, `cls` and `box` of the second, as torchvision has
        them. In training the samples are drawn by torch's generator; in eval mode they are always the same.
        """
        device = raw["anchors"].device.type
        height, width = batch["img"].shape[-2:]
        scale = raw["anchors"].new_tensor([width, height, width, height])
        targets = []
        for i in range(len(batch["img"])):
            mine = batch["batch_idx"] == i
            boxes = box_convert(batch["bboxes"][mine].float(), "cxcywh", "xyxy") * scale
            targets.append({"boxes": boxes, "labels": batch["cls"][mine].long().flatten() + 1})
        with torch.autocast(device, enabled=False), self._samples(raw["anchors"].device):
            anchors = [raw["anchors"]] * len(targets)
            labels, boxes = self.rpn.assign_targets_to_anchors(anchors, targets)
            wanted = self.rpn.box_coder.encode(boxes, anchors)
            found = raw["objectness"].float().flatten(), raw["offsets"].float().flatten(0, 1)
            objectness, first = self.rpn.compute_loss(*found, labels, wanted)
            proposals = [boxes[real] for boxes, real in zip(raw["proposals"], raw["real"], strict=True)]
            chosen, _, labels, wanted = self.roi_heads.select_training_samples(proposals, targets)
            maps = {str(i): x.float() for i, x in enumerate(raw["feats"])}
            pooled = self.roi_heads.box_roi_pool(maps, chosen, [(height, width)] * len(targets))
        logits, shifts = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        with torch.autocast(device, enabled=False):
            cls, second = fastrcnn_loss(logits.float(), shifts.float(), labels, wanted)
        return {"objectness": objectness, "anchors": first, "cls": cls, "box": second}

    def decode(self, raw: Raw, images: Tensor) -> tuple[Tensor, Tensor]:
        """A row for each class of each proposal, of no other class, because each has a box of its own; the
        best `ROWS` where they are more."""
        logits, shifts, proposals = raw["logits"].float(), raw["shifts"].float(), raw["proposals"]
        own = logits.softmax(-1)[..., 1:] * raw["real"][..., None]
        coder = self.roi_heads.box_coder
        boxes = decoded(shifts[:, :, 1:], proposals[:, :, None], coder.bbox_xform_clip, coder.weights)
        boxes, own = _inside(boxes, images) * raw["real"][..., None, None], own.flatten(1)
        scores = own[..., None] * torch.eye(self.nc, device=own.device).repeat(self.proposals, 1)
        boxes = boxes.flatten(1, 2)
        if self.proposals * self.nc <= ROWS:
            return boxes, scores
        kept = own.topk(ROWS, 1).indices.sort(1).values[..., None]
        return _taken(boxes, kept), _taken(scores, kept)

    def _best(
        self, objectness: Tensor, offsets: Tensor, anchors: Tensor, images: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(boxes [B, n, 4], scores [B, n]) of the `candidates` best anchors of a level, in their order. Where
        the level has fewer, the rest are empty, with scores below 0."""
        n = self.candidates_a_level
        scores = F.pad(flat([objectness], 1)[..., 0].float().sigmoid(), (0, n), value=-1.0)
        kept = scores.topk(n, 1).indices.sort(1).values
        moves = _taken(F.pad(flat([offsets], 4).float(), (0, 0, 0, n)), kept[..., None])
        boxes = decoded(moves, F.pad(anchors, (0, 0, 0, n))[kept], self.rpn.box_coder.bbox_xform_clip)
        return _inside(boxes, images), scores.gather(1, kept)

    def _thinned(self, found: list[tuple[Tensor, Tensor]], images: Tensor) -> tuple[Tensor, Tensor]:
        """(proposals [B, P, 4], whether each is one [B, P]) of what `_best` found on each level."""
        boxes, scores = torch.cat([b for b, _ in found], 1), torch.cat([s for _, s in found], 1)
        sides = boxes[..., 2:] - boxes[..., :2]
        scores = scores.where((sides >= self.rpn.min_size).all(-1), torch.full_like(scores, -1.0))
        level = torch.arange(len(found), device=boxes.device).repeat_interleave(self.candidates_a_level)
        image = torch.arange(boxes.shape[0], device=boxes.device)[:, None] * len(found)
        if not boxes.is_meta:  # there it has no meaning, and cannot be
            aside = (image + level)[..., None] * (_sides(images).max() + 1)
            apart = (boxes * GRID).round() / GRID + aside
            kept = nms(apart.flatten(0, 1), scores.flatten(), self.rpn.nms_thresh)
            left = torch.zeros_like(scores.flatten()).scatter(
                0, kept, torch.ones_like(kept, dtype=scores.dtype)
            )
            scores = scores.where(left.view_as(scores) > 0, torch.full_like(scores, -1.0))
        best = scores.topk(self.proposals, 1)
        none = scores.shape[1]  # the number of an empty box, behind all others
        chosen = best.indices.where(best.values >= 0, torch.full_like(best.indices, none)).sort(1).values
        return _taken(F.pad(boxes, (0, 0, 0, 1)), chosen[..., None]), chosen < none

    def _second(self, maps: tuple[Tensor, ...], proposals: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [B, P, 1 + nc], shifts [B, P, 1 + nc, 4]) of proposals [B, P, 4]. Each is cut out of all
        maps, because how many belong to which would be for the data to say."""
        pool, count = self.roi_heads.box_roi_pool, proposals.shape[1]
        image = torch.arange(proposals.shape[0], device=proposals.device)[:, None, None]
        boxes = torch.cat((image.expand(-1, count, 1).to(proposals.dtype), proposals), -1).flatten(0, 1)
        level = pool.map_levels([proposals.flatten(0, 1)])[:, None, None, None]
        pooled: Any = 0
        for i, (x, scale) in enumerate(zip(maps, pool.scales, strict=True)):
            pooled = pooled + roi_align(x.float(), boxes, SIDE, scale, pool.sampling_ratio) * (level == i)
        logits, shifts = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        return logits.unflatten(0, (-1, count)), shifts.unflatten(1, (-1, 4)).unflatten(0, (-1, count))

    @contextmanager
    def _samples(self, device: torch.device) -> Iterator[None]:
        """Inside, torch's generator draws; outside of training it begins anew, and stays as it was."""
        if self.training:
            yield
            return
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            yield


class FirstStage(nn.Module):
    """Whether there is something at an anchor, and where: of each level a map [B, anchors, H, W] and one of
    [B, 4 x anchors, H, W]. All levels share the weights."""

    def __init__(self, width: Dim, anchors: int, convs: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(*(Conv(width) for _ in range(convs)))
        self.cls_logits = ElasticConv2d(width, anchors, 1, bias=True)
        self.bbox_pred = ElasticConv2d(width, 4 * anchors, 1, bias=True)
        for module in self.modules():  # as in the code of the paper
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        maps = [self.conv(x) for x in maps]
        return [self.cls_logits(x) for x in maps], [self.bbox_pred(x) for x in maps]


class Conv(nn.Sequential):
    """3x3 convolution with bias, ReLU."""

    def __init__(self, width: Dim) -> None:
        super().__init__()
        self.conv = ElasticConv2d(width, width, 3, bias=True)
        self.act = nn.ReLU()


class BoxHead(nn.Module):
    """What the second stage makes of cut-outs [n, width, 7, 7]: features [n, out]."""

    def __init__(self, part: Part, width: Dim, convs: int, norm: Norm) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(ConvBlock(width, width, norm=norm) for _ in range(convs)))
        inputs, blocks = combine(lambda w: w * SIDE * SIDE, width), []
        for block in range(part.blocks(0)):
            out = part.dim("out_channel", 0, block)
            blocks.append(LinearBlock(inputs, out, act=nn.ReLU))
            inputs = out
        self.blocks = ElasticDepth(blocks, part.depth[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.convs(x).flatten(1))


class BoxPredictor(nn.Module):
    """(class logits [n, classes], box shifts [n, 4 x classes]); the first class is the background."""

    def __init__(self, inputs: Dim, classes: int) -> None:
        super().__init__()
        self.cls_score, self.bbox_pred = ElasticLinear(inputs, classes), ElasticLinear(inputs, 4 * classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x)


def _sides(images: Tensor) -> Tensor:
    """[width, height, width, height] of the images, read so that exporters see that they may change."""
    height, width = (
        torch.ones_like(x, dtype=torch.float32).sum() for x in (images[0, 0, :, 0], images[0, 0, 0])
    )
    return torch.stack((width, height, width, height))


def _inside(boxes: Tensor, images: Tensor) -> Tensor:
    """The boxes, cut off at the edges of the images."""
    return torch.minimum(boxes.clamp(min=0), _sides(images))


def _taken(rows: Tensor, kept: Tensor) -> Tensor:
    """[B, n, k] of rows [B, N, k], by their numbers [B, n, 1]."""
    return rows.gather(1, kept.expand(-1, -1, rows.shape[-1]))
