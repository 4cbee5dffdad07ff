"""One set of weights for all architectures of a space: train it, take archs out of it, score them.

The step `supernet` trains it on search_train. A trial of a search then takes a second (`score_slice`): the
arch's slice is taken out, its batch norm re-estimated on training images, its score taken on search_val.
What is reported of it in the end is scored on val.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm.auto import tqdm

from data.dataset import Dataset, mixed
from experiments.config import Experiment, SampleSettings, SupernetSettings, augmentation
from experiments.evaluators import (
    Job,
    costs,
    precision_of,
    prepare,
    reward_of,
    run_trial,
    say_if_busy,
    threads_of,
    training_loader,
    weigh_losses,
    workers_of,
)
from experiments.own import measure_own
from experiments.run_folder import RunFolder
from experiments.sample import draw
from models.elastic.gradients import direct_gradients
from models.elastic.layers import running
from models.networks import build, open_any_space
from models.nni_space import ArchSpace
from models.sampling import BestOf, Phases, Sampler, Stratified, spread, subnets
from models.space import Arch, Space
from models.supernet import Supernet, calibrate, extract, load_supernet
from models.weights import load_weights, read_weights, save_weights
from utils.errors import UserError
from utils.files import write_text
from utils.history import History, Trial, arch_key
from utils.report.plots import pareto_info, save_pareto_png
from utils.report.results import write_csv
from utils.rewards import COST_KEYS
from utils.training.batch import prepare as ready
from utils.training.batch import resized
from utils.training.lessons import Lesson, SandwichLesson
from utils.training.loggers import open_loggers
from utils.training.measure import device_info
from utils.training.precision import leave_group, make_fabric
from utils.training.train import train

LIVE_IMAGES = 64  # that batch norm is re-estimated on while training goes on
BATCH_PIXELS = 2**19  # in a batch of slices, where that is more than training takes
KEEP_BYTES = 2**30  # of validation images that are kept ready in memory


def train_supernet(run: RunFolder) -> None:
    """Train the run's supernet into `supernet/weights.pt`; goes on where it was interrupted.

    Every `train.val_every` epochs the largest and the smallest arch are scored on search_val. With
    `supernet.devices`, data-parallel on several devices of this machine.
    """
    folder = run.path / "supernet"
    if (folder / "weights.pt").is_file():
        print(f"the supernet is trained: {folder / 'weights.pt'}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    job = prepare(str(run.path))
    devices, precision = settings_of(job).devices, precision_of(job)
    say_if_busy(job)
    print(
        f"supernet: {settings_of(job).subnets} on each batch, {job.exp.train.epochs} epochs, "
        f"on {f'{devices} x ' * (devices > 1)}{job.device}, {precision}"
    )
    print(augmentation(job.exp, job.exp.train))
    if devices == 1:
        train_on(make_fabric(job.device, precision), str(run.path))
    else:
        fabric = make_fabric(job.device, precision, devices, "ddp_spawn")
        fabric.launch(train_on_one_of, str(run.path))  # type: ignore[arg-type]


def train_on_one_of(fabric: Fabric, run_dir: str) -> None:
    train_on(fabric, run_dir)
    leave_group()


def train_on(fabric: Fabric, run_dir: str) -> None:
    """What each device does: train, validate live, and, the first of them, write the result."""
    job = prepare(run_dir)
    exp, space, settings = job.exp, job.space, settings_of(job)
    folder, names, quality = job.run.path / "supernet", job.dataset.names, job.task.quality
    torch.set_num_threads(max(1, threads_of(exp) // settings.devices))
    torch.manual_seed(exp.seed)
    net: Any = Supernet(space.model, space.nc, space.ch).net
    net.names = names
    weigh_losses(net, job.hyp)
    ends = {"max": space.largest(), "min": space.smallest()}
    images = calibration_images(run_dir)[:LIVE_IMAGES]

    def score(averaged: Any, last: bool) -> dict[str, float]:
        found = {}
        for kind, arch in ends.items():
            slice_ = extract(averaged, arch)
            calibrate(slice_, batches(job, images, arch), len(images))
            val_batches = search_val(run_dir, job.side(arch))
            metrics = job.task.score(slice_, val_batches, names, fabric.device, not last)
            found[f"{kind}_{quality}"] = metrics[quality]
        return found

    def on_epoch(row: dict[str, float]) -> None:
        log.log(int(row["epoch"]), row)
        line = f"supernet: epoch {row['epoch']:.0f}/{exp.train.epochs}, loss {row['loss']:.4f}, "
        scored = {kind: row[key] for kind in ends if (key := f"{kind}_{quality}") in row}
        if scored:
            line += f"{quality} of max {scored['max']:.4f}, of min {scored['min']:.4f}, "
        print(f"{line}{row['seconds']:.0f} s")

    loggers = exp.loggers if fabric.is_global_zero else []
    with open_loggers(loggers, folder, name=f"{exp.name}-supernet") as log:
        result = train(
            net,
            training_loader(job, "search_train", largest_side(job)),
            settings=exp.train,
            seed=exp.seed,
            evaluate=score,
            on_epoch=on_epoch,
            checkpoint=folder / "checkpoint.pt",
            fabric=fabric,
            lesson=lesson_of(job),
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


def check_supernet(exp: Experiment, space: Space, dataset: Dataset) -> None:
    """Raises UserError for what the `supernet:` block cannot have."""
    job = Job(RunFolder(Path(), exp), dataset, space, {})
    net: Any = Supernet(space.model, space.nc, space.ch).net
    net.names = dataset.names
    lesson_of(job)(net)
    devices, there = settings_of(job).devices, torch.cuda.device_count()
    if job.device.type == "cuda" and devices > there:
        raise UserError(f"supernet.devices is {devices}, but torch finds {there} CUDA devices here")


def settings_of(job: Job) -> SupernetSettings:
    """The experiment's `supernet:` block."""
    assert job.exp.supernet is not None  # experiments/config.py sees to it
    return job.exp.supernet


