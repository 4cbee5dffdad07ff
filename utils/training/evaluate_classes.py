"""Accuracy of a classifier: any object with `predict(images) -> probabilities`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.errors import UserError
from utils.training.batch import to_device
from utils.training.measure import fused_copy

FIVE = 5  # of five classes or fewer the right one is always among the best five


def evaluate_classes(
    net: nn.Module,
    loader: Iterable[Mapping[str, Any]],
    names: Sequence[str],
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """Accuracy of `net` on the batches of `loader`, which carry img and cls.

    Returns the metrics of `accuracy`, plus val_images and val_ms_per_image (network alone). Raises UserError
    where there are no images.
    """
    probabilities, labels, timing = classify(net, loader, device)
    return {**accuracy(probabilities, labels, names), **timing}


def classify(
    net: nn.Module, loader: Iterable[Mapping[str, Any]], device: str | torch.device = "cpu"
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """(probabilities [n, classes], labels int64 [n], timing) of all images; works on a fused copy in eval
    mode, `net` is left alone."""
    device = torch.device(device)
    fused: Any = fused_copy(net).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found, labels, seconds = [], [], 0.0
    with torch.inference_mode():
        for batch in loader:
            start = time.perf_counter()
            found.append(fused.predict(to_device(batch, device)["img"]).float().cpu().numpy())
            seconds += time.perf_counter() - start
            labels.append(batch["cls"].cpu().numpy().reshape(-1).astype(np.int64))
    if not found:
        raise UserError("there are no validation images, so accuracy is not defined")
    images = sum(map(len, labels))
    timing = {"val_images": float(images), "val_ms_per_image": 1000 * seconds / images}
    return np.concatenate(found), np.concatenate(labels), timing


def accuracy(probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """probabilities [n, classes], labels int [n]. Shares of the images, 0..1, unrounded:

    top1 (the class is the most probable), top5 (among the five most probable; only of more than five classes)
    and "top1/<name>", top1 over the images of a class. A class without images has no key. Of equal
    probabilities the first class counts as the higher; what is not a number is wrong.
    """
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)
    earlier = np.arange(len(names)) < labels[:, None]
    rank = (~(probabilities <= own)).sum(1) + ((probabilities == own) & earlier).sum(1)
    first = rank < 1
    metrics = {"top1": float(first.mean())}
    if len(names) > FIVE:
        metrics["top5"] = float((rank < FIVE).mean())
    for i, name in enumerate(names):
        if (labels == i).any():
            metrics[f"top1/{name}"] = float(first[labels == i].mean())
    return metrics
