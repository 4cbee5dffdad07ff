"""From a found architecture to a network in use: retrain, finetune, evaluate, export.

Each takes an architecture file (`top/N.json`) and leaves a folder or file that did not exist before. The
search never saw the `val` split; everything here is scored on it, apart from the scores of the search.

Weights may be a supernet's: the arch's slice is taken out of them first.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config import (
    ROOT,
    Experiment,
    apply_overrides,
    augmentation,
    check_experiment,
    hyp_file,
    read_yaml_mapping,
)
from experiments.run_folder import RunFolder, cache_beside
from models.networks import open_any_space
from models.space import Arch, Space
from utils.errors import UserError
from utils.files import own_json, write_text
from utils.history import arch_key
from utils.report.outcomes import best_weights
from utils.report.results import load_arch_file
from utils.report.runs import read_run

if TYPE_CHECKING:
    import torch

    from data.dataset import Dataset
    from experiments.evaluators import Job
    from experiments.tasks import Task
    from models.exported import Exported
    from models.weights import WeightFile
    from utils.training.measure import Calibration

RESULT_SCHEMA = 1
KEYS = ("data", "imgsz", "device", "seed", "threads", "train")  # of an experiment, that mean something here
ANOTHER_OUT = "--out DIR"
SHOWN = ("map50_95", "map50", "top1", "top5", "params_m", "gflops", "latency_ms")
CALIBRATION = 2048  # training images that re-estimate a slice's batch norm, where its run does not say


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
        known = {k: v for k, v in self.experiment.items() if k in KEYS and v is not None}
        said = {k: self.record[k] for k in ("data", "imgsz") if self.record.get(k)}
        return said | known | ({"imgsz": self.arch["resolution"]} if "resolution" in self.arch else {})

    @property
    def experiment(self) -> dict[str, Any]:
        """What the file of its run says; {} without a run."""
        return read_yaml_mapping(self.run / "experiment.yaml", "experiment") if self.run else {}

    @property
    def calibration(self) -> int:
        """Images that batch norm is re-estimated on."""
        return (self.experiment.get("supernet") or {}).get("calibration", CALIBRATION)

    def weights(self) -> Path:
        """Its trained weights: the best on val of its run, those beside it, or of its run's supernet.

        UserError when there are none.
        """
        trial = self.record.get("trial")
        places = [self.path.with_suffix(".pt")]
        if self.run:
            places.append(self.run / "supernet" / "weights.pt")
        if self.run and isinstance(trial, int):
            best = best_weights(self.run, trial, read_run(self.run).quality)
            places = [best, *places] if best else places
        for place in places:
            if place.is_file():
                return place
        raise UserError(f"{self.path} has no weights beside it; give them by --weights FILE.pt")


def find(arch_file: Path, space: Path | None = None) -> Found:
    """Read an architecture file and check it against its space. UserError for whatever is wrong.

    space: of an architecture as NNI exports it, which names none.
    """
    record = load_arch_file(arch_file, None if space is None else str(space))
    run = arch_file.resolve().parent.parent
    inside = arch_file.resolve().parent.name == "top" and (run / "experiment.yaml").is_file()
    said = Path(record["space"]).expanduser()
    # A run keeps a copy of its space, which outlives the file it was made of.
    places = [run / "space" / said.name] if inside else []
    places += [arch_file.parent / said, said, ROOT / said, arch_file.parent / said.name]
    places = places if space is None else [said, ROOT / said]
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        raise UserError(f"{arch_file}: its space {record['space']!r} does not exist; put it beside the file")
    try:
        arch = arch_of(record, open_any_space(path, nc=1))  # the classes change no arch
    except UserError as error:
        raise UserError(f"{arch_file} does not fit its space {path}: {error}") from None
    return Found(arch_file, record, path.resolve(), arch, run if inside else None)


def arch_of(record: Mapping[str, Any], space: Space) -> Arch:
    """The arch that an architecture file says, by `arch` or by United-Perception's `subnet_settings`, whose
    resolution is the file's `imgsz` where the space searches that.

    UserError for an arch that is not of this space, and for two that contradict each other.
    """
    arch = space.canonical(record["arch"]) if "arch" in record else None
    spelled = space.read_spelled(record)
    if arch is None or spelled is None:
        found = arch or spelled
        assert found is not None  # load_arch_file asks for one of the two
        return found
    if arch != spelled:
        raise UserError(
            f"arch and subnet_settings contradict each other: {differing(arch, spelled)}; drop one"
        )
    return spelled


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
    if "imgsz" not in raw and not any(item.startswith("imgsz=") for item in overrides):
        raise UserError(f"{found.path} does not say its image size; give imgsz=PIXELS")
    exp = check_experiment(apply_overrides(raw, overrides), source=str(found.path))
    side = found.arch.get("resolution", exp.imgsz)
    if exp.imgsz != side:
        raise UserError(f"imgsz={exp.imgsz} contradicts the arch of {found.path}, whose resolution is {side}")
    return exp


def open_job(run: RunFolder, split_seed: int) -> Job:
    """What training needs. `split_seed`: of the search, so that a val split carved from train stays the same
    when the seed of the training is another."""
    from data.hyp import load_hyp
    from experiments.evaluators import Job
    from experiments.inputs import open_space

    exp = run.experiment
    dataset = open_splits(exp, run.cache, split_seed)
    return Job(run, dataset, open_space(exp, dataset), load_hyp(hyp_file(exp, exp.train)))


def open_splits(exp: Experiment, cache: Path, split_seed: int) -> Dataset:
    """The experiment's data, split as the search with that seed had them."""
    from experiments.inputs import open_data

    return open_data(exp.model_copy(update={"seed": split_seed}), cache)


