"""What a trial does: train the architecture it was given, measure it, write its line of history, report."""

from __future__ import annotations

import functools
import logging
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data.dataset import Dataset
from data.hyp import load_hyp
from experiments.config import Experiment, hyp_file
from experiments.engine.gpus import gpus_to_share, training_device
from experiments.engine.trial import report_final, report_intermediate
from experiments.inputs import open_data, open_space
from experiments.run_folder import RunFolder
from experiments.tasks import TASKS, Task
from models.networks import build
from models.nni_space import ArchSpace
from models.space import Space
from models.weights import save_weights
from models.yolo.nas import YoloModelSpace
from utils.cores import hint_if_busy, threads_each
from utils.errors import UserError
from utils.history import Arch, Trial
from utils.limits import broken, parse_limits
from utils.rewards import COST_KEYS, build_reward
from utils.training.loggers import open_loggers
from utils.training.measure import Calibration, calibrate, device_info, latency, resolve_device
from utils.training.precision import choose_precision
from utils.training.settings import TrainSettings
from utils.training.train import TrainingFailed, train

log = logging.getLogger(__name__)
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Job:
    """What all trials of a run share."""

    run: RunFolder
    dataset: Dataset
    space: Space
    hyp: dict[str, float]

    @property
    def exp(self) -> Experiment:
        return self.run.experiment

    @property
    def device(self) -> torch.device:
        return resolve_device(training_device(self.exp.device))

    @property
    def task(self) -> Task:
        return TASKS[self.space.task]

    def build(self, arch: Arch) -> Any:
        """The network of an arch, fresh weights of torch's generator, its loss weighed as `hyp` says."""
        net = build(self.space, arch, self.dataset.names)
        weigh_losses(net, self.hyp)
        return net

    def side(self, arch: Arch) -> int:
        """Pixels of the square images that an arch works on."""
        return int(arch.get("resolution", self.exp.imgsz))


Measure = Callable[[Job, Arch, Path, list[dict[str, float]]], dict[str, float]]


def weigh_losses(net: Any, hyp: dict[str, float]) -> None:
    """Give a network whose loss has gains (YOLO's) those of the augmentation file."""
    if hasattr(net, "set_gains"):
        net.set_gains(**{gain: hyp[gain] for gain in ("box", "cls", "dfl")})


@functools.cache
def prepare(run_dir: str) -> Job:
    """Open a run for its trials. Initialises no CUDA, so a process that did this can still be forked."""
    run = RunFolder.open(Path(run_dir))
    exp = run.experiment
    dataset = open_data(exp, run.cache)
    return Job(run, dataset, open_space(exp, dataset), load_hyp(hyp_file(exp, exp.train)))


def with_schedule(job: Job, settings: TrainSettings, seed: int | None = None) -> Job:
    """The same job trained otherwise, with the augmentation that this schedule asks for."""
    changes = {"train": settings, "seed": job.exp.seed if seed is None else seed}
    run = RunFolder(job.run.path, job.exp.model_copy(update=changes))
    return replace(job, run=run, hyp=load_hyp(hyp_file(job.exp, settings)))


def warm_up(run_dir: str) -> None:
    """Everything a forked trial inherits: the imports of this module, and the pixels, decoded once."""
    job = prepare(run_dir)
    for split in ("search_train", "search_val"):
        job.task.pixels.preload(job.dataset.splits[split], job.exp.imgsz)


def measure_of(job: Job) -> Measure:
    """What a trial that trains does: the experiment's own evaluator, or ours."""
    if job.exp.search.evaluator is None:
        return train_and_measure
    from experiments.own import measure_own

    return measure_own


def evaluate_trial(model: YoloModelSpace | ArchSpace, run_dir: str) -> None:
    """NNI's evaluator. `model` is the space frozen at this trial's architecture.

    The line of history is on disk, with the arch that really ran, before NNI hears of the result. A training
    that fails is a line too; the exception goes on to NNI, which marks the trial as failed.
    """
    job = prepare(run_dir)
    run_trial(model, job, measure_of(job))


def run_trial(
    model: YoloModelSpace | ArchSpace,
    job: Job,
    measure: Measure,
) -> None:
    """Measure the model's arch, write its line of history, report to NNI; see `evaluate_trial`."""
    arch = model.arch
    assert arch is not None, "NNI gave a space that is not frozen"
    number, parents = job.run.asked(arch)
    started, clock = time.time(), time.perf_counter()

    def line(**outcome: Any) -> Trial:
        seconds = time.perf_counter() - clock
        return Trial(
            number, arch, seed=job.exp.seed, parents=parents, started=started, seconds=seconds, **outcome
        )

    curve: list[dict[str, float]] = []
    try:
        metrics = measure(job, arch, job.run.trial_dir(number), curve)
        try:
            reward = reward_of(job)(metrics)
        except UserError as error:
            raise TrainingFailed(str(error)) from error
        if not math.isfinite(reward):
            raise TrainingFailed(f"the reward is {reward}")
    except Exception as error:
        if not isinstance(error, TrainingFailed):
            traceback.print_exc()  # a bug or a broken machine: NNI keeps it in the trial's stderr
        reason = str(error) if isinstance(error, TrainingFailed) else f"{type(error).__name__}: {error}"
        job.run.history.append(line(state="failed", reason=" ".join(reason.split()), curve=curve))
        raise
    limits = parse_limits(job.exp.search.limits, baseline_costs(job))
    # The unsearched baseline runs in any case, so it may break one.
    breaks = broken(limits, metrics)
    job.run.history.append(line(state="complete", metrics=metrics, reward=reward, reason=breaks, curve=curve))
    report_final(reward, metrics)


