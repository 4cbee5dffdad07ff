"""The steps that follow a search: `retrain`, `finetune` and `export` of its top k, and the unsearched family;
`evaluate` is in experiments/findings.py.

All are done trial by trial and can be interrupted: what is finished is found again and not repeated.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config import augmentation, finetune_settings, retrain_settings
from experiments.handover import Found, find, is_result, one_line, train_in_full, trained
from experiments.run_folder import RunFolder
from utils.errors import UserError
from utils.files import own_json
from utils.history import History, Trial
from utils.report.outcomes import best_weights
from utils.report.results import extend_top
from utils.report.runs import quality_of

if TYPE_CHECKING:
    from experiments.evaluators import Job

BASELINES = "baselines.jsonl"


def top(run: RunFolder) -> list[tuple[int, Found]]:
    """(rank, architecture file) of the run's top k. UserError when the search has left none."""
    files = sorted(
        (p for p in (run.path / "top").glob("*.json") if p.stem.isdigit()), key=lambda p: int(p.stem)
    )
    if not files:
        raise UserError(f"{run.path} has no top models yet; run its step `search` first")
    return [(int(path.stem), find(path)) for path in files]


def retrain_top(run: RunFolder) -> None:
    """Train the top k, and the unsearched baseline beside them, from scratch on all of train; score on val.

    Each in `retrain/<trial>/`; what came out is added to `top/N.json` as `retrained`. The `retrain:` block
    of the experiment may ask for a longer schedule than a trial's.
    """
    from experiments.evaluators import prepare, with_schedule

    job = with_schedule(prepare(str(run.path)), retrain_settings(run.experiment))
    done = {
        number: _trained_in(run.path / "retrain" / f"{number:04d}", job, arch)
        for number, arch in _wanted(job)
    }
    for rank, found in top(run):
        extend_top(run.path, rank, retrained=_summary(done[found.record["trial"]]))
    _print_best_first("retrained", done, job.task.quality)


def finetune_top(run: RunFolder) -> None:
    """Train the slices of the top k, and the unsearched baseline's beside them, a little longer as plain
    networks, on all of train; score on val.

    Each in `finetune/<trial>/`; what came out is added to `top/N.json` as `finetuned`.
    """
    from experiments.evaluators import prepare, with_schedule

    job = with_schedule(prepare(str(run.path)), finetune_settings(run.experiment))
    done = {}
    for number, arch in _wanted(job):
        folder, weights = run.path / "finetune" / f"{number:04d}", run.trial_dir(number) / "weights.pt"
        done[number] = _trained_in(folder, job, arch, weights, "finetune")
    for rank, found in top(run):
        extend_top(run.path, rank, finetuned=_summary(done[found.record["trial"]]))
    _print_best_first("fine-tuned", done, job.task.quality)


def _wanted(job: Job) -> list[tuple[int, dict[str, Any]]]:
    """(trial, arch) of the top k, and of the unsearched baseline that they are compared with."""
    wanted: dict[int, dict[str, Any]] = {found.record["trial"]: found.arch for _, found in top(job.run)}
    if job.exp.search.baseline:
        wanted.setdefault(0, job.space.default())
    return list(wanted.items())


def _print_best_first(what: str, done: Mapping[int, Mapping[str, Any]], quality: str) -> None:
    for number, outcome in sorted(done.items(), key=lambda item: -item[1]["metrics"][quality]):
        name = "the unsearched baseline" if number == 0 else f"trial {number}"
        print(f"{what} {name}: {one_line(outcome['metrics'])} on val")


