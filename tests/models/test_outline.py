"""The blocks of an arch, against the network that is built of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.networks import build, open_any_space
from utils.report.blueprint import blueprint_info


def test_rows_of_a_yolo_have_the_shapes_of_the_built_network() -> None:
    space = open_any_space("models/yolov5p_nas.yaml", nc=3)
    arch = space.random(np.random.default_rng(3))
    side = int(arch["resolution"])
    blocks = space.blocks(arch, 640)  # the arch's own image size counts
    model = build(space, arch).model.eval()
    shapes: dict[int, tuple[int, ...]] = {}
    for layer in model.model[:-1]:
        layer.register_forward_hook(lambda m, _, y: shapes.update({m.i: tuple(y.shape[1:])}))
    with torch.no_grad():
        model(torch.zeros(1, 3, side, side))
    assert [b["name"] for b in blocks] == [str(i) for i in range(len(model.model))]
    for i, block in enumerate(blocks[:-1]):
        assert shapes[i] == (block["channels"], block["side"], block["side"]), block
    assert blocks[-1]["sources"] == [str(j) for j in model.model[-1].f]
    c3 = next(b for b in blocks if "bottlenecks" in b["facts"])
    built = model.model[int(c3["name"])]
    assert c3["facts"]["bottlenecks"] == len(built.m)
    assert c3["facts"]["hidden channels"] == built.cv1.conv.out_channels
    assert {b["part"] for b in blocks} == {"backbone", "neck", "head"}


@pytest.mark.parametrize("name", ["bignas_retinanet_small", "bignas_regnet"])
def test_stages_of_an_elastic_network_say_what_the_arch_says(name: str) -> None:
    space = open_any_space(f"models/{name}.yaml", nc=3)
    arch = space.random(np.random.default_rng(1))
    blocks = {b["name"]: b for b in space.blocks(arch, 64)}
    for label, value in arch.items():
        part, dim, stage = label.split(".")[:3]
        block = blocks[f"{part} {stage}"]
        assert {"depth": block["facts"]["blocks"], "out_channel": block["channels"]}[dim] == value, label


@pytest.mark.parametrize("name", ["yolov5n_nas", "bignas_retinanet_small", "bignas_regnet"])
def test_the_drawing_shows_exactly_the_blocks_whose_choices_differ(name: str) -> None:
    space = open_any_space(f"models/{name}.yaml", nc=3)
    default = space.default()
    networks = [{"imgsz": 64, "blocks": space.blocks(a, 64)} for a in (default, space.smallest())]
    same = blueprint_info(1, networks[0], networks[0])
    other = blueprint_info(1, networks[1], networks[0])
    assert same is not None and same.changed == 0
    assert other is not None and other.changed > 0
    changed = {b.name for boxes in other.parts.values() for b in boxes if b.state == "changed"}
    smallest = space.smallest()
    labels = [k for k in {*default, *smallest} if default.get(k) != smallest.get(k)]
    if name == "yolov5n_nas":
        assert changed == {label.split("_")[1] for label in labels}
    else:
        assert changed == {" ".join((label.split(".")[0], label.split(".")[2])) for label in labels}
