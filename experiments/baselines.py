"""The step `baselines`: the unsearched networks of `family:`, trained as trials are; the line to beat."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from experiments.config import SCRATCH, augmentation
from experiments.job import job_of, note_facts, reward_of
from experiments.run_folder import RunFolder
from experiments.starts import note_start, start_facts
from experiments.training import train_and_measure
from utils.errors import UserError
from utils.history import History, Trial
from utils.report.results import metrics_line
from utils.training.train import TrainingFailed

BASELINES = "baselines.jsonl"


def train_baselines(run: RunFolder) -> None:
    """Train the unsearched default of every YAML in `family:` as a trial is trained: the line to beat.

    Same data, splits, schedule and seed. In a run that also searches they go to `baselines.jsonl`, which its
    report draws beside the trials; in a run of its own they are its history.
    """
    exp, job = run.experiment, job_of(str(run.path))
    if not exp.family:
        raise UserError("the step `baselines` needs `family: [detector.yaml, ...]` in the experiment")
    note_facts(job)
    note_start(job)
    print(augmentation(exp, exp.train))
    line = History(run.path / BASELINES) if "search" in exp.steps else run.history
    known = {t.arch["model"] for t in line.load() if t.state == "complete"}
    for number, member in enumerate(exp.family):
        scratch = member.weights == SCRATCH
        name = Path(member.space).stem + (" from scratch" if scratch else "")
        folder = run.path / "baselines" / name.replace(" ", "-")
        if name in known:
            continue
        mine = job.changed(space=member.space, weights=None if scratch else member.weights or exp.weights)
        arch = mine.space.default()
        gflops = mine.space.cost(arch, exp.imgsz)["gflops"]
        print(f"baseline {name}: {gflops:.4g} GFLOPs, {exp.train.epochs} epochs")
        started, clock = time.time(), time.perf_counter()
        curve: list[dict[str, float]] = []
        outcome: dict[str, Any]
        try:
            metrics = train_and_measure(mine, arch, folder, curve)
            outcome = {"metrics": metrics, "reward": reward_of(job)(metrics)}
        except TrainingFailed as error:
            outcome = {"state": "failed", "reason": str(error)}
        seconds = time.perf_counter() - clock
        # The default archs of n and s are equal as choices, so these go by the name of their file.
        trial = Trial(
            number,
            {"model": name},
            **outcome,
            seconds=seconds,
            seed=exp.seed,
            started=started,
            curve=curve,
            start=start_facts(folder),
        )
        line.append(trial)
        print(f"baseline {name}: {trial.reason or metrics_line(trial.metrics)}")
