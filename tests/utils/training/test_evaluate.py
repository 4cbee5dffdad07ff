"""The mAP, against pycocotools and against what one can say without any tool."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from utils.errors import UserError
from utils.training.evaluate import QUICK, Boxes, coco_map, evaluate, to_original, truths_of

NAMES = ["cat", "dog", "eel"]


def random_boxes(rng: np.random.Generator, n: int, classes: int = 3) -> Boxes:
    """Small, medium and large ones."""
    corner, size = rng.uniform(0, 300, (n, 2)), np.exp(rng.uniform(np.log(5), np.log(250), (n, 2)))
    return {"boxes": np.concatenate([corner, corner + size], 1), "labels": rng.integers(0, classes, n)}


def noisy(rng: np.random.Generator, truth: Boxes) -> Boxes:
    """The true boxes moved, half of them dropped, some with another class, and false ones beside them."""
    keep = rng.random(len(truth["labels"])) < 0.7
    boxes = truth["boxes"][keep] + rng.normal(0, 4, (keep.sum(), 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    labels = np.where(rng.random(keep.sum()) < 0.9, truth["labels"][keep], rng.integers(0, 3, keep.sum()))
    extra = random_boxes(rng, int(rng.integers(0, 12)))
    boxes, labels = np.concatenate([boxes, extra["boxes"]]), np.concatenate([labels, extra["labels"]])
    return {"boxes": boxes, "labels": labels, "scores": rng.random(len(labels))}


def pycocotools_map(truths: list[Boxes], found: list[Boxes], names: list[str]) -> dict[str, float]:
    """The reference, fed in its own format."""
    true: list[dict[str, Any]] = []
    detected: list[dict[str, Any]] = []
    for image, (truth, boxes) in enumerate(zip(truths, found, strict=True), start=1):
        for (x1, y1, x2, y2), label in zip(truth["boxes"], truth["labels"], strict=True):
            w, h = x2 - x1, y2 - y1
            row = {"id": len(true) + 1, "image_id": image, "category_id": int(label) + 1, "iscrowd": 0}
            true.append({**row, "bbox": [x1, y1, w, h], "area": w * h})
        rows = zip(boxes["boxes"], boxes["labels"], boxes["scores"], strict=True)
        for (x1, y1, x2, y2), label, score in rows:
            box = {"image_id": image, "category_id": int(label) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            detected.append({**box, "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": i + 1} for i in range(len(truths))],
            "categories": [{"id": i + 1, "name": n} for i, n in enumerate(names)],
            "annotations": true,
        }
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(detected), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    keys = ["map50_95", "map50", None, "map50_95_small", "map50_95_medium", "map50_95_large"]
    out = {k: run.stats[i] for i, k in enumerate(keys) if k and run.stats[i] >= 0}
    elevenths = run.eval["precision"][0, [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100], :, 0, -1]
    out["map50_voc07"] = elevenths[elevenths > -1].mean()
    for i, name in enumerate(names):
        part = run.eval["precision"][:, :, i, 0, -1]
        if (part > -1).any():
            out[f"map50_95/{name}"] = part[part > -1].mean()
    return out


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_pycocotools(seed):
    rng = np.random.default_rng(seed)
    truths = [random_boxes(rng, int(rng.integers(0, 15))) for _ in range(25)]
    found = [noisy(rng, t) for t in truths]
    ours, reference = coco_map(truths, found, NAMES), pycocotools_map(truths, found, NAMES)
    assert ours.keys() == reference.keys() and len(ours) == 9
    assert ours == pytest.approx(reference, abs=1e-9)
    assert 0.05 < ours["map50_95"] < 0.9


def test_equal_to_pycocotools_beyond_a_hundred_boxes():
    """Only the best 100 of a class and image count."""
    rng = np.random.default_rng(9)
    truths = [random_boxes(rng, 30, classes=1)]
    found = [noisy(rng, truths[0])]
    extra = random_boxes(rng, 300, classes=1)
    found[0] = {
        "boxes": np.concatenate([found[0]["boxes"], extra["boxes"]]),
        "labels": np.zeros(len(found[0]["labels"]) + 300, int),
        "scores": rng.random(len(found[0]["labels"]) + 300),
    }
    ours = coco_map(truths, found, NAMES)
    assert ours == pytest.approx(pycocotools_map(truths, found, NAMES), abs=1e-9)
    assert "map50_95/dog" not in ours


def crowded(rng: np.random.Generator) -> tuple[list[Boxes], list[Boxes], list[str]]:
    """What evaluators disagree about: equal scores, boxes on a grid (equal IoUs), twice the same box, boxes
    without area, more than a hundred of a class, images with no object or no detection, classes that no
    object or no detection has."""
    names = [f"class {i}" for i in range(rng.integers(2, 6))]
    grid, ties = rng.random(2) < 0.5
    truths, found = [], []
    for _ in range(rng.integers(1, 12)):
        truth = random_boxes(rng, int(rng.choice([0, 3, 14])), len(names) - 1)
        seen = random_boxes(rng, int(rng.choice([0, 9, 250], p=[0.3, 0.5, 0.2])), len(names))
        boxes = np.concatenate([truth["boxes"] + rng.normal(0, 3, truth["boxes"].shape), seen["boxes"]])
        labels = np.concatenate([truth["labels"], seen["labels"]])
        if grid:
            truth["boxes"], boxes = np.round(truth["boxes"] / 16) * 16, np.round(boxes / 16) * 16
        if rng.random() < 0.2:
            boxes, labels = np.repeat(boxes, 2, 0), np.repeat(labels, 2)
        scores = rng.random(len(labels)).astype(np.float32)
        truths.append(truth)
        found.append({"boxes": boxes, "labels": labels, "scores": scores.round(1) if ties else scores})
    return truths, found, names


def test_equal_to_pycocotools_where_evaluators_disagree():
    compared = 0
    for seed in range(25):
        truths, found, names = crowded(np.random.default_rng(seed))
        if all(any(len(boxes["labels"]) for boxes in side) for side in (truths, found)):
            ours, reference = coco_map(truths, found, names), pycocotools_map(truths, found, names)
            assert ours == pytest.approx(reference, abs=1e-12)
            compared += 1
    assert compared > 15


def test_perfect_detections_score_one():
    rng = np.random.default_rng(0)
    truths = [random_boxes(rng, 6) for _ in range(4)]
    found: list[Boxes] = [{**t, "scores": np.full(6, 0.9)} for t in truths]
    metrics = coco_map(truths, found, NAMES)
    assert len(metrics) == 9 and list(metrics.values()) == pytest.approx([1.0] * 9, abs=1e-12)


def test_sizes_without_objects_have_no_key():
    truth: Boxes = {"boxes": np.array([[0.0, 0, 10, 10]]), "labels": np.array([1])}
    found: Boxes = {**truth, "scores": np.array([0.5])}
    expected = ["map50_95", "map50", "map50_voc07", "map50_95_small", "map50_95/dog"]
    assert coco_map([truth], [found], NAMES) == pytest.approx(dict.fromkeys(expected, 1.0), abs=1e-12)


def test_voc_2007_s_eleven_points_by_hand():
    """Right, wrong, right, of three objects: precision 1 up to recall 1/3, 2/3 up to 2/3, then none."""
    boxes = np.array([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])
    truth: Boxes = {"boxes": boxes, "labels": np.zeros(3, int)}
    seen = np.array([[0.0, 0, 10, 10], [70, 70, 80, 80], [20, 20, 30, 30]])
    found: Boxes = {"boxes": seen, "labels": np.zeros(3, int), "scores": np.array([0.9, 0.8, 0.7])}
    points = [1, 1, 1, 1, 2 / 3, 2 / 3, 2 / 3, 0, 0, 0, 0]  # recalls 0, .1, ... 1
    assert coco_map([truth], [found], ["a"])["map50_voc07"] == pytest.approx(sum(points) / 11)


def test_half_right_by_hand():
    """One of two true boxes found: precision 1 up to recall 0.5, that is at 51 of the 101 recall points."""
    truth: Boxes = {"boxes": np.array([[0.0, 0, 50, 50], [100, 100, 150, 150]]), "labels": np.array([0, 0])}
    found: Boxes = {"boxes": truth["boxes"][:1], "labels": np.array([0]), "scores": np.array([0.3])}
    assert coco_map([truth], [found], ["a"])["map50_95"] == pytest.approx(51 / 101, abs=1e-12)


def test_no_detections_score_zero():
    rng = np.random.default_rng(0)
    truths = [random_boxes(rng, 6)]
    nothing: Boxes = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int), "scores": np.zeros(0)}
    metrics = coco_map(truths, [nothing], NAMES)
    assert metrics["map50_95"] == metrics["map50"] == 0.0
    assert all(v == 0.0 for v in metrics.values())


def test_without_true_objects_it_is_not_defined():
    rng = np.random.default_rng(0)
    nothing: Boxes = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int)}
    with pytest.raises(UserError, match="no labelled objects"):
        coco_map([nothing], [noisy(rng, random_boxes(rng, 3))], NAMES)


# ---------------------------------------------------------------- from batches


def batch(n: int = 2, size: int = 64) -> dict:
    """Two 128 x 64 (wide) originals halved and letterboxed into 64 x 64, one box of 32 x 16 in each."""
    return {
        "img": torch.zeros(n, 3, size, size, dtype=torch.uint8),
        "bboxes": torch.tensor([[0.5, 0.5, 0.25, 0.125]] * n),
        "cls": torch.ones(n, 1),
        "batch_idx": torch.arange(n).float(),
        "ori_shape": ((64, 128),) * n,
        "ratio_pad": (((0.5, 0.5), (0, 16)),) * n,
    }


def test_boxes_go_back_to_the_original_pixels():
    truth = truths_of(batch())[1]
    # centre (32, 32), 16 x 8 in the input; minus 16 rows of padding, doubled: centre (64, 32), 32 x 16
    assert truth["boxes"].tolist() == [[48.0, 24.0, 80.0, 40.0]] and truth["labels"].tolist() == [1]
    assert to_original(np.array([[-4.0, 0, 70, 64]]), batch(), 0).tolist() == [[0, 0, 128, 64]]


class Oracle(nn.Module):
    """Knows where the box is, in pixels of its input; tells whether it was left as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.calls: list[dict] = []

    def predict(self, images: Tensor, conf: float, iou: float, max_det: int) -> list[dict[str, Tensor]]:
        assert not self.training and images.dtype == torch.float32
        self.bn(self.conv(images))
        self.calls.append({"conf": conf, "max_det": max_det})
        box = torch.tensor([[24.0, 28.0, 40.0, 36.0]])
        one = {"boxes": box, "scores": torch.tensor([0.7]), "labels": torch.tensor([1])}
        return [one] * len(images)


@pytest.mark.parametrize("bf16", [False, True])
def test_evaluate_an_oracle(bf16):
    net = Oracle().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    metrics = evaluate(net, [batch(), batch(3)], NAMES, bf16=bf16)
    best = {key: metrics[key] for key in ("map50_95", "map50_95/dog", "map50_95_small")}
    assert best == pytest.approx(dict.fromkeys(best, 1.0), abs=1e-12)
    assert metrics["val_images"] == 5.0 and metrics["val_ms_per_image"] > 0
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_quick_changes_only_the_thresholds():
    assert evaluate(Oracle(), [batch()], NAMES, **QUICK)["map50_95"] == pytest.approx(1, abs=1e-12)
