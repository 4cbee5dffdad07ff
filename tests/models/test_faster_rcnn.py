"""Faster R-CNN against torchvision's with the same weights: losses, predictions, its files; and by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from models.elastic.space import ElasticSpace
from models.export import export
from models.foreign_names import published_names
from models.inherit import inherit
from models.supernet import Supernet
from tests.models.elastic_kinds import scramble
from tests.models.stock import isolated
from tests.models.test_retinanet import OBJECTS, batch
from utils.errors import UserError

torch.set_num_threads(1)
SPACE = {
    "network": {"detector": "faster_rcnn", "backbone": "resnet"},
    "nc": 3,
    "backbone": {"depth": [1] * 5, "out_channel": [8, 8, 8, 16, 16]},
    "neck": {"depth": [3, 4], "out_channel": {"min": 8, "max": 16, "stride": 8}},
    "head": {"depth": [2], "out_channel": {"min": 16, "max": 24, "stride": 8, "sample": "block"}},
    "options": {"anchor_scales": [3.0], "candidates": 50, "proposals": 60},
}
FOUR_CONVS = SPACE | {"head": {"depth": [1], "out_channel": 16}}
FOUR_CONVS["options"] = SPACE["options"] | {"head_convs": 4, "rpn_convs": 2}


class Body(nn.Module):
    """torchvision's way of a backbone with FPN, over ours."""

    def __init__(self, body, widths, out):
        super().__init__()
        self.body, self.out_channels = body, out
        self.fpn = FeaturePyramidNetwork(widths, out, LastLevelMaxPool())

    def forward(self, x):
        maps = self.body(x)[-3:]
        return self.fpn({str(i): m for i, m in enumerate(maps)})


def torchvisions(net, four=False, **options):
    """A fresh torchvision detector of the same shape, which leaves images as they are."""
    out = net.neck.outputs[0].out_channels
    sizes = tuple((3.0 * s,) for s in (8, 16, 32, 64))
    head = TwoMLPHead(out * 49, 24)
    if four:
        head = FastRCNNConvFCHead((out, 7, 7), [out] * 4, [16], norm_layer=nn.BatchNorm2d)
    told = FasterRCNN(
        Body(net.backbone, [8, 16, 16], out),
        None,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 4),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 7, 2),
        box_head=head,
        box_predictor=net.roi_heads.box_predictor,
        image_mean=[0, 0, 0],
        image_std=[1, 1, 1],
        min_size=64,
        max_size=64,
        rpn_pre_nms_top_n_train=50,
        rpn_pre_nms_top_n_test=50,
        rpn_post_nms_top_n_train=60,
        rpn_post_nms_top_n_test=60,
        **options,
    )
    if four:
        convs = [told.rpn.head.conv[0], type(told.rpn.head.conv[0])(out, out, 3, norm_layer=None)]
        told.rpn.head.conv = nn.Sequential(*convs)
    return told


@pytest.fixture(scope="module", params=[False, True], ids=["two linear layers", "four convolutions"])
def pair(request, tmp_path_factory):
    """(ours, torchvision's), the first with the weights of the second's file."""
    torch.manual_seed(0)
    supernet = scramble(Supernet(FOUR_CONVS if request.param else SPACE))
    net = supernet.extract(supernet.space.largest()).eval()
    told = torchvisions(net, request.param).eval()
    for name, p in told.named_parameters():
        if "bbox_pred" in name or "cls" in name or "rpn" in name:
            nn.init.normal_(p, std=0.1)
    path = tmp_path_factory.mktemp("files") / "theirs.pth"
    torch.save({k: v.clone() for k, v in told.state_dict().items()}, path)
    for name, p in net.named_parameters():
        if not name.startswith(("backbone", "roi_heads.box_predictor")):
            nn.init.zeros_(p)
    account = inherit(net, path)
    inherited = {name for name, what in account.layers.items() if what == "exact"}
    ours = {name.rpartition(".")[0] for name in net.state_dict() if not name.startswith("backbone")}
    assert ours <= inherited
    return net, told


def images(n=2, h=64, w=64):
    return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(1))


def test_what_it_predicts_is_torchvision_s(pair):
    net, told = pair
    x = images()
    with torch.no_grad():
        wanted = told(list(x))
        found = net.predict(x, conf=0.05, iou=0.5, max_det=100)
    assert sum(len(each["scores"]) for each in wanted) > 20
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a["scores"], b["scores"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a["boxes"], b["boxes"], rtol=1e-3, atol=1e-2)
        assert torch.equal(a["labels"], b["labels"] - 1)


def test_its_losses_are_torchvision_s(pair):
    """In train mode with the same draws. The batch norms of both keep their statistics."""
    net, told = pair
    boxes = [[], []]
    for image, label, cx, cy, w, h in (
        (0, 1, 0.5, 0.5, 0.5, 0.5),
        (0, 2, 0.25, 0.75, 0.3, 0.4),
        (1, 0, 0.6, 0.4, 0.6, 0.3),
    ):
        corners = [64 * (cx - w / 2), 64 * (cy - h / 2), 64 * (cx + w / 2), 64 * (cy + h / 2)]
        boxes[image].append((label + 1, corners))
    targets = [
        {"labels": torch.tensor([b[0] for b in each]), "boxes": torch.tensor([b[1] for b in each])}
        for each in boxes
    ]
    for each in (net, told):
        each.train()
        for module in each.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    torch.manual_seed(3)
    found = net.loss(OBJECTS)
    torch.manual_seed(3)
    wanted = told(list(OBJECTS["img"]), targets)
    net.eval(), told.eval()
    names = {"objectness": "loss_objectness", "anchors": "loss_rpn_box_reg", "cls": "loss_classifier"}
    names["box"] = "loss_box_reg"
    for ours, theirs in names.items():
        # Which of two equal proposals comes first may differ, and with it what is drawn.
        torch.testing.assert_close(found[ours], wanted[theirs], rtol=0.05, atol=1e-3)
    torch.testing.assert_close(found["objectness"], wanted["loss_objectness"])
    torch.testing.assert_close(found["anchors"], wanted["loss_rpn_box_reg"])


