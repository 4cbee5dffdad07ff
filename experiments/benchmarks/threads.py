"""What a second thread gains, and what it costs where another program takes a core.

    python experiments/benchmarks/threads.py [--side 160] [--batch 8] [--rounds 3]

Wall time of a training step (forward, backward) of YOLOv5n with one thread and with one for each core, by
turns, alone on the machine and beside a program that keeps one core busy. It is what `hint_if_busy` of
utils/cores.py is about. Wants a machine that is quiet otherwise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from experiments.benchmarks.sandwich import CLASSES, objects, ready  # noqa: E402
from models.networks import build, open_any_space  # noqa: E402
from utils.cores import cores  # noqa: E402
from utils.training.precision import choose_precision  # noqa: E402

ENOUGH = 20.0  # seconds, for one setting of one round
STEPS = 10


@contextmanager
def busy_core() -> Iterator[None]:
    """A process that computes and never waits."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def seconds(step: Callable[[], Any], threads: int) -> list[float]:
    """Of each step; fewer steps where they are slow."""
    torch.set_num_threads(threads)
    step()
    found: list[float] = []
    while len(found) < STEPS and sum(found) < ENOUGH:
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if cores() < 2:
        sys.exit("this machine has one core; there is nothing to compare")

    cpu = torch.device("cpu")
    space = open_any_space(ROOT / "models/yolov5n_nas.yaml", nc=CLASSES)
    net: Any = ready(build(space, space.default()), cpu)
    batch = objects(args.side, args.batch, cpu)
    precision = choose_precision("auto", cpu, net, args.side)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
            losses = net.loss(batch)
        torch.stack(list(losses.values())).sum().backward()

    times: dict[str, list[float]] = {}
    for turn in range(args.rounds):
        for beside in (False, True):
            with busy_core() if beside else nullcontext():
                for threads in (1, cores())[:: 1 if turn % 2 else -1]:
                    name = f"{threads} thread{'s' * (threads > 1)}{', a core busy' * beside}"
                    times.setdefault(name, []).extend(seconds(step, threads))
    one = statistics.median(times["1 thread"])
    print(f"YOLOv5n, {args.side} px, batch {args.batch}, {precision}, {cores()} cores, {args.rounds} rounds")
    for name, found in sorted(times.items()):
        middle = statistics.median(found)
        print(f"  {name:<24} {1e3 * middle:8.1f} ms a step, {middle / one:6.2f} x (up to {max(found):.2f} s)")
    print(json.dumps({name: round(statistics.median(found) / one, 4) for name, found in times.items()}))


if __name__ == "__main__":
    main()