def lesson_of(job: Job) -> Callable[[Any], Lesson]:
    """The sandwich that the experiment's `supernet:` block describes."""
    exp, settings, teachers = job.exp, settings_of(job), teachers_of(job)
    one = job.space.task == "detect"
    draw = None if settings.schedule else sampler_of(job)
    phases = Phases(
        job.space, {k: (p.boundary, p.value) for k, p in settings.schedule.items()}, exp.train.epochs
    )

    def archs(step: int, epoch: int, score: Callable[[Arch], float]) -> list[Arch]:
        sampler = draw(score) if draw else None
        return subnets(settings.subnets, phases.at(epoch), exp.seed, step, sampler, one_resolution=one)

    def lesson(net: Any) -> Lesson:
        def run(arch: Mapping[str, Any]) -> None:  # of this space: set_arch would check that each time
            for layer in running(net, arch):
                layer.set_arch(arch)

        return SandwichLesson(
            net, settings.distil, run, settings.subnets, archs, teachers, direct_gradients(net)
        )

    return lesson


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
    """The networks that `supernet.distil.teachers` names by their weight files."""
    found = {}
    for name, path in settings_of(job).distil.teachers.items():
        file = read_weights(path)
        if file.space is None or not file.arch:
            raise UserError(f"teacher {name!r}: {path} does not say its architecture; use a file of ours")
        if file.names != job.dataset.names:
            raise UserError(
                f"teacher {name!r}: {path} knows the classes {file.names}, not {job.dataset.names}"
            )
        net = build(open_any_space(file.space, file.nc, file.ch), file.arch, file.names)
        load_weights(net, file, whole=True)
        found[name] = net.to(job.device)
    return found


# After the training ----------------------------------------------------------------------------------------


@functools.cache
def trained_supernet(run_dir: str) -> Supernet:
    """The run's supernet, in eval mode, on its device. UserError when it is not trained yet."""
    job = prepare(run_dir)
    path = job.run.path / "supernet" / "weights.pt"
    if not path.is_file():
        raise UserError(f"{run_dir} has no trained supernet; run its step `supernet` first")
    return load_supernet(read_weights(path), job.space, job.dataset.names).to(job.device)


@functools.cache
def calibration_images(run_dir: str) -> Tensor:
    """uint8 [N, 3, H, W]: training images, not augmented, for batch norm statistics."""
    job = prepare(run_dir)
    chosen = mixed(job.dataset.splits["search_train"], settings_of(job).calibration)
    loader = job.task.make_loader(
        chosen, job.dataset.names, largest_side(job), slice_batch(job), train=False, workers=workers_of(job)
    )
    return torch.cat([batch["img"] for batch in loader])


def batches(job: Job, images: Tensor, arch: Arch) -> Iterator[Tensor]:
    """The images in equal batches at the arch's size: float32 0..1 on the run's device."""
    for part in images.tensor_split(math.ceil(len(images) / slice_batch(job))):
        yield resized(ready({"img": part}, job.device), job.side(arch))["img"]


