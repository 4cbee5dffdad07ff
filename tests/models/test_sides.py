"""Networks of images that are not square: costs, drawings, exports."""

import numpy as np
import pytest
import torch

from models.export import export
from models.networks import build, open_any_space
from models.weights import read_weights, save_weights
from tests.models.elastic_kinds import scramble
from tests.models.test_export import SMALL, make, random_arch
from tests.models.test_faster_rcnn import SPACE
from tests.models.test_ssd import TINY
from tests.models.test_supernet import RETINANET
from tests.some import some
from utils.errors import UserError
from utils.training.measure import count_flops, count_params

SPACES = {
    "yolo": SMALL,
    "rows that vary in width": "models/yolov5n_wide_nas.yaml",
    "attention": "models/yolo11n_nas.yaml",
    "retinanet": RETINANET,
    "ssd": TINY,
    "faster_rcnn": SPACE,
    "serial": "models/spnas_small.yaml",
}


@pytest.mark.parametrize("name", SPACES)
def test_the_price_of_an_arch_is_that_of_the_built_network(name):
    space = open_any_space(SPACES[name], nc=3)
    arch = space.random(np.random.default_rng(2))
    net = build(space, arch)
    found = {size: space.cost(arch, size) for size in ((64, 128), (128, 64))}
    for size, cost in found.items():
        assert cost["gflops"] == pytest.approx(count_flops(net, size) / 1e9, rel=1e-9), size
        assert cost["params_m"] == pytest.approx(count_params(net) / 1e6, rel=1e-9)
    assert space.cost(arch, (64, 64)) == space.cost(arch, 64)
    with pytest.raises(UserError, match=r"imgsz 64x101 is not a multiple of the stride \d+; try 64x"):
        space.cost(arch, (64, 101))


def test_blocks_have_the_shapes_of_the_built_network():
    space = open_any_space("models/yolov5n_nas.yaml", nc=3)
    shapes: dict[int, tuple[int, ...]] = {}
    model = build(space, space.default()).model.eval()
    for layer in model.model[:-1]:
        layer.register_forward_hook(lambda m, _, y: shapes.update({m.i: tuple(y.shape[1:])}))
    model(torch.zeros(1, 3, 64, 96))
    blocks = space.blocks(space.default(), (64, 96))[:-1]
    assert [(b["channels"], *b["side"]) for b in blocks] == [shapes[i] for i in range(len(blocks))]


def test_a_resolution_stands_for_the_longer_side():
    space = open_any_space({**SMALL, "resolution": [64, 96]}, nc=3)  # of stride 8
    arch = space.default() | {"resolution": 64}
    assert [space.side(arch | {"resolution": r}, (48, 96)) for r in (64, 96)] == [(32, 64), (48, 96)]
    plain = open_any_space(SMALL, nc=3)
    rest = {k: v for k, v in arch.items() if k != "resolution"}
    assert space.cost(arch, (48, 96)) == plain.cost(rest, (32, 64)) != space.cost(arch, 96)


def test_exports_compute_what_torch_computes(tmp_path):
    from ultralytics import YOLO

    space = open_any_space(SMALL, nc=3)
    arch = random_arch(space, 1)
    detector = make(space, arch)
    said = {
        format: export(detector, tmp_path / f"x.{format}", format, space=space, arch=arch, imgsz=(32, 64))
        for format in ("pt", "onnx")
    }
    # Loaded again, each was compared at sizes around its own: a stride more, and half as high.
    for exported in said.values():
        assert exported.sizes == [(2, 3, 40, 72), (1, 3, 16, 80)] and exported.max_difference < 1e-3
    assert read_weights(tmp_path / "x.pt").imgsz == (32, 64)
    stock = YOLO(tmp_path / "x.pt")
    assert stock.overrides["imgsz"] == [32, 64]
    (found,) = stock.predict(np.zeros((50, 100, 3), np.uint8), verbose=False, save=False)
    assert found.orig_shape == (50, 100)


@pytest.mark.parametrize("name", some(["retinanet", "ssd", "faster_rcnn"], ["ssd"]))
def test_files_of_other_detectors_compute_what_torch_computes(name, tmp_path):
    space = open_any_space(SPACES[name], nc=3)
    arch = space.smallest()
    net = scramble(build(space, arch))
    found = export(net, tmp_path / "x.onnx", "onnx", space=space, arch=arch, imgsz=(64, 128))
    assert found.sizes[0] == (2, 3, 64 + space.stride, 128 + space.stride) and found.max_difference < 1e-3


def test_weights_say_both_sides(tmp_path):
    space = open_any_space(SMALL, nc=3)
    arch = space.default()
    for imgsz in (64, (32, 64)):
        save_weights(tmp_path / "w.pt", build(space, arch), space, arch, imgsz=imgsz)
        assert read_weights(tmp_path / "w.pt").imgsz == imgsz
