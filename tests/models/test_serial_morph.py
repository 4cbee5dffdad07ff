"""A changed code takes the weights of the code that it was changed from, block by block."""

from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.models import resnet18
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from models.inherit import inherit
from models.serial.code import CHANGES, RATES, heir, mutate, parse
from models.serial.space import SerialSpace
from models.weights import load_weights, read_weights, save_weights
from tests.models.test_serial_space import SMALL
from utils.errors import UserError

X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def space(**changes):
    return SerialSpace(SMALL | changes, nc=3)


def wake(net):
    """Weights and statistics as of a training: no branch is silent."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
        for name, b in net.named_buffers():
            if "running" in name:
                b.uniform_(0.5, 1.5, generator=generator)
    return net.eval()


def saved(path, serial, arch):
    net = wake(serial.build(arch))
    save_weights(path, net, serial, arch, imgsz=64)
    return net


def apart(a, b):
    with torch.no_grad():
        return max((p - q).abs().max().item() for p, q in zip(a.eval().raw(X), b.eval().raw(X), strict=True))


@pytest.mark.parametrize("kind", ["b", "r", "x(2x8d)"])
def test_expanding_keeps_what_the_network_computes(tmp_path, kind):
    serial = space(code=f"{kind}_11-21-2-2", base=8)
    parent = saved(tmp_path / "w.pt", serial, serial.default())
    for code in dict.fromkeys(CHANGES["expand"](serial.base, 99)):
        child = serial.build({"code": str(code)})
        account = inherit(child, tmp_path / "w.pt")
        assert apart(child, parent) < 1e-5, code
        assert 0.5 < account.share < 1 and len(account.identities) == 1
        assert sorted(child.backbone.ids.tolist()) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("own", [False, True])
def test_extra_streams_begin_by_changing_nothing(tmp_path, own):
    serial = space(options={"own_streams": own})
    parent = saved(tmp_path / "w.pt", serial, serial.default())
    child = serial.build({"code": "b_11-21-2-2_1-0-2-3"})
    account = inherit(child, tmp_path / "w.pt")
    assert apart(child, parent) < 1e-5 and len(account.identities) >= 1
    if own:
        assert torch.equal(
            child.backbone.extra[2][1][0].conv1.weight, parent.backbone.stages[2][0].conv1.weight
        )


def test_a_block_keeps_its_weights_wherever_it_goes(tmp_path):
    serial = space(code="b_111-21-2-2")
    parent = saved(tmp_path / "w.pt", serial, serial.default())
    child = serial.build({"code": "b_11-121-2-2"})  # the boundary moved: block 2 begins stage 1 now
    account = inherit(child, tmp_path / "w.pt")
    assert torch.equal(child.backbone.stages[1][0].conv2.weight, parent.backbone.stages[0][2].conv2.weight)
    assert torch.equal(child.backbone.stages[1][2].conv1.weight, parent.backbone.stages[1][1].conv1.weight)
    assert account.layers["backbone.stages.1.0.downsample.0"] == "fresh"  # and passes on what it gets
    weight = child.backbone.stages[1][0].downsample[0].weight[:, :, 0, 0]
    assert torch.equal(weight, torch.eye(4))
    narrower = serial.build({"code": "b_111-12-2-2"})
    account = inherit(narrower, tmp_path / "w.pt")
    assert account.layers["backbone.stages.1.0.conv2"] == "cut" and account.share > 0.9


def test_ids_travel_with_the_weights_from_generation_to_generation(tmp_path):
    serial = space(code="b_11-21-2-2")
    saved(tmp_path / "0.pt", serial, serial.default())
    child = serial.build({"code": "b_111-21-2-2"})
    inherit(child, tmp_path / "0.pt")
    save_weights(tmp_path / "1.pt", child, serial, {"code": "b_111-21-2-2"}, imgsz=64)
    grandchild = serial.build({"code": "b_111-21-2-2-1"})
    inherit(grandchild, tmp_path / "1.pt")
    assert grandchild.backbone.ids.tolist() == [0, 1, 6, 2, 3, 4, 5, 7]
    assert serial.canonical({"code": "b_111-21-2-2"}) == {"code": "b_111-21-2-2"}  # no part of the arch
    same = serial.build({"code": "b_111-21-2-2"})
    load_weights(same, tmp_path / "1.pt", whole=True)
    assert same.backbone.ids.tolist() == [0, 1, 6, 2, 3, 4, 5]


@pytest.mark.parametrize("name", CHANGES)
def test_the_ids_of_a_single_change_are_found_again(name):
    parent = parse("111-2111-211111-211-11")
    for code in CHANGES[name](parent, 99):
        found = heir(code, parent)
        assert found == code
        kept = Counter(b.id for b in found.blocks) & Counter(b.id for b in parent.blocks)
        truly = Counter(b.id for b in code.blocks) & Counter(b.id for b in parent.blocks)
        assert len(kept) == len(truly)
        if name in ("boundary", "doubling", "add_stage", "drop_stage"):
            assert [b.id for b in found.blocks][: len(parent.blocks)] == [b.id for b in code.blocks][
                : len(parent.blocks)
            ]


def test_no_walk_inherits_less_than_its_own_ids_would():
    rng, parent = np.random.default_rng(0), parse("111-2111-211111-211")
    for _ in range(100):
        child = mutate(parent, rng, rates=RATES)
        kept = {b.id for b in child.blocks} & set(range(16))
        found = [b.id for b in heir(child, parent).blocks]
        assert len(set(found)) == len(found) and len(set(found) & set(range(16))) >= len(kept)


def test_torchvision_s_weights_come_in_by_name(tmp_path):
    theirs = resnet18()
    torch.save({f"backbone.body.{k}": v for k, v in theirs.state_dict().items()}, tmp_path / "r.pt")
    serial = space(code="b_11-21-21-21", base=64)
    net = serial.build({"code": "b_11-211-21-21"})
    account = inherit(net, tmp_path / "r.pt")
    assert account.share > 0.8 and net.backbone.ids.tolist() == [0, 1, 2, 3, 8, 4, 5, 6, 7]
    assert torch.equal(net.backbone.stem[0].weight, theirs.conv1.weight)
    assert torch.equal(net.backbone.stages[3][1].conv2.weight, theirs.layer4[1].conv2.weight)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.eval().conv1(X))))
    for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        x = layer(x)
    assert torch.allclose(net.eval().backbone(X)[-1], x, atol=1e-5)


@pytest.mark.slow
def test_torchvision_s_faster_rcnn_comes_in_by_name_with_other_classes(tmp_path):
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    torch.save(theirs, tmp_path / "r.pt")
    published = SerialSpace("models/spnas_resnet.yaml", nc=3)
    net = published.build(published.default(), ["person", "raccoon", "dog"])
    account = inherit(net, tmp_path / "r.pt")
    assert account.fresh_classes == ["raccoon"] and account.classes == {"person": "person", "dog": "dog"}
    ours, head = net.state_dict(), "roi_heads.box_predictor."
    exact = [name for name in ours if account.layers[name.rpartition(".")[0]] == "exact"]
    assert {n for n in ours if n not in exact} == {
        f"{head}{layer}.{kind}" for layer in ("cls_score", "bbox_pred") for kind in ("weight", "bias")
    }
    for a, b in (
        ("backbone.stem.0.weight", "backbone.body.conv1.weight"),
        ("backbone.stages.2.5.conv3.weight", "backbone.body.layer3.5.conv3.weight"),
        ("backbone.stages.3.0.downsample.1.running_var", "backbone.body.layer4.0.downsample.1.running_var"),
        ("neck.outputs.3.weight", "backbone.fpn.layer_blocks.3.0.weight"),
        ("rpn.head.cls_logits.weight", "rpn.head.cls_logits.weight"),
        ("roi_heads.box_head.blocks.0.linear.weight", "roi_heads.box_head.fc6.weight"),
    ):
        assert torch.equal(ours[a], theirs[b]), a
    assert sum(n.startswith(("backbone.", "neck.")) for n in exact) >= sum(
        n.startswith("backbone.") for n in theirs
    )
    for row, number in ((0, 0), (1, 1), (3, 18)):  # background, person, dog: number 18 of COCO's 91
        assert torch.equal(ours[f"{head}cls_score.weight"][row], theirs[f"{head}cls_score.weight"][number])
        boxes = (ours[f"{head}bbox_pred.weight"], theirs[f"{head}bbox_pred.weight"])
        assert torch.equal(boxes[0].view(4, 4, -1)[row], boxes[1].view(91, 4, -1)[number])


def test_weights_that_fit_no_parent_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no weights .*none.pt"):
        inherit(space().build(space().default()), tmp_path / "none.pt")
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="do not fit"):
        inherit(space().build(space().default()), read_weights(tmp_path / "other.pt"))
