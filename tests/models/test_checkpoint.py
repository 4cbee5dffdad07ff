"""A space around a trained Ultralytics network: what it is made of; the network itself lies in it."""

import copy
import pickle

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import models.yolo
from models.inherit import Source, inherit
from models.networks import open_any_space
from models.weights import save_weights
from models.yolo.checkpoint import space_around
from models.yolo.stock_yaml import expand
from tests.models.elastic_kinds import scramble
from utils.errors import UserError
from utils.offline import quiet_ultralytics

quiet_ultralytics()

from ultralytics.nn.modules import Detect  # noqa: E402
from ultralytics.nn.tasks import (  # noqa: E402
    ClassificationModel,
    DetectionModel,
    OBBModel,
    PoseModel,
    RTDETRDetectionModel,
    SegmentationModel,
)

torch.set_num_threads(1)
NAMES = ["cat", "dog", "owl"]
LONGER = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("yolov8n", "yolov10n", "yolo12n", "yolo26n")
]


@pytest.fixture(autouse=True)
def _class_state(monkeypatch):
    monkeypatch.setattr(Detect, "legacy", Detect.legacy)  # the stock parser writes to the class


def stock(name, nc=3, kind=DetectionModel):
    torch.manual_seed(0)
    net = scramble(kind(name, nc=nc, verbose=False)).eval()
    net.names = dict(enumerate(NAMES[:nc]))
    return net


def save(net, path, **settings):
    """As stock training leaves it, but for the half precision."""
    torch.save({"epoch": -1, "ema": None, "model": net, "train_args": {"imgsz": 160, **settings}}, path)
    return path


def made(path, imgsz=None):
    text, file = space_around(path, imgsz)
    return open_any_space(yaml.safe_load(text), nc=len(file.names)), file


def outputs(net, side=64):
    x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return net.eval()(x)[0]


@pytest.mark.parametrize("name", ["yolov5n", "yolo11n", *LONGER])
def test_the_network_itself_is_the_default_and_the_largest(name, tmp_path):
    theirs = stock(f"{name}.yaml")
    space, file = made(save(theirs, tmp_path / "best.pt"))
    net = space.build(space.default(), NAMES)
    account = inherit(net, file)
    assert account.share == 1 and not account.of("cut") + account.of("fresh") + account.left_over
    torch.testing.assert_close(outputs(net.model), outputs(theirs), atol=1e-5, rtol=1e-5)
    assert space.default()["resolution"] == 160 and space.default() == space.largest()
    cost = space.cost(space.default(), 160)
    assert cost["params_m"] * 1e6 == sum(p.numel() for p in theirs.parameters())
    source, rng = Source(file, net), np.random.default_rng(0)
    for arch in [space.random(rng) for _ in range(2)] + [space.smallest()]:
        small = space.build(arch, NAMES)
        account = inherit(small, source)  # every number of it, also of what is split, joined and shorter
        assert account.share == 1 and not account.of("fresh"), account
        assert space.cost(arch, 160)["params_m"] * 1e6 == sum(p.numel() for p in small.parameters())
        assert outputs(small.model, 32).isfinite().all()
    assert space.cost(space.smallest(), 160)["gflops"] < 0.5 * cost["gflops"]


def silence(conv, numbers):
    """A Conv (with batch norm and SiLU) gives zero in these channels."""
    with torch.no_grad():
        conv.bn.weight[numbers], conv.bn.bias[numbers] = 0.0, 0.0


@pytest.mark.parametrize("shortcut", [True, False])
def test_of_a_split_map_the_channels_that_say_nothing_go(shortcut, tmp_path):
    """A C2f half of whose hidden channels are silent, in each of its halves others, loses just those."""
    theirs = stock("yolov8n.yaml")
    block, generator = theirs.model[4 if shortcut else 15], torch.Generator().manual_seed(1)
    h = block.c

    def half():
        return torch.randperm(h, generator=generator)[: h // 2]

    first, second = half(), half()
    silence(block.cv1, torch.cat([first, h + second]))
    for bottleneck in block.m:
        silence(bottleneck.cv1, half())
        silence(bottleneck.cv2, second if shortcut else half())  # added to what it reads
    space, file = made(save(theirs, tmp_path / "best.pt"))
    label = f"c2f_{4 if shortcut else 15}_e"
    arch = space.default() | {label: min(space.choices[label])}
    small = space.build(arch, NAMES)
    inherit(small, Source(file, space.build(space.largest())))
    assert small.model.model[4 if shortcut else 15].c == h // 2
    torch.testing.assert_close(outputs(small.model), outputs(theirs), atol=1e-4, rtol=1e-4)


def test_a_shorter_c2f_reads_what_is_left(tmp_path):
    """The last bottleneck's share of the join is silent: without it the network is the same."""
    theirs = stock("yolov8n.yaml")
    block = theirs.model[6]
    with torch.no_grad():
        block.cv2.conv.weight[:, -block.c :] = 0
    space, file = made(save(theirs, tmp_path / "best.pt"))
    small = space.build(space.default() | {"c2f_6_depth": 1}, NAMES)
    inherit(small, Source(file, space.build(space.largest())))
    torch.testing.assert_close(outputs(small.model), outputs(theirs), atol=1e-3, rtol=1e-4)


def test_class_towers_made_for_more_classes_are_kept_as_stock_training_keeps_them(tmp_path):
    coco = stock("yolov5n.yaml", nc=3)
    theirs = DetectionModel(coco.yaml, nc=1, verbose=False)
    wide = DetectionModel(coco.yaml, nc=80, verbose=False)
    theirs.load(wide, verbose=False)
    theirs.names = {0: "owl"}
    assert theirs.model[-1].cv3[0][-1].in_channels == 80  # and its YAML says nc: 1
    space, file = made(save(theirs, tmp_path / "best.pt"))
    net = space.build(space.default(), ["owl"])
    inherit(net, file)
    torch.testing.assert_close(outputs(net.model), outputs(theirs.eval()), atol=1e-5, rtol=1e-5)
    assert space.cost(space.default(), 160)["params_m"] * 1e6 == sum(p.numel() for p in theirs.parameters())
    assert expand(net.model).lost == []
    again = DetectionModel(copy.deepcopy(net.model.yaml), nc=1, verbose=False)  # as stock training does
    again.load(net.model, verbose=False)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in net.model.state_dict().items()
    }


