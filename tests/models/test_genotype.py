"""aw_nas's genotypes: printed, read back, and never run."""

import numpy as np
import pytest

from models.elastic import genotype
from models.networks import open_any_space
from tests.models.test_ssd import TINY
from utils.errors import UserError

VOC = open_any_space("models/ofa_ssd_voc.yaml")
# Of aw_nas's documentation, whose blocks that do not run are (0, 0).
DOCUMENTED = (
    "cell_0=1,cell_1=2,cell_2=2,cell_3=2,cell_4=2,cell_5=2,cell_0_block_0=(1, 3),cell_1_block_0=(3, 3),"
    "cell_1_block_1=(3, 3),cell_2_block_0=(3, 5),cell_2_block_1=(3, 5),cell_3_block_0=(4, 7),"
    "cell_3_block_1=(3, 3),cell_4_block_0=(3, 5),cell_4_block_1=(4, 3),cell_5_block_0=(6, 3),"
    "cell_5_block_1=(6, 7)," + ",".join(f"cell_{i}_block_{j}=(0, 0)" for i in range(1, 6) for j in (2, 3))
)


def test_the_documented_genotype():
    arch = genotype.read(VOC, DOCUMENTED)
    assert [arch[f"backbone.depth.{i}"] for i in range(1, 6)] == [2] * 5
    assert (arch["backbone.expand_ratio.3.0"], arch["backbone.kernel_size.3.0"]) == (4, 7)
    assert (arch["backbone.expand_ratio.5.1"], arch["backbone.kernel_size.5.1"]) == (6, 7)
    assert "backbone.kernel_size.1.2" not in arch and len(arch) == 5 + 2 * 10
    assert genotype.read(VOC, f"MnasnetOFAGenotype(image_size=300, {DOCUMENTED})") == arch
    heads = ", ".join(f"head_{i}=(0.5, 3)" for i in range(4))
    assert genotype.read(VOC, f"image_size=300, {DOCUMENTED}, {heads}") == arch
    said = genotype.write(VOC, arch)
    assert set(DOCUMENTED.replace(" ", "").split(",")) <= set(said.replace(" ", "").split(","))
    assert said.endswith("head_3=(0.5, 3)")


@pytest.mark.parametrize("space", [VOC, open_any_space(TINY)], ids=["voc", "tiny"])
def test_every_arch_comes_back(space):
    rng = np.random.default_rng(0)
    for arch in [space.largest(), space.smallest(), *(space.random(rng) for _ in range(20))]:
        assert genotype.read(space, genotype.write(space, arch)) == arch
        assert space.read_spelled(space.spelled(arch)) == arch
        assert space.read_spelled({"genotype": space.spelled(arch)["genotype"]}) == arch


def test_a_searched_resolution_is_the_image_size():
    space = open_any_space(TINY | {"resolution": [64, 96]})
    arch = space.largest() | {"resolution": 96}
    said = genotype.write(space, arch)
    assert said.startswith("image_size=96, cell_0=1") and genotype.read(space, said) == arch
    assert space.read_spelled({"genotype": said, "imgsz": 64}) == arch
    bare = said.removeprefix("image_size=96, ")
    assert space.read_spelled({"genotype": bare, "imgsz": 64})["resolution"] == 64


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("cell_2=2,", ""), "genotype: cell_2 is missing"),
        (("cell_2=2,", "cell_2=5,"), "unknown depth cell_2 of the genotype '5'; known: 2, 3, 4"),
        (("cell_2=2,", "cell_2=3,"), "unknown expand_ratio cell_2_block_2 of the genotype '0'"),
        (
            ("cell_3_block_0=(4, 7)", "cell_3_block_0=(4, 9)"),
            "unknown kernel_size cell_3_block_0 of the genotype",
        ),
        (("cell_3_block_0=(4, 7)", "cell_3_block_0=4"), "genotype: cell_3_block_0 should be like (3, 5)"),
        (("cell_3_block_0=(4, 7),", ""), "genotype: cell_3_block_0 is missing"),
        (("cell_0=1", "cell_7=1,cell_0=1"), "genotype: cell_7 is none of this space's"),
        (("cell_0=1", "cell_0=1,cell_0=1"), "genotype should be like"),
        (("cell_0=1", "cell_0=__import__('os').system('true')"), "genotype should be like"),
        (("cell_0=1", "cell_0="), "genotype should be like"),
        (("cell_0=1", "*[1],cell_0=1"), "genotype should be like"),
        (("cell_0=1", "head_0=(0.5, 3),cell_0=1"), "genotype: head_1 is missing"),
    ],
)
def test_mistakes_are_one_line(change, said):
    with pytest.raises(UserError) as caught:
        genotype.read(VOC, DOCUMENTED.replace(*change))
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_what_is_no_text_and_what_has_no_genotype():
    for given in (None, 3, {}, "x" * 30_000, "(" * 5000, ""):
        with pytest.raises(UserError, match="genotype"):
            genotype.read(VOC, given)
    other = open_any_space("models/bignas_retinanet_small.yaml", nc=3)
    assert "genotype" not in other.spelled(other.default())
    with pytest.raises(UserError, match="networks of retinanet have no genotype; give the arch instead"):
        other.read_spelled({"genotype": DOCUMENTED})
    with pytest.raises(UserError, match="genotype belong to spaces with a `network`"):
        open_any_space("models/yolov5n_nas.yaml").read_spelled({"genotype": DOCUMENTED})


def test_two_spellings_that_differ():
    arch = genotype.read(VOC, DOCUMENTED)
    spelled = VOC.spelled(arch) | {"genotype": genotype.write(VOC, VOC.largest())}
    with pytest.raises(UserError, match="subnet_settings and genotype contradict each other; drop one"):
        VOC.read_spelled(spelled)
