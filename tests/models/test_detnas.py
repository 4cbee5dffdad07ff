"""DetNAS's space: published costs, torchvision's ShuffleNet, MMRazor's files."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torchvision.models.shufflenetv2 import ShuffleNetV2

from experiments.arch_file import open_arch_file
from models.backbones.shufflenet import Shuffle, Xception
from models.elastic.layers import ElasticBatchNorm2d
from models.elastic.mmrazor import from_genotype, from_mutable_cfg, mutable_cfg
from models.elastic.space import ElasticSpace
from models.inherit import inherit
from models.networks import open_any_space
from models.supernet import Supernet, inherit_supernet, load_supernet, paths
from models.weights import load_weights, read_weights, save_weights
from utils.errors import UserError

torch.set_num_threads(1)
OFFICIAL = [1, 0, 0, 0, 3, 0, 3, 2, 2, 2, 3, 3, 0, 2, 1, 3, 2, 2, 2, 1]  # MMRazor's DETNAS_SUBNET
PATHS = ["3x3", "5x5", "7x7", "xception"]
PATH = {"values": [["3x3"], *[PATHS] * 4], "middle": "3x3", "sample": "block"}
SMALL20 = {"depth": [1, 4, 4, 8, 4], "out_channel": [16, 64, 160, 320, 640], "path": PATH}
LARGE40 = {"depth": [1, 8, 8, 16, 8], "out_channel": [48, 96, 240, 480, 960], "path": PATH}
YAML = Path("models/detnas_300m.yaml")
TINY = {"depth": [1, 1, 2, 1, 1], "out_channel": [8, 8, 16, 16, 32], "path": PATH}
CLASSIFIER = {"network": {"detector": "classifier", "backbone": "shufflenet"}, "nc": 1000}


@cache
def published():
    """The small layout as a classifier of ImageNet."""
    return classifier(SMALL20)


def classifier(backbone, last=1024, **options):
    return ElasticSpace({**CLASSIFIER, "backbone": backbone, "options": {"last_channel": last, **options}})


def backbone_macs(space, arch, side=224):
    """(MACs of convolutions in the backbone, its parameters), by running it without weights."""
    with torch.device("meta"):
        net = space.build(arch).eval().backbone
    macs = []

    def count(module, args, y):
        if isinstance(module, nn.Conv2d):
            macs.append(y[0].numel() * module.weight[0].numel())

    for module in net.modules():
        module.register_forward_hook(count)
    net(torch.empty(1, 3, side, side, device="meta"))
    return sum(macs), sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("genotype", "backbone", "whole"),
    [
        (OFFICIAL, (291.8, 1.666), (324.9, 3.349)),
        ([2, 1, 2, 0, 2, 1, 1, 2, 3, 3, 1, 3, 0, 0, 3, 1, 3, 1, 3, 2], (287.1, 1.849), (320.2, 3.532)),
        ([2, 3, 1, 1, 3, 2, 1, 3, 3, 1, 1, 1, 3, 3, 2, 0, 3, 3, 3, 3], (290.2, 2.041), (323.3, 3.724)),
        ([0] * 20, (261.7, None), (294.8, None)),
        ([1] * 20, (279.5, None), (312.7, None)),
        ([2] * 20, (306.2, None), (339.4, None)),
        ([3] * 20, (324.7, None), (357.8, None)),
    ],
)
def test_costs_are_the_published_ones(genotype, backbone, whole):
    space = published()
    arch = from_genotype(genotype, space.choices)
    macs, params = backbone_macs(space, arch)
    cost = space.cost(arch, 224)
    assert macs / 1e6 == pytest.approx(backbone[0], rel=1e-3)
    # The published figure of the classifier leaves its last linear layer out of the MACs.
    assert cost["gflops"] * 500 - 1.024 == pytest.approx(whole[0], rel=4e-3)
    for found, wanted in ((params / 1e6, backbone[1]), (cost["params_m"], whole[1])):
        if wanted is not None:
            assert found == pytest.approx(wanted, rel=1e-3)


def test_the_official_net_counts_337_million_as_mmrazor_does():
    """Convolutions, two an element of a batch norm's output, one of a ReLU's."""
    space = published()
    with torch.device("meta"):
        net = space.build(from_genotype(OFFICIAL, space.choices)).eval()
    counts = []

    def count(module, args, y):
        if isinstance(module, nn.Conv2d):
            counts.append(y.numel() * module.weight[0].numel())
        elif isinstance(module, nn.BatchNorm2d | nn.ReLU):
            counts.append(y.numel() * (2 if isinstance(module, nn.BatchNorm2d) else 1))

    for module in net.modules():
        module.register_forward_hook(count)
    net(torch.empty(1, 3, 224, 224, device="meta"))
    assert sum(counts) / 1e6 == pytest.approx(337.2, rel=5e-3)


def test_the_large_layout_has_40_blocks():
    space = classifier(LARGE40, last=0)
    genes = [0, 0, 3, 1, 2, 1, 0, 2, 0, 3, 1, 2, 3, 3, 2, 0, 2, 1, 1, 3, 2, 0, 2, 2, 2, 1, 3, 1, 0, 3, 3, 3]
    arch = from_genotype(genes + [1] + [3] * 7, space.choices)
    macs, params = backbone_macs(space, arch)
    assert space.size() == (4**40, 4**40)
    assert macs / 1e6 == pytest.approx(1268.7, rel=1e-3) and params / 1e6 == pytest.approx(8.41, rel=1e-3)


@pytest.mark.parametrize("name", ["detnas_300m", "detnas_small", "detnas_small_retinanet"])
def test_the_yamls_are_spaces_whose_default_is_all_3x3(name):
    space = open_any_space(f"models/{name}.yaml", nc=3)
    assert set(space.default().values()) == {"3x3"} and list(space.default())[0] == "backbone.path.1.0"
    assert space.size()[1] == (4**20 if name == "detnas_300m" else 4**8)
    if name != "detnas_300m":  # which takes seconds to be counted
        assert set(space.largest().values()) <= {"7x7", "xception"}  # in the order of what they cost


def test_a_slice_is_its_path_and_paths_have_norms_of_their_own():
    torch.manual_seed(0)
    supernet = Supernet(classifier(TINY, last=0, synchronised_norm=True).model).eval()
    norms = [m for m in supernet.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(isinstance(m, ElasticBatchNorm2d) and m.synchronised for m in norms)
    arch = supernet.space.default() | {"backbone.path.1.0": "xception", "backbone.path.2.1": "7x7"}
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        supernet.set_arch(arch)
        torch.testing.assert_close(supernet(x), supernet.extract(arch)(x))
    net = supernet.extract(arch)
    assert isinstance(net.backbone.stages[0][0], Xception) and isinstance(net.backbone.stages[1][1], Shuffle)
    assert net.backbone.stages[1][1].branch.depthwise.conv.kernel_size == (7, 7)
    assert [m.shape[-1] for m in net.backbone(x)] == [16, 8, 4, 2]


def torchvisions(width, depth=(4, 8, 4)):
    """torchvision's ShuffleNet of these widths."""
    return ShuffleNetV2(list(depth), list(width), num_classes=7)


