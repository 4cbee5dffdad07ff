"""From a found architecture to a detector in use: retrain, finetune, evaluate, export.

Each takes an architecture file (`top/N.json`) and leaves a folder or file that did not exist before. The
search never saw the `val` split; everything here is scored on it, apart from the scores of the search.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config import (
    ROOT,
    Experiment,
    apply_overrides,
    check_experiment,
    read_yaml_mapping,
)
from experiments.run_folder import RunFolder
from models.space import Arch, Space
from utils.errors import UserError
from utils.files import write_text
from utils.history import arch_key
from utils.results import load_arch_file

if TYPE_CHECKING:
    from data.dataset import Dataset
    from experiments.evaluators import Job
    from models.export import Exported
    from models.weights import WeightFile
    from models.yolo import YoloDetector
    from utils.measure import Calibration

RESULT_SCHEMA = 1
KEYS = ("data", "imgsz", "device", "seed", "threads", "train")  # of an experiment, that mean something here
SHOWN = ("map50_95", "map50", "params_m", "gflops", "latency_ms")


@dataclass(frozen=True)
class Found:
    """An architecture file and what lies around it."""

    path: Path
    record: dict[str, Any]
    space: Path
    arch: Arch
    run: Path | None  # the run folder it was found in

    def settings(self) -> dict[str, Any]:
        """The keys of `KEYS` as its search had them, as far as they are known."""
        raw = read_yaml_mapping(self.run / "experiment.yaml", "experiment") if self.run else {}
        known = {k: v for k, v in raw.items() if k in KEYS and v is not None}
        said = {k: self.record[k] for k in ("data", "imgsz") if self.record.get(k)}
        return said | known

    def weights(self) -> Path:
        """Its trained weights: beside it, or in its trial. UserError when there are none."""
        trial = self.record.get("trial")
        places = [self.path.with_suffix(".pt")]
        if self.run and isinstance(trial, int):
            places.append(self.run / "trials" / f"{trial:04d}" / "weights.pt")
        for place in places:
            if place.is_file():
                return place
        raise UserError(f"{self.path} has no weights beside it; give them by --weights FILE.pt")


def find(arch_file: Path) -> Found:
    """Read an architecture file and check it against its space. UserError for whatever is wrong."""
    record = load_arch_file(arch_file)
    run = arch_file.resolve().parent.parent
    inside = arch_file.resolve().parent.name == "top" and (run / "experiment.yaml").is_file()
    said = Path(record["space"]).expanduser()
    # A run keeps a copy of its space, which outlives the file it was made of.
    places = [run / "space" / said.name] if inside else []
    places += [arch_file.parent / said, said, ROOT / said, arch_file.parent / said.name]
    space = next((p for p in places if p.is_file()), None)
    if space is None:
        raise UserError(f"{arch_file}: its space {record['space']!r} does not exist; put it beside the file")
    try:
        arch = Space(space).canonical(record["arch"])
    except UserError as error:
        raise UserError(f"{arch_file} does not fit its space {space}: {error}") from None
    return Found(arch_file, record, space.resolve(), arch, run if inside else None)


def settle(
    found: Found, overrides: Sequence[str], *, name: str, train: Mapping[str, Any] | None = None
) -> Experiment:
    """What a hand-over is as an experiment: the search's settings, `train` changes, the user's overrides."""
    raw: dict[str, Any] = {"name": name, "space": str(found.space), "steps": [], **found.settings()}
    raw["train"] = {**(raw.get("train") or {}), **(train or {})}
    for item in overrides:
        key = item.partition("=")[0].split(".")[0]
        if key not in KEYS:
            raise UserError(f"{item!r} has no meaning here; known: {', '.join(KEYS[:-1])} and train.*")
    if "data" not in raw and not any(item.startswith("data=") for item in overrides):
        raise UserError(f"{found.path} does not say what data it is for; give --data DATA")
    return check_experiment(apply_overrides(raw, overrides), source=str(found.path))


def open_job(run: RunFolder, split_seed: int) -> Job:
    """What training needs. `split_seed`: of the search, so that a val split carved from train stays the same
    when the seed of the training is another."""
    from data.dataset import open_dataset
    from data.hyp import load_hyp
    from experiments.evaluators import Job
    from experiments.inputs import open_space

    exp = run.experiment
    dataset = open_dataset(exp.data, run.cache, seed=split_seed, val_fraction=exp.search.val_fraction)
    return Job(run, dataset, open_space(exp, dataset), load_hyp(exp.train.hyp))


# Training --------------------------------------------------------------------------------------------------


def retrain(
    arch_file: Path,
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    weights: Path | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train one architecture on the full train split; returns the content of `OUT/result.json`.

    overrides: data=, imgsz=, device=, seed=, threads=, train.*=; by default as the search had them.
    out:       a folder that does not exist, by default runs/retrain-<run>-<N>
    weights:   to start from, loaded by name and shape with an account; without it from scratch
    resume:    go on with `out` after an interruption; ends with the same weights, bit for bit on a CPU

    OUT gets last.pt (after the last epoch: its score is the reported one), best.pt (the best epoch on val, so
    its score flatters), log.csv and result.json.
    """
    changes: dict[str, Any] = {}
    if weights is not None:
        # The bias warm-up unlearns the prior of an untrained head; a trained one it would only disturb.
        changes["warmup_bias_lr"] = 0.0
    return _train("retrain", find(arch_file), overrides, changes, out, weights, resume)


