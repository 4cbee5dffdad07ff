"""Ultralytics' own networks, YOLOv5 to YOLO26, as spaces: each is the stock one, and its rows may vary."""

from __future__ import annotations

import copy
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.nn.tasks import parse_model

from models.export import export
from models.inherit import Source, inherit
from models.networks import build, describe
from models.yolo.detector import class_state_kept, layers
from models.yolo.parse import FOLDERS, read
from models.yolo.space import YoloSpace
from tests.models.stock import TRAIN, isolated, write_data
from tests.some import some
from utils.errors import UserError
from utils.training.measure import count_flops, count_params

ROOT = Path(__file__).resolve().parents[2]
STOCK = Path(find_spec("ultralytics").origin).parent / "cfg/models"  # type: ignore
OTHER = re.compile(r"-(cls|seg|sem|pose|obb|depth|world|worldv2|rtdetr)\b|yoloe|resnet")
NANO = ["yolov5n", "yolov8n", "yolov10n", "yolo11n", "yolo12n", "yolo26n"]
LETTERS = "nsmlx"


def names():
    """Every file at every scale that it has; those but the smallest are slow."""
    for file in sorted(path for folder in FOLDERS for path in (STOCK / folder).glob("*.yaml")):
        if OTHER.search(file.stem):
            continue
        whole = re.fullmatch(r"(yolov?(?:5|8|10|11|12|26))([nsmlxb]?)(.*)", file.stem)
        for letter in whole[2] or LETTERS:
            name = f"{whole[1]}{letter}{whole[3]}"
            yield pytest.param(name, marks=[] if name in NANO else [pytest.mark.slow], id=name)


def stock_layers(name, nc):
    """Ultralytics' own reading of a file: its rows as modules, without weights."""
    model = copy.deepcopy(read(f"{name}.yaml")) | {"nc": nc}
    with class_state_kept(), torch.device("meta"):
        return parse_model(model, 3, verbose=False)[0]


def shapes(net):
    return {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}


@pytest.mark.parametrize("name", names())
def test_unsearched_it_is_the_stock_network(name):
    space = YoloSpace(f"{name}.yaml", nc=4)
    arch = space.default()
    with torch.device("meta"):
        ours = layers(space.stock(arch), 3)
    theirs = stock_layers(name, 4)
    assert shapes(ours) == shapes(theirs)
    assert repr(ours) == repr(theirs)  # every setting of every layer
    assert count_params(theirs) / 1e6 == space.cost(arch, 640)["params_m"]
    assert space.size()[0] > 1000


@pytest.mark.parametrize("name", some(NANO, ["yolo26n"]))
def test_costs_equal_the_built_network(name):
    space, rng = YoloSpace(f"{name}.yaml", nc=4), np.random.default_rng(0)
    assert not space.notices
    for arch in (space.default(), space.smallest(), space.largest(), space.random(rng)):
        net = build(space, arch)
        assert space.cost(arch, 96) == {
            "params_m": count_params(net) / 1e6,
            "gflops": count_flops(net, 96) / 1e9,
        }


def thin(rows, **keys):
    """A detector of one level of these rows; no. 0 makes 32 channels."""
    backbone = [[-1, 1, "Conv", [32, 3, 4]], *rows]
    return {"nc": 2, "backbone": backbone, "head": [[[len(rows)], 1, "Detect", ["nc"]]], **keys}


@pytest.mark.parametrize(
    "row",
    [
        [-1, 2, "C3k2", [32, True]],
        [-1, 2, "C3k2", [32, True, 0.25, True]],
        [-1, 2, "C2fCIB", [32, True, True]],
        [-1, 2, "C2fCIB", [32, False]],
        [-1, 2, "C2", [32, True]],
        [-1, 2, "C2f", [32, True]],
        [-1, 2, "A2C2f", [64, True, 4]],
        [-1, 2, "A2C2f", [64, True, 1, True, 1.2, 1.0]],
        [-1, 2, "A2C2f", [64, False, -1]],
        [-1, 1, "PSA", [32]],
        [-1, 2, "C2PSA", [32]],
        [-1, 1, "SCDown", [48, 3, 2]],
        [-1, 1, "SPPF", [32, 5, 2, True]],
    ],
)
@pytest.mark.parametrize("keys", [{}, {"end2end": True, "reg_max": 1}])
def test_every_block_costs_what_it_costs(row, keys):
    wide = [-1, 1, "Conv", [row[3][0], 1]]  # PSA gives as many channels as it gets
    space = YoloSpace(thin([wide, row], choices={}, **keys))
    net = build(space, {})
    assert space.cost({}, 64) == {"params_m": count_params(net) / 1e6, "gflops": count_flops(net, 64) / 1e9}


