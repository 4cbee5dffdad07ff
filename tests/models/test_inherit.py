"""Trained weights into other networks: the same network and a larger one compute the same, a smaller one is a
supernet's slice, and everything else is said."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from models import networks
from models.channels import watch
from models.elastic.layers import choices, frozen
from models.inherit import Source, inherit
from models.networks import open_any_space
from models.supernet import Supernet, inherit_supernet
from models.weights import WeightFile, load_weights, read_weights
from tests.models.elastic_kinds import KINDS, scramble
from tests.models.test_supernet import REGNET, RETINANET
from tests.models.test_weights import TINY
from tests.some import some
from utils.errors import UserError

SPACES = {"yolo": TINY, "retinanet": RETINANET, "regnet": REGNET}
# Towers are no residual blocks, and a supernet's groups of another width are other weights: see inherit.py.
FIXED = {"retinanet": {"head.depth.0": 2}, "regnet": {"backbone.group_width": 16}}


@pytest.fixture(scope="module", params=SPACES)
def space(request):
    found = open_any_space(SPACES[request.param], nc=3)
    found.kind = request.param
    return found


@pytest.fixture(scope="module")
def like(space):
    """An elastic network of the space, which sources are sorted by."""
    return space.supernet().double()


def build(space, arch):
    return networks.build(space, arch).double()


def trained(space, arch, seed=0):
    return scramble(build(space, arch), seed)


def as_file(net, names=None, state=None):
    classes = {} if state else {name: type(module).__name__ for name, module in net.named_modules()}
    state = {k: v.clone() for k, v in (state or net.state_dict()).items()}
    names = list(names or getattr(net, "names", []))
    return WeightFile(Path("net.pt"), "pickled network", state, names=names, classes=classes)


def outputs(net, train=False, side=64, images=None):
    """All raw outputs of a network, one after the other; without dropout."""
    net = copy.deepcopy(net).train(train)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if images is None:
        images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        raw = net.raw(images) if hasattr(net, "raw") else net(images)
    raw = raw[:2] if isinstance(raw, tuple) else raw
    raw = [raw["boxes"], raw["scores"]] if isinstance(raw, dict) else raw
    return torch.cat([t.flatten() for t in raw]) if isinstance(raw, (list, tuple)) else raw.flatten()


def same(a, b, **how):
    a, b = outputs(a, **how), outputs(b, **how)
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


def amount(value):
    return float(value.split("x")[0]) if isinstance(value, str) else value


def grown(space, arch, rng):
    """An arch that is nowhere smaller; activations stay."""
    full, found = space.complete(arch), {}
    for label, values in space.choices.items():
        stays = label.endswith("_act") or label == "head.depth.0"
        larger = [v for v in values if not stays and amount(v) >= amount(full[label])]
        found[label] = larger[int(rng.integers(len(larger)))] if larger else full[label]
    return space.canonical(found)


# The function stays ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", some(range(3), [0]))
def test_sorted_channels_change_nothing(space, like, seed):
    arch = space.random(np.random.default_rng(seed))
    net = trained(space, arch, seed)
    ordered = build(space, arch)
    account = inherit(ordered, Source(as_file(net), like), sort=True)
    assert account.share == 1.0 and account.of("exact") == list(account.layers)
    assert not torch.equal(*(next(n.parameters()) for n in (net, ordered)))  # they were sorted
    assert same(ordered, net) and same(ordered, net, train=True)


@pytest.mark.parametrize("seed", some(range(3), [0]))
def test_a_larger_network_computes_the_same(space, like, seed):
    rng = np.random.default_rng(seed)
    arch = space.random(rng)
    net = trained(space, arch, seed)
    larger = build(space, grown(space, arch, rng))
    account = inherit(larger, Source(as_file(net), like))
    assert not account.of("cut") and same(larger, net)


@pytest.mark.parametrize("seed", some(range(3), [0]))
def test_a_smaller_network_is_the_slice_of_the_sorted_supernet(space, like, seed):
    largest, arch = space.largest(), space.random(np.random.default_rng(seed))
    arch = space.canonical(space.complete(arch) | FIXED.get(space.kind, {}))
    file = as_file(trained(space, largest, seed))
    supernet = Supernet(space.model, space.nc).double()
    assert inherit_supernet(supernet, file).share > 0.99  # all but the kernels' matrices
    cut = build(space, arch)
    account = inherit(cut, Source(file, like))
    assert account.share == 1.0 and account.of("cut")
    assert same(cut, supernet.extract(arch))


def test_a_supernet_computes_what_its_source_does(space):
    arch = space.default()
    net = trained(space, arch)
    supernet = Supernet(space.model, space.nc).double()
    account = inherit_supernet(supernet, as_file(net))
    assert same(supernet.extract(arch), net) and account.share > 0.1
    assert supernet.arch == space.largest()


@pytest.mark.parametrize("kind", KINDS)
def test_any_network_of_our_layers_may_grow_and_be_sorted(kind):
    torch.manual_seed(0)
    net, rng = KINDS[kind](), np.random.default_rng(0)
    known = choices(net)
    for _ in range(2):
        small = {label: values[int(rng.integers(len(values)))] for label, values in known.items()}
        old, again = scramble(frozen(net, small)).double(), frozen(net, small).double()
        inherit(again, as_file(old), sort=True)
        assert same(again, old, side=16) and same(again, old, side=16, train=True)
        for label, values in known.items():
            if isinstance(small[label], str):
                continue
            new = frozen(net, small | {label: max(values)}).double()
            if outputs(new, side=16).shape == outputs(old, side=16).shape:  # what comes out would be wider
                inherit(new, as_file(old))
                assert same(new, old, side=16), label


def test_an_operator_that_nobody_knows_keeps_its_channels_in_order():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.c(self.b(self.a(x)).cumsum(1))

    net = Odd().double()
    channels = watch(net)
    fixed = [channels.of[f"{n}.weight"][0][0].axis.whole().fixed for n in "abc"]
    assert fixed == [False, True, True]
    ordered = Odd().double()
    inherit(ordered, as_file(net), sort=True)
    assert same(ordered, net) and not torch.equal(ordered.a.weight, net.a.weight)


def test_watching_leaves_a_network_as_it_is(space):
    net = trained(space, space.default()).train()
    before = copy.deepcopy(net.state_dict())
    watch(net)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(m.training for m in net.modules())


# What is loaded --------------------------------------------------------------------------------------------


def test_the_same_network_gets_what_loading_gives_it(space, like):
    net = trained(space, space.default())
    loaded, inherited = (build(space, space.default()) for _ in range(2))
    account = load_weights(loaded, as_file(net))
    assert inherit(inherited, Source(as_file(net), like)).share == account.share == 1.0
    state = loaded.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in inherited.state_dict().items())


@pytest.fixture(scope="module")
def yolo():
    return open_any_space("models/yolov5n_nas.yaml", nc=2)


def anchored(net):
    """The state dict of a YOLOv5 with an anchor head: the same layers under a prefix less, another Detect."""
    state = {k.removeprefix("model."): v for k, v in net.state_dict().items() if ".24." not in k}
    return state | {"model.24.m.0.weight": torch.rand(255, 64, 1, 1), "model.24.anchors": torch.rand(3, 3, 2)}


def test_a_yolov5_with_anchors_gives_backbone_and_neck(yolo):
    net = scramble(networks.build(yolo, yolo.default()))
    file = as_file(net, names=["a", "b"], state=anchored(net))
    loaded, inherited = (networks.build(yolo, yolo.default()) for _ in range(2))
    inherited.load_state_dict(loaded.state_dict())
    was, account = load_weights(loaded, file), inherit(inherited, file)
    assert account.share == was.share and 0.6 < account.share < 0.8
    state = loaded.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in inherited.state_dict().items())
    assert {layer.split(".")[2] for layer in account.of("fresh")} == {"24"}
    assert "model.24.m.0" in str(account) and len(str(account).splitlines()) == 3


def test_an_account_is_json_and_says_what_became_of_each_layer(yolo):
    net = scramble(networks.build(yolo, yolo.default()))
    arch = yolo.default() | {"nasconv_0": "4x4", "nasconv_1": "5x5", "c3_2_width": 2.0, "c3_4_depth": 1}
    account = inherit(networks.build(yolo, yolo.canonical(arch)), as_file(net), into="mine")
    layers = json.loads(json.dumps(account.to_dict()))["layers"]
    found = [layers[f"model.model.{n}"] for n in ("0.conv", "1.conv", "2.cv1.conv", "2.cv3.conv", "3.conv")]
    assert found == ["cut", "padded", "padded", "padded", "exact"]
    assert "mine" in str(account) and any(".4.m.1." in name for name in account.left_over)
    assert 0.8 < account.share < 1.0


def test_new_blocks_begin_as_the_identity(yolo):
    net = scramble(networks.build(yolo, yolo.canonical(yolo.default() | {"c3_6_depth": 1})))
    account = inherit(networks.build(yolo, yolo.default()), as_file(net))
    assert account.identities == [f"model.model.6.m.{i}.cv2.bn.weight" for i in (1, 2)]


# Classes ---------------------------------------------------------------------------------------------------

HEADS = {"yolo": "model.model.5.cv3.0.2", "retinanet": "cls.predict", "regnet": "head.linear"}


@pytest.mark.parametrize("kind", HEADS)
def test_rows_of_classes_follow_their_names(kind):
    space = open_any_space(SPACES[kind], nc=4)
    mine = open_any_space(SPACES[kind], nc=3)
    net, new = (networks.build(s, s.default()) for s in (space, mine))
    scramble(net), scramble(new, 1)
    new.names = ["Traffic_light ", "zebra", "person"]
    fresh = copy.deepcopy(new)
    account = inherit(new, as_file(net, names=["person", "cat", "dog", "traffic light"]))
    ours, theirs, before = (n.get_submodule(HEADS[kind]).bias.view(-1, n.nc) for n in (new, net, fresh))
    assert torch.equal(ours[:, 0], theirs[:, 3]) and torch.equal(ours[:, 2], theirs[:, 0])
    assert torch.equal(ours[:, 1], before[:, 1])
    assert account.classes == {"Traffic_light ": "traffic light", "person": "person"}
    assert account.fresh_classes == ["zebra"]
    assert "Traffic_light  as traffic light" in str(account) and "fresh: zebra" in str(account)


def test_a_file_without_names_has_ours_if_they_are_as_many(yolo):
    net = scramble(networks.build(yolo, yolo.default()))
    file = as_file(net)
    file.names.clear()
    new = networks.build(yolo, yolo.default())
    assert inherit(new, file).share == 1.0


def test_published_heads_have_published_names():
    space = open_any_space("models/bignas_regnet.yaml", nc=2)
    net = networks.build(space, space.default(), ["zebra", "something else"])
    stock = torchvision.models.regnet_x_800mf().state_dict()
    account = inherit(net, WeightFile(Path("regnet.pth"), "state dict", stock))
    assert account.classes == {"zebra": "zebra"} and account.fresh_classes == ["something else"]
    assert torch.equal(net.head.linear.bias[0], stock["fc.bias"][340])


# Other people's networks -----------------------------------------------------------------------------------


def test_torchvision_s_regnet_computes_the_same_here():
    model = {
        "network": "regnet",
        "nc": 1000,
        "backbone": {
            "depth": [1, 1, 2, 7, 12],
            "out_channel": [32, 32, 64, 160, 400],
            "group_width": 16,
        },
    }
    space = open_any_space(model)
    stock = scramble(torchvision.models.regnet_x_400mf()).double()
    net = build(space, space.default())
    account = inherit(net, WeightFile(Path("regnet.pth"), "state dict", stock.state_dict()))
    assert account.share == 1.0 and not account.left_over and same(net, stock)


def test_torchvision_s_resnet_gives_a_retinanet_its_stages():
    model = {
        "network": "retinanet",
        "nc": 1,
        "backbone": {"depth": [1, 2, 2, 2, 2], "out_channel": [64, 64, 128, 256, 512]},
        "neck": {"depth": [3, 5]},
        "head": {"depth": [1], "out_channel": 64},
    }
    space = open_any_space(model)
    stock = scramble(torchvision.models.resnet18())
    net = networks.build(space, space.default())
    account = inherit(net, WeightFile(Path("resnet18.pth"), "state dict", stock.state_dict()))
    x = torch.rand(1, 64, 16, 16)
    with torch.no_grad():
        for stage, layer in zip(net.backbone.eval().stages, list(stock.eval().children())[4:8], strict=True):
            assert torch.allclose(stage(x), layer(x), atol=1e-4)
            x = layer(x)
    assert "conv1.weight" in account.left_over  # there is a deep stem here


def test_torchvision_s_retinanet_gives_neck_and_towers():
    model = {
        "network": "retinanet",
        "nc": 1,
        "backbone": {"depth": [1, 1, 1, 1, 1], "out_channel": [64, 64, 128, 256, 512]},
        "neck": {"depth": [3, 5], "out_channel": 256, "kernel_size": [1, 3]},
        "head": {"depth": [4], "out_channel": 256},
    }
    space = open_any_space(model)
    make = torchvision.models.detection.retinanet_resnet50_fpn
    stock = make(weights=None, weights_backbone=None).state_dict()
    net = networks.build(space, space.default(), ["person"])
    account = inherit(net, WeightFile(Path("retinanet.pth"), "state dict", stock))
    assert torch.equal(net.neck.outputs[1].weight, stock["backbone.fpn.layer_blocks.1.0.weight"])
    assert torch.equal(net.neck.further[1].bias, stock["backbone.fpn.extra_blocks.p7.bias"])
    assert torch.equal(net.box.predict.weight, stock["head.regression_head.bbox_reg.weight"])
    person = stock["head.classification_head.cls_logits.bias"].view(9, 91)[:, 1]
    assert torch.equal(net.cls.predict.bias, person) and account.classes == {"person": "person"}
    assert account.layers["cls.blocks.3.conv"] == "exact"


def test_half_precision_ema_and_safetensors_are_read(yolo, tmp_path):
    net = scramble(networks.build(yolo, yolo.default()))
    half = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    stale = {k: torch.zeros_like(v) for k, v in half.items()}
    torch.save({"model": stale, "ema": half, "names": {0: "0", 1: "1"}}, tmp_path / "ema.pt")
    save_file(half, tmp_path / "w.safetensors", {"names": json.dumps(["0", "1"])})
    for name in ("ema.pt", "w.safetensors"):
        new = networks.build(yolo, yolo.default())
        assert inherit(new, tmp_path / name).share == 1.0
        assert new.state_dict()["model.model.0.conv.weight"].dtype == torch.float32
        assert torch.equal(new.model.model[0].conv.weight.half(), half["model.model.0.conv.weight"])
        assert read_weights(tmp_path / name).names == ["0", "1"]


def test_a_broken_safetensors_is_one_line(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(UserError, match=r"w\.safetensors is no whole weight file"):
        read_weights(tmp_path / "w.safetensors")


def test_a_source_that_fits_nothing_names_both(yolo):
    net = networks.build(yolo, yolo.default())
    before = copy.deepcopy(net.state_dict())
    file = WeightFile(Path("vgg.pth"), "state dict", {"features.0.weight": torch.rand(64, 3, 3, 3)})
    with pytest.raises(UserError, match=r"weights vgg\.pth .* do not fit yolov5n_nas: 0\.0 %") as caught:
        inherit(net, file, into="yolov5n_nas")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_deeper_and_wider_sibling_is_cut(yolo):
    space = open_any_space("models/yolov5m_nas.yaml", nc=2)
    big = scramble(networks.build(space, space.default()))
    account = inherit(networks.build(yolo, yolo.default()), as_file(big))
    assert account.share > 0.95 and account.of("cut")
    assert any(name.startswith("model.model.6.m.3") for name in account.left_over)


def test_a_norm_stays_fresh_where_its_convolution_does(yolo):
    net = scramble(networks.build(yolo, yolo.default()))
    state = net.state_dict() | {"model.model.1.conv.weight": torch.rand(7, 16, 2, 2)}
    new = networks.build(yolo, yolo.default())
    account = inherit(new, as_file(net, state=state))
    assert account.layers["model.model.1.conv"] == account.layers["model.model.1.bn"] == "fresh"
    assert (new.model.model[1].bn.running_mean == 0).all() and account.layers[
        "model.model.2.cv1.bn"
    ] == "exact"


def test_modules_of_another_class_are_left_out(yolo):
    net = scramble(networks.build(yolo, yolo.default()))
    file = as_file(net)
    file.classes.update({f"model.model.{i}": "C2f" for i in (2, 4)})
    account = inherit(networks.build(yolo, yolo.default()), file)
    assert account.strange == ["model.model.2 is C2f, here C3", "model.model.4 is C2f, here C3"]
    assert account.layers["model.model.2.cv1.conv"] == "fresh"
    assert "of another kind: model.model.2 is C2f, here C3" in str(account)