# Training --------------------------------------------------------------------------------------------------


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
    weights:   to start from, loaded by name and shape with an account; without it from scratch
    resume:    go on with `out` after an interruption; ends with the same weights, bit for bit on a CPU

    OUT gets last.pt (after the last epoch: its score is the reported one), best.pt (the best epoch on val, so
    its score flatters), log.csv and result.json.
    """
    changes: dict[str, Any] = {}
    if weights is not None:
        # The bias warm-up unlearns the prior of an untrained head; a trained one it would only disturb.
        changes["warmup_bias_lr"] = 0.0
    return _train("retrain", find(arch_file, space_file), overrides, changes, out, weights, resume)


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
    from utils.training.settings import TrainSettings

    found = find(arch_file, space_file)
    settle(found, overrides, name="finetune")  # mistakes are answered before torch is imported
    from models.weights import read_weights

    meta = read_weights(weights).meta
    inherited = bool(meta.get("supernet") or meta.get("sliced"))
    before = TrainSettings(**found.settings().get("train", {}))
    if inherited and isinstance(meta.get("train"), dict):  # the supernet's own schedule
        before = before.model_copy(
            update={k: meta["train"][k] for k in ("epochs", "lr") if k in meta["train"]}
        )
    changes: dict[str, Any] = {"lr": before.lr / 10, "warmup_bias_lr": 0.0}
    if inherited:
        epochs = math.ceil(before.epochs / 10)
        changes |= {"epochs": epochs, "warmup_epochs": min(before.warmup_epochs, epochs / 10)}
        changes |= found.experiment.get("finetune") or {}
    else:
        changes["epochs"] = math.ceil(before.epochs / 4)
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
        before = own_json(folder / "plan.json")
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
        write_text(folder / "plan.json", json.dumps(plan, indent=2) + "\n")
    finished = own_json(folder / "result.json", is_result)
    if finished:
        print(f"{folder} is finished already")
        return finished
    with locked(run), running(run):
        job = open_job(run, split_seed)
        return train_in_full(job, found.arch, run.path, weights, kind=kind, calibration=found.calibration)


def is_result(value: Mapping[str, Any]) -> bool:
    """Whether a result.json says what was trained and what came out."""
    return all(isinstance(value.get(key), dict) for key in ("train", "metrics"))


def train_in_full(
    job: Job,
    arch: Arch,
    folder: Path,
    weights: Path | None = None,
    *,
    kind: str = "retrain",
    calibration: int = CALIBRATION,
) -> dict[str, Any]:
    """Train `arch` on all of train, score it on val, and write what `retrain` promises into `folder`.

    Goes on from `folder/checkpoint.pt` when there is one. calibration: images that re-estimate the batch norm
    of a slice, where `weights` are a supernet's. A `finetune` sees no mosaics: it is too short to unlearn
    them (BCCD, five epochs from a slice of .480: .455 with them, .500 without).
    """
    import torch

    from experiments.evaluators import costs, loaders, threads_of
    from models.supernet import as_slice, sliced
    from models.weights import load_weights, read_weights, save_weights
    from utils.training.loggers import open_loggers
    from utils.training.measure import device_info
    from utils.training.train import train

    exp, names, task, side = job.exp, job.dataset.names, job.task, job.side(arch)
    if kind == "finetune":
        job = replace(job, hyp=job.hyp | {"close_mosaic": float(exp.train.epochs)})
    torch.set_num_threads(threads_of(exp))
    torch.manual_seed(exp.seed)
    detector = job.build(arch)
    print(augmentation(exp, exp.train))
    account = None
    if weights is not None:
        file = read_weights(weights)
        if file.meta.get("supernet"):
            images = training_images(job.dataset, job.task, side, exp.train.batch, job.device, calibration)
            net = sliced(file, job.space, arch, names, images, calibration, job.device)
            file = as_slice(file, net, arch)
        account = load_weights(detector, file)
        print(account)
    train_loader, val_loader = loaders(job, "train", "val", side)
    folder.mkdir(parents=True, exist_ok=True)
    best_file = folder / "best.pt"
    best: dict[str, float] = read_weights(best_file).meta["best"] if best_file.is_file() else {}

    def score(net: torch.nn.Module, last: bool) -> dict[str, float]:
        metrics = task.score(net, val_loader, names, job.device, not last)
        if metrics[task.quality] > best.get(task.quality, -1.0):
            best.update({task.quality: metrics[task.quality]})
            save_weights(best_file, net, job.space, arch, imgsz=side, names=names, best=best)
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
        "imgsz": side,
        "seed": exp.seed,
        "train": exp.train.model_dump(mode="json"),
        "augmentation": hyp_file(exp, exp.train),
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
    save_weights(folder / "last.pt", result.detector, job.space, arch, imgsz=side, names=names, kind=kind)
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
    space_file: Path | None = None,
) -> dict[str, Any]:
    """Quality on a split, params, GFLOPs and latency of one trained architecture; `out`: a JSON to write.

    weights: by default `Found.weights`; of a supernet the slice is scored, its batch norm re-estimated on
    training images. overrides: data=, imgsz=, device=, ...
    UserError when the weights are of another network or the classes are not those of the data.
    """
    found = find(arch_file, space_file)
    if out is not None and out.exists():
        raise UserError(f"{out} exists and is never overwritten; give another --out")
    exp = settle(found, overrides, name="evaluate")
    source = weights or found.weights()

    from experiments.inputs import open_space

    dataset = data_of(found, exp)
    if split not in dataset.splits:
        raise UserError(f"{dataset.name} has no split {split!r}; it has {', '.join(dataset.splits)}")
    space = open_space(exp, dataset)
    detector, file = trained(space, found.arch, source, dataset.names, (found, exp, dataset))
    outcome = measure(detector, exp, dataset, found.arch, split) | {
        "weights": str(file.path),
        "command": command(),
    }
    print(f"{arch_file}: {one_line(outcome['metrics'])} on {split} ({len(dataset.splits[split])} images)")
    if out is not None:
        write_text(out, json.dumps(outcome, indent=2) + "\n")
    return outcome


def data_of(found: Found, exp: Experiment) -> Dataset:
    """The data, split as the search of `found` had them."""
    from utils.offline import cache_dir

    cache = RunFolder(found.run, exp).cache if found.run else cache_dir() / "data"
    return open_splits(exp, cache, found.settings().get("seed", exp.seed))


def measure(
    detector: Any,
    exp: Experiment,
    dataset: Dataset,
    arch: Arch,
    split: str,
    calibration: Calibration | None = None,
    score: Callable[[Any, Any, Sequence[str], torch.device], dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Score and costs of a trained network, as a JSON-able result.

    calibration: of latency, at the size that the arch works on. score: (network, loader, class names, device)
    -> metrics, by default those of its task."""
    import torch

    from experiments.evaluators import threads_of
    from experiments.tasks import TASKS
    from utils.training.measure import count_flops, count_params, device_info, latency, resolve_device

    device, side = resolve_device(exp.device), int(arch.get("resolution", exp.imgsz))
    torch.set_num_threads(threads_of(exp))
    task = TASKS[dataset.task]
    loader = task.make_loader(dataset.splits[split], dataset.names, side, 2 * exp.train.batch, train=False)
    seen = detector.to(device), loader, dataset.names, device
    metrics = score(*seen) if score else task.score(*seen, False)
    metrics |= {
        "params_m": count_params(detector) / 1e6,
        "gflops": count_flops(detector, side) / 1e9,
        **latency(detector, side, device, calibration=calibration),
    }
    return {
        "schema": RESULT_SCHEMA,
        "kind": "evaluate",
        "arch": arch,
        "data": {"name": dataset.name, "source": dataset.source, "licence": dataset.licence},
        "split": split,
        "imgsz": side,
        "metrics": metrics,
        "versions": device_info(device),
    }


