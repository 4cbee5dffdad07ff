"""Costs by hand; latency by what must hold on any machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from utils.errors import UserError
from utils.training.measure import (
    LatencyReference,
    count_flops,
    count_params,
    device_info,
    fused_copy,
    latency,
    measure_reference,
    reference_net,
    resolve_device,
)


def test_params_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2))
    assert count_params(net) == (3 * 8 * 9 + 8) + (8 + 8) + (8 * 2 + 2)


def test_flops_of_a_convolution_by_hand():
    """2 x multiply-adds: 16 x 16 outputs, 8 channels, 3 x 3 x 3 inputs each."""
    assert count_flops(nn.Conv2d(3, 8, 3, stride=2, padding=1), 32) == 2 * 16 * 16 * 8 * 27


def test_grouped_convolution_and_linear_by_hand():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Flatten(), nn.Linear(8 * 16, 5)
    )
    assert count_flops(net, 4) == 2 * 16 * (3 * 8 + 8 * 9) + 2 * (8 * 16 * 5)


def test_counting_leaves_the_network_alone():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    count_flops(net, 16)
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)
        self.tail = nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2), nn.SiLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())))


def test_fused_copy_computes_the_same_without_batch_norms():
    torch.manual_seed(0)
    net = Block()
    x = torch.randn(4, 3, 12, 12)
    for _ in range(5):
        net(x)  # statistics that are not 0 and 1
    fused = fused_copy(net)
    torch.testing.assert_close(fused(x), net.eval()(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 3


def test_fused_copy_leaves_a_shared_convolution_with_norms_of_its_own():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 3, 3, padding=1), torch.randn(4, 3, 12, 12)
    net = nn.Sequential(*(nn.Sequential(conv, nn.BatchNorm2d(3)) for _ in range(2)))
    for _ in range(5):
        net(x)
    torch.testing.assert_close(fused_copy(net)(x), net.eval()(x), rtol=1e-4, atol=1e-5)


def test_fused_copy_leaves_a_norm_that_two_convolutions_share():
    norm = nn.BatchNorm2d(4)
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), norm), nn.Sequential(nn.Conv2d(4, 4, 1), norm))
    x = torch.randn(8, 3, 4, 4)
    net(x)  # statistics of both
    fused = fused_copy(net)
    torch.testing.assert_close(fused(x), net.eval()(x))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in fused.modules()) == 1


def test_latency_of_the_reference_is_the_reference():
    reference = LatencyReference(10.0, imgsz=64, batch=1, threads=1, device="cpu", hardware="any")
    before = torch.get_num_threads()
    measured = latency(reference_net(), 64, reference=reference, seconds=1.0)
    assert torch.get_num_threads() == before
    assert measured["latency_ms"] == pytest.approx(10.0, rel=0.25)
    assert 0 <= measured["latency_ms_spread"] < 10


def test_image_sizes_are_compared_by_one_reference():
    reference = LatencyReference(10.0, imgsz=64, batch=1, threads=1, device="cpu", hardware="any")
    measured = latency(reference_net(), 128, reference=reference, seconds=1.0)
    assert 20 < measured["latency_ms"] < 60  # four times the work at 64 px, which takes 10


def test_a_deeper_network_takes_longer():
    def stack(depth: int) -> nn.Module:
        layers = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)) for _ in range(depth)]
        return nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), *layers)

    reference = LatencyReference(1.0, imgsz=64, batch=2, threads=1, device="cpu", hardware="any")
    short, long = (
        latency(stack(d), 64, batch=2, reference=reference, seconds=0.5)["latency_ms"] for d in (4, 16)
    )
    assert long > 1.5 * short


def test_calibration_is_kept_and_checked(tmp_path: Path):
    made = measure_reference(32, seconds=0.1)
    assert made.reference_ms > 0 and made.device == "cpu"
    made.save(tmp_path / "calibration.json")
    assert LatencyReference.load(tmp_path / "calibration.json") == made
    with pytest.raises(UserError, match="calibrated for"):
        latency(reference_net(), 32, batch=2, reference=made)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match="bad.json"):
        LatencyReference.load(tmp_path / "bad.json")


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for wrong in ("gpu", "cuda:x", "cpu:1", "cuda:0:1", ""):
        with pytest.raises(UserError, match="known: auto, cpu"):
            resolve_device(wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
@pytest.mark.parametrize("name", ["cuda", "cuda:1", "0", 0])
def test_cuda_that_is_not_there(name):
    with pytest.raises(UserError, match="asks for CUDA"):
        resolve_device(name)


@pytest.mark.gpu
def test_latency_on_a_gpu():
    measured = latency(reference_net(), 64, "cuda", seconds=0.5)
    assert measured["latency_ms"] > 0


def test_device_info_names_what_counts():
    info = device_info()
    assert info["torch"] == torch.__version__.partition("+")[0] and info["threads"] == torch.get_num_threads()
    assert info["hardware"] and int(info["cores"]) >= 1


def test_only_gpus_that_there_are(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert resolve_device("cuda:1") == resolve_device("1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="device cuda:2: there are only 2 CUDA devices, from cuda:0"):
        resolve_device("cuda:2")
