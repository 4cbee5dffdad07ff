"""The step `rank`: does the supernet order architectures as training each from scratch would?

A few archs, spread over the costs, are scored as slices, with and without re-estimated batch norm, and
trained from scratch with several seeds on the same data. Kendall's tau says how far the orders agree; beside
it stand parameters and FLOPs, which cost nothing to know, and one seed against another: as good as it gets.
"""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

from experiments.config import augmentation, rank_settings
from experiments.engine.gpus import hand_out
from experiments.engine.warm_server import die_with_parent
from experiments.job import Job, gpus_of, job_of, threads_of
from experiments.run_folder import RunFolder
from experiments.slices import score_slice, trained_supernet
from experiments.training import train_and_measure
from models.sampling import spread
from models.space import Arch
from utils.errors import UserError
from utils.files import write_text
from utils.history import History, Trial, arch_key
from utils.report.rank import RankRow, Tau, draw_rank, rank_info, warning
from utils.run_files import Files
from utils.training.train import TrainingFailed

SLICES = ("supernet", "uncalibrated")
What = TypeVar("What")
Done = TypeVar("Done")


def rank(run: RunFolder) -> None:
    """Compare; `rank/` gets trainings.jsonl, rank.json and rank.png. Finished trainings are not repeated."""
    trained_supernet(str(run.path))  # says now, not after all the trainings, if there is none
    job = job_of(str(run.path))
    exp, folder = job.exp, Files(run.path).rank
    folder.mkdir(exist_ok=True)
    archs = spread(job.space, exp.imgsz, exp.rank.n, exp.seed)
    history = History(folder / "trainings.jsonl")
    known = {(t.key, t.seed) for t in history.load() if t.state == "complete"}
    wanted = [
        (number, arch, seed)
        for seed in exp.rank.seeds
        for number, arch in enumerate(archs)
        if (arch_key(arch), seed) not in known
    ]
    print(f"rank: {len(archs)} architectures x {len(exp.rank.seeds)} seeds, {len(wanted)} trainings to do")
    print(augmentation(exp, rank_settings(exp)))
    bar = tqdm(
        in_turn(run, train_one, wanted), "rank", len(wanted), unit="training", leave=False, disable=None
    )
    for trial in bar:
        history.append(trial)
        outcome = trial.reason or f"{job.task.quality} {trial.metrics[job.task.quality]:.4f}"
        bar.write(f"rank: architecture {trial.number}, seed {trial.seed}: {outcome}, {trial.seconds:.0f} s")
    rows = list(compared(job, archs, history.load()))
    if len(rows) < 3:
        raise UserError(f"only {len(rows)} architectures could be trained with every seed; 3 are needed")
    infos = {how: rank_info([row_of(row, how) for row in rows], job.task.quality) for how in SLICES}
    kept = ("tau", "ceiling", "seed_spread", "regret")
    figures = {how: {name: getattr(info, name) for name in kept} for how, info in infos.items()}
    text = json.dumps(finite({"rows": rows, "figures": figures}), indent=2, allow_nan=False)
    write_text(folder / "rank.json", text + "\n")
    draw_rank(infos["supernet"], folder / "rank.png")
    print(*infos["supernet"].lines(), sep="\n")
    print(f"with batch norm as training left it: tau {infos['uncalibrated'].tau['supernet']}")
    if said := warning(infos["supernet"]):
        print(f"warning: {said}")


def finite(value: Any) -> Any:
    """The same as JSON can say it: a tau that is not defined (nothing varies) is null."""
    if isinstance(value, Tau):
        return finite(asdict(value))
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def row_of(row: dict[str, Any], how: str) -> RankRow:
    """One arch for utils/report/rank.py, with its score as a slice: `supernet`, or `uncalibrated`."""
    alone = tuple(row["standalone"].values())
    return RankRow(row["number"], row[how], alone, row["params_m"], row["gflops"])


def compared(job: Job, archs: list[Arch], trainings: list[Trial]) -> Iterator[dict[str, Any]]:
    """For each arch its scores: as a slice, as a slice as it comes, and from scratch, seed -> score. Without
    those whose training failed."""
    torch.set_num_threads(threads_of(job.exp))
    quality, seeds = job.task.quality, job.exp.rank.seeds
    for number, arch in enumerate(archs):
        mine = {t.seed: t for t in trainings if t.key == arch_key(arch) and t.state == "complete"}
        if not set(seeds) <= mine.keys():
            continue
        yield {
            "number": number,
            "arch": arch,
            **job.space.cost(arch, job.exp.imgsz),
            "supernet": score_slice(job, arch)[quality],
            "uncalibrated": score_slice(job, arch, calibrated=False)[quality],
            "standalone": {str(seed): mine[seed].metrics[quality] for seed in seeds},
        }


def in_turn(run: RunFolder, train: Callable[[str, What], Done], wanted: Sequence[What]) -> Iterator[Done]:
    """`train(the run's folder, what)` for all that are wanted, `search.concurrency` at a time, in processes
    of their own, which share the run's GPUs out; one at a time in this process."""
    work = functools.partial(train, str(run.path))
    at_a_time = run.experiment.search.concurrency
    if at_a_time == 1:
        yield from map(work, wanted)
        return
    context = multiprocessing.get_context("spawn")
    gpus = gpus_of(job_of(str(run.path)))
    waiting = context.SimpleQueue()
    for worker in range(at_a_time):
        waiting.put(gpus[worker % len(gpus)] if gpus else None)
    with ProcessPoolExecutor(at_a_time, context, enter_pool, (waiting,)) as pool:
        try:
            for done in as_completed([pool.submit(work, what) for what in wanted]):
                yield done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def enter_pool(waiting: Any) -> None:
    """The first thing that a process of the pool does: it takes a GPU, if there are any."""
    die_with_parent()
    gpu = waiting.get()
    if gpu is not None:
        hand_out(gpu)


def train_one(run_dir: str, what: tuple[int, Arch, int]) -> Trial:
    """Train one arch as `rank.train` says, with a seed of its own, on search_train, scored on search_val."""
    number, arch, seed = what
    job = job_of(run_dir)
    job = job.changed(train=rank_settings(job.exp), seed=seed)
    started, clock = time.time(), time.perf_counter()
    curve: list[dict[str, float]] = []
    folder = Files(Path(run_dir)).rank / f"{number:04d}-{seed}"
    outcome: dict[str, Any]
    try:
        outcome = {"metrics": train_and_measure(job, arch, folder, curve)}
    except TrainingFailed as error:
        outcome = {"state": "failed", "reason": str(error)}
    seconds = time.perf_counter() - clock
    return Trial(number, arch, **outcome, seed=seed, curve=curve, started=started, seconds=seconds)