def _summary(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """What `top/N.json` says of a training."""
    kept = {k: outcome[k] for k in ("split", "metrics", "best", "seconds")}
    return kept | {"epochs": outcome["train"]["epochs"], "seeds": [outcome["seed"]]}


def _trained_in(
    folder: Path, job: Job, arch: dict[str, Any], weights: Path | None = None, kind: str = "retrain"
) -> dict[str, Any]:
    """The result in `folder` if it is of the same schedule, else a training there."""
    file = folder / "result.json"
    before = own_json(file, is_result)
    if before:
        if before["train"] == job.exp.train.model_dump(mode="json"):
            return before
        for path in folder.iterdir():  # another schedule was asked for: ours to replace, we made it
            path.unlink()
    return train_in_full(job, arch, folder, weights, kind=kind)


def weights_of(job: Job, found: Found) -> Path:
    """The best weights of one of the top k. UserError when it has none."""
    number = found.record["trial"]
    best = best_weights(job.run.path, number, quality_of(job.exp.search.objectives))
    if best is None:
        raise UserError(
            f"{found.path} has no weights in {job.run.path}: {job.run.trial_dir(number)} is empty"
        )
    return best


def export_top(run: RunFolder) -> None:
    """The top k with their best weights for other tools, each checked: `top/N.onnx`, and `top/N.pt` for
    Ultralytics or, of other networks, `top/N.pt2` for plain torch."""
    from experiments.evaluators import prepare
    from models.export import export, file_name

    job = prepare(str(run.path))
    for rank, found in top(run):
        weights = weights_of(job, found)
        detector, _ = trained(job.space, found.arch, weights, job.dataset.names)
        files = {}
        for format in ("pt", "onnx"):
            path = found.path.with_name(file_name(found.path.stem, format, job.space))
            path.unlink(missing_ok=True)  # an earlier export of this same run
            exported = export(
                detector,
                path,
                format,
                space=job.space,
                arch=found.arch,
                imgsz=job.side(found.arch),
                names=job.dataset.names,
                data=job.exp.data,
            )
            print(exported)
            files[format] = {"file": path.name, "max_difference": exported.max_difference, **exported.values}
        extend_top(run.path, rank, exported={"weights": str(weights.relative_to(run.path)), **files})


def train_family(run: RunFolder) -> None:
    """Train the unsearched default of every YAML in `family:` as a trial is trained: the line to beat.

    Same data, splits, schedule and seed. In a run that also searches they go to `baselines.jsonl`, which its
    report draws beside the trials; in a run of its own they are its history.
    """
    from experiments.evaluators import note_facts, prepare, reward_of, train_and_measure
    from experiments.inputs import open_space
    from utils.training.train import TrainingFailed

    exp, job = run.experiment, prepare(str(run.path))
    if not exp.family:
        raise UserError("the step `baselines` needs `family: [detector.yaml, ...]` in the experiment")
    note_facts(job)
    print(augmentation(exp, exp.train))
    line = History(run.path / BASELINES) if "search" in exp.steps else run.history
    known = {t.arch["model"] for t in line.load() if t.state == "complete"}
    for number, path in enumerate(exp.family):
        name = Path(path).stem
        if name in known:
            continue
        space = open_space(exp.model_copy(update={"space": path}), job.dataset)
        arch = space.default()
        print(
            f"baseline {name}: {space.cost(arch, exp.imgsz)['gflops']:.4g} GFLOPs, {exp.train.epochs} epochs"
        )
        started, clock = time.time(), time.perf_counter()
        curve: list[dict[str, float]] = []
        outcome: dict[str, Any]
        try:
            metrics = train_and_measure(replace(job, space=space), arch, run.path / "baselines" / name, curve)
            outcome = {"metrics": metrics, "reward": reward_of(job)(metrics)}
        except TrainingFailed as error:
            outcome = {"state": "failed", "reason": str(error)}
        seconds = time.perf_counter() - clock
        # The default archs of n and s are equal as choices, so these go by the name of their file.
        trial = Trial(
            number, {"model": name}, **outcome, seconds=seconds, seed=exp.seed, started=started, curve=curve
        )
        line.append(trial)
        print(f"baseline {name}: {trial.reason or one_line(trial.metrics)}")
