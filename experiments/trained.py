"""A network with trained weights: read, checked against its architecture, scored and measured.

Of a supernet's weights the arch's slice is taken out, and its batch norm re-estimated on training images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from data.sample import Dataset, mixed
from experiments.arch_file import ArchFile, differing
from experiments.config import Experiment
from experiments.job import threads_of
from experiments.tasks import TASKS, Task
from models.networks import build
from models.space import Arch, Space
from models.supernet import sliced
from models.weights import WeightFile, load_weights, read_weights
from utils.errors import UserError
from utils.sides import Sides
from utils.training.batch import to_device
from utils.training.measure import (
    LatencyReference,
    count_flops,
    count_params,
    device_info,
    latency,
    resolve_device,
)

RESULT_SCHEMA = 1
NEEDS_IMAGES = (
    "weights {} are a supernet's, and a slice's batch norm has to be re-estimated on training images; give "
    "--data DATA, or the weights of this one arch (trials/NNNN/weights.pt or finetune/NNNN/last.pt of a run)"
)


def trained(
    space: Space,
    arch: Arch,
    weights: Path,
    names: Sequence[str] | None,
    around: tuple[ArchFile, Experiment, Dataset] | None = None,
) -> tuple[Any, WeightFile]:
    """The network of `arch` with exactly these weights, in eval mode. UserError when they are of another.

    around: what lies around the arch; needed where the weights are a supernet's, to re-estimate batch norm.
    """
    file = read_weights(weights)
    supernet = bool(file.meta.get("supernet"))
    if file.arch is not None and not supernet:
        difference = differing(space.canonical(arch), file.arch)
        if difference:
            raise UserError(f"weights {weights} are of another architecture: {difference}")
    if names and file.names and list(names) != file.names:
        raise UserError(
            f"weights {weights} were trained for the classes {', '.join(file.names)}, not {', '.join(names)}"
        )
    names = names or file.names or None
    if not supernet:
        detector = build(space, arch, names)
        load_weights(detector, file, whole=True)
        return detector.eval(), file
    if around is None:
        raise UserError(NEEDS_IMAGES.format(weights))

    found, exp, dataset = around
    device, side = resolve_device(exp.device), space.side(arch, exp.imgsz)
    n, task = found.calibration, TASKS[space.task]
    images = training_images(dataset, task, side, exp.train.batch, device, n)
    return sliced(file, space, arch, names, images, n, device), file


def training_images(
    dataset: Dataset, task: Task, side: Sides, batch: int, device: torch.device, n: int
) -> Iterator[torch.Tensor]:
    """`n` images of train, not augmented, in equal batches [B, 3, H, W] of this size, 0..1."""
    chosen = mixed(dataset.splits["train"], n)
    parts = math.ceil(len(chosen) / (2 * batch))  # batch norm counts each batch alike: none is a remainder
    for part in torch.arange(len(chosen)).tensor_split(parts):
        some = [chosen[int(i)] for i in part]
        for ready in task.make_loader(some, dataset.names, side, len(some), train=False):
            yield to_device(ready, device)["img"]


def measure(
    detector: Any,
    space: Space,
    exp: Experiment,
    dataset: Dataset,
    arch: Arch,
    split: str,
    reference: LatencyReference | None = None,
    score: Callable[[Any, Any, Sequence[str], torch.device], dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Score and costs of a trained network, as a JSON-able result.

    reference: of latency, at the size that the arch works on. score: (network, loader, class names, device)
    -> metrics, by default those of its task."""
    device, side = resolve_device(exp.device), space.side(arch, exp.imgsz)
    torch.set_num_threads(threads_of(exp))
    task = TASKS[dataset.task]
    loader = task.make_loader(dataset.splits[split], dataset.names, side, 2 * exp.train.batch, train=False)
    seen = detector.to(device), loader, dataset.names, device
    metrics = score(*seen) if score else task.score(*seen, False)
    metrics |= {
        "params_m": count_params(detector) / 1e6,
        "gflops": count_flops(detector, side) / 1e9,
        **latency(detector, side, device, reference=reference),
    }
    return result_of("evaluate", arch, dataset, split, side, metrics, device)


def result_of(
    kind: str,
    arch: Arch,
    dataset: Dataset,
    split: str,
    side: Sides,
    metrics: Mapping[str, float],
    device: torch.device,
) -> dict[str, Any]:
    """What each result.json says: what was scored on which data."""
    return {
        "schema": RESULT_SCHEMA,
        "kind": kind,
        "arch": arch,
        "data": {"name": dataset.name, "source": dataset.source, "licence": dataset.licence},
        "split": split,
        "imgsz": side,
        "metrics": metrics,
        "versions": device_info(device),
    }
