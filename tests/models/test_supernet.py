"""Supernets: golden costs, slice against extracted network, statistics, NNI, files."""

import copy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from nni.nas.space import model_context
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.elastic.space import ElasticSpace
from models.supernet import Supernet, calibrate, calibrated, is_plain
from tests.models.elastic_kinds import scramble
from utils.errors import UserError

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"

# UP's spaces at a size for tests: the same parts, every dim searched.
RETINANET = {
    "network": "retinanet",
    "nc": 3,
    "backbone": {
        "depth": {"min": [1, 1, 1, 1, 1], "max": [1, 2, 2, 1, 2], "stride": 1},
        "out_channel": {"min": [8, 8, 16, 16, 24], "max": [16, 16, 24, 32, 40], "stride": 8},
        "kernel_size": {"values": [[3], [3, 5], [3, 5], [3], [3]], "sample": "block"},
        "expand_ratio": {"values": [[0.5], [1], [0.5, 1], [1], [1]]},
    },
    "neck": {
        "depth": [3, 5],
        "out_channel": {"values": [16, 24], "sample": "net"},
        "kernel_size": [[1, 3], [3]],
    },
    "head": {"depth": {"values": [1, 2]}, "out_channel": {"min": 8, "max": 24, "stride": 8}},
    "options": {"kernel_transform": True},
}
REGNET = {
    "network": "regnet",
    "nc": 4,
    "backbone": {
        "depth": {"min": 1, "max": [1, 1, 2, 3, 1]},
        "out_channel": {"min": 16, "max": [16, 32, 32, 48, 32], "stride": 16},
        "group_width": {"values": [8, 16], "sample": "net"},
        "expand_ratio": {"values": [[1], [1], [1, 2], [1], [1]]},
        "kernel_size": {"values": [[3], [3, 5], [3], [3], [3]]},
    },
    "options": {"squeeze": 0.25, "dropout": 0.2},
}
SPACES = {"retinanet": RETINANET, "regnet": REGNET}


def flat(raw):
    return torch.cat([t.flatten() for t in raw]) if isinstance(raw, tuple) else raw.flatten()


def images(n=2, side=64, seed=0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


# Costs ----------------------------------------------------------------------------------------------------


def settings(widths, depths, head):
    return {
        "backbone": {"kernel_size": [3] * 5, "out_channel": widths, "depth": depths},
        "neck": {"depth": [3, 5], "out_channel": [128, 128], "kernel_size": [1, 3]},
        "roi_head.cls_subnet": {"depth": [4], "out_channel": [head], "kernel_size": [3]},
        "roi_head.box_subnet": {"depth": [4], "out_channel": [head], "kernel_size": [3]},
    }


@pytest.mark.parametrize(
    ("subnet", "published"),
    [
        (settings([32, 48, 96, 192, 384], [1, 1, 2, 2, 4], 64), 18.97),
        (settings([48, 64, 128, 256, 512], [1, 2, 3, 3, 5], 128), 48.54),
    ],
)
def test_published_macs_of_the_retinanet_rows(subnet, published):
    """United-Perception, benchmark/bignas_supernet.md: GMACs at 512 x 1024."""
    space = ElasticSpace(MODELS / "bignas_retinanet_r18.yaml")
    arch = space.from_settings(subnet)
    with torch.device("meta"):
        net = Supernet(space.model).extract(arch).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 512, 1024))
    assert counter.get_total_flops() / 2e9 == pytest.approx(published, rel=1e-3)
    cost = space.cost(arch, (512, 1024))
    assert cost["gflops"] * 1e9 == pytest.approx(counter.get_total_flops(), abs=0.5)
    assert cost["params_m"] * 1e6 == pytest.approx(sum(p.numel() for p in net.parameters()), abs=0.5)


