"""The step `controls`: what the winner has to beat, trained exactly as the winner is, with several seeds.

A search is worth its price where its winner beats networks that nobody searched for: the unsearched one, one
drawn at random at the same cost, and the winner of a random search with as many trials, which is a run of its
own in `controls/random_search`. All of them get the start and the schedule of one step, `controls.by`; what
that step has trained already is not trained again. `controls/controls.json` says after each training what is
known; utils/report/controls.py reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.arch_file import top_files
from experiments.config import (
    Experiment,
    Named,
    controls_by,
    finetune_settings,
    retrain_settings,
)
from experiments.engine.processes import stop_leftovers
from experiments.job import Job, baseline_costs, job_of, precision_of
from experiments.rank import in_turn
from experiments.retrain import finished, trained_in
from experiments.run_folder import RunFolder
from experiments.search import completed_or_failed, search_by
from models.sampling import in_range
from models.space import Arch
from utils.errors import UserError
from utils.files import write_text
from utils.history import History, Trial, arch_key
from utils.report.controls import controls_info
from utils.report.report import write_report
from utils.report.runs import read_run, top_trials
from utils.run_files import Files
from utils.training.train import TrainingFailed

PRICES = ("gflops", "params_m")  # that a space knows without measuring


@dataclass(frozen=True)
class Contender:
    """A network that is trained. names: what it is, such as `winner`; of equal archs one has all names.

    trial, searched: of the search that found it, and what that scored it; None where none did.
    """

    names: tuple[str, ...]
    arch: Arch
    trial: int | None = None
    searched: float | None = None

    @property
    def digest(self) -> str:
        """What its folders are called: eight hexadecimal digits of its arch."""
        return hashlib.sha256(arch_key(self.arch).encode()).hexdigest()[:8]


def controls(run: RunFolder) -> None:
    """Train the contenders of the `controls:` block and print what they score on val; finished trainings are
    not repeated. UserError where the search has left no winner."""
    top_files(run)  # says now, not after a random search, if there is none
    by = controls_by(run.experiment)
    searched = search_at_random(run) if "random_search" in run.experiment.controls.which else None
    job_of.cache_clear()
    job = job_of(str(run.path))
    contenders = contenders_of(job, searched)
    if by == "finetune":
        from experiments.slices import save_slice

        for contender in contenders:
            if not (slice_ := slice_of(job, contender)).is_file():
                save_slice(job, contender.arch, slice_)
    jobs = {seed: job_with(job, seed) for seed in job.exp.controls.seeds}
    wanted = [(c, seed) for seed, of in jobs.items() for c in contenders if trained(of, c) is None]
    note(jobs, contenders)
    print(
        f"controls: {len(contenders)} networks x {len(jobs)} seeds by the step {by}, {len(wanted)} trainings "
        "to do"
    )
    for contender, seed, reason in in_turn(run, train_control, wanted):
        note(jobs, contenders)
        if reason:
            print(f"controls: {', '.join(contender.names)}, seed {seed}: {reason}")
    info = controls_info(read_run(run.path))
    assert info is not None  # it was just written
    print(*info.lines(), sep="\n")


def job_with(job: Job, seed: int) -> Job:
    """The job of a control's training: the schedule of the step that the winner's is, and a seed."""
    settings = finetune_settings if controls_by(job.exp) == "finetune" else retrain_settings
    return job.changed(train=settings(job.exp), seed=seed)


def home(job: Job, contender: Contender) -> Path:
    """The folder of a training of `job_with`: that of the step itself where it has trained the very same,
    else one of ours."""
    by, files = controls_by(job.exp), Files(job.run.path)
    for trial in job.run.history.load():
        if trial.number >= 0 and trial.key == arch_key(contender.arch):
            theirs = files.of_trial(by, trial.number)
            if finished(theirs, job, by) is not None:
                return theirs
    return files.controls / f"{contender.digest}-{job.exp.seed}"


def trained(job: Job, contender: Contender) -> dict[str, Any] | None:
    """The result of a training of `job_with` that is done; else None."""
    return finished(home(job, contender), job, controls_by(job.exp))


def slice_of(job: Job, contender: Contender) -> Path:
    """The file of a contender's slice of the supernet."""
    return Files(job.run.path).controls / "slices" / f"{contender.digest}.pt"


def train_control(run_dir: str, what: tuple[Contender, int]) -> tuple[Contender, int, str]:
    """Train one contender with a seed, as the step `controls.by` would; also why that failed, or ""."""
    contender, seed = what
    job = job_with(job_of(run_dir), seed)
    by, start = controls_by(job.exp), Path(job.exp.weights) if job.exp.weights else None
    start = slice_of(job, contender) if by == "finetune" else start
    try:
        trained_in(home(job, contender), job, contender.arch, start, by)
    except TrainingFailed as error:
        return contender, seed, str(error)
    return contender, seed, ""


def note(jobs: Mapping[int, Job], contenders: Sequence[Contender]) -> None:
    """Write `controls.json`: the contenders, what they cost, and what those score that are trained.

    jobs: of the trainings, by their seeds."""
    job = next(iter(jobs.values()))
    rows = []
    for contender in contenders:
        results = {str(seed): trained(of, contender) for seed, of in jobs.items()}
        row: dict[str, Any] = {"names": contender.names, "arch": contender.arch, "digest": contender.digest}
        row |= {"trial": contender.trial, "search_val": contender.searched}
        row |= job.space.cost(contender.arch, job.exp.imgsz)
        rows.append(row | {"scores": {s: r["metrics"][job.task.quality] for s, r in results.items() if r}})
    facts = {"by": controls_by(job.exp), "epochs": job.exp.train.epochs, "seeds": list(jobs), "rows": rows}
    write_text(Files(job.run.path).controls / "controls.json", json.dumps(facts, indent=2) + "\n")


