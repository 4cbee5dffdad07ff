"""The steps and commands `retrain` and `finetune`: architectures trained on all of train, scored on val.

The search never saw the `val` split. Weights to start from may be a supernet's: the arch's slice is taken out
of them first. A step goes trial by trial and can be interrupted: what is finished is not repeated.

A command answers mistakes before it imports torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.arch_file import ArchFile, handover_experiment, is_result, open_arch_file, top_files
from experiments.config import (
    OF_TRIALS,
    a_tenth_of,
    apply_overrides,
    finetune_settings,
    retrain_settings,
    retrain_start,
)
from experiments.inputs import open_splits
from experiments.run_folder import RunFolder, cache_beside, locked, marked_as_running
from utils.errors import UserError
from utils.files import own_json, write_text
from utils.report.results import extend_top, metrics_line
from utils.run_files import Files
from utils.training.settings import LATER, TrainSettings

if TYPE_CHECKING:
    from experiments.job import Job

ANOTHER_OUT = "--out DIR"


def retrain(
    arch_file: Path,
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    weights: Path | None = None,
    resume: bool = False,
    space_file: Path | None = None,
) -> dict[str, Any]:
    """Train one architecture on the full train split; returns the content of `OUT/result.json`.

    overrides: data=, imgsz=, device=, seed=, threads=, train.*=; by default as the search had them.
    out:       a folder that does not exist, by default runs/retrain-<run>-<N>
    weights:   to start from, through models/inherit.py, with an account; without it as its search did
    resume:    go on with `out` after an interruption; ends with the same weights, bit for bit on a CPU

    OUT gets last.pt (after the last epoch: its score is the reported one), best.pt (the best epoch on val, so
    its score flatters), log.csv and result.json.
    """
    found = open_arch_file(arch_file, space_file)
    weights, overrides = start_for(found, overrides, weights)
    return _train("retrain", found, overrides, {}, out, weights, resume)


def finetune(
    arch_file: Path,
    weights: Path,
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    resume: bool = False,
    space_file: Path | None = None,
) -> dict[str, Any]:
    """As `retrain`, short and gentle: from `weights`, a quarter of the epochs at a tenth of the lr.

    From a supernet's weights, or those of a slice of one, which are nearly trained: a tenth of the epochs of
    the supernet, and hardly a warm-up.
    """
    found = open_arch_file(arch_file, space_file)
    if any(item.startswith("weights=") for item in overrides):
        start_for(found, overrides, weights)  # says that they are given twice
    handover_experiment(found, overrides, name="finetune")  # mistakes are answered before torch is imported
    from models.weights import read_weights

    meta = read_weights(weights).meta
    inherited = bool(meta.get("supernet") or meta.get("sliced"))
    before = TrainSettings(**found.settings().get("train", {}))
    if inherited and isinstance(meta.get("train"), dict):  # the supernet's own schedule
        before = before.model_copy(
            update={k: meta["train"][k] for k in ("epochs", "lr") if k in meta["train"]}
        )
    changes = a_tenth_of(before)
    if inherited:
        changes |= found.experiment.get("finetune") or {}
    else:
        changes |= {"epochs": math.ceil(before.epochs / 4), "warmup_epochs": before.warmup_epochs}
    return _train("finetune", found, overrides, changes, out, weights, resume)


def start_for(
    found: ArchFile, overrides: Sequence[str], weights: Path | None
) -> tuple[Path | None, list[str]]:
    """What a training starts from, and the other overrides: what `--weights` or `weights=` says, else what
    the trainings of its search started from.

    Raises UserError where weights are given twice, or cannot be found.
    """
    said = [item for item in overrides if item.partition("=")[0] == "weights"]
    if len(said) + (weights is not None) > 1:
        given = [*([f"--weights {weights}"] if weights else []), *said]
        raise UserError(f"weights are given twice: {' and '.join(given)}; say one")
    name = str(weights) if weights else found.experiment.get("weights")
    if said:
        name = apply_overrides({}, said)["weights"]
    left = [item for item in overrides if item not in said]
    if name is None:
        return None, left
    if Path(str(name)).expanduser().is_file():
        return Path(str(name)).expanduser(), left
    from experiments.starts import find_weights  # imports torch

    return Path(find_weights(str(name), cache_beside(found.run or Path("runs") / "any"))), left


def _train(
    kind: str,
    found: ArchFile,
    overrides: Sequence[str],
    changes: Mapping[str, Any],
    out: Path | None,
    weights: Path | None,
    resume: bool,
) -> dict[str, Any]:
    name = f"{kind}-{found.run.name if found.run else found.space.stem}-{found.path.stem}"
    exp = handover_experiment(found, overrides, name=name, train=changes)
    if weights is not None and not weights.is_file():
        raise UserError(f"no weights {str(weights)!r}; expected a .pt file")
    folder = out or Path("runs") / name
    split_seed = found.settings().get("seed", exp.seed)
    plan = {"kind": kind, "arch": found.arch, "weights": _digest(weights) if weights else None}
    plan["split_seed"] = split_seed
    if resume:
        run = RunFolder.open(folder)
        before = own_json(Files(folder).plan)
        if not before:
            raise UserError(
                f"cannot resume {folder}: it has no readable plan.json, which says what it trains"
            )
        if before != plan:
            raise UserError(
                f"cannot resume {folder}: it is not the {kind} of {found.path} with these weights"
            )
        run.resume_with(exp, ANOTHER_OUT)
    else:
        RunFolder.check_free(folder, ANOTHER_OUT)
        open_splits(exp, cache_beside(folder), split_seed)  # mistakes are answered before there is a folder
        run = RunFolder.create(folder, exp, ANOTHER_OUT)
        write_text(Files(folder).plan, json.dumps(plan, indent=2) + "\n")
    finished = own_json(folder / "result.json", is_result)
    if finished:
        print(f"{folder} is finished already")
        return finished
    with locked(run), marked_as_running(run):
        from experiments.job import Job
        from experiments.training import train_in_full

        job = Job.open(run, split_seed)
        return train_in_full(job, found.arch, run.path, weights, kind=kind, calibration=found.calibration)


def _digest(file: Path) -> str:
    """SHA-256 of a file: wherever it lies now, it is the same one."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def retrain_top(run: RunFolder) -> None:
    """Train the top k, and the unsearched baseline beside them, on all of train; score on val. All begin from
    scratch, or all from the experiment's `weights`; with `start: trial` each from what its trial learnt, and
    with `start: reignited` from that after its backbone was trained as a classifier.

    Each in `retrain/<trial>/`; what came out is added to `top/N.json` as `retrained`. The `retrain:` block
    of the experiment may ask for a longer schedule than a trial's.
    """
    from experiments.job import job_of

    searched = job_of(str(run.path))
    job = searched.changed(train=retrain_settings(run.experiment))
    weights = Path(job.exp.weights) if job.exp.weights else None
    done = {}
    for number, arch in _wanted(job):
        start = _left_by(searched, number, arch) if retrain_start(job.exp) else weights
        done[number] = trained_in(Files(run.path).of_trial("retrain", number), job, arch, start)
    for rank, found in top_files(run):
        extend_top(run.path, rank, retrained=_summary(done[found.record["trial"]]))
    _print_best_first("retrained", done, job.task.quality)


