"""Serial codes: what their digits mean in both dialects, and what changing them keeps."""

from collections import Counter

import numpy as np
import pytest
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from models.serial.code import CHANGES, RATES, Bounds, mutate, parse
from utils.errors import UserError

RESNET50 = "111-2111-211111-211"
COCO = "x(32x4d)_1111-21111-2111111111111111111111111-211-1"


def backbone(code, base: int = 64) -> nn.Module:
    """The stages and a ResNet stem, of torchvision's own blocks; no classifier."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, base, 7, 2, 3, bias=False),
        nn.BatchNorm2d(base),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    block, wide = (BasicBlock, 1) if code.kind == "b" else (Bottleneck, 4)
    channels = base
    for stage in code.shapes(base):
        for planes, stride in stage:
            down = None
            if stride != 1 or channels != planes * wide:
                down = nn.Sequential(
                    nn.Conv2d(channels, planes * wide, 1, stride, bias=False), nn.BatchNorm2d(planes * wide)
                )
            layers.append(block(channels, planes, stride, down, code.groups, code.group_width))
            channels = planes * wide
    return nn.Sequential(*layers)


def millions(code) -> float:
    return sum(p.numel() for p in backbone(code).parameters()) / 1e6


@pytest.mark.parametrize("dialect", ["paper", "vega"])
def test_the_base_code_is_resnet50(dialect):
    code = parse(RESNET50, dialect)
    assert [len(stage) for stage in code.stages] == [3, 4, 6, 3]
    assert code.shapes() == [
        [(64, 1)] * 3,
        [(128, 2), *[(128, 1)] * 3],
        [(256, 2), *[(256, 1)] * 5],
        [(512, 2), *[(512, 1)] * 2],
    ]
    assert millions(code) == pytest.approx(23.508, abs=1e-3)  # torchvision's resnet50 without its classifier


@pytest.mark.parametrize(("dialect", "published"), [("paper", 53.4), ("vega", 66.9)])
def test_the_published_coco_code_has_its_published_size_in_each_dialect(dialect, published):
    code = parse(COCO, dialect)
    assert len(code.blocks) == 38
    assert millions(code) == pytest.approx(published, rel=0.01)


def test_the_published_pedestrian_code_differs_between_dialects():
    paper, vega = (parse("11121111-21111-112-1111-1111", d).shapes() for d in ("paper", "vega"))
    strides = [
        [np.prod([s for stage in shapes[: i + 1] for _, s in stage]) * 4 for i in range(5)]
        for shapes in (paper, vega)
    ]
    assert strides == [[4, 8, 16, 32, 64], [8, 16, 32, 32, 32]]
    assert [stage[-1][0] * 4 for stage in paper] == [512, 1024, 2048, 2048, 2048]
    assert [stage[-1][0] * 4 for stage in vega] == [256, 512, 1024, 2048, 4096]


@pytest.mark.parametrize(
    "text",
    ["r_111-2111-211111-211", "b_11-21-21-21_0-0-2-3", COCO, "r_11121111-21111-112-1111-1111_0-0-2-0-3"],
)
def test_printing_and_parsing_are_inverse(text):
    assert str(parse(text)) == text
    assert parse(str(parse(text))) == parse(text)


def test_short_forms_are_the_bottleneck_without_extra_streams():
    assert parse(RESNET50) == parse(f"r_{RESNET50}_0-0-0-0")
    assert str(parse("x_11-2_0-0")) == "x(32x4d)_11-2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no serial code"),
        ("111--211", "empty stage"),
        ("111-", "empty stage"),
        ("111-2311", "holds '2311'"),
        ("q_111-211", "holds 'q'"),
        ("r_111-211_0", "extra streams of its 2 stages"),
        ("r_111-211_0-4", "0 to 3"),
        ("r_111-211_0-x", "0 to 3"),
    ],
)
def test_what_is_no_code_is_said(text, said):
    with pytest.raises(UserError, match=said):
        parse(text)


def test_a_dialect_of_nobody():
    with pytest.raises(UserError, match="'vega18' is neither of paper, vega"):
        parse(RESNET50, "vega18")


SMALL = parse("112-21-1")


def became(name: str) -> set[str]:
    return {str(code)[2:] for code in CHANGES[name](SMALL, 99)}


def test_each_change_gives_exactly_these():
    assert became("boundary") == {"1-1221-1", "11-221-1", "1122-1-1", "112-2-11"}
    assert became("doubling") == {
        *{"121-21-1", "111-22-1", "111-21-2"},  # the third block's 2
        *{"122-11-1", "112-12-1", "112-11-2"},  # the fourth's
    }
    assert became("expand") == {"1112-21-1", "1121-21-1", "112-211-1", "112-21-11"}
    assert became("shrink") == {"12-21-1", "112-2-1"}
    assert became("add_stage") == {"112-21-1-1"}
    assert became("drop_stage") == {"112-21"}


def test_random_walks_keep_bounds_and_doublings_and_reach_every_change():
    rng, bounds = np.random.default_rng(0), Bounds((8, 20), (4, 5))
    start = code = parse(RESNET50)
    seen = set()
    for _ in range(300):
        after = mutate(code, rng, bounds=bounds)
        assert after != code
        assert bounds.broken(after) is None
        assert after.doublings == start.doublings
        assert not after.blocks[0].two
        assert len({b.id for b in after.blocks}) == len(after.blocks)
        assert len(after.streams) == len(after.stages)
        seen |= {len(after.stages), len(after.blocks) - len(code.blocks)}
        code = after
    assert {4, 5} <= seen and min(seen) < 0 < max(seen)


def test_rates_are_probabilities():
    rng = np.random.default_rng(0)
    code = parse(RESNET50)
    drawn: Counter[str] = Counter()
    changed = {name: CHANGES[name](code, 99) for name in CHANGES}
    for _ in range(4000):
        after = mutate(code, rng, changes=1)
        drawn[next(name for name, codes in changed.items() if after in codes)] += 1
    possible = {
        name: rate for name, rate in RATES.items() if name != "drop_stage"
    }  # the last stage holds a 2
    for name, rate in possible.items():
        assert drawn[name] / 4000 == pytest.approx(rate / sum(possible.values()), abs=0.025)


def test_a_block_keeps_its_id_and_a_new_one_is_new():
    parent = parse(RESNET50)
    grown = [c for c in CHANGES["expand"](parent, 16) if len(c.stages[1]) == 5][0]
    assert [b.id for b in grown.stages[1]] == [3, 16, 4, 5, 6]
    assert [b.id for b in grown.stages[2]] == [b.id for b in parent.stages[2]]
    rng = np.random.default_rng(1)
    for _ in range(100):  # also when a block was taken out before another came in
        child = mutate(parent, rng, rates={"expand": 0.5, "shrink": 0.5})
        kept = {b.id for b in child.blocks} & {b.id for b in parent.blocks}
        assert len(kept) <= len(parent.blocks)
        assert all(b.id > 15 for b in child.blocks if b.id not in kept)


def test_a_walk_depends_on_its_seed_alone():
    codes = [str(mutate(parse(RESNET50), np.random.default_rng(7))) for _ in range(2)]
    assert codes[0] == codes[1]


def test_where_nothing_may_change_it_says_so():
    with pytest.raises(UserError, match="no change keeps"):
        mutate(
            parse(RESNET50), np.random.default_rng(0), rates={"expand": 1.0}, bounds=Bounds((8, 16), (4, 4))
        )
