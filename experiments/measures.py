"""What is measured of exported files: quality in a trial; all of it of finalists, and by `measure`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.sample import Dataset, mixed
from experiments.arch_file import data_of, handover_experiment, open_arch_file
from experiments.config import Experiment, TargetSettings, wanted_metrics
from experiments.inputs import open_space
from experiments.job import Job, threads_of, timer_of
from experiments.run_folder import command
from experiments.shipped import Timer, files_of, scores_of
from experiments.tasks import TASKS
from experiments.trained import result_of, trained
from models.space import Arch, Space
from utils.errors import UserError, unknown
from utils.file_measures import KINDS, FileKind, check_packages, file_qualities, kinds_of
from utils.files import write_text
from utils.run_files import Files
from utils.sides import Sides
from utils.training.batch import to_device

CPU = torch.device("cpu")
DEFAULT = ("onnx_ms", "int8_ms")  # and their quality: what the command measures


def calibration_images(exp: Experiment, dataset: Dataset, side: Sides) -> np.ndarray:
    """float32 [N, C, H, W], 0..1, of this size: images of search_train, not augmented."""
    chosen = mixed(dataset.splits["search_train"], exp.search.target.calibration)
    loader = TASKS[dataset.task].make_loader(chosen, dataset.names, side, len(chosen), train=False)
    return torch.cat([to_device(batch, CPU)["img"] for batch in loader]).float().contiguous().numpy()


def measure_files(
    net: Any,
    space: Space,
    arch: Arch,
    exp: Experiment,
    dataset: Dataset,
    split: str,
    kinds: Sequence[FileKind],
    timer: Timer | None = None,
) -> tuple[dict[str, float], dict[str, str]]:
    """(metrics of a trained network's files, latency -> why it is void).

    Quality on `split`, by the runtime on this machine; latency on the timer's target, where there is one.
    """
    task, side = TASKS[dataset.task], space.side(arch, exp.imgsz)
    images = calibration_images(exp, dataset, side) if any(kind.int8 for kind in kinds) else np.empty(0)
    loader = task.make_loader(dataset.splits[split], dataset.names, side, 2 * exp.train.batch, train=False)

    def score(network: Any) -> dict[str, float]:
        return task.score(network, loader, dataset.names, CPU, False)

    with files_of(net, space, arch, side, kinds, images) as files:
        metrics = scores_of(files, net, task.quality, score)
        timings, void = timer.latencies(files, side) if timer else ({}, {})
    return metrics | timings, void


def quality_of_files(job: Job, net: Any, arch: Arch, split: str) -> dict[str, float]:
    """`int8_map50_95`, ... on a split: those that the experiment's reward, objectives or `search.measure` ask
    for. {} where none is."""
    quality, wanted = job.task.quality, wanted_metrics(job.exp)
    kinds = [kind for kind in KINDS if kind.quality(quality) in wanted]
    if not kinds:
        return {}
    return measure_files(net, job.space, arch, job.exp, job.dataset, split, kinds)[0]


def of_finalist(job: Job, net: Any, arch: Arch, split: str) -> tuple[dict[str, float], dict[str, str]]:
    """As `measure_files`, for all files that the experiment speaks of; {} and {} where it does not."""
    kinds = kinds_of(wanted_metrics(job.exp), job.task.quality)
    if not kinds:
        return {}, {}
    timer = timer_of(job.exp, Files(job.run.path).target)
    return measure_files(net, job.space, arch, job.exp, job.dataset, split, kinds, timer)


def measure_arch(
    arch_file: Path,
    overrides: Sequence[str] = (),
    *,
    weights: Path | None = None,
    split: str = "val",
    metrics: Sequence[str] = (),
    target: TargetSettings | None = None,
    out: Path | None = None,
    space_file: Path | None = None,
) -> dict[str, Any]:
    """Quality and latency of the files that a trained architecture becomes; `out`: a JSON to write.

    metrics: of utils/file_measures.py, by default those of ONNX; of each file named both are measured.
    UserError when the target does not answer, a package is missing, or the weights are of another network.
    """
    found = open_arch_file(arch_file, space_file)
    if out is not None and out.exists():
        raise UserError(f"{out} exists and is never overwritten; give another --out")
    exp = handover_experiment(found, overrides, name="measure")
    exp = exp.model_copy(
        update={"search": exp.search.model_copy(update={"target": target or TargetSettings()})}
    )
    source, dataset = weights or found.weights(), data_of(found, exp)
    if split not in dataset.splits:
        raise UserError(f"{dataset.name} has no split {split!r}; it has {', '.join(dataset.splits)}")
    quality = TASKS[dataset.task].quality
    known = [*(kind.ms for kind in KINDS), *file_qualities(quality)]
    for metric in metrics:
        if metric not in known:
            raise unknown("metric of a file", metric, known)
    kinds = kinds_of(metrics or DEFAULT, quality)
    check_packages(kinds)
    torch.set_num_threads(threads_of(exp))
    space = open_space(exp, dataset)
    net, file = trained(space, found.arch, source, dataset.names, (found, exp, dataset))
    with tempfile.TemporaryDirectory(prefix="target-") as folder:
        timer = timer_of(exp, Path(folder))
        calibration = timer.calibration(sorted({kind.runtime for kind in kinds}))
        seen, void = measure_files(net, space, found.arch, exp, dataset, split, kinds, timer)
    result = result_of("measure", found.arch, dataset, split, timer.side, seen, CPU)
    result |= {"void": void, "weights": str(file.path), "command": command()}
    result["target"] = {"host": timer.target.name, "threads": timer.target.threads}
    result["target"] |= {"hardware": calibration.hardware, "versions": calibration.versions}
    print(f"{arch_file} on {split} ({len(dataset.splits[split])} images), timed on {timer.target.name}:")
    print(table(kinds, quality, seen, void))
    if out is not None:
        write_text(out, json.dumps(result, indent=2) + "\n")
    return result


def table(kinds: Sequence[FileKind], quality: str, seen: dict[str, float], void: dict[str, str]) -> str:
    """A line a file: its quality, and its latency or why that is void."""
    lines = [f"{'file':<14}{quality:>10}  ms"]
    for kind in kinds:
        score = f"{seen[kind.quality(quality)]:.4f}"
        if kind.ms in seen:
            ms = f"{seen[kind.ms]:.3f} ± {seen[f'{kind.ms}_spread']:.3f}"
        else:
            ms = f"void: {void[kind.ms]}" if kind.ms in void else "not measured"
        lines.append(f"{kind.stem:<14}{score:>10}  {ms}")
    return "\n".join(lines)
