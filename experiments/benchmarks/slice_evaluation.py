"""What it costs to score an architecture: as a slice of a trained supernet, against training it.

    python experiments/benchmarks/slice_evaluation.py [--experiment experiments/yolov5_supernet.yaml]
        [--rounds 3] [--epochs 6] [--threads 1] [--set data=D --set imgsz=160]

The training is a trial's of a multi-trial search (`train_and_measure`: --epochs epochs, a validation after
each), the slice a trial's of a search in the supernet (`measure_slice`: take it out, re-estimate its batch
norm, score it). Both on the same random archs, by turns, in one process with its images in memory. The
supernet behind it is trained for one epoch, since how good it is takes no part in how long a slice takes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from experiments.config import load_experiment  # noqa: E402
from experiments.job import job_of  # noqa: E402
from experiments.run_folder import RunFolder  # noqa: E402
from experiments.slices import measure_slice  # noqa: E402
from experiments.supernet import train_supernet  # noqa: E402
from experiments.training import train_and_measure  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiment", type=Path, default=ROOT / "experiments/yolov5_supernet.yaml")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="key=value of the experiment")
    args = parser.parse_args()
    changes = [*args.set, f"threads={args.threads}", "train.epochs=1"]
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(Path(folder) / "run", load_experiment(args.experiment, changes))
        train_supernet(run)
        job = job_of(str(run.path))
        longer = job.exp.train.model_copy(update={"epochs": args.epochs})
        alone = replace(job, run=RunFolder(run.path, job.exp.model_copy(update={"train": longer})))
        rng = np.random.default_rng(0)
        measure_slice(job, job.space.default(), run.path, [])  # loads the images
        trained, sliced = [], []
        for i in range(args.rounds):
            arch = job.space.random(rng)
            start = time.perf_counter()
            train_and_measure(alone, arch, run.path / f"{i}", [])
            trained.append(time.perf_counter() - start)
            for _ in range(3):
                start = time.perf_counter()
                measure_slice(job, arch, run.path, [])
                sliced.append(time.perf_counter() - start)
            print(f"arch {i}: trained in {trained[-1]:.1f} s, scored as a slice in {sliced[-1]:.2f} s")
    long, short = statistics.median(trained), statistics.median(sliced)
    print(f"medians: {long:.1f} s against {short:.2f} s, {long / short:.0f} times cheaper")


if __name__ == "__main__":
    main()
