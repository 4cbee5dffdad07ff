"""One contract for every network, elastic and plain: what is here may be relied on wherever one is used."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from models.detector import Network
from models.export import export
from models.networks import open_any_space
from models.supernet import Supernet
from models.weights import WeightFile, load_weights
from tests.models.elastic_kinds import scramble
from utils.errors import UserError
from utils.training.mimic import check, tensors
from utils.training.settings import Distil

torch.set_num_threads(1)
BACKBONE = {"depth": [1] * 5, "out_channel": {"min": 8, "max": 16, "stride": 8}}
RETINANET = {
    "network": "retinanet",
    "nc": 3,
    "backbone": BACKBONE,
    "neck": {"depth": [2, 3], "out_channel": 8},
    "head": {"depth": [1], "out_channel": 8},
}
FASTER = {
    "network": {"detector": "faster_rcnn", "backbone": "resnet"},
    "nc": 3,
    "backbone": BACKBONE,
    "neck": {"depth": [2, 3], "out_channel": 8},
    "head": {"depth": [2], "out_channel": 16},
    "options": {"candidates": 24, "proposals": 24},
}
YOLO = {
    "nc": 3,
    "backbone": [
        [-1, 1, "NASConv", [8, 6, 2, 2]],
        [-1, 1, "NASConv", [16, 3, 2]],
        [-1, 1, "NASC3", [16]],
        [-1, 1, "NASConv", [16, 3, 2]],
    ],
    "head": [[-1, 1, "C3", [16, False]], [[2, 4], 1, "Detect", ["nc"]]],
}
SSD = {
    "network": {"detector": "ssd", "backbone": "mobilenet"},
    "nc": 3,
    "backbone": {"depth": [1] * 4, "expand_ratio": 2, "kernel_size": [3, 3, 5, 3]},
    "neck": {"depth": [1], "out_channel": [8]},
    "head": {"depth": [1]},
    "options": {
        "layer_channels": [8, 8, 8, 8, 8, 16],
        "strides": [2, 2, 2, 2],
        "squeeze": [2],
        "scales": [0.2, 0.4, 0.6, 0.8],
        "aspect_ratios": [[2], [2], [2]],
    },
}
MODELS = {
    "yolo": YOLO,
    "ssd": SSD,
    "retinanet": RETINANET,
    "faster_rcnn": FASTER,
    "classifier": {
        "network": {"detector": "classifier", "backbone": "resnet"},
        "nc": 3,
        "backbone": BACKBONE,
    },
}
MINE = """
import torch
from models.detector import Network
from models.elastic.blocks import ConvBlock

PARTS = {"body": {"depth": 1, "out_channel": None}}
STRIDE = 2

def build(space):
    return Mine(space.parts["body"], space.nc, space.ch)

class Mine(Network):
    \"\"\"One box a position: scores, and the sides of a box around it.\"\"\"

    def __init__(self, part, nc, ch):
        super().__init__(nc, STRIDE)
        self.body = ConvBlock(ch, part.dim("out_channel"), 3, 2)
        self.out = ConvBlock(part.dim("out_channel"), nc + 2, 1, act=None)

    def raw(self, images):
        return self.out(self.body(images))

    def losses(self, raw, batch):
        return {"all": raw.float().square().mean()}

    def decode(self, raw, images):
        x = raw.float().flatten(2).transpose(1, 2)
        h, w = raw.shape[-2:]
        ys = torch.arange(h, device=raw.device)[:, None].expand(h, w).flatten() * 2 + 1
        xs = torch.arange(w, device=raw.device)[None].expand(h, w).flatten() * 2 + 1
        centres = torch.stack((xs, ys), 1).float()
        sides = x[..., :2].sigmoid() * 8
        return torch.cat((centres - sides, centres + sides), -1), x[..., 2:].sigmoid()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name -> (supernet, an arch, its plain network), somebody's own among them."""
    folder = tmp_path_factory.mktemp("networks")
    (folder / "mine.py").write_text(MINE)
    mine = {"network": str(folder / "mine.py"), "nc": 3}
    mine["body"] = {"depth": [1], "out_channel": {"min": 4, "max": 8, "stride": 4}}
    found = {}
    for name, model in {**MODELS, "mine": mine}.items():
        torch.manual_seed(0)
        supernet = scramble(Supernet(model))
        arch = supernet.space.smallest()
        found[name] = supernet, arch, supernet.extract(arch)
    return found


NAMES = [*MODELS, "mine"]


def batch(images=2, side=64, boxes=((0, 1, 0.5, 0.5, 0.5, 0.5), (1, 2, 0.3, 0.4, 0.2, 0.3))):
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 6)
    pixels = torch.rand(images, 3, side, side, generator=torch.Generator().manual_seed(0))
    return {"img": pixels, "batch_idx": rows[:, 0], "cls": rows[:, 1:2], "bboxes": rows[:, 2:]}


def nets(made, name):
    supernet, arch, plain = made[name]
    supernet.set_arch(arch)
    return supernet.net, plain


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_network_with_names(made, name):
    for net in nets(made, name):
        assert isinstance(net, Network) and net.nc == 3 and net.coarsest % net.stride == 0
        net.names = ["a", "b", "c"]
        assert net.names == ["a", "b", "c"]
        with pytest.raises(UserError, match=r"2 class names for a \w+ of 3 classes"):
            net.names = ["a", "b"]


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_scalars_of_a_raw_output_that_serves_twice(made, name):
    for net in nets(made, name):
        net.eval()
        one = batch()
        with torch.no_grad():
            losses = net.loss(one)
            again = net.losses(net.raw(one["img"]), one)
            door = net(one)
        assert losses and all(v.shape == () and v.dtype == torch.float32 for v in losses.values())
        for k, v in losses.items():
            torch.testing.assert_close(again[k], v)
            torch.testing.assert_close(door[k], v)


