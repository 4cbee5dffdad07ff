"""A run folder as its files tell it: the trials, the experiment they belong to, what they cost.

`history.jsonl` alone is enough; `experiment.yaml`, `meta.json` and `run.json` beside it add names, budgets
and versions when they are there. So a stopped, crashed or foreign run can be read as well as a finished one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.history import History, Trial
from utils.json_text import parse_json
from utils.pareto import pareto_front
from utils.report.drawing import is_number
from utils.rewards import COST_KEYS, QUALITIES
from utils.run_files import Files
from utils.yaml_text import parse_yaml

MAIN = tuple(keys[0] for keys in QUALITIES.values())  # what a history without an experiment is judged by
Objectives = Mapping[str, str]  # metric -> "max" or "min"


@dataclass(frozen=True)
class Run:
    """A run folder as its files tell it; `trials` by number, `infeasible` apart (they were never trained)."""

    folder: Path
    trials: list[Trial]
    infeasible: list[Trial]
    objectives: dict[str, str]
    experiment: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    has_baseline: bool = True

    @property
    def name(self) -> str:
        return str(self.experiment.get("name") or self.folder.resolve().name)

    @property
    def quality(self) -> str:
        return quality_of(self.objectives)

    @property
    def task(self) -> str:
        """`detect` or `classify`, as its quality says."""
        return next((task for task, keys in QUALITIES.items() if self.quality in keys), "detect")

    @property
    def search(self) -> dict[str, Any]:
        block = self.experiment.get("search")
        return block if isinstance(block, dict) else {}

    @property
    def phases(self) -> list[tuple[str, int]]:
        """(step, number of its first trial) of what came after the search, a phase each."""
        found = self.meta.get("phases")
        found = found if isinstance(found, list) else []
        return [(p["step"], p["from"]) for p in found if isinstance(p, dict) and type(p.get("from")) is int]

    @property
    def planned(self) -> int | None:
        """Trials of the search and of the phases after it that have begun; None = unknown."""
        step, begun = self.phases[-1] if self.phases else ("search", 0)
        block = self.experiment.get(step)
        more = block.get("max_trials") if isinstance(block, dict) else None
        return begun + more if type(more) is int else None

    @property
    def shares_weights(self) -> bool:
        """Do its architectures take their weights from a supernet, instead of training them?"""
        return isinstance(self.experiment.get("supernet"), dict)

    @property
    def is_retraining(self) -> bool:
        """Is it the folder of the command `retrain`, which searches nothing?"""
        return Files(self.folder).plan.is_file()

    @property
    def complete(self) -> list[Trial]:
        return completed(self.trials)

    @property
    def baseline(self) -> Trial | None:
        return baseline_of(self.trials) if self.has_baseline else None


def read_run(run_dir: str | Path) -> Run:
    """Read a run folder (or a `history.jsonl` itself). UserError when there is no history to read."""
    given = Path(run_dir)
    folder = given.parent if given.is_file() else given
    path = given if given.is_file() else folder / "history.jsonl"
    if not folder.is_dir():
        raise UserError(f"no run folder {str(run_dir)!r}; expected a folder that holds history.jsonl")
    if not path.exists() and not (folder / "experiment.yaml").exists():
        raise UserError(f"{str(folder)!r} holds no history.jsonl; give the folder of a run, like runs/<name>")
    everything = History(path).load()
    if not everything and path.exists() and (path.stat().st_size > 0 or given.is_file()):
        raise UserError(f"{str(path)!r} holds no trial that can be read; expected one JSON object a line")
    trials = [t for t in everything if t.state != "infeasible"]
    experiment = read_yaml(folder / "experiment.yaml")
    search = experiment.get("search")
    search = search if isinstance(search, dict) else {}
    return Run(
        folder=folder,
        trials=trials,
        infeasible=[t for t in everything if t.state == "infeasible"],
        objectives=_objectives(search.get("objectives"), trials),
        experiment=experiment,
        meta=_supernet_facts(folder) | read_json(folder / "meta.json") | read_json(folder / "run.json"),
        has_baseline=search.get("baseline") is not False,
    )


def read_search(run_dir: str | Path) -> Run:
    """`read_run`, of a run that searches. UserError for the folder of a retraining as well."""
    run = read_run(run_dir)
    if run.is_retraining:
        raise UserError(
            f"{str(run.folder)!r} is a retraining: its scores are in its result.json and in `status`; "
            "a report is of the run that its architecture comes from"
        )
    return run


def _supernet_facts(folder: Path) -> dict[str, Any]:
    """Where the supernet was trained, which a run notes before it notes where it searches."""
    versions = read_json(Files(folder).supernet / "result.json").get("versions")
    if not isinstance(versions, dict):
        return {}
    return {"versions": versions} | {k: versions[k] for k in ("device", "threads") if k in versions}


def sampled(run: Run) -> list[Trial]:
    """Architectures that were scored as slices of the supernet before the search; [] without any."""
    return History(Files(run.folder).sampled / "history.jsonl").load()


def _objectives(given: Any, trials: Sequence[Trial]) -> dict[str, str]:
    """Those of the experiment, else mAP or accuracy against the first cost that the trials carry."""
    if isinstance(given, dict) and given and all(v in ("max", "min") for v in given.values()):
        return {str(k): str(v) for k, v in given.items()}
    seen = [k for t in completed(trials) for k in t.metrics]
    costs = [k for k in COST_KEYS if k in seen]
    scores = [k for k in seen if k not in COST_KEYS and "/" not in k]
    score = next((k for k in MAIN if k in seen), scores[0] if scores else MAIN[0])
    return {score: "max"} | ({costs[0]: "min"} if costs else {})


def quality_of(objectives: Objectives) -> str:
    """The metric that is maximised (the first one), `map50_95` when none is."""
    return next((k for k, way in objectives.items() if way == "max"), "map50_95")


def completed(trials: Sequence[Trial]) -> list[Trial]:
    return [t for t in trials if t.state == "complete" and t.reward is not None]


def reward_of(trial: Trial) -> float:
    """The reward of a complete trial."""
    assert trial.reward is not None, trial
    return trial.reward


def baseline_of(trials: Sequence[Trial]) -> Trial | None:
    """Trial 0, the unsearched default of the space, if it completed."""
    return next((t for t in completed(trials) if t.number == 0), None)


def top_trials(trials: Sequence[Trial], k: int | None = None) -> list[Trial]:
    """Complete trials by reward, unrounded, the first k of them. On a tie fewer GFLOPs come first, then the
    earlier one. What breaks a limit is left out as long as something does not."""
    done = completed(trials)
    able = [t for t in done if t.reason is None] or done
    ranked = sorted(able, key=lambda t: _place(t, reward_of(t)))
    return ranked if k is None else ranked[:k]


def exported_trials(trials: Sequence[Trial], k: int, objectives: Objectives | None = None) -> list[Trial]:
    """The first `k` by reward or, where `objectives` are given, `k` of their front without the unsearched
    network, spread over it from its cheapest to its best; these too come by reward."""
    if objectives is None:
        return top_trials(trials, k)
    able = [t for t in completed(trials) if t.reason is None and t.number != 0]
    front = sorted(front_of(able, objectives), key=lambda t: (t.metrics.get("gflops", 0.0), t.number))
    if len(front) > k > 1:
        front = [front[i * (len(front) - 1) // (k - 1)] for i in range(k)]
    return top_trials(front, k)


def best_of(trials: Sequence[Trial], quality: str) -> Trial | None:
    """The complete trial of the highest quality; on a tie the one of fewer GFLOPs, then the earlier one."""
    scored = [t for t in completed(trials) if quality in t.metrics]
    return min(scored, key=lambda t: _place(t, t.metrics[quality]), default=None)


def _place(trial: Trial, score: float) -> tuple[float, float, int]:
    """What trials are ranked by, the best first."""
    return -score, trial.metrics.get("gflops", math.inf), trial.number


def front_of(trials: Sequence[Trial], objectives: Objectives) -> list[Trial]:
    """The Pareto front of the complete trials that carry every objective; empty if none does."""
    able = [t for t in completed(trials) if all(k in t.metrics for k in objectives)]
    return pareto_front(able, dict(objectives)) if able else []


@dataclass(frozen=True)
class Cost:
    """trial_seconds: sum over all trials; wall_seconds: time in which at least one trial ran (pauses between
    a kill and a resume do not count), None when the history has no start times."""

    trials: int
    trial_seconds: float
    wall_seconds: float | None

    @property
    def parallel(self) -> float | None:
        """How many trials ran at once on average."""
        return self.trial_seconds / self.wall_seconds if self.wall_seconds else None


def search_cost(trials: Sequence[Trial]) -> Cost:
    """What the trials cost, failed ones included."""
    spans = sorted((t.started, t.started + t.seconds) for t in trials if t.started > 0)
    wall, end = 0.0, float("-inf")
    for start, stop in spans:
        wall += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return Cost(len(trials), sum(t.seconds for t in trials), wall if spans else None)


def device_hours(cost: Cost, meta: Mapping[str, Any]) -> str:
    """`0.25 GPU hours` or `0.50 CPU core hours (2 threads a trial)`, as far as the run says where it ran."""
    device = str(meta.get("device") or "")
    if device.startswith("cuda") and cost.wall_seconds is not None:
        return f"{cost.wall_seconds / 3600:.2f} GPU hours"
    threads = meta.get("threads")
    if device.startswith("cpu") and isinstance(threads, int) and threads > 0:
        hours = cost.trial_seconds * threads / 3600
        return f"{hours:.2f} CPU core hours ({threads} thread{'s' if threads > 1 else ''} a trial)"
    return f"{cost.trial_seconds / 3600:.2f} trial hours"


def duration(seconds: float) -> str:
    """`43 s`, `12 min 05 s`, `3 h 20 min`."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def process_alive(meta: Mapping[str, Any]) -> bool:
    """Does the process of `run.json` still run? A later process that got the same pid does not count."""
    import psutil

    pid, started = meta.get("pid"), meta.get("started")
    if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0:
        return False
    try:
        process = psutil.Process(pid)
        young = isinstance(started, int | float) and process.create_time() > started + 5
        return process.status() != psutil.STATUS_ZOMBIE and not young
    except psutil.Error:
        return False


def later_trainings(run: Run, kind: str = "retrain") -> dict[int, dict[str, Any]]:
    """trial number -> `<kind>/<number>/result.json`: what was trained after the search (kind: retrain or
    finetune), scored on val; {} before any."""
    found = {}
    for path in sorted(run.folder.glob(f"{kind}/*/result.json")):
        result = read_json(path)
        if path.parent.name.isdigit() and isinstance(result.get("metrics"), dict):
            result["metrics"] = {k: v for k, v in result["metrics"].items() if is_number(v)}
            found[int(path.parent.name)] = result
    return found


def run_state(run: Run) -> str:
    """`running`, `killed` (said to run, but its process is gone), or what `run.json` says; "" without one."""
    said = str(run.meta.get("state") or "")
    if process_alive(run.meta):
        return said or "running"
    return "killed" if said == "running" else said


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping, or {} for a file that is absent or damaged: the history alone must do."""
    try:
        value = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