def test_sides_of_images_are_multiples_of_the_stride(tmp_path):
    path = save(stock("yolov5n.yaml"), tmp_path / "best.pt", imgsz=640)
    assert made(path)[0].choices["resolution"] == [640, 384, 512]
    assert made(path, 160)[0].choices["resolution"] == [160, 96, 128]
    assert "resolution" not in made(path, 100)[0].choices  # the experiment says what is wrong with 100


def test_what_attention_reads_stays_as_wide(tmp_path):
    choices = made(save(stock("yolo26n.yaml"), tmp_path / "best.pt"))[0].choices
    assert "c3k2_8_width" not in choices and "conv_7_width" in choices and "c3k2_6_e" in choices


def test_a_yolov5_checkpoint_gives_its_backbone_and_neck(tmp_path, monkeypatch):
    """Of the YOLOv5 repository: another class, anchors in the YAML, and the old names of the head."""
    theirs = stock("yolov5n.yaml")

    class Old(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.names = theirs.model, NAMES
            self.model[-1] = nn.ModuleDict({"m": nn.ModuleList([nn.Conv2d(64, 24, 1)])})
            rows = copy.deepcopy(theirs.yaml["head"])
            rows[-1][3] = ["nc", "anchors"]
            self.yaml = theirs.yaml | {"anchors": [[10, 13]] * 3, "head": rows}

    Old.__module__, Old.__qualname__ = "models.yolo", "Old"
    monkeypatch.setattr(models.yolo, "Old", Old, raising=False)
    path = tmp_path / "old.pt"
    torch.save({"model": Old(), "ema": None}, path)
    monkeypatch.delattr(models.yolo, "Old")
    space, file = made(path)
    assert any("anchor" in notice for notice in space.notices)
    account = inherit(space.build(space.default(), NAMES), file)
    assert all(name.startswith("model.model.24.") for name in account.of("fresh")) and account.of("exact")


OTHERS = {
    "yolov8n-seg.yaml": (SegmentationModel, "Segment"),
    "yolov8n-pose.yaml": (PoseModel, "Pose"),
    "yolov8n-obb.yaml": (OBBModel, "OBB"),
    "yolov8n-cls.yaml": (ClassificationModel, "Classify"),
    "rtdetr-resnet50.yaml": (RTDETRDetectionModel, ""),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_detector_is_told_in_one_line(name, tmp_path):
    kind, head = OTHERS[name]
    if kind is RTDETRDetectionModel:  # large: only what its file says of it
        net = stock("yolov5n.yaml")
        net.yaml["head"][-1] = [[17, 20, 23], 1, "RTDETRDecoder", ["nc"]]
    else:
        net = stock(name, kind=kind)
    path = save(net, tmp_path / "other.pt")
    with pytest.raises(UserError, match=f"space .*other.pt is no detector to slim: .*{head}"):
        space_around(path)


def test_files_that_hold_no_network(tmp_path):
    net = stock("yolov5n.yaml")
    torch.save(net.state_dict(), tmp_path / "state.pt")
    with pytest.raises(UserError, match="weights without the network that they are of; give space=DETECTOR"):
        space_around(tmp_path / "state.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(UserError, match="text.pt is no weight file"):
        space_around(tmp_path / "text.pt")
    space, _ = made(save(net, tmp_path / "best.pt"))
    ours = space.build(space.default(), NAMES)
    save_weights(tmp_path / "ours.pt", ours, space, space.default(), imgsz=64)
    with pytest.raises(UserError, match="ours.pt is a file of ours"):
        space_around(tmp_path / "ours.pt")
    with open(tmp_path / "code.pt", "wb") as file:
        pickle.dump(print, file)
    with pytest.raises(UserError, match="code.pt"):
        space_around(tmp_path / "code.pt")
    net.yaml = {"nc": 3}
    with pytest.raises(UserError, match="is no detector to slim: not a detector: 'backbone' should be"):
        space_around(save(net, tmp_path / "odd.pt"))
    net.yaml["itself"] = net.yaml
    with pytest.raises(UserError, match="without the network"):
        space_around(save(net, tmp_path / "odd.pt"))
