"""What it is worth that candidates of a serial search start from their parent's weights; what a run costs.

    python experiments/benchmarks/morphism.py [--data PATH] [--children 6] [--long 12] [key=value ...]
    python experiments/benchmarks/morphism.py --run runs/spnas_fasterrcnn

The first trains the unsearched code, changes it into candidates as the search does, and trains each from
three starts, scored on search_val before training and after each epoch (one schedule of `--short` epochs):

    morphism     blocks matched by their ids, new ones begin as the identity (models/backbones/serial.py)
    by name      tensors of the same name and shape, so blocks are matched by stage and position, as Vega's
                 SP-NAS does; new ones begin as the identity here too, which Vega's do not
    scratch      nothing

and once from scratch for `--long` epochs; Kendall's tau tells whether the short trainings order the
candidates as the long ones do. key=value: of experiments/spnas_fasterrcnn.yaml.

The second sets all training of a finished run beside its winner's once from scratch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from experiments.config import load_experiment  # noqa: E402
from experiments.job import Job, loaders  # noqa: E402
from experiments.run_folder import RunFolder  # noqa: E402
from experiments.starts import begin  # noqa: E402
from models.space import Arch  # noqa: E402
from models.weights import load_weights, save_weights  # noqa: E402
from utils.report.progress import later_spent, search_spent  # noqa: E402
from utils.report.rank import kendall_tau, tau_interval  # noqa: E402
from utils.report.runs import duration, later_trainings, read_json, read_run  # noqa: E402
from utils.training.train import train  # noqa: E402

WAYS = ("morphism", "by name", "scratch")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="by default that of the experiment")
    parser.add_argument("--parent", type=int, default=8, help="epochs of the unsearched code")
    parser.add_argument("--children", type=int, default=6, help="candidates")
    parser.add_argument("--short", type=int, default=4, help="epochs of a candidate")
    parser.add_argument(
        "--long", type=int, default=12, help="epochs from scratch that they are compared with"
    )
    parser.add_argument("--run", type=Path, help="a finished run, whose cost is told; nothing is trained")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.run:
        print("\n".join(cost_of(args.run)))
        return
    overrides = [*args.overrides, *([f"data={args.data}"] if args.data else [])]
    exp = load_experiment("experiments/spnas_fasterrcnn.yaml", ["threads=1", *overrides])
    torch.set_num_threads(exp.threads or 1)
    with tempfile.TemporaryDirectory() as folder:
        compare(Job.open(RunFolder(Path(folder) / "run", exp)), args)


@dataclass(frozen=True)
class Course:
    """How a candidate fared from one start. share: of its numbers that are inherited; scores: on search_val,
    before training and after each epoch."""

    share: float
    scores: list[float]


def compare(job: Job, args: argparse.Namespace) -> None:
    """Train and print; what is measured is said by the module."""
    space, quality = job.space, job.task.quality
    parent, file = space.default(), job.run.path / "parent.pt"
    net = fresh(job, parent)
    scores = trained(job, net, parent, args.parent)
    save_weights(file, net, space, parent, imgsz=job.side(parent), names=job.dataset.names)
    rng, children = np.random.default_rng(job.exp.seed), list[Arch]()
    while len(children) < args.children:
        child = space.canonical(space.mutate(space.complete(parent), rng, 1.0))
        children += [child] if child not in (parent, *children) else []
    how = f"{job.exp.imgsz} px, batch {job.exp.train.batch}, seed {job.exp.seed}"
    print(f"{space.name}, {job.dataset.name}, {how}")
    print(f"parent, {args.parent} epochs: {parent['code']}, {quality} {scores[-1]:.4f} on search_val")
    courses: dict[str, list[Course]] = {way: [] for way in WAYS}
    final = []
    for child in children:
        for way in WAYS:
            courses[way].append(course(job, child, way, file, args.short))
            told = ", ".join(f"{score:.4f}" for score in courses[way][-1].scores)
            print(f"  {child['code']:<24} {way:<9} {100 * courses[way][-1].share:5.1f} %: {told}", flush=True)
        final.append(trained(job, fresh(job, child), child, args.long)[-1])
        print(f"  {child['code']:<24} {args.long} epochs from scratch: {final[-1]:.4f}", flush=True)
    print("\n".join(table(courses, final, args.long)))


def fresh(job: Job, arch: Arch) -> Any:
    """A network of the job with weights of its seed."""
    torch.manual_seed(job.exp.seed)
    return job.build(arch)


def course(job: Job, arch: Arch, way: str, parent: Path, epochs: int) -> Course:
    """Start a candidate one way and train it."""
    net, share = fresh(job, arch), 0.0
    if way == "morphism":
        begun = begin(job, net, arch, job.run.path / "child", parent)
        share = begun.account.share if begun else 0.0
    elif way == "by name":
        loaded = load_weights(net, parent)
        share, net.inherited = (
            loaded.share,
            frozenset(loaded.loaded),
        )  # they learn at the rate of what is inherited, as in the other way
    return Course(share, [score_of(job, net, arch), *trained(job, net, arch, epochs)])


def trained(job: Job, net: Any, arch: Arch, epochs: int) -> list[float]:
    """Train a network on search_train, as it stands; its scores on search_val after each epoch. It becomes
    the averaged network that is scored."""
    exp = job.exp
    settings = exp.train.model_copy(update={"epochs": epochs, "val_every": 1})
    batches, val = loaders(job, "search_train", "search_val", job.side(arch))

    def evaluate(averaged: Any, last: bool) -> dict[str, float]:
        return job.task.score(averaged, val, job.dataset.names, job.device, not last)

    result = train(
        net,
        batches,
        settings=settings,
        seed=exp.seed,
        device=job.device,
        evaluate=evaluate,
        progress=False,
    )
    net.load_state_dict(result.detector.state_dict())
    return [float(row[job.task.quality]) for row in result.curve]


def score_of(job: Job, net: Any, arch: Arch) -> float:
    """What a network scores on search_val as it stands."""
    _, val = loaders(job, "search_train", "search_val", job.side(arch))
    scored = job.task.score(net.to(job.device).eval(), val, job.dataset.names, job.device, True)
    return float(scored[job.task.quality])


def table(courses: dict[str, list[Course]], final: Sequence[float], epochs: int) -> list[str]:
    """Means over the candidates, and how each way's short trainings order them beside the long ones."""
    ks = range(len(courses[WAYS[0]][0].scores))
    heads = ["start", "inherited", *(f"k = {k}" for k in ks), f"tau of k = {ks[-1]} to {epochs} epochs"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for way, each in courses.items():
        share = statistics.fmean(c.share for c in each)
        means = [statistics.fmean(c.scores[k] for c in each) for k in ks]
        last = [c.scores[-1] for c in each]
        low, high = tau_interval(last, final)
        tau = f"{kendall_tau(last, final):.2f} [{low:.2f}, {high:.2f}]"
        cells = [way, f"{100 * share:.1f} %", *(f"{m:.4f}" for m in means), tau]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def cost_of(folder: Path) -> list[str]:
    """What a run trained in all, beside its winner once from scratch: seconds of training."""
    run = read_run(folder)
    spent = {name: cost.trial_seconds for name, cost in search_spent(run).items() if cost.trials}
    later = {name: seconds for name, (_, seconds) in later_spent(run).items()}
    best = read_json(folder / "top" / "1.json").get("trial")
    result = later_trainings(run).get(best, {}) if isinstance(best, int) else {}
    winner = result.get("seconds") if result.get("start") == "scratch" else None
    search = sum(spent.values())
    lines = [f"{name}: {duration(seconds)}" for name, seconds in (spent | later).items()]
    if winner is None:
        return [*lines, "the winner was not retrained from scratch: nothing to set beside it"]
    return [
        *lines,
        f"the winner once from scratch: {duration(winner)}; finding it took {search / winner:.1f} times "
        f"that, the whole run {(search + sum(later.values())) / winner:.1f} times",
    ]


if __name__ == "__main__":
    main()