def contenders_of(job: Job, searched: Trial | None) -> list[Contender]:
    """Who is trained, in the order of `controls.which`; equal archs once.

    searched: the best trial of the random search.
    """
    space, quality = job.space, job.task.quality
    winner = top_files(job.run)[0][1]

    def of_trial(name: str, trial: Trial) -> Contender:
        return Contender((name,), trial.arch, trial.number, trial.metrics.get(quality))

    found: list[Contender] = []
    for name in job.exp.controls.which:
        if name == "winner":
            record = winner.record
            found.append(Contender((name,), winner.arch, record["trial"], record["metrics"].get(quality)))
        elif name == "serial":
            found.append(of_trial(name, best_serial(job.run)))
        elif name == "random_search":
            found += [of_trial(name, searched)] if searched else []
        elif name == "random":
            archs = enumerate(at_cost_of(job, winner.arch), start=1)
            found += [Contender((name if n == 1 else f"{name} {n}",), arch) for n, arch in archs]
        else:
            ends = {"unsearched": space.default, "smallest": space.smallest, "largest": space.largest}
            found.append(Contender((name,), ends[name]()))
    return list(merged(found))


def merged(contenders: Sequence[Contender]) -> Iterator[Contender]:
    """Each arch once, by the names of all that have it."""
    of_key: dict[str, list[Contender]] = {}
    for contender in contenders:
        of_key.setdefault(arch_key(contender.arch), []).append(contender)
    for same in of_key.values():
        names = tuple(name for contender in same for name in contender.names)
        first = next((c for c in same if c.searched is not None), same[0])
        yield Contender(names, first.arch, first.trial, first.searched)


def best_serial(run: RunFolder) -> Trial:
    """The best trial of those before the step `parallel` began, or of all."""
    begun = [n for step, n in read_run(run.path).phases if step == "parallel"]
    trials = [t for t in run.history.load() if not begun or t.number < begun[0]]
    return top_trials(trials, 1)[0]


def at_cost_of(job: Job, arch: Arch) -> list[Arch]:
    """`controls.random` archs drawn at random, other than `arch`, that cost as much; fewer where the space
    has fewer."""
    wanted, size = job.exp.controls, job.exp.imgsz
    key = next((k for k in job.exp.search.objectives if k in PRICES), PRICES[0])
    cost = job.space.cost(arch, size)[key]
    low, high = cost * (1 - wanted.within), cost * (1 + wanted.within)
    for n in range(wanted.random + 1, 0, -1):  # one of them may be `arch` itself
        rng = np.random.default_rng([job.exp.seed, 0xC0])
        try:
            drawn = in_range(job.space, rng, low, high, size, n, key)
        except UserError:
            continue
        others = [a for a in drawn if arch_key(a) != arch_key(arch)][: wanted.random]
        if others:
            return others
    print(f"controls: no other architecture was drawn with {key} from {low:.4g} to {high:.4g}")
    return []


def search_at_random(run: RunFolder) -> Trial | None:
    """The best trial of a random search with as many trials as the run's own; None where that is random too.

    It is a run in `controls/random_search`, with the same data, limits, reward and supernet. Interrupted, it
    goes on where it was.
    """
    if run.experiment.search.strategy.name == "random":
        print("controls: the search is random itself, so there is no other random search beside it")
        return None
    sub, budget = random_run(run), budget_of(run)
    if len(completed_or_failed(sub)) < budget:
        print(f"controls: a random search with as many trials, {budget}, in {sub.path}")
        search_by(sub)
        write_report(sub.path)
    return top_trials(sub.history.load(), 1)[0]


def budget_of(run: RunFolder) -> int:
    """Trials that the run's search and its later phases had, and slices that were scored before them."""
    before = History(Files(run.path).sampled / "history.jsonl").load() if run.experiment.supernet else []
    return len(completed_or_failed(run)) + len(before)


def random_experiment(exp: Experiment, budget: int) -> Experiment:
    """The experiment of the random search beside a run's own."""
    changes: dict[str, Any] = {"strategy": Named(name="random"), "inherit": None, "screen": 0, "top_k": 1}
    changes |= {"max_trials": budget, "max_seconds": None}
    search = exp.search.model_copy(update=changes)
    name = f"{exp.name}-random_search"
    return exp.model_copy(update={"name": name, "steps": ["search"], "search": search})


def random_run(run: RunFolder) -> RunFolder:
    """The folder of the random search, new or as it was left. It sees the run's supernet, and what the run
    has measured of the unsearched network, so that limits and targets are the same."""
    files, exp = Files(run.path), random_experiment(run.experiment, budget_of(run))
    folder = files.random_search
    if (folder / "experiment.yaml").is_file():
        sub = RunFolder.open(folder)
        stop_leftovers(folder / "nni.json")
        sub.resume_with(exp)
    else:
        shutil.rmtree(folder, ignore_errors=True)  # killed while it was made: nothing is in it
        sub = RunFolder.create(folder, exp)
    if exp.supernet is not None and not Files(folder).supernet.exists():
        Files(folder).supernet.symlink_to(os.path.relpath(files.supernet, folder))
    job = job_of(str(run.path))
    sub.update_meta(baseline_costs=baseline_costs(job), precision=precision_of(job))
    if (run.path / "latency.json").is_file():
        shutil.copyfile(run.path / "latency.json", folder / "latency.json")
    return sub
