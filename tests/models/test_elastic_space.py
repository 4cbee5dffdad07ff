"""Spaces of supernets: what the YAML means, how many archs there are, and what can be wrong in it."""

import re
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml

from models.elastic.space import ElasticSpace
from utils.errors import UserError

MODELS = Path(__file__).resolve().parents[2] / "models"


def small(**backbone):
    """A RegNet of three stages and a stem, whose backbone is to be filled in."""
    base = {"depth": [1, 1, 1, 1, 1], "out_channel": 16, "group_width": 8}
    return {"network": "regnet", "nc": 3, "backbone": {**base, **backbone}}


def archs(space):
    """Every arch of a space, by trying all combinations."""
    found = {}
    for values in product(*space.choices.values()):
        try:
            arch = space.canonical(dict(zip(space.choices, values, strict=True)))
        except UserError:
            continue
        found[str(arch)] = arch
    return list(found.values())


# United-Perception's spaces -------------------------------------------------------------------------------


def test_the_published_spaces_have_the_published_sizes():
    assert ElasticSpace(MODELS / "bignas_retinanet_r18.yaml").size() == (59_049, 59_049)
    assert ElasticSpace(MODELS / "bignas_regnet.yaml").size() == (11_340, 11_340)


def test_labels_name_part_dim_and_stage():
    space = ElasticSpace(MODELS / "bignas_retinanet_r18.yaml")
    assert space.choices == {
        "backbone.out_channel.0": [48, 32, 64],
        "backbone.depth.1": [2, 1, 3],
        "backbone.out_channel.1": [64, 48, 80],
        "backbone.depth.2": [3, 2, 4],
        "backbone.out_channel.2": [128, 96, 160],
        "backbone.depth.3": [3, 2, 4],
        "backbone.out_channel.3": [256, 192, 320],
        "backbone.depth.4": [5, 4, 6],
        "backbone.out_channel.4": [512, 384, 640],
        "head.out_channel.0": [128, 64, 96],
    }


UP = """
network: retinanet
nc: 80
backbone:
  out_channel:
    space: {min: [32, 48, 96, 192, 384], max: [64, 80, 160, 320, 640], stride: [16, 16, 32, 64, 128]}
    sample_strategy: stage_wise
  kernel_size: [3, 3, 3, 3, 3]
  expand_ratio: [0.5, 1, 1, 1, 1]
  depth:
    space: {min: [1, 1, 2, 2, 4], max: [1, 3, 4, 4, 6], stride: [1, 1, 1, 1, 1]}
    sample_strategy: stage_wise_depth
neck: {depth: [3, 5], out_channel: [128, 128], kernel_size: [1, 3]}
head:
  depth: [4]
  out_channel:
    space: {min: 64, max: 128, stride: 32}
    sample_strategy: {name: stage_wise, kwargs: {mode: same}}
  kernel_size: [3]
"""


def test_united_perception_s_own_words_are_understood():
    space = ElasticSpace(yaml.safe_load(UP))
    ours = ElasticSpace(MODELS / "bignas_retinanet_r18.yaml")
    assert {k: sorted(v) for k, v in space.choices.items()} == {k: sorted(v) for k, v in ours.choices.items()}


SETTINGS = {
    "backbone": {
        "kernel_size": [3, 3, 3, 3, 3],
        "out_channel": [48, 64, 128, 256, 512],
        "depth": [1, 2, 3, 3, 5],
    },
    "neck": {"depth": [3, 5], "out_channel": [128, 128], "kernel_size": [1, 3]},
    "roi_head.cls_subnet": {"depth": [4], "out_channel": [128], "kernel_size": [3]},
    "roi_head.box_subnet": {"depth": [4], "out_channel": [128], "kernel_size": [3]},
}


def test_subnet_settings_are_archs():
    space = ElasticSpace(MODELS / "bignas_retinanet_r18.yaml")
    assert space.from_settings(SETTINGS) == space.default()
    for seed in range(5):
        arch = space.random(np.random.default_rng(seed))
        assert space.from_settings(space.settings(arch)) == arch
    wrong = {**SETTINGS, "backbone": {**SETTINGS["backbone"], "out_channel": [48, 64, 128, 256, 500]}}
    with pytest.raises(UserError, match="unknown value of backbone.out_channel '500'"):
        space.from_settings(wrong)


