"""OFA + SSD: sizes as published, elastic or plain, anchors against torchvision's, losses by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, sigmoid_focal_loss

from models.export import export
from models.export_torchvision import detector
from models.networks import open_any_space
from models.supernet import Supernet
from tests.models.test_retinanet import OBJECTS, batch
from utils.errors import UserError
from utils.training.optimize import freeze

torch.set_num_threads(1)
STAGES = {"values": [[1], [1, 2], [1, 2], [1], [1]]}
TINY = {
    "network": {"detector": "ssd", "backbone": "mobilenet"},
    "nc": 3,
    "backbone": {
        "depth": STAGES,
        "expand_ratio": {"values": [[1], [3, 4], [3, 6], [3], [3]], "sample": "block"},
        "kernel_size": {"values": [[3], [3, 5, 7], [3, 5], [3], [5]], "sample": "block"},
    },
    "neck": {"depth": [1], "out_channel": [16], "expand_ratio": {"values": [0.25, 0.5]}},
    "head": {"depth": [1]},
    "options": {
        "layer_channels": [8, 8, 8, 16, 16, 16, 32],
        "strides": [1, 2, 2, 2, 2],
        "squeeze": [2],
        "hard_swish": 3,
        "levels": 3,
        "scales": [0.2, 0.4, 0.6, 0.8, 1.0],
        "aspect_ratios": [[2], [2, 3], [2], [2]],
    },
}


def tiny(**options):
    return TINY | {"options": TINY["options"] | options}


@pytest.fixture(scope="module")
def supernet():
    torch.manual_seed(0)
    return Supernet(TINY)


@pytest.fixture(scope="module")
def net(supernet):
    return supernet.extract(supernet.space.default())


def test_sizes_are_those_of_the_published_space():
    space = open_any_space("models/ofa_ssd_voc.yaml")
    raw, distinct = space.size()
    assert distinct == (9**2 + 9**3 + 9**4) ** 5
    # Parameters in millions and MACs in millions of aw_nas's network at 300 px with 20 classes, whose class
    # predictors have a 21st column; ours have none with the focal loss: 12,352 parameters fewer.
    for arch, params, macs in (
        (space.largest(), 6.55, 1120),
        (space.default(), 3.43, 539),
        (space.smallest(), 2.29, 300),
    ):
        cost = space.cost(arch, 300)
        assert cost["params_m"] == pytest.approx(params, rel=0.005)
        assert cost["gflops"] / 2 * 1000 == pytest.approx(macs, rel=0.002)


def test_there_are_2268_anchors_at_300_pixels():
    from models.elastic.costs import _positions

    space = open_any_space("models/ofa_ssd_voc.yaml")
    heads = {name: m for name, m in space._skeleton.named_modules() if name.startswith("box.")}
    cells = _positions(space._skeleton, (3, 300, 300))
    found = [cells[heads[f"box.{i}.predict"]] for i in range(6)]
    assert found == [19**2, 10**2, 5**2, 3**2, 2**2, 1]
    assert sum(n * a for n, a in zip(found, (4, 6, 6, 6, 4, 4), strict=True)) == 2268


@pytest.mark.parametrize("loss", ["focal", "multibox"])
def test_a_slice_in_place_is_the_extracted_network(loss):
    torch.manual_seed(0)
    supernet = Supernet(tiny(loss=loss)).eval()
    for matrix in (p for n, p in supernet.named_parameters() if "transforms" in n):
        torch.nn.init.normal_(matrix, std=0.3)  # so that a kernel without its matrix would be seen
    images = torch.rand(2, 3, 64, 64)
    rng = np.random.default_rng(0)
    for _ in range(4):
        arch = supernet.sample(rng)
        with torch.no_grad():
            ours, plain = supernet(images), supernet.extract(arch).eval()(images)
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
        built = supernet.space.build(arch).state_dict()
        assert {k: v.shape for k, v in built.items()} == {
            k: v.shape for k, v in supernet.extract(arch).state_dict().items()
        }


def test_a_kernel_of_3_goes_through_both_matrices(supernet):
    conv = supernet.net.backbone.stages[1][0].depthwise.conv
    weight, seven, five = conv.weight.detach(), conv.transforms["5"].detach(), conv.transforms["3"].detach()
    with torch.no_grad():
        conv.transforms["5"].copy_(2 * torch.eye(25))
        conv.transforms["3"].copy_(3 * torch.eye(9))
        conv.set_arch({"backbone.kernel_size.1.0": 3})
        found = conv.active_weight(weight.size(0))
        conv.transforms["5"].copy_(torch.eye(25))
        conv.transforms["3"].copy_(torch.eye(9))
    assert seven.shape == (25, 25) and five.shape == (9, 9)
    torch.testing.assert_close(found, 6 * weight[: len(found), :, 2:5, 2:5])


@pytest.mark.parametrize("size", [(64, 64), (100, 68)])
def test_anchors_are_torchvision_s(net, size):
    images = torch.rand(1, 3, *size)
    with torch.no_grad():
        logits, offsets, anchors = net.eval().raw(images)
        maps = net.backbone(images)[-3:]
        maps.append(net.neck[0](maps[-1]))
    generator = DefaultBoxGenerator([[2], [2, 3], [2], [2]], scales=[0.2, 0.4, 0.6, 0.8, 1.0])
    (expected,) = generator(ImageList(images, [size]), maps)
    torch.testing.assert_close(anchors, expected, atol=1e-4, rtol=0)
    assert logits.shape == (1, len(expected), 3) and offsets.shape == (1, len(expected), 4)


def test_matching(net):
    anchors = [[0, 0, 10, 10], [0, 0, 10, 4.5], [0, 0, 10, 3], [20, 20, 24, 24], [50, 50, 60, 60.0]]
    anchors = torch.tensor(anchors)
    boxes = torch.tensor([[0, 0, 10, 10], [20, 20, 40, 40.0]])
    # 1 exactly; .45 between; .3 background; the second object's best, although .04; far away
    assert net._match(boxes, anchors).tolist() == [0, -2, -1, 1, -1]
    assert net._match(boxes[:0], anchors).tolist() == [-1] * 5


def test_objects_without_an_area_are_left_out(net):
    images = batch((0, 1, 0.5, 0.5, 0.0, 0.3))
    assert net.losses(net.raw(images["img"]), images)["box"] == 0


def test_focal_loss_by_hand(net):
    raw = net.eval().raw(OBJECTS["img"])
    found = net.losses(raw, OBJECTS)
    logits, offsets, anchors = raw
    cls, box = [], []
    for i in range(2):
        mine = OBJECTS["batch_idx"] == i
        c, s = (OBJECTS["bboxes"][mine] * 64).split(2, 1)
        boxes, labels = torch.cat((c - s / 2, c + s / 2), 1), OBJECTS["cls"][mine].long().flatten()
        iou = box_iou(boxes, anchors)
        best, which = iou.max(0)
        positive, between = best >= 0.5, (best >= 0.4) & (best < 0.5)
        for k, row in enumerate(iou):
            positive[row.argmax()], which[row.argmax()] = True, k
        targets = torch.zeros(len(anchors), 3)
        targets[positive, labels[which[positive]]] = 1
        told = positive | ~between
        cls.append(sigmoid_focal_loss(logits[i][told], targets[told], 0.25, 2).sum() / positive.sum())
        size, at = anchors[:, 2:] - anchors[:, :2], (anchors[:, 2:] + anchors[:, :2]) / 2
        wanted = torch.cat((10 * (c[which] - at) / size, 5 * (s[which] / size).log()), 1)
        apart = F.smooth_l1_loss(offsets[i], wanted, beta=1 / 9, reduction="none").mean(1)
        box.append(apart[positive].sum() / positive.sum())
    torch.testing.assert_close(found["cls"], torch.stack(cls).mean())
    torch.testing.assert_close(found["box"], torch.stack(box).mean())


def test_multibox_takes_three_negatives_for_each_positive():
    torch.manual_seed(0)
    supernet = Supernet(tiny(loss="multibox"))
    net = supernet.extract(supernet.space.smallest()).eval()
    raw = net.raw(OBJECTS["img"])
    assert raw[0].size(2) == 4  # the background is column 0
    targets = net._targets(raw, OBJECTS)
    logits, n = raw[0].detach(), sum(int((m >= 0).sum()) for m, _, _ in targets)
    total = 0.0
    for i, (matched, _, labels) in enumerate(targets):
        negative = -logits[i].log_softmax(1)[matched == -1, 0]
        chances = logits[i].log_softmax(1)
        positive = [-float(chances[a, 1 + labels[m]]) for a, m in enumerate(matched) if m >= 0]
        total += sum(positive) + sum(sorted(negative.tolist())[-3 * len(positive) :])
    assert float(net.losses(raw, OBJECTS)["cls"]) == pytest.approx(total / n, rel=1e-4)
    boxes, scores = net.decode(raw, OBJECTS["img"])
    torch.testing.assert_close(scores, raw[0].softmax(2)[..., 1:])
    wanted = net.coder.decode_single(raw[1][0], raw[2]).clamp(0, 64)
    torch.testing.assert_close(boxes[0], wanted, atol=1e-3, rtol=1e-4)


def test_scores_begin_at_one_percent(supernet):
    for predictor in supernet.net.cls:
        bias = predictor.predict.bias
        torch.testing.assert_close(bias.sigmoid(), torch.full_like(bias, 0.01))


def test_one_image_of_64_pixels_can_be_trained_on(supernet):
    supernet.train()
    supernet.set_arch(supernet.space.largest())
    losses = supernet.net.loss(batch((0, 1, 0.5, 0.5, 0.5, 0.5), images=1))
    sum(losses.values()).backward()
    assert all(m.training for m in supernet.modules())
    supernet.zero_grad()


def adaptive(student, teacher, beta=1.5, gamma=1.0, t=2.0):
    """The loss of one anchor and class, by its formula."""
    p, q = 1 / (1 + math.exp(-student / t)), 1 / (1 + math.exp(-teacher / t))
    own = -(q * math.log(q) + (1 - q) * math.log(1 - q))
    kl = -(q * math.log(p) + (1 - q) * math.log(1 - p)) - own
    return (1 - math.exp(-kl - beta * own)) ** gamma * kl


def test_distillation_is_of_positive_anchors_alone_and_by_image(net):
    raw = tuple(t.detach() for t in net.eval().raw(OBJECTS["img"]))
    teacher = (raw[0] + torch.randn_like(raw[0]), raw[1], raw[2])
    matched = [m for m, _, _ in net._targets(raw, OBJECTS)]
    expected = {"positive": [], "all": []}
    for i, m in enumerate(matched):
        rows = [
            sum(adaptive(float(s), float(t)) for s, t in zip(a, b, strict=True))
            for a, b in zip(raw[0][i], teacher[0][i], strict=True)
        ]
        n = int((m >= 0).sum())
        expected["positive"].append(sum(r for r, k in zip(rows, m, strict=True) if k >= 0) / n)
        expected["all"].append(sum(rows) / n)
    for anchors, of_images in expected.items():
        found = net.distil(raw, teacher, OBJECTS, anchors=anchors)
        assert float(found["cls"]) == pytest.approx(sum(of_images) / 2, rel=1e-4)
        assert float(net.distil(raw, raw, OBJECTS, anchors=anchors)["cls"]) == pytest.approx(0, abs=1e-6)
    with pytest.raises(UserError, match="unknown option anchors of distillation 'negative'"):
        net.distil(raw, teacher, OBJECTS, anchors="negative")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": "huber"}, "unknown option loss 'huber'"),
        ({"levels": 6}, "option levels should be 1 to 5, the maps of the backbone, got 6"),
        ({"scales": [0.2, 0.4]}, "option scales should be 5 positive numbers for 4 maps, got"),
        ({"aspect_ratios": [[2]]}, "option aspect_ratios should be 4 lists of positive numbers, one a map"),
        ({"version": 4}, "unknown version of mobilenet '4'; known: 2, 3"),
        ({"strides": [1, 2, 2, 2, 1]}, "option strides should be 1 or 2, four times 2"),
        ({"strides": [1, 2]}, "option strides should be 5 whole numbers"),
        ({"layer_channels": [8, 8]}, "option layer_channels should be 7 whole numbers"),
        ({"squeeze": [7]}, "unknown stage of option squeeze '7'"),
        ({"squeeze": 2}, "option squeeze should be a list of stages, got 2"),
        ({"mult_ratio": -1}, "option mult_ratio should be a number above 0"),
    ],
)
def test_options_that_cannot_be_are_one_line(options, said):
    with pytest.raises(UserError) as caught:
        open_any_space(tiny(**options)).supernet()
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_channels_are_multiplied_but_for_the_first_and_last():
    space = open_any_space(tiny(mult_ratio=0.5, layer_channels=[10, 32, 32, 32, 32, 64, 96]))
    widths = [s[0].project.norm.num_features for s in space._skeleton.backbone.stages]
    assert widths == [16, 16, 16, 16, 32] and space._skeleton.backbone.stem.norm.num_features == 10
    assert space._skeleton.backbone.tail.norm.num_features == 96


def test_a_frozen_backbone_stands_still_with_its_norms(supernet):
    net = supernet.extract(supernet.space.default()).train()
    norms = freeze(net, ["backbone"])
    inside = [m for m in net.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {id(m) for m in norms} == {id(m) for m in inside}
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for norm in norms:
        norm.eval()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    sum(net.loss(OBJECTS).values()).backward()
    optimizer.step()
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert not [k for k in moved if k.startswith("backbone.")]
    assert {k.split(".")[0] for k in moved} == {"neck", "cls", "box"}
    assert any("running_mean" in k for k in moved)


@pytest.mark.parametrize("loss", ["multibox", "focal"])
def test_torchvision_s_own_ssd_says_what_the_exported_network_says(tmp_path, loss):
    """Built from the file: the same raw outputs at any size; the same detections where it scores as we do."""
    torch.manual_seed(3)
    space = open_any_space(tiny(loss=loss))
    arch = space.random(np.random.default_rng(5))
    net = space.build(arch)
    net.names = ["cat", "dog", "cow"]
    with torch.no_grad():  # norms as after a training
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(1, 2)
    net.eval()
    path = tmp_path / "1.torchvision.pth"
    said = export(net, path, "torchvision", space=space, arch=arch, imgsz=64)
    assert said.max_difference < 1e-5 and len(said.sizes) == 2
    file = torch.load(path, weights_only=True)
    theirs = detector(file, conf=0.2, iou=0.5, max_det=50)
    assert type(theirs) is torchvision.models.detection.ssd.SSD
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found, ours = theirs(list(images)), net.predict(images, conf=0.2, iou=0.5, max_det=50)
        raw = theirs.head(list(theirs.backbone(images).values()))
        torch.testing.assert_close(raw["cls_logits"], net.raw(images)[0], atol=1e-5, rtol=1e-4)
    if loss == "focal":
        assert "all of torchvision's SSD but its scores" in str(said)
        assert file["detector"]["scores"] == "sigmoid" and file["detector"]["columns"] == 3
        return
    assert "all of torchvision's SSD" in str(said) and file["detector"]["scores"] == "softmax"
    assert sum(len(each["boxes"]) for each in ours) > 20
    for one, other in zip(found, ours, strict=True):
        assert torch.equal(one["labels"], other["labels"] + 1)
        torch.testing.assert_close(one["scores"], other["scores"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-3, rtol=1e-4)
