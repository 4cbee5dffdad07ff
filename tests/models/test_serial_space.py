"""Spaces of serial codes: their archs, what they cost, and the networks that come of them."""

import numpy as np
import pytest
import torch

from models.backbones.serial import SerialBackbone, maps
from models.networks import describe, open_any_space
from models.serial.code import parse
from models.serial.costs import backbone_cost
from models.serial.space import SerialSpace
from tests.some import some
from utils.errors import UserError
from utils.limits import check_limits, parse_limits
from utils.training.measure import count_flops, count_params

SMALL = {
    "code": "b_11-21-2-2",
    "detector": "retinanet",
    "base": 4,
    "blocks": [5, 9],
    "stages": [3, 5],
    "neck": {"out_channel": 8},
    "head": {"depth": [1], "out_channel": 8},
}
RESNET50 = "111-2111-211111-211"
COCO = "x(32x4d)_1111-21111-2111111111111111111111111-211-1"


def small(**changes):
    return SerialSpace(SMALL | changes, nc=3)


def test_one_dict_opens_it_and_its_model_opens_it_again():
    space = open_any_space("models/spnas_small.yaml", nc=3)
    assert isinstance(space, SerialSpace) and space.task == "detect" and space.stride == 64
    again = open_any_space(space.model, space.nc, space.ch)
    assert again.default() == space.default() == {"code": "b_11-21-21-21"}
    assert again.choices == space.choices


@pytest.mark.parametrize("dialect", ["paper", "vega"])
def test_the_base_code_costs_what_resnet50_costs(dialect):
    params, macs = backbone_cost(parse(RESNET50, dialect), 3, 64, False, 224)
    assert params == 23_508_032 and macs / 1e9 == pytest.approx(4.09, abs=0.005)  # without the classifier


@pytest.mark.parametrize(("dialect", "published"), [("paper", 53.4), ("vega", 66.9)])
def test_the_published_coco_backbone_is_built_in_its_published_size(dialect, published):
    code = parse(COCO, dialect)
    with torch.device("meta"):
        built = count_params(SerialBackbone(code))
    assert built / 1e6 == pytest.approx(published, rel=0.01)
    assert built == backbone_cost(code, 3, 64, False, 256)[0]


@pytest.mark.parametrize("kind", ["b", "r", "x(2x8d)"])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("dialect", some(["paper", "vega"], ["paper"]))
def test_costs_are_those_of_the_built_network(kind, own, dialect):
    space = small(code=f"{kind}_11-21-2-2", base=8, dialect=dialect, options={"own_streams": own})
    rng = np.random.default_rng(1)
    for arch in (space.default(), space.with_streams(space.random(rng), rng)):
        net = space.build(arch)
        cost = space.cost(arch, 64)
        assert cost["params_m"] * 1e6 == count_params(net), arch
        assert cost["gflops"] * 1e9 == count_flops(net, 64), arch


@pytest.mark.parametrize("detector", ["retinanet", "classifier", "faster_rcnn"])
def test_a_code_stands_under_several_detectors(detector):
    parts = {} if detector == "classifier" else {k: SMALL[k] for k in ("neck", "head")}
    model = {k: v for k, v in SMALL.items() if k not in ("neck", "head")} | parts
    space = SerialSpace(model | {"detector": detector, "code": "b_11-21-2-2_1-0-2-0"}, nc=3)
    net = space.build(space.default(), ["a", "b", "c"])
    batch = {
        "img": torch.rand(2, 3, 64, 64),
        "cls": torch.tensor([[0.0], [2.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]] * 2),
        "batch_idx": torch.tensor([0.0, 1.0]),
    }
    sum(net.loss(batch).values()).backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None]
    assert silent == []  # every stream, connection and level takes part
    assert len(net.predict(batch["img"])) == 2


def test_levels_and_anchors_follow_the_stages():
    space = small()
    by_stages = {len(c.split("-")): space.build({"code": f"b_{c}"}) for c in ("111-22-2", "11-2-2-2-1")}
    assert [len(net.neck.outputs) for net in by_stages.values()] == [2, 4]  # strides 8 and 16; 8 to 64
    assert [net.stride for net in by_stages.values()] == [16, 64]
    assert [net.coarsest for net in by_stages.values()] == [32, 128]
    assert [len(net.anchors.sizes) for net in by_stages.values()] == [3, 5]