def test_rows_vary_as_the_choices_say():
    rows = [[-1, 4, "C3k2", [64, False, 0.25]], [-1, 2, "C2PSA", [64]]]
    block = {"C3k2": {"width": [1.0, 0.5], "depth": "1..n", "e": [1.0, 0.5]}, "C2PSA": {"depth": [1, 2]}}
    space = YoloSpace(thin(rows, choices=block))
    assert space.choices == {
        "c3k2_1_width": [64, 32],
        "c3k2_1_depth": [4, 1, 2, 3],
        "c3k2_1_e": [0.25, 0.125],
        "c2psa_2_depth": [2, 1],
    }
    assert space.size() == (32, 32)
    arch = {"c3k2_1_width": 32, "c3k2_1_depth": 3, "c3k2_1_e": 0.125, "c2psa_2_depth": 1}
    assert space.stock(arch)["backbone"][1:] == [
        [-1, 3, "C3k2", [32, False, 0.125]],
        [-1, 1, "C2PSA", [32]],  # as wide as what it reads
    ]
    net = build(space, arch).model.model
    assert (net[1].c, len(net[1].m), net[2].cv1.conv.in_channels, len(net[2].m)) == (4, 3, 32, 1)
    assert {type(m).__module__.split(".")[0] for m in net.modules()} == {"torch", "ultralytics"}
    with pytest.raises(UserError, match="says nothing about 'c3k2_1_e'"):
        space.canonical({"c3k2_1_width": 32, "c3k2_1_depth": 3})


def test_a_row_may_differ_and_what_does_not_fit_falls_away():
    rows = [[-1, 1, "Conv", [64, 1, {"width": [1.0, 2.0]}]], [-1, 2, "A2C2f", [64, {"e": [1.0, 0.6, 2.0]}]]]
    space = YoloSpace(thin(rows, choices={"A2C2f": {"width": [1.0, 0.5, 2.0]}}))
    half = YoloSpace(thin([[-1, 2, "C2f", [64, {"e": 0.5, "width": [0.5]}]]], choices={}))
    assert (half.choices, half.stock({})["backbone"][1][3]) == ({}, [32, False, 1, 0.25])
    # Attention over areas needs hidden channels in multiples of 32: not 16 of width 32, nor .3 of any.
    assert space.choices == {"conv_1_width": [64, 128], "a2c2f_2_width": [64, 128], "a2c2f_2_e": [0.5, 1.0]}


def test_modules_without_choices_are_named():
    space = YoloSpace(thin([[-1, 1, "GhostBottleneck", [32]], [-1, 2, "C2f", [32]]]))
    assert space.notices == ["cannot vary, kept as they are: GhostBottleneck"]
    assert "note: cannot vary, kept as they are: GhostBottleneck" in describe(space, 64)
    # It adds its input, so it is as wide as what it reads.
    arch = space.default() | {"conv_0_width": 16}
    assert space.stock(arch)["backbone"][1] == [-1, 1, "GhostBottleneck", [16]]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (thin([], choices={"Concat": {"width": [1.0]}}), "choices of Concat: it cannot vary; what can: Conv"),
        (thin([], choices={"C3k": {}}), "unknown block in choices 'C3k'; did you mean 'C3k2'"),
        (thin([], choices={"C3k2": {"widht": 1}}), "unknown choice of C3k2 'widht'; did you mean 'width'"),
        (thin([], choices={"C3k2": [1]}), "choices of C3k2 should be like .*, got \\[1\\]"),
        (thin([], choices={"Conv": {"width": [0]}}), "row 0, Conv: width should be positive factors"),
        (thin([[-1, 2, "A2C2f", [64, {"e": 0.5}]]]), "row 1, A2C2f: e offers nothing that fits: 0.5"),
        (thin([[-1, 1, "PSA", [64]]]), "row 1, PSA: needs as many channels in as out, got 32 -> 64"),
        (thin([[-1, 1, "A2C2f", [32]]]), "row 1, A2C2f: needs hidden channels in multiples of 32, got 16"),
        (thin([], nms=False), "nms: false needs a head that is one to one with objects"),
        (thin([], end2end="yes"), "end2end should be true or false, got 'yes'"),
    ],
)
def test_mistakes(model, message):
    with pytest.raises(UserError, match=message):
        YoloSpace(model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yolo11n-seg", "row 23, Segment: a head of segmentation; only Detect and v10Detect are known"),
        ("yolov8n-obb", "row 22, OBB: a head of oriented boxes"),
        ("yolo26n-pose", "row 23, Pose26: a head of pose estimation"),
        ("yolo11n-cls", "Classify: a head of classification"),
        ("yolov8n-rtdetr", "RTDETRDecoder: a head of RT-DETR"),
        ("yolov8n-world", "WorldDetect: a head of detection by text"),
        ("yoloe-11n", "YOLOEDetect: a head of detection by text"),
    ],
)
def test_other_tasks_are_named(name, message):
    with pytest.raises(UserError, match=message):
        YoloSpace(f"{name}.yaml")