@pytest.mark.parametrize("name", SPACES)
def test_cost_without_building_is_that_of_the_extracted_network(name):
    space = ElasticSpace(SPACES[name])
    with torch.device("meta"):
        supernet = Supernet(space.model)
    rng = np.random.default_rng(0)
    for arch in [space.smallest(), space.largest(), *(space.random(rng) for _ in range(8))]:
        net = supernet.extract(arch).eval()
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 96, 64))
        cost = space.cost(arch, (96, 64))
        assert round(cost["gflops"] * 1e9) == counter.get_total_flops()
        assert round(cost["params_m"] * 1e6) == sum(p.numel() for p in net.parameters())


def test_thousands_of_costs_a_second():
    space, rng = ElasticSpace(MODELS / "bignas_retinanet_r18.yaml"), np.random.default_rng(0)
    space.cost(space.default(), 512)
    archs = [space.random(rng) for _ in range(500)]
    started = time.process_time()
    for arch in archs:
        space.cost(arch, 512)
    assert len(archs) / (time.process_time() - started) > 1000  # measured: 30,000 once warm


# The slice is the extracted network -----------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_slice_is_extracted(name):
    supernet = Supernet(SPACES[name])
    scramble(supernet)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(6):
        arch = supernet.sample(rng)
        seen.add(str(arch))
        for training in (True, False):
            torch.manual_seed(0)  # dropout
            supernet.train(training)
            net = supernet.extract(arch)
            assert is_plain(net)
            with torch.no_grad():
                torch.manual_seed(1)
                ours = flat(supernet(images()))
                torch.manual_seed(1)
                theirs = flat(net(images()))
            assert (ours - theirs).abs().max() < 1e-5 * max(1.0, ours.abs().max().item()), (arch, training)
    assert len(seen) > 3


@pytest.mark.parametrize("name", SPACES)
def test_gradients_of_the_slice_are_those_of_the_extracted_network(name):
    supernet = Supernet(SPACES[name])
    scramble(supernet)
    supernet.eval()
    arch = supernet.sample(np.random.default_rng(1))
    net = supernet.extract(arch)
    flat(supernet(images())).square().mean().backward()
    flat(net(images())).square().mean().backward()
    norms = {k: p for k, p in net.named_parameters() if k.endswith("norm.weight")}
    assert norms
    for key, p in norms.items():
        ours = dict(supernet.net.named_parameters())[key].grad
        torch.testing.assert_close(ours[: len(p)], p.grad, rtol=1e-3, atol=1e-5)
        assert not ours[len(p) :].any()  # nothing outside the slice


RELOAD = """
import sys, torch, yaml
from nni.nas.space import model_context
from models.supernet import Supernet
torch.set_num_threads(1)
saved = torch.load(sys.argv[1])
with model_context(saved["arch"]):
    net = Supernet(saved["model"]).net.eval()
net.load_state_dict(saved["state"])
with torch.no_grad():
    raw = net(saved["images"])
torch.save(raw, sys.argv[2])
"""


@pytest.mark.slow
def test_an_extracted_network_reloads_in_a_fresh_process(tmp_path):
    supernet = Supernet(RETINANET)
    scramble(supernet)
    arch = supernet.eval().sample(np.random.default_rng(2))
    net = supernet.extract(arch)
    torch.save(
        {"model": RETINANET, "arch": arch, "state": net.state_dict(), "images": images()}, tmp_path / "net.pt"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RELOAD, str(tmp_path / "net.pt"), str(tmp_path / "raw.pt")],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        check=True,
    )
    with torch.no_grad():
        ours = flat(supernet(images()))
    assert (flat(torch.load(tmp_path / "raw.pt")) - ours).abs().max() < 1e-5 * max(1, ours.abs().max())