def test_maps_of_the_other_dialect_come_from_the_last_block_of_each_stride():
    code = parse("11121111-21111-112-1111-1111", "vega")
    assert [stride for _, stride in maps(code, 64)] == [4, 8, 16, 32]
    assert [
        t.shape[-1] for t in SerialBackbone(parse("b_12-121-1", "vega"), base=4)(torch.rand(1, 3, 64, 64))
    ] == [
        16,
        8,
        4,
    ]


def test_extra_streams_come_back_into_the_trunk():
    """Two streams of stage 1: both run it, the second takes in what the first made."""
    net = SerialBackbone(parse("b_1-2_0-2"), base=4).eval()
    for streams in net.connect:
        for stream in streams:
            torch.nn.init.ones_(stream[1].weight)
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        trunk = net.stages[0](net.stem(x))
        first = net.stages[1](trunk)
        back = torch.nn.functional.interpolate(net.connect[1][1](first), scale_factor=2.0)
        second = net.stages[1](trunk + back)
        back = torch.nn.functional.interpolate(net.connect[1][0](second), scale_factor=2.0)
        assert torch.equal(net(x)[1], net.stages[1](trunk + back))


def test_every_walk_crossing_and_repair_stays_in_the_space():
    space, rng = small(), np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        a, b = space.random(rng), space.random(rng)
        genes = space.complete(a)
        assert space.repair(genes) == a and space.canonical(genes) == a and set(genes) == set(space.choices)
        child = space.repair(space.mutate(space.cross(genes, space.complete(b), rng), rng, 0.1))
        anything = {label: values[rng.integers(len(values))] for label, values in space.choices.items()}
        for arch in (child, space.repair(anything), space.repair(space.redraw(genes, rng, 0.5))):
            assert space.canonical(arch) == arch
            seen.add(arch["code"])
    assert len(seen) > 60
    assert all(space.canonical(space.repair(g)) for g in space.changes(space.complete(space.default())))


def test_a_crossing_has_the_first_stages_of_one_and_the_last_of_the_other():
    space = small()
    genes = [space.complete({"code": f"b_{c}"}) for c in ("11-2-2-2", "1-221-1-2")]
    found = {space.repair(space.cross(*genes, np.random.default_rng(i)))["code"] for i in range(30)}
    assert found == {"b_11-221-1-2", "b_11-2-2-2"}  # cut behind the first stage; behind the second or third


def test_a_space_of_few_codes_is_counted_exactly():
    space = small(blocks=[4, 5], stages=[3, 4], streams=0, code="b_1-2-1-1")
    found = {c for n in range(200) for c in [space.random(np.random.default_rng(n))["code"]]}
    assert space.size()[1] == 3 * 3 + 1 * 3 + 6 * 4 + 4 * 4
    assert len(found) <= space.size()[1]


def test_ends_enclose_what_is_drawn():
    space, rng = small(), np.random.default_rng(0)
    drawn = [space.cost(space.random(rng), 64)["gflops"] for _ in range(30)]
    low, high = (space.cost(arch, 64)["gflops"] for arch in (space.smallest(), space.largest()))
    assert low <= min(drawn) < max(drawn) <= high
    leaning = [np.mean([space.cost(space.biased(rng, t), 64)["gflops"] for _ in range(20)]) for t in (-3, 3)]
    assert leaning[0] < leaning[1]
    assert "archs:" in describe(space, 64)


def test_streams_are_the_rarer_the_more_they_cost():
    space, rng = small(), np.random.default_rng(0)
    code = space.base
    mean = backbone_cost(code, 3, 4, False, 64)[1] / 4  # 64 is the space's stride
    stage = 2 * 2 * 9 * 4 * 4 * 16**2  # two blocks of two 3x3 convolutions of 4 channels at 16 x 16 px
    connection = 4 * 4 * 16**2
    weights = space.stream_weights(code, 0)
    assert weights == pytest.approx([1 / (1 + k * (stage + connection) / mean) for k in range(4)])
    drawn = [parse(space.with_streams(space.default(), rng)["code"]).streams[0] for _ in range(400)]
    share = [drawn.count(k) / 400 for k in range(4)]
    assert share == pytest.approx([w / sum(weights) for w in weights], abs=0.06)


