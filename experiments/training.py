"""One training of one architecture: in a trial, on search_train; in full, on all of train."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.arch_file import CALIBRATION
from experiments.config import SCRATCH, augmentation, hyp_file
from experiments.early_stop import judge_of
from experiments.engine.trial import report_intermediate
from experiments.job import Job, costs, loaders, precision_of, threads_of
from experiments.measures import quality_of_files
from experiments.run_folder import command
from experiments.starts import Begun, begin, recover, recovery_seconds, told
from experiments.trained import result_of
from models.inherit import Account
from models.remember import Mimicking
from models.space import Arch
from models.weights import read_weights, save_weights
from utils.files import write_text
from utils.report.results import metrics_line
from utils.run_files import said_in
from utils.training.lessons import Lesson, Plain
from utils.training.loggers import open_loggers
from utils.training.settings import TrainSettings
from utils.training.train import train

FLATTERS = "the best epoch on val itself, so this flatters; metrics are of the last epoch"


def train_in_full(
    job: Job,
    arch: Arch,
    folder: Path,
    weights: Path | None = None,
    *,
    backbone: Path | None = None,
    kind: str = "retrain",
    start: str | None = None,
    calibration: int = CALIBRATION,
    splits: tuple[str, str] = ("train", "val"),
) -> dict[str, Any]:
    """Train `arch` on the first of `splits`, score it on the other, and write what `retrain` promises
    into `folder`.

    Goes on from `folder/checkpoint.pt` when there is one. calibration: images that re-estimate the batch norm
    of a slice, where `weights` are a supernet's. backbone: a classifier's file, whose backbone it gets.
    start: what `weights` are, for result.json: `trial`, `reignited`; by default `weights`, or `scratch`. A
    `finetune` sees no mosaics: it is too short to unlearn them (BCCD, five epochs from a slice of .480: .455
    with them, .500 without).
    """
    exp, names, side = job.exp, job.dataset.names, job.side(arch)
    settings = exp.train.evenly if kind == "finetune" else exp.train  # whose rate is low already
    if kind == "finetune":
        job = replace(job, hyp=job.hyp | {"close_mosaic": float(exp.train.epochs)})
    print(augmentation(exp, exp.train))
    detector = _fresh(job, arch)
    train_loader, val_loader = loaders(job, *splits, side)
    begun = begin(job, detector, arch, folder, weights, calibration, of_trial=start is not None)
    lesson = Plain if kind == "finetune" else prepared(job, detector, begun, train_loader, settings, folder)
    begun = begin(job, detector, arch, folder, backbone, least=0) if backbone else begun
    score, best = keeping_best(job, arch, val_loader, folder / "best.pt")
    checkpoint = folder / "checkpoint.pt"
    with open_loggers(exp.loggers, folder, name=folder.name) as log:
        result = train(
            detector,
            train_loader,
            settings=settings,
            seed=exp.seed,
            device=job.device,
            evaluate=score,
            on_epoch=lambda row: log.log(int(row["epoch"]), row),
            checkpoint=checkpoint,
            lesson=lesson,
        )
    metrics = result.metrics | costs(job, arch) | quality_of_files(job, result.detector, arch, splits[1])
    outcome = {
        **result_of(kind, arch, job.dataset, splits[1], side, metrics, job.device),
        **_settings(job, folder),
        **_start_of(begun.account if begun else None, start, folder, job),
        "best": best | {"note": FLATTERS},
        "seconds": result.seconds + recovery_seconds(folder),
        "curve": result.curve,
    }
    save_weights(folder / "last.pt", result.detector, job.space, arch, imgsz=side, names=names, kind=kind)
    write_text(folder / "result.json", json.dumps(outcome, indent=2) + "\n")
    checkpoint.unlink(missing_ok=True)
    said = f"{metrics_line(metrics)} on {splits[1]} after {exp.train.epochs} epochs, seed {exp.seed}"
    print(f"{folder}: {said}")
    return outcome


def _fresh(job: Job, arch: Arch) -> Any:
    """The network of an arch with weights of the job's seed, for this process's share of the cores."""
    torch.set_num_threads(threads_of(job.exp))
    torch.manual_seed(job.exp.seed)
    return job.build(arch)


def prepared(
    job: Job, net: Any, begun: Begun | None, loader: Any, settings: TrainSettings, folder: Path
) -> Callable[[Any], Lesson]:
    """Let a network that was cut recover, if its training is not under way; returns what batches teach.

    The teacher leaves `begun`, and so the memory where it teaches no more.
    """
    teacher = begun.taken() if begun else None
    if begun is None or teacher is None:
        return Plain
    if not (folder / "checkpoint.pt").is_file():
        recover(job, net, teacher, begun.moved, loader, settings, folder)
    if not settings.mimic:
        return Plain
    return partial(Mimicking, teacher=teacher, weight=settings.mimic, epochs=settings.epochs)


def _settings(job: Job, folder: Path) -> dict[str, Any]:
    """What a result.json says of how it was trained."""
    exp, space = job.exp, said_in(folder, Path(job.exp.space), job.run.path)
    hyp = hyp_file(exp, exp.train)
    return {
        "space": space,
        "seed": exp.seed,
        "train": exp.train.model_dump(mode="json"),
        "augmentation": hyp,
        "command": command(),
    }


def _start_of(account: Account | None, start: str | None, folder: Path, job: Job) -> dict[str, Any]:
    """What a result.json says of where its training began."""
    known = start or ("weights" if account else SCRATCH)
    return {"start": known, "started_from": told(account, folder, job.run.path) if account else None}


def keeping_best(
    job: Job, arch: Arch, val_loader: Any, file: Path
) -> tuple[Callable[[torch.nn.Module, bool], dict[str, float]], dict[str, float]]:
    """(what scores an epoch and writes the best one into `file`, the best score so far: it is kept up)."""
    best: dict[str, float] = read_weights(file).meta["best"] if file.is_file() else {}
    names, task = job.dataset.names, job.task

    def score(net: torch.nn.Module, last: bool) -> dict[str, float]:
        metrics = task.score(net, val_loader, names, job.device, not last)
        if metrics[task.quality] > best.get(task.quality, -1.0):
            best.update({task.quality: metrics[task.quality]})
            save_weights(file, net, job.space, arch, imgsz=job.side(arch), names=names, best=best)
        return metrics

    return score, best


def train_and_measure(job: Job, arch: Arch, folder: Path, curve: list[dict[str, float]]) -> dict[str, float]:
    """Train `arch` on search_train, score it on search_val, measure its costs; weights go to `folder`.

    curve: filled with a row an epoch while the training goes on.
    Raises Stopped where the search ends hopeless trials and this is one.
    Every trial of a run has the same seed, so that architectures differ by what they are, not by luck.
    """
    exp = job.exp
    detector = _fresh(job, arch)
    settings = exp.train.model_copy(update={"precision": precision_of(job)})
    begun = begin(job, detector, arch, folder)
    train_loader, val_loader = loaders(job, "search_train", "search_val", job.side(arch))
    lesson = prepared(job, detector, begun, train_loader, settings, folder)

    def score(net: torch.nn.Module, last: bool) -> dict[str, float]:
        return job.task.score(net, val_loader, job.dataset.names, job.device, not last)

    judge = judge_of(job, arch)

    def on_resume(rows: list[dict[str, float]]) -> None:
        curve[:] = rows
        if judge:
            judge.check(curve)

    def on_epoch(row: dict[str, float]) -> None:
        curve.append(row)
        log.log(int(row["epoch"]), row)
        if job.task.quality in row:
            shown = {key: row[key] for key in ("epoch", "loss")}
            report_intermediate(row[job.task.quality], shown)
        if judge:
            judge.check(curve)

    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    with open_loggers(exp.loggers, folder, name=f"{exp.name}-{folder.name}", config=arch) as log:
        result = train(
            detector,
            train_loader,
            settings=settings,
            seed=exp.seed,
            device=job.device,
            evaluate=score,
            on_epoch=on_epoch,
            on_resume=on_resume,
            checkpoint=checkpoint,
            lesson=lesson,
            progress=False,
        )
    save_weights(folder / "weights.pt", result.detector, job.space, arch, imgsz=job.side(arch))
    checkpoint.unlink(missing_ok=True)
    metrics = result.metrics | costs(job, arch)
    return metrics | quality_of_files(job, result.detector, arch, "search_val")
