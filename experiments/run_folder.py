"""The folder of one run, `runs/<name>/`: everything a search knows, in files that can be read without us.

experiment.yaml   the experiment as it was resolved    space/         the detector YAML as it was
asked.jsonl       archs in the order of submission     history.jsonl  finished trials, one JSON line each
own/             copies of your evaluator and reward
trials/0007/      weights.pt, log.csv of one trial     meta.json      data, costs of the baseline, versions
evaluate/0007/    what was scored on val, for reports (experiments/findings.py)
top_models.json  top/1.json 1.pt ...  results.csv  report.html  log.txt
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.config import (
    Experiment,
    check_experiment,
    own_files,
    read_yaml_mapping,
    with_own_files,
)
from utils.errors import UserError
from utils.files import own_json, write_bytes, write_text
from utils.history import Arch, History, arch_key, read_lines
from utils.json_text import parse_json
from utils.run_files import Files
from utils.steps import STEPS
from utils.training.settings import AUTO, LATER

# What may change between a run and its resumption: how long, how wide and where it runs, not what it means.
MAY_CHANGE = (
    "name",
    "device",
    "threads",
    "steps",
    "loggers",
    *(block for step in STEPS.values() for block in step.blocks),
    "search.engine",
    "search.max_trials",
    "search.max_seconds",
    "search.max_trial_seconds",
    "search.concurrency",
    "search.top_k",
    "search.training_service",
    "supernet.devices",
    "train.workers",
    "train.checkpoint_seconds",
)


ANOTHER_RUN = "--run-dir DIR or name=NAME"  # where a command takes these


@dataclass(frozen=True)
class WebUi:
    """Where NNI's web UI listens; port None = any free port."""

    port: int | None = None
    host: str = "127.0.0.1"


NO_UI = WebUi()


