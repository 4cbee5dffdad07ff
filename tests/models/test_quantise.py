"""INT8 files: what is quantised, what stays float, and that a file is scored as its network is."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from models.export import export
from models.file_network import FileNetwork
from models.networks import build
from models.quantise import Images, decoding, quantise_onnx, runs_of
from models.yolo.space import YoloSpace
from tests.models.test_export import NAMES, SMALL


def nodes(*described):
    """(name, type, inputs, outputs) of each node -> a graph."""
    made = [helper.make_node(kind, i.split(), o.split(), name=name) for name, kind, i, o in described]
    none = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(made, "g", [none], [none]))


def test_the_decoding_is_what_follows_the_last_convolutions():
    model = nodes(
        ("a", "Conv", "x w", "a"),
        ("act", "Relu", "a", "b"),
        ("boxes", "Conv", "b w", "c"),
        ("scores", "Conv", "b w", "d"),
        ("softmax", "Softmax", "c", "e"),
        ("/model.24/dfl/conv/Conv", "Conv", "e w", "f"),  # a mean over bins, no layer
        ("sigmoid", "Sigmoid", "d", "g"),
        ("cat", "Concat", "f g", "h"),
    )
    assert set(decoding(model)) == {"softmax", "/model.24/dfl/conv/Conv", "sigmoid", "cat"}


def test_attention_inside_is_no_decoding():
    model = nodes(
        ("q", "Conv", "x w", "a"),
        ("attend", "Softmax", "a", "b"),
        ("shape", "Reshape", "b s", "c"),
        ("o", "Conv", "c w", "d"),
        ("end", "Sigmoid", "d", "e"),
    )
    assert decoding(model) == ["end"]


def test_a_calibration_sees_each_image_once():
    images = np.arange(6, dtype=np.float32).reshape(3, 2, 1, 1)
    reader = Images(images, "images")
    seen = [reader.get_next() for _ in range(4)]
    assert seen[3] is None
    np.testing.assert_array_equal(np.concatenate([s["images"] for s in seen[:3]]), images)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """(detector, fp32 file, INT8 file, calibration images) of a network whose scores are not all alike."""
    space = YoloSpace(SMALL)
    arch, folder = space.default(), tmp_path_factory.mktemp("shipped")
    torch.manual_seed(0)
    net = build(space, arch, NAMES)
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    head = net.model.model[-1]
    with torch.no_grad():
        for convs in head.cv3:
            convs[-1].bias.fill_(0.0)
            convs[-1].weight.mul_(5)
    plain = export(net, folder / "x.onnx", "onnx", space=space, arch=arch, imgsz=64).path
    return net, plain, quantise_onnx(plain, folder / "x8.onnx", images.numpy()), images


def test_the_file_finds_what_the_network_finds(shipped):
    net, plain, _, images = shipped
    file = FileNetwork(runs_of(plain, "onnx", 1), net)
    for ours, theirs in zip(net.predict(images), file.predict(images), strict=True):
        assert len(ours["scores"]) > 0
        best = slice(0, 5)  # further down equal scores change places
        torch.testing.assert_close(ours["boxes"][best], theirs["boxes"][best], atol=1e-2, rtol=1e-4)
        torch.testing.assert_close(ours["scores"][best], theirs["scores"][best], atol=1e-5, rtol=1e-4)
        assert torch.equal(ours["labels"][best], theirs["labels"][best])


def test_int8_differs_by_its_steps_and_is_smaller(shipped):
    net, plain, small, images = shipped
    fp32, int8 = (runs_of(path, "onnx", 1)(images)[0] for path in (plain, small))
    boxes, scores = (fp32 - int8).abs()[:, :4], (fp32 - int8).abs()[:, 4:]
    assert 0 < boxes.max() < 6.4 and 0 < scores.max() < 0.1  # a tenth of the image, of the range
    kinds = [node.op_type for node in onnx.load(small).graph.node]
    assert kinds.count("QuantizeLinear") > kinds.count("Conv") // 2
    weights = {t.name: t.data_type for t in onnx.load(small).graph.initializer if "conv" in t.name}
    assert TensorProto.INT8 in weights.values()


def test_the_decoding_of_a_yolo_stays_float(shipped):
    graph = onnx.load(shipped[2]).graph
    made_by = {output: node for node in graph.node for output in node.output}
    last = made_by[graph.output[0].name]
    assert last.op_type == "Concat"  # boxes and scores, neither of them dequantised
    assert all(made_by[name].op_type != "DequantizeLinear" for name in last.input)


def test_boxes_without_nms_are_taken_as_they_are():
    net = build(YoloSpace(SMALL), YoloSpace(SMALL).default(), NAMES)
    rows = torch.tensor([[[1, 2, 3, 4, 0.9, 2], [5, 6, 7, 8, 0.0001, 1]]])
    (found,) = FileNetwork(lambda images: [rows], net).predict(torch.zeros(1, 3, 64, 64))
    assert found["boxes"].tolist() == [[1, 2, 3, 4]]
    assert found["labels"].tolist() == [2] and found["scores"].tolist() == pytest.approx([0.9])
