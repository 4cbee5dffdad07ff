"""Elastic layers: what they slice, that the extracted layer is the slice, and that NNI sees them."""

import math
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nni.nas.space import model_context
from torch import nn

from models.elastic.blocks import BasicBlock, Bottleneck, ConvBlock
from models.elastic.dims import combine, divisible, fixed
from models.elastic.gradients import cached_slices, direct_gradients
from models.elastic.layers import (
    Elastic,
    ElasticBatchNorm2d,
    ElasticConv2d,
    ElasticDepth,
    ModelSpace,
    PathChoice,
    choices,
)
from models.space import Choice
from models.supernet import extract, is_plain, sample, set_arch
from tests.models.elastic_kinds import KINDS, Concat, dim, scramble
from utils.errors import UserError
from utils.training.optimize import Ema, build_optimizer, weight_groups
from utils.training.optimize import Flat as FlatWeights
from utils.training.settings import TrainSettings

torch.set_num_threads(1)
X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


# What is sliced -------------------------------------------------------------------------------------------


def test_conv_takes_the_first_channels_and_the_centre_of_the_kernel():
    conv = ElasticConv2d(3, dim("w", 3, 2), dim("k", 5, 3))
    conv.set_arch({"w": 2, "k": 3})
    assert torch.equal(conv(X), F.conv2d(X, conv.weight[:2, :, 1:4, 1:4], padding=1))
    conv.set_arch({"w": 3, "k": 5})
    assert torch.equal(conv(X), F.conv2d(X, conv.weight, padding=2))


def test_conv_reads_its_input_width_from_the_input():
    conv = ElasticConv2d(dim("in", 8, 4), 6)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(conv(x), F.conv2d(x, conv.weight[:, :4]))


def test_transformed_kernels_are_the_centre_of_the_next_larger_one_times_its_matrix():
    conv = ElasticConv2d(3, 4, dim("k", 7, 5, 3), transform=True)
    assert {name: tuple(p.shape) for name, p in conv.named_parameters()} == {
        "weight": (4, 3, 7, 7),
        "transforms.5": (25, 25),
        "transforms.3": (9, 9),
    }
    conv.set_arch({"k": 3})
    assert torch.equal(conv.active_weight(3), conv.weight[..., 2:5, 2:5])  # the identity at first
    m5, m3 = torch.randn(25, 25), torch.randn(9, 9)
    with torch.no_grad():
        conv.transforms["5"].copy_(m5)
        conv.transforms["3"].copy_(m3)
    k5 = (conv.weight[..., 1:6, 1:6].reshape(12, 25) @ m5.T).view(4, 3, 5, 5)
    k3 = (k5[..., 1:4, 1:4].reshape(12, 9) @ m3.T).view(4, 3, 3, 3)
    torch.testing.assert_close(conv.active_weight(3), k3)
    conv.set_arch({"k": 5})
    torch.testing.assert_close(conv.active_weight(3), k5)
    conv.set_arch({"k": 7})
    assert torch.equal(conv.active_weight(3), conv.weight)


