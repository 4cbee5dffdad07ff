"""The command `evaluate`: quality, costs and latency of a network that exists. The step is in findings.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.arch_file import data_of, handover_experiment, open_arch_file
from experiments.inputs import open_space
from experiments.run_folder import command
from utils.errors import UserError
from utils.files import write_text
from utils.report.results import metrics_line


def evaluate_arch(
    arch_file: Path,
    overrides: Sequence[str] = (),
    *,
    weights: Path | None = None,
    split: str = "val",
    out: Path | None = None,
    space_file: Path | None = None,
) -> dict[str, Any]:
    """Quality on a split, params, GFLOPs and latency of one trained architecture; `out`: a JSON to write.

    weights: by default `ArchFile.weights`; of a supernet the slice is scored, its batch norm re-estimated on
    training images. overrides: data=, imgsz=, device=, ...
    UserError when the weights are of another network or the classes are not those of the data.
    """
    found = open_arch_file(arch_file, space_file)
    if out is not None and out.exists():
        raise UserError(f"{out} exists and is never overwritten; give another --out")
    exp = handover_experiment(found, overrides, name="evaluate")
    source = weights or found.weights()
    dataset = data_of(found, exp)
    if split not in dataset.splits:
        raise UserError(f"{dataset.name} has no split {split!r}; it has {', '.join(dataset.splits)}")
    space = open_space(exp, dataset)
    from experiments.trained import measure, trained  # torch: mistakes are answered before

    detector, file = trained(space, found.arch, source, dataset.names, (found, exp, dataset))
    outcome = measure(detector, space, exp, dataset, found.arch, split) | {
        "weights": str(file.path),
        "command": command(),
    }
    print(f"{arch_file}: {metrics_line(outcome['metrics'])} on {split} ({len(dataset.splits[split])} images)")
    if out is not None:
        write_text(out, json.dumps(outcome, indent=2) + "\n")
    return outcome
