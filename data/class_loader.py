"""Batches for a classifier: one object (or whole image) a picture, in the order and by the seeds of
data/loader.py, so that an epoch is a function of (samples, settings, seed, epoch) here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from data.loader import DetectionData, DetectionLoader, loader_of
from data.pixels import CROPS, Pixels
from data.sample import Sample
from utils.sides import Sides

# Mixing several pictures would need labels between classes.
MIXING = {"mosaic": 0.0, "mixup": 0.0, "cutmix": 0.0, "close_mosaic": 0.0}


def make_class_loader(
    samples: Sequence[Sample],
    names: Sequence[str],
    imgsz: Sides,
    batch: int,
    *,
    train: bool,
    hyp: dict[str, Any] | None = None,
    seed: int = 0,
    workers: int = 0,
    epochs: int | None = None,
    pixels: Pixels = CROPS,
) -> DetectionLoader:
    """Batches of `samples`, each with exactly one box, at `imgsz`: its side, or (height, width).

    The box with a tenth of its sides around it (an ImageFolder's is the whole image) is cut out, made as
    large as fits into imgsz, and what is missing filled with grey 114: nothing is squeezed, no edge cut off.
    train: shuffled and augmented by `hyp` as a detector's images are: scale, translate, degrees, shear,
    perspective, hsv_*, fliplr, flipud and bgr mean the same; mosaic, mixup and cutmix are left out. Else in
    order and plain.

    Each batch is a dict:
        img        uint8 [B, 3, height, width], RGB, 0..255 (divide it by 255)
        cls        float32 [B, 1], 0 is the first class
        batch_idx  float32 [B], 0 to B - 1
        im_file    tuple of B paths
    Call `set_epoch(e)` before each epoch of a training.
    """
    dataset = ClassData(
        samples,
        names,
        imgsz,
        train=train,
        hyp={**(hyp or {}), **MIXING},
        seed=seed,
        epochs=epochs,
        pixels=pixels,
    )
    return loader_of(dataset, batch, seed, workers, collate_classes)


class ClassData(DetectionData):
    """Samples of one object each. Transforms see a picture without boxes, which none of them can drop."""

    def get_image_and_label(self, i: int) -> dict[str, Any]:
        from ultralytics.utils.instance import Instances

        sample = self.samples[i]
        assert len(sample.cls) == 1, f"{sample.image}: {len(sample.cls)} objects, expected one"
        image = self.pixels.get(sample, self.imgsz).copy()  # transforms write into it
        h, w = image.shape[:2]
        nothing = np.zeros((0, 4), np.float32), np.zeros((0, 1000, 2), np.float32)
        return {
            "im_file": str(sample.image),
            "img": image,
            "label": float(sample.cls[0]),
            "cls": np.zeros((0, 1), np.float32),
            "instances": Instances(*nothing, normalized=True),
            "ori_shape": (h, w),
            "resized_shape": (h, w),
            "ratio_pad": (1.0, 1.0),
        }


def collate_classes(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack pictures and their classes."""
    return {
        "img": torch.from_numpy(np.stack([item["img"] for item in items])),
        "cls": torch.tensor([[item["label"]] for item in items], dtype=torch.float32),
        "batch_idx": torch.arange(len(items), dtype=torch.float32),
        "im_file": tuple(item["im_file"] for item in items),
    }