def trained(
    space: Space,
    arch: Arch,
    weights: Path,
    names: Sequence[str] | None,
    around: tuple[Found, Experiment, Dataset] | None = None,
) -> tuple[Any, WeightFile]:
    """The network of `arch` with exactly these weights, in eval mode. UserError when they are of another.

    around: what lies around the arch; needed where the weights are a supernet's, to re-estimate batch norm.
    """
    from models.networks import build
    from models.supernet import sliced
    from models.weights import load_weights, read_weights

    file = read_weights(weights)
    supernet = bool(file.meta.get("supernet"))
    if file.arch is not None and not supernet:
        difference = differing(space.canonical(arch), file.arch)
        if difference:
            raise UserError(f"weights {weights} are of another architecture: {difference}")
    if names and file.names and list(names) != file.names:
        raise UserError(
            f"weights {weights} were trained for the classes {', '.join(file.names)}, not {', '.join(names)}"
        )
    names = names or file.names or None
    if not supernet:
        detector = build(space, arch, names)
        load_weights(detector, file, whole=True)
        return detector.eval(), file
    if around is None:
        raise UserError(NEEDS_IMAGES.format(weights))

    from experiments.tasks import TASKS
    from utils.training.measure import resolve_device

    found, exp, dataset = around
    device, side = resolve_device(exp.device), int(arch.get("resolution", exp.imgsz))
    n, task = found.calibration, TASKS[space.task]
    images = training_images(dataset, task, side, exp.train.batch, device, n)
    return sliced(file, space, arch, names, images, n, device), file


