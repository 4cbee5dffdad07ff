"""Exports compute what the detector computes, and stock Ultralytics can do everything with them."""

import copy
import functools
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torchvision.ops import batched_nms

from models import export_plain, networks
from models.export import export, file_name
from models.exported import ExportFailed
from models.networks import build, open_any_space
from models.weights import load_weights, read_weights
from models.yolo import export as yolo_export
from models.yolo.export import pickled_globals
from models.yolo.space import YoloSpace
from models.yolo.stock_yaml import expand, signature
from tests.models.anchors import torchvisions_anchors
from tests.models.elastic_kinds import scramble
from tests.models.stock import NAMES, TRAIN, isolated, write_data
from tests.models.test_supernet import REGNET
from tests.some import some
from utils.errors import UserError

SMALL = {
    "nc": 3,
    "backbone": [
        [-1, 1, "NASConv", [16, 6, 2, 2]],
        [-1, 1, "NASConv", [16, 3, 2]],
        [-1, 2, "NASC3", [32]],
        [-1, 1, "NASConv", [32, 3, 2]],
        [-1, 1, "NASC3", [32]],
        [-1, 1, "SPPF", [32, 5]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [-1, 1, "C3", [16, False]],
        [[8, 5], 1, "Detect", ["nc"]],
    ],
}


@pytest.fixture(scope="module")
def space():
    return YoloSpace(SMALL)


def make(space, arch, seed=0):
    torch.manual_seed(seed)
    detector = build(space, arch, NAMES)
    with torch.no_grad():
        for tensor in detector.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) / 20)
    return detector


def random_arch(space, seed):
    return space.random(np.random.default_rng(seed))


@pytest.fixture(scope="module")
def exported(space, tmp_path_factory):
    """(detector, arch, folder with x.pt and x.onnx, what export said of both)"""
    arch = random_arch(space, 1)
    detector, folder = make(space, arch), tmp_path_factory.mktemp("exported")
    said = {
        format: export(detector, folder / f"x.{format}", format, space=space, arch=arch, imgsz=64)
        for format in ("pt", "onnx")
    }
    return detector, arch, folder, said


# A YAML that says everything ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_taken_apart_it_computes_the_same_bits(space, seed):
    detector = make(space, random_arch(space, seed), seed)
    before = copy.deepcopy(detector.state_dict())
    apart = expand(detector.model)
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(
            apart.net.eval()(images)[0], detector.model.eval()(images)[0], rtol=0, atol=0
        )
    assert all(torch.equal(v, before[k]) for k, v in detector.state_dict().items())
    assert sorted(apart.renamed.values()) == sorted(detector.model.state_dict())


@pytest.mark.parametrize("seed", range(6))
def test_its_yaml_builds_the_same_network_again(space, seed):
    detector = make(space, random_arch(space, seed), seed)
    apart = expand(detector.model)
    rebuilt = type(detector.model)(copy.deepcopy(apart.net.yaml), ch=3, verbose=False)
    assert apart.lost == []
    assert signature(rebuilt) == signature(apart.net)
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {
        k: v.shape for k, v in apart.net.state_dict().items()
    }


def test_an_unsearched_network_keeps_its_rows(space):
    default = make(space, space.default())
    assert [r[2] for r in expand(default.model).net.yaml["backbone"]] == [
        *("Conv", "Conv", "C3", "Conv", "C3", "SPPF")
    ]


def test_rows_of_one_searched_c3_by_hand(space):
    arch = space.default() | {"c3_2_cv1": "3x3", "c3_2_cv2_act": "ReLU", "c3_2_depth": 1, "c3_2_m0": 1.5}
    rows = expand(
        make(space, space.canonical({k: v for k, v in arch.items() if k != "c3_2_m1"})).model
    ).net.yaml
    assert rows["backbone"][2:8] == [
        [-1, 1, "Conv", [16, 3, 1, 1, 1, 1, True]],
        [-1, 1, "Bottleneck", [16, True, 1, [1, 3], 1.5]],
        [1, 1, "Conv", [16, 1, 1, 0, 1, 1, False]],
        [-1, 1, "nn.ReLU", []],
        [[3, 5], 1, "Concat", [1]],
        [-1, 1, "Conv", [32, 1, 1, 0, 1, 1, True]],
    ]
    assert rows["head"][1] == [[-1, 7], 1, "Concat", [1]]  # row 2 of before


