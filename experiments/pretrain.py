"""The step `pretrain`: a backbone learns to classify before it is part of a detector (DetNAS, 1903.10979).

The network is a classifier over the very same backbone, its pictures those of an ImageFolder or the objects
of the detection data, cut out. What it learns is handed over through models/inherit.py.

    pretrain(run)  # the supernet's backbone, one path a batch; then comes `supernet`
    pretrain_arch(job, arch, folder, weights)  # one arch's: for retraining, and for whoever grows networks
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from data.crops import crops_of
from data.dataset import open_dataset
from data.hyp import load_hyp
from data.sample import Dataset
from experiments.arch_file import is_result
from experiments.config import Experiment, PretrainSettings, SupernetSettings, hyp_file, pretrain_settings
from experiments.job import Job, job_of
from experiments.run_folder import RunFolder
from experiments.slices import batches, some_images
from experiments.supernet import LIVE_IMAGES, announced, launch, train_shared
from experiments.training import train_in_full
from models.networks import open_any_space
from models.space import Arch, Space, check_side
from models.supernet import calibrate, extract
from utils.files import own_json
from utils.run_files import Files
from utils.sides import longer

LEAST_SIDE = 32  # pixels of a picture


def pretrain(run: RunFolder) -> None:
    """Train the backbone of the run's supernet as a classifier into `pretrain/weights.pt`, on the images that
    the supernet is trained on; goes on where it was interrupted.

    First its unsearched path learns alone (`pretrain.alone`), then all paths, which begin as it, one drawn
    uniformly for each batch. Paths that begin at random make what follows them see other features with every
    batch: for the first hundreds of batches nothing is learnt.
    """
    job, files = classifier_of_supernet(job_of(str(run.path))), Files(run.path)
    print(job.dataset.summary())
    if alone_epochs(job.exp) and not files.pretrained.is_file():
        learn_alone(job, files.pretrained_alone.parent)
    if announced(with_epochs(job, job.exp.train.epochs - alone_epochs(job.exp)), files.pretrain, "pretrain"):
        launch(job, pretrain_on)


def alone_epochs(exp: Experiment) -> int:
    """Epochs of a pre-training's `train` in which the unsearched path learns alone."""
    settings = exp.pretrain or PretrainSettings()
    return min(exp.train.epochs - 1, round(settings.alone * exp.train.epochs))


def with_epochs(job: Job, epochs: int) -> Job:
    """The job with another number of epochs; the augmentation stays."""
    train = job.exp.train.model_copy(update={"epochs": epochs})
    return replace(job, run=RunFolder(job.run.path, job.exp.model_copy(update={"train": train})))


def learn_alone(job: Job, folder: Path) -> None:
    """Train the unsearched path of a classifier's supernet on the images of the search, into `folder`; goes
    on where it was interrupted, and is not repeated."""
    if (folder / "result.json").is_file():
        return
    job = with_epochs(job, alone_epochs(job.exp))
    print(f"pretrain: {job.exp.train.epochs} epochs of the unsearched path alone, as which all paths begin")
    train_in_full(job, job.space.default(), folder, kind="pretrain", splits=("search_train", "search_val"))


def pretrain_on(fabric: Fabric, run_dir: str) -> None:
    """What each device does."""
    job = classifier_of_supernet(job_of(run_dir))
    job = with_epochs(job, job.exp.train.epochs - alone_epochs(job.exp))
    images = some_images(job, LIVE_IMAGES)
    val = list(
        job.task.make_loader(
            job.dataset.splits["search_val"],
            job.dataset.names,
            job.exp.imgsz,
            2 * job.exp.train.batch,
            train=False,
        )
    )

    def score(averaged: Any, last: bool) -> dict[str, float]:
        """Of the unsearched arch's slice."""
        slice_ = extract(averaged, job.space.default())
        calibrate(slice_, batches(job, images, {}), len(images))
        return job.task.score(slice_, val, job.dataset.names, fabric.device, not last)

    files, starts = Files(job.run.path), [Path(job.exp.weights)] if job.exp.weights else []
    starts += [files.pretrained_alone] if files.pretrained_alone.is_file() else []
    train_shared(job, files.pretrain, fabric, starts, score, "pretrain")