def test_both_dialects_are_spelled_and_read():
    space = open_any_space("models/spnas_resnet.yaml", nc=3)
    arch = {"code": "r_11121111-21111-112-1111-1111"}
    said = space.spelled(arch)
    assert said["serial_code"]["vega"] == "r_111-11111-2111121-121112111"
    assert space.read_spelled(said) == arch
    assert space.read_spelled({"serial_code": {"vega": said["serial_code"]["vega"]}}) == arch
    assert space.read_spelled({}) is None


def test_blocks_are_drawn_with_the_shapes_of_the_network():
    space = small()
    arch = {"code": "b_11-21-2-2_1-0-0-0"}
    net, blocks = space.build(arch), space.blocks(arch, 64)
    stages = [b for b in blocks if b["part"] == "backbone"]
    assert [(b["channels"], b["side"]) for b in stages] == [
        tuple(x.shape[1:3]) for x in net.backbone(torch.rand(1, 3, 64, 64))
    ]
    assert stages[0]["facts"] == {"blocks": 2, "code": "11", "extra streams": 1}
    assert {b["part"] for b in blocks} == {"backbone", "neck", "head"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"code": "b_11--2"}, "empty stage"),
        ({"code": "b_13-2-2"}, "holds '13'"),
        ({"code": "b_1-1-1-1-1-2"}, "6 stages, where 3 to 5 are allowed"),
        ({"code": "b_1-1-2"}, "3 blocks, where 5 to 9 are allowed"),
        ({"dialect": "vega18"}, "neither of paper, vega"),
        ({"detector": "yolo"}, "unknown detector 'yolo'"),
        ({"blocks": [9, 5]}, "fewest and the most"),
        ({"streams": 4}, "streams should be 0 to 3"),
        ({"levels": {"finest": 7}}, "finest 4, 8 or 16"),
        ({"neck": {"depth": [1, 2]}}, "follows the code"),
        ({"rates": {"swap": 1}}, "unknown change of a code 'swap'"),
        (
            {
                "rates": dict.fromkeys(
                    ["boundary", "doubling", "expand", "shrink", "add_stage", "drop_stage"], 0
                )
            },
            "not all",
        ),
        ({"backbone": {}}, "unknown key of a space YAML 'backbone'"),
        ({"options": {"streams": 1}}, "unknown option of the network 'streams'"),
    ],
)
def test_what_a_file_gets_wrong_is_one_line(changes, said):
    with pytest.raises(UserError, match=said) as error:
        small(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ({"code": "b_11-21--2"}, "empty stage"),
        ({"code": "b_1-2-2-2-1-1"}, "6 stages"),
        ({"code": "r_11-21-2-2"}, "of other blocks"),
        ({"code": "b_11-11-2-2"}, "2 blocks 2; in .* it is 3"),
        ({"code": 111}, "is like"),
        ({"depth": 3}, "is like"),
    ],
)
def test_archs_of_other_spaces(arch, said):
    with pytest.raises(UserError, match=said):
        small().canonical(arch)


def test_limits_below_the_smallest_network_name_the_nearest():
    space = small()
    with pytest.raises(
        UserError, match="no architecture of the space meets the limits gflops <= 1e-06; the nearest has"
    ):
        check_limits(space, parse_limits({"gflops": "<= 0.000001"}), 64, np.random.default_rng(0), samples=20)


def test_it_has_no_supernet_and_a_code_is_needed():
    with pytest.raises(UserError, match="share no supernet"):
        small().supernet()
    with pytest.raises(UserError, match="add `code: "):
        model = {"network": {"detector": "classifier", "backbone": "serial"}, "backbone": {"depth": [1]}}
        open_any_space(model, nc=2).supernet()
