"""Detectors of stock modules: what they hold, what they leave alone, their loss and what they predict."""

from __future__ import annotations

import copy
import io
import os
import pickle
import pickletools
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics.nn.modules import Conv, Detect
from ultralytics.nn.tasks import DetectionModel

from models.detector import Network
from models.networks import build
from models.yolo.detector import YoloDetector
from models.yolo.space import YoloSpace
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NANO = YoloSpace(ROOT / "models" / "yolov5n_nas.yaml", nc=4)
TINY = YoloSpace(
    {
        "nc": 3,
        "backbone": [[-1, 1, "NASConv", [16, 3, 4]], [-1, 1, "NASConv", [32, 3, 2]], [-1, 2, "NASC3", [32]]],
        "head": [[[2], 1, "Detect", ["nc"]]],
    }
)
STOCK = {
    *("DetectionModel", "Conv", "C3", "Bottleneck", "SPPF", "Concat", "Detect", "DFL"),  # ultralytics
    *(
        "Sequential",
        "ModuleList",
        "Conv2d",
        "BatchNorm2d",
        "SiLU",
        "ReLU",
        "Identity",
        "MaxPool2d",
        "Upsample",
    ),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def two_images():
    """A batch whose boxes are drawn in: a bright square of class 0, a dark one of class 2."""
    images = torch.full((2, 3, 64, 64), 0.5)
    images[0, :, 8:40, 8:40] = 1.0
    images[1, :, 24:56, 16:48] = 0.0
    return {
        "img": images,
        "bboxes": torch.tensor([[24, 24, 32, 32], [32, 40, 32, 32]]) / 64,
        "cls": torch.tensor([[0.0], [2.0]]),
        "batch_idx": torch.tensor([0.0, 1.0]),
    }


def sum_of(loss):
    return torch.stack(list(loss.values())).sum()


def test_the_default_is_the_stock_network():
    stock = DetectionModel("yolov5n.yaml", ch=3, nc=4, verbose=False)
    ours = build(NANO, NANO.default()).model
    shapes = {name: tensor.shape for name, tensor in stock.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes
    ours.load_state_dict(stock.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x)[0], stock.eval()(x)[0])
    assert torch.equal(ours.stride, stock.stride)


def test_layers_are_what_the_arch_says():
    arch = NANO.default() | {
        **{"nasconv_0": "8x8", "nasconv_1_act": "ReLU", "c3_6_width": 1.5, "c3_6_depth": 2},
        **{"c3_6_cv1": "3x3", "c3_6_cv1_act": "Identity", "c3_6_cv2_act": "ReLU", "c3_6_m1": 2.0},
    }
    layers = build(NANO, NANO.complete(arch)).model.model
    assert (layers[0].conv.kernel_size, layers[0].conv.padding, layers[0].conv.stride) == (
        (8, 8),
        (3, 3),
        (2, 2),
    )
    assert type(layers[0].act) is nn.SiLU
    assert type(layers[1].act) is nn.ReLU
    c3 = layers[6]  # 128 channels, 64 hidden in the stock network
    assert (c3.cv1.conv.kernel_size, c3.cv1.conv.padding, c3.cv2.conv.kernel_size) == ((3, 3), (1, 1), (1, 1))
    assert (type(c3.cv1.act), type(c3.cv2.act), type(c3.cv3.act)) == (nn.Identity, nn.ReLU, nn.SiLU)
    assert (c3.cv1.conv.out_channels, c3.cv3.conv.in_channels, len(c3.m)) == (96, 192, 2)
    assert [(b.cv1.conv.out_channels, b.cv2.conv.in_channels) for b in c3.m] == [(96, 96), (192, 192)]
    assert all(b.add for b in c3.m)


@pytest.mark.parametrize("arch", [NANO.smallest(), NANO.largest(), NANO.random(np.random.default_rng(5))])
def test_only_stock_modules_and_their_settings(arch):
    model = build(NANO, arch).model
    assert {type(m).__name__ for m in model.modules()} <= STOCK
    assert {type(m).__module__.split(".")[0] for m in model.modules()} == {"torch", "ultralytics"}
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.03)}
    assert model.model[9].cv1.act is Conv.default_act  # SPPF as YOLOv5 has it: activated
    assert all(m.np == sum(p.numel() for p in m.parameters()) for m in model.model)


