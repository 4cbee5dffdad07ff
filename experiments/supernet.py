"""The step `supernet`: one set of weights for all architectures of a space, trained on search_train.

What is taken out of it afterwards is in slices.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from data.sample import Dataset
from experiments.arch_file import open_arch_file
from experiments.config import Experiment, augmentation
from experiments.job import (
    Job,
    job_of,
    precision_of,
    say_if_busy,
    threads_of,
    training_loader,
    weigh_losses,
)
from experiments.run_folder import RunFolder
from experiments.slices import batches, calibration_images, largest_side, search_val, settings_of
from experiments.starts import keep_account
from experiments.trained import trained
from models.elastic.gradients import direct_gradients
from models.elastic.layers import running
from models.networks import build, open_any_space
from models.sampling import BestOf, Phases, Sampler, Stratified, subnets
from models.space import Arch, Space
from models.supernet import Supernet, calibrate, extract, importance, inherit_supernet
from models.weights import load_weights, read_weights, save_weights
from utils.errors import UserError
from utils.files import write_text
from utils.run_files import Files
from utils.training.lessons import Lesson, SandwichLesson
from utils.training.loggers import open_loggers
from utils.training.measure import device_info
from utils.training.optimize import Orders
from utils.training.precision import leave_group, make_fabric
from utils.training.settings import Final
from utils.training.train import train

LIVE_IMAGES = 64  # that batch norm is re-estimated on while training goes on


def train_supernet(run: RunFolder) -> None:
    """Train the run's supernet into `supernet/weights.pt`; goes on where it was interrupted.

    Every `train.val_every` epochs the largest and the smallest arch are scored on search_val. With
    `supernet.devices`, data-parallel on several devices of this machine. It starts from the experiment's
    `weights`, and its backbone from what the step `pretrain` has made of it.
    """
    job, files = job_of(str(run.path)), Files(run.path)
    if announced(job, files.supernet, "supernet"):
        launch(job, train_on)


def announced(job: Job, folder: Path, what: str) -> bool:
    """Say what is trained into a folder; False where it is trained."""
    if (folder / "weights.pt").is_file():
        print(f"the {what} is trained: {folder / 'weights.pt'}")
        return False
    folder.mkdir(parents=True, exist_ok=True)
    devices, precision = settings_of(job).devices, precision_of(job)
    say_if_busy(job)
    print(
        f"{what}: {settings_of(job).subnets} on each batch, {job.exp.train.epochs} epochs, "
        f"on {f'{devices} x ' * (devices > 1)}{job.device}, {precision}"
    )
    print(augmentation(job.exp, job.exp.train))
    return True


def launch(job: Job, work: Callable[[Fabric, str], None]) -> None:
    """Call `work` with the run's folder on each of the devices that the `supernet:` block asks for."""
    devices, precision, run_dir = settings_of(job).devices, precision_of(job), str(job.run.path)
    if devices == 1:
        work(make_fabric(job.device, precision), run_dir)
    else:
        fabric = make_fabric(job.device, precision, devices, "ddp_spawn")
        fabric.launch(work_on_one_of, work, run_dir)  # type: ignore[arg-type]


def work_on_one_of(fabric: Fabric, work: Callable[[Fabric, str], None], run_dir: str) -> None:
    work(fabric, run_dir)
    leave_group()


def train_on(fabric: Fabric, run_dir: str) -> None:
    """What each device does for the supernet."""
    job = job_of(run_dir)
    files, given = Files(job.run.path), job.exp.weights
    starts = [Path(given)] if given else []
    starts += [files.pretrained] if files.pretrained.is_file() else []
    train_shared(job, files.supernet, fabric, starts, scorer_of(job, fabric.device), "supernet")


