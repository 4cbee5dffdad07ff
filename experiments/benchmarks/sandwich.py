"""A supernet's training step against its plain parts: time, and peak memory.

    python experiments/benchmarks/sandwich.py [--cases yolo64,yolo160,retinanet] [--device cpu] [--rounds 4]

The step runs [max, random, random, min] on one batch, a forward and a backward pass each. Its parts are the
same passes of the four networks taken out of the supernet, as plain torch modules. Both add to gradients that
are there already (`utils.training.optimize.Flat`), neither updates weights. Timed in pairs, one after the
other, on the same archs, several draws of them; ratio: median over all pairs.

    step        `sandwich_step` with `direct_gradients`, without distillation
    hooks       the same without `direct_gradients`, as DDP needs it
    distilled   `step` with in-place distillation, which the plain parts do without

Memory: the peak of torch's own allocations during the step, weights and gradients included, against that of
the largest network's plain pass alone. On CUDA by torch's counters; on a CPU summed over the allocations that
torch's profiler records, because the peak of a process depends on what its allocator gives back. Scratch
memory inside a oneDNN call is therefore not seen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import yaml  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

from models.elastic.gradients import direct_gradients  # noqa: E402
from models.sampling import subnets  # noqa: E402
from models.supernet import Supernet  # noqa: E402
from utils.training.batch import to_device  # noqa: E402
from utils.training.optimize import Flat  # noqa: E402
from utils.training.sandwich import Pupil, sandwich_step  # noqa: E402
from utils.training.settings import Distil  # noqa: E402

CASES = {
    "yolo64": ("models/yolov5n_nas.yaml", 64, 16),
    "yolo160": ("models/yolov5n_nas.yaml", 160, 8),
    "retinanet": ("models/bignas_retinanet_r18.yaml", 128, 4),
}  # name -> space, image side, batch size
CLASSES = 10
KINDS = ["max", "random", "random", "min"]
WAYS = ("step", "hooks", "distilled")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--draws", type=int, default=2, help="of the random archs")
    return parser.parse_args()


def objects(side: int, size: int, device: torch.device) -> dict[str, Any]:
    """A batch of noise with three boxes in each image."""
    rng, n = torch.Generator().manual_seed(0), 3 * size
    centres, sides = torch.rand(n, 2, generator=rng) * 0.6 + 0.2, torch.rand(n, 2, generator=rng) * 0.2 + 0.2
    batch = {
        "img": torch.rand(size, 3, side, side, generator=rng),
        "batch_idx": torch.arange(n) // 3,
        "cls": torch.randint(CLASSES, (n, 1), generator=rng).float(),
        "bboxes": torch.cat((centres, sides), 1),
    }
    return to_device(batch, device)


def ready(net: nn.Module, device: torch.device) -> nn.Module:
    """As `utils.train.train` makes it: channels_last, weights and gradients in long buffers."""
    net = net.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    Flat(net).parameters()
    return net


class InPrecision(nn.Module):
    """A module whose forward pass alone runs in a number format, as Fabric has it."""

    def __init__(self, module: nn.Module, precision: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.module, self.precision = module, precision

    def forward(self, *args: Any) -> Any:
        with self.precision():
            return self.module(*args)


def seconds(step: Callable[[], Any], device: torch.device) -> float:
    """Wall time on CUDA; of the process on a CPU, which others may be using too."""
    if device.type == "cpu":
        start = time.process_time()
        step()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(step: Callable[[], Any], net: nn.Module, device: torch.device) -> float:
    """MiB at the peak of a step of `net`: its weights, buffers and gradients and what is allocated for it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        above = torch.cuda.max_memory_allocated() - before
    else:
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as p:
            step()
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            p.export_chrome_trace(str(trace))
            events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
        now = above = 0
        for event in sorted(events, key=lambda e: e["ts"]):
            now += event["args"]["Bytes"]
            above = max(above, now)
    tensors: list[Tensor] = [*net.parameters(), *net.buffers()]
    tensors += [p.grad for p in net.parameters() if p.grad is not None]
    return (above + sum(t.numel() * t.element_size() for t in tensors)) / 2**20


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    path, side, size = CASES[name]
    device = torch.device(args.device)
    torch.manual_seed(0)
    supernet = Supernet(yaml.safe_load((ROOT / path).read_text()), CLASSES)
    net, batch = ready(supernet.net, device), objects(side, size, device)

    def precision() -> AbstractContextManager[Any]:
        return nullcontext() if args.precision == "fp32" else torch.autocast(device.type, torch.bfloat16)

    plain_pupil, taught_pupil = (
        InPrecision(Pupil(net, distil), precision) for distil in (Distil(weight=0), Distil())
    )
    direct = direct_gradients(net)

    def sandwich(pupil: nn.Module, archs: list[Any], way: AbstractContextManager[Any]) -> None:
        with way:
            sandwich_step(pupil, supernet.set_arch, batch, archs)

    def parts(nets: list[nn.Module]) -> None:
        for plain in nets:
            with precision():
                losses = plain.loss(batch)  # type: ignore[operator]
            (torch.stack(list(losses.values())).sum() / len(KINDS)).backward()

    times: dict[str, list[float]] = {way: [] for way in ("parts", *WAYS)}
    ratios: dict[str, list[float]] = {way: [] for way in WAYS}
    bar = tqdm(total=args.draws * (args.rounds + 1), desc=name, leave=False, disable=None)
    for draw in range(args.draws):
        archs = subnets(KINDS, supernet.space, 0, draw)
        nets = [ready(supernet.extract(arch), device) for arch in archs]
        ways: dict[str, Callable[[], None]] = {
            "parts": partial(parts, nets),
            "step": partial(sandwich, plain_pupil, archs, direct),
            "hooks": partial(sandwich, plain_pupil, archs, nullcontext()),
            "distilled": partial(sandwich, taught_pupil, archs, direct),
        }
        for turn in range(args.rounds + 1):
            for way in WAYS:
                pair = ("parts", way) if turn % 2 else (way, "parts")
                took = {which: seconds(ways[which], device) for which in pair}
                if turn:  # the first round warms up
                    ratios[way].append(took[way] / took["parts"])
                    for which in pair:
                        times[which].append(took[which])
            bar.update()
    bar.close()
    largest = nets[0]
    memory = {"max alone": peak(partial(parts, [largest]), largest, device)}
    memory |= {way: peak(ways[way], net, device) for way in WAYS}
    return {
        "seconds": {way: statistics.median(t) for way, t in times.items()},
        "time_ratio": {way: round(statistics.median(r), 4) for way, r in ratios.items()},
        "mib": memory,
        "memory_ratio": {way: round(memory[way] / memory["max alone"], 4) for way in WAYS},
    }


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    setting = f"{args.device}, {args.precision}, {args.threads} thread(s)"
    print(f"{setting}, {args.draws} draws of archs, {args.rounds} rounds")
    results = {}
    for name in args.cases.split(","):
        results[name] = found = measure(name, args)
        path, side, size = CASES[name]
        print(f"{Path(path).name}, {side} px, batch {size}: plain parts {found['seconds']['parts']:.3f} s, "
              f"largest net's pass alone {found['mib']['max alone']:.0f} MiB")  # fmt: skip
        for way in WAYS:
            print(
                f"  {way:<10} {found['seconds'][way]:7.3f} s, {found['time_ratio'][way]:5.2f} x the parts;"
                f" {found['mib'][way]:6.0f} MiB, {found['memory_ratio'][way]:5.2f} x the largest",
                flush=True,
            )
    print(json.dumps({k: {r: v[r] for r in ("time_ratio", "memory_ratio")} for k, v in results.items()}))


if __name__ == "__main__":
    main()