def finetune_top(run: RunFolder) -> None:
    """Train the slices of the top k, and the unsearched baseline's beside them, a little longer as plain
    networks, on all of train; score on val.

    Each in `finetune/<trial>/`; what came out is added to `top/N.json` as `finetuned`.
    """
    from experiments.job import job_of

    job = job_of(str(run.path)).changed(train=finetune_settings(run.experiment))
    done = {}
    for number, arch in _wanted(job):
        folder, weights = Files(run.path).of_trial("finetune", number), run.trial_dir(number) / "weights.pt"
        done[number] = trained_in(folder, job, arch, weights, "finetune")
    for rank, found in top_files(run):
        extend_top(run.path, rank, finetuned=_summary(done[found.record["trial"]]))
    _print_best_first("fine-tuned", done, job.task.quality)


def _wanted(job: Job) -> list[tuple[int, dict[str, Any]]]:
    """(trial, arch) of the top k, and of the unsearched baseline that they are compared with."""
    wanted: dict[int, dict[str, Any]] = {found.record["trial"]: found.arch for _, found in top_files(job.run)}
    if job.exp.search.baseline:
        wanted.setdefault(0, job.space.default())
    return list(wanted.items())


def _print_best_first(what: str, done: Mapping[int, Mapping[str, Any]], quality: str) -> None:
    for number, outcome in sorted(done.items(), key=lambda item: -item[1]["metrics"][quality]):
        name = "the unsearched baseline" if number == 0 else f"trial {number}"
        print(f"{what} {name}: {metrics_line(outcome['metrics'])} on val")