@pytest.mark.parametrize("name", SPACES)
def test_onnx_of_the_extracted_network_is_the_slice(name, tmp_path):
    import onnxruntime

    supernet = Supernet(SPACES[name])
    scramble(supernet)
    arch = supernet.eval().sample(np.random.default_rng(4))
    net = supernet.extract(arch)
    path = str(tmp_path / "net.onnx")
    torch.onnx.export(net, (images(1),), path, input_names=["images"], dynamo=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    raw = [torch.from_numpy(t) for t in session.run(None, {"images": images(1).numpy()})]
    with torch.no_grad():
        ours = flat(supernet(images(1)))
    assert (flat(tuple(raw)) - ours).abs().max() < 1e-5 * max(1, ours.abs().max())


# As NNI sees it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_the_space_and_the_supernet_are_one_object(name):
    supernet = Supernet(SPACES[name])
    scramble(supernet)
    labels = {label: m.values for label, m in supernet.simplify().items()}
    assert labels == supernet.space.choices
    arch = supernet.eval().space.random(np.random.default_rng(5))
    frozen = supernet.freeze(supernet.space.complete(arch))  # NNI's samples have every label
    assert frozen.arch == arch and is_plain(frozen) and frozen.simplify() == {}
    supernet.set_arch(arch)
    with torch.no_grad():
        assert (flat(frozen(images())) - flat(supernet(images()))).abs().max() < 1e-4
    with model_context(arch):
        rebuilt = Supernet(SPACES[name])
    assert rebuilt.arch == arch and is_plain(rebuilt)
    rebuilt.load_state_dict(frozen.state_dict())


def test_a_fresh_supernet_runs_its_largest_arch():
    supernet = Supernet(REGNET)
    assert supernet.arch == supernet.space.largest()
    with pytest.raises(UserError, match="unknown value of backbone.depth.3 '4'"):
        supernet.set_arch(supernet.arch | {"backbone.depth.3": 4})
    assert supernet.arch == supernet.space.largest()


def test_nni_s_engines_get_the_extracted_network():
    """What a strategy submits to NNI's inline engine is the slice as a plain network, weights and all."""
    from nni.nas.evaluator import FunctionalEvaluator
    from nni.nas.space import RawFormatModelSpace

    supernet = Supernet(REGNET)
    scramble(supernet)
    arch = supernet.eval().sample(np.random.default_rng(1))
    submitted = RawFormatModelSpace(supernet, FunctionalEvaluator(len)).freeze(supernet.space.complete(arch))
    model = submitted.executable_model()
    assert model.arch == arch and is_plain(model)
    with torch.no_grad():
        torch.testing.assert_close(model(images()), supernet(images()), rtol=1e-4, atol=1e-4)


def test_a_copy_runs_its_own_arch():
    """As an average of the weights needs it."""
    supernet = Supernet(REGNET)
    scramble(supernet)
    copied = copy.deepcopy(supernet.eval())
    assert copied.space.choices == supernet.space.choices
    copied.set_arch(copied.space.smallest())
    assert supernet.arch == supernet.space.largest()
    with torch.no_grad():
        largest = supernet(images())
        supernet.set_arch(supernet.space.smallest())
        assert torch.equal(supernet(images()), copied(images()))
        assert not torch.equal(largest, copied(images()))


PLUGIN = """
from torch import nn
from models.elastic.blocks import ConvBlock

PARTS = {"body": {"depth": 1, "out_channel": None, "spread": 1.5}}
STRIDE = 2


def build(space):
    width = space.parts["body"].dim("out_channel")
    return nn.Sequential(ConvBlock(space.ch, width, stride=2), ConvBlock(width, space.nc, 1))
"""


def test_a_network_joins_by_one_file(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / "mine.yaml").write_text(
        "network: mine.py\nnc: 2\nbody: {depth: [1], out_channel: {min: 4, max: 8, stride: 4}}\n"
    )
    space = ElasticSpace(tmp_path / "mine.yaml")
    assert space.choices == {"body.out_channel.0": [8, 4]}
    # (3 x 4 x 9) on 4 x 4 positions and (4 x 2) on as many, twice; norms have 2 parameters a channel
    assert space.cost(space.smallest(), 8) == {"params_m": 128e-6, "gflops": 2 * 16 * (108 + 8) / 1e9}
    net = Supernet(space.model).extract(space.smallest())
    assert net(images(1, 8)).shape == (1, 2, 4, 4)


@pytest.mark.parametrize(
    "text, message",
    [
        ("def (:", "mine.py is not Python: invalid syntax"),
        ("STRIDE = 2", "declares no PARTS"),
        ("PARTS = {}", "declares no STRIDE"),
        ("PARTS = dict()\nSTRIDE = 2", "PARTS should be a literal"),
        ("PARTS = ['body']\nSTRIDE = 2", r"PARTS: \['body'\] does not fit"),
        ("PARTS = {'body': {'depth': 0.5}}\nSTRIDE = 2", "body should have a depth"),
        ("PARTS = {'body': {}}\nSTRIDE = 2", "body should have a depth"),
        ("PARTS = {'body': {'depth': 1}}\nSTRIDE = 0", "STRIDE: 0 does not fit"),
        ("PARTS = {'body': {'depth': 1}}\nSTRIDE = 2\nTASK = 'segment'", "TASK: 'segment' does not fit"),
    ],
)
def test_a_file_that_is_no_network(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=message):
        ElasticSpace({"network": str(tmp_path / "mine.py"), "nc": 2, "body": {"depth": [1]}})


# Batch norm -----------------------------------------------------------------------------------------------


def test_calibration_is_the_mean_of_the_batches_statistics():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    scramble(net)
    batches = [images(4, 8, seed) * (seed + 1) for seed in range(3)]
    assert calibrate(net.eval(), batches, images=12) == 12
    means = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    variances = torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0)
    torch.testing.assert_close(net[0].running_mean, means)
    torch.testing.assert_close(net[0].running_var, variances)
    assert net[0].momentum == 0.1 and not any(m.training for m in net.modules())
    # Only as many images as asked for, and another order of magnitude forgets the first completely.
    assert calibrate(net, [b * 10 for b in batches], images=6) == 6
    torch.testing.assert_close(
        net[0].running_mean, 10 * (batches[0].mean((0, 2, 3)) + batches[1][:2].mean((0, 2, 3))) / 2
    )


