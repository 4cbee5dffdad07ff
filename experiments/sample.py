"""What a space holds, told without training anything."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from experiments.config import load_experiment
from experiments.inputs import open_data, open_space
from experiments.run_folder import RunFolder, cache_beside
from models.networks import describe, open_any_space
from models.sampling import in_range
from models.space import Choice, Space, Value
from utils.errors import UserError
from utils.files import write_text
from utils.history import Arch, arch_key
from utils.report.drawing import ACCENT, BASE, png
from utils.sides import Sides, shown

FINER = 16  # times as many places are looked at, where several of them are the same arch


def describe_space(experiment: Path, overrides: Sequence[str]) -> str:
    """Labels, choices, counts and the range of costs of an experiment's space, as text."""
    space, imgsz = _space_of(experiment, overrides)
    return describe(space, imgsz)


@dataclass(frozen=True)
class CostSample:
    """Archs with their costs; `default` is the unsearched one's. params_m, gflops: [n].

    how: which archs these are, for people: "random architectures"."""

    archs: list[Arch]
    params_m: np.ndarray
    gflops: np.ndarray
    default: dict[str, float]
    seconds: float
    how: str = "random architectures"


def draw(
    space: Space,
    imgsz: Sides,
    n: int,
    seed: int,
    low: float | None = None,
    high: float | None = None,
    traverse: bool = False,
) -> CostSample:
    """`n` archs, priced by the cost model: random ones, each choice uniform, of which some may be equal.

    low, high: only archs of so many GFLOPs, both included; `n` different ones, drawn so that the ends of the
               range are met as well (models.sampling.in_range).
    traverse:  instead of random ones those of `traversed`; with a range, the ones of them that lie in it.

    Raises UserError where the range holds no architecture, or without `traverse` fewer than `n`.
    """
    default = space.cost(space.default(), imgsz)  # the first price builds the tables; the clock is for archs
    rng, started = np.random.default_rng(seed), time.perf_counter()
    if n < 1:
        raise UserError(f"{n} architectures were asked for; at least 1 is needed")
    ranged = low is not None or high is not None
    least, most = 0.0 if low is None else low, np.inf if high is None else high
    if traverse:
        archs, how = traversed(space, n), "architectures in even strides"
    elif ranged:
        archs, how = in_range(space, rng, least, most, imgsz, n), "random architectures"
    else:
        bar = tqdm(range(n), "sampling", unit="arch", leave=False, disable=None)
        archs, how = [space.random(rng) for _ in bar], "random architectures"
    costs = [space.cost(arch, imgsz) for arch in archs]
    params_m = np.array([c["params_m"] for c in costs])
    gflops = np.array([c["gflops"] for c in costs])
    if ranged:
        how += f" of {least:g} to {most:g} GFLOPs"
        inside = (least <= gflops) & (gflops <= most)
        if not inside.any():
            near = gflops[np.argmin(np.maximum(least - gflops, gflops - most))]
            raise UserError(
                f"none of {len(archs):,} architectures in even strides has gflops from {least:g} to "
                f"{most:g}; the nearest has {near:.6g}"
            )
        archs = [arch for arch, ok in zip(archs, inside, strict=True) if ok]
        params_m, gflops = params_m[inside], gflops[inside]
    return CostSample(archs, params_m, gflops, default, time.perf_counter() - started, how)