TV = {
    "depth": [1, 2, 2, 1],
    "out_channel": [8, 16, 24, 32],
    "path": {**PATH, "values": [["3x3"], *[PATHS] * 3]},
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """(torchvision's small ShuffleNet, its file)."""
    torch.manual_seed(0)
    net = torchvisions((8, 16, 24, 32, 40), (2, 2, 1)).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    path = tmp_path_factory.mktemp("files") / "shufflenet.pth"
    torch.save(net.state_dict(), path)
    return net, path


def test_a_net_of_3x3_paths_computes_what_torchvision_s_does(theirs):
    model = {**CLASSIFIER, "nc": 7, "backbone": TV, "options": {"last_channel": 40, "max_pool": True}}
    space = ElasticSpace(model)
    net = space.build(space.default()).eval()
    account = inherit(net, theirs[1])
    assert set(account.layers.values()) == {"exact"} and account.share == 1
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net(x), theirs[0](x), rtol=1e-4, atol=1e-5)


def test_larger_kernels_begin_as_the_3x3_ones(theirs):
    """So a supernet needs no training of its own on images of single things."""
    model = {**CLASSIFIER, "nc": 7, "backbone": TV, "options": {"last_channel": 40, "max_pool": True}}
    supernet = Supernet(model).eval()
    inherit_supernet(supernet, theirs[1])
    space, x, found = supernet.space, torch.rand(2, 3, 64, 64), []
    with torch.no_grad():
        for kind in PATHS[:3]:
            net = supernet.extract(dict.fromkeys(space.choices, kind)).double()
            found.append(net(x.double()))
    assert len(paths(supernet.net, supernet.space)) == 5  # the largest, and each path once
    for y in found[1:]:
        torch.testing.assert_close(y, found[0])


