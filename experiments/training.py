"""One training of one architecture: in a trial, on search_train; in full, on all of train."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from experiments.arch_file import CALIBRATION
from experiments.config import augmentation, hyp_file
from experiments.engine.trial import report_intermediate
from experiments.job import Job, costs, loaders, precision_of, threads_of
from experiments.run_folder import command
from experiments.starts import begin, keep, source
from experiments.trained import RESULT_SCHEMA, training_images
from models.inherit import inherit
from models.space import Arch
from models.supernet import as_slice, sliced
from models.weights import read_weights, save_weights
from utils.files import write_text
from utils.report.results import one_line
from utils.training.loggers import open_loggers
from utils.training.measure import device_info
from utils.training.train import train


def train_in_full(
    job: Job,
    arch: Arch,
    folder: Path,
    weights: Path | None = None,
    *,
    kind: str = "retrain",
    calibration: int = CALIBRATION,
) -> dict[str, Any]:
    """Train `arch` on all of train, score it on val, and write what `retrain` promises into `folder`.

    Goes on from `folder/checkpoint.pt` when there is one. calibration: images that re-estimate the batch norm
    of a slice, where `weights` are a supernet's. A `finetune` sees no mosaics: it is too short to unlearn
    them (BCCD, five epochs from a slice of .480: .455 with them, .500 without).
    """
    exp, names, task, side = job.exp, job.dataset.names, job.task, job.side(arch)
    if kind == "finetune":
        job = replace(job, hyp=job.hyp | {"close_mosaic": float(exp.train.epochs)})
    torch.set_num_threads(threads_of(exp))
    torch.manual_seed(exp.seed)
    detector = job.build(arch)
    print(augmentation(exp, exp.train))
    account = None
    if weights is not None:
        file = read_weights(weights)
        if file.meta.get("supernet"):
            images = training_images(job.dataset, job.task, side, exp.train.batch, job.device, calibration)
            net = sliced(file, job.space, arch, names, images, calibration, job.device)
            file = as_slice(file, net, arch)
        account = inherit(detector, source(file, job.space), into=job.space.name)
        keep(account, weights.name, folder)
    train_loader, val_loader = loaders(job, "train", "val", side)
    folder.mkdir(parents=True, exist_ok=True)
    best_file = folder / "best.pt"
    best: dict[str, float] = read_weights(best_file).meta["best"] if best_file.is_file() else {}

    def score(net: torch.nn.Module, last: bool) -> dict[str, float]:
        metrics = task.score(net, val_loader, names, job.device, not last)
        if metrics[task.quality] > best.get(task.quality, -1.0):
            best.update({task.quality: metrics[task.quality]})
            save_weights(best_file, net, job.space, arch, imgsz=side, names=names, best=best)
        return metrics

    checkpoint = folder / "checkpoint.pt"
    with open_loggers(exp.loggers, folder, name=folder.name) as log:
        result = train(
            detector,
            train_loader,
            settings=exp.train,
            seed=exp.seed,
            device=job.device,
            evaluate=score,
            on_epoch=lambda row: log.log(int(row["epoch"]), row),
            checkpoint=checkpoint,
        )
    metrics = result.metrics | costs(job, arch)
    outcome = {
        "schema": RESULT_SCHEMA,
        "kind": kind,
        "arch": arch,
        "space": exp.space,
        "data": {"name": job.dataset.name, "source": job.dataset.source, "licence": job.dataset.licence},
        "split": "val",
        "imgsz": side,
        "seed": exp.seed,
        "train": exp.train.model_dump(mode="json"),
        "augmentation": hyp_file(exp, exp.train),
        "started_from": account.to_dict() if account else None,
        "metrics": metrics,
        "best": {
            **best,
            "note": "the best epoch on val itself, so this flatters; metrics are of the last epoch",
        },
        "seconds": result.seconds,
        "curve": result.curve,
        "command": command(),
        "versions": device_info(job.device),
    }
    save_weights(folder / "last.pt", result.detector, job.space, arch, imgsz=side, names=names, kind=kind)
    write_text(folder / "result.json", json.dumps(outcome, indent=2) + "\n")
    checkpoint.unlink(missing_ok=True)
    print(f"{folder}: {one_line(metrics)} on val after {exp.train.epochs} epochs, seed {exp.seed}")
    return outcome


def train_and_measure(job: Job, arch: Arch, folder: Path, curve: list[dict[str, float]]) -> dict[str, float]:
    """Train `arch` on search_train, score it on search_val, measure its costs; weights go to `folder`.

    curve: filled with a row an epoch while the training goes on.
    Every trial of a run has the same seed, so that architectures differ by what they are, not by luck.
    """
    exp = job.exp
    torch.set_num_threads(threads_of(exp))
    torch.manual_seed(exp.seed)
    detector = job.build(arch)
    begin(job, detector, folder)
    train_loader, val_loader = loaders(job, "search_train", "search_val", job.side(arch))

    def score(net: torch.nn.Module, last: bool) -> dict[str, float]:
        return job.task.score(net, val_loader, job.dataset.names, job.device, not last)

    def on_epoch(row: dict[str, float]) -> None:
        curve.append(row)
        log.log(int(row["epoch"]), row)
        if job.task.quality in row:
            shown = {key: row[key] for key in ("epoch", "loss")}
            report_intermediate(row[job.task.quality], shown)

    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    with open_loggers(exp.loggers, folder, name=f"{exp.name}-{folder.name}", config=arch) as log:
        result = train(
            detector,
            train_loader,
            settings=exp.train.model_copy(update={"precision": precision_of(job)}),
            seed=exp.seed,
            device=job.device,
            evaluate=score,
            on_epoch=on_epoch,
            checkpoint=checkpoint,
            progress=False,
        )
    metrics = result.metrics | costs(job, arch)
    save_weights(folder / "weights.pt", result.detector, job.space, arch, imgsz=job.side(arch))
    checkpoint.unlink(missing_ok=True)
    return metrics
