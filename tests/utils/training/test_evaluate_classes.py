"""Accuracy by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.training.evaluate_classes import accuracy, evaluate_classes

SIX = ["a", "b", "c", "d", "e", "f"]


def test_accuracy_by_hand():
    probabilities = np.array(
        [
            [0.5, 0.1, 0.1, 0.1, 0.1, 0.1],  # a: right
            [0.5, 0.3, 0.1, 0.05, 0.04, 0.01],  # b: second
            [0.3, 0.2, 0.2, 0.15, 0.1, 0.05],  # f: last of six, not among five
            [0.1, 0.6, 0.1, 0.1, 0.05, 0.05],  # b: right
        ]
    )
    assert accuracy(probabilities, np.array([0, 1, 5, 1]), SIX) == {
        "top1": 0.5, "top5": 0.75, "top1/a": 1.0, "top1/b": 0.5, "top1/f": 0.0,
    }  # fmt: skip


def test_five_classes_have_no_top5():
    assert accuracy(np.eye(5), np.arange(5), SIX[:5]) == {"top1": 1.0} | {f"top1/{n}": 1.0 for n in SIX[:5]}


def test_a_network_that_cannot_decide_is_right_about_one_class_only():
    metrics = accuracy(np.full((6, 6), 1 / 6), np.arange(6), SIX)
    assert metrics["top1"] == pytest.approx(1 / 6) and metrics["top1/a"] == 1.0
    assert metrics["top5"] == pytest.approx(5 / 6)


@pytest.mark.parametrize("names", [SIX, SIX[:2]])
def test_what_is_not_a_number_is_wrong(names):
    metrics = accuracy(np.full((3, len(names)), np.nan), np.array([0, 0, 1]), names)
    assert set(metrics.values()) == {0.0}


class Brightness(nn.Module):
    """Two classes, dark and bright, by the mean of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def predict(self, images: Tensor) -> Tensor:
        assert not self.training and images.dtype == torch.float32
        assert isinstance(self.bn, nn.Identity)  # folded into the convolution
        bright = images.mean((1, 2, 3))
        return torch.stack([1 - bright, bright], 1)


def batch(*shades: int, labels: list[int]) -> dict:
    pictures = torch.tensor(shades, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    return {"img": pictures, "cls": torch.tensor(labels, dtype=torch.float32)[:, None]}


def test_evaluate_leaves_the_network_alone():
    net = Brightness().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    batches = [batch(0, 255, labels=[0, 1]), batch(200, labels=[0])]
    metrics = evaluate_classes(net, batches, ["dark", "bright"])
    assert metrics.pop("val_ms_per_image") > 0
    assert metrics == {"top1": pytest.approx(2 / 3), "top1/dark": 0.5, "top1/bright": 1.0, "val_images": 3.0}
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_without_images_it_is_not_defined():
    with pytest.raises(UserError, match="there are no validation images"):
        evaluate_classes(Brightness(), [], ["dark", "bright"])