def test_what_a_yaml_cannot_say_is_said(tmp_path):
    """Hidden channels of 12 would be rounded up to 16 by the stock parser."""
    narrow = YoloSpace(
        {**SMALL, "backbone": [*SMALL["backbone"][:2], [-1, 1, "NASC3", [24]], *SMALL["backbone"][3:]]}
    )
    arch = narrow.default() | {"c3_2_cv1_act": "ReLU"}
    detector = make(narrow, arch)
    said = export(detector, tmp_path / "x.pt", "pt", space=narrow, arch=arch, imgsz=64)
    assert said.values["lost"] == ["model.2.cv1.act is ReLU(), would become SiLU()"]
    assert "KeepArchitecture" in str(said) and said.max_difference == 0.0


# The files ---------------------------------------------------------------------------------------------


def test_exports_agree_with_torch_at_other_sizes(exported):
    detector, _, folder, said = exported
    assert said["pt"].max_difference == 0.0 and said["onnx"].max_difference < 1e-5
    session = onnxruntime.InferenceSession(str(folder / "x.onnx"), providers=["CPUExecutionProvider"])
    for size in [(1, 3, 64, 64), (3, 3, 96, 160), (2, 3, 32, 32)]:
        images = torch.rand(size)
        with torch.no_grad():
            expected = copy.deepcopy(detector.model).eval()(images)[0]
        got = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-4, atol=1e-4)
    assert said["onnx"].values["onnxruntime_ms"] > 0 and "1 threads" in str(said["onnx"])


def test_the_pickle_names_only_torch_and_ultralytics(exported):
    names = pickled_globals(exported[2] / "x.pt")
    assert {n.split(".")[0] for n in names} <= {"torch", "ultralytics", "collections", "__builtin__"}
    assert {n for n in names if n.startswith("__builtin__")} == {"__builtin__.set"}
    assert "ultralytics.nn.tasks.DetectionModel" in names


def test_the_pt_comes_back_with_its_arch_and_the_same_bits(exported):
    detector, arch, folder, _ = exported
    file = read_weights(folder / "x.pt")
    again = build(YoloSpace(file.space, nc=file.nc), file.arch)
    load_weights(again, file, whole=True)
    assert file.arch == arch and file.names == NAMES
    ours, theirs = detector.state_dict(), again.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_what_stock_training_makes_of_an_export_comes_back_too(exported, tmp_path):
    """A .pt that Ultralytics saved knows nothing of us, and its rows are taken apart."""
    detector, arch, folder, _ = exported
    content = torch.load(folder / "x.pt", weights_only=False)
    torch.save({"model": content["model"].half()}, tmp_path / "theirs.pt")
    again = build(YoloSpace(SMALL), arch)
    assert load_weights(again, tmp_path / "theirs.pt", whole=True).share == 1.0
    torch.testing.assert_close(
        again.model.model[0].conv.weight, detector.model.model[0].conv.weight, rtol=1e-3, atol=1e-3
    )


def test_nothing_is_overwritten_and_unknown_formats_are_named(exported, space):
    detector, arch, folder, _ = exported
    with pytest.raises(UserError, match="never overwritten"):
        export(detector, folder / "x.pt", "pt", space=space, arch=arch, imgsz=64)
    with pytest.raises(UserError, match="did you mean 'onnx'"):
        export(detector, folder / "y.onx", "onx", space=space, arch=arch, imgsz=64)


