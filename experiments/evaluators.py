"""What a trial does: train the architecture it was given, measure it, write its line of history, report."""

from __future__ import annotations

import math
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.early_stop import Stopped
from experiments.engine.trial import report_final
from experiments.job import Job, baseline_costs, job_of, reward_of
from experiments.starts import source, start_facts
from experiments.training import train_and_measure
from models.nni_space import ArchSpace
from models.yolo.nas import YoloModelSpace
from utils.errors import UserError
from utils.history import Arch, Trial
from utils.limits import broken, parse_limits
from utils.training.train import TrainingFailed

OF_THE_TRAINING = ("epoch", "loss", "lr", "seconds")  # what a curve has beside scores
Measure = Callable[[Job, Arch, Path, list[dict[str, float]]], dict[str, float]]


def warm_up(run_dir: str) -> None:
    """Everything a forked trial inherits: the imports of this module, the pixels, decoded once, and the
    weights that trials start from, sorted once."""
    job = job_of(run_dir)
    for split in ("search_train", "search_val"):
        job.task.pixels.preload(job.dataset.splits[split], job.exp.imgsz)
    if job.exp.weights:
        source(Path(job.exp.weights), job.space)


def measure_of(job: Job) -> Measure:
    """What a trial that trains does: the experiment's own evaluator, or ours."""
    if job.exp.search.evaluator is None:
        return train_and_measure
    from experiments.own import measure_own

    return measure_own


def evaluate_trial(model: YoloModelSpace | ArchSpace, run_dir: str) -> None:
    """NNI's evaluator. `model` is the space frozen at this trial's architecture.

    The line of history is on disk, with the arch that really ran, before NNI hears of the result. A training
    that fails is a line too; the exception goes on to NNI, which marks the trial as failed. One that is ended
    as hopeless is `stopped`: a line with its score so far, which NNI hears of as a result.
    """
    if not Path(run_dir).is_dir():  # NNI has sent our code to another machine, and nothing else
        raise UserError(
            f"{run_dir} is not on {socket.gethostname()}: machines of a search share the run's folder"
        )
    job = job_of(run_dir)
    run_trial(model, job, measure_of(job))


def stopped_score(
    job: Job, arch: Arch, curve: Sequence[Mapping[str, float]]
) -> tuple[dict[str, float], float | None]:
    """(metrics, reward) of a training that was ended: its last scores, what it costs without measuring, and
    what the reward makes of these; None where it needs more."""
    scores = next((row for row in reversed(curve) if job.task.quality in row), {})
    metrics = {k: v for k, v in scores.items() if k not in OF_THE_TRAINING and "/" not in k}
    metrics |= job.space.cost(arch, job.exp.imgsz)
    try:
        reward = reward_of(job)(metrics)
    except UserError:
        return metrics, None
    return metrics, reward if math.isfinite(reward) else None


def run_trial(
    model: YoloModelSpace | ArchSpace,
    job: Job,
    measure: Measure,
) -> None:
    """Measure the model's arch, write its line of history, report to NNI; see `evaluate_trial`."""
    arch = model.arch
    assert arch is not None, "NNI gave a space that is not frozen"
    number, parents = job.run.asked(arch)
    job = replace(job, parents=parents, number=number)
    started, clock = time.time(), time.perf_counter()

    def line(**outcome: Any) -> Trial:
        outcome |= {"seconds": time.perf_counter() - clock, "start": start_facts(job.run.trial_dir(number))}
        return Trial(number, arch, seed=job.exp.seed, parents=parents, started=started, **outcome)

    curve: list[dict[str, float]] = []
    try:
        metrics = measure(job, arch, job.run.trial_dir(number), curve)
        try:
            reward = reward_of(job)(metrics)
        except UserError as error:
            raise TrainingFailed(str(error)) from error
        if not math.isfinite(reward):
            raise TrainingFailed(f"the reward is {reward}")
    except Stopped as stop:
        metrics, so_far = stopped_score(job, arch, curve)
        job.run.history.append(
            line(state="stopped", metrics=metrics, reward=so_far, reason=str(stop), curve=curve)
        )
        (job.run.trial_dir(number) / "checkpoint.pt").unlink(missing_ok=True)
        report_final(so_far or 0.0, metrics)
        return
    except Exception as error:
        said = isinstance(error, TrainingFailed | UserError)
        if not said:
            traceback.print_exc()  # a bug or a broken machine: NNI keeps it in the trial's stderr
        reason = str(error) if said else f"{type(error).__name__}: {error}"
        job.run.history.append(line(state="failed", reason=" ".join(reason.split()), curve=curve))
        raise
    limits = parse_limits(job.exp.search.limits, baseline_costs(job))
    # The unsearched baseline runs in any case, so it may break one.
    breaks = broken(limits, metrics)
    job.run.history.append(line(state="complete", metrics=metrics, reward=reward, reason=breaks, curve=curve))
    report_final(reward, metrics)