def slice_batch(job: Job) -> int:
    """Images in a batch of slices, which need no gradients: more where they are small."""
    return max(2 * job.exp.train.batch, BATCH_PIXELS // largest_side(job) ** 2)


def largest_side(job: Job) -> int:
    """Pixels that training images are loaded at: of the largest resolution, where it is searched."""
    return int(max(job.space.choices.get("resolution", [job.exp.imgsz])))


def sliced(job: Job, arch: Arch, calibrated: bool = True) -> Any:
    """The arch's plain network with the supernet's weights, its batch norm re-estimated, in eval mode."""
    net = trained_supernet(str(job.run.path)).extract(arch)
    if calibrated:
        images = calibration_images(str(job.run.path))
        calibrate(net, batches(job, images, arch), len(images))
    return net.eval()


def score_slice(job: Job, arch: Arch, calibrated: bool = True) -> dict[str, float]:
    """Quality of the arch's slice on search_val."""
    net = sliced(job, arch, calibrated)
    return job.task.score(
        net, search_val(str(job.run.path), job.side(arch)), job.dataset.names, job.device, False
    )


@functools.cache
def search_val(run_dir: str, side: int) -> Any:
    """Batches of search_val, kept in memory where they are few: hundreds of archs are scored on them."""
    job = prepare(run_dir)
    samples, names = job.dataset.splits["search_val"], job.dataset.names
    loader = job.task.make_loader(
        samples, names, side, slice_batch(job), train=False, workers=workers_of(job)
    )
    few = len(loader.dataset) * 3 * side**2 <= KEEP_BYTES
    return list(loader) if few else loader


def measure_slice(job: Job, arch: Arch, folder: Path, curve: list[dict[str, float]]) -> dict[str, float]:
    """What a trial of a search in the supernet measures; it leaves no files."""
    torch.set_num_threads(threads_of(job.exp))
    if job.exp.search.evaluator is not None:
        return measure_own(job, arch, folder, curve, sliced(job, arch))
    return score_slice(job, arch) | costs(job, arch)


def evaluate_slice(model: ArchSpace, run_dir: str) -> None:
    """NNI's evaluator: as experiments.evaluators.evaluate_trial, with inherited weights."""
    run_trial(model, prepare(run_dir), measure_slice)


def warm_up(run_dir: str) -> None:
    """What trials forked from one process share. Nothing here may initialise CUDA."""
    prepare(run_dir)
    calibration_images(run_dir)


def save_slices(run: RunFolder, numbers: Iterable[int]) -> None:
    """`trials/<number>/weights.pt` of these trials: what retraining, fine-tuning and export start from."""
    job = prepare(str(run.path))
    by_number = {t.number: t for t in run.history.load() if t.state == "complete"}
    for number in numbers:
        path = run.trial_dir(number) / "weights.pt"
        if number in by_number and not path.is_file():
            arch = by_number[number].arch
            path.parent.mkdir(parents=True, exist_ok=True)
            save_weights(path, sliced(job, arch), job.space, arch, imgsz=job.side(arch), sliced=True)


def sample_accuracy(run: RunFolder) -> None:
    """Score hundreds of slices, spread over the costs: `sample_accuracy/` gets history.jsonl, results.csv and
    pareto.png. Goes on where it was interrupted."""
    prepare.cache_clear()
    job = prepare(str(run.path))
    exp, wanted, folder = job.exp, job.exp.sample_accuracy, run.path / "sample_accuracy"
    torch.set_num_threads(threads_of(exp))
    archs = archs_of(job, wanted)
    folder.mkdir(exist_ok=True)
    history = History(folder / "history.jsonl")
    known = {t.key for t in history.load()}
    reward, started, fresh = reward_of(job), time.perf_counter(), 0
    bar = tqdm(archs, "sample_accuracy", unit="arch", leave=False, disable=None)
    for number, arch in enumerate(bar):
        if arch_key(arch) in known:
            continue
        fresh += 1
        at, clock = time.time(), time.perf_counter()
        metrics = measure_slice(job, arch, folder, [])
        seconds = time.perf_counter() - clock
        history.append(
            Trial(number, arch, metrics, reward(metrics), seed=exp.seed, started=at, seconds=seconds)
        )
    trials = history.load()
    write_csv(folder, trials)
    cost = next((k for k in exp.search.objectives if k in COST_KEYS), "gflops")
    save_pareto_png(pareto_info(trials, cost, quality=job.task.quality), folder / "pareto.png")
    print(
        f"sample_accuracy: {len(trials)} architectures, {fresh} of them now, in "
        f"{time.perf_counter() - started:.0f} s; {folder / 'results.csv'}"
    )


def archs_of(job: Job, wanted: SampleSettings) -> list[Arch]:
    """The archs that a `sample_accuracy:` block asks for: spread over the costs, or as it says."""
    if wanted.gflops is None and not wanted.traverse:
        return spread(job.space, job.exp.imgsz, wanted.n, job.exp.seed)
    low, high = wanted.gflops or (None, None)
    return draw(job.space, job.exp.imgsz, wanted.n, job.exp.seed, low, high, wanted.traverse).archs
