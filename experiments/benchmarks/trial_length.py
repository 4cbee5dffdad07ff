"""How long has a trial to be, from scratch and from trained weights, to order networks as long trainings do?

    python experiments/benchmarks/trial_length.py ../shared/data/bccd ../shared/data/weights/yolov5n_coco.pt

Archs spread over the costs of a space are retrained on all of train, for each length anew (the rate falls
with it), and scored on val. The longest trainings from the weights are the truth: what users end with. What
was trained before is not trained again, and what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from models.networks import open_any_space  # noqa: E402
from models.sampling import spread  # noqa: E402
from utils.files import write_text  # noqa: E402
from utils.report.rank import kendall_tau, tau_interval  # noqa: E402
from utils.report.runs import read_json  # noqa: E402

SCRATCH, WEIGHTS = "scratch", "weights"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("weights")
    parser.add_argument("settings", nargs="*", help="key=value, for all trainings")
    parser.add_argument("--space", type=Path, default=ROOT / "models" / "yolov5n_nas.yaml")
    parser.add_argument("--archs", type=int, default=10)
    parser.add_argument("--epochs", type=int, nargs="+", default=[2, 6, 12, 24], help="the last is the truth")
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "trial_length")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "asked.json"
    asked = {key: str(value) for key, value in vars(args).items() if key not in ("epochs", "out")}
    if read_json(file) not in ({}, asked):
        parser.error(f"{args.out} holds trainings of something else, see {file.name}: give another --out")
    write_text(file, json.dumps(asked, indent=2) + "\n")
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for number, arch in enumerate(spread(open_any_space(args.space), args.imgsz, args.archs)):
        file = args.out / f"{number}.json"
        write_text(file, json.dumps(arch) + "\n")
        for epochs in args.epochs:
            for start in (SCRATCH, WEIGHTS):
                found.setdefault((start, epochs), []).append(trained(args, file, start, epochs))
    print(*table(found, args.epochs[-1]), sep="\n")


def trained(args: argparse.Namespace, arch: Path, start: str, epochs: int) -> dict[str, Any]:
    """The result.json of one training."""
    out = args.out / f"{arch.stem}_{start}_{epochs}"
    if not (out / "result.json").is_file():
        command = [sys.executable, str(ROOT / "hello_nas.py"), "retrain", str(arch)]
        command += ["--space", str(args.space), "--data", args.data, "--out", str(out), "train.batch=8"]
        command += [f"imgsz={args.imgsz}", f"train.epochs={epochs}", f"train.val_every={epochs}"]
        command += args.settings
        command += ["--weights", args.weights] if start == WEIGHTS else []
        command += ["--resume"] if out.is_dir() else []
        if status := subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            sys.exit(status)  # it has said why
    result: dict[str, Any] = read_json(out / "result.json")
    print(f"{out.name}: {result['metrics']['map50_95']:.4f}, {result['seconds']:.0f} s", flush=True)
    return result


def table(found: dict[tuple[str, int], list[dict[str, Any]]], longest: int) -> Iterator[str]:
    """How each short training orders the networks beside the long one of its start, and that from weights."""
    scores = {of: [r["metrics"]["map50_95"] for r in results] for of, results in found.items()}
    truth = found[WEIGHTS, longest]
    free = {"GFLOPs": [r["metrics"]["gflops"] for r in truth]}
    free["share inherited"] = [r["started_from"]["share"] for r in truth]
    yield f"| start, epochs | mean mAP | tau to {longest} epochs of this start | to {longest} from weights |"
    yield "|---|---|---|---|"
    for (start, epochs), mine in sorted(scores.items()):
        taus = [told(mine, scores[start, longest]), told(mine, scores[WEIGHTS, longest])]
        yield f"| {start}, {epochs} | {statistics.fmean(mine):.3f} | {' | '.join(taus)} |"
    for name, mine in free.items():
        yield f"| {name} | | | {told(mine, scores[WEIGHTS, longest])} |"


def told(mine: list[float], theirs: list[float]) -> str:
    low, high = tau_interval(mine, theirs)
    return f"{kendall_tau(mine, theirs):.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
