"""What a space holds, told without training anything."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from experiments.config import load_experiment
from experiments.inputs import open_data, open_space
from experiments.run_folder import cache_beside
from models.space import Space, describe
from utils.errors import UserError
from utils.history import Arch


def describe_space(experiment: Path, overrides: Sequence[str]) -> str:
    """Labels, choices, counts and the range of costs of an experiment's space, as text."""
    space, imgsz = _space_of(experiment, overrides)
    return describe(space, imgsz)


@dataclass(frozen=True)
class Sample:
    """Random archs with their costs; `default` is the unsearched one's. params_m, gflops: [n]."""

    archs: list[Arch]
    params_m: np.ndarray
    gflops: np.ndarray
    default: dict[str, float]
    seconds: float


def draw(space: Space, imgsz: int, n: int, seed: int) -> Sample:
    """`n` random archs, each choice uniform, priced by the cost model."""
    rng, started = np.random.default_rng(seed), time.perf_counter()
    archs = [space.random(rng) for _ in tqdm(range(n), "sampling", unit="arch", leave=False, disable=None)]
    costs = [space.cost(arch, imgsz) for arch in archs]
    return Sample(
        archs,
        np.array([c["params_m"] for c in costs]),
        np.array([c["gflops"] for c in costs]),
        space.cost(space.default(), imgsz),
        time.perf_counter() - started,
    )


def sample_costs(experiment: Path, overrides: Sequence[str], *, n: int, out: Path, seed: int = 0) -> str:
    """Draw `n` archs into `out`/sample.csv and sample.png; returns what was found, as text.

    Raises UserError for n < 1 and for an `out` that holds a sample already.
    """
    if n < 1:
        raise UserError(f"-n is {n}; at least 1 is needed")
    table, picture = out / "sample.csv", out / "sample.png"
    if table.exists():
        raise UserError(f"{table} exists and is never overwritten; choose another folder with --out")
    space, imgsz = _space_of(experiment, overrides)
    sample = draw(space, imgsz, n, seed)
    out.mkdir(parents=True, exist_ok=True)
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, ["params_m", "gflops", *space.choices])
        writer.writeheader()
        for arch, params_m, gflops in zip(sample.archs, sample.params_m, sample.gflops, strict=True):
            writer.writerow({"params_m": params_m, "gflops": gflops, **arch})
    _plot(sample, space.name, imgsz, picture)
    lines = [f"{n:,} random architectures of {space.name} at {imgsz} px in {sample.seconds:.2f} s"]
    for key, values in (("params_m", sample.params_m), ("gflops", sample.gflops)):
        low, middle, high = np.percentile(values, [0, 50, 100])
        lines.append(
            f"{key:9} smallest {low:.4g}, median {middle:.4g}, largest {high:.4g}; "
            f"unsearched {sample.default[key]:.4g}, "
            f"which {np.mean(values <= sample.default[key]):.1%} do not exceed"
        )
    return "\n".join([*lines, f"written: {table}, {picture}"])


def _plot(sample: Sample, name: str, imgsz: int, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(sample.gflops, bins=60, color="tab:blue", alpha=0.8)
    left.axvline(sample.default["gflops"], color="tab:red", label="unsearched")
    left.set(xlabel=f"GFLOPs at {imgsz} px", ylabel="architectures")
    left.legend(frameon=False)
    right.scatter(sample.gflops, sample.params_m, s=3, alpha=0.4, linewidths=0)
    right.scatter(sample.default["gflops"], sample.default["params_m"], color="tab:red", s=30)
    right.set(xlabel=f"GFLOPs at {imgsz} px", ylabel="parameters (M)")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{len(sample.archs):,} random architectures of {name}", fontsize=11)
    figure.savefig(path, dpi=130)


def _space_of(experiment: Path, overrides: Sequence[str]) -> tuple[Space, int]:
    exp = load_experiment(experiment, overrides)
    Space(exp.space)  # what is wrong with the space is said before the data are looked at
    return open_space(exp, open_data(exp, cache_beside(Path("runs") / exp.name))), exp.imgsz
