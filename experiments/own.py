"""A trial by a user's own function: `search.evaluator: mine.py`.

The file has one function, `evaluate`, that asks by name for what it needs and returns metrics:

    def evaluate(arch, network, data, report, **options) -> dict[str, float]

arch:    the architecture, a plain dict
network: its network, with fresh weights or those that the experiment starts from (of a supernet: its slice)
data:    `Data`, below
report:  report(value, **more), one point of the curve; ends the trial where `search.early_stop` finds it
         hopeless
options: what stands beside the name, `search.evaluator: {name: mine.py, epochs: 3}`

It returns at least the metric that the search maximises (map50_95, or top1), or that number alone. Parameters
and GFLOPs are added by us; weights are kept if it asked for the network, as they are when it returns. What it
raises makes a failed trial with that reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.config import EVALUATOR_GETS
from experiments.early_stop import Judge, Stopped, judge_of
from experiments.engine.trial import report_intermediate
from experiments.job import Job, costs, loaders, threads_of
from experiments.starts import begin
from models.weights import save_weights
from utils.history import Arch
from utils.plugin import load_function, wanted, where
from utils.sides import Sides
from utils.training.batch import to_device
from utils.training.loggers import open_loggers
from utils.training.settings import TrainSettings
from utils.training.train import TrainingFailed


@dataclass(frozen=True)
class Data:
    """What an evaluator learns from and is scored on.

    train, val: batches of search_train (augmented, shuffled) and search_val, as `ready` takes them
    names, device: of the classes; where networks are to run
    side: pixels of the images: of square ones their side, else (height, width)
    settings, seed: the experiment's `train:` block and seed, to be used or not
    """

    job: Job
    train: Any
    val: Any
    names: list[str]
    side: Sides
    device: torch.device
    settings: TrainSettings
    seed: int

    def ready(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch on the device, as `network.loss` takes it: images float32 0..1."""
        return to_device(batch, self.device)

    def score(self, network: Any) -> dict[str, float]:
        """COCO's mAP, or accuracies of a classifier, on val."""
        return self.job.task.score(network, self.val, self.names, self.device, False)


def measure_own(
    job: Job, arch: Arch, folder: Path, curve: list[dict[str, float]], network: Any = None
) -> dict[str, float]:
    """What the experiment's own evaluator says of an arch, and what the arch costs.

    network: what to evaluate; by default a fresh one, whose weights and curve go to `folder`. Raises
    TrainingFailed with a line for whatever goes wrong in the user's file.
    """
    evaluator = job.exp.search.evaluator
    assert evaluator is not None
    function = load_function(evaluator.name, "evaluate")
    needs = wanted(function, EVALUATOR_GETS)
    torch.set_num_threads(threads_of(job.exp))
    torch.manual_seed(job.exp.seed)
    fresh = network is None
    if fresh and "network" in needs:
        network = job.build(arch)
        begin(job, network, arch, folder)
        network = network.to(job.device)
    title = f"{job.exp.name}-{folder.name}"
    with open_loggers(job.exp.loggers, folder, name=title, config=arch) if fresh else nullcontext() as log:
        report = partial(_report, job, curve, log, judge_of(job, arch))
        given = {"arch": dict(arch), "network": network, "report": report}
        if "data" in needs:
            given["data"] = _data(job, arch)
        try:
            found = function(**{k: v for k, v in given.items() if k in needs}, **evaluator.options)
        except (TrainingFailed, Stopped):
            raise
        except (Exception, SystemExit) as error:
            at = f"{Path(evaluator.name).name}, {where(error, evaluator.name)}"
            raise TrainingFailed(f"{at}: {type(error).__name__}: {error}") from error
    metrics = _metrics(found, job.task.quality, Path(evaluator.name).name) | costs(job, arch)
    if fresh and "network" in needs:
        save_weights(folder / "weights.pt", network, job.space, arch, imgsz=job.side(arch))
    return metrics


def _data(job: Job, arch: Arch) -> Data:
    side = job.side(arch)
    train, val = loaders(job, "search_train", "search_val", side)
    return Data(job, train, val, job.dataset.names, side, job.device, job.exp.train, job.exp.seed)


def _report(
    job: Job, curve: list[dict[str, float]], log: Any, judge: Judge | None, value: float, **more: float
) -> None:
    """One point of the curve: into the trial's log.csv, its line of history and NNI's page."""
    row = {"epoch": len(curve) + 1, job.task.quality: float(value), **more}
    report_intermediate(float(value), {"epoch": row["epoch"], **more})
    curve.append(row)
    if log is not None:
        log.log(len(curve), row)
    if judge is not None:
        judge.check(curve)


def _metrics(found: Any, quality: str, name: str) -> dict[str, float]:
    """What an evaluator returned, as numbers. Raises TrainingFailed for anything else."""
    if not isinstance(found, Mapping):
        found = {quality: found}
    numbers = {}
    for key, value in found.items():
        try:
            numbers[str(key)] = float(value)
        except (TypeError, ValueError):
            raise TrainingFailed(f"{name} returned {key} = {value!r}, which is no number") from None
    if not math.isfinite(numbers.get(quality, math.nan)):
        said = ", ".join(f"{k} {v:.4g}" for k, v in numbers.items()) or "nothing"
        raise TrainingFailed(f"{name} returned {said}; a finite {quality} is needed")
    return numbers