def test_no_candidate_sees_another_s_statistics():
    supernet = Supernet(REGNET)
    scramble(supernet)
    before = {k: v.clone() for k, v in supernet.state_dict().items()}
    batches = [images(8, 64, seed) for seed in range(2)]
    rng = np.random.default_rng(0)
    archs = [supernet.space.random(rng) for _ in range(3)]
    alone = calibrated(supernet, archs[0], batches).predict(images())
    for arch in archs[1:]:
        calibrated(supernet, arch, batches)
    assert torch.equal(calibrated(supernet, archs[0], batches).predict(images()), alone)
    assert all(torch.equal(v, before[k]) for k, v in supernet.state_dict().items())


def test_calibration_repairs_what_mixed_statistics_break():
    """A slice whose statistics are those of other widths: off before, right after."""
    supernet = Supernet(REGNET)
    arch = supernet.space.smallest()
    supernet.set_arch(supernet.space.largest())
    supernet.train()
    with torch.no_grad():
        for seed in range(20):
            supernet(images(8, 64, seed))
    net = supernet.extract(arch)
    for block in net.modules():  # zero gammas would hide the branches
        if isinstance(block, nn.BatchNorm2d):
            nn.init.ones_(block.weight)
    seen: dict[nn.Module, float] = {}
    last = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)][-1]
    last.register_forward_hook(lambda m, i, y: seen.__setitem__(m, y.std().item()))

    def spread():
        with torch.no_grad():
            net.eval()(images(16, 64, 99))
        return seen[last]

    before = spread()
    calibrate(net, [images(16, 64, seed) for seed in range(4)])
    assert abs(spread() - 1) < 0.15 < abs(before - 1)


def test_no_images():
    with pytest.raises(UserError, match="no images to re-estimate"):
        calibrate(nn.BatchNorm2d(3), [])
