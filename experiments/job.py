"""What the trainings of a run share, and what follows from it: loaders, costs, reward, precision, threads."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data.hyp import load_hyp
from data.sample import Dataset
from experiments.config import Experiment, hyp_file, wanted_metrics
from experiments.drift import Look
from experiments.engine.gpus import gpus_to_share, training_device
from experiments.forecast import Forecast, to_be_timed
from experiments.inputs import open_space, open_splits
from experiments.run_folder import RunFolder
from experiments.shipped import Timer, Void, timed
from experiments.tasks import TASKS, Task
from models.networks import build, open_any_space
from models.space import Arch, Space
from utils.cores import hint_if_busy, threads_each
from utils.errors import UserError
from utils.file_measures import KINDS, FileKind
from utils.history import arch_key
from utils.rewards import COST_KEYS, DRIFT, build_reward
from utils.run_files import Files
from utils.sides import Sides
from utils.target import Target
from utils.training.measure import LatencyReference, device_info, latency, measure_reference, resolve_device
from utils.training.precision import choose_precision

log = logging.getLogger(__name__)
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Job:
    """What all trials of a run share; and of one trial, its number and parents."""

    run: RunFolder
    dataset: Dataset
    space: Space
    hyp: dict[str, float]
    parents: tuple[int, ...] = ()  # trials that the strategy made this one of
    number: int | None = None

    @classmethod
    def open(cls, run: RunFolder, split_seed: int | None = None) -> Job:
        """The data and the space of a run. `split_seed`: of the search, so that a val split carved from train
        stays the same when the seed of the training is another."""
        exp = run.experiment
        dataset = open_splits(exp, run.cache, exp.seed if split_seed is None else split_seed)
        return cls(run, dataset, open_space(exp, dataset), load_hyp(hyp_file(exp, exp.train)))

    @property
    def exp(self) -> Experiment:
        return self.run.experiment

    @property
    def device(self) -> torch.device:
        return resolve_device(training_device(self.exp.device))

    @property
    def task(self) -> Task:
        return TASKS[self.space.task]

    def changed(self, **changes: Any) -> Job:
        """The job with other values of its experiment's keys: `train`, `seed`, `data`, `space`, `weights`.

        A seed changes no split. The task follows the space, and the augmentation the data and the schedule.
        """
        exp = self.exp.model_copy(update=changes)
        run, dataset, space = RunFolder(self.run.path, exp), self.dataset, self.space
        if "data" in changes or open_any_space(exp.space, nc=1).task != dataset.task:
            dataset = open_splits(exp, run.cache, self.exp.seed)
        if "space" in changes or dataset is not self.dataset:
            space = open_space(exp, dataset)
        hyp = load_hyp(hyp_file(exp, exp.train))
        return replace(self, run=run, dataset=dataset, space=space, hyp=hyp)

    def build(self, arch: Arch) -> Any:
        """The network of an arch, fresh weights of torch's generator, its loss weighed as `hyp` says."""
        net = build(self.space, arch, self.dataset.names)
        weigh_losses(net, self.hyp)
        return net

    @functools.cached_property
    def look(self) -> Look:
        """What tells how far archs drift from the run's `weights`."""
        return Look(self.exp, self.space, self.dataset)

    def side(self, arch: Mapping[str, Any]) -> Sides:
        """Pixels of the images that an arch works on."""
        return self.space.side(arch, self.exp.imgsz)


def weigh_losses(net: Any, hyp: dict[str, float]) -> None:
    """Give a network whose loss has gains (YOLO's) those of the augmentation file."""
    if hasattr(net, "set_gains"):
        net.set_gains(**{gain: hyp[gain] for gain in ("box", "cls", "dfl")})


@functools.cache
def job_of(run_dir: str) -> Job:
    """Open a run for its trials. Initialises no CUDA, so a process that did this can still be forked."""
    return Job.open(RunFolder.open(Path(run_dir)))


def loaders(job: Job, train_split: str, val_split: str, side: Sides) -> tuple[Any, Any]:
    """(augmented and shuffled, plain) batches of two splits at `side`."""
    samples, names = job.dataset.splits[val_split], job.dataset.names
    plain = job.task.make_loader(
        samples, names, side, 2 * job.exp.train.batch, train=False, workers=workers_of(job)
    )
    return training_loader(job, train_split, side), plain