def test_files_are_written_as_they_are_read(tmp_path):
    """Somebody's own copy, by name and by scale."""
    model = yaml.safe_load((STOCK / "11/yolo11.yaml").read_text())
    (tmp_path / "yolo11.yaml").write_text(yaml.safe_dump(model, sort_keys=False))
    mine = YoloSpace(tmp_path / "yolo11s.yaml")
    assert mine.cost(mine.default(), 640)["params_m"] == 9.458752  # Ultralytics' own figure


# End-to-end heads ---------------------------------------------------------------------------------------


def batch():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([[0.4, 0.4, 0.5, 0.5], [0.6, 0.7, 0.3, 0.4]])
    return {
        "img": images,
        "bboxes": boxes,
        "cls": torch.tensor([[0.0], [1.0]]),
        "batch_idx": torch.tensor([0.0, 1.0]),
    }


@pytest.fixture(params=[{"end2end": True, "reg_max": 1}, "v10Detect"], ids=["26", "v10"])
def two_headed(request):
    """What makes a thin detector of either kind, without NMS."""
    model = thin([[-1, 1, "C3k2", [96]]], choices={}, nms=False)
    if request.param == "v10Detect":
        model["head"][0][2] = "v10Detect"
    else:
        model |= request.param
    torch.manual_seed(0)
    net = build(YoloSpace(model), {})
    for p in net.model.model[-1].one2one_cv3.parameters():  # at first they are copies of the other towers
        p.data += 0.1 * torch.randn_like(p)
    return net


def test_the_loss_of_both_heads_is_ultralytics_own(two_headed):
    two_headed.eval()  # the same output twice
    model = two_headed.model
    for epoch, epochs, share in ((0, 5, 0.8), (2, 5, 0.45), (4, 5, 0.1), (0, 1, 0.8)):
        two_headed.begin_epoch(epoch, epochs)
        ours = two_headed.loss(batch())
        criterion = model.init_criterion()
        model.model[-1].training = True
        preds = model(batch()["img"])
        model.model[-1].training = False
        criterion.o2m, criterion.o2o = share, 1 - share
        theirs, _ = criterion(preds, batch())
        torch.testing.assert_close(torch.stack(list(ours.values())), theirs / 2, rtol=1e-5, atol=1e-6)


