"""What a network is to the rest of the house: two verbs, `loss` and `predict`, and the tensors they speak in.

`Network` is the whole contract. A network of one's own has `raw`, `losses` and `decode`; the rest follows.
Decoding has one place: `predict`, `.onnx` and `.pt2` all come from `decode`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from models.foreign_names import Alias, ClassRows
from utils.errors import UserError
from utils.training.distill import no_distillation


class Batch(TypedDict):
    """Images of one size with their boxes; N is the number of boxes in the whole batch, possibly 0.

    A classifier's batches have `img`, and `cls` [B] or [B, 1].
    """

    img: Tensor  # [B, 3, H, W] float32, RGB, 0..1
    bboxes: Tensor  # [N, 4] float32, x y w h of the centre form, as shares of the image, 0..1
    cls: Tensor  # [N, 1] float32, class numbers from 0
    batch_idx: Tensor  # [N] float32 or int64, which image of the batch each box is in


class Detections(TypedDict):
    """What was found in one image, best first."""

    boxes: Tensor  # [n, 4] float32, x1 y1 x2 y2 in pixels of the image given; may reach beyond its edges
    scores: Tensor  # [n] float32, 0..1, descending
    labels: Tensor  # [n] int64, 0 is the first class (no background class)


class Network(nn.Module):
    """An nn.Module that can be trained and can answer; elastic, or plain.

    Attributes:
        nc: number of classes. names: theirs, in the order of the labels.
        stride: H and W of images must be multiples of it. coarsest: stride of the coarsest map.
        outputs: what `decode` gives, in order.
        candidates: boxes of an image that enter NMS, the best: untrained, it would spend seconds on noise.
        old_names: heads of names in older weight files -> what they are now.
        aliases: what layers are called in other people's weight files; class_rows: layer -> how its rows hang
            on classes. Both as models/foreign_names.py says.
        coded: what the numbers of a raw output refer to, beside its shapes: anchors. A teacher has the same.
    """

    outputs: tuple[str, ...] = ("boxes", "scores")
    candidates = 5000
    old_names: ClassVar[Mapping[str, str]] = {}
    aliases: Sequence[Alias] = ()
    class_rows: Mapping[str, ClassRows] = {}
    coded: Mapping[str, Any] = {}

    def __init__(self, nc: int, stride: int, coarsest: int | None = None) -> None:
        super().__init__()
        self.nc, self.stride, self.coarsest = nc, stride, coarsest or stride
        self._names = [str(i) for i in range(nc)]
        if self.old_names:
            self.register_load_state_dict_pre_hook(_renamed)

    @property
    def names(self) -> list[str]:
        """Class names in the order of the labels."""
        return self._names

    @names.setter
    def names(self, names: Sequence[str]) -> None:
        if len(names) != self.nc:
            kind = "detector" if "boxes" in self.outputs else "classifier"
            raise UserError(f"{len(names)} class names for a {kind} of {self.nc} classes")
        self._names = list(names)

    # What a network has to say.

    def raw(self, images: Tensor) -> Any:
        """All that losses, distillation and decoding need, for images [B, 3, H, W] float32 RGB 0..1."""
        raise NotImplementedError(f"{type(self).__name__} has no `raw`")

    def losses(self, raw: Any, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses, float32, of a raw output; their sum is minimised, a mean over the images."""
        raise NotImplementedError(f"{type(self).__name__} has no `losses`")

    def decode(self, raw: Any, images: Tensor) -> tuple[Tensor, ...]:
        """boxes [B, A, 4] float32 xyxy in pixels and scores [B, A, nc] float32 0..1, before NMS.

        Written so that exporters can follow it to any image size: shapes are read from tensors.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `decode`")

    def distil(self, raw: Any, teacher: Any) -> dict[str, Tensor]:
        """Named losses of a raw output towards a teacher's, detached, on the same images.

        Options of `supernet.distil` are further parameters. One that is called `batch` is given the batch.
        """
        raise no_distillation(self)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each pass of a training over its images: its number, from 0, of `epochs`."""

    # What follows.

    @property
    def distils(self) -> bool:
        """Whether there is a loss towards a teacher's raw output."""
        return type(self).distil is not Network.distil

    def forward(self, x: Any) -> Any:
        """The loss of a batch, or the raw output for images: one door for wrappers (DDP)."""
        return self.loss(x) if isinstance(x, dict) else self.raw(x)  # type: ignore[arg-type]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of a batch."""
        return self.losses(self.raw(batch["img"]), batch)

    @torch.no_grad()
    def predict(self, images: Tensor, conf: float = 0.001, iou: float = 0.7, max_det: int = 300) -> Any:
        """Detections for images [B, 3, H, W], float32 RGB 0..1, one per image. Leaves all modes as they were.

        A box may be reported once for each class above `conf`, as mAP wants.
        """
        with evaluating(self):
            raw = self.raw(images)
        with torch.autocast(images.device.type, enabled=False):
            pairs = zip(*self.decode(raw, images), strict=True)
            return [self.select(boxes, scores, conf, iou, max_det) for boxes, scores in pairs]

    def select(self, boxes: Tensor, scores: Tensor, conf: float, iou: float, max_det: int) -> Detections:
        """Non-maximum suppression within each class. boxes [A, 4], scores [A, nc]."""
        flat, order = scores.flatten().sort(descending=True)
        flat, order = flat[: self.candidates], order[: self.candidates]
        order = order[flat > conf]
        which, labels, sure = order // self.nc, order % self.nc, scores.flatten()[order]
        keep = batched_nms(boxes[which], sure, labels, iou)[:max_det]
        return Detections(boxes=boxes[which][keep], scores=sure[keep], labels=labels[keep])

    def parameter_parts(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by part: backbone, neck, head, those that there are; each parameter in one."""
        found: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            found.setdefault(self.part_of(name), []).append(parameter)
        return found

    def part_of(self, name: str) -> str:
        """The part of a parameter: what it stands in, by name, where that is `backbone` or `neck`."""
        first = name.split(".", 1)[0]
        return first if first in ("backbone", "neck") else "head"


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Inside, all modules are in eval mode; afterwards each is in the mode that it was in."""
    modes = [(m, m.training) for m in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _renamed(net: Network, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Weights that were saved under older names."""
    for old, new in net.old_names.items():
        for name in [k for k in state if k.startswith(prefix + old)]:
            state[prefix + new + name[len(prefix + old) :]] = state.pop(name)
