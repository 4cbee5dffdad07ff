"""MobileNets from torchvision's files: the arch that is theirs computes what theirs does."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import MobileNetV3, mobilenet_v2, mobilenet_v3_large
from torchvision.models.mobilenetv3 import InvertedResidualConfig

from models.export import export
from models.inherit import inherit
from models.networks import open_any_space
from models.supernet import Supernet, inherit_supernet
from tests.models.elastic_kinds import scramble
from utils.errors import UserError

torch.set_num_threads(1)
# version -> torchvision's network, how many of its `features` are ours; depths, expansions and kernels of its
# blocks by stage.
THEIRS = {
    2: (mobilenet_v2, 18, [1, 2, 3, 4, 3, 3, 1], [[1]] + [[6] * 4] * 6, [3] * 7),
    3: (
        mobilenet_v3_large,
        17,
        [1, 2, 3, 4, 2, 3],
        [[1], [4, 3], [3, 3, 3], [6, 2.5, 2.3, 2.3], [6, 6], [6, 6, 6]],
        [3, 3, 5, 3, 3, 5],
    ),
}


def space_of(version):
    """The space around torchvision's arch, and that arch."""
    _, _, depth, expand, kernel = THEIRS[version]
    model = {
        "network": {"detector": "ssd", "backbone": "mobilenet"},
        "nc": 2,
        "backbone": {
            "depth": {"values": [[d, 4] if 1 < d < 4 else [d] for d in depth]},
            "expand_ratio": {"values": [[1], *(sorted({*e, 6}) for e in expand[1:])], "sample": "block"},
            "kernel_size": {"values": [[3], *([3, 5, 7] for _ in kernel[1:])], "sample": "block"},
        },
        "neck": {"depth": [1], "out_channel": [16]},
        "head": {"depth": [1]},
        "options": {"version": version, "scales": [0.2, 0.4, 0.6, 0.8], "aspect_ratios": [[2]] * 3},
    }
    space, arch = open_any_space(model), {}
    for label in space.choices:
        kind, stage, *block = label.removeprefix("backbone.").split(".")
        stage = int(stage)
        if block and int(block[0]) >= depth[stage]:
            continue
        values = {"depth": depth, "kernel_size": kernel}
        arch[label] = expand[stage][int(block[0])] if kind == "expand_ratio" else values[kind][stage]
    return space, space.canonical(arch)


@pytest.fixture(scope="module", params=THEIRS)
def given(request, tmp_path_factory):
    """(space, arch, torchvision's network, the file that it saves)."""
    space, arch = space_of(request.param)
    torch.manual_seed(0)
    theirs = THEIRS[request.param][0]().eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, std=0.1)
    path = tmp_path_factory.mktemp("theirs") / "mobilenet.pth"
    torch.save(theirs.state_dict(), path)
    return space, arch, theirs.features[: THEIRS[request.param][1]], path


def test_their_arch_gives_their_maps(given):
    space, arch, theirs, path = given
    net = space.build(arch).eval()
    account = inherit(net, path)
    assert not [name for name in account.of("fresh") if name.startswith("backbone.")]
    assert all(account.layers[name] == "exact" for name in account.layers if name.startswith("backbone."))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net.backbone(images)[-1], theirs(images), atol=1e-5, rtol=1e-5)


def test_a_supernet_that_begins_with_them_has_their_arch(given):
    """Channels sorted, kernels 7 wide, some blocks and filters fresh: the slice that is theirs
    computes the same, in another order of channels."""
    space, arch, theirs, path = given
    supernet = Supernet(space.model)
    account = inherit_supernet(supernet, path)
    assert {"padded", "exact", "fresh"} <= set(account.layers.values())
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found = supernet.extract(arch).eval().backbone(images)[-1]
        wanted = theirs(images)
        assert not torch.allclose(found, wanted, atol=1e-2)
        torch.testing.assert_close(found.sort(1).values, wanted.sort(1).values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("detector", "squeeze", "said"),
    [("ssd", [2, 4, 5], "all of torchvision's SSD but"), ("retinanet", [], "backbone alone")],
)
def test_torchvision_s_own_blocks_compute_an_exported_backbone(tmp_path, detector, squeeze, said):
    """Built from the file by torchvision alone; where the tail is six times as wide, its MobileNetV3."""
    space, _ = space_of(3)
    model = space.model | {"options": space.model["options"] | {"squeeze": squeeze}}
    if detector == "retinanet":
        model |= {"network": {"detector": detector, "backbone": "mobilenet"}, "options": {"squeeze": squeeze}}
        model |= {"neck": {"depth": [3, 3], "out_channel": 8}, "head": {"depth": [1], "out_channel": 8}}
    space = open_any_space(model)
    arch = space.random(np.random.default_rng(3))
    net = scramble(space.build(arch)).eval()
    exported = export(net, tmp_path / "x.torchvision.pth", "torchvision", space=space, arch=arch, imgsz=64)
    assert exported.max_difference < 1e-5 and said in str(exported)
    file = torch.load(tmp_path / "x.torchvision.pth", weights_only=True)
    settings = [InvertedResidualConfig(*row, 1.0) for row in file["blocks"]]
    theirs = MobileNetV3(settings, 1280).features.eval()
    theirs.load_state_dict(file["state_dict"])
    images = torch.rand(2, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), net.backbone(images)[-1], atol=1e-4, rtol=1e-4)


def test_version_2_has_no_such_export(tmp_path):
    space, arch = space_of(2)
    with pytest.raises(UserError, match="unknown export format 'torchvision'; known: pt, onnx"):
        export(space.build(arch), tmp_path / "x", "torchvision", space=space, arch=arch, imgsz=64)