def traversed(space: Space, n: int) -> list[Arch]:
    """All different archs in order, small values first, where they are `n` or fewer; else `n` in even strides
    through that order, the first and the last among them (United-Perception's traverse mode).

    A stride counts alternatives: behind each value of a gene lie as many steps as behind any other. Where
    depths or orders leave some values fewer followers than others, a few archs less than `n` may come out.
    """
    total = space.size()[1]
    if total <= n:
        return list(_every(space))
    if n == 1:
        return [_at(space, 0, 1)]
    found: list[Arch] = []
    places = n
    while len(found) < n and places <= FINER * n:
        steps = max(total, places)  # a whole number as large as the space, so that no stride is rounded away
        different = {
            arch_key(a): a
            for a in (_at(space, i * (steps - 1) // (places - 1), steps) for i in range(places))
        }
        found, places = list(different.values()), 2 * places
    if len(found) <= n:
        return found
    return [found[i * (len(found) - 1) // (n - 1)] for i in range(n)]


def _every(space: Space) -> Iterator[Arch]:
    """Every arch once: like a counter, the last decision that has another alternative takes the next one."""
    path: list[int] = []
    while True:
        made: list[tuple[int, int]] = []  # what was taken of how many

        def take(choice: Choice, path: list[int] = path, made: list[tuple[int, int]] = made) -> Value:
            taken = path[len(made)] if len(made) < len(path) else 0
            made.append((taken, len(choice.values)))
            return choice.ascending[taken]

        yield space.decided(take)
        while made and made[-1][0] + 1 == made[-1][1]:
            made.pop()
        if not made:
            return
        path = [taken for taken, _ in made]
        path[-1] += 1


def _at(space: Space, place: int, of: int) -> Arch:
    """The arch at a place in 0 .. `of` - 1: each decision divides what is left of the way evenly."""
    left = place

    def take(choice: Choice) -> Value:
        nonlocal left
        taken, left = divmod(left * len(choice.values), of)
        return choice.ascending[taken]

    return space.decided(take)


def sample_costs(
    experiment: Path,
    overrides: Sequence[str],
    *,
    n: int,
    out: Path,
    seed: int = 0,
    low: float | None = None,
    high: float | None = None,
    traverse: bool = False,
) -> str:
    """Draw `n` archs into `out`/sample.csv and sample.png; returns what was found, as text. See `draw`.

    Raises UserError for n < 1 and for an `out` that holds a sample already.
    """
    if n < 1:
        raise UserError(f"-n is {n}; at least 1 is needed")
    if (out / "sample.csv").exists():
        raise UserError(
            f"{out / 'sample.csv'} exists and is never overwritten; choose another folder with --out"
        )
    space, imgsz = _space_of(experiment, overrides)
    sample = draw(space, imgsz, n, seed, low, high, traverse)
    table, picture = write_sample(sample, space, imgsz, out)
    return f"{summary(sample, space, imgsz)}\nwritten: {table}, {picture}"


def sample_run(run: RunFolder) -> None:
    """The step `sample`: `sample.csv` and `sample.png` of what the run's `sample:` block asks for."""
    from experiments.job import job_of

    job, wanted = job_of(str(run.path)), run.experiment.sample
    low, high = wanted.gflops or (None, None)
    sample = draw(job.space, job.exp.imgsz, wanted.n, job.exp.seed, low, high, wanted.traverse)
    table, picture = write_sample(sample, job.space, job.exp.imgsz, run.path)
    print(f"{summary(sample, job.space, job.exp.imgsz)}\nsample: {table}, {picture}")


def write_sample(sample: CostSample, space: Space, imgsz: Sides, folder: Path) -> tuple[Path, Path]:
    """`folder`/sample.csv, a line an arch, unrounded, and sample.png, a histogram; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    table, picture = folder / "sample.csv", folder / "sample.png"
    text = io.StringIO()
    labels = space.choices if set(sample.archs[0]) <= set(space.choices) else sample.archs[0]  # a code is one
    writer = csv.DictWriter(text, ["params_m", "gflops", *labels], lineterminator="\n")
    writer.writeheader()
    for arch, params_m, gflops in zip(sample.archs, sample.params_m, sample.gflops, strict=True):
        writer.writerow({"params_m": params_m, "gflops": gflops, **arch})
    write_text(table, text.getvalue())
    _plot(sample, space, imgsz, picture)
    return table, picture


def summary(sample: CostSample, space: Space, imgsz: Sides) -> str:
    """The costs of a sample for people."""
    size = "their resolutions" if "resolution" in space.choices else f"{shown(imgsz)} px"
    lines = [f"{len(sample.archs):,} {sample.how} of {space.name} at {size} in {sample.seconds:.2f} s"]
    for key, values in (("params_m", sample.params_m), ("gflops", sample.gflops)):
        low, middle, high = np.percentile(values, [0, 50, 100])
        lines.append(
            f"{key:9} smallest {low:.4g}, median {middle:.4g}, largest {high:.4g}; "
            f"unsearched {sample.default[key]:.4g}, "
            f"which {np.mean(values <= sample.default[key]):.1%} do not exceed"
        )
    return "\n".join(lines)


def _plot(sample: CostSample, space: Space, imgsz: Sides, path: Path) -> None:
    where = "its resolution" if "resolution" in space.choices else f"{shown(imgsz)} px"
    with png(path, 9, 3.6, panels=2) as (left, right):
        left.hist(sample.gflops, bins=60, color=ACCENT, alpha=0.8)
        left.axvline(sample.default["gflops"], color=BASE, label="unsearched")
        left.set(xlabel=f"GFLOPs at {where}", ylabel="architectures")
        left.legend(frameon=False)
        right.scatter(sample.gflops, sample.params_m, s=3, alpha=0.4, linewidths=0, color=ACCENT)
        right.scatter(sample.default["gflops"], sample.default["params_m"], color=BASE, s=30)
        right.set(xlabel=f"GFLOPs at {where}", ylabel="parameters (M)")
        left.figure.suptitle(f"{len(sample.archs):,} {sample.how} of {space.name}", fontsize=11)


def _space_of(experiment: Path, overrides: Sequence[str]) -> tuple[Space, Sides]:
    exp = load_experiment(experiment, overrides)
    open_any_space(exp.space, nc=1)  # what is wrong with the space is said before the data are looked at
    return open_space(exp, open_data(exp, cache_beside(Path("runs") / exp.name))), exp.imgsz
