"""The one mAP: COCO's protocol, in pixels of the original images, for any object with `predict(images)`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypedDict

import numpy as np
import torch
from hotcoco import COCO, COCOeval
from torch import Tensor, nn

from utils.errors import UserError
from utils.training.batch import to_device
from utils.training.measure import fused_copy

# Intermediate validations keep fewer boxes: an untrained network sends thousands per image through NMS.
QUICK: dict[str, Any] = {"conf": 0.01, "max_det": 100}


class Boxes(TypedDict, total=False):
    """Objects of one image. boxes: float64 [n, 4] xyxy pixels of the original image; labels: int64 [n],
    0 = first class; scores: [n], of detections only."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def evaluate(
    detector: nn.Module,
    loader: Iterable[Mapping[str, Any]],
    names: Sequence[str],
    device: str | torch.device = "cpu",
    **how: Any,
) -> dict[str, float]:
    """mAP of `detector` on the batches of `loader`; see `detect` for the arguments.

    Returns the metrics of `coco_map`, plus val_images and val_ms_per_image (network and NMS).
    """
    truths, found, timing = detect(detector, loader, device, **how)
    return {**coco_map(truths, found, names), **timing}


def detect(
    detector: nn.Module,
    loader: Iterable[Mapping[str, Any]],
    device: str | torch.device = "cpu",
    *,
    conf: float = 0.001,
    iou: float = 0.7,
    max_det: int = 300,
    bf16: bool = False,
) -> tuple[list[Boxes], list[Boxes], dict[str, float]]:
    """(true objects, found ones, timing) of all images, in pixels of the originals.

    The batches carry img, cls, bboxes, batch_idx and, for letterboxed images, ori_shape (height, width) and
    ratio_pad ((gain_h, gain_w), (pad_x, pad_y)). Works on a fused copy in eval mode; `detector` is left
    alone. Boxes below `conf` are dropped: 0.001 for a reported figure. `**QUICK` serves for a curve: on a
    network of mAP .457 it lost .001, and it spares young networks, all of whose boxes are improbable, most
    of NMS.
    """
    device = torch.device(device)
    net: Any = fused_copy(detector).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    truths: list[Boxes] = []
    found: list[Boxes] = []
    seconds = 0.0
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
        for batch in loader:
            start = time.perf_counter()
            ready = to_device(batch, device)
            outputs = net.predict(ready["img"], conf=conf, iou=iou, max_det=max_det)
            seconds += time.perf_counter() - start
            truths += truths_of(batch)
            for i, output in enumerate(outputs):
                found.append(
                    {
                        "boxes": to_original(_numpy(output["boxes"]), batch, i),
                        "scores": _numpy(output["scores"]),
                        "labels": output["labels"].cpu().numpy(),
                    }
                )
    return truths, found, {"val_images": float(len(truths)), "val_ms_per_image": 1000 * seconds / len(truths)}


def coco_map(truths: Sequence[Boxes], found: Sequence[Boxes], names: Sequence[str]) -> dict[str, float]:
    """Average precision by the COCO protocol (Lin et al. 2014; 101 recall points, 100 boxes per class and
    image), equal to pycocotools' on the same boxes. All in 0..1, unrounded:

    map50_95 (mean over IoU .50:.05:.95), map50, map50_voc07 (at the 11 recall points of Pascal VOC 2007),
    map50_95_small / _medium / _large (areas split at 32 x 32 and 96 x 96 pixels) and "map50_95/<name>" for
    each class. What has no true objects has no key.

    VOC's own devkit leaves out difficult objects, counts a pixel more for every side, has no limit of boxes
    and calls a detection false whose best object another one has, where here it may have the next best.

    Raises UserError if there are no true objects at all: mAP is not defined then.
    """
    assert len(truths) == len(found), (len(truths), len(found))
    return precision_map(coco_precision(truths, found, names), names)


def precision_map(precision: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """The averages that `coco_map` speaks of, from the precision of `coco_precision`."""
    parts = {
        "map50_95": precision[:, :, :, 0, -1],
        "map50": precision[:1, :, :, 0, -1],
        "map50_voc07": precision[:1, ::10, :, 0, -1],
        "map50_95_small": precision[:, :, :, 1, -1],
        "map50_95_medium": precision[:, :, :, 2, -1],
        "map50_95_large": precision[:, :, :, 3, -1],
        **{f"map50_95/{name}": precision[:, :, i, 0, -1] for i, name in enumerate(names)},
    }
    known = {key: part[part > -1] for key, part in parts.items()}
    return {key: float(part.mean()) for key, part in known.items() if part.size}


def coco_precision(truths: Sequence[Boxes], found: Sequence[Boxes], names: Sequence[str]) -> np.ndarray:
    """Precision [IoU 10, recall 101, class, area 4 (all, S, M, L), boxes 3 (1, 10, 100)]; -1: no objects.

    Raises UserError if there are no true objects at all.
    """
    if not any(len(t["labels"]) for t in truths):
        raise UserError("the validation images have no labelled objects, so their mAP is not defined")
    # hotcoco's threads do not outlive a fork: who has evaluated must not fork a process that evaluates, too.
    image, box, label = _columns(truths)
    coco = COCO.from_arrays(
        [{"id": i} for i in range(len(truths))],
        [{"id": i, "name": name} for i, name in enumerate(names)],
        image,
        label,
        box,
    )
    image, box, label = _columns(found)
    score = np.concatenate([boxes["scores"] for boxes in found]).astype(float)
    run = COCOeval(coco, coco.load_res(np.column_stack([image, box, score, label])), "bbox")
    run.evaluate()
    run.accumulate()
    assert run.eval is not None
    return np.asarray(run.eval["precision"])


def _columns(images: Sequence[Boxes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(index of the image, [x, y, w, h], label) of all boxes, one after the other."""
    image = np.repeat(np.arange(len(images)), [len(boxes["labels"]) for boxes in images])
    box = np.concatenate([_xywh(boxes["boxes"]) for boxes in images])
    return image, box, np.concatenate([boxes["labels"] for boxes in images]).astype(int)


def truths_of(batch: Mapping[str, Any]) -> list[Boxes]:
    """The true objects of each image of a batch, in pixels of the original image."""
    height, width = batch["img"].shape[-2:]
    owner = batch["batch_idx"].cpu().numpy().reshape(-1)
    labels = batch["cls"].cpu().numpy().reshape(-1).astype(np.int64)
    x, y, w, h = _numpy(batch["bboxes"]).reshape(-1, 4).T
    boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1) * [width, height, width, height]
    return [
        {"boxes": to_original(boxes[owner == i], batch, i), "labels": labels[owner == i]}
        for i in range(len(batch["img"]))
    ]


def to_original(boxes: np.ndarray, batch: Mapping[str, Any], i: int) -> np.ndarray:
    """Undo the letterbox of image i: xyxy [n, 4], pixels of the network's input to those of the original."""
    if "ratio_pad" not in batch:
        return boxes
    (gain_h, gain_w), (pad_x, pad_y) = batch["ratio_pad"][i]
    height, width = batch["ori_shape"][i]
    boxes = (boxes - [pad_x, pad_y, pad_x, pad_y]) / [gain_w, gain_h, gain_w, gain_h]
    return boxes.clip(0, [width, height, width, height])  # the padding is no part of the picture


def _xywh(xyxy: np.ndarray) -> np.ndarray:
    xyxy = xyxy.reshape(-1, 4)
    return np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], 1)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