@pytest.mark.parametrize("name", NAMES)
def test_a_slice_and_its_extracted_network_agree(made, name):
    elastic, plain = (net.eval() for net in nets(made, name))
    with torch.no_grad():
        for a, b in zip(
            tensors(elastic.raw(batch()["img"])), tensors(plain.raw(batch()["img"])), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_the_best_of_what_decode_gives(made, name):
    net = nets(made, name)[1].train()
    images = batch()["img"]
    found = net.predict(images)
    assert net.training
    net.eval()
    with torch.no_grad():
        decoded = net.decode(net.raw(images), images)
    assert len(decoded) == len(net.outputs)
    if net.outputs == ("probabilities",):
        torch.testing.assert_close(found, decoded[0])
        torch.testing.assert_close(found.sum(1), torch.ones(2))
        return
    boxes, scores = decoded
    assert boxes.shape[:2] == scores.shape[:2] and boxes.size(2) == 4 and scores.size(2) == 3
    for i, each in enumerate(net.predict(images, conf=0.2, iou=0.5, max_det=20)):
        assert (
            (each["scores"].diff() <= 0).all() and (each["scores"] > 0.2).all() and len(each["scores"]) <= 20
        )
        assert each["labels"].dtype == torch.int64
        for box, score, label in zip(*(each[k] for k in ("boxes", "scores", "labels")), strict=True):
            at = (scores[i, :, label] - score).abs().argmin()
            torch.testing.assert_close(boxes[i, at], box)
        for label in range(3):  # nothing that is kept covers another of its class
            mine = each["boxes"][each["labels"] == label]
            assert (box_iou(mine, mine).fill_diagonal_(0) <= 0.5 + 1e-4).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_one_part(made, name):
    net = nets(made, name)[0]
    parts = net.parameter_parts()
    found = [id(p) for ps in parts.values() for p in ps]
    assert sorted(found) == sorted({id(p) for p in net.parameters()})
    assert (
        set(parts)
        == {
            "yolo": {"backbone", "neck", "head"},
            "retinanet": {"backbone", "neck", "head"},
            "ssd": {"backbone", "neck", "head"},
            "faster_rcnn": {"backbone", "neck", "head"},
            "classifier": {"backbone", "head"},
            "mine": {"head"},
        }[name]
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_teaches_or_says_that_it_cannot(made, name):
    net = nets(made, name)[0]
    if name in ("mine", "faster_rcnn"):
        kind = type(net).__name__
        with pytest.raises(UserError, match=f"{kind} has no distillation; set supernet.distil.weight=0"):
            check(net, Distil(), {})
        check(net, Distil(weight=0.0), {})
        return
    net.eval()
    with torch.no_grad():
        raw = net.raw(batch()["img"])
        other = net.raw(1 - batch()["img"])
        same, apart = net.distil(raw, raw), net.distil(raw, other)
    assert all(v.shape == () for v in same.values())
    assert sum(map(float, same.values())) < sum(map(float, apart.values()))


DETECTORS = ("retinanet", "ssd", "faster_rcnn")
EXPORTS = [
    pytest.param(
        name, format, marks=[pytest.mark.slow] * (format == "pt" and name not in ("classifier", "mine"))
    )
    for format in ("pt", "onnx")
    for name in (*DETECTORS, "classifier", "mine")
]


@pytest.mark.parametrize(("name", "format"), EXPORTS)
def test_exports_give_what_decode_gives(made, name, format, tmp_path):
    supernet, arch, plain = made[name]
    net = copy.deepcopy(plain).eval()
    path = tmp_path / ("x" + supernet.space.formats[format])
    said = export(net, path, format, space=supernet.space, arch=arch, imgsz=96)
    assert said.max_difference < 1e-4 and path.is_file()


def test_a_network_that_cannot_be_decoded_is_one_line(tmp_path):
    class Bare(Network):
        def raw(self, images):
            return images.mean((2, 3))

    space = open_any_space(MODELS["classifier"])
    with pytest.raises(UserError, match="Bare cannot be exported: it has no `decode`"):
        export(Bare(3, 32), tmp_path / "x.pt2", "pt", space=space, arch=space.default(), imgsz=96)


def test_weights_of_older_versions_fit_a_classifier(made):
    """Its backbone had no room of its own."""
    net = nets(made, "classifier")[1]
    old = {k.removeprefix("backbone."): v for k, v in net.state_dict().items()}
    assert any(k.startswith("stem.") for k in old) and any(k.startswith("stages.") for k in old)
    fresh = copy.deepcopy(net)
    for p in fresh.parameters():
        nn.init.zeros_(p)
    fresh.load_state_dict(old)
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), net.state_dict().values(), strict=True)
    )


def test_a_whole_weight_file_of_an_older_version_fits_a_classifier(made):
    net = nets(made, "classifier")[1]
    state = {k.removeprefix("backbone."): v for k, v in net.state_dict().items()}
    fresh = copy.deepcopy(net)
    for p in fresh.parameters():
        nn.init.zeros_(p)
    account = load_weights(fresh, WeightFile(Path("old.pt"), "state dict", state), whole=True)
    assert account.share == 1.0 and not account.left_over
    for name, tensor in net.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor)
