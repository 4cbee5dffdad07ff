"""Detector YAML as people write it, and every way to get it wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import yaml

from models.yolo.space import YoloSpace
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SEED = Path(__file__).parent / "fixtures" / "yolov5s_seed.yaml"


def tiny(backbone=None, head=None, **keys):
    """A detector of one level that takes a moment to build."""
    return {
        "nc": 2,
        "backbone": backbone or [[-1, 1, "NASConv", [8, 3, 2]], [-1, 2, "NASC3", [16]]],
        "head": head or [[-1, 1, "Conv", [16, 3, 2]], [[1, 2], 1, "Detect", ["nc"]]],
        **keys,
    }


def test_the_seed_file_as_it_is():
    space = YoloSpace(SEED)
    assert (space.name, space.nc, space.ch, space.strides) == ("yolov5s_seed", 80, 3, (8, 16, 32))
    assert space.notices == ["anchors set aside: the head is Ultralytics' anchor-free Detect"]
    assert space.rows[11].args == [None, 2, "nearest"]  # written as 'None' in quotes
    assert space.rows[-1].args == [80]
    widths = [r.args[0] for r in space.rows[:10]]
    assert widths == [32, 64, 64, 128, 128, 256, 256, 512, 512, 512]
    assert [r.number for r in space.rows[:9]] == [1, 1, 1, 1, 2, 1, 3, 1, 1]


def test_labels_come_from_row_numbers():
    space = YoloSpace(SEED)
    assert list(space.choices)[:10] == [
        *("nasconv_0", "nasconv_0_act", "nasconv_1", "nasconv_1_act"),
        *("c3_2_width", "c3_2_cv1", "c3_2_cv1_act", "c3_2_cv2", "c3_2_cv2_act", "c3_2_m0"),
    ]
    assert space.choices["nasconv_0"] == ["6x6", "4x4", "8x8"]
    assert space.choices["nasconv_1"] == ["3x3", "5x5"]  # a 1x1 of stride 2 would never see most pixels
    assert space.choices["nasconv_0_act"] == ["SiLU", "Identity", "ReLU"]
    assert space.choices["c3_6_width"] == [1.0, 1.5, 2.0]
    assert space.choices["c3_6_cv1"] == ["1x1", "3x3"]
    assert space.choices["c3_6_depth"] == [3, 1, 2]  # the stock network first
    for label in space.choices:
        assert "/" not in label
        assert label not in ("status", "evaluator", "metrics", "sample")
        assert not label.startswith("model_")


@pytest.mark.parametrize("letter", "nsmlx")
def test_shipped_spaces_follow_the_seed(letter):
    space = YoloSpace(ROOT / "models" / f"yolov5{letter}_nas.yaml", nc=20)
    plain = YoloSpace(SEED)
    assert space.nc == 20
    assert space.notices == []
    assert [(r.source, r.module) for r in space.rows] == [(r.source, r.module) for r in plain.rows]
    if letter == "s":
        assert space.choices == plain.choices


@pytest.mark.parametrize(("name", "depth"), [("yolov5n", 3), ("yolov5x", 12), ("yolov5s-p6", 3)])
def test_ultralytics_own_files_by_name(name, depth):
    space = YoloSpace(f"{name}.yaml")
    fixed = YoloSpace(space.model | {"choices": {}})
    assert (fixed.choices, fixed.size(), fixed.default()) == ({}, (1, 1), {})
    assert fixed.stock({}) == space.stock(space.default())
    assert space.rows[6].number == depth
    assert space.strides == ((8, 16, 32, 64) if "p6" in name else (8, 16, 32))


def test_scale_comes_from_the_file_name_or_the_scale_key(tmp_path):
    rows = tiny()
    scales = {"scales": {"n": [0.5, 0.5, 1024], "m": [1.0, 2.0, 1024]}}
    (tmp_path / "yolov5m_mine.yaml").write_text(yaml.safe_dump(rows | scales, sort_keys=False))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(rows | scales, sort_keys=False))
    assert YoloSpace(tmp_path / "yolov5m_mine.yaml").rows[1].args[0] == 32
    first = YoloSpace(tmp_path / "mine.yaml")
    assert first.rows[1].args[0] == 8
    assert "scale" in first.notices[0]
    assert YoloSpace(rows | scales | {"scale": "m"}).rows[1].args[0] == 32
    with pytest.raises(UserError, match="unknown scale 'q'.*known: n, m"):
        YoloSpace(rows | scales | {"scale": "q"})


def test_choices_are_set_in_the_file():
    block = {
        "NASConv": {"kernel": ["k", "k+2", "k+4"], "act": "ReLU"},
        "NASC3": {"width": [1, 2], "act": ["SiLU"]},
    }
    space = YoloSpace(tiny(choices=block))
    assert space.choices["nasconv_0"] == ["3x3", "5x5", "7x7"]
    assert "nasconv_0_act" not in space.choices  # a single value is fixed
    assert space.choices["c3_1_width"] == [1.0, 2.0]
    assert "c3_1_cv1_act" not in space.choices
    assert space.choices["c3_1_depth"] == [2, 1]  # untouched options keep their usual values


def test_a_row_may_differ():
    rows = [
        [-1, 1, "NASConv", [8, 3, 2, {"kernel": [1, 3], "act": ["ReLU", "SiLU"]}]],
        [
            -1,
            2,
            "NASC3",
            [16, {"depth": ["n", "n+1"], "width": 1.0, "kernel": 1, "act": "SiLU", "bottleneck": 1}],
        ],
    ]
    space = YoloSpace(tiny(rows, choices={"NASConv": {"act": ["Identity"]}}))
    assert space.choices == {
        "nasconv_0": ["3x3", "1x1"],  # a 1x1 that was asked for stays
        "nasconv_0_act": ["SiLU", "ReLU"],
        "c3_1_depth": [2, 3],
    }


def test_head_rows_may_be_searched():
    head = [[-1, 1, "NASConv", [16, 3, 2]], [-1, 1, "NASC3", [16, False]], [[1, 3], 1, "Detect", ["nc"]]]
    space = YoloSpace(tiny(head=head))
    assert space.choices["nasconv_2"] == ["3x3", "5x5"]
    assert space.stock(space.default())["head"][1] == [-1, 1, "C3", [16, False, 1, 0.5]]


def test_widths_that_round_to_the_same_channels_are_one():
    rows = [[-1, 1, "NASConv", [8, 3, 2]], [-1, 1, "NASC3", [8, {"width": [1.0, 1.1, 1.5]}]]]
    assert YoloSpace(tiny(rows)).choices["c3_1_width"] == [1.0, 1.5]  # int(8 * .5 * 1.1) = 4


def test_the_model_is_json_and_makes_the_space_again():
    space = YoloSpace(SEED, nc=7)
    again = YoloSpace(json.loads(json.dumps(space.model)), nc=7)
    assert again.choices == space.choices
    assert again.name == space.name
    assert again.network == space.network


def test_the_given_dict_is_left_alone():
    model = tiny()
    before = copy.deepcopy(model)
    space = YoloSpace(model, nc=5)
    space.stock(space.default())
    assert model == before


def broken(i, row):
    model = tiny()
    (model["backbone"] + model["head"])[i][:] = row
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ([1, 2], "not a detector: expected nc, backbone and head, got \\[1, 2\\]"),
        (tiny(backbone=3), "not a detector: 'backbone' should be a list of rows, got 3"),
        ({"nc": 2, "backbone": tiny()["backbone"]}, "'head' should be a list of rows, got None"),
        (tiny(nc=None), "does not say nc"),
        (tiny(nc="two"), "nc should be a whole number, 1 or more, got 'two'"),
        (tiny(nc=0), "nc should be a whole number, 1 or more, got 0"),
        (tiny(nc=True), "nc should be"),
        (tiny(choises={}), "unknown key of a model YAML 'choises'; did you mean 'choices'"),
        (tiny(width_multiple="wide"), "multiples should be positive numbers"),
        (tiny(scales=[1]), "scales should be like"),
        (tiny(activation="nn.SiLu()"), "unknown activation 'nn.SiLu\\(\\)'; did you mean 'nn.SiLU\\(\\)'"),
        (tiny(activation="__import__('os').getcwd()"), "unknown activation"),
        (tiny(reg_max=-1), "reg_max should be"),
        (broken(0, [-1, 1, "NASCnov", [8, 3, 2]]), "module in row 0 'NASCnov'; did you mean 'NASConv'"),
        (broken(0, [-1, 1, "os.system", ["ls"]]), "unknown module in row 0 'os.system'"),
        (broken(0, [-1, 1, ["NASConv"], [8]]), "unknown module in row 0"),
        (broken(0, [-1, 1, 7, [8]]), "unknown module in row 0 '7'"),
        (broken(0, [-1, "NASConv", [8, 3, 2]]), "row 0 should read \\[from, number, module, \\[args\\]\\]"),
        (broken(0, [-1, 0, "NASConv", [8, 3, 2]]), "row 0, NASConv: number should be 1 to 1000, got 0"),
        (broken(0, [-1, 4, "NASConv", [8, 3, 2]]), "row 0, NASConv: cannot be repeated, got number 4"),
        (broken(1, [-1, 2, "Conv", [16, 3]]), "row 1, Conv: 2 copies in a row need .* got 8 -> 16"),
        (broken(1, [5, 1, "NASC3", [16]]), "row 1, NASC3: reads row 5, but rows 0 to 0 exist before it"),
        (broken(1, [1, 1, "NASC3", [16]]), "row 1, NASC3: reads row 1"),
        (broken(1, [-3, 1, "NASC3", [16]]), "reads row -3"),
        (broken(0, [0, 1, "NASConv", [16]]), "reads row 0, but only the image, -1, exist"),
        (broken(1, [[-1], 1, "NASC3", [16]]), "`from` should be one row, got \\[-1\\]"),
        (broken(2, [1, 1, "Concat", [1]]), "`from` should be a list of rows, got 1"),
        (broken(1, ["0", 1, "NASC3", [16]]), "`from` should be row numbers, got '0'"),
        (broken(2, [[0, -1], 1, "Concat", [2]]), "Concat joins channels, dimension 1, got 2"),
        (broken(1, [-1, 1, "NASC3", []]), "takes \\[c2, shortcut, g, e\\], at least 1, got \\[\\]"),
        (broken(0, [-1, 1, "NASConv", [8, 3, 2, 1, 1, 9]]), "takes \\[c2, k, s, p, g\\]"),
        (broken(0, [-1, 1, "NASConv", ["wide", 3]]), "argument c2 should be int, got 'wide'"),
        (broken(0, [-1, 1, "NASConv", [8, 3, 0]]), "a convolution cannot have .* s=0"),
        (broken(0, [-1, 1, "NASConv", [8, 3, 2, None, 2]]), "2 groups do not divide 3 -> 8 channels"),
        (broken(0, [-1, 1, "Conv", [8, 300, 1, 0]]), "nothing is left of a 256 x 256 map"),
        (broken(3, [[1, 2], 1, "Detect", [80]]), "predicts 80 classes where nc is 2"),
        (broken(3, [-1, 1, "Conv", [8]]), "the last row, and only it, must be Detect, got Conv"),
        (tiny(choices=[1]), "choices should be like"),
        (tiny(choices={"NASConf": {}}), "unknown block in choices 'NASConf'; did you mean 'NASConv'"),
        (tiny(choices={"NASC3": {"widths": [1]}}), "unknown choice of NASC3 'widths'; did you mean 'width'"),
        (
            tiny(choices={"NASConv": {"act": ["Silu"]}}),
            "row 0, NASConv: unknown act 'Silu'; did you mean 'SiLU'",
        ),
        (tiny(choices={"NASConv": {"act": []}}), "act offers nothing"),
        (tiny(choices={"NASConv": {"kernel": [4]}}), "kernel 4 cannot keep the output size of kernel 3"),
        (tiny(choices={"NASConv": {"kernel": ["2k"]}}), "kernel should be whole numbers or k, k\\+2, k-2"),
        (tiny(choices={"NASConv": {"kernel": [True]}}), "kernel should be whole numbers"),
        (tiny(choices={"NASC3": {"width": [0]}}), "width should be positive factors"),
        (tiny(choices={"NASC3": {"width": ["big"]}}), "width should be positive factors"),
        (tiny(choices={"NASC3": {"width": 0.01}}), "width 0.01 with bottleneck 1.0 gives"),
        (tiny(choices={"NASC3": {"depth": ["n-2"]}}), "depth offers nothing"),
        (tiny(choices={"NASC3": 3}), "choices of NASC3 should be like"),
    ],
)
def test_mistakes_are_one_line_that_names_them(model, message):
    with pytest.raises(UserError, match=message) as caught:
        YoloSpace(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nc: [1, 2\nbackbone: :", "is not YAML"),
        ("just words", "is not a detector: expected nc, backbone and head, got 'just words'"),
        ("", "is not a detector"),
        ("path: data\ntrain: images\nnames: [a]", "not a detector: 'backbone'"),
        ("\x00\x01\x02", "is not YAML"),
    ],
)
def test_files_that_are_no_detectors(tmp_path, text, message):
    file = tmp_path / "model.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        YoloSpace(file)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no model file .*nowhere.yaml"):
        YoloSpace(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="it is a folder"):
        YoloSpace(tmp_path)


def test_concat_of_different_sizes():
    head = [[-1, 1, "Conv", [16, 3, 2]], [[0, 2], 1, "Concat", [1]], [[1, 3], 1, "Detect", ["nc"]]]
    with pytest.raises(UserError, match="row 3, Concat: the inputs have different sizes: 128 x 128, 64 x 64"):
        YoloSpace(tiny(head=head))


def test_foreign_keys_are_set_aside_with_a_notice():
    assert "author" in YoloSpace(tiny(author="somebody")).notices[0]