# How a dim is sampled -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "labels", "size"),
    [
        ({"out_channel": {"values": [16, 24, 32], "sample": "net"}}, ["backbone.out_channel"], 3),
        (
            {
                "out_channel": {
                    "min": [8, 8, 16, 16, 16],
                    "max": [8, 24, 32, 32, 32],
                    "stride": 8,
                    "sample": "net_wise_index",
                }
            },
            ["backbone.out_channel"],
            3,
        ),
        (
            {"out_channel": {"min": 16, "max": 32, "stride": 8}},
            [f"backbone.out_channel.{i}" for i in range(5)],
            243,
        ),
        (
            {
                "kernel_size": {"values": [[3], [3, 5], [3], [3], [3]], "sample": "block"},
                "depth": [1, 2, 1, 1, 1],
            },
            ["backbone.kernel_size.1.0", "backbone.kernel_size.1.1"],
            4,
        ),
        (  # tied: the wide one is the deep one
            {
                "depth": {"min": 1, "max": [1, 3, 1, 1, 2]},
                "out_channel": {
                    "values": [[16], [16, 24, 32], [16], [16], [16, 32]],
                    "sample": "stage_wise_depth",
                },
            },
            ["backbone.depth.1", "backbone.depth.4"],
            6,
        ),
        ({"depth": {"values": [1, 2, 3], "sample": "net"}}, ["backbone.depth"], 3),
    ],
)
def test_samples(backbone, labels, size):
    space = ElasticSpace(small(**backbone))
    assert list(space.choices) == labels
    assert space.size()[1] == size == len(archs(space))


def test_a_net_wide_index_picks_the_same_rank_in_every_stage():
    space = ElasticSpace(
        small(out_channel={"values": [[16], [16, 32], [24, 40], [32, 48], [64, 72]], "sample": "net_index"})
    )
    assert space.choices == {"backbone.out_channel": [1, 0]}
    part = space.parts["backbone"]
    assert [part.dim("out_channel", s)({"backbone.out_channel": 0}) for s in range(5)] == [16, 16, 24, 32, 64]
    assert [part.dim("out_channel", s)({"backbone.out_channel": 1}) for s in range(5)] == [16, 32, 40, 48, 72]


def test_a_tied_dim_follows_the_depth():
    space = ElasticSpace(
        small(
            depth={"min": 1, "max": [1, 3, 1, 1, 1]},
            out_channel={"values": [[16], [8, 24, 32], [16], [16], [16]], "sample": "depth"},
        )
    )
    width = space.parts["backbone"].dim("out_channel", 1)
    assert [width({"backbone.depth.1": d}) for d in (1, 2, 3)] == [8, 24, 32]


def test_genes_of_blocks_beyond_the_depth_are_dropped():
    space = ElasticSpace(
        small(depth={"min": 1, "max": [1, 3, 1, 1, 1]}, kernel_size={"values": [3, 5], "sample": "block"})
    )
    arch = {k: v[0] for k, v in space.choices.items()} | {"backbone.depth.1": 1}
    assert [k for k in space.canonical(arch) if ".1" in k] == ["backbone.depth.1", "backbone.kernel_size.1.0"]
    assert space.size() == (3 * 2**7, 2**4 * (2 + 4 + 8)) and len(archs(space)) == space.size()[1]
    # Ungated genes stand at the default when the arch is spelled out again.
    assert space.complete(space.canonical(arch))["backbone.kernel_size.1.2"] == 5


ORDERED = [
    {"out_channel": {"values": [16, 24, 32], "sample": "ordered_stage_wise"}},
    {
        "out_channel": {
            "values": [16, 24, 32],
            "sample": "stage",
            "order": {"min_slope": 1.5, "start_stage": 3},
        }
    },
    {"depth": {"values": [1, 2, 3], "sample": "ordered_stage_wise_depth"}},
    {
        "depth": {"values": [[1], [1, 2], [1], [1, 2], [1]], "sample": "stage"},
        "kernel_size": {"values": [[3], [3, 5], [3, 5], [3, 5], [5]], "sample": "ordered_block_wise"},
    },
    {
        "depth": {"values": [[1, 2, 3], [1, 2], [1], [1], [1]], "sample": "stage"},
        "kernel_size": {"values": [[3, 5, 7], [3, 5, 7], [7], [7], [7]], "sample": "ordered_block_wise"},
    },
    {
        "depth": {"values": [[1], [1, 2], [1, 2], [1, 2], [1]], "sample": "stage"},
        "out_channel": {
            "values": [[16], [16, 32], [24, 32], [16, 48], [48]],
            "sample": "ordered_stage_wise_depth",
        },
    },
]