def train_shared(
    job: Job,
    folder: Path,
    fabric: Fabric,
    starts: Sequence[Path],
    score: Callable[[Any, bool], dict[str, float]],
    what: str,
) -> None:
    """Train one set of weights for all archs of a job's space into `folder/weights.pt`: what each device
    does; the first of them writes the result. starts: weight files, each of which gives what it has."""
    exp, space, settings = job.exp, job.space, settings_of(job)
    torch.set_num_threads(max(1, threads_of(exp) // settings.devices))
    torch.manual_seed(exp.seed)
    supernet = Supernet(space.model, space.nc, space.ch)
    net: Any = supernet.net
    net.names = job.dataset.names
    for start in starts:
        account = inherit_supernet(supernet, read_weights(start), least=0)
        if fabric.is_global_zero:
            keep_account(account, start.name, folder, job.run.path)
    weigh_losses(net, job.hyp)

    def on_epoch(row: dict[str, float]) -> None:
        log.log(int(row["epoch"]), row)
        print(epoch_line(row, exp.train.epochs, job.task.quality, what))

    loggers = exp.loggers if fabric.is_global_zero else []
    with open_loggers(loggers, folder, name=f"{exp.name}-{what}") as log:
        result = train(
            net,
            training_loader(job, "search_train", largest_side(job)),
            settings=exp.train if exp.weights else exp.train.evenly,  # a backbone pre-trained here learns on
            seed=exp.seed,
            evaluate=score,
            on_epoch=on_epoch,
            checkpoint=folder / "checkpoint.pt",
            fabric=fabric,
            lesson=lesson_of(job, print if fabric.is_global_zero else None),
            about={"space": space.model, "supernet": settings.model_dump(mode="json", exclude={"devices"})},
        )
    if not fabric.is_global_zero:
        return
    outcome = {
        "metrics": result.metrics,
        "seconds": result.seconds,
        "steps": result.steps,
        "curve": result.curve,
        "versions": device_info(fabric.device),
    }
    write_text(folder / "result.json", json.dumps(outcome, indent=2) + "\n")
    how = exp.train.model_dump(mode="json")
    path = folder / "weights.pt"
    save_weights(path, result.detector, space, {}, imgsz=exp.imgsz, supernet=True, train=how)
    (folder / "checkpoint.pt").unlink(missing_ok=True)


def scorer_of(job: Job, device: torch.device) -> Callable[[Any, bool], dict[str, float]]:
    """What scores the slices of the largest and the smallest arch on search_val while training goes on."""
    run_dir, quality = str(job.run.path), job.task.quality
    extremes = {"max": job.space.largest(), "min": job.space.smallest()}
    images = calibration_images(run_dir)[:LIVE_IMAGES]

    def score(averaged: Any, last: bool) -> dict[str, float]:
        found = {}
        for kind, arch in extremes.items():
            slice_ = extract(averaged, arch)
            calibrate(slice_, batches(job, images, arch), len(images))
            val_batches = search_val(run_dir, job.side(arch))
            metrics = job.task.score(slice_, val_batches, job.dataset.names, device, not last)
            found[f"{kind}_{quality}"] = metrics[quality]
        return found

    return score


def epoch_line(row: Mapping[str, float], epochs: int, quality: str, what: str = "supernet") -> str:
    """An epoch for the terminal: `supernet: epoch 3/8, loss 4.1, map50_95 of max .3, of min .2, 12 s`."""
    line = f"{what}: epoch {row['epoch']:.0f}/{epochs}, loss {row['loss']:.4f}, "
    if quality in row:
        line += f"{quality} of the unsearched {row[quality]:.4f}, "
    if f"max_{quality}" in row:
        scores = (row[f"{kind}_{quality}"] for kind in ("max", "min"))
        line += "{} of max {:.4f}, of min {:.4f}, ".format(quality, *scores)
    return f"{line}{row['seconds']:.0f} s"


def check_supernet(exp: Experiment, space: Space, dataset: Dataset) -> None:
    """Raises UserError for what the `supernet:` block cannot have."""
    job = Job(RunFolder(Path(), exp), dataset, space, {})
    net: Any = Supernet(space.model, space.nc, space.ch).net
    net.names = dataset.names
    lesson_of(job)(net)
    devices, there = settings_of(job).devices, torch.cuda.device_count()
    if job.device.type == "cuda" and devices > there:
        raise UserError(f"supernet.devices is {devices}, but torch finds {there} CUDA devices here")


def lesson_of(job: Job, say: Callable[[str], Any] | None = None) -> Callable[[Any], Lesson]:
    """The sandwich that the experiment's `supernet:` block describes. say: where what it does is told."""
    exp, settings, teachers = job.exp, settings_of(job), teachers_of(job)
    one = job.space.task == "detect"
    draw = None if settings.schedule else sampler_of(job)
    phases = phases_of(job)

    def archs(step: int, epoch: int, score: Callable[[Arch], float]) -> list[Arch]:
        sampler = draw(score) if draw else None
        return subnets(settings.subnets, phases.at(epoch), exp.seed, step, sampler, one_resolution=one)

    def lesson(net: Any) -> Lesson:
        def run(arch: Mapping[str, Any]) -> None:  # of this space: set_arch would check that each time
            for layer in running(net, arch):
                layer.set_arch(arch)

        return SandwichLesson(
            net,
            settings.distil,
            run,
            settings.subnets,
            archs,
            teachers,
            direct_gradients(net),
            preparation(net, job.space, phases, say or (lambda line: None)),
            job.side,
        )

    return lesson


def preparation(net: Any, space: Space, phases: Phases, say: Callable[[str], Any]) -> Callable[[int], Orders]:
    """What happens before each epoch: what is drawn from then on is told, and before the first with narrower
    widths the most important channels, which the narrow networks will have, come first."""
    told = False

    def prepare(epoch: int) -> Orders:
        nonlocal told
        if phases.schedule and (not told or phases.changes(epoch)):
            say(f"supernet: from epoch {epoch} on {phases.said(epoch)}")
        told = True
        if epoch == 1 or not phases.changes(epoch):
            return {}
        orders = importance(net, space, lambda labels: phases.first_below(labels) == epoch)
        if orders:
            say(
                f"supernet: the channels of {len(orders)} tensors sorted by importance before widths shrink; "
                "the largest network computes the same"
            )
        return orders

    return prepare


def phases_of(job: Job) -> Phases:
    """What is drawn when, by `supernet.schedule`. Raises UserError for one that does not fit the space."""
    schedule = {k: (p.boundary, p.value) for k, p in settings_of(job).schedule.items()}
    return Phases(job.space, schedule, job.exp.train.epochs)


def sampler_of(job: Job) -> Callable[[Callable[[Arch], float]], Sampler]:
    """How random archs are drawn while the supernet trains, given what scores one on the batch at hand."""
    sampling = settings_of(job).sampling
    if sampling.name == "uniform":
        return lambda score: job.space.random
    strata = Stratified(job.space, job.exp.imgsz, job.exp.seed, sampling.bins, sampling.pool, sampling.key)
    if sampling.name == "stratified":
        return lambda score: strata
    sign = -1 if sampling.worst else 1
    return lambda score: BestOf(strata, lambda arch: sign * score(arch), sampling.k)


def teachers_of(job: Job) -> dict[str, Any]:
    """The networks that `supernet.distil.teachers` names by their files, on the job's device."""
    found = {}
    for name, said in settings_of(job).distil.teachers.items():
        try:
            found[name] = _teacher(job, said).to(job.device)
        except UserError as error:
            raise UserError(f"teacher {name!r}: {error}") from None
    return found


def _teacher(job: Job, said: str | Final) -> Any:
    """By a file that says what network its weights are of, or by an architecture file and weights."""
    names = job.dataset.names
    if isinstance(said, Final):
        found = open_arch_file(Path(said.arch))
        space = open_any_space(found.space, nc=job.dataset.nc)
        return trained(space, found.arch, Path(said.weights), names, (found, job.exp, job.dataset))[0]
    file = read_weights(said)
    if file.space is None or not file.arch:
        raise UserError(
            f"{said} does not say its architecture; give {{arch: ARCH.json, weights: {Path(said).name}}}"
        )
    if file.names != names:
        raise UserError(f"{said} knows the classes {file.names}, not {names}")
    net = build(open_any_space(file.space, file.nc, file.ch), file.arch, file.names)
    load_weights(net, file, whole=True)
    return net
