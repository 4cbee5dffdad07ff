"""What a detector costs: parameters, FLOPs, latency; and what it was measured on."""

from __future__ import annotations

import copy
import json
import platform
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.flop_counter import FlopCounterMode

from utils.cores import cores
from utils.errors import UserError
from utils.files import write_text
from utils.json_text import parse_json
from utils.sides import Sides, pair, read_sides
from utils.timing import Clock, Run, alone, alternate
from utils.training.precision import has_bf16


def resolve_device(name: str | int | torch.device) -> torch.device:
    """auto, cpu, cuda, cuda:1 or 1. UserError for anything else, and for CUDA that is not there."""
    text = str(name).strip().lower()
    if text.isdecimal():
        text = f"cuda:{text}"
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = text.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()) or (kind == "cpu" and index):
        raise UserError(f"unknown device {str(name)!r}; known: auto, cpu, cuda, cuda:0, 0")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"device {name} asks for CUDA, but torch finds none here; use cpu or auto")
        if int(index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"device {name}: there are only {torch.cuda.device_count()} CUDA devices, from cuda:0"
            )
        return torch.device("cuda", int(index or 0))
    return torch.device("cpu")


def count_params(net: nn.Module) -> int:
    """Elements of all parameters, trained or not."""
    return sum(p.numel() for p in net.parameters())