@pytest.mark.parametrize("backbone", ORDERED)
def test_orders_are_kept_and_counted(backbone):
    space = ElasticSpace(small(**backbone))
    every = {str(a) for a in archs(space)}
    assert space.size()[1] == len(every) < space.size()[0]
    rng = np.random.default_rng(0)
    drawn = Counter(str(space.random(rng)) for _ in range(40 * len(every)))
    assert set(drawn) == every  # all of them, and nothing else
    for arch in (space.smallest(), space.largest(), space.default(), space.biased(rng, 3.0)):
        assert space.canonical(arch) == arch and str(arch) in every


def test_an_order_that_nothing_meets():
    with pytest.raises(UserError, match="backbone.out_channel: no values meet the order"):
        ElasticSpace(
            small(out_channel={"values": [[64], [32, 48], [16], [16], [16]], "sample": "ordered_stage_wise"})
        )


def test_an_arch_that_breaks_the_order():
    space = ElasticSpace(small(**ORDERED[0]))
    arch = space.default() | {"backbone.out_channel.2": 16}
    with pytest.raises(UserError, match="backbone.out_channel breaks its order: 16 in stage 2 after 32"):
        space.canonical(arch)


@pytest.mark.parametrize("backbone", ORDERED)
def test_repair_finds_the_nearest_arch_that_keeps_the_order(backbone):
    space = ElasticSpace(small(**backbone))
    every = archs(space)
    ranks = {k: sorted(v) for k, v in space.choices.items()}
    for values in product(*space.choices.values()):
        raw = dict(zip(space.choices, values, strict=True))
        found = space.repair(raw)
        assert space.canonical(found) == found

        def steps(arch, raw=raw):
            return sum(abs(ranks[k].index(v) - ranks[k].index(raw[k])) for k, v in arch.items())

        # Depths come first, and say which genes of blocks there are to be near to.
        same = [a for a in every if all(a[k] == v for k, v in found.items() if ".depth." in k)]
        assert steps(found) == min(map(steps, same))
        if any(all(raw[k] == v for k, v in a.items()) for a in every):
            assert found == space.canonical(raw)


def test_repair_by_hand():
    space = ElasticSpace(small(**ORDERED[0]))  # five widths of 16, 24, 32, none below the one before
    raw = {f"backbone.out_channel.{i}": v for i, v in enumerate((16, 24, 16, 16, 32))}
    assert list(space.repair(raw).values()) == [16, 16, 16, 16, 32]
    with pytest.raises(UserError, match="unknown value of backbone.out_channel.4 '20'"):
        space.repair(raw | {"backbone.out_channel.4": 20})
    with pytest.raises(UserError, match="the arch says nothing about 'backbone.out_channel.0'"):
        space.repair({})


def test_uniform_draws_are_uniform_and_biased_ones_lean():
    space = ElasticSpace(small(out_channel={"min": 16, "max": 32, "stride": 8}))
    rng = np.random.default_rng(0)
    counts = Counter(space.random(rng)["backbone.out_channel.2"] for _ in range(3000))
    assert all(900 < counts[v] < 1100 for v in (16, 24, 32))
    counts = Counter(space.biased(rng, 2.0)["backbone.out_channel.2"] for _ in range(3000))
    expected = np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum()  # .09, .24, .67
    assert np.allclose([counts[v] / 3000 for v in (16, 24, 32)], expected, atol=0.03)


def test_resolution_is_a_gene():
    space = ElasticSpace({**small(), "resolution": [64, 96, 128]})
    assert space.choices == {"resolution": [128, 64, 96]} and space.size() == (3, 3)
    assert space.smallest() == {"resolution": 64}
    quarter, whole = (space.cost({"resolution": r}, 96)["gflops"] for r in (64, 128))
    assert 3.9 < whole / quarter < 4.1  # all convolutions, one linear layer


# Mistakes -------------------------------------------------------------------------------------------------


