"""An architecture file, `top/N.json` or a user's own, and what lies around it: its space, run and weights.

Everything here is answered without torch, so that a mistake costs no seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.sample import Dataset
from experiments.config import ROOT, Experiment, apply_overrides, check_experiment, read_yaml_mapping
from experiments.inputs import open_splits
from experiments.run_folder import RunFolder
from models.networks import open_any_space
from models.space import Arch, Space
from utils.errors import UserError
from utils.history import arch_key
from utils.offline import cache_dir
from utils.report.outcomes import best_weights
from utils.report.results import load_arch_file
from utils.report.runs import read_run
from utils.run_files import Files
from utils.sides import shown, sides_in

KEYS = (
    "data",
    "imgsz",
    "device",
    "seed",
    "threads",
    "refit",
    "train",
)  # of an experiment, that mean something here
CALIBRATION = 2048  # training images that re-estimate a slice's batch norm, where its run does not say


@dataclass(frozen=True)
class ArchFile:
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
        found = said | known
        if imgsz := found.get("imgsz", self.arch.get("resolution")):
            found["imgsz"] = sides_in(self.path, imgsz)
        if "resolution" in self.arch:
            found["imgsz"] = open_any_space(self.space, nc=1).side(self.arch, found["imgsz"])
        return found

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
            places.append(Files(self.run).supernet_weights)
        if self.run and isinstance(trial, int):
            best = best_weights(self.run, trial, read_run(self.run).quality)
            places = [best, *places] if best else places
        for place in places:
            if place.is_file():
                return place
        raise UserError(f"{self.path} has no weights beside it; give them by --weights FILE.pt")


def open_arch_file(arch_file: Path, space: Path | None = None) -> ArchFile:
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
    return ArchFile(arch_file, record, path.resolve(), arch, run if inside else None)


def arch_of(record: Mapping[str, Any], space: Space) -> Arch:
    """The arch that an architecture file says, by `arch` or by United-Perception's `subnet_settings`, whose
    resolution is the longer side of the file's `imgsz` where the space searches that.

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


def handover_experiment(
    found: ArchFile, overrides: Sequence[str], *, name: str, train: Mapping[str, Any] | None = None
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
    searched = "resolution" in found.arch
    if searched and open_any_space(exp.space, nc=1).side(found.arch, exp.imgsz) != exp.imgsz:
        raise UserError(
            f"imgsz={shown(exp.imgsz)} contradicts the arch of {found.path}, whose resolution is "
            f"{found.arch['resolution']}"
        )
    return exp


def data_of(found: ArchFile, exp: Experiment) -> Dataset:
    """The data, split as the search of `found` had them."""
    cache = RunFolder(found.run, exp).cache if found.run else cache_dir() / "data"
    return open_splits(exp, cache, found.settings().get("seed", exp.seed))


def differing(ours: Arch, theirs: Mapping[str, Any]) -> str:
    """The first choice in which two archs differ, for an error message; "" for equal ones."""
    if arch_key(ours) == arch_key(theirs):
        return ""
    label = next(k for k in [*ours, *theirs] if ours.get(k) != theirs.get(k))
    return f"its {label} is {theirs.get(label, 'not said')}, here it is {ours.get(label, 'not said')}"


def is_result(value: Mapping[str, Any]) -> bool:
    """Whether a result.json says what was trained and what came out."""
    return all(isinstance(value.get(key), dict) for key in ("train", "metrics"))


def top_files(run: RunFolder) -> list[tuple[int, ArchFile]]:
    """(rank, architecture file) of the run's top k. UserError when the search has left none."""
    files = Files(run.path).top
    if not files:
        raise UserError(f"{run.path} has no top models yet; run its step `search` first")
    return [(int(path.stem), open_arch_file(path)) for path in files]
