"""What a search of serial codes goes on with: `reignition` and `parallel`, SP-NAS's phases after the first.

Each puts further trials behind those of the search. `meta.json` holds with which trial a phase began
(`phases`), so that an interrupted one goes on where it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from experiments.config import Named
from experiments.job import Job, job_of
from experiments.pretrain import pretrain_arch
from experiments.run_folder import RunFolder
from experiments.search import completed_or_failed, search_by
from experiments.starts import begin
from experiments.strategies import population_of
from models.space import Arch
from models.weights import save_weights
from utils.errors import UserError
from utils.history import Trial
from utils.pareto import pareto_front, trials_without_gain
from utils.run_files import Files


def reignition(run: RunFolder) -> None:
    """Where the front of the search has stalled: train its backbones as classifiers and search on from there,
    for `reignition.max_trials` further trials, at most `reignition.times` times.

    It has stalled when none of the last `patience` times a population of trials came onto it; with a patience
    of 0 nothing is waited for, as in Vega. What the
    classifiers learn is put into the detectors of the front, `reignition/<trial>/weights.pt`, from which
    their children start, those with extra streams too. UserError where there is no search to go on with.
    """
    _serial_space(run)
    exp, settings = run.experiment, run.experiment.reignition
    if exp.search.inherit != "parent":
        raise UserError(
            "the step reignition needs `search.inherit: parent`: children start from what it makes"
        )
    wait = settings.patience * population_of(exp.search.strategy.options, exp.search.max_trials)
    for turn in range(settings.times):
        begun = _begun(run, "reignition", turn)
        before = _before(run, begun)
        if not any(t.state == "complete" for t in before):
            raise UserError(f"the step reignition has no front to go on from: {_why_none(before)}")
        idle = trials_without_gain(before, exp.search.objectives)
        if idle < wait:
            print(f"reignition: the front did not stall: {idle} trials since it last grew, {wait} would do")
            break
        if begun is None:
            why = f"no trial came onto the front among the last {idle}" if wait else "nothing is waited for"
            print(f"reignition {turn + 1}: {why}")
            begun = _begin(run, "reignition", turn)
        job = job_of(str(run.path))
        for trial in pareto_front(before, exp.search.objectives):
            reignite(job, trial.number, trial.arch)
        budget = begun + settings.max_trials
        search_by(run, exp.search.model_copy(update={"max_trials": budget}), first=begun)


def reignite(job: Job, number: int, arch: Arch) -> None:
    """Train a trial's backbone as a classifier, from the trial's weights, and put it into its detector:
    `reignition/<trial>/weights.pt`. Done once; interrupted, it goes on.

    Raises UserError where the trial has no weights.
    """
    target = Files(job.run.path).reignited(number)
    weights = job.run.trial_dir(number) / "weights.pt"
    if target.is_file():
        return
    if not weights.is_file():
        raise UserError(f"cannot reignite trial {number}: no {weights.relative_to(job.run.path)}")
    backbone = pretrain_arch(job, arch, target.parent / "classifier", weights)
    torch.manual_seed(job.exp.seed)
    net = job.build(arch)
    begin(job, net, arch, target.parent, weights)
    begin(job, net, arch, target.parent, backbone, least=0)
    save_weights(target, net, job.space, arch, imgsz=job.side(arch), names=job.dataset.names)


def parallel(run: RunFolder) -> None:
    """Train codes of the front with extra streams drawn beside their stages, as further trials of the run.

    Each starts from its code's weights where `search.inherit` is `parent`: streams begin by changing nothing.
    Interrupted, it goes on where it was. UserError where the search before it left no code.
    """
    _serial_space(run)
    begun = _begun(run, "parallel")
    begun = _begin(run, "parallel") if begun is None else begun
    before = _before(run, begun)
    if before and not any(t.state == "complete" for t in before):
        raise UserError(f"the step parallel has no code to put streams beside: {_why_none(before)}")
    settings = run.experiment.search
    budget = begun + run.experiment.parallel.max_trials
    further = settings.model_copy(update={"strategy": Named(name="streams"), "max_trials": budget})
    search_by(run, further, first=begun)


def _serial_space(run: RunFolder) -> None:
    from models.networks import open_any_space

    if not hasattr(open_any_space(run.experiment.space, nc=1), "with_streams"):
        name = Path(run.space_file).name
        raise UserError(f"this step needs a space of serial codes (code: ...), not {name}")


def _phases(run: RunFolder) -> list[dict[str, Any]]:
    found = run.meta.get("phases")
    return found if isinstance(found, list) else []


def _begun(run: RunFolder, step: str, turn: int = 0) -> int | None:
    """The number of the trial with which a step began, the `turn`-th time; None where it did not yet."""
    begun = [phase["from"] for phase in _phases(run) if phase["step"] == step]
    return int(begun[turn]) if turn < len(begun) else None


def _begin(run: RunFolder, step: str, turn: int = 0) -> int:
    begun = len(completed_or_failed(run))
    run.update_meta(phases=[*_phases(run), {"step": step, "from": begun}])
    return begun


def _before(run: RunFolder, begun: int | None) -> list[Trial]:
    return [t for t in run.history.load() if t.number >= 0 and (begun is None or t.number < begun)]


def _why_none(trials: list[Trial]) -> str:
    if not trials:
        return "nothing was searched yet; list the step search before it"
    return f"all {len(trials)} trials before it failed, the last one: {trials[-1].reason}"
