"""Where the trainings of a run start: from scratch, from a file's weights, or from those of a parent.

All but scratch goes through models/inherit.py. `weights: FILE` in an experiment is the start of everything
that it trains: trials, the supernet, baselines, retraining and the trainings of `rank`. With `search.inherit:
parent` a child of a strategy that has parents starts from what its (first) parent has learnt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data.sample import mixed
from experiments.arch_file import CALIBRATION
from experiments.job import Job
from experiments.sources import source
from experiments.trained import training_images
from models.inherit import LEAST, Account, Source, inherit
from models.networks import build
from models.refit import apart, maps, refit, shared
from models.remember import Mimicking
from models.space import Arch, Space
from models.supernet import as_slice, sliced
from models.weights import WeightFile, plain, read_weights
from utils.errors import UserError
from utils.files import own_json, write_text
from utils.history import Trial
from utils.run_files import Files, said_in
from utils.sides import area
from utils.training.batch import to_device
from utils.training.settings import TrainSettings
from utils.training.train import TrainingFailed, train

PIXELS = 2**21  # of the images that a cut is repaired on, all in one pass
MOVED = 0.1  # of the variance of maps: what is worth recovering
# Of the recovery, however else a run trains.
RECOVERY: dict[str, Any] = {
    "lr": 0.002,
    "lr_final": 0.02,
    "inherited_lr": 1.0,
    "backbone_lr": None,
    "optimizer": "AdamW",
    "momentum": 0.9,
    "schedule": "linear",
    "weight_decay": 0.0,
    "warmup_epochs": 1.0,
    "warmup_bias_lr": 0.0,
    "freeze": [],
}
FILE = "start.json"  # in the folder of a training: where it started, and what became of each layer


@dataclass(frozen=True)
class Start:
    """Where a training starts. name: what histories and reports call it. of_trial: learnt in this run."""

    path: Path
    name: str
    of_trial: bool = False


@dataclass
class Begun:
    """What a network has begun with.

    teacher: the network that the weights are of, as it was, for `models.remember`; None where nobody wants
        it, it cannot be built, or it has learnt these very images.
    moved: how far a cut has left the network's maps from the teacher's, as a share of their variance.
    """

    account: Account
    teacher: Any = None
    moved: float = 0.0

    def taken(self) -> Any:
        """The teacher, which is the caller's alone from now on."""
        teacher, self.teacher = self.teacher, None
        return teacher


def start_of(job: Job) -> Start | None:
    """Where a training of this job starts: its first parent whose weights are there, else its file."""
    for number in job.parents if job.exp.search.inherit == "parent" else ():
        path = job.run.trial_dir(number) / "weights.pt"
        if ended(job, number).state == "complete" and not path.is_file():
            raise TrainingFailed(f"the weights of its parent, trial {number}, are missing: no {path}")
        if (again := Files(job.run.path).reignited(number)).is_file():
            return Start(again, f"trial {number}, reignited", of_trial=True)
        if path.is_file():
            return Start(path, f"trial {number}", of_trial=True)
    return Start(Path(job.exp.weights), Path(job.exp.weights).name) if job.exp.weights else None


def ended(job: Job, number: int) -> Trial:
    """A trial of the run; where it still runs, beside its first children, it is waited for."""
    while True:
        found = [t for t in job.run.history.load() if t.number == number]
        if found:
            return found[-1]
        time.sleep(0.2)


def begin(
    job: Job,
    net: Any,
    arch: Arch,
    folder: Path,
    weights: Path | None = None,
    calibration: int = CALIBRATION,
    least: float = LEAST,
    of_trial: bool = False,
) -> Begun | None:
    """Start a network of the job's space: from `weights`, else where the job says, else from scratch (None).
    The account of it goes to `folder/start.json`.

    least: share of the network's numbers that the start should give; 0 for a backbone under a large head.
    of_trial: `weights` are what a trial has learnt.

    Where `weights` are a supernet's, from the arch's slice, its batch norm re-estimated on so many images.
    """
    start = Start(weights, weights.name, of_trial) if weights else start_of(job)
    if start is None:
        return None
    given: Path | WeightFile = start.path
    if weights is not None:
        given = read_weights(weights)
        if given.meta.get("supernet"):
            given = _slice(job, given, arch, calibration)
    found = source(given, job.space)
    account = inherit(net, found, into=job.space.name, least=least)
    keep_account(account, start.name, folder, job.run.path)
    if not least:  # a backbone alone was never cut
        return Begun(account)
    file = found.file if isinstance(found, Source) else found
    cut = bool(job.exp.refit) and (file.arch or job.space.default()) != arch
    teacher = original(job, found, file) if cut or job.exp.train.mimic else None
    moved = repair(job, net, arch, teacher) if cut and teacher else 0.0
    learnt_here = start.of_trial or file.meta.get("sliced")
    return Begun(account, None if learnt_here else teacher, moved)


def original(job: Job, start: Source | WeightFile, file: WeightFile) -> Any:
    """The network that weights are of, with them; None where they are of another space, such as a
    classifier's: it cannot be built here."""
    if file.arch and file.space != plain(job.space.model):
        return None
    with torch.random.fork_rng(devices=[]):
        teacher = build(job.space, file.arch or job.space.default(), job.dataset.names)
    inherit(teacher, start, into=job.space.name, least=0.0)  # what fits its cuts may be little of it
    return teacher


