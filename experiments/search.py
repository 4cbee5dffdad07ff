"""The step `search`: ask the strategy, train what it asks for, write down what was found."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tqdm.auto import tqdm

from experiments.config import SearchSettings, augmentation
from experiments.engine.nni_runtime import SearchRuntime, run_search
from experiments.evaluators import evaluate_trial
from experiments.job import Job, baseline_costs, costs, job_of, note_facts, quick_costs, say_if_busy
from experiments.run_folder import RunFolder
from experiments.screen import screened, screens
from experiments.starts import note_start
from experiments.strategies import build_strategy
from models.nni_space import model_space
from utils.errors import UserError
from utils.file_measures import file_qualities
from utils.history import History, Trial
from utils.limits import parse_limits
from utils.pareto import pareto_front
from utils.report.progress import running_trials, search_left
from utils.report.report import write_report
from utils.report.results import extend_top, results_table, write_csv, write_top
from utils.report.runs import Run, completed, duration, exported_trials, read_run
from utils.report.summary import named_trials
from utils.rewards import COST_KEYS
from utils.run_files import Files
from utils.sides import shown

REPORT_EVERY = 60.0  # seconds between two reports while a search runs


def search(run: RunFolder) -> None:
    """Search and leave the results in the run folder, also when the search is interrupted.

    Raises KeyboardInterrupt when it was interrupted.
    """
    search_by(run)


def search_by(run: RunFolder, further: SearchSettings | None = None, first: int = 0) -> None:
    """`search`, by the run's own settings or others.

    further: how to go on after the run's own search, from trial number `first` on: its trials are known then.
    Raises KeyboardInterrupt when it was interrupted.
    """
    job_of.cache_clear()  # this process may have opened the run before it was resumed with other settings
    job = job_of(str(run.path))
    if further is not None:
        job = replace(job, run=RunFolder(run.path, run.experiment.model_copy(update={"search": further})))
    exp = job.exp
    print(job.dataset.summary())
    print(describe_search(job))
    if exp.supernet is None:
        say_if_busy(job)
    evaluator = evaluator_of(job)
    strategy = strategy_of(job, first)
    seen = model_space(job.space, trained=exp.supernet is None)
    runtime = SearchRuntime(
        run_dir=run.path,
        name=exp.name,
        engine=exp.search.engine,
        max_trials=max(1, exp.search.max_trials - len(completed_or_failed(run))),
        max_seconds=exp.search.max_seconds,
        max_trial_seconds=exp.search.max_trial_seconds,
        concurrency=exp.search.concurrency,
        port=run.ui.port,
        host=run.ui.host,
        gpus_per_trial=1 if job.device.type == "cuda" else None,
        device=exp.device,
        threads=exp.threads,
        warm_import=f"{evaluator.__module__}:warm_up",
        training_service=exp.search.training_service,
    )
    try:
        with progress_shown(job):
            outcome = run_search(seen, evaluator, {"run_dir": str(run.path)}, strategy, runtime)
    finally:
        write_results(job)
    if outcome.status == "interrupted":
        raise KeyboardInterrupt(outcome.signal)
    if strategy.message:
        print(strategy.message)
    trials = run.history.load()
    if not completed(trials):
        reasons = [t.reason for t in trials if t.state == "failed"]
        raise UserError(f"no trial completed; the last one failed: {reasons[-1] if reasons else 'none ran'}")


def completed_or_failed(run: RunFolder) -> list[Trial]:
    """What counts against the budget: all but what was never trained."""
    return [t for t in run.history.load() if t.state != "infeasible"]


def evaluator_of(job: Job) -> Callable[..., None]:
    """What a trial does: train its arch, or score its slice of the run's supernet."""
    if job.exp.supernet is None:
        return evaluate_trial
    from experiments.slices import evaluate_slice, trained_supernet

    trained_supernet(str(job.run.path))  # says so now if there is none
    return evaluate_slice


def strategy_of(job: Job, first: int = 0) -> Any:
    """The experiment's strategy inside the rules of a search (experiments/strategies)."""
    exp, search = job.exp, job.exp.search
    known = History(Files(job.run.path).sampled / "history.jsonl").load()
    return build_strategy(
        search.strategy.name,
        search.strategy.options,
        job.space,
        seed=exp.seed,
        budget=search.max_trials,
        run_dir=job.run.path,
        objectives=search.objectives,
        limits=parse_limits(search.limits, baseline_costs(job)),
        cost=lambda arch: costs(job, arch),
        quick_cost=lambda arch: quick_costs(job, arch),
        baseline=search.baseline,
        known=[t for t in job.run.history.load() if 0 <= t.number < first] if first else known,
        first=first,
        begin=screened(job) if screens(exp) and not first else (),
    )