def test_a_missing_package_is_named(exported, space, monkeypatch):
    detector, arch, folder, _ = exported
    monkeypatch.setattr(yolo_export, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install openvino"):
        export(detector, folder / "z", "openvino", space=space, arch=arch, imgsz=64)


def test_an_export_that_differs_is_not_kept(exported, space, monkeypatch, tmp_path):
    detector, arch, _, _ = exported
    monkeypatch.setattr(yolo_export, "_raw", lambda net, images: torch.rand(len(images), 7, 10))
    with pytest.raises(ExportFailed, match="differ from torch"):
        export(detector, tmp_path / "x.pt", "pt", space=space, arch=arch, imgsz=64)
    assert list(tmp_path.iterdir()) == []


# Networks of elastic spaces ----------------------------------------------------------------------------

RETINA = {
    "network": "retinanet",
    "nc": 3,
    "backbone": {
        "depth": {"min": 1, "max": [1, 2, 1, 1, 1]},
        "out_channel": {"min": 8, "max": 16, "stride": 8},
    },
    "neck": {"depth": [2, 3], "out_channel": 16},
    "head": {"depth": [1], "out_channel": {"values": [8, 16]}},
}
PLAIN = {"retinanet": RETINA, "regnet": REGNET}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Gives of a name the network, its space, what export said, and the folder of retinanet.pt2, ...

    A RetinaNet whose coarsest map of 96 px is 2x2, so that its program can be free in size.
    """

    @functools.cache
    def made(name):
        space, folder = open_any_space(PLAIN[name]), tmp_path_factory.mktemp("plain")
        arch = space.random(np.random.default_rng(1))
        torch.manual_seed(0)
        net = scramble(networks.build(space, arch)).eval()
        net.names = [*"abcd"][: space.nc]
        said = {}
        for format in ("pt", "onnx"):
            path = folder / file_name(name, format, space)
            said[format] = export(net, path, format, space=space, arch=arch, imgsz=96)
        return net, space, said, folder

    return made


def expected_of(net, images):
    with torch.no_grad():
        if net.nc == 4:
            return [net.predict(images)]
        logits, offsets, _ = net.raw(images)
        grid = torchvisions_anchors(net, images)
        return [torch.stack([net.coder.decode_single(o, grid) for o in offsets]), logits.sigmoid()]


@pytest.mark.parametrize("name", some(PLAIN, ["regnet"]))
def test_programs_and_onnx_give_what_the_network_predicts(plain, name):
    net, space, said, folder = plain(name)
    assert said["pt"].max_difference < 1e-6 and said["onnx"].max_difference < 1e-5
    least = said["pt"].values["least_side"]
    assert said["pt"].values["any_side"] and least == {"retinanet": 96, "regnet": 64}[name]
    path = folder / f"{name}.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    program = torch.export.load(folder / f"{name}.pt2").module()
    for size in [(1, 3, 96, 96), (3, 3, 128, 192), (2, 3, 32, 64)]:
        images = torch.rand(size)
        runs = [session.run(None, {"images": images.numpy()})]
        runs += [program(images)] if min(size[2:]) >= least else []
        for run in runs:
            for got, expected in zip(run, expected_of(net, images), strict=True):
                torch.testing.assert_close(torch.as_tensor(got), expected, rtol=1e-4, atol=1e-3)
    if space.task == "detect":  # what is written about the outputs is enough to find the detections
        images = torch.rand(1, 3, 96, 96)
        boxes, scores = (x[0] for x in program(images))
        anchor, label = (scores > 0.03).nonzero(as_tuple=True)
        keep = batched_nms(boxes[anchor], scores[anchor, label], label, 0.5)
        found = net.predict(images, conf=0.03, iou=0.5, max_det=10_000)[0]
        assert len(keep) == len(found["scores"]) > 3
        torch.testing.assert_close(boxes[anchor][keep], found["boxes"], rtol=1e-4, atol=1e-3)
    meta = session.get_modelmeta().custom_metadata_map
    assert '"0": "a"' in meta["names"] and meta["imgsz"] == "96"
    assert [o.name for o in session.get_outputs()] == said["pt"].values["outputs"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_programs_need_nothing_but_torch(plain, name, tmp_path):
    images = torch.rand(2, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    net, _, _, folder = plain(name)
    body = f"""
images = torch.rand(2, 3, 96, 160, generator=torch.Generator().manual_seed(0))
found = torch.export.load({str(folder / f"{name}.pt2")!r}).module()(images)
print(json.dumps([x.double().sum().item() for x in found]))
"""
    sums = [x.double().sum().item() for x in expected_of(net, images)]
    assert isolated(body, tmp_path, ultralytics=False) == pytest.approx(sums, rel=1e-4)


def test_a_small_image_gives_a_program_of_one_size(tmp_path):
    space = open_any_space(REGNET)
    net = networks.build(space, space.smallest())
    said = export(net, tmp_path / "x.pt2", "pt", space=space, arch=space.smallest(), imgsz=32)
    assert not said.values["any_side"] and "H and W exactly 32" in str(said)
    assert said.values["needs"] == ["torch"] and "torchvision" not in str(said)
    assert said.sizes == [(1, 3, 32, 32), (3, 3, 32, 32)]


def test_mistakes_with_networks_of_elastic_spaces(plain, tmp_path, monkeypatch):
    net, space, _, _ = plain("regnet")
    arch = space.default()
    with pytest.raises(UserError, match="'openvino' is for YOLO detectors; .* is exported as pt or onnx"):
        export(net, tmp_path / "z", "openvino", space=space, arch=arch, imgsz=96)
    assert file_name("1", "pt", YoloSpace(SMALL)) == "1.pt" and file_name("1", "onnx", space) == "1.onnx"
    monkeypatch.setattr(export_plain, "TOLERANCE", -1.0)
    with pytest.raises(ExportFailed, match="differ from torch"):
        export(net, tmp_path / "x.onnx", "onnx", space=space, arch=arch, imgsz=96)
    assert list(tmp_path.iterdir()) == []


# Stock Ultralytics, where this package does not exist --------------------------------------------------


def test_stock_ultralytics_predicts_the_same_without_this_package(exported, tmp_path):
    detector, _, folder, _ = exported
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = copy.deepcopy(detector.model).eval()(images)[0]
    body = f"""
model = YOLO({str(folder / "x.pt")!r})
images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    raw = model.model.eval()(images)[0]
boxes = model.predict(images, imgsz=64, conf=0.001, verbose=False, save=False)[0].boxes
print(json.dumps({{"sum": raw.double().sum().item(), "names": model.names, "boxes": len(boxes)}}))
"""
    said = isolated(body, tmp_path)
    assert said["sum"] == pytest.approx(expected.double().sum().item(), rel=1e-6)
    assert said["names"] == {"0": "a", "1": "b", "2": "c"}
    assert said["boxes"] > 0


KEEP = (Path(__file__).parents[2] / "models" / "keep_architecture.py").read_text()


@pytest.mark.slow
def test_stock_training_keeps_an_export(exported, tmp_path):
    data, pt = write_data(tmp_path / "data"), str(exported[2] / "x.pt")
    body = TRAIN.format(trainer="", pt=pt, data=str(data), out=str(tmp_path / "out"), extra="")
    assert isolated(body, tmp_path) == {"kept": True, "lost": 0}


@pytest.mark.slow
def test_the_trap_and_the_trainer_that_avoids_it(tmp_path):
    """For a network that a YAML cannot say, stock training silently makes another one; ours does not."""
    narrow = YoloSpace(
        {**SMALL, "backbone": [*SMALL["backbone"][:2], [-1, 1, "NASC3", [24]], *SMALL["backbone"][3:]]}
    )
    arch = narrow.default() | {"c3_2_cv1_act": "ReLU", "c3_2_cv2": "3x3"}
    export(make(narrow, arch), tmp_path / "x.pt", "pt", space=narrow, arch=arch, imgsz=64)
    data = write_data(tmp_path / "data")
    common = {"pt": str(tmp_path / "x.pt"), "data": str(data)}
    trap = TRAIN.format(trainer="", out=str(tmp_path / "a"), extra="", **common)
    assert isolated(trap, tmp_path) == {"kept": False, "lost": 2}
    kept = TRAIN.format(trainer=KEEP, out=str(tmp_path / "b"), extra=", trainer=KeepArchitecture", **common)
    assert isolated(kept, tmp_path) == {"kept": True, "lost": 0}
