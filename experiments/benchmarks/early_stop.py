"""What ending hopeless trials in time would have saved in searches that ran without, and what it would cost.

    python experiments/benchmarks/early_stop.py runs/one runs/two

Each search is replayed: after every epoch of every trial, in their order, the rule of `search.early_stop`
looks at the curves of those that it let end. The strategy would have asked for other archs after a stop; here
it asks for the same ones, so that only the rule differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiments.config import EarlyStop  # noqa: E402
from experiments.early_stop import Judge, no_dearer  # noqa: E402
from utils.history import Trial  # noqa: E402
from utils.pareto import hypervolume  # noqa: E402
from utils.report.runs import Run, front_of, read_run, top_trials  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of searches that trained all trials")
    for folder in parser.parse_args().runs:
        run = read_run(folder)
        front = front_of(run.complete, run.objectives)
        print(f"{folder}: {len(run.complete)} trials, {len(front)} on the front")
        for among in ("all", "cheaper"):
            for after in (1, 2, 3):
                print("  " + replayed(run, EarlyStop.model_validate({"among": among, "after": after}), front))


def replayed(run: Run, rule: EarlyStop, front: Sequence[Trial]) -> str:
    """A line on the rule: trials stopped, epochs saved, what is left of the front."""
    costs = [key for key, way in run.objectives.items() if way == "min"]
    ended, saved, spent = list[Trial](), 0, 0
    for trial in run.complete:
        rivals = list(no_dearer(ended, trial.metrics, costs)) if rule.among == "cheaper" else ended
        judge = Judge(rule, run.quality, rivals, len(trial.curve))
        ends = (e for e in range(1, len(trial.curve)) if trial.number and judge.verdict(trial.curve[:e]))
        epoch = next(ends, None)
        spent += len(trial.curve)
        if epoch is None:
            ended.append(trial)
        else:
            saved += len(trial.curve) - epoch
    worst = {key: 1.05 * max(t.metrics[key] for t in run.complete) for key in costs}
    reference = {key: worst.get(key, 0.0) for key in run.objectives}
    left = hypervolume(ended, run.objectives, reference) / hypervolume(
        run.complete, run.objectives, reference
    )
    numbers = {t.number for t in ended}
    lost = sum(t.number not in numbers for t in front)
    best = "kept" if top_trials(run.complete, 1)[0].number in numbers else "lost"
    return (
        f"among {rule.among:7} after {rule.after}: {len(run.complete) - len(ended):2} stopped, "
        f"{saved / spent:.0%} of the epochs saved; {lost} of the front lost, best reward {best}, "
        f"hypervolume {left:.3f}"
    )


if __name__ == "__main__":
    main()
