"""RegNet (arXiv 2003.13678) as a classifier, elastic in width, depth and group width, as in
United-Perception's BigNAS configs. A network file for `models/elastic/space.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.elastic.blocks import SYNCHRONISED, Bottleneck, ConvBlock, LinearBlock, Norm
from models.elastic.layers import ElasticBatchNorm2d, ElasticDepth
from utils.distill import alpha_divergence, kl
from utils.errors import UserError, unknown

if TYPE_CHECKING:
    from models.elastic.space import ElasticSpace

# Dims of each part -> their value where the YAML is silent (None: it must say); depth -> number of stages.
PARTS = {
    "backbone": {
        "depth": 5,  # the stem, then four stages
        "out_channel": None,
        "kernel_size": 3,
        "expand_ratio": 1,
        "group_width": None,
    },
}
STRIDE = 32
TASK = "classify"
OPTIONS = {"squeeze": 0.0, "dropout": 0.0, "kernel_transform": False, "synchronised_norm": False}


def build(space: ElasticSpace) -> RegNet:
    """The network of a space, fresh weights of torch's generator."""
    return RegNet(space)


class RegNet(nn.Module):
    """Stem (stride 2), four stages of bottlenecks (each begins with stride 2), mean, linear.

    Batches: `img` [B, 3, H, W] float32 RGB 0..1 and `cls` [B] or [B, 1] class numbers from 0.
    """

    def __init__(self, space: ElasticSpace) -> None:
        super().__init__()
        part, options = space.parts["backbone"], space.options
        norm: Norm = SYNCHRONISED if options["synchronised_norm"] else ElasticBatchNorm2d
        width = part.dim("out_channel", 0)
        self.stem = ConvBlock(space.ch, width, part.dim("kernel_size", 0), 2, norm=norm)
        stages = []
        for stage in range(1, part.stages):
            blocks = []
            for block in range(part.blocks(stage)):
                out = part.dim("out_channel", stage, block)
                blocks.append(
                    Bottleneck(
                        width,
                        out,
                        part.dim("kernel_size", stage, block),
                        2 if block == 0 else 1,
                        part.dim("expand_ratio", stage, block),
                        part.dim("group_width", stage, block),
                        options["squeeze"],
                        norm,
                        bool(options["kernel_transform"]),
                    )
                )
                width = out
            width = part.last("out_channel", stage)
            stages.append(ElasticDepth(blocks, part.depth[stage]))
        self.stages = nn.Sequential(*stages)
        self.head = LinearBlock(width, space.nc, options["dropout"])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.stride, self.nc = STRIDE, space.nc
        self.names = [str(i) for i in range(space.nc)]

    @property
    def names(self) -> list[str]:
        """Class names in the order of the labels."""
        return self._names

    @names.setter
    def names(self, names: Sequence[str]) -> None:
        if len(names) != self.nc:
            raise UserError(f"{len(names)} class names for a classifier of {self.nc} classes")
        self._names = list(names)

    def forward(self, x: dict[str, Tensor] | Tensor) -> Any:
        """The loss of a batch, or logits [B, nc] for images: one door for wrappers (DDP)."""
        return self.loss(x) if isinstance(x, dict) else self.raw(x)

    def raw(self, images: Tensor) -> Tensor:
        """Logits [B, nc]; H and W of any size, costs are stated at multiples of `stride`."""
        return self.head(self.stages(self.stem(images)).mean((2, 3)))

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`cls`: cross-entropy, float32, a mean over the images."""
        return self.losses(self.raw(batch["img"]), batch)

    def losses(self, raw: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same from logits that are at hand."""
        return {"cls": F.cross_entropy(raw.float(), batch["cls"].long().flatten())}

    def distil(
        self, raw: Tensor, teacher: Tensor, divergence: str = "kl", temperature: float = 1.0
    ) -> dict[str, Tensor]:
        """`cls`: towards a teacher's logits on the same images. divergence: kl, or alpha (AlphaNet)."""
        if divergence not in ("kl", "alpha"):
            raise unknown("divergence", divergence, ("kl", "alpha"))
        student, taught = raw.float() / temperature, teacher.float() / temperature
        loss = kl(student, taught) if divergence == "kl" else alpha_divergence(student, taught)
        return {"cls": loss * temperature**2}

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Probabilities [B, nc]. Leaves train or eval mode as it was."""
        modes = [(m, m.training) for m in self.modules()]
        self.eval()
        try:
            return self.raw(images).float().softmax(1)
        finally:
            for module, mode in modes:
                module.training = mode
