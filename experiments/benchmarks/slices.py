"""A slice of a supernet, run in place, against the same network taken out of it: time of a forward pass.

    python experiments/benchmarks/slices.py [--cases yolo,retinanet] [--device cpu] [--rounds 15]

In eval mode without gradients, by turns, on the smallest, the default and the largest arch. `held`: inside
`models.elastic.gradients.cached_slices`, as archs are scored in place; `free`: outside, where every pass cuts
its slices anew. Ratio of medians. `set_arch`: what it takes to get there, once an arch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import yaml  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

from experiments.benchmarks.sandwich import CLASSES, seconds  # noqa: E402
from models.elastic.gradients import cached_slices  # noqa: E402
from models.supernet import Supernet  # noqa: E402

CASES = {
    "yolo": ("models/yolov5n_nas.yaml", 64, 8),
    "retinanet": ("models/bignas_retinanet_r18.yaml", 128, 4),
}  # name -> space, image side, batch size


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    return parser.parse_args()


@torch.no_grad()
def measure(name: str, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    path, side, size = CASES[name]
    device = torch.device(args.device)
    torch.manual_seed(0)
    supernet = Supernet(yaml.safe_load((ROOT / path).read_text()), CLASSES)
    net: Any = supernet.net.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    images = torch.rand(size, 3, side, side).to(device, memory_format=torch.channels_last)
    space, results = supernet.space, {}
    archs = {"min": space.smallest(), "default": space.default(), "max": space.largest()}
    for title, arch in archs.items():
        plain: Any = supernet.extract(arch)
        ways: dict[str, Callable[[], Any]] = {
            "plain": partial(plain.raw, images),
            "held": partial(net.raw, images),
            "free": partial(net.raw, images),
            "set_arch": partial(supernet.set_arch, arch),
        }
        supernet.set_arch(arch)
        same(net.raw(images), plain.raw(images))
        cache = cached_slices(net)
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in tqdm(range(args.rounds), f"{name} {title}", leave=False, disable=None):
            for way in list(ways) if turn % 2 else list(ways)[::-1]:
                if way == "held":
                    with cache:
                        ways[way]()  # cuts the slices
                        times[way].append(seconds(ways[way], device))
                else:
                    ways[way]()  # as warm as the other
                    times[way].append(seconds(ways[way], device))
        results[title] = {way: statistics.median(t) for way, t in times.items()}
    return results


def same(ours: Any, theirs: Any) -> None:
    """Raise unless two raw outputs agree."""
    if isinstance(ours, Tensor):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    elif isinstance(ours, dict):
        same(list(ours.values()), list(theirs.values()))
    else:
        for a, b in zip(ours, theirs, strict=True):
            same(a, b)


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    print(f"{args.device}, {args.threads} thread(s), {args.rounds} rounds")
    ratios: dict[str, dict[str, dict[str, float]]] = {}
    for name in args.cases.split(","):
        path, side, size = CASES[name]
        print(f"{Path(path).name}, {side} px, batch {size}")
        ratios[name] = {}
        for title, t in measure(name, args).items():
            ratios[name][title] = {way: round(t[way] / t["plain"], 4) for way in ("held", "free")}
            print(
                f"  {title:<8} plain {1e3 * t['plain']:7.2f} ms; held {t['held'] / t['plain']:.2f} x, "
                f"free {t['free'] / t['plain']:.2f} x; set_arch {1e3 * t['set_arch']:.2f} ms",
                flush=True,
            )
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