class RunFolder:
    """One run on disk. `create` makes a new one, `open` finds one again; neither ever overwrites."""

    def __init__(self, path: Path, experiment: Experiment) -> None:
        self.path = path
        self.experiment = experiment
        self.history = History(path / "history.jsonl")
        self.ui = NO_UI  # of this process, not of the run

    @classmethod
    def create(cls, path: Path, experiment: Experiment, remedy: str = ANOTHER_RUN) -> RunFolder:
        """A new folder. Raises UserError when there is something at `path` already, with the `remedy`."""
        cls.check_free(path, remedy)
        try:
            path.mkdir(parents=True, exist_ok=True)
            space = Path(experiment.space).read_text(encoding="utf-8", errors="ignore")
            run = cls(path.resolve(), experiment)
            write_text(run.space_file, space)
            for plugin in plugins(Path(experiment.space)):
                write_text(
                    run.space_file.parent / plugin, (Path(experiment.space).parent / plugin).read_text()
                )
            run._keep_own_files()
            run.save_experiment()
        except OSError as error:
            raise UserError(f"cannot write the run folder {path}: {error.strerror}") from None
        return run

    @staticmethod
    def check_free(path: Path, remedy: str = ANOTHER_RUN) -> None:
        """Raises UserError when there is something at `path`."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(
                f"{path} exists and is never overwritten; go on with it by --resume, or choose another "
                f"with {remedy}"
            )

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run. Raises UserError when there is none."""
        if not (path / "experiment.yaml").is_file():
            runs = sorted(p.parent.name for p in path.parent.glob("*/experiment.yaml"))
            known = f"; runs in {path.parent}: {', '.join(runs)}" if runs else ""
            raise UserError(f"{path} is no run folder (it holds no experiment.yaml){known}")
        raw = read_yaml_mapping(path / "experiment.yaml", "experiment")
        if not isinstance(raw.get("space"), str):
            raise UserError(f"{path / 'experiment.yaml'} is damaged: its key 'space' names no file")
        raw["space"] = str(path.resolve() / "space" / Path(raw["space"]).name)
        if isinstance(raw.get("train"), dict):
            raw["train"] = LATER | raw["train"]
        for copy in (path.resolve() / "own").glob("*/*.py"):
            block = raw["search"].get(copy.parent.name) if isinstance(raw.get("search"), dict) else None
            if isinstance(block, dict):
                block["name"] = str(copy)
        return cls(path.resolve(), check_experiment(raw, str(path / "experiment.yaml")))

    def resume_with(self, wanted: Experiment, remedy: str = ANOTHER_RUN) -> None:
        """Take over what may change. Raises UserError naming the first key that must not differ, and how to
        start afresh: the `remedy`."""
        had = self.experiment.train  # a run goes on with what it had, where nothing else is said
        kept = {"hyp": had.hyp} if wanted.train.hyp == AUTO else {}
        kept |= {key: getattr(had, key) for key in LATER if key not in wanted.train.model_fields_set}
        wanted = wanted.model_copy(update={"train": wanted.train.model_copy(update=kept)})
        if wanted.search.screen is None:
            search = wanted.search.model_copy(update={"screen": self.experiment.search.screen})
            wanted = wanted.model_copy(update={"search": search})
        before, after = flatten(self.experiment), flatten(wanted)
        own = {f"search.{key}": path for key, path in own_files(self.experiment).items()}
        for key in sorted(before.keys() | after.keys()):
            if key == "space":
                was = self.space_file.read_text(encoding="utf-8", errors="ignore")
                if was != Path(wanted.space).read_text(encoding="utf-8", errors="ignore"):
                    raise UserError(
                        f"cannot resume {self.path}: {wanted.space} is not the space of that run "
                        f"(its own copy is {self.space_file}); start a new one with {remedy}"
                    )
            elif key in own and _same_but_place(before.get(key), after.get(key)):
                if own[key].read_bytes() != Path(after[key]["name"]).read_bytes():
                    raise UserError(
                        f"cannot resume {self.path}: {after[key]['name']} is not the {key} of that run "
                        f"(its own copy is {own[key]}); start a new one with {remedy}"
                    )
            elif before.get(key) != after.get(key) and key not in MAY_CHANGE:
                raise UserError(
                    f"cannot resume {self.path}: {key} was {before.get(key)!r} and is now "
                    f"{after.get(key)!r}; start a new one with {remedy}"
                )
        search = with_own_files(wanted, own_files(self.experiment))
        self.experiment = wanted.model_copy(update={"space": str(self.space_file), "search": search})
        self.save_experiment()

    def _keep_own_files(self) -> None:
        """The run's own copies of the user's files, `own/<key>/<name>`, are what it goes on with."""
        copies = {}
        for key, path in own_files(self.experiment).items():
            copies[key] = self.path / "own" / key / path.name
            write_bytes(copies[key], path.read_bytes())
        search = with_own_files(self.experiment, copies)
        self.experiment = self.experiment.model_copy(update={"search": search})

    @property
    def space_file(self) -> Path:
        """The run's own copy of the detector YAML: editing the original does not change a run."""
        return self.path / "space" / Path(self.experiment.space).name

    def save_experiment(self) -> None:
        text = yaml.safe_dump(self.experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_text(self.path / "experiment.yaml", text)

    @property
    def cache(self) -> Path:
        """Where data sets are converted to; shared by the runs beside this one."""
        return cache_beside(self.path)

    @property
    def meta(self) -> dict[str, Any]:
        return own_json(self.path / "meta.json")

    def update_meta(self, **values: Any) -> None:
        write_text(self.path / "meta.json", json.dumps(self.meta | values, indent=2) + "\n")

    def trial_dir(self, number: int) -> Path:
        return Files(self.path).of_trial("trials", number)

    def asked(self, arch: Arch) -> tuple[int, tuple[int, ...]]:
        """(number, parents) of an architecture that was submitted; every arch is submitted once in a run."""
        key = arch_key(arch)
        for entry in self._asked_lines():
            if arch_key(entry["arch"]) == key:
                return int(entry["number"]), tuple(entry.get("parents") or ())
        raise AssertionError(f"arch was never asked for: {key}")

    def told_before(self, number: int) -> set[int]:
        """The trials that the strategy had been told of before it asked for this one."""
        lines = (entry for entry in self._asked_lines() if entry["number"] <= number)
        return {told for entry in lines for told in entry.get("after") or ()}

    def _asked_lines(self) -> Iterator[dict[str, Any]]:
        """What asked.jsonl says of each arch, in the order of submission; a line torn by a crash is left
        out."""
        for line in read_lines(self.path / "asked.jsonl"):
            try:
                entry = parse_json(line)
                known = isinstance(entry["arch"], dict) and type(entry["number"]) is int
            except (ValueError, TypeError, KeyError):
                continue
            if known:
                yield entry


def _same_but_place(one: Any, other: Any) -> bool:
    """Two `{name: mine.py, ...}` that differ in where the file lies, at most."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return False
    return one | {"name": Path(one["name"]).name} == other | {"name": Path(other["name"]).name}


def plugins(space: Path) -> list[str]:
    """The network files that a space YAML names beside itself: a run keeps copies of them as well."""
    network = read_yaml_mapping(space, "space").get("network", "")
    named = [str(name) for name in (network.values() if isinstance(network, dict) else [network])]
    return [n for n in named if n.endswith(".py") and "/" not in n and (space.parent / n).is_file()]


def cache_beside(run_dir: Path) -> Path:
    """`.cache` next to the run folders, or $HELLO_NAS_CACHE. A search among a run's controls shares that
    run's."""
    outer = run_dir.absolute().parent.parent
    if Files(outer).random_search == run_dir.absolute() and (outer / "experiment.yaml").is_file():
        run_dir = outer
    return Path(os.environ.get("HELLO_NAS_CACHE") or run_dir.absolute().parent / ".cache")


def flatten(experiment: Experiment) -> dict[str, Any]:
    """`{"train.epochs": 6, ...}`; a value that is a list or an option stays whole."""
    flat: dict[str, Any] = {}
    for key, value in experiment.model_dump(mode="json").items():
        if key in ("train", "search", "supernet") and value is not None:
            flat |= {f"{key}.{k}": v for k, v in value.items()}
        else:
            flat[key] = value
    return flat


def command() -> str:
    """What was typed."""
    return shlex.join([Path(sys.executable).name, *sys.argv])


@contextmanager
def marked_as_running(run: RunFolder) -> Iterator[None]:
    """Keep `run.json` true for `status`: who works on this run, since when, and how it ended."""
    facts: dict[str, Any] = {"pid": os.getpid(), "started": time.time(), "command": command()}

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


@contextmanager
def locked(run: RunFolder) -> Iterator[None]:
    """Hold the run folder for this process alone. UserError when another one has it."""
    with open(run.path / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{run.path} is in use by another process; `status` shows what it does") from None
        yield