def repair(job: Job, net: Any, arch: Arch, teacher: Any) -> float:
    """Fit what a cut has changed in a network to what the network that was cut gives (models/refit.py);
    returns what is left of the distance between their maps."""
    side, chosen = job.side(arch), mixed(job.dataset.splits["search_train"], job.exp.refit)
    chosen = chosen[: max(2, PIXELS // area(side))]
    loader = job.task.make_loader(chosen, job.dataset.names, side, len(chosen), train=False)
    images = to_device(next(iter(loader)), torch.device("cpu"))["img"]
    target = maps(teacher, images)
    changed = refit(net, teacher, images, target)
    if not changed:
        return 0.0
    print(f"  {changed} convolutions fitted to what they gave before the cut, on {len(chosen)} images")
    left = apart(maps(net, images), target, shared(net, teacher))
    return float(torch.stack(left).mean()) if left else 0.0


def recover(
    job: Job, net: Any, teacher: Any, moved: float, loader: Any, settings: TrainSettings, folder: Path
) -> None:
    """Train a network that was cut, without labels, to give the maps that its weights gave, for
    `settings.recover` times the epochs of its training; what came of it goes to `folder/start.json`.

    Not one that was hardly moved: what is left of it then a training does not notice.
    """
    epochs = round(settings.recover * settings.epochs)
    if moved < MOVED or not epochs:
        return
    started = time.monotonic()
    result = train(
        net,
        loader,
        settings=settings.model_copy(update=RECOVERY | {"epochs": epochs, "val_every": epochs}),
        seed=job.exp.seed,
        device=job.device,
        progress=False,
        lesson=partial(Mimicking, teacher=teacher),
    )
    net.load_state_dict(result.detector.state_dict())
    off = [row["loss/mimic"] for row in result.curve]
    found = {"epochs": epochs, "seconds": time.monotonic() - started, "off": off}
    _say(folder, own_json(folder / FILE) | {"recovered": found})
    took = f"{epochs} {'epoch' if epochs == 1 else 'epochs'} in {found['seconds']:.0f} s"
    print(
        f"  recovered without labels, {took}: its maps are {100 * off[-1]:.0f} % of their variance off, "
        f"{100 * off[0]:.0f} % in the first"
    )


def _slice(job: Job, file: WeightFile, arch: Arch, calibration: int) -> WeightFile:
    """The weights of an arch's slice of a supernet's file."""
    side, batch, names = job.side(arch), job.exp.train.batch, job.dataset.names
    images = training_images(job.dataset, job.task, side, batch, job.device, calibration)
    return as_slice(file, sliced(file, job.space, arch, names, images, calibration, job.device), arch)


def keep_account(account: Account, name: str, folder: Path, root: Path) -> None:
    """Print the account of a start, and write the whole of it. root: the run that `folder` is of.

    How its network recovered stays there where its training goes on, or gets a backbone afterwards.
    """
    print(account)
    folder.mkdir(parents=True, exist_ok=True)
    stays = {key: value for key, value in own_json(folder / FILE).items() if key == "recovered"}
    _say(folder, {"start": name} | told(account, folder, root) | stays)


def _say(folder: Path, said: dict[str, Any]) -> None:
    write_text(folder / FILE, json.dumps(said, indent=2) + "\n")


def told(account: Account, folder: Path, root: Path) -> dict[str, Any]:
    """An account for a JSON file in `folder`, which may be moved with the run `root`."""
    return account.to_dict() | {"path": said_in(folder, account.path, root)}


def start_facts(folder: Path) -> dict[str, Any]:
    """What a line of history says of a training's start: its name and the share of inherited numbers."""
    said = own_json(folder / FILE, lambda said: {"start", "share"} <= said.keys())
    return {"from": said["start"], "share": round(said["share"], 4)} if said else {}


def recovery_seconds(folder: Path) -> float:
    """How long the network of a training took to recover; 0 where it did not."""
    return float(own_json(folder / FILE).get("recovered", {}).get("seconds", 0.0))


def note_start(job: Job) -> None:
    """Say where a run's trainings start, and how much the unsearched network has of that: printed, and for
    reports in meta.json."""
    if job.exp.weights:
        account = check_start(job.exp.weights, job.space, job.dataset.names)
        print(account)
        start = {"from": Path(job.exp.weights).name, "share": round(account.share, 4)}
        job.run.update_meta(start=start)


def check_start(weights: str, space: Space, names: Sequence[str]) -> Account:
    """What the unsearched network of a space has of a file, the classes being `names`.

    Raises UserError where it does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        net = space.build(space.default(), names)
    return inherit(net, source(Path(weights), space), into=space.name)


def find_weights(name: str, cache: Path) -> str:
    """The path of a weight file; one that Ultralytics publishes is fetched into `cache` if it is no file yet.

    Raises UserError, one line, where it is neither, or cannot be fetched.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return str(path.resolve())
    from utils.offline import quiet_ultralytics

    quiet_ultralytics()
    from ultralytics.utils import downloads

    if path.parent != Path() or name not in downloads.GITHUB_ASSETS_NAMES:
        raise UserError(
            f"no weights {name!r}; expected a file, or a name that Ultralytics publishes: yolov5nu.pt"
        )
    there = cache / "weights" / name
    if not there.is_file():
        there.parent.mkdir(parents=True, exist_ok=True)
        print(f"{name} is fetched from {downloads.GITHUB_ASSETS_REPO} into {there.parent}")
        try:
            downloads.attempt_download_asset(there, retry=0, progress=False)
        except Exception as error:  # whatever a network can do
            raise _unfetched(name, there, error) from None
        if not there.is_file():
            raise _unfetched(name, there, None)
    return str(there.resolve())


def _unfetched(name: str, there: Path, error: Exception | None) -> UserError:
    reason = f" ({type(error).__name__})" if error else ""
    return UserError(
        f"{name} could not be fetched{reason}: get it from https://github.com/ultralytics/assets/releases "
        f"and put it at {there}, or give its path"
    )