def test_mmrazor_s_files_are_read_and_written():
    space = open_any_space("models/detnas_300m.yaml")
    arch = from_genotype(OFFICIAL, space.choices)
    assert from_genotype([OFFICIAL[:4], OFFICIAL[4:8], OFFICIAL[8:16], OFFICIAL[16:]], space.choices) == arch
    written = mutable_cfg(arch)
    assert len(written) == 20 and written["backbone.layers.0.0"] == {"chosen": "shuffle_5x5"}
    assert written["backbone.layers.2.7"] == {"chosen": "shuffle_xception"}
    for given in (written, mutable_cfg(arch, "architecture."), {k: v["chosen"] for k, v in written.items()}):
        assert from_mutable_cfg(given, space.choices) == arch
    old = {f"stage_{k[16]}_block_{k[18:]}": {"chosen": [v["chosen"]]} for k, v in written.items()}
    assert from_mutable_cfg(old, space.choices) == arch
    spelled = space.spelled(arch)
    assert spelled["mutable_cfg"] == written and space.read_spelled(spelled) == arch
    assert space.read_spelled({"mutable_cfg": written}) == space.read_spelled({"genotype": OFFICIAL}) == arch
    assert space.read_spelled({}) is None


def test_they_are_architecture_files(tmp_path):
    space = open_any_space("models/detnas_300m.yaml")
    arch = from_genotype(OFFICIAL, space.choices)
    texts = {
        "subnet.yaml": yaml.safe_dump(mutable_cfg(arch, "architecture.")),
        "genotype.json": json.dumps(OFFICIAL),
        "both.yaml": yaml.safe_dump({"genotype": OFFICIAL}),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        assert open_arch_file(tmp_path / name, YAML).arch == arch


def test_mistakes():
    space = open_any_space("models/detnas_small.yaml", nc=3)
    good = mutable_cfg(space.default())
    for given, said in (
        (
            {**good, "backbone.layers.0.9": {"chosen": "shuffle_3x3"}},
            "unknown key of mutable_cfg 'backbone.layers.0.9'",
        ),
        ({**good, "neck.0": {}}, "unknown key of mutable_cfg 'neck.0'"),
        ({**good, "backbone.layers.0.0": {"chosen": "shuffle_9x9"}}, "did you mean 'shuffle_"),
        ({"backbone.layers.0.0": {"chosen": "shuffle_3x3"}}, "a net of 1 blocks, this space has 8"),
        ("best", "mutable_cfg should be like"),
    ):
        with pytest.raises(UserError, match=said):
            from_mutable_cfg(given, space.choices)
    for given, said in (
        (OFFICIAL, "it is a net of 20 blocks, this space has 8: is it of the other layout"),
        ([0] * 7 + [4], r"numbers 0 to 3 \(3x3, 5x5, 7x7, xception\), got 4"),
        ([0] * 7 + [True], "got True"),
    ):
        with pytest.raises(UserError, match=said):
            from_genotype(given, space.choices)
    with pytest.raises(UserError, match="unknown value of backbone.path.1.0 '9x9'"):
        space.canonical(space.default() | {"backbone.path.1.0": "9x9"})
    for change, said in (
        ({"depth": [1, 2, 2, 2], "out_channel": [8] * 4, "path": "3x3"}, "depth should be 5 fixed numbers"),
        ({**TINY, "out_channel": [8, 8, [16, 32], 16, 32]}, "should be one even number a stage"),
        ({**TINY, "path": "9x9"}, "unknown path of a block '9x9'"),
    ):
        with pytest.raises(UserError, match=said):
            ElasticSpace({**CLASSIFIER, "backbone": change}).supernet()


def test_synchronised_norm_reaches_every_block():
    """MMRazor's option stopped at the stem. By hand: a 3x3, 5x5 or 7x7 path has 3 norms, an Xception 6,
    and 2 more each in the first block of a stage."""
    with torch.device("meta"):
        net = open_any_space(YAML, nc=2).supernet()
    norms = {n: m for n, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert all(m.synchronised for m in norms.values())
    assert sum(n.startswith("backbone.stages.") for n in norms) == 16 * (3 * 3 + 6) + 4 * (3 * 5 + 8)
    assert sum(n.startswith("roi_heads.box_head.convs.") for n in norms) == 4
    assert len(norms) == 332 + 1 + 4


def test_a_checkpoint_of_the_other_layout(tmp_path):
    deeper = classifier({**TINY, "depth": [1, 1, 3, 1, 1]}, last=0)
    file = tmp_path / "large.pt"
    save_weights(file, deeper.supernet(), deeper, {}, imgsz=64, supernet=True)
    with pytest.raises(
        UserError, match=r"is a supernet of another space .*: its backbone is .*'depth': \[1, 1, 3"
    ):
        load_supernet(read_weights(file), classifier(TINY, last=0))
    plain = tmp_path / "plain.pt"
    save_weights(plain, deeper.build(deeper.default()), deeper, deeper.default(), imgsz=64)
    space = classifier(TINY, last=0)
    with pytest.raises(UserError, match="are of another network"):
        load_weights(space.build(space.default()), read_weights(plain), whole=True)
