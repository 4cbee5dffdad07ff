"""A backbone as a classifier: the mean of its last map, and a linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.detector import Network, evaluating
from models.elastic.blocks import ConvBlock, LinearBlock
from models.elastic.parts import Part
from models.elastic.stages import Backbone
from models.foreign_names import ClassRows, backbones
from utils.errors import unknown
from utils.training.distill import alpha_divergence, kl

PARTS: dict[str, dict[str, Any]] = {}
TASK = "classify"
OPTIONS = {
    "dropout": 0.0,
    "last_channel": 0,
    "label_smoothing": 0.0,
}  # last_channel: of a 1x1 before the mean


def build(
    backbone: Backbone, stride: int, parts: Mapping[str, Part], nc: int, options: Mapping[str, Any]
) -> Network:
    return Classifier(
        backbone, stride, nc, options["dropout"], options["last_channel"], options["label_smoothing"]
    )


class Classifier(Network):
    """Raw output: logits [B, nc]."""

    outputs = ("probabilities",)
    aliases = (*backbones(), (r"fc\.(.*)", r"head.linear.\1"))
    old_names = {"stem.": "backbone.stem.", "stages.": "backbone.stages."}

    def __init__(
        self,
        backbone: Backbone,
        stride: int,
        nc: int,
        dropout: float = 0.0,
        last: int = 0,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(nc, stride)
        self.smoothing = smoothing
        self.class_rows = {"head.linear": ClassRows()}
        self.backbone = backbone
        width = backbone.widths[-1]
        self.last = ConvBlock(width, last, 1) if last else nn.Identity()
        self.head = LinearBlock(last or width, nc, dropout)
        backbone.begin()

    def raw(self, images: Tensor) -> Tensor:
        """H and W of any size, costs are stated at multiples of `stride`."""
        return self.head(self.last(self.backbone(images)[-1]).mean((2, 3)))

    def losses(self, raw: Tensor, batch: Any) -> dict[str, Tensor]:
        """`cls`: cross-entropy."""
        labels = batch["cls"].long().flatten()
        return {"cls": F.cross_entropy(raw.float(), labels, label_smoothing=self.smoothing)}

    def distil(
        self, raw: Tensor, teacher: Tensor, divergence: str = "kl", temperature: float = 1.0
    ) -> dict[str, Tensor]:
        """`cls`: towards a teacher's logits on the same images. divergence: kl, or alpha (AlphaNet)."""
        if divergence not in ("kl", "alpha"):
            raise unknown("divergence", divergence, ("kl", "alpha"))
        student, taught = raw.float() / temperature, teacher.float() / temperature
        loss = kl(student, taught) if divergence == "kl" else alpha_divergence(student, taught)
        return {"cls": loss * temperature**2}

    def decode(self, raw: Tensor, images: Tensor) -> tuple[Tensor]:
        """Probabilities [B, nc]; they sum to 1."""
        return (raw.float().softmax(1),)

    @torch.no_grad()
    def predict(self, images: Tensor, *_: Any, **__: Any) -> Tensor:
        """Probabilities [B, nc]. Leaves train or eval mode as it was."""
        with evaluating(self):
            return self.decode(self.raw(images), images)[0]