def test_a_pickle_of_the_model_names_nobody_else():
    file = io.BytesIO()
    torch.save(build(NANO, NANO.random(np.random.default_rng(0))).model, file)
    with zipfile.ZipFile(file) as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    named = {
        str(arg).split(".")[0].split()[0] for op, arg, _ in pickletools.genops(pickled) if op.name == "GLOBAL"
    }
    assert named <= {"torch", "ultralytics", "collections", "types", "__builtin__"}
    assert "ultralytics" in named


@pytest.mark.parametrize("legacy", [True, False])
def test_nothing_is_left_on_classes(monkeypatch, legacy):
    monkeypatch.setattr(Detect, "legacy", legacy)  # as some other model may have left it
    before = (Conv.default_act, repr(Conv.default_act))
    one = build(TINY, TINY.default())
    leaky = YoloSpace(TINY.model | {"activation": "nn.LeakyReLU(0.1)"})
    other = build(leaky, leaky.default())
    with pytest.raises(KeyError), monkeypatch.context() as broken:
        broken.setattr(
            leaky, "stock", lambda arch: {**YoloSpace.stock(TINY, arch), "head": [[-1, 1, "Lost", []]]}
        )
        build(leaky, leaky.default())
    assert (Conv.default_act, repr(Conv.default_act)) == before
    assert Detect.legacy is legacy
    assert type(other.model.model[2].cv3.act) is nn.LeakyReLU
    assert type(one.model.model[2].cv3.act) is nn.SiLU
    assert isinstance(one.model.model[-1].cv3[0][0], Conv)  # v5's head either way
    acts = [layer.act for layer in build(TINY, TINY.default() | {"nasconv_0_act": "ReLU"}).model.model[:2]]
    assert [type(a) for a in acts] == [
        nn.ReLU,
        nn.SiLU,
    ]  # the object that all convolutions share is untouched


def test_weights_follow_torchs_seed():
    arch = NANO.random(np.random.default_rng(1))
    torch.manual_seed(7)
    one = build(NANO, arch).state_dict()
    torch.manual_seed(7)
    two = build(NANO, arch).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_it_is_a_detector():
    detector = build(NANO, NANO.default(), names=list("abcd"))
    assert isinstance(detector, Network)
    assert (detector.names, detector.nc, detector.stride) == (["a", "b", "c", "d"], 4, 32)
    assert detector.model.names == {0: "a", 1: "b", 2: "c", 3: "d"}
    with pytest.raises(UserError, match="2 class names for a detector of 4 classes"):
        detector.names = ["a", "b"]


def test_loss_is_ultralytics_own():
    detector, batch = build(TINY, TINY.default()), two_images()
    total, items = detector.model.loss(batch)
    ours = detector.loss(batch)
    assert list(ours) == ["box", "cls", "dfl"]
    assert torch.allclose(sum_of(ours), total.sum() / 2)  # theirs is times the batch size
    assert torch.allclose(torch.stack(list(ours.values())).detach(), torch.stack(list(items.values())))


def test_gains_scale_the_parts():
    detector, batch = build(TINY, TINY.default()), two_images()
    detector.eval()  # the same output twice
    plain = detector.loss(batch)
    detector.set_gains(box=15.0, cls=0.25)
    changed = detector.loss(batch)
    assert torch.allclose(changed["box"], 2 * plain["box"])
    assert torch.allclose(changed["cls"], plain["cls"] / 2)
    assert torch.allclose(changed["dfl"], plain["dfl"])
    assert build(TINY, TINY.default()).model.args.box == 7.5  # its own settings
    with pytest.raises(UserError, match="unknown loss gain 'bocks'"):
        detector.set_gains(bocks=1.0)


def test_a_batch_without_boxes():
    batch = two_images() | {
        "bboxes": torch.zeros(0, 4),
        "cls": torch.zeros(0, 1),
        "batch_idx": torch.zeros(0),
    }
    detector = build(TINY, TINY.default())
    loss = detector.loss(batch)
    assert loss["box"] == loss["dfl"] == 0
    assert loss["cls"] > 0
    sum_of(loss).backward()


