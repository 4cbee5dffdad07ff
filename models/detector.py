"""What a detector is to the rest of the house: a network with two verbs, and the tensors they speak in."""

from __future__ import annotations

from typing import Protocol, TypedDict, runtime_checkable

from torch import Tensor


class Batch(TypedDict):
    """Images of one size with their boxes; N is the number of boxes in the whole batch, possibly 0."""

    img: Tensor  # [B, 3, H, W] float32, RGB, 0..1
    bboxes: Tensor  # [N, 4] float32, x y w h of the centre form, as shares of the image, 0..1
    cls: Tensor  # [N, 1] float32, class numbers from 0
    batch_idx: Tensor  # [N] float32 or int64, which image of the batch each box is in


class Detections(TypedDict):
    """What was found in one image, best first."""

    boxes: Tensor  # [n, 4] float32, x1 y1 x2 y2 in pixels of the image given; may reach beyond its edges
    scores: Tensor  # [n] float32, 0..1, descending
    labels: Tensor  # [n] int64, 0 is the first class (no background class)


@runtime_checkable
class Detector(Protocol):
    """An nn.Module that can be trained and can detect."""

    names: list[str]
    stride: int  # H and W of images must be multiples of it

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses, float32; their sum is what is minimised, a mean over the images."""
        ...

    def predict(
        self, images: Tensor, conf: float = 0.001, iou: float = 0.7, max_det: int = 300
    ) -> list[Detections]:
        """Detections for images [B, 3, H, W], float32 RGB 0..1, one per image."""
        ...
