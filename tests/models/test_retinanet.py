"""RetinaNet's losses and predictions, elastic or plain: against torchvision's and by hand."""

import numpy as np
import pytest
import torch
from torchvision.models.detection.retinanet import RetinaNetClassificationHead
from torchvision.ops import box_iou, generalized_box_iou_loss

from models.detector import Network
from models.elastic.space import ElasticSpace
from models.supernet import Supernet
from tests.models.anchors import torchvisions_anchors
from tests.models.test_supernet import REGNET, RETINANET
from utils.errors import UserError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    supernet = Supernet(RETINANET)
    return supernet.extract(supernet.space.default())


def batch(*objects, images=2, side=64):
    """objects: (image, class, cx, cy, w, h)."""
    rows = torch.tensor(objects, dtype=torch.float32).reshape(-1, 6)
    pixels = torch.rand(images, 3, side, side, generator=torch.Generator().manual_seed(0))
    return {"img": pixels, "batch_idx": rows[:, 0], "cls": rows[:, 1:2], "bboxes": rows[:, 2:]}


OBJECTS = batch((0, 1, 0.5, 0.5, 0.5, 0.5), (0, 2, 0.25, 0.75, 0.3, 0.4), (1, 0, 0.6, 0.4, 0.6, 0.3))


def test_it_is_a_detector(net):
    assert isinstance(net, Network) and net.stride == 32
    net.names = ["a", "b", "c"]
    assert net.names == ["a", "b", "c"]
    with pytest.raises(UserError, match="2 class names for a detector of 3 classes"):
        net.names = ["a", "b"]


def test_anchors_are_in_the_order_of_the_raw_output(net):
    logits, offsets, anchors = net(OBJECTS["img"])
    # Levels of 8x8, 4x4, 2x2, 1x1 and 1x1, with 3 scales x 3 ratios each.
    assert logits.shape == (2, 86 * 9, 3) and offsets.shape == (2, 86 * 9, 4) and anchors.shape == (86 * 9, 4)
    # The square ones of the second position: around (8, 0), sides 4, 5.04 and 6.35 strides of 8, rounded.
    assert anchors[9 + 3 : 9 + 6].tolist() == [[-8, -16, 24, 16], [-12, -20, 28, 20], [-17, -25, 33, 25]]
    assert torch.equal(anchors, torchvisions_anchors(net, OBJECTS["img"]))


def test_the_losses_are_torchvision_s(net):
    raw = net(OBJECTS["img"])
    found = net.losses(raw, OBJECTS)
    anchors, side = raw[2], 64
    head = RetinaNetClassificationHead(8, 9, 3)
    targets, matched, box = [], [], []
    for i in range(2):
        mine = OBJECTS["batch_idx"] == i
        cx, cy, w, h = (OBJECTS["bboxes"][mine] * side).unbind(1)
        boxes = torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), 1)
        targets.append({"labels": OBJECTS["cls"][mine].long().flatten(), "boxes": boxes})
        matched.append(net.matcher(box_iou(boxes, anchors)))
        positive = matched[-1] >= 0
        assert positive.sum() >= len(boxes)  # every object has an anchor
        decoded = net.coder.decode_single(raw[1][i][positive], anchors[positive])
        giou = generalized_box_iou_loss(decoded, boxes[matched[-1][positive]], reduction="sum")
        box.append(giou / positive.sum())
    expected = head.compute_loss(targets, {"cls_logits": raw[0]}, matched)
    torch.testing.assert_close(found["cls"], expected)
    torch.testing.assert_close(found["box"], torch.stack(box).mean())


def test_images_without_objects_are_background(net):
    losses = net.loss(batch())
    assert losses["box"] == 0 and losses["cls"] > 0
    sum(losses.values()).backward()


def test_untrained_scores_are_the_prior(net):
    with torch.no_grad():
        assert abs(net.eval()(OBJECTS["img"])[0].sigmoid().mean() - 0.01) < 0.002


def test_predictions_are_decoded_anchors(net, monkeypatch):
    images = torch.zeros(1, 3, 64, 64)
    anchors = net.raw(images)[2]
    logits = torch.full((1, len(anchors), 3), -9.0)
    logits[0, 100, 2], logits[0, 101, 2], logits[0, 700, 0] = 3.0, 1.0, 2.0
    offsets = torch.zeros(1, len(anchors), 4)
    offsets[0, 700] = torch.tensor([0.5, 0.0, 0.0, np.log(2)])
    monkeypatch.setattr(net, "raw", lambda x: (logits, offsets, anchors))
    net.train()
    (found,) = net.predict(images, conf=0.1, iou=0.99)
    assert net.training  # as it was
    torch.testing.assert_close(found["scores"], torch.tensor([3.0, 2.0, 1.0]).sigmoid())
    assert found["labels"].tolist() == [2, 0, 2] and found["labels"].dtype == torch.int64
    torch.testing.assert_close(found["boxes"][[0, 2]], anchors[[100, 101]])
    x1, y1, x2, y2 = anchors[700].tolist()
    w, h = x2 - x1, y2 - y1
    torch.testing.assert_close(
        found["boxes"][1], torch.tensor([x1 + w / 2, y1 - h / 2, x2 + w / 2, y2 + h / 2])
    )
    assert len(net.predict(images, conf=0.1, iou=0.99, max_det=1)[0]["scores"]) == 1


def test_it_learns_and_finds():
    """A few steps on one image: the loss falls and the object is found. The supernet's slice, not a copy."""
    torch.manual_seed(0)
    supernet = Supernet(RETINANET)
    supernet.set_arch(supernet.space.default())
    one = batch((0, 1, 0.5, 0.5, 0.5, 0.5), images=1)
    optimizer = torch.optim.AdamW(supernet.parameters(), 2e-3)
    supernet.train()
    first = None
    for _ in range(80):
        loss = sum(supernet.net.loss(one).values())
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * first
    for module in supernet.modules():  # its statistics are of one image: score it as it was trained
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        supernet(one["img"])
    best = supernet.net.predict(one["img"])[0]
    assert best["labels"][0] == 1
    assert box_iou(best["boxes"][:1], torch.tensor([[16.0, 16, 48, 48]])).item() > 0.7


def test_mistakes():
    neck = {**RETINANET["neck"], "depth": {"values": [3, 4]}}
    with pytest.raises(UserError, match="neck.depth should be two fixed numbers"):
        ElasticSpace({**RETINANET, "neck": neck}).supernet()
    with pytest.raises(UserError, match="option anchor_scales should be positive numbers, got 4"):
        ElasticSpace({**RETINANET, "options": {"anchor_scales": 4}}).supernet()


def test_the_classifier_learns_too():
    torch.manual_seed(0)
    supernet = Supernet(REGNET)
    images, labels = torch.rand(16, 3, 32, 32), torch.arange(16) % 4
    images[torch.arange(16), labels.clamp(max=2)] *= 0.2
    images[labels == 3] *= 0.1
    optimizer = torch.optim.AdamW(supernet.parameters(), 3e-3)
    for _ in range(40):
        loss = supernet.net.loss({"img": images, "cls": labels[:, None].float()})["cls"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5
    p = supernet.net.predict(images)
    torch.testing.assert_close(p.sum(1), torch.ones(16))