NEEDS_IMAGES = (
    "weights {} are a supernet's, and a slice's batch norm has to be re-estimated on training images; give "
    "--data DATA, or the weights of this one arch (trials/NNNN/weights.pt or finetune/NNNN/last.pt of a run)"
)


def training_images(
    dataset: Dataset, task: Task, side: int, batch: int, device: torch.device, n: int
) -> Iterator[torch.Tensor]:
    """`n` images of train, not augmented, in equal batches [B, 3, side, side], 0..1."""
    import torch

    from data.dataset import mixed
    from utils.training.batch import prepare

    chosen = mixed(dataset.splits["train"], n)
    parts = math.ceil(len(chosen) / (2 * batch))  # batch norm counts each batch alike: none is a remainder
    for part in torch.arange(len(chosen)).tensor_split(parts):
        some = [chosen[int(i)] for i in part]
        for ready in task.make_loader(some, dataset.names, side, len(some), train=False):
            yield prepare(ready, device)["img"]


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
    data: str | None = None,
    space_file: Path | None = None,
) -> Exported:
    """Write a trained architecture for other tools; see models/export.py for the formats and what is checked.

    weights: by default those of its trial. out: by default beside the architecture file.
    data: where the weights are a supernet's, what the slice's batch norm is re-estimated on; by default what
    the file says it is for.
    UserError when `out` exists, or when the weights are of another network.
    """
    found = find(arch_file, space_file)
    source = weights or found.weights()
    if out is not None and out.exists():
        raise UserError(f"{out} exists and is never overwritten; give another name by --out")

    from models.export import check_format, export, file_name
    from models.weights import read_weights

    space = open_any_space(found.space, nc=1)  # whatever the classes
    check_format(format, space)
    if imgsz is not None:
        space.cost(found.arch, imgsz)  # says which sizes its strides allow
    path = out or arch_file.with_name(file_name(arch_file.stem, format, space))
    if path.exists():
        raise UserError(f"{path} exists and is never overwritten; give another name by --out")
    file, around = read_weights(source), None
    if file.meta.get("supernet"):
        if not (data or found.settings().get("data")):
            raise UserError(NEEDS_IMAGES.format(source))
        overrides = [f"data={json.dumps(data)}"] if data else []
        exp = settle(found, [*overrides, *([f"imgsz={imgsz}"] if imgsz else [])], name="export")
        around = found, exp, data_of(found, exp)
    side = imgsz or found.arch.get("resolution") or found.record["imgsz"] or file.imgsz
    if side is None:
        raise UserError(f"neither {arch_file} nor its weights say the image size; give --imgsz PIXELS")
    names = around[2].names if around else file.names or _names_of_data(found)
    space = open_any_space(found.space, nc=file.nc or len(names))
    detector, _ = trained(space, found.arch, source, names, around)
    exported = export(
        detector.cpu(),
        path,
        format,
        space=space,
        arch=found.arch,
        imgsz=int(side),
        names=names,
        data=data or found.record.get("data"),
        threads=threads,
    )
    print(exported)
    return exported


def _names_of_data(found: Found) -> list[str]:
    """Class names where the weight file does not tell them."""
    if not found.settings().get("data"):
        raise UserError(f"neither the weights nor {found.path} say what the classes are called")
    return data_of(found, settle(found, [], name="export")).names


def one_line(metrics: Mapping[str, float]) -> str:
    """`map50_95 0.5123, params_m 1.2, ...` for people."""
    return ", ".join(f"{key} {metrics[key]:.4g}" for key in SHOWN if key in metrics)


def command() -> str:
    """What was typed."""
    return shlex.join([Path(sys.executable).name, *sys.argv])