def test_groups_follow_the_width():
    width, group = dim("w", 32, 16), dim("g", 16, 8)
    conv = ElasticConv2d(width, width, 3, groups=combine(lambda w, g: w // g, width, group))
    assert conv.weight.shape == (32, 16, 3, 3)
    conv.set_arch({"w": 16, "g": 8})
    x = torch.randn(2, 16, 6, 6)
    assert torch.equal(conv(x), F.conv2d(x, conv.weight[:16, :8], padding=1, groups=2))


def test_after_a_concat_each_part_keeps_its_own_weights():
    """The trap: the first 6 channels of an 8 + 6 concat are not the first 4 of one and 2 of the other."""
    conv = ElasticConv2d([dim("a", 4, 8), dim("b", 2, 6)], 5)
    a, b = torch.randn(2, 4, 6, 6), torch.randn(2, 2, 6, 6)
    conv.set_arch({"a": 4, "b": 2})
    expected = F.conv2d(a, conv.weight[:, :4]) + F.conv2d(b, conv.weight[:, 8:10])
    torch.testing.assert_close(conv(torch.cat((a, b), 1)), expected)
    with pytest.raises(ValueError, match="the input has 7 channels"):
        conv(torch.randn(2, 7, 6, 6))


def test_batch_norm_updates_the_statistics_of_the_slice_alone():
    norm = ElasticBatchNorm2d(dim("w", 4, 2), momentum=1.0)
    norm.set_arch({"w": 2})
    x = torch.randn(8, 2, 3, 3) + 5
    torch.testing.assert_close(norm(x), F.batch_norm(x, None, None, training=True))
    torch.testing.assert_close(norm.running_mean, torch.cat((x.mean((0, 2, 3)), torch.zeros(2))))
    torch.testing.assert_close(norm.running_var, torch.cat((x.var((0, 2, 3)), torch.ones(2))))


def test_batch_norm_over_a_concat_updates_each_part_in_its_place():
    norm = ElasticBatchNorm2d([dim("a", 3, 1), dim("b", 2, 1)], momentum=1.0)
    norm.set_arch({"a": 1, "b": 1})
    x = torch.randn(8, 2, 3, 3) + 5
    norm(x)
    m = x.mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, torch.tensor([m[0], 0, 0, m[1], 0]))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_at_full_width_is_torch_s(momentum):
    ours, theirs = ElasticBatchNorm2d(6, momentum=momentum), nn.BatchNorm2d(6, momentum=momentum)
    for _ in range(3):
        x = torch.randn(4, 6, 3, 3) * 2 + 1
        assert torch.equal(ours(x), theirs(x))
    assert {k: v.tolist() for k, v in ours.state_dict().items()} == {
        k: v.tolist() for k, v in theirs.state_dict().items()
    }


def test_depth_keeps_the_first_blocks_and_the_others_get_no_gradient():
    net = ElasticDepth([ConvBlock(3, 3) for _ in range(3)], dim("d", 1, 2, 3))
    set_arch(net, {"d": 2})
    net(X).sum().backward()
    assert [block.conv.weight.grad is not None for block in net] == [True, True, False]


def test_a_path_that_is_not_chosen_does_not_run():
    paths = {1.0: ConvBlock(3, 4), 1.5: ConvBlock(3, 4, 1)}
    net = PathChoice(Choice("p", (1.0, 1.5)), paths)
    set_arch(net, {"p": 1.5})
    net(X).sum().backward()
    assert paths[1.0].conv.weight.grad is None and paths[1.5].conv.weight.grad is not None


@pytest.mark.parametrize(
    "kind", ["residual, depth", "bottleneck", "grouped bottleneck", "squeeze and excite"]
)
def test_residual_blocks_start_as_their_shortcut(kind):
    blocks = [m for m in KINDS[kind]().modules() if isinstance(m, (BasicBlock, Bottleneck))]
    assert blocks
    for block in blocks:
        x = torch.randn(2, next(p for p in block.branch.parameters()).size(1), 8, 8)
        assert torch.equal(block(x), block.shortcut(x).relu())


def test_a_shortcut_is_straight_only_where_no_arch_changes_the_width():
    w, v = dim("w", 8, 16), dim("v", 8, 16)
    assert isinstance(BasicBlock(w, w).shortcut, nn.Identity)
    assert isinstance(BasicBlock(w, v).shortcut, ConvBlock)  # equal by chance in some archs only
    assert isinstance(BasicBlock(w, w, stride=2).shortcut, ConvBlock)


# The slice is the extracted layer -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_slice_is_the_extracted_network(kind):
    net = scramble(KINDS[kind]())
    rng = np.random.default_rng(0)
    seen = {}
    for i in range(6):
        arch = sample(net, rng)
        seen[str(arch)] = arch
        for training in (True, False):
            net.train(training)
            plain = extract(net, arch)  # in train mode the statistics change, so from before the step
            assert is_plain(plain) and all(m.training == training for m in plain.modules())
            slice_, alone = net(X), plain(X)
            assert slice_.shape == alone.shape
            assert (slice_ - alone).abs().max() < 1e-5, (arch, training, i)
            again = extract(net, arch)
            for key, value in plain.state_dict().items():  # both have seen the same batch
                torch.testing.assert_close(value, again.state_dict()[key])
    assert len(seen) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_built_under_nni_s_context_it_is_plain_and_loads_what_was_extracted(kind):
    net = scramble(KINDS[kind]()).eval()
    arch = sample(net, np.random.default_rng(3))
    plain = extract(net, arch)
    with model_context(arch):
        fresh = KINDS[kind]().eval()
    assert is_plain(fresh)
    fresh.load_state_dict(plain.state_dict())
    assert torch.equal(fresh(X), plain(X))


def test_extracted_weights_are_copies():
    net = KINDS["residual, depth"]()
    arch = sample(net, np.random.default_rng(0))
    plain, before = extract(net, arch), {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        for t in [*plain.parameters(), *plain.buffers()]:
            t.zero_()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_layer_that_is_used_twice_stays_one_layer():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = ConvBlock(3, 3)
            self.b = self.a
            self.listed = [self.a.conv]

    plain = extract(Twice(), {})
    assert plain.a is plain.b and plain.listed[0] is plain.a.conv and type(plain.a.conv) is nn.Conv2d


@torch.no_grad()
def test_slices_are_held_only_where_it_was_promised(monkeypatch):
    net = KINDS["concat"]().eval()
    archs = [{"a": 4, "b": 2, "out": 5}, {"a": 8, "b": 2, "out": 8}]
    set_arch(net, archs[0])
    before = net(X)
    net.join.conv.weight.data.mul_(2)  # as a fused optimizer does, unseen by version counters
    assert not torch.equal(net(X), before)

    copies = []
    active_weight = ElasticConv2d.active_weight
    monkeypatch.setattr(
        ElasticConv2d, "active_weight", lambda self, c: copies.append(self) or active_weight(self, c)
    )
    expected = {str(a): extract(net, a)(X) for a in archs}
    copies.clear()
    with cached_slices(net):
        for arch in [archs[0], archs[0], archs[1], archs[0]]:
            set_arch(net, arch)
            torch.testing.assert_close(net(X), expected[str(arch)])
    assert copies.count(net.join.conv) == 3
    net(X)
    assert copies.count(net.join.conv) == 4 and net.join.conv.cache is None


@pytest.mark.parametrize("arch", [{"a": 4, "b": 6, "out": 5}, {"a": 8, "b": 2, "out": 8}])
def test_the_gradient_of_a_slice_is_that_of_indexing(arch):
    conv = KINDS["concat"]().join.conv
    set_arch(conv, arch)
    x = torch.randn(2, arch["a"] + arch["b"], 6, 6)
    conv(x).square().sum().backward()
    w = conv.weight.detach().clone().requires_grad_()
    part = torch.cat((w[: arch["out"], : arch["a"]], w[: arch["out"], 8 : 8 + arch["b"]]), 1)
    F.conv2d(x, part, padding=1).square().sum().backward()
    torch.testing.assert_close(conv.weight.grad, w.grad)


class Twice(nn.Module):
    """One elastic convolution that runs twice in a pass, as the towers of a RetinaNet do for their levels."""

    def __init__(self):
        super().__init__()
        width = dim("w", 8, 4)
        self.first, self.shared = ConvBlock(3, width), ElasticConv2d(width, width, dim("k", 5, 3), bias=True)

    def forward(self, x):
        return self.shared(self.shared(self.first(x)))


def gradients(make, archs, direct):
    """Of the mean of squares, summed over archs, in train mode, in long buffers."""
    torch.manual_seed(0)
    net = scramble(make()).to(memory_format=torch.channels_last)
    FlatWeights(net).parameters()
    way = direct_gradients(net) if direct else nullcontext()
    for half in (archs[:2], archs[2:]):
        with way:
            for arch in half:
                set_arch(net, arch)
                net(X).square().mean().backward()
    return {k: p.grad.clone() for k, p in net.named_parameters()}, net.state_dict()


@pytest.mark.parametrize("kind", [*KINDS, "twice"])
def test_direct_gradients_are_those_of_the_plain_way(kind):
    make = KINDS.get(kind, Twice)
    rng = np.random.default_rng(0)
    archs = [sample(make(), rng) for _ in range(4)]
    plain, state = gradients(make, archs, direct=False)
    direct, state_too = gradients(make, archs, direct=True)
    assert any(g.abs().max() > 0 for g in plain.values())
    for key, value in plain.items():
        torch.testing.assert_close(direct[key], value, rtol=1e-5, atol=1e-7)
    for key, value in state.items():  # running statistics
        torch.testing.assert_close(state_too[key], value)


def test_direct_gradients_make_no_gradient_of_the_whole_weight():
    conv = ElasticConv2d(dim("i", 64, 8), dim("o", 64, 8), 3)
    conv.weight.grad = torch.ones_like(conv.weight)
    set_arch(conv, {"i": 8, "o": 8})
    with direct_gradients(conv):
        y = conv(torch.randn(1, 8, 4, 4))
        conv.weight.grad.zero_()
        y.sum().backward()
        slice_ = conv.cache.popitem()[1][0]
    assert slice_.is_leaf and slice_.grad.data_ptr() == conv.weight.grad.data_ptr()
    assert slice_.grad.stride() == conv.weight.grad.stride() and slice_.grad.abs().max() > 0
    assert torch.equal(conv.weight.grad[:8, :8], slice_.grad) and not conv.weight.grad[8:].any()
    assert conv.cache is None and not conv.direct


def test_slices_are_channels_last_if_the_weight_is():
    for memory in (torch.channels_last, torch.contiguous_format):
        conv = ElasticConv2d(16, dim("o", 16, 8), dim("k", 5, 3)).to(memory_format=memory)
        conv.weight.grad = torch.zeros_like(conv.weight)
        for k in (3, 5):
            set_arch(conv, {"o": 8, "k": k})
            assert conv.active_weight(16).is_contiguous(memory_format=memory)
            with direct_gradients(conv):
                assert conv.active_weight(16).is_contiguous(memory_format=memory)


def test_direct_gradients_follow_weights_that_have_moved():
    net = scramble(KINDS["residual, depth"]())
    set_arch(net, {"w": 8, "k": 3, "e": 0.5, "d": 1})
    FlatWeights(net).parameters()
    direct = direct_gradients(net)
    found = []
    for _ in range(2):
        with direct:
            net(X).square().mean().backward()
        found.append([p.grad.clone() for p in net.parameters()])
        FlatWeights(net).parameters()  # other memory, zero gradients
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_direct_gradients_are_refused_where_they_would_be_lost(monkeypatch):
    net = KINDS["conv"]()
    with pytest.raises(ValueError, match=r"weight \(8, 3, 5, 5\) has no .grad"), direct_gradients(net):
        pass
    net.requires_grad_(False)
    with direct_gradients(net):
        net(X)
    monkeypatch.setattr("models.elastic.gradients.ranks", lambda: 2)
    with pytest.raises(ValueError, match="ranks"), direct_gradients(net):
        pass
    assert net.conv.cache is None


@pytest.mark.parametrize("kind", ["residual, depth", "concat with norm", "kernel transform"])
def test_flat_buffers_train_elastic_networks_alike(kind):
    """Three steps of three archs: one long parameter for each group against torch's optimizer on all."""
    rng = np.random.default_rng(1)
    archs = [[sample(KINDS[kind](), rng) for _ in range(3)] for _ in range(3)]
    states = []
    for flat in (False, True):
        torch.manual_seed(0)
        net = scramble(KINDS[kind]()).to(memory_format=torch.channels_last)
        if flat:
            weights = FlatWeights(net)
            optimizer = build_optimizer(weights, TrainSettings(optimizer="SGD", lr=0.1, weight_decay=0.1))
            ema = Ema(net, weights, 0.5, 1.0)
        else:
            groups = weight_groups(net)
            rates = {"decayed": 0.1, "others": 0.0, "biases": 0.0}
            options = [{"params": groups[name], "weight_decay": w} for name, w in rates.items()]
            optimizer = torch.optim.SGD(options, lr=0.1, momentum=0.9, nesterov=True)
            average = {k: v.clone() for k, v in net.state_dict().items()}
            for p in net.parameters():
                p.grad = torch.zeros_like(p)
        for step, of_step in enumerate(archs):
            with direct_gradients(net) if flat else nullcontext():
                for arch in of_step:
                    set_arch(net, arch)
                    net(X).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            if flat:
                ema.update(step)
            else:
                d = 0.5 * (1 - math.exp(-(step + 1)))
                average = {
                    k: v.lerp(now, 1 - d) if v.is_floating_point() else now.clone()
                    for (k, v), now in zip(average.items(), net.state_dict().values(), strict=True)
                }
        states.append((net.state_dict(), ema.detector.state_dict() if flat else average))
    for plain, ours in zip(*states, strict=True):
        for key, value in plain.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-5)


def test_extraction_does_not_disturb_what_is_running():
    net = KINDS["kernel transform"]()
    set_arch(net, {"w": 8, "k": 7})
    before = net.eval()(X)
    extract(net, {"w": 4, "k": 3})
    assert torch.equal(net(X), before)


# As NNI sees it -------------------------------------------------------------------------------------------


class Space(ModelSpace):
    def __init__(self):
        super().__init__()
        self.net = KINDS["residual, depth"]()

    def forward(self, x):
        return self.net(x)


def test_nni_lists_and_freezes_them():
    space = Space()
    assert {k: m.values for k, m in space.simplify().items()} == {
        "k": [3, 5],
        "e": [1, 0.5],
        "w": [16, 8],
        "d": [1, 2, 3],
    }
    scramble(space)
    drawn = {k: m.random() for k, m in space.simplify().items()}
    set_arch(space.eval(), drawn)
    frozen = space.freeze(drawn)
    assert frozen.simplify() == {} and (space(X) - frozen(X)).abs().max() < 1e-5


def test_nni_refuses_a_sample_that_lacks_a_gene():
    conv = KINDS["conv"]()
    with pytest.raises(ValueError, match="w"):
        conv.conv.freeze({"k": 3})
    with pytest.raises(ValueError, match="6 not found"):
        conv.conv.freeze({"k": 3, "w": 6})


# What a user can get wrong --------------------------------------------------------------------------------


def test_mistakes_are_named():
    net = KINDS["residual, depth"]()
    with pytest.raises(UserError, match="unknown choice of the network 'wd'; did you mean 'w'"):
        set_arch(net, {"wd": 8})
    with pytest.raises(UserError, match="unknown value of w '9'"):
        set_arch(net, {"w": 9})
    with pytest.raises(UserError, match="says nothing about 'd'"):
        set_arch(net, {"w": 8, "k": 3, "e": 1})
    with pytest.raises(UserError, match="3 groups do not divide 16 -> 16 channels"):
        ElasticConv2d(16, 16, 3, groups=3)
    with pytest.raises(UserError, match="kernel 4 is no centre of kernel 5"):
        ElasticConv2d(3, 4, dim("k", 4, 5))


def test_genes_of_blocks_that_do_not_run_may_be_left_out():
    blocks = [ConvBlock(3, 3, dim(f"k{i}", 3, 5)) for i in range(2)]
    net = ElasticDepth(blocks, dim("d", 1, 2))
    set_arch(net, {"d": 1, "k0": 5})
    assert type(extract(net, {"d": 1, "k0": 5})) is nn.Sequential
    with pytest.raises(UserError, match="says nothing about 'k1'"):
        set_arch(net, {"d": 2, "k0": 5})
    assert set(sample(net, np.random.default_rng(1))) <= {"d", "k0", "k1"} and set(choices(net)) == {
        "d",
        "k0",
        "k1",
    }


def test_dims():
    w, e = dim("w", 48, 64), dim("e", 0.5, 1)
    inner = combine(lambda a, b: divisible(a * b), w, e)
    assert (
        inner({"w": 48, "e": 0.5}) == 24 and inner.values == [24, 32, 48, 64] and inner.labels == ["w", "e"]
    )
    assert inner({}) == 24  # genes that are not said stand at their first value
    assert inner.needs({"w": 48}) == ["e"] and inner.needs({"w": 48, "e": 1}) == []
    assert combine(lambda a, b: a, w, e).needs({"w": 48}) == []  # it does not really depend on e
    assert fixed(3)({}) == 3 and dim("w", 48, 64) == w != dim("v", 48, 64)
    assert [divisible(v) for v in (1, 11, 12, 20, 50)] == [8, 16, 16, 24, 48]
    assert [divisible(v) for v in (99, 100, 107, 108, 103.9)] == [96, 104, 104, 112, 104]  # to the nearest
    assert [divisible(v) for v in (17.7, 17.8, 26.6, 26.7)] == [16, 24, 24, 32]  # 16 / .9 and 24 / .9
    assert [divisible(v, 16) for v in (3, 23, 103, 104)] == [16, 32, 96, 112]
    assert divisible(10, 9) == 9  # 90 % are enough


def test_a_width_that_hangs_on_too_many_genes(monkeypatch):
    with pytest.raises(
        UserError, match="262,144 combinations of w0, w1.*sample widths by stage, not by block"
    ):
        combine(lambda *w: w[-1], *(dim(f"w{i}", 8, 16, 24, 32) for i in range(9)))
    monkeypatch.setattr("models.elastic.dims.MOST", 16)
    assert len(combine(lambda a, b: a + b, dim("a", 1, 2, 3, 4), dim("b", 1, 2, 3, 4)).table) == 16
    with pytest.raises(UserError, match="20 combinations of a, b"):
        combine(lambda a, b: a + b, dim("a", 1, 2, 3, 4), dim("b", 1, 2, 3, 4, 5))


# Synchronised over ranks ----------------------------------------------------------------------------------

RANK = """
import sys, torch
import torch.distributed as dist
torch.set_num_threads(1)
from models.elastic.layers import ElasticBatchNorm2d
from utils.training.precision import leave_group
rank, port = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), ElasticBatchNorm2d(6, synchronised=True))
net.load_state_dict(torch.load(sys.argv[3]))
net = torch.nn.parallel.DistributedDataParallel(net)
x = torch.load(sys.argv[4]).chunk(2)[rank]
y = net(x)
(y ** 3).mean().backward()
if rank == 0:
    grads = {k: p.grad for k, p in net.module.named_parameters()}
    torch.save((y, net.module.state_dict(), grads), sys.argv[5])
del net
leave_group()
"""


@pytest.mark.slow  # two more processes; tests/models/test_sandwich.py has its own two
def test_synchronised_norm_under_ddp_is_the_norm_of_the_whole_batch(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), ElasticBatchNorm2d(6, synchronised=True))  # a slice, 4 of 6
    scramble(net)
    x = torch.randn(8, 3, 5, 5)
    torch.save(net.state_dict(), tmp_path / "w")
    torch.save(x, tmp_path / "x")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    root = Path(__file__).resolve().parents[2]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK, str(r), port, *(str(tmp_path / n) for n in "wxy")],
            cwd=root,
            env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
        )
        for r in (0, 1)
    ]
    y = net(x)
    (y**3).mean().backward()
    assert [r.wait(timeout=200) for r in ranks] == [0, 0]
    theirs, state, grads = torch.load(tmp_path / "y")
    torch.testing.assert_close(theirs, y[:4])
    for key, value in net.state_dict().items():
        torch.testing.assert_close(state[key], value)
    for key, p in net.named_parameters():
        torch.testing.assert_close(grads[key], p.grad, rtol=1e-4, atol=1e-6)


def test_every_layer_is_elastic_and_stock_at_once():
    assert issubclass(ElasticConv2d, Elastic) and issubclass(ElasticConv2d, nn.Conv2d)
    assert issubclass(ElasticBatchNorm2d, nn.BatchNorm2d) and isinstance(Concat().join.conv, nn.Conv2d)
