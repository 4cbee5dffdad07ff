"""What a network did on a split, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from utils.training.evaluate import evaluate
from utils.training.evaluate_classes import evaluate_classes
from utils.training.examine import examine_classifier, examine_detector

NAMES = ["cat", "dog"]


class Fixed(nn.Module):
    """Says for each image of the batches what it was told to say."""

    def __init__(self, answers: list) -> None:
        super().__init__()
        self.answers, self.at = answers, 0

    def predict(self, images: torch.Tensor, **how: float) -> object:
        found = self.answers[self.at : self.at + len(images)]
        self.at = (self.at + len(images)) % len(self.answers)
        return torch.stack(found) if isinstance(found[0], torch.Tensor) else found


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("utils.training.evaluate", "utils.training.evaluate_classes"):
        monkeypatch.setattr(f"{module}.fused_copy", lambda net: net)


def found(*objects: tuple[list[float], float, int]) -> dict[str, torch.Tensor]:
    boxes = torch.tensor([box for box, _, _ in objects]).reshape(-1, 4)
    scores = torch.tensor([score for _, score, _ in objects])
    return {"boxes": boxes, "scores": scores, "labels": torch.tensor([label for *_, label in objects]).long()}


# Three images of 100 px: a cat and a dog; a cat; nothing.
BATCH = {
    "img": torch.zeros(3, 3, 100, 100, dtype=torch.uint8),
    "batch_idx": torch.tensor([0.0, 0.0, 1.0]),
    "cls": torch.tensor([[0.0], [1.0], [0.0]]),
    "bboxes": torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2], [0.5, 0.5, 0.4, 0.4]]),
}
CAT, DOG, BIG = [10.0, 10.0, 30.0, 30.0], [60.0, 60.0, 80.0, 80.0], [30.0, 30.0, 70.0, 70.0]
ANSWERS = [
    found((CAT, 0.9, 0), (DOG, 0.8, 0)),  # the dog is taken for a cat
    found((BIG, 0.2, 0)),  # too unsure to be shown
    found((CAT, 0.6, 1)),  # where nothing is
]


def test_a_detectors_confusion_mistakes_and_objects() -> None:
    seen = examine_detector(Fixed(ANSWERS), [BATCH], NAMES, torch.device("cpu"))
    assert seen.confusion["labels"] == ["cat", "dog", "background"]
    #                                     found as cat, as dog, missed; columns: truly cat, dog, background
    assert seen.confusion["matrix"] == [[1, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert seen.mistakes == [1, 1, 1]
    assert [len(f["labels"]) for f in seen.found] == [2, 0, 1]
    np.testing.assert_allclose(seen.truths[1]["boxes"], [BIG], atol=1e-4)


def test_a_detectors_curves_are_those_of_its_map() -> None:
    seen = examine_detector(Fixed(ANSWERS), [BATCH], NAMES, torch.device("cpu"))
    plain = evaluate(Fixed(ANSWERS), [BATCH], NAMES)
    timing = "val_ms_per_image"
    assert {k: v for k, v in seen.metrics.items() if k != timing} == {
        k: v for k, v in plain.items() if k != timing
    }
    assert seen.curves is not None
    precision = seen.curves["precision"]
    assert len(seen.curves["recall"]) == len(precision["cat"]) == 101
    assert np.mean([np.mean(p) for p in precision.values()]) == pytest.approx(plain["map50"])
    # cats by score: right (.9), wrong (.8), right (.2): precision 1 up to half of them, then 2 of 3
    assert precision["cat"][0] == pytest.approx(1) and precision["cat"][100] == pytest.approx(2 / 3)


def test_a_classifiers_confusion_and_mistakes() -> None:
    batch = {"img": torch.zeros(3, 3, 8, 8, dtype=torch.uint8), "cls": torch.tensor([[0.0], [1.0], [1.0]])}
    answers = [torch.tensor(p) for p in ([0.75, 0.25], [0.75, 0.25], [0.125, 0.875])]
    seen = examine_classifier(Fixed(answers), [batch], NAMES, torch.device("cpu"))
    assert seen.confusion == {"labels": NAMES, "matrix": [[1, 1], [0, 1]]}
    assert seen.mistakes == [0, 1, 0] and seen.curves is None
    assert [f["labels"] + f["scores"] for f in seen.found] == [[0, 0.75], [0, 0.75], [1, 0.875]]
    assert seen.metrics["top1"] == evaluate_classes(Fixed(answers), [batch], NAMES)["top1"] == 2 / 3