PART_MISTAKES = [
    (
        {"out_channel": {"min": 32, "max": 16, "stride": 8}},
        "backbone.out_channel: min 32 is above max 16 in stage 0",
    ),
    (
        {"out_channel": {"min": 16, "max": 40, "stride": 16}},
        "stride 16 from 16 misses max 40 in stage 0; nearest is",
    ),
    ({"out_channel": {"max": 40}}, "backbone.out_channel has no min"),
    (
        {"out_channel": {"min": 16, "max": 32, "strid": 8}},
        "unknown key of backbone.out_channel 'strid'; did you mean 'stride'",
    ),
    (
        {"out_channel": {"min": [16, 16], "max": 32}},
        "backbone.out_channel.min should have 5 entries, one a stage, got 2",
    ),
    ({"out_channel": [16, 16, 32]}, "backbone.out_channel should have 5 entries"),
    ({"out_channel": "wide"}, "backbone.out_channel should be whole numbers, 1 or more, got ['wide']"),
    (
        {"group_width": 24},
        "backbone.group_width 24 does not divide the 16 channels inside the blocks of stage 0",
    ),
    (
        {"group_width": {"values": [8, 16]}, "out_channel": {"values": [16, 24]}},
        "group_width 16 does not divide the 24",
    ),
    ({"depth": None}, "backbone lacks depth"),
    ({"depth": [1, 0, 1, 1, 1]}, "backbone.depth should be whole numbers, 1 or more"),
    ({"depth": {"values": [1, 2], "sample": "block"}}, "backbone.depth cannot differ by block"),
    ({"widht": 3}, "unknown dim of backbone 'widht'"),
    ({"kernel_sise": 3}, "unknown dim of backbone 'kernel_sise'; did you mean 'kernel_size'"),
    (
        {"out_channel": {"values": [16, 24], "sample": "stagewise"}},
        "unknown sample of backbone.out_channel 'stagewise'; did you mean 'stage_wise'",
    ),
    (
        {"out_channel": {"values": [[16], [24], [16], [16], [16]], "middle": 16}},
        "unknown middle of backbone.out_channel '16'",
    ),
    (
        {"out_channel": {"values": [[16], [16, 24], [16], [16], [8]], "sample": "net"}},
        "one value for the whole net needs one range",
    ),
    (
        {"out_channel": {"values": [[16], [16, 24], [8, 16, 24], [16], [8]], "sample": "net_index"}},
        "needs equally many values, got [2, 3]",
    ),
    (
        {"out_channel": {"values": [16, 24], "sample": "net", "order": {}}},
        "one gene for the whole net has no order",
    ),
    (
        {"out_channel": {"values": [16, 24], "order": {"slope": 1}}},
        "unknown key of the order of backbone.out_channel 'slope'",
    ),
]


@pytest.mark.parametrize(("backbone", "message"), PART_MISTAKES)
def test_mistakes_in_a_part(backbone, message):
    with pytest.raises(UserError, match=re.escape(message)):
        ElasticSpace(small(**backbone))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "retinanett"}, "unknown network 'retinanett'; did you mean 'retinanet'"),
        ({"network": "no/such.py"}, "no network file 'no/such.py'"),
        ({"network": None}, "the space does not say its network"),
        ({"neck": {"depth": [1]}}, "unknown key of a space YAML 'neck'"),
        ({"nc": "many"}, "nc should be a whole number"),
        ({"resolution": [100]}, "resolution should be multiples of the stride 32, got 100"),
        ({"options": {"sqeeze": 0.2}}, "unknown option of the network 'sqeeze'; did you mean 'squeeze'"),
    ],
)
def test_mistakes_in_a_space(change, message):
    with pytest.raises(UserError, match=message):
        ElasticSpace({**small(), **change})


def test_mistakes_in_an_arch():
    space = ElasticSpace(MODELS / "bignas_regnet.yaml")
    arch = space.default()
    with pytest.raises(UserError, match="unknown value of backbone.depth.2 '7'; known: 4, 2, 3"):
        space.canonical(arch | {"backbone.depth.2": 7})
    with pytest.raises(UserError, match="did you mean 'backbone.depth.2'"):
        space.canonical(arch | {"backbone.deph.2": 4})
    with pytest.raises(UserError, match="says nothing about 'backbone.depth.2'"):
        space.canonical({k: v for k, v in arch.items() if k != "backbone.depth.2"})
    with pytest.raises(UserError, match="imgsz 100 is not a multiple of the stride 32; try 96"):
        space.cost(arch, 100)


def test_a_mistake_is_answered_without_torch():
    code = (
        "import sys\n"
        "from models.elastic.space import ElasticSpace\n"
        "print(ElasticSpace('models/bignas_retinanet_r18.yaml').size(), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=MODELS.parent, check=True
    )
    assert done.stdout.strip() == "(59049, 59049) False"
