"""An experiment from start to finish: open what it names, run its steps in order, keep everything on disk."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config import Experiment, load_experiment
from experiments.processes import check_port
from experiments.run_folder import RunFolder
from models.space import Space
from utils.errors import UserError, unknown
from utils.files import write_text
from utils.history import Trial
from utils.limits import parse_limits
from utils.rewards import COST_KEYS, QUALITY_KEYS, check_reward

if TYPE_CHECKING:
    from experiments.evaluators import Job

REPORT_EVERY = 60.0  # seconds between two reports while a search runs


@dataclass(frozen=True)
class WebUi:
    """Where NNI's web UI listens; port None = any free port."""

    port: int | None = 8083
    host: str = "127.0.0.1"


def run_experiment(
    path: Path | None,
    overrides: Sequence[str],
    *,
    run_dir: Path | None = None,
    resume: bool = False,
    ui: WebUi = WebUi(),
) -> RunFolder:
    """Run the steps of an experiment in its folder. Raises UserError for whatever the user can put right.

    path: an experiment file; None = the one stored in `run_dir` (only to resume)
    """
    if path is None:
        assert run_dir is not None
        path = RunFolder.open(run_dir).path / "experiment.yaml"
    experiment = load_experiment(path, overrides)
    check_before_work(experiment, ui)
    folder = run_dir or Path("runs") / experiment.name
    run = RunFolder.open(folder) if resume else RunFolder.create(folder, experiment)
    if resume:
        run.resume_with(experiment)
    with running(run):
        for step in run.experiment.steps:
            STEP_FUNCTIONS[step](run, ui)
    return run


def check_before_work(exp: Experiment, ui: WebUi) -> None:
    """What can be known to be wrong before anything heavy is imported. Raises UserError."""
    from experiments.strategies import check_strategy

    search = exp.search
    check_strategy(search.strategy.name, search.strategy.options)
    check_reward(search.reward.name, search.reward.options)
    parse_limits(search.limits)
    for key, known in ((search.objectives, (*QUALITY_KEYS, *COST_KEYS)), (search.measure, COST_KEYS)):
        for name in key:
            if name not in known:
                raise unknown("metric", name, known)
    Space(exp.space)
    if "search" in exp.steps and search.engine == "nni" and ui.port is not None:
        check_port(ui.host, ui.port)


def search(run: RunFolder, ui: WebUi) -> None:
    """Ask the strategy, train what it asks for, tell it the reward; then write down what was found."""
    from experiments.evaluators import evaluate_trial, prepare
    from experiments.nni_runtime import SearchRuntime, run_search
    from models.nas import YoloSpace

    exp = run.experiment
    job = prepare(str(run.path))
    print(job.dataset.summary())
    print(opening(job))
    strategy = strategy_of(job)
    runtime = SearchRuntime(
        run_dir=run.path,
        name=exp.name,
        engine=exp.search.engine,
        max_seconds=exp.search.max_seconds,
        max_trial_seconds=exp.search.max_trial_seconds,
        concurrency=exp.search.concurrency,
        port=ui.port,
        host=ui.host,
        gpus_per_trial=1 if job.device.type == "cuda" else None,
        threads=exp.threads,
        warm_import="experiments.evaluators:warm_up",
        training_service=exp.search.training_service,
    )
    space = YoloSpace(job.space.model, job.space.nc, job.space.ch)
    try:
        with follow(job):
            outcome = run_search(space, evaluate_trial, {"run_dir": str(run.path)}, strategy, runtime)
    finally:
        write_results(job)
    if outcome.status == "interrupted":
        raise KeyboardInterrupt
    if strategy.message:
        print(strategy.message)


def strategy_of(job: Job) -> Any:
    """The experiment's strategy inside the rules of a search, after a check that the limits can be met."""
    from numpy.random import default_rng

    from experiments.evaluators import costs
    from experiments.strategies import build_strategy
    from utils.limits import check_limits

    exp, search = job.exp, job.exp.search
    limits = parse_limits(search.limits)
    share = check_limits(job.space, limits, exp.imgsz, default_rng(exp.seed))
    if limits:
        print(f"limits: {share:.0%} of random architectures meet {', '.join(f'{x.key} {x}' for x in limits)}")
    return build_strategy(
        search.strategy.name,
        search.strategy.options,
        job.space,
        seed=exp.seed,
        budget=search.max_trials,
        run_dir=job.run.path,
        objectives=search.objectives,
        limits=limits,
        cost=lambda arch: costs(job, arch),
        baseline=search.baseline,
    )


