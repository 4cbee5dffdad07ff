"""One training of ours against one by Ultralytics' own trainer: time, and mAP by the same evaluator.

    python experiments/benchmarks/trial_vs_ultralytics.py [--data PATH] [--imgsz 64] [--epochs 6] [--seeds 3]

Both train the same stock network (the unsearched YOLOv5n of models/yolov5n_nas.yaml) from scratch on the same
images, epochs, batch size and threads, and validate on the same images after every epoch. Each runs in a
fresh process, the two by turns, one pair for each seed. Timed from after the imports to the weights in hand:
reading the data, training, all validations. mAP is then measured by `utils.training.evaluate` on the averaged
weights of both (for Ultralytics: its best.pt, chosen on these very validation images, in its favour).

--recipe ours      (default) Ultralytics' trainer gets our optimizer, rates, warm-up and augmentation
--recipe defaults  it gets none of them: its automatic optimizer, mosaic and all
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SPACE = ROOT / "models/yolov5n_nas.yaml"
TRAINERS = ("ours", "ultralytics")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=str(ROOT / "data/digits.yaml"))
    parser.add_argument("--imgsz", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--precision", default="auto", help="of ours; Ultralytics' trainer has fp32 only on CPU"
    )
    parser.add_argument("--recipe", choices=("ours", "defaults"), default="ours")
    parser.add_argument("--one", choices=TRAINERS, help=argparse.SUPPRESS)  # what the child processes run
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.one:
        print(json.dumps(run_one(args)))
        return
    print(f"{args.data}, {args.imgsz} px, {args.epochs} epochs, batch {args.batch}, {args.threads} thread(s)")
    print(f"seed  {'trainer':<12}{'wall s':>8}{'cpu s':>8}{'mAP50-95':>10}{'mAP50':>8}")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in TRAINERS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            for name in TRAINERS if seed % 2 == 0 else TRAINERS[::-1]:
                results[name].append(in_fresh_process(name, seed, folder, args.threads))
                print(line(str(seed), name, results[name][-1]), flush=True)
    ours, theirs = (
        {key: statistics.median(r[key] for r in results[name]) for key in results[name][0]}
        for name in TRAINERS
    )
    print(line("med", "ours", ours), line("med", "ultralytics", theirs), sep="\n")
    wall, cpu = ours["wall"] / theirs["wall"], ours["cpu"] / theirs["cpu"]
    gain = ours["map50_95"] - theirs["map50_95"]
    print(
        f"ours takes {wall:.2f} of the wall time, {cpu:.2f} of the CPU time; mAP50-95 {gain:+.4f} (medians)"
    )


def line(seed: str, name: str, r: dict[str, float]) -> str:
    return f"{seed:>4}  {name:<12}{r['wall']:>8.1f}{r['cpu']:>8.1f}{r['map50_95']:>10.4f}{r['map50']:>8.4f}"


def in_fresh_process(name: str, seed: int, folder: str, threads: int) -> dict[str, float]:
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "YOLO_VERBOSE": "False"}
    command = [
        sys.executable,
        __file__,
        *sys.argv[1:],
        "--one",
        name,
        "--seed",
        str(seed),
        "--folder",
        folder,
    ]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_one(args: argparse.Namespace) -> dict[str, float]:
    """In a process of its own: train, then score on the val images."""
    import torch

    from data.dataset import open_dataset
    from data.hyp import load_hyp
    from data.loader import make_loader
    from models.yolo.detector import YoloDetector
    from models.yolo.space import YoloSpace
    from utils.training.evaluate import evaluate
    from utils.training.settings import TrainSettings

    torch.set_num_threads(args.threads)
    data = open_dataset(args.data, args.folder / "cache")
    space = YoloSpace(SPACE, nc=data.nc)
    settings = TrainSettings(epochs=args.epochs, batch=args.batch, precision=args.precision)
    hyp = load_hyp(ROOT / "data/hyps/default.yaml")
    job = (args, data, space, settings, hyp)
    if args.one == "ultralytics":
        write_yolo_layout(data, args.folder / "yolo")

    wall, cpu = time.perf_counter(), time.process_time()
    detector: YoloDetector = train_ours(*job) if args.one == "ours" else train_ultralytics(*job)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    loader = make_loader(data.splits["val"], data.names, args.imgsz, 2 * args.batch, train=False)
    metrics = evaluate(detector, loader, data.names)
    return {"wall": wall, "cpu": cpu, "map50_95": metrics["map50_95"], "map50": metrics["map50"]}


def train_ours(args: Any, data: Any, space: Any, settings: Any, hyp: dict[str, Any]) -> Any:
    import torch

    from data.loader import make_loader
    from utils.training.evaluate import QUICK, evaluate
    from utils.training.train import train

    torch.manual_seed(args.seed)
    detector = space.build(space.default(), data.names)
    detector.set_gains(**{gain: hyp[gain] for gain in ("box", "cls", "dfl")})
    train_loader = make_loader(
        data.splits["train"], data.names, args.imgsz, args.batch, train=True, hyp=hyp, seed=args.seed,
        epochs=args.epochs,
    )  # fmt: skip
    val_loader = make_loader(data.splits["val"], data.names, args.imgsz, 2 * args.batch, train=False)

    def score(net: Any, last: bool) -> dict[str, float]:
        return evaluate(net, val_loader, data.names, **({} if last else QUICK))

    return train(detector, train_loader, settings=settings, seed=args.seed, evaluate=score).detector


def train_ultralytics(args: Any, data: Any, space: Any, settings: Any, hyp: dict[str, Any]) -> Any:
    import torch
    import yaml

    from models.yolo.detector import YoloDetector
    from utils.offline import offline_font, quiet_ultralytics

    quiet_ultralytics()
    offline_font()
    from ultralytics.models.yolo.detect import DetectionTrainer

    model = args.folder / "yolov5n.yaml"
    model.write_text(yaml.safe_dump(space.stock(space.default())))
    overrides: dict[str, Any] = {
        "model": str(model), "data": str(args.folder / "yolo/data.yaml"), "imgsz": args.imgsz,
        "epochs": args.epochs, "batch": args.batch, "seed": args.seed, "device": "cpu", "workers": 0,
        "pretrained": False, "plots": False, "verbose": False, "cache": "ram", "amp": False,
        "project": str(args.folder), "name": f"stock{args.seed}",
    }  # fmt: skip
    if args.recipe == "ours":
        overrides |= {
            "optimizer": settings.optimizer, "lr0": settings.lr, "lrf": settings.lr_final,
            "momentum": settings.momentum, "weight_decay": settings.weight_decay,
            "warmup_epochs": settings.warmup_epochs, "warmup_bias_lr": settings.warmup_bias_lr,
            "nbs": args.batch, **{k: v for k, v in hyp.items() if k != "close_mosaic"}, "close_mosaic": 0,
        }  # fmt: skip
    trainer = DetectionTrainer(overrides=overrides)
    torch.set_num_threads(args.threads)  # the trainer has just set its own number
    trainer.train()
    best = torch.load(trainer.best, map_location="cpu", weights_only=False)  # written by us just now
    return YoloDetector((best["ema"] or best["model"]).float(), data.names)


def write_yolo_layout(data: Any, folder: Path) -> None:
    """The same images and boxes as Ultralytics wants to find them."""
    import yaml

    if (folder / "data.yaml").exists():
        return
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i, sample in enumerate(data.splits[split]):
            (folder / f"images/{split}/{i:06d}{sample.image.suffix}").symlink_to(sample.image.resolve())
            rows = (f"{c} {x} {y} {w} {h}" for c, (x, y, w, h) in zip(sample.cls, sample.boxes, strict=True))
            (folder / f"labels/{split}/{i:06d}.txt").write_text("\n".join(rows))
    card = {"path": str(folder), "train": "images/train", "val": "images/val", "names": data.names}
    (folder / "data.yaml").write_text(yaml.safe_dump(card))


if __name__ == "__main__":
    main()
