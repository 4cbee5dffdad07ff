"""Does it hurt to distil from all anchors of an SSD, as aw_nas's authors saw, not just from positive ones?

    python experiments/benchmarks/distil_anchors.py [key=value ...] [--seeds 0 1] [--epochs 8] [--out FOLDER]

The same supernet three times for each seed (`experiments/ofa_ssd.yaml` without its schedule): nobody teaches,
the largest network teaches its positive anchors, it teaches all. Then the same slices of each are scored on
search_val, batch norm re-estimated: the smallest, the largest and a few drawn uniformly.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from utils.history import History  # noqa: E402

WAYS = {
    "none": ["supernet.distil.weight=0"],
    "positive": ["supernet.distil.options.anchors=positive"],
    "all": ["supernet.distil.options.anchors=all"],
}


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiment", default="experiments/ofa_ssd.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--slices", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("runs/distil_anchors"))
    return parser.parse_known_args()


def main() -> None:
    args, overrides = arguments()
    print("| anchors | seed | smallest | largest | mean of all slices |\n|---|---|---|---|---|", flush=True)
    for seed in args.seeds:
        for way, change in WAYS.items():
            folder = args.out / f"{way}-{seed}"
            given = [f"seed={seed}", f"train.epochs={args.epochs}", "supernet.schedule={}"]
            given += [f"sample_accuracy.n={args.slices}", *change, *overrides]
            steps = ["--steps", "supernet,sample_accuracy", "--run-dir", str(folder)]
            resume = ["--resume"] if folder.exists() else []
            command = [sys.executable, str(ROOT / "hello_nas.py"), "run", args.experiment]
            status = subprocess.run([*command, *given, *steps, *resume]).returncode
            if status:
                sys.exit(status)
            trials = History(folder / "sample_accuracy" / "history.jsonl").load()
            scores = [trial.metrics["map50_95"] for trial in trials]
            (folder / "scores.json").write_text(json.dumps(scores) + "\n")
            mean = statistics.mean(scores)
            print(f"| {way} | {seed} | {scores[0]:.4f} | {scores[1]:.4f} | {mean:.4f} |", flush=True)


if __name__ == "__main__":
    main()