def opening(job: Job) -> str:
    """What is about to be searched, in a few lines; also kept in the run's meta.json."""
    from experiments.evaluators import baseline_costs, threads_of
    from utils.measure import device_info

    exp, costs = job.exp, baseline_costs(job)
    job.run.update_meta(
        data={"name": job.dataset.name, "source": job.dataset.source, "licence": job.dataset.licence},
        names=job.dataset.names,
        device=str(job.device),
        threads=threads_of(exp),
        versions=device_info(job.device),
    )
    distinct = job.space.size()[1]
    lines = [*job.space.notices]
    lines.append(
        f"space: {job.space.name}, {len(job.space.choices)} choices, {distinct:.3g} distinct architectures; "
        f"the unsearched one has {costs['params_m']:.3f} M params, {costs['gflops']:.4f} GFLOPs "
        f"at {exp.imgsz} px"
    )
    lines.append(
        f"search: {exp.search.strategy.name}, {exp.search.max_trials} trials of {exp.train.epochs} epochs, "
        f"{exp.search.concurrency} at a time, on {job.device}"
    )
    return "\n".join(lines)


def write_results(job: Job) -> None:
    """results.csv, the top k as JSON with their weights, and the table at the end; from the history alone."""
    from utils.results import results_table, write_csv, write_top

    exp, run = job.exp, job.run
    trials = run.history.load()
    if not trials:
        return
    write_csv(run.path, trials)
    write_top(
        run.path,
        trials,
        exp.search.top_k,
        space=exp.space,
        data=exp.data,
        imgsz=exp.imgsz,
        versions=run.meta["versions"],
    )
    keep_weights_of_the_best(job, trials)
    print(results_table([t for t in trials if t.state != "infeasible"], exp.search.objectives))


def keep_weights_of_the_best(job: Job, trials: Sequence[Trial]) -> None:
    """Drop the weights of trials that are neither in the top k, nor on the front, nor the baseline."""
    from utils.pareto import pareto_front
    from utils.runs import top_trials

    search = job.exp.search
    best = {0, *(t.number for t in top_trials(trials, search.top_k))}
    best |= {t.number for t in pareto_front(trials, search.objectives)}
    for trial in trials:
        if trial.number >= 0 and trial.number not in best:
            (job.run.trial_dir(trial.number) / "weights.pt").unlink(missing_ok=True)


@contextmanager
def follow(job: Job) -> Iterator[None]:
    """While the search runs, in a thread: a progress bar, a line a finished trial, a report that keeps up."""
    from tqdm.auto import tqdm

    from utils.report import write_report

    run, done = job.run, threading.Event()
    before = {t.key for t in run.history.load()}

    def watch() -> None:
        seen, written = set(before), time.monotonic()
        with tqdm(total=job.exp.search.max_trials, unit="trial", initial=len(before), leave=False) as bar:
            while True:
                last = done.wait(1.0)
                trials = run.history.load()
                for trial in trials:
                    if trial.key not in seen:
                        seen.add(trial.key)
                        bar.write(one_line(trial))
                        bar.update(trial.state != "infeasible")
                if trials and (last or time.monotonic() - written > REPORT_EVERY):
                    keep_weights_of_the_best(job, trials)
                    write_report(run.path)
                    written = time.monotonic()
                if last:
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def one_line(trial: Trial) -> str:
    """A finished trial for the terminal."""
    if trial.state != "complete":
        return f"trial {trial.number}: {trial.state}, {trial.reason}"
    shown = {"mAP50-95": "map50_95", "params_m": "params_m", "gflops": "gflops", "latency_ms": "latency_ms"}
    parts = [f"{name} {trial.metrics[key]:.4g}" for name, key in shown.items() if key in trial.metrics]
    return f"trial {trial.number}: reward {trial.reward:.4f}, {', '.join(parts)}, {trial.seconds:.0f} s"


def report(run: RunFolder, ui: WebUi) -> None:
    """report.html, pareto.png and results.csv."""
    from utils.report import write_report

    print(f"report: {write_report(run.path)}")


def after(name: str) -> Callable[[RunFolder, WebUi], None]:
    """A step of experiments/steps.py, imported only when it runs."""

    def step(run: RunFolder, ui: WebUi) -> None:
        from experiments import steps

        getattr(steps, name)(run)

    return step


STEP_FUNCTIONS: dict[str, Callable[[RunFolder, WebUi], None]] = {
    "search": search,
    "baselines": after("train_family"),
    "retrain": after("retrain_top"),
    "evaluate": after("evaluate_top"),
    "export": after("export_top"),
    "report": report,
}


@contextmanager
def running(run: RunFolder) -> Iterator[None]:
    """Hold the run folder for this process alone, and keep `run.json` true for `status`."""
    with open(run.path / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{run.path} is in use by another process; `status` shows what it does") from None
        facts: dict[str, Any] = {
            "pid": os.getpid(),
            "started": time.time(),
            "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        }

        def say(state: str) -> None:
            write_text(run.path / "run.json", json.dumps(facts | {"state": state}, indent=2) + "\n")

        say("running")
        try:
            yield
        except KeyboardInterrupt:
            say("interrupted")
            raise
        except BaseException as error:
            say(f"failed: {' '.join(str(error).split()) or type(error).__name__}")
            raise
        say("finished")