def test_samples_are_drawn_by_torch_s_generator_in_training_alone():
    torch.manual_seed(0)
    net = ElasticSpace(SPACE).build(ElasticSpace(SPACE).default())

    one = batch((0, 1, 0.5, 0.5, 0.5, 0.5), images=1, side=96)  # with 576 anchors, of which 256 are drawn

    def drawn(seed):
        torch.manual_seed(seed)
        return torch.stack(list(net.loss(one).values()))

    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))
    net.eval()
    assert torch.equal(drawn(0), drawn(1))
    before = torch.get_rng_state()
    net.loss(one)
    assert torch.equal(before, torch.get_rng_state())


def test_it_costs_what_torch_counts_and_needs_no_weights_for_that():
    space = ElasticSpace(FOUR_CONVS)
    for arch in (space.smallest(), space.largest()):
        net = space.build(arch).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(images(1, 96, 96))
        cost = space.cost(arch, 96)
        assert cost["gflops"] * 1e9 == counter.get_total_flops()
        assert cost["params_m"] * 1e6 == sum(p.numel() for p in net.parameters())


def test_images_without_objects_are_background():
    net = ElasticSpace(SPACE).build(ElasticSpace(SPACE).default())
    losses = net.loss(batch())
    assert losses["box"] == 0 and losses["anchors"] == 0 and losses["cls"] > 0 and losses["objectness"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for name, p in net.named_parameters() if "rpn" in name)


def test_small_images_have_empty_proposals():
    """32 px have 67 positions of 3 anchors less than 4 levels of 50: the rest are empty and score nothing."""
    net = ElasticSpace(SPACE).build(ElasticSpace(SPACE).default()).eval()
    with torch.no_grad():
        raw = net.raw(images(1, 32, 32))
        boxes, scores = net.decode(raw, images(1, 32, 32))
    real = raw["real"][0]
    assert raw["proposals"].shape == (1, 60, 4) and 0 < real.sum() < 60
    assert (raw["proposals"][0, ~real] == 0).all() and real[: int(real.sum())].all()
    assert boxes.shape == (1, 180, 4) and scores.shape == (1, 180, 3)
    assert (boxes >= 0).all() and (boxes <= 32).all()
    assert (scores[0].reshape(60, 3, 3)[~real] == 0).all() and ((scores > 0).sum(-1) <= 1).all()


def test_of_many_rows_the_best_are_given(monkeypatch):
    net = ElasticSpace(SPACE).build(ElasticSpace(SPACE).default()).eval()
    with torch.no_grad():
        x = images(1)
        raw = net.raw(x)
        boxes, scores = net.decode(raw, x)
        monkeypatch.setattr("models.detectors.faster_rcnn.ROWS", 40)
        few, best = net.decode(raw, x)
    chosen = scores.sum(-1)[0].topk(40).indices.sort().values
    assert torch.equal(few, boxes[:, chosen]) and torch.equal(best, scores[:, chosen])


@pytest.mark.slow
def test_its_program_says_what_has_to_be_imported(tmp_path):
    """RoIAlign is torchvision's: plain torch cannot load it, and the line that the export prints can."""
    space = ElasticSpace(SPACE)
    net, path = space.build(space.default()).eval(), tmp_path / "x.pt2"
    said = export(net, path, "pt", space=space, arch=space.default(), imgsz=64)
    assert said.values["needs"] == ["torch", "torchvision"]
    assert "import torchvision; torch.export.load(FILE).module()(images" in str(said)
    load = f"print(json.dumps(len(torch.export.load({str(path)!r}).module()(torch.rand(1, 3, 64, 64)))))"
    assert isolated(f"import torchvision; {load}", tmp_path, ultralytics=False) == 2
    with pytest.raises(AssertionError, match="torchvision"):
        isolated(load, tmp_path, ultralytics=False)


def test_it_learns_and_finds():
    torch.manual_seed(0)
    supernet = Supernet(SPACE)
    one = batch((0, 1, 0.5, 0.5, 0.5, 0.5), images=1)
    optimizer = torch.optim.AdamW(supernet.parameters(), 2e-3)
    supernet.train()
    for _ in range(60):
        loss = sum(supernet.net.loss(one).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        supernet(one["img"])
    best = supernet.net.predict(one["img"])[0]
    assert best["labels"][0] == 1 and best["scores"][0] > 0.5
    assert box_iou(best["boxes"][:1], torch.tensor([[16.0, 16, 48, 48]])).item() > 0.6


def test_mistakes():
    for key, value, said in (
        ("candidates", 0, "option candidates should be a whole number, 1 or more, got 0"),
        ("head_convs", 1.5, "option head_convs should be a whole number, 0 or more, got 1.5"),
        ("proposals", 999, "option proposals should be at most candidates x levels, 200, got 999"),
        ("anchor_scales", 8, "option anchor_scales should be positive numbers, got 8"),
    ):
        options = SPACE["options"] | {key: value}
        with pytest.raises(UserError, match=said):
            ElasticSpace({**SPACE, "options": options}).supernet()


def test_published_classes_without_the_background():
    names = published_names(90)
    assert len(names) == 90 and names[0] == "person" and names[-1] == "toothbrush"