def count_flops(net: nn.Module, imgsz: Sides, ch: int = 3) -> int:
    """FLOPs of convolutions and matrix products (2 x multiply-adds) of one image, batch 1.

    Counted by torch on tensors without content, so nothing is computed and `net` is not touched.
    """
    ghost = copy.deepcopy(net).eval()
    for module in ghost.modules():
        # Not `.to("meta")`: heads also move plain tensors then (strides), whose values they need.
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(weight.detach().to("meta"), requires_grad=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ghost(torch.empty(1, ch, *pair(imgsz), device="meta"))
    return counter.get_total_flops()


def fused_copy(net: nn.Module) -> nn.Module:
    """A copy in eval mode whose batch norms are folded into the convolutions before them.

    Pairs are found by name (conv and bn, conv1 and bn1, ...) or as neighbours in a Sequential. Layers used
    in several places stay as they are.
    """
    uses = Counter(id(m) for _, m in net.named_modules(remove_duplicate=False))
    memo: dict[int, nn.Module] = {}  # what deepcopy finds here it does not copy
    for parent in net.modules():
        children = dict(parent.named_children())
        if isinstance(parent, nn.Sequential):
            pairs = list(zip(list(children), list(children)[1:], strict=False))
        else:
            pairs = [(name, name.replace("conv", "bn")) for name in children if name.startswith("conv")]
        for first, second in pairs:
            conv, norm = children[first], children.get(second)
            if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            if uses[id(conv)] == uses[id(norm)] == 1:
                memo[id(conv)], memo[id(norm)] = folded(conv, norm), nn.Identity()
    return copy.deepcopy(net, memo).eval()


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """What the two compute in eval mode, as one convolution."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise ValueError("a batch norm without running statistics cannot be folded")
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, var, norm.eps, norm.weight, norm.bias)
    fused = copy.copy(conv)
    fused._parameters = {"weight": weight, "bias": bias}
    return fused


# ---------------------------------------------------------------- latency


@dataclass(frozen=True)
class LatencyReference:
    """What the reference network takes on this machine; one for all trials of a run, so that they compare."""

    reference_ms: float
    imgsz: Sides
    batch: int
    threads: int
    device: str
    hardware: str

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> LatencyReference:
        try:
            told = parse_json(path.read_bytes())
            made = cls(**told | {"imgsz": read_sides(told["imgsz"])})
            if not isinstance(made.reference_ms, int | float) or not made.reference_ms > 0:
                raise ValueError(f"reference_ms is {made.reference_ms!r}")
            if not all(type(n) is int and n > 0 for n in (*pair(made.imgsz), made.batch, made.threads)):
                raise ValueError("imgsz, batch and threads are whole numbers")
            torch.device(made.device)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} is not a latency calibration: {reason}") from error
        return made


def reference_net() -> nn.Module:
    """A fixed plain network of 0.2 GFLOPs at 160 px, made of what detectors are made of. Never change it:
    every latency is a multiple of its own."""
    widths = [3, 16, 32, 32, 64, 64, 64, 128, 128]
    strides = [2, 2, 1, 2, 1, 1, 2, 1]
    layers: list[nn.Module] = []
    for c1, c2, s in zip(widths[:-1], widths[1:], strides, strict=True):
        layers += [nn.Conv2d(c1, c2, 3, s, 1), nn.SiLU(inplace=True)]
    return nn.Sequential(*layers)


def measure_reference(
    imgsz: Sides, device: str | torch.device = "cpu", threads: int = 1, batch: int = 1, seconds: float = 2.0
) -> LatencyReference:
    """Time the reference network on this machine: median over blocks, see `latency`."""
    device = torch.device(device)
    with torch_threads(threads):
        run = _runner(reference_net(), imgsz, device, batch)
        clock = _clock(device, threads)
        ms = 1000 * statistics.median(alone(run, clock, seconds))
    return LatencyReference(ms, imgsz, batch, threads, str(device), hardware(device))


def latency(
    net: nn.Module,
    imgsz: Sides,
    device: str | torch.device = "cpu",
    threads: int = 1,
    batch: int = 1,
    *,
    reference: LatencyReference | None = None,
    seconds: float = 4.0,
) -> dict[str, float]:
    """Milliseconds of one forward pass (no NMS) of a batch of images, fp32.

    A copy with folded batch norms is timed (channels_last), warmed up, in short blocks that alternate with
    blocks of a fixed reference network; what is reported is the median ratio of the two, times what the
    reference takes on this machine, at its own image size (`reference`, measured now if not given). Only
    this ratio is stable on a machine that others use as well: its coefficient of variation is 2 %, that of
    plain times 10 to 50 %.
    Clock: CPU time of this thread with threads=1, wall time with more, CUDA events on a GPU.

    Returns latency_ms and latency_ms_spread, the distance between the quartiles of the blocks.
    """
    device = torch.device(device)
    reference = reference or measure_reference(imgsz, device, threads, batch)
    asked = (batch, threads, device.type)  # each of a machine's GPUs may be cuda:0 to the process that has it
    made = (reference.batch, reference.threads, torch.device(reference.device).type)
    if asked != made:
        raise UserError(f"latency asked for (batch, threads, device) = {asked}, calibrated for {made}")
    with torch_threads(threads):
        clock = _clock(device, threads)
        candidate = _runner(fused_copy(net), imgsz, device, batch)
        standard = _runner(reference_net(), reference.imgsz, device, batch)
        ratios, _ = alternate(candidate, standard, clock, seconds)
    low, middle, high = statistics.quantiles(ratios, n=4)
    ms = reference.reference_ms
    return {"latency_ms": middle * ms, "latency_ms_spread": (high - low) * ms}


def _runner(net: nn.Module, imgsz: Sides, device: torch.device, batch: int) -> Run:
    net = net.to(device).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.full((batch, 3, *pair(imgsz)), 0.5, device=device).to(memory_format=torch.channels_last)

    def run() -> Tensor:
        with torch.inference_mode():
            return net(images)

    return run


def _clock(device: torch.device, threads: int) -> Clock:
    now = time.thread_time if threads == 1 else time.perf_counter

    def cpu(run: Run, n: int) -> float:
        start = now()
        for _ in range(n):
            run()
        return now() - start

    def cuda(run: Run, n: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(n):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    return cuda if device.type == "cuda" else cpu


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Within: torch computes with so many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------- the machine


def hardware(device: torch.device) -> str:
    """The model of the CPU or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def device_info(device: str | torch.device = "cpu") -> dict[str, str | int]:
    """What a figure was measured on, for reports: hardware, cores, threads, number formats, versions."""
    device = torch.device(device)
    info: dict[str, str | int] = {
        "device": str(device),
        "hardware": hardware(device),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "bf16": "yes" if has_bf16(device) else "no",
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    for package in ("torch", "torchvision", "ultralytics", "ultralytics-opencv-headless", "nni"):
        try:
            info[package] = version(package)
        except PackageNotFoundError:
            continue
    return info