def _summary(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """What `top/N.json` says of a training."""
    kept = {k: outcome[k] for k in ("split", "metrics", "best", "seconds")}
    return kept | {"epochs": outcome["train"]["epochs"], "seeds": [outcome["seed"]]}


def _left_by(job: Job, number: int, arch: dict[str, Any]) -> Path:
    """What a trial left for its retraining to begin with; made now, where backbones have to be reignited."""
    left = job.run.trial_dir(number) / "weights.pt"
    if not left.is_file():
        raise UserError(f"cannot retrain trial {number}: its start, {left}, is missing")
    if retrain_start(job.exp) != "reignited":
        return left
    from experiments.serial import reignite

    reignite(job, number, arch)
    return Files(job.run.path).reignited(number)


def _started_alike(outcome: Mapping[str, Any], start: str | None) -> bool:
    """Whether a retraining began with what a trial left, and with the same, or did not, as `start` says."""
    was = outcome.get("start")
    return (was if was in OF_TRIALS else None) == start


def finished(folder: Path, job: Job, kind: str) -> dict[str, Any] | None:
    """The result in `folder` if it is of the same schedule, seed and kind of start; else None."""
    before = own_json(folder / "result.json", is_result)
    same = before and LATER | before["train"] == job.exp.train.model_dump(mode="json")
    same = same and before.get("seed") == job.exp.seed
    if same and (kind != "retrain" or _started_alike(before, retrain_start(job.exp))):
        return before
    return None


def put_aside(folder: Path) -> Path:
    """Move the files of a training whose schedule was another to `earlier/` beside its folder, but for the
    pre-training of its backbone, which serves again; returns where they are."""
    numbers = (folder.parent / "earlier" / f"{folder.name}-{n}" for n in count(1))
    earlier = next(path for path in numbers if not path.exists())
    earlier.mkdir(parents=True)
    kept = [path for path in folder.iterdir() if path.name != "pretrain"]
    for path in sorted(kept, key=lambda path: path.name == "result.json"):  # it says that there is one: last
        path.rename(earlier / path.name)
    return earlier


def trained_in(
    folder: Path, job: Job, arch: dict[str, Any], weights: Path | None = None, kind: str = "retrain"
) -> dict[str, Any]:
    """The result in `folder` if it is of the same schedule, else a training there."""
    before = finished(folder, job, kind)
    if before is not None:
        return before
    if (folder / "result.json").is_file():
        put_aside(folder)
    from experiments.pretrain import backbone_of
    from experiments.training import train_in_full

    backbone = backbone_of(job, arch, folder, weights) if kind == "retrain" else None
    start = retrain_start(job.exp) if kind == "retrain" else None
    return train_in_full(job, arch, folder, weights, backbone=backbone, kind=kind, start=start)