def train_and_measure(job: Job, arch: Arch, folder: Path, curve: list[dict[str, float]]) -> dict[str, float]:
    """Train `arch` on search_train, score it on search_val, measure its costs; weights go to `folder`.

    curve: filled with a row an epoch while the training goes on.
    Every trial of a run has the same seed, so that architectures differ by what they are, not by luck.
    """
    exp = job.exp
    torch.set_num_threads(threads_of(exp))
    torch.manual_seed(exp.seed)
    detector = job.build(arch)
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


def loaders(job: Job, train_split: str, val_split: str, side: int) -> tuple[Any, Any]:
    """(augmented and shuffled, plain) batches of two splits at `side` x `side`."""
    samples, names = job.dataset.splits[val_split], job.dataset.names
    plain = job.task.make_loader(
        samples, names, side, 2 * job.exp.train.batch, train=False, workers=workers_of(job)
    )
    return training_loader(job, train_split, side), plain


def training_loader(job: Job, split: str, side: int) -> Any:
    """Augmented and shuffled batches of a split at `side` x `side`."""
    exp, names = job.exp, job.dataset.names
    return job.task.make_loader(
        job.dataset.splits[split],
        names,
        side,
        exp.train.batch,
        train=True,
        hyp=job.hyp,
        seed=exp.seed,
        workers=workers_of(job),
        epochs=exp.train.epochs,
    )


def gpus_of(job: Job) -> tuple[str, ...]:
    """The GPUs that trainings on this machine share, as CUDA_VISIBLE_DEVICES names them; none for a CPU."""
    indices = (job.exp.search.training_service or {}).get("gpu_indices")
    return gpus_to_share(job.exp.device, indices) if job.device.type == "cuda" else ()


def workers_of(job: Job) -> int:
    """Processes that prepare batches."""
    wanted = job.exp.train.workers
    return wanted if wanted is not None else 4 * (job.device.type == "cuda")


def costs(job: Job, arch: Arch) -> dict[str, float]:
    """params_m and gflops from the cost model; latency_ms and its spread only where the experiment asks."""
    exp = job.exp
    found = job.space.cost(arch, exp.imgsz)
    if "latency_ms" in wanted_costs(exp):
        net = build(job.space, arch)
        found |= latency(net, job.side(arch), job.device, calibration=calibration(job))
    return found


def wanted_costs(exp: Experiment) -> set[str]:
    """The costs that the experiment's reward, limits, objectives or `search.measure` speak of."""
    search = exp.search
    named = {*search.objectives, *search.limits, *search.measure, search.reward.options.get("cost", "gflops")}
    return named & set(COST_KEYS)


def calibration(job: Job) -> Calibration:
    """What the latency reference takes on this machine, measured once a run and kept in its folder."""
    path = job.run.path / "latency.json"
    if path.is_file():
        try:
            return Calibration.load(path)
        except UserError as error:
            log.warning("%s; measured anew", error)
    calibrate(job.exp.imgsz, job.device).save(path)
    return Calibration.load(path)


def baseline_costs(job: Job) -> dict[str, float]:
    """Costs of the unsearched network, measured once a run: what `target: baseline` stands for."""
    known = job.run.meta.get("baseline_costs")
    if not (isinstance(known, dict) and known and all(isinstance(v, int | float) for v in known.values())):
        known = costs(job, job.space.default())
        job.run.update_meta(baseline_costs=known)
    return known


def reward_of(job: Job) -> Callable[[dict[str, float]], float]:
    """The experiment's reward with its target resolved."""
    reward = job.exp.search.reward
    return build_reward(reward.name, reward.options, baseline=baseline_costs(job), metric=job.task.quality)


def note_facts(job: Job) -> None:
    """What reports say about a run besides its trials, into its meta.json."""
    job.run.update_meta(
        data={"name": job.dataset.name, "source": job.dataset.source, "licence": job.dataset.licence},
        names=job.dataset.names,
        device=str(job.device),
        threads=threads_of(job.exp),
        precision=precision_of(job),
        versions=device_info(job.device),
    )


def precision_of(job: Job) -> str:
    """`train.precision` with `auto` decided once a run, for the unsearched network: what is compared must be
    computed alike."""
    known = job.run.meta.get("precision")
    if known not in PRECISIONS:
        net = build(job.space, job.space.default())
        known = choose_precision(job.exp.train.precision, job.device, net, job.exp.imgsz)
        job.run.update_meta(precision=known)
    return known


def threads_of(exp: Experiment) -> int:
    """CPU threads of one trial: what the experiment says, else its share of the cores."""
    return exp.threads or threads_each(exp.search.concurrency)


def say_if_busy(job: Job) -> None:
    """Print a hint when the cores that the run's threads would take are taken. They train on a CPU only."""
    hint = hint_if_busy(threads_of(job.exp)) if job.device.type == "cpu" else None
    if hint:
        print(hint)