def training_loader(job: Job, split: str, side: Sides) -> Any:
    """Augmented and shuffled batches of a split at `side`."""
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
    """params_m and gflops from the cost model; drift, latency_ms, onnx_ms, ... and their spreads only where
    the experiment asks.

    Raises UserError where a latency of the exported file is void.
    """
    exp = job.exp
    found = job.space.cost(arch, exp.imgsz)
    if DRIFT in wanted_costs(exp):
        found[DRIFT] = job.look.drift(arch)
    if "latency_ms" in wanted_costs(exp):
        net = build(job.space, arch)
        found |= latency(net, job.side(arch), job.device, reference=latency_reference(job))
    kinds = [kind for kind in KINDS if kind.ms in wanted_costs(exp)]
    return found | (file_costs(job, arch, kinds) if kinds else {})


def file_costs(job: Job, arch: Arch, kinds: Sequence[FileKind]) -> dict[str, float]:
    """Latencies of the arch's exported files on the experiment's target: predicted, or with
    `search.target.predict: 0` measured. UserError where one is void."""
    if predicts(job):
        return forecast_of(str(job.run.path), tuple(kinds))(arch)
    found, void = _timed(job, arch, kinds)
    if void:
        raise Void(timer_of(job.exp, Files(job.run.path).target).target, void)
    return found


def predicts(job: Job) -> bool:
    """Whether latencies of files are predicted: where the space has more archs than may be timed."""
    return 0 < job.exp.search.target.predict < job.space.size()[1]


def quick_costs(job: Job, arch: Arch) -> dict[str, float]:
    """The costs of an arch that need no measuring: of the cost model, and predicted ones."""
    kinds = tuple(kind for kind in KINDS if kind.ms in wanted_costs(job.exp))
    found = job.space.cost(arch, job.exp.imgsz)
    return found | (forecast_of(str(job.run.path), kinds)(arch) if kinds and predicts(job) else {})


def _timed(job: Job, arch: Arch, kinds: Sequence[FileKind]) -> tuple[dict[str, float], dict[str, str]]:
    return timed(job.space, arch, job.side(arch), kinds, timer_of(job.exp, Files(job.run.path).target))


@functools.cache
def forecast_of(run_dir: str, kinds: tuple[FileKind, ...]) -> Forecast:
    """What predicts the latencies of a run. The first who asks times the archs, in minutes, and says how well
    it does; what is timed is kept in the run. UserError where too many were void."""
    job = job_of(run_dir)
    archs = to_be_timed(job.space, job.exp.search.target.predict, job.exp.seed)
    path, names = Files(job.run.path).target / "forecast.json", [kind.ms for kind in kinds]
    known: dict[str, dict[str, float]] = {}
    if path.is_file():  # what was void then stays void
        known = {arch_key(a): found for a, found in timer_of(job.exp, path.parent).known()}
    else:
        print(f"target: {len(archs)} networks are timed, to predict {', '.join(names)} of the others")
    seen = [(a, known[arch_key(a)] if arch_key(a) in known else _timed(job, a, kinds)[0]) for a in archs]
    forecast = Forecast(job.space, lambda arch: job.space.cost(arch, job.exp.imgsz), names, seen)
    if not path.is_file():
        forecast.save(path)
        print(*(f"target: {name} {skill}" for name, skill in forecast.skills.items()), sep="\n")
    return forecast


def timer_of(exp: Experiment, folder: Path) -> Timer:
    """What times files on the experiment's target, and keeps what it needs in `folder`."""
    target = exp.search.target
    return Timer(Target(target.host, target.python, target.threads, target.seconds), folder, exp.imgsz)


def wanted_costs(exp: Experiment) -> set[str]:
    """The costs that the experiment's reward, limits, objectives or `search.measure` speak of."""
    return wanted_metrics(exp) & set(COST_KEYS)


def latency_reference(job: Job) -> LatencyReference:
    """What the latency reference takes on this machine, measured once a run and kept in its folder."""
    path = job.run.path / "latency.json"
    if path.is_file():
        try:
            return LatencyReference.load(path)
        except UserError as error:
            log.warning("%s; measured anew", error)
    measure_reference(job.exp.imgsz, job.device).save(path)
    return LatencyReference.load(path)


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