def finetune(
    arch_file: Path,
    weights: Path,
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """As `retrain`, short and gentle: from `weights`, a quarter of the epochs at a tenth of the lr."""
    from utils.settings import TrainSettings

    found = find(arch_file)
    before = TrainSettings(**found.settings().get("train", {}))
    changes = {"epochs": math.ceil(before.epochs / 4), "lr": before.lr / 10, "warmup_bias_lr": 0.0}
    return _train("finetune", found, overrides, changes, out, weights, resume)


def _train(
    kind: str,
    found: Found,
    overrides: Sequence[str],
    changes: Mapping[str, Any],
    out: Path | None,
    weights: Path | None,
    resume: bool,
) -> dict[str, Any]:
    from experiments.run import locked, running

    name = f"{kind}-{found.run.name if found.run else found.space.stem}-{found.path.stem}"
    exp = settle(found, overrides, name=name, train=changes)
    if weights is not None and not weights.is_file():
        raise UserError(f"no weights {str(weights)!r}; expected a .pt file")
    folder = out or Path("runs") / name
    split_seed = found.settings().get("seed", exp.seed)
    plan = {"kind": kind, "arch": found.arch, "weights": str(weights.resolve()) if weights else None}
    plan["split_seed"] = split_seed
    if resume:
        run = RunFolder.open(folder)
        before = json.loads((folder / "plan.json").read_text()) if (folder / "plan.json").is_file() else None
        if before != plan:
            raise UserError(
                f"cannot resume {folder}: it is not the {kind} of {found.path} with these weights"
            )
        run.resume_with(exp)
    else:
        run = RunFolder.create(folder, exp)
        write_text(folder / "plan.json", json.dumps(plan, indent=2) + "\n")
    if (folder / "result.json").is_file():
        print(f"{folder} is finished already")
        return json.loads((folder / "result.json").read_text())
    with locked(run), running(run):
        return train_in_full(open_job(run, split_seed), found.arch, run.path, weights, kind=kind)


def train_in_full(
    job: Job,
    arch: Arch,
    folder: Path,
    weights: Path | None = None,
    *,
    kind: str = "retrain",
) -> dict[str, Any]:
    """Train `arch` on all of train, score it on val, and write what `retrain` promises into `folder`.

    Goes on from `folder/checkpoint.pt` when there is one.
    """
    import torch

    from experiments.evaluators import costs, loaders, threads_of
    from models.weights import load_weights, read_weights, save_weights
    from models.yolo import build
    from utils.evaluate import QUICK, evaluate
    from utils.loggers import open_loggers
    from utils.measure import device_info
    from utils.train import train

    exp, names = job.exp, job.dataset.names
    torch.set_num_threads(threads_of(exp))
    torch.manual_seed(exp.seed)
    detector = build(job.space, arch, names)
    detector.set_gains(**{gain: job.hyp[gain] for gain in ("box", "cls", "dfl")})
    account = load_weights(detector, weights) if weights else None
    if account:
        print(account)
    train_loader, val_loader = loaders(job, "train", "val")
    folder.mkdir(parents=True, exist_ok=True)
    best_file = folder / "best.pt"
    best: dict[str, float] = read_weights(best_file).meta["best"] if best_file.is_file() else {}

    def score(net: torch.nn.Module, last: bool) -> dict[str, float]:
        how: dict[str, Any] = {} if last else QUICK
        metrics = evaluate(net, val_loader, names, job.device, **how)
        if metrics["map50_95"] > best.get("map50_95", -1.0):
            best.update(map50_95=metrics["map50_95"])
            save_weights(best_file, net, job.space, arch, imgsz=exp.imgsz, names=names, best=best)
        return metrics

    checkpoint = folder / "checkpoint.pt"
    with open_loggers(exp.loggers, folder, name=folder.name) as log:
        result = train(
            detector,
            train_loader,
            settings=exp.train,
            seed=exp.seed,
            device=job.device,
            evaluate=score,
            on_epoch=lambda row: log.log(int(row["epoch"]), row),
            checkpoint=checkpoint,
        )
    metrics = result.metrics | costs(job, arch)
    outcome = {
        "schema": RESULT_SCHEMA,
        "kind": kind,
        "arch": arch,
        "space": exp.space,
        "data": {"name": job.dataset.name, "source": job.dataset.source, "licence": job.dataset.licence},
        "split": "val",
        "imgsz": exp.imgsz,
        "seed": exp.seed,
        "train": exp.train.model_dump(mode="json"),
        "started_from": account.to_dict() if account else None,
        "metrics": metrics,
        "best": {
            **best,
            "note": "the best epoch on val itself, so this flatters; metrics are of the last epoch",
        },
        "seconds": result.seconds,
        "curve": result.curve,
        "command": command(),
        "versions": device_info(job.device),
    }
    save_weights(
        folder / "last.pt", result.detector, job.space, arch, imgsz=exp.imgsz, names=names, kind=kind
    )
    write_text(folder / "result.json", json.dumps(outcome, indent=2) + "\n")
    checkpoint.unlink(missing_ok=True)
    print(f"{folder}: {one_line(metrics)} on val after {exp.train.epochs} epochs, seed {exp.seed}")
    return outcome


# Evaluating ------------------------------------------------------------------------------------------------


def evaluate_arch(
    arch_file: Path,
    overrides: Sequence[str] = (),
    *,
    weights: Path | None = None,
    split: str = "val",
    out: Path | None = None,
) -> dict[str, Any]:
    """mAP on a split, params, GFLOPs and latency of one trained architecture; `out`: a JSON to write.

    weights: by default those beside the file or of its trial. overrides: data=, imgsz=, device=, ...
    UserError when the weights are of another network or the classes are not those of the data.
    """
    found = find(arch_file)
    if out is not None and out.exists():
        raise UserError(f"{out} exists and is never overwritten; give another --out")
    exp = settle(found, overrides, name="evaluate")
    source = weights or found.weights()

    from data.dataset import open_dataset
    from experiments.inputs import open_space
    from utils.offline import cache_dir

    seed = found.settings().get("seed", exp.seed)
    cache = RunFolder(found.run, exp).cache if found.run else cache_dir() / "data"
    dataset = open_dataset(exp.data, cache, seed=seed, val_fraction=exp.search.val_fraction)
    if split not in dataset.splits:
        raise UserError(f"{dataset.name} has no split {split!r}; it has {', '.join(dataset.splits)}")
    detector, file = trained(open_space(exp, dataset), found.arch, source, dataset.names)
    outcome = measure(detector, exp, dataset, found, split) | {
        "weights": str(file.path),
        "command": command(),
    }
    print(f"{arch_file}: {one_line(outcome['metrics'])} on {split} ({len(dataset.splits[split])} images)")
    if out is not None:
        write_text(out, json.dumps(outcome, indent=2) + "\n")
    return outcome


def measure(
    detector: YoloDetector,
    exp: Experiment,
    dataset: Dataset,
    found: Found,
    split: str,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """Score and costs of a trained detector, as a JSON-able result."""
    import torch

    from data.loader import make_loader
    from experiments.evaluators import threads_of
    from utils.evaluate import evaluate
    from utils.measure import count_flops, count_params, device_info, latency, resolve_device

    device = resolve_device(exp.device)
    torch.set_num_threads(threads_of(exp))
    loader = make_loader(dataset.splits[split], dataset.names, exp.imgsz, 2 * exp.train.batch, train=False)
    metrics = evaluate(detector.to(device), loader, dataset.names, device)
    metrics |= {
        "params_m": count_params(detector.model) / 1e6,
        "gflops": count_flops(detector.model, exp.imgsz) / 1e9,
        **latency(detector.model, exp.imgsz, device, calibration=calibration),
    }
    return {
        "schema": RESULT_SCHEMA,
        "kind": "evaluate",
        "arch": found.arch,
        "data": {"name": dataset.name, "source": dataset.source, "licence": dataset.licence},
        "split": split,
        "imgsz": exp.imgsz,
        "metrics": metrics,
        "versions": device_info(device),
    }


def trained(
    space: Space, arch: Arch, weights: Path, names: Sequence[str] | None
) -> tuple[YoloDetector, WeightFile]:
    """The detector of `arch` with exactly these weights, in eval mode. UserError when they are of another."""
    from models.weights import load_weights, read_weights
    from models.yolo import build

    file = read_weights(weights)
    if file.arch is not None:
        difference = differing(space.canonical(arch), file.arch)
        if difference:
            raise UserError(f"weights {weights} are of another architecture: {difference}")
    if names and file.names and list(names) != file.names:
        raise UserError(
            f"weights {weights} were trained for the classes {', '.join(file.names)}, not {', '.join(names)}"
        )
    detector = build(space, arch, names or file.names or None)
    load_weights(detector, file, whole=True)
    return detector.eval(), file


def differing(ours: Arch, theirs: Mapping[str, Any]) -> str:
    """The first choice in which two archs differ, for an error message; "" for equal ones."""
    if arch_key(ours) == arch_key(theirs):
        return ""
    label = next(k for k in [*ours, *theirs] if ours.get(k) != theirs.get(k))
    return f"its {label} is {theirs.get(label, 'not said')}, here it is {ours.get(label, 'not said')}"


# Exporting -------------------------------------------------------------------------------------------------


def export_arch(
    arch_file: Path,
    format: str,
    *,
    weights: Path | None = None,
    out: Path | None = None,
    imgsz: int | None = None,
    threads: int = 1,
) -> Exported:
    """Write a trained architecture for other tools; see models/export.py for the formats and what is checked.

    weights: by default those of its trial. out: by default beside the architecture file.
    UserError when `out` exists, or when the weights are of another network.
    """
    found = find(arch_file)
    source = weights or found.weights()
    suffixes = {"openvino": "_openvino_model"}
    path = out or arch_file.with_name(arch_file.stem + suffixes.get(format, f".{format}"))
    if path.exists():
        raise UserError(f"{path} exists and is never overwritten; give another name by --out")

    from models.export import export
    from models.weights import read_weights

    file = read_weights(source)
    names = file.names or _names_of_data(found)
    space = Space(found.space, nc=file.nc or len(names))
    detector, _ = trained(space, found.arch, source, names)
    exported = export(
        detector,
        path,
        format,
        space=space,
        arch=found.arch,
        imgsz=imgsz or found.record["imgsz"],
        names=names,
        data=found.record.get("data"),
        threads=threads,
    )
    print(exported)
    return exported


def _names_of_data(found: Found) -> list[str]:
    """Class names where the weight file does not tell them."""
    data = found.settings().get("data")
    if not data:
        raise UserError(f"neither the weights nor {found.path} say what the classes are called")
    from data.dataset import open_dataset
    from utils.offline import cache_dir

    return open_dataset(data, cache_dir() / "data").names


def one_line(metrics: Mapping[str, float]) -> str:
    """`map50_95 0.5123, params_m 1.2, ...` for people."""
    return ", ".join(f"{key} {metrics[key]:.4g}" for key in SHOWN if key in metrics)


def command() -> str:
    """What was typed."""
    return shlex.join([Path(sys.executable).name, *sys.argv])
