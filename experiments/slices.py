"""What a trained supernet gives: slices taken out, their batch norm re-estimated, scored and kept.

A trial takes a second. Scores here are on search_val; what reports say in the end is scored on val.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from data.sample import mixed
from experiments.config import SampleSettings, SupernetSettings
from experiments.evaluators import run_trial
from experiments.job import Job, costs, job_of, reward_of, threads_of, workers_of
from experiments.measures import quality_of_files
from experiments.own import measure_own
from experiments.run_folder import RunFolder
from experiments.sample import draw
from models.nni_space import ArchSpace
from models.sampling import spread
from models.space import Arch
from models.supernet import Supernet, calibrate, load_supernet
from models.weights import read_weights, save_weights
from utils.errors import UserError
from utils.history import History, Trial, arch_key
from utils.report.plots import pareto_info, save_pareto_png
from utils.report.results import write_csv
from utils.rewards import COST_KEYS
from utils.run_files import Files
from utils.sides import Sides, area
from utils.training.batch import resized, to_device

BATCH_PIXELS = 2**19  # in a batch of slices, where that is more than training takes
KEEP_BYTES = 2**30  # of validation images that are kept ready in memory


def settings_of(job: Job) -> SupernetSettings:
    """The experiment's `supernet:` block."""
    assert job.exp.supernet is not None  # experiments/config.py sees to it
    return job.exp.supernet


@functools.cache
def trained_supernet(run_dir: str) -> Supernet:
    """The run's supernet, in eval mode, on its device. UserError when it is not trained yet."""
    job = job_of(run_dir)
    path = Files(job.run.path).supernet_weights
    if not path.is_file():
        raise UserError(f"{run_dir} has no trained supernet; run its step `supernet` first")
    return load_supernet(read_weights(path), job.space, job.dataset.names).to(job.device)


@functools.cache
def calibration_images(run_dir: str) -> Tensor:
    """uint8 [N, 3, H, W]: training images, not augmented, for batch norm statistics."""
    job = job_of(run_dir)
    return some_images(job, settings_of(job).calibration)


def some_images(job: Job, n: int) -> Tensor:
    """uint8 [n, 3, H, W]: images of search_train, not augmented."""
    chosen = mixed(job.dataset.splits["search_train"], n)
    loader = job.task.make_loader(
        chosen, job.dataset.names, largest_side(job), slice_batch(job), train=False, workers=workers_of(job)
    )
    return torch.cat([batch["img"] for batch in loader])


def batches(job: Job, images: Tensor, arch: Arch) -> Iterator[Tensor]:
    """The images in equal batches at the arch's size: float32 0..1 on the run's device."""
    for part in images.tensor_split(math.ceil(len(images) / slice_batch(job))):
        yield resized(to_device({"img": part}, job.device), job.side(arch))["img"]


def slice_batch(job: Job) -> int:
    """Images in a batch of slices, which need no gradients: more where they are small."""
    return max(2 * job.exp.train.batch, BATCH_PIXELS // area(largest_side(job)))


def largest_side(job: Job) -> Sides:
    """Pixels that training images are loaded at: of the largest resolution, where it is searched."""
    sides = job.space.choices.get("resolution")
    return job.side({"resolution": max(sides)} if sides else {})


def sliced(job: Job, arch: Arch, calibrated: bool = True) -> Any:
    """The arch's plain network with the supernet's weights, its batch norm re-estimated, in eval mode."""
    net = trained_supernet(str(job.run.path)).extract(arch)
    if calibrated:
        images = calibration_images(str(job.run.path))
        calibrate(net, batches(job, images, arch), len(images))
    return net.eval()


def score_slice(job: Job, arch: Arch, net: Any = None, calibrated: bool = True) -> dict[str, float]:
    """Quality of the arch's slice on search_val. net: where it is taken out already."""
    net = sliced(job, arch, calibrated) if net is None else net
    return job.task.score(
        net, search_val(str(job.run.path), job.side(arch)), job.dataset.names, job.device, False
    )


@functools.cache
def search_val(run_dir: str, side: Sides) -> Any:
    """Batches of search_val, kept in memory where they are few: hundreds of archs are scored on them."""
    job = job_of(run_dir)
    samples, names = job.dataset.splits["search_val"], job.dataset.names
    loader = job.task.make_loader(
        samples, names, side, slice_batch(job), train=False, workers=workers_of(job)
    )
    few = len(loader.dataset) * 3 * area(side) <= KEEP_BYTES
    return list(loader) if few else loader


def measure_slice(job: Job, arch: Arch, folder: Path, curve: list[dict[str, float]]) -> dict[str, float]:
    """What a trial of a search in the supernet measures; it leaves no files."""
    torch.set_num_threads(threads_of(job.exp))
    if job.exp.search.evaluator is not None:
        return measure_own(job, arch, folder, curve, sliced(job, arch))
    net = sliced(job, arch)
    return score_slice(job, arch, net) | costs(job, arch) | quality_of_files(job, net, arch, "search_val")


def evaluate_slice(model: ArchSpace, run_dir: str) -> None:
    """NNI's evaluator: as experiments.evaluators.evaluate_trial, with inherited weights."""
    run_trial(model, job_of(run_dir), measure_slice)


def warm_up(run_dir: str) -> None:
    """What trials forked from one process share. Nothing here may initialise CUDA."""
    job_of(run_dir)
    calibration_images(run_dir)


def save_slices(run: RunFolder, numbers: Iterable[int]) -> None:
    """`trials/<number>/weights.pt` of these trials: what retraining, fine-tuning and export start from."""
    job = job_of(str(run.path))
    by_number = {t.number: t for t in run.history.load() if t.state == "complete"}
    for number in numbers:
        path = run.trial_dir(number) / "weights.pt"
        if number in by_number and not path.is_file():
            save_slice(job, by_number[number].arch, path)


def save_slice(job: Job, arch: Arch, path: Path) -> None:
    """The weights of an arch's slice, its batch norm re-estimated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, sliced(job, arch), job.space, arch, imgsz=job.side(arch), sliced=True)


def sample_accuracy(run: RunFolder) -> None:
    """Score hundreds of slices, spread over the costs: `sample_accuracy/` gets history.jsonl, results.csv and
    pareto.png. Goes on where it was interrupted."""
    job_of.cache_clear()
    job = job_of(str(run.path))
    exp, wanted, folder = job.exp, job.exp.sample_accuracy, Files(run.path).sampled
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
