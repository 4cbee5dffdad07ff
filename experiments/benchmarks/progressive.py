"""What a supernet's training step costs beside its largest network's: sandwich, single path, phases.

    python experiments/benchmarks/progressive.py [--experiment experiments/ofa_ssd.yaml] [--batch 16]

Each step is forward and backward of its archs on one batch of noise, as `sandwich_step` does it, without an
update of weights. It is timed in turn with the plain largest network's forward and backward, several draws of
archs; ratio: median over all pairs. Process time, because others use the machine too.

    sandwich        [max, random, random, min] of the whole space, the others learn from max
    no distil       the same without distillation
    single path     [random] of the whole space
    from epoch N    the sandwich of the space of each phase of `supernet.schedule`

Memory as in sandwich.py: the peak of torch's allocations, weights and gradients included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from experiments.benchmarks.sandwich import CLASSES, KINDS, objects, peak, ready, seconds  # noqa: E402
from experiments.config import load_experiment  # noqa: E402
from models.elastic.gradients import direct_gradients  # noqa: E402
from models.networks import open_any_space  # noqa: E402
from models.sampling import Narrowed, Phases, subnets  # noqa: E402
from models.space import Space  # noqa: E402
from models.supernet import Supernet  # noqa: E402
from utils.sides import longer  # noqa: E402
from utils.training.sandwich import Pupil, sandwich_step  # noqa: E402
from utils.training.settings import Distil  # noqa: E402

CPU = torch.device("cpu")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiment", default="experiments/ofa_ssd.yaml")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--draws", type=int, default=3, help="of the random archs")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    exp = load_experiment(args.experiment)
    assert exp.supernet is not None, f"{args.experiment} trains no supernet"
    supernet = Supernet(open_any_space(exp.space, nc=CLASSES).model, CLASSES)
    net, batch = ready(supernet.net, CPU), objects(longer(exp.imgsz), args.batch, CPU)
    phases = Phases(
        supernet.space,
        {k: (p.boundary, p.value) for k, p in exp.supernet.schedule.items()},
        exp.train.epochs,
    )
    starts = sorted({start for begin, _ in phases.phases.values() for start in begin})
    taught, alone = Pupil(net, exp.supernet.distil), Pupil(net, Distil(weight=0))
    ways: dict[str, tuple[Pupil, list[str], Space | Narrowed]] = {
        "sandwich": (taught, KINDS, supernet.space),
        "no distil": (alone, KINDS, supernet.space),
        "single path": (alone, ["random"], supernet.space),
        **{f"from epoch {start}": (taught, KINDS, phases.at(start)) for start in starts},
    }
    direct = direct_gradients(net)

    def step(pupil: Pupil, archs: list[Any], kinds: list[str]) -> None:
        with direct:
            sandwich_step(pupil, supernet.set_arch, batch, archs, teaches=kinds[0] == "max")

    def largest() -> None:
        torch.stack(list(plain.loss(batch).values())).sum().backward()

    plain: Any = ready(supernet.extract(supernet.space.largest()), CPU)
    alone_mib = peak(largest, plain, CPU)
    print(
        f"{Path(exp.space).name}, {exp.imgsz} px, batch {args.batch}, 1 thread: "
        f"the largest alone {alone_mib:.0f} MiB"
    )
    for name, (pupil, kinds, space) in ways.items():
        steps = [partial(step, pupil, subnets(kinds, space, 0, draw), kinds) for draw in range(args.draws)]
        ratio, took = compared(steps, largest, args.rounds)
        mib = max(peak(each, net, CPU) for each in steps)
        print(
            f"  {name:<14} {took:6.3f} s, {ratio:5.2f} x the largest; "
            f"{mib:5.0f} MiB, {mib / alone_mib:5.2f} x",
            flush=True,
        )


def compared(
    steps: Sequence[Callable[[], None]], largest: Callable[[], None], rounds: int
) -> tuple[float, float]:
    """(median ratio of a step to the largest network's, median seconds of a step)."""
    ratios, times = [], []
    for turn in range(rounds + 1):
        for each in steps:
            pair = (largest, each) if turn % 2 else (each, largest)
            took = {which: seconds(which, CPU) for which in pair}
            if turn:  # the first round warms up
                ratios.append(took[each] / took[largest])
                times.append(took[each])
    return statistics.median(ratios), statistics.median(times)


if __name__ == "__main__":
    main()