def describe_search(job: Job) -> str:
    """What is about to be searched, in a few lines; also kept in the run's meta.json."""
    exp, unsearched = job.exp, baseline_costs(job)
    note_facts(job)
    note_start(job)
    distinct = job.space.size()[1]
    lines = [*job.space.notices]
    lines.append(
        f"space: {job.space.name}, {len(job.space.choices)} choices, {distinct:.3g} distinct architectures; "
        f"the unsearched one has {unsearched['params_m']:.3f} M params, {unsearched['gflops']:.4f} GFLOPs "
        f"at {shown(exp.imgsz)} px"
    )
    epochs = f"{exp.train.epochs} epoch{'s' if exp.train.epochs > 1 else ''}"
    each = f"trials of {epochs}" if exp.supernet is None else "slices of the supernet"
    lines.append(
        f"search: {exp.search.strategy.name}, {exp.search.max_trials} {each}, "
        f"{exp.search.concurrency} at a time, on {job.device}"
    )
    if exp.supernet is None:
        lines.append(augmentation(exp, exp.train))
    return "\n".join(lines)


def write_results(job: Job) -> None:
    """results.csv, the top k as JSON with their weights, and the table at the end; from the history alone."""
    exp, run = job.exp, job.run
    trials = run.history.load()
    if not trials:
        return
    write_csv(run.path, trials)
    front = exp.search.objectives if exp.search.top == "front" else None
    write_top(
        run.path,
        trials,
        exp.search.top_k,
        space=exp.space,
        data=exp.data,
        imgsz=exp.imgsz,
        versions=run.meta.get("versions"),
        front=front,
    )
    for rank, trial in enumerate(exported_trials(trials, exp.search.top_k, front), start=1):
        extend_top(run.path, rank, **job.space.spelled(trial.arch))
    if exp.supernet is not None:
        from experiments.slices import save_slices

        search = exp.search
        named = named_trials(trials, search.objectives, search.top_k, baseline=search.baseline)
        save_slices(run, [t.number for t in (*named, *exported_trials(trials, search.top_k, front))])
    keep_weights_of_the_best(job, trials)
    trained = [t for t in trials if t.state != "infeasible"]
    print(results_table(trained, exp.search.objectives, baseline=exp.search.baseline))


def keep_weights_of_the_best(job: Job, trials: Sequence[Trial]) -> None:
    """Drop the weights of trials that are neither named in the report nor on the front, nor the baseline.

    All stay where children start from their parents'.
    """
    if job.exp.search.inherit:
        return
    search = job.exp.search
    named = named_trials(trials, search.objectives, search.top_k, baseline=search.baseline)
    best = {0, *(t.number for t in named)}
    best |= {t.number for t in pareto_front(trials, search.objectives)}
    for trial in trials:
        if trial.number >= 0 and trial.number not in best:
            (job.run.trial_dir(trial.number) / "weights.pt").unlink(missing_ok=True)


@contextmanager
def progress_shown(job: Job) -> Iterator[None]:
    """While the search runs, in a thread: a progress bar, a line a finished trial, a report that keeps up."""
    run, done = job.run, threading.Event()
    seen = {t.key for t in run.history.load()}

    def watch() -> None:
        written = time.monotonic()
        with tqdm(total=job.exp.search.max_trials, unit="trial", initial=len(seen), disable=None) as bar:
            last = False
            while not last:
                last = done.wait(1.0)
                new = [t for t in run.history.load() if t.key not in seen]
                for trial in new:
                    seen.add(trial.key)
                    bar.write(trial_line(trial))
                    bar.update(trial.state != "infeasible")
                if not bar.disable:
                    bar.set_postfix_str(progress_line(read_run(run.path)))
                if new and time.monotonic() - written > REPORT_EVERY:
                    keep_weights_of_the_best(job, run.history.load())
                    write_report(run.path)
                    written = time.monotonic()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def progress_line(run: Run) -> str:
    """Where the search and each running trial are, for the progress bar."""
    running = running_trials(run)
    left = search_left(run, running)
    parts = [] if left is None else [f"about {duration(left)} left"]
    return " | ".join([*parts, *(trial.line(run.quality) for trial in running)])


def trial_line(trial: Trial) -> str:
    """A finished trial for the terminal."""
    if trial.state == "infeasible":
        return f"not trained: {trial.reason}"
    if trial.state == "stopped":
        return f"trial {trial.number}: {trial.reason}, {trial.seconds:.0f} s"
    if trial.state != "complete":
        return f"trial {trial.number}: {trial.state}, {trial.reason}"
    shown = {"mAP50-95": "map50_95", "top-1": "top1"}
    shown |= {key: key for key in (*COST_KEYS, *file_qualities("map50_95"), *file_qualities("top1"))}
    parts = [f"{name} {trial.metrics[key]:.4g}" for name, key in shown.items() if key in trial.metrics]
    return f"trial {trial.number}: reward {trial.reward:.4f}, {', '.join(parts)}, {trial.seconds:.0f} s"