def test_loss_is_float32_under_autocast():
    detector, batch = build(TINY, TINY.default()).eval(), two_images()
    exact = detector.loss(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = detector.loss(batch)
        found = detector.predict(batch["img"])
    assert all(part.dtype is torch.float32 for part in rough.values())
    assert all(torch.allclose(rough[key], exact[key], rtol=0.05) for key in exact)
    assert found[0]["boxes"].dtype is found[0]["scores"].dtype is torch.float32


def test_it_learns_two_squares_and_finds_them():
    detector, batch = build(TINY, TINY.default() | {"c3_2_width": 2.0}), two_images()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=0.01)
    first = sum_of(detector.loss(batch)).item()
    for _ in range(60):
        loss = sum_of(detector.loss(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.35 * first
    with torch.no_grad():  # running statistics of so few steps lag behind
        for m in detector.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.reset_running_stats()
                m.momentum = None
        detector.train()
        for _ in range(3):
            detector(batch["img"])
    assert detector.training
    found = detector.predict(batch["img"], conf=0.05)
    assert detector.training  # left as it was
    for got, box, label in zip(found, [[8, 8, 40, 40], [16, 24, 48, 56]], [0, 2], strict=True):
        assert got["labels"][0] == label
        assert torch.allclose(got["boxes"][0], torch.tensor(box).float(), atol=4)  # x1 y1 x2 y2 in pixels


def test_predictions_keep_their_contract():
    detector = build(NANO, NANO.default())
    found = detector.predict(torch.rand(3, 3, 64, 96), conf=0.0, max_det=7)
    assert len(found) == 3
    for one in found:
        assert one["boxes"].shape == (7, 4)
        assert one["scores"].shape == one["labels"].shape == (7,)
        assert one["labels"].dtype is torch.int64
        assert ((one["boxes"][:, 2:] - one["boxes"][:, :2]) > 0).all()
        assert (one["scores"].diff() <= 0).all()
        assert set(one["labels"].tolist()) <= {0, 1, 2, 3}
    none = detector.predict(torch.rand(1, 3, 64, 64), conf=1.0)[0]
    assert none["boxes"].shape == (0, 4)
    assert none["labels"].shape == (0,)


def test_predictions_are_ultralytics_own():
    """Decoding and NMS against the stock model's decoded output and the stock function."""
    from ultralytics.utils.nms import non_max_suppression

    detector = build(NANO, NANO.default()).eval()
    for tower in detector.model.model[-1].cv3:
        nn.init.normal_(tower[-1].bias, -3.0, 2.0)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        stock = non_max_suppression(detector.model(images)[0], 0.01, 0.7, multi_label=True, max_det=50)
    ours = detector.predict(images, conf=0.01, iou=0.7, max_det=50)
    for a, b in zip(ours, stock, strict=True):
        assert torch.allclose(a["boxes"], b[:, :4], atol=1e-4)
        assert torch.equal(a["scores"], b[:, 4])
        assert torch.equal(a["labels"], b[:, 5].long())


def test_copies_are_independent():
    detector = build(TINY, TINY.default())
    detector.loss(two_images())
    twin: YoloDetector = pickle.loads(pickle.dumps(copy.deepcopy(detector)))
    twin.set_gains(box=1.0)
    assert detector.model.args.box == 7.5
    assert not hasattr(detector.model, "criterion")  # nothing of the loss is saved along


def test_importing_costs_the_process_nothing():
    """No thread setting leaks, no torch for a space, no NNI for a detector, nothing under the home folder."""
    code = """
import os, sys
os.environ.pop("OMP_NUM_THREADS", None)
import models.yolo.space
assert "torch" not in sys.modules and "ultralytics" not in sys.modules and "nni" not in sys.modules
import torch
save = torch.save
import models.yolo.detector
assert "nni" not in sys.modules
assert "OMP_NUM_THREADS" not in os.environ
assert torch.save is save
from ultralytics.utils import ONLINE, SETTINGS, USER_CONFIG_DIR
assert not ONLINE and not SETTINGS["sync"]
assert str(USER_CONFIG_DIR).startswith(os.environ["XDG_CACHE_HOME"])
"""
    with tempfile.TemporaryDirectory() as home:
        env = {k: v for k, v in os.environ.items() if not k.startswith("YOLO_")}
        env |= {"HOME": home, "XDG_CACHE_HOME": f"{home}/cache"}
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True)
        assert not (Path(home) / ".config").exists()
