"""An experiment from start to finish: open what it names, run its steps in order, keep everything on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from numpy.random import default_rng

from data.dataset import Dataset
from experiments.config import (
    EVALUATOR_GETS,
    SCRATCH,
    Experiment,
    load_experiment,
    own_files,
    retrain_start,
    wanted_metrics,
)
from experiments.engine.gpus import gpus_to_share
from experiments.engine.processes import check_port, stop_leftovers
from experiments.engine.runtime_settings import check_training_service
from experiments.inputs import check_box_sizes, open_data, open_space
from experiments.run_folder import NO_UI, RunFolder, WebUi, cache_beside, locked, marked_as_running
from experiments.sample import draw
from models.networks import open_any_space
from models.space import Space
from utils.errors import UserError, unknown
from utils.file_measures import KINDS, check_packages, file_qualities, kinds_of
from utils.files import printed_to
from utils.limits import check_limits, parse_limits
from utils.plugin import check_arguments, load_function
from utils.rewards import COST_KEYS, DRIFT, QUALITIES, QUALITY_KEYS, check_reward, task_objectives
from utils.run_files import Files
from utils.steps import STEPS
from utils.target import Target, check_answers
from utils.training.loggers import check_loggers


def run_experiment(
    path: Path | None,
    overrides: Sequence[str],
    *,
    run_dir: Path | None = None,
    resume: bool = False,
    ui: WebUi = NO_UI,
) -> RunFolder:
    """Run the steps of an experiment in its folder. Raises UserError for whatever the user can put right.

    path: an experiment file; None = the one stored in `run_dir` (only to resume)
    """
    if path is None:
        assert run_dir is not None
        stored = RunFolder.open(run_dir)
        path = stored.path / "experiment.yaml"
        files = {"space": stored.space_file}
        files |= {f"search.{key}.name": path for key, path in own_files(stored.experiment).items()}
        # The originals may be gone.
        overrides = [*(f"{key}={json.dumps(str(p))}" for key, p in files.items()), *overrides]
    experiment = load_experiment(path, overrides)
    experiment = check_names(experiment)
    folder = run_dir or Path("runs") / experiment.name
    experiment = with_weights(experiment, cache_beside(folder))
    if not resume:
        RunFolder.check_free(folder)
        check_inputs(experiment, cache_beside(folder), ui)
        check_target(experiment)
        run = RunFolder.create(folder, experiment)
        run.ui = ui
        with locked(run):
            run_steps(run)
        return run
    run = RunFolder.open(folder)
    with locked(run):
        stop_leftovers(run.path / "nni.json")  # of a process that was killed: they may hold the port
        check_inputs(experiment, cache_beside(folder), ui)
        run.resume_with(experiment)
        run.ui = ui
        run_steps(run)
    return run


def run_steps(run: RunFolder) -> None:
    """One step after the other; what they print is in `log.txt` too."""
    try:
        with marked_as_running(run), printed_to(run.path / "log.txt"):
            for step in run.experiment.steps:
                module, function = STEPS[step].run.split(":")  # imported now: torch and NNI take seconds
                getattr(import_module(f"experiments.{module}"), function)(run)
    finally:
        # After a Ctrl-C or an error too, and with the state as it is now.
        if run.history.path.is_file() or (Files(run.path).supernet / "log.csv").is_file():
            from utils.report.report import write_report

            write_report(run.path)


def check_names(exp: Experiment) -> Experiment:
    """Names and values that can be wrong by themselves. Takes milliseconds. Raises UserError.

    Returns the experiment with the objectives of its task: what is mAP for detectors is accuracy for
    classifiers.
    """
    from experiments.strategies import check_strategy

    search = exp.search
    check_strategy(search.strategy.name, search.strategy.options)
    parse_limits(search.limits)
    for key in search.objectives:
        if key not in (*QUALITY_KEYS, *COST_KEYS):
            raise unknown("metric", key, (*QUALITY_KEYS, *COST_KEYS))
    check_loggers(exp.loggers)
    quality = QUALITIES[open_any_space(exp.space, nc=1).task][0]
    measurable = (*COST_KEYS, *file_qualities(quality))
    for key in search.measure:
        if key not in measurable:
            raise unknown("metric to measure", key, measurable)
    if DRIFT in wanted_metrics(exp) and not exp.weights:
        raise UserError("drift is how far an arch is from `weights`, and there are none: give weights=FILE")
    check_packages(kinds_of(wanted_metrics(exp), quality))
    check_reward(search.reward.name, search.reward.options, metric=quality)
    if search.evaluator is not None:
        function = load_function(search.evaluator.name, "evaluate")
        check_arguments(function, EVALUATOR_GETS, search.evaluator.options, search.evaluator.name)
    objectives = task_objectives(search.objectives, quality)
    return exp.model_copy(update={"search": search.model_copy(update={"objectives": objectives})})


def with_weights(exp: Experiment, cache: Path) -> Experiment:
    """The experiment with its weight files found, or fetched. UserError for one that is not there."""
    if not exp.weights and not any(member.weights for member in exp.family):
        return exp
    from experiments.starts import find_weights  # imports torch

    def found(name: str | None) -> str | None:
        return find_weights(name, cache) if name and name != SCRATCH else name

    family = [m.model_copy(update={"weights": found(m.weights)}) for m in exp.family]
    return exp.model_copy(update={"weights": found(exp.weights), "family": family})


def check_starts(exp: Experiment, space: Space, dataset: Dataset) -> None:
    """Do the weights that trainings start from fit their networks? UserError for those that do not."""
    starts = [(space, exp.weights)]
    for member in exp.family if "baselines" in exp.steps else ():
        of = open_space(exp.model_copy(update={"space": member.space}), dataset)
        starts.append((of, member.weights or exp.weights))
    for of, weights in starts:
        if weights and weights != SCRATCH:
            from experiments.starts import check_start  # imports torch

            check_start(weights, of, dataset.names)


def check_inputs(exp: Experiment, cache: Path, ui: WebUi) -> None:
    """Do data, space, limits, device and port fit together? Before anything is written. Raises UserError."""
    check_machines(exp, ui)
    dataset = open_data(exp, cache)
    check_box_sizes(exp, dataset)
    space = open_space(exp, dataset)
    costs = space.cost(space.default(), exp.imgsz)
    limits = parse_limits(exp.search.limits, costs)
    share = check_limits(space, limits, exp.imgsz, default_rng(exp.seed))
    if known := [f"{limit.key} {limit}" for limit in limits if limit.key in costs]:
        print(f"limits: {share:.1%} of random architectures meet {', '.join(known)}")
    if unknown := [f"{key} {said}" for key, said in exp.search.limits.items() if key not in costs]:
        print(f"limits: {', '.join(unknown)}, which is measured of each architecture")
    for step in exp.steps:
        wanted = {"sample": exp.sample, "sample_accuracy": exp.sample_accuracy}.get(step)
        if wanted is not None and wanted.gflops is not None:
            draw(space, exp.imgsz, wanted.n, exp.seed, *wanted.gflops, wanted.traverse)
    check_starts(exp, space, dataset)
    reignites = "retrain" in exp.steps and retrain_start(exp) == "reignited"
    if reignites or exp.pretrain is not None and ("pretrain" in exp.steps or exp.pretrain.winners):
        from experiments.pretrain import check_pretrain

        check_pretrain(exp, space, dataset, cache)
    if exp.supernet is not None:
        from experiments.supernet import check_supernet

        check_supernet(exp, space, dataset)


def check_machines(exp: Experiment, ui: WebUi) -> None:
    """Port, other machines, processes, device and GPUs. Raises UserError."""
    started = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if started != "1":
        raise UserError(
            f"torchrun started this {started} times, but a run starts its own processes: start it once, with "
            f"supernet.devices={started}"
        )
    service = exp.search.training_service or {}
    if "search" in exp.steps and exp.search.engine == "nni":
        if ui.port is not None:
            check_port(ui.host, ui.port)
        check_training_service(service, ui.host)
    indices = service.get("gpu_indices")
    if exp.device in ("auto", "cpu") and indices is None:
        return
    from utils.training.measure import resolve_device  # imports torch

    if resolve_device(exp.device).type == "cuda" or indices is not None:
        gpus_to_share(exp.device, indices)


def check_target(exp: Experiment) -> None:
    """UserError where files are to be timed on another machine that does not answer. Of new runs only: one
    that is resumed may have timed all that it needs."""
    target = exp.search.target
    if target.host is not None and {kind.ms for kind in KINDS} & wanted_metrics(exp):
        check_answers(Target(target.host, target.python))


def report(run: RunFolder) -> None:
    """A model card for each of the top k; the report itself is written at the end of every run."""
    from utils.report.model_card import write_model_card

    for path in run.path.glob("top/[0-9]*.json"):
        write_model_card(run.path, int(path.stem))
    print(f"report: {run.path / 'report.html'}")
