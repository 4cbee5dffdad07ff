"""What a space's networks do, and what follows from it: how data become batches, how a network is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data.class_loader import make_class_loader
from data.loader import make_loader
from data.pixels import CROPS, PIXELS, Pixels
from utils.training.evaluate import QUICK, evaluate
from utils.training.evaluate_classes import evaluate_classes
from utils.training.examine import Examined, examine_classifier, examine_detector


@dataclass(frozen=True)
class Task:
    """quality: the metric that counts, 0..1. make_loader: as data.loader.make_loader.
    score: (network, loader, class names, device, quick) -> metrics; quick is for a curve.
    examine: (network, loader, class names, device) -> the same and what it did in each image.
    pixels: the memory that make_loader reads from, for whoever wants to fill it before."""

    quality: str
    make_loader: Callable[..., Any]
    score: Callable[[Any, Any, Sequence[str], torch.device, bool], dict[str, float]]
    examine: Callable[[Any, Any, Sequence[str], torch.device], Examined]
    pixels: Pixels


def detection_score(
    net: Any, loader: Any, names: Sequence[str], device: torch.device, quick: bool
) -> dict[str, float]:
    how: Mapping[str, Any] = QUICK if quick else {}
    return evaluate(net, loader, names, device, **how)


def classification_score(
    net: Any, loader: Any, names: Sequence[str], device: torch.device, quick: bool
) -> dict[str, float]:
    return evaluate_classes(net, loader, names, device)


TASKS: dict[str, Task] = {
    "detect": Task("map50_95", make_loader, detection_score, examine_detector, PIXELS),
    "classify": Task("top1", make_class_loader, classification_score, examine_classifier, CROPS),
}
