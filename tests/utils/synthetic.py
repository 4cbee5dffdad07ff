"""A realistic run folder without training: archs of a YOLOv5 space, figures by formula plus noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from utils.history import History, Trial

CHOICES: dict[str, list[str]] = {
    "nasconv_0": ["k6", "k4", "k8"],
    "nasconv_0_act": ["SiLU", "Identity", "ReLU"],
    "nasconv_1": ["k3", "k1", "k5"],
    "nasconv_1_act": ["SiLU", "Identity", "ReLU"],
    "c3_2_width": ["x1.0", "x1.5", "x2.0"],
    "c3_2_cv1": ["k1", "k3"],
    "nasconv_3": ["k3", "k1", "k5"],
    "nasconv_3_act": ["SiLU", "Identity", "ReLU"],
    "c3_4_width": ["x1.0", "x1.5", "x2.0"],
    "c3_4_depth": ["d2", "d1", "d3"],
    "c3_6_width": ["x1.0", "x1.5", "x2.0"],
    "c3_6_depth": ["d3", "d1", "d2"],
    "c3_8_width": ["x1.0", "x1.5", "x2.0"],
    "c3_17_width": ["x1.0", "x1.5", "x2.0"],
}
START = 1_790_000_000.0


def measure(arch: dict[str, str], rng: np.random.Generator) -> dict[str, float]:
    width = sum(float(v[1:]) for k, v in arch.items() if k.endswith("_width"))
    kernels = sum(int(v[1:]) for k, v in arch.items() if k.startswith("nasconv") and v.startswith("k"))
    depth = sum(int(v[1:]) for k, v in arch.items() if k.endswith("_depth"))
    gflops = 0.9 + 0.22 * width + 0.05 * kernels + 0.11 * depth
    bent = sum(v == "Identity" for v in arch.values())
    score = 0.40 + 0.028 * width + 0.012 * depth + 0.006 * kernels - 0.035 * bent
    score += 0.03 if arch["nasconv_0"] == "k4" else -0.02 if arch["nasconv_0"] == "k8" else 0.0
    score += float(rng.normal(0, 0.012))
    return {
        "map50_95": score,
        "map50": score * 1.25,
        "params_m": 0.8 + 0.18 * width + 0.09 * depth,
        "gflops": gflops,
        "latency_ms": 3.1 + 1.9 * gflops + float(rng.normal(0, 0.2)),
    }


def make_trials(
    n: int = 24, seed: int = 0, failed: tuple[int, ...] = (7, 15), infeasible: int = 5
) -> list[Trial]:
    """Trial 0 is the default; later ones mutate the best so far; infeasible ones are numbered -1."""
    rng = np.random.default_rng(seed)
    trials: list[Trial] = []
    clock = START
    for number in range(n):
        arch = {k: v[0] for k, v in CHOICES.items()}
        done = sorted((t for t in trials if t.state == "complete"), key=lambda t: -(t.reward or 0))
        parents: tuple[int, ...] = ()
        if 0 < number <= 8 or number and not done:
            arch = {k: str(rng.choice(v)) for k, v in CHOICES.items()}
        elif number:
            parent = done[int(rng.integers(0, min(4, len(done))))]
            parents = (parent.number,)
            arch = dict(parent.arch)
            for label in rng.choice(list(CHOICES), size=2, replace=False):
                arch[str(label)] = str(rng.choice(CHOICES[str(label)]))
        seconds = float(rng.uniform(35, 60))
        common: dict[str, Any] = {
            "number": number,
            "arch": arch,
            "seconds": seconds,
            "seed": 0,
            "parents": parents,
        }
        common["started"] = clock
        clock += seconds * 0.55
        if number in failed:
            reason = (
                "out of memory: 1.2 GiB wanted, 0.9 GiB free" if number % 2 else "loss became NaN in epoch 2"
            )
            trials.append(Trial(**common, state="failed", reason=reason))
            continue
        metrics = measure(arch, rng)
        reward = metrics["map50_95"] * (metrics["gflops"] / 4) ** -0.07
        curve = [
            {
                "epoch": e,
                "map50_95": metrics["map50_95"] * (1 - 0.8 * 0.55**e) / (1 - 0.8 * 0.55**5),
                "loss": 3.0 + 6.0 * 0.6**e,
                "seconds": seconds * (e + 1) / 6,
            }
            for e in range(6)
        ]
        trials.append(Trial(**common, metrics=metrics, reward=reward, curve=curve))
    for _ in range(infeasible):
        arch = {k: str(rng.choice(v)) for k, v in CHOICES.items()}
        trials.append(Trial(-1, arch, state="infeasible", reason="gflops 4.81 breaks the limit <= 4.5"))
    return trials


def make_run(folder: Path, trials: list[Trial], *, bare: bool = False) -> Path:
    """A run folder around them; `bare` leaves only history.jsonl, as of a foreign run."""
    folder.mkdir(parents=True, exist_ok=True)
    history = "".join(t.to_json() + "\n" for t in trials)
    History(folder / "history.jsonl").path.write_text(history)
    if bare:
        return folder
    experiment = {
        "name": folder.name,
        "space": "models/yolov5n_nas.yaml",
        "data": "data/digits.yaml",
        "imgsz": 64,
        "seed": 0,
        "train": {"epochs": 6, "batch": 16, "lr": 0.006},
        "search": {
            "strategy": {"name": "evolution", "population_size": 8},
            "max_trials": 24,
            "reward": {"name": "weighted_product", "cost": "gflops", "target": 4, "exponent": -0.07},
            "objectives": {"map50_95": "max", "gflops": "min"},
            "limits": {"gflops": "<= 4.5"},
            "top_k": 3,
        },
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    meta = {
        "versions": {"python": "3.12.4", "torch": "2.14.1", "ultralytics": "8.4.20", "nni": "3.0"},
        "device": "cpu",
        "threads": 1,
        "data": {"name": "digits", "licence": "CC BY 4.0 (UCI optical digits)", "source": "scikit-learn"},
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    run = {"pid": 999_999_999, "started": START, "state": "running"}
    run["command"] = "python hello_nas.py run experiments/yolov5_multitrial.yaml"
    (folder / "run.json").write_text(json.dumps(run))
    return folder