def test_without_nms_it_predicts_what_the_stock_head_does(two_headed):
    images = batch()["img"]
    found = two_headed.predict(images, conf=0.0, max_det=300)
    with torch.no_grad():
        theirs = two_headed.model.eval()(images)[0]  # [B, 300 at most, 6]
    assert theirs.shape[2] == 6
    for ours, stock in zip(found, theirs, strict=True):
        torch.testing.assert_close(ours["scores"], stock[:, 4], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(ours["boxes"], stock[:, :4], rtol=1e-4, atol=1e-3)
        assert torch.equal(ours["labels"], stock[:, 5].long())
    two_headed.nms = True
    many = two_headed.predict(images, conf=0.0, iou=0.5)[0]
    assert not torch.equal(many["scores"][:9], found[0]["scores"][:9])


@pytest.mark.slow
def test_a_head_learns_to_need_no_nms(two_headed):
    optimizer = torch.optim.AdamW(two_headed.parameters(), lr=0.01)
    first = None
    for step in range(40):
        two_headed.begin_epoch(step, 40)
        raw = two_headed.raw(batch()["img"])
        loss = sum(two_headed.losses(raw, batch()).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first = first or loss.item()
    assert loss.item() < 0.5 * first
    same = two_headed.distil(raw, two_headed.raw(batch()["img"]))
    assert set(same) == {"cls", "dfl"} and all(value.isfinite() for value in same.values())


@pytest.mark.parametrize("nms", some([True, False], [False]))
def test_exports_of_both_heads_agree_with_torch(two_headed, tmp_path, nms):
    two_headed.nms = nms
    two_headed.model.end2end = not nms
    space = YoloSpace(thin([[-1, 1, "C3k2", [96]]], choices={}))
    for format in ("pt", "onnx"):
        said = export(two_headed, tmp_path / f"x.{format}", format, space=space, arch={}, imgsz=64)
        assert said.max_difference < 1e-4
    assert said.values["onnxruntime_ms"] > 0


# Weights ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["yolo11n", "yolo26n"], scope="module")
def trained(request, tmp_path_factory):
    """(name, what stock `YOLO(...)` computes, its file, images): statistics as if it had been trained."""
    torch.manual_seed(0)
    stock = YOLO(f"{request.param}.yaml")
    for m in stock.model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1), m.running_var.uniform_(0.5, 1.5), m.weight.data.uniform_(0.5, 1.5)
    stock.model.half().float()  # what a file of Ultralytics' keeps
    path = tmp_path_factory.mktemp("stock") / "stock.pt"
    stock.save(str(path))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        return request.param, stock.model.eval()(images)[0], path, images


def test_a_stock_checkpoint_is_inherited_exactly_and_grows_without_a_change(trained):
    name, wanted, path, images = trained
    space = YoloSpace(f"{name}.yaml", nc=80)
    source = Source(path, build(space, space.largest()))
    default = space.default()
    deep = {
        label: max(v) if label.endswith("depth") else default[label] for label, v in space.choices.items()
    }
    for arch, exact in ((default, True), (deep, False)):
        net = build(space, arch)
        account = inherit(net, source)
        with torch.no_grad():
            found = net.model.eval()(images)[0]
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        assert account.left_over == [] and (account.share == 1.0) is exact
    narrow = build(space, space.smallest())
    account = inherit(narrow, source)
    attention = [layer for layer in account.of("fresh") if ".attn." not in layer]
    assert attention == [] and account.share > 0.98  # heads of other widths start anew


STOCK_USE = """
model = YOLO({pt!r})
images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
raws = []
for end2end in (False, True):
    model.model.end2end = end2end
    with torch.no_grad():
        raws.append(model.model.eval()(images)[0].double().sum().item())
maps = [model.val(data={data!r}, imgsz=64, device="cpu", workers=0, plots=False, verbose=False, nms=nms,
                  project={out!r}).box.map for nms in (None, False)]
print(json.dumps({{"raws": raws, "maps": maps, "classes": sorted({{type(m).__module__.split(".")[0] for m in
                  model.model.modules()}})}}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11n_nas", "yolo26n_nas"])
def test_stock_ultralytics_keeps_an_export(name, tmp_path):
    space = YoloSpace(ROOT / "models" / f"{name}.yaml", nc=3)
    arch = space.random(np.random.default_rng(4))
    torch.manual_seed(0)
    net = build(space, arch, names=list("abc"))
    said = export(net, tmp_path / "x.pt", "pt", space=space, arch=arch, imgsz=64)
    assert said.values["stock_train_keeps_it"] and said.max_difference == 0
    data, pt = str(write_data(tmp_path / "data")), str(tmp_path / "x.pt")
    body = TRAIN.format(trainer="", pt=pt, data=data, out=str(tmp_path / "out"), extra="")
    assert isolated(body, tmp_path) == {"kept": True, "lost": 0}
    found = isolated(STOCK_USE.format(pt=pt, data=data, out=str(tmp_path / "val")), tmp_path)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = net.model.eval()
    for end2end, raw in zip((False, True), found["raws"], strict=True):
        model.end2end = end2end
        with torch.no_grad():
            assert model(images)[0].double().sum().item() == pytest.approx(raw, rel=1e-5)
    assert found["classes"] == ["torch", "ultralytics"] and all(0 <= score <= 1 for score in found["maps"])


@pytest.mark.parametrize("version", [11, 26])
def test_shipped_spaces_are_the_stock_network_unsearched(version):
    space = YoloSpace(ROOT / "models" / f"yolo{version}n_nas.yaml")
    stock = YoloSpace(f"yolo{version}n.yaml")
    assert space.stock(space.default()) == stock.stock(stock.default())
    assert space.notices == [] and {"conv_0_width", "c3k2_2_e", "c2psa_10_depth"} < set(space.choices)
    low, mid, high = (
        space.cost(a, 640)["gflops"] for a in (space.smallest(), space.default(), space.largest())
    )
    assert low < mid / 3 and high > 2 * mid