def pretrain_arch(job: Job, arch: Arch, folder: Path, weights: Path | None = None) -> Path:
    """Train the backbone of one arch as a classifier, by the job's `pretrain:` block (its defaults where
    there is none), on all of train; goes on where it was interrupted, and is not repeated.

    job:     of the detector, as are `arch` and `weights`, whose backbone it starts from; None: from where the
             experiment's trainings start, else from scratch
    Returns `folder/last.pt`. `experiments.starts.begin(job, net, arch, folder, it, least=0)` gives its
    backbone to a detector; `folder/result.json` says how well it classifies.
    """
    job = classifier_job(job)
    before = own_json(folder / "result.json", is_result)
    if before.get("train") != job.exp.train.model_dump(mode="json") or not (folder / "last.pt").is_file():
        train_in_full(job, backbone_alone(job.space, arch), folder, weights, kind="pretrain")
    return folder / "last.pt"


def backbone_of(job: Job, arch: Arch, folder: Path, weights: Path | None) -> Path | None:
    """The backbone that the retraining in `folder` begins with, trained now where `pretrain.winners` asks for
    it; else None."""
    settings = job.exp.pretrain
    return pretrain_arch(job, arch, folder / "pretrain", weights) if settings and settings.winners else None


def classifier_job(job: Job) -> Job:
    """The job of classifying with the same backbones: data, space, image side and schedule."""
    settings = job.exp.pretrain or PretrainSettings()
    if settings.data:
        seed, fraction = job.exp.seed, job.exp.search.val_fraction
        dataset = open_dataset(
            settings.data, job.run.cache, seed=seed, val_fraction=fraction, task="classify"
        )
    else:
        dataset = crops_of(job.dataset)
    options = {"label_smoothing": settings.label_smoothing, "last_channel": settings.last_channel}
    space = open_any_space(job.space.classifier(options), dataset.nc)
    least = max(1, LEAST_SIDE // space.stride)
    side = settings.imgsz or space.stride * max(least, longer(job.exp.imgsz) // 2 // space.stride)
    check_side(side, space.stride)
    exp = job.exp.model_copy(update={"train": pretrain_settings(job.exp), "imgsz": side, "refit": 0})
    hyp = load_hyp(hyp_file(exp, exp.train))
    return replace(job, run=RunFolder(job.run.path, exp), dataset=dataset, space=space, hyp=hyp, parents=())


def classifier_of_supernet(job: Job) -> Job:
    """The same for a supernet: one path a batch, and nobody teaches."""
    job = classifier_job(job)
    given = job.exp.supernet
    assert given is not None  # experiments/config.py sees to it
    supernet = SupernetSettings.model_validate(
        {"subnets": ["random"], "distil": {"weight": 0}, "devices": given.devices}
    )
    exp = job.exp.model_copy(update={"supernet": supernet})
    return replace(job, run=RunFolder(job.run.path, exp))


def backbone_alone(space: Space, arch: Mapping[str, Any]) -> Arch:
    """The arch of a detector as one of the classifiers `space`: without the genes of its neck and head."""
    genes = {label: value for label, value in arch.items() if label in space.choices}
    return space.canonical(genes if len(genes) or not space.choices else arch)


def check_pretrain(exp: Experiment, space: Space, dataset: Dataset, cache: Path) -> None:
    """Raises UserError for what the `pretrain:` block cannot have."""
    run = RunFolder(cache.parent / "any", exp)
    with torch.random.fork_rng(devices=[]):
        job = classifier_job(Job(run, dataset, space, {}))
        job.space.build(job.space.default())
