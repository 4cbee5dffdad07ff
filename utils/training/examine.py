"""What a trained network does on a split, beyond one figure: precision-recall curves, who is taken for whom,
and what it finds in each picture. As plain values, so that a report needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.training.evaluate import Boxes, coco_precision, detect, precision_map
from utils.training.evaluate_classes import accuracy, classify

# Of the confusion matrix and the pictures; Ultralytics' own validation takes these.
CONF, IOU = 0.25, 0.45
BACKGROUND = "background"


@dataclass(frozen=True)
class Examined:
    """metrics: as the task's score has them.

    curves: {"recall": [101], "precision": {class: [101] at IoU .5}}, None for a classifier
    confusion: {"labels": [...], "matrix": [found as][truly]} of whole numbers; a detector's last label is
        the background: what was missed, what was found where nothing is
    truths, found: of each image; of a detector {"boxes": [[x1, y1, x2, y2] pixels of the original], "labels",
        "scores"}, of a classifier {"labels": [one], "scores": [its probability]}
    mistakes: of each image, how many objects were missed, invented or taken for another class
    """

    metrics: dict[str, float]
    curves: dict[str, Any] | None
    confusion: dict[str, Any]
    truths: list[dict[str, Any]]
    found: list[dict[str, Any]]
    mistakes: list[int]


def examine_detector(
    net: nn.Module, loader: Iterable[Mapping[str, Any]], names: Sequence[str], device: torch.device
) -> Examined:
    truths, found, timing = detect(net, loader, device)
    precision = coco_precision(truths, found, names)
    at_half = precision[0, :, :, 0, -1]  # [recall, class]
    there = {name: at_half[:, i].tolist() for i, name in enumerate(names) if at_half[0, i] > -1}
    confusion, mistakes = detector_confusion(truths, found, names)
    sure = [boxes["scores"] > CONF for boxes in found]
    return Examined(
        metrics={**precision_map(precision, names), **timing},
        curves={"recall": np.linspace(0, 1, 101).tolist(), "precision": there},
        confusion=confusion,
        truths=[{key: t[key].tolist() for key in ("boxes", "labels")} for t in truths],  # type: ignore[literal-required]
        found=[
            {key: f[key][keep].tolist() for key in ("boxes", "labels", "scores")}  # type: ignore[literal-required]
            for f, keep in zip(found, sure, strict=True)
        ],
        mistakes=mistakes,
    )


def detector_confusion(
    truths: Sequence[Boxes], found: Sequence[Boxes], names: Sequence[str]
) -> tuple[dict[str, Any], list[int]]:
    """Ultralytics' matrix over all images, and how many wrong objects each image added to it."""
    from utils.offline import quiet_ultralytics

    quiet_ultralytics()
    from ultralytics.utils.metrics import ConfusionMatrix

    counted, mistakes, wrong = ConfusionMatrix(dict(enumerate(names))), [], 0
    for truth, seen in zip(truths, found, strict=True):
        counted.process_batch(
            {
                "bboxes": torch.from_numpy(seen["boxes"].reshape(-1, 4)).float(),
                "conf": torch.from_numpy(seen["scores"]),
                "cls": torch.from_numpy(seen["labels"]),
            },
            {
                "bboxes": torch.from_numpy(truth["boxes"].reshape(-1, 4)).float(),
                "cls": torch.from_numpy(truth["labels"]),
            },
            conf=CONF,
            iou_thres=IOU,
        )
        so_far = int(counted.matrix.sum() - counted.matrix.trace())
        mistakes.append(so_far - wrong)
        wrong = so_far
    matrix = counted.matrix.astype(int).tolist()
    return {"labels": [*names, BACKGROUND], "matrix": matrix, "conf": CONF, "iou": IOU}, mistakes


def examine_classifier(
    net: nn.Module, loader: Iterable[Mapping[str, Any]], names: Sequence[str], device: torch.device
) -> Examined:
    probabilities, labels, timing = classify(net, loader, device)
    best = probabilities.argmax(1)
    matrix = np.zeros((len(names), len(names)), int)
    np.add.at(matrix, (best, labels), 1)
    sure = probabilities[np.arange(len(best)), best]
    return Examined(
        metrics={**accuracy(probabilities, labels, names), **timing},
        curves=None,
        confusion={"labels": list(names), "matrix": matrix.tolist()},
        truths=[{"labels": [int(label)]} for label in labels],
        found=[{"labels": [int(b)], "scores": [float(s)]} for b, s in zip(best, sure, strict=True)],
        mistakes=(best != labels).astype(int).tolist(),
    )
