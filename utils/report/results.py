"""What a search leaves behind, written from its history: end table, CSV, the top models as JSON, status."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from utils.errors import Malformed, UserError
from utils.file_measures import FILE_COSTS, file_qualities
from utils.files import write_text
from utils.history import Trial
from utils.json_text import parse_json
from utils.pareto import knee
from utils.report.controls import controls_info
from utils.report.drawing import title
from utils.report.outcomes import on_val
from utils.report.progress import (
    KINDS,
    SupernetInfo,
    TrialProgress,
    count,
    retraining,
    running_trials,
    search_left,
    search_spent,
    stopped_info,
    supernet_info,
)
from utils.report.rank import warning
from utils.report.runs import (
    Objectives,
    Run,
    baseline_of,
    best_of,
    duration,
    exported_trials,
    front_of,
    process_alive,
    quality_of,
    read_json,
    read_run,
    run_state,
    search_cost,
    top_trials,
)
from utils.report.supernet_report import rank_report
from utils.rewards import COST_KEYS
from utils.run_files import Files
from utils.sides import Sides, sides_in
from utils.steps import steps_line
from utils.yaml_text import parse_yaml, short

SCHEMA = 1
TABLE_METRICS = ("map50_95", *file_qualities("map50_95"), *file_qualities("top1"), "params_m", "gflops")
TABLE_METRICS += ("latency_ms", *FILE_COSTS)


def highlights(
    trials: Sequence[Trial], objectives: Objectives, baseline: Trial | None
) -> list[tuple[str, Trial]]:
    """Rows of the end table, one a network: baseline, best quality, best reward, knee of the front (those
    that exist); what is best in several ways carries all its names."""
    quality = quality_of(objectives)
    best = best_of(trials, quality)
    front = front_of(trials, objectives)
    top = top_trials(trials, 1)
    rows = [("baseline", baseline)] if baseline else []
    rows += [(f"best {title(quality).split('50')[0]}", best)] if best else []
    rows += [("best reward", top[0])] if top else []
    rows += [("knee of the front", knee(front, dict(objectives)))] if front else []
    names: dict[int, list[str]] = {}
    for name, trial in rows:
        names.setdefault(trial.number, []).append(name)
    of_number = {trial.number: trial for _, trial in rows}
    return [(", ".join(said), of_number[number]) for number, said in names.items()]


NEAR_ZERO = 0.05  # a score below it is of a network that has learnt next to nothing


def gain(value: float, base: float, key: str) -> tuple[float, float | None]:
    """(absolute, percent of the baseline) of a metric, of `reward`, or of a score on `val`; percent is None
    where the baseline is 0, or a score near it: ten times nothing is nothing."""
    floor = 0.0 if key in COST_KEYS else NEAR_ZERO
    return value - base, (value - base) / abs(base) * 100 if abs(base) > floor else None


def signed(value: float, digits: int = 4) -> str:
    return f"{value:+.{digits}f}"


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f} %"


def results_table(
    history: Sequence[Trial],
    objectives: Objectives,
    *,
    baseline: bool = True,
    val: Mapping[int, float] = MappingProxyType({}),
) -> str:
    """The table at the end of a search, a line a network: each value with what it gains on the baseline.

    baseline: False for a search that did not run the unsearched default as trial 0
    val: trial -> its quality on val, which no search saw; a column beside that of search_val
    """
    base = baseline_of(history) if baseline else None
    rows = highlights(history, objectives, base)
    if not rows:
        return f"no trial completed ({len(history)} in the history)"
    quality = quality_of(objectives)
    wanted = list(dict.fromkeys([quality, *TABLE_METRICS, *objectives]))
    keys = [k for k in wanted if any(k in t.metrics for _, t in rows)]
    heads = {k: title(k) for k in keys} | {"reward": "reward"}
    if any(t.number in val for _, t in rows):
        heads = {quality: heads.pop(quality, title(quality)), "val": "on val"} | heads

    def values(trial: Trial) -> dict[str, float | None]:
        known = {k: trial.metrics.get(k) for k in keys}
        return known | {"reward": trial.reward, "val": val.get(trial.number)}

    cells = {t.number: _with_gains(values(t), None if base in (None, t) else values(base)) for _, t in rows}
    wide = {k: max(len(head), *(len(c[k]) for c in cells.values())) for k, head in heads.items()}
    lines = ["trial  " + "  ".join(head.ljust(wide[k]) for k, head in heads.items())]
    for name, trial in rows:  # names come last: where a terminal is narrow, only they run over
        shown = "  ".join(cells[trial.number][k].ljust(wide[k]) for k in heads)
        lines.append(f"{trial.number:>5}  {shown}  {name}")
    lines[0] = lines[0].rstrip()
    if base is None:
        lines.append("(no complete baseline in this history, so gains cannot be given)")
    return "\n".join(lines)


def _with_gains(
    values: Mapping[str, float | None], base: Mapping[str, float | None] | None
) -> dict[str, str]:
    """`0.5500 +10.0%`; without a percentage where the baseline has none."""
    shown = {}
    for key, value in values.items():
        start = base.get(key) if base else None
        text = "" if value is None else f"{value:.4f}"
        if value is not None and start is not None:
            absolute, relative = gain(value, start, key)
            text += " same" if absolute == 0 else f" {signed(absolute)}"
            text = text if absolute == 0 or relative is None else f"{value:.4f} {relative:+.1f}%"
        shown[key] = text
    return shown


def write_csv(run_dir: str | Path, history: Sequence[Trial]) -> Path:
    """`results.csv`: one row a trial, infeasible ones last, choices as `arch.<label>`; nothing is rounded."""
    rows = sorted(history, key=lambda t: (t.state == "infeasible", t.number))
    metrics = list(dict.fromkeys(k for t in rows for k in t.metrics))
    labels = list(dict.fromkeys(k for t in rows for k in t.arch))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    choices = [f"arch.{k}" for k in labels]
    writer.writerow(["number", "state", "reward", *metrics, *choices, "seconds", "seed", "reason"])
    for t in rows:
        values = [t.metrics.get(k) for k in metrics] + [t.arch.get(k) for k in labels]
        writer.writerow([t.number, t.state, t.reward, *values, t.seconds, t.seed, t.reason])
    path = Path(run_dir) / "results.csv"
    write_text(path, text.getvalue())
    return path


def write_top(
    run_dir: str | Path,
    history: Sequence[Trial],
    k: int,
    *,
    space: str,
    data: str,
    imgsz: Sides,
    versions: Mapping[str, str] | None = None,
    front: Objectives | None = None,
) -> list[Path]:
    """`top/1..k.json` by reward, or of the `front` of these objectives (`exported_trials`), each with its
    metrics, and the same records as a list in `top_models.json`.

    Files that an earlier call left at a rank now taken by another trial (1.pt, 1.onnx, ...) belong to that
    trial: they are set aside as `1.trial0017.pt`, never left beside the wrong JSON and never deleted. What
    `extend_top` added to a record stays with its trial.
    """
    folder = Path(run_dir) / "top"
    folder.mkdir(parents=True, exist_ok=True)
    old = {rank: read_json(folder / f"{rank}.json") for rank in _ranks(folder)}
    extras = {r.get("trial"): {x: v for x, v in r.items() if x not in RECORD} for r in old.values()}
    records, paths = [], []
    for rank, trial in enumerate(exported_trials(history, k, front), start=1):
        record = {
            "schema": SCHEMA,
            "space": space,
            "arch": trial.arch,
            "metrics": trial.metrics,
            "reward": trial.reward,
            "trial": trial.number,
            "data": data,
            "imgsz": imgsz,
            "versions": dict(versions or {}),
        } | extras.get(trial.number, {})
        if rank in old and old[rank].get("trial") != trial.number:
            _set_aside(folder, rank, old[rank].get("trial"))
        records.append(record)
        paths.append(folder / f"{rank}.json")
        write_text(paths[-1], _dumps(record))
    for rank in old:
        if rank > len(records):
            _set_aside(folder, rank, old[rank].get("trial"))
            (folder / f"{rank}.json").unlink()
    write_text(Path(run_dir) / "top_models.json", _dumps(records))
    return paths


RECORD = {"schema", "space", "arch", "metrics", "reward", "trial", "data", "imgsz", "versions"}


def extend_top(run_dir: str | Path, rank: int, **extra: Any) -> Path:
    """Add to `top/<rank>.json` what came later, e.g. `retrained={"epochs": 50, "metrics": {...}}`."""
    clash = RECORD & set(extra)
    assert not clash, f"the search's own keys cannot be replaced: {clash}"
    path = Path(run_dir) / "top" / f"{rank}.json"
    write_text(path, _dumps(load_arch_file(path) | extra))
    return path


def _ranks(folder: Path) -> list[int]:
    return sorted(int(p.stem) for p in folder.glob("*.json") if p.stem.isdigit())


def _set_aside(folder: Path, rank: int, trial: Any) -> None:
    owner = f"trial{trial:04d}" if isinstance(trial, int) else "unknown"
    for path in folder.glob(f"{rank}.*"):
        if path.name.count(".") == 1 and path.suffix != ".json":
            path.rename(folder / f"{rank}.{owner}{path.suffix}")


SPELLINGS = (
    "subnet_settings",
    "genotype",
    "mutable_cfg",
)  # of others; what the space reads in the place of `arch`


def load_arch_file(path: str | Path, space: str | None = None) -> dict[str, Any]:
    """Read `top/N.json`. Needs `schema`, `space`, `arch` and `imgsz`; the rest is filled with empty values.
    In the place of `arch` may stand United-Perception's `subnet_settings` or aw_nas's `genotype`, which only
    the space can read.

    space: of a file that holds nothing but label: value, as NNI exports architectures, or MMRazor's paths of
        a ShuffleNet (`mutable_cfg`, a YAML), or DetNAS's list of numbers; `imgsz` is None then.

    UserError, one line, for anything that is not such a file.
    """
    name = str(path)
    try:
        text = Path(path).read_bytes().decode("utf-8")
        yaml = Path(path).suffix in (".yaml", ".yml")
        record = parse_yaml(text) if yaml else parse_json(text, strict=True)
    except FileNotFoundError:
        raise UserError(f"no file {name!r}; expected an architecture, like runs/<name>/top/1.json") from None
    except IsADirectoryError:
        raise UserError(
            f"{name!r} is a folder; expected an architecture, like runs/<name>/top/1.json"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {name!r}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{name!r} is a binary file, not JSON (weights go to --weights)") from None
    except Malformed as error:
        raise UserError(f"{name!r} {error}") from None
    if space is not None and isinstance(record, list) and all(isinstance(v, int | list) for v in record):
        record = {"genotype": record}
    if isinstance(record, list):
        raise UserError(f"{name!r} holds a list of {len(record)}; give one architecture, like top/1.json")
    if not isinstance(record, dict):
        raise UserError(f"{name!r} holds {type(record).__name__} {short(record)}; expected a JSON object")
    known = {"schema", "space", "arch"} | (set() if space else set(SPELLINGS))
    if record and not record.keys() & known:
        return _bare(name, record, space)
    if space is not None and record:
        raise UserError(f"{name!r} names its own space, {record.get('space')!r}: leave --space out")
    arch = "arch" if "arch" in record else next((key for key in SPELLINGS if key in record), "arch")
    missing = [k for k in ("schema", "space", arch, "imgsz") if k not in record]
    if missing:
        raise UserError(
            f"{name!r} lacks {', '.join(map(repr, missing))}; it has {', '.join(record) or 'no key'}"
        )
    if record["schema"] != SCHEMA or isinstance(record["schema"], bool):
        raise UserError(f"{name!r} has schema {record['schema']!r}; this version reads schema {SCHEMA}")
    _check(name, "space", record["space"], str, "a text")
    if arch != "genotype":
        _check(name, arch, record[arch], dict, "an object of label: value")
    imgsz = sides_in(name, record["imgsz"])
    _check_arch(name, record.get("arch", {}))
    empty: dict[str, Any] = {"metrics": {}, "reward": None, "trial": None, "data": None, "versions": {}}
    record = empty | record | {"imgsz": imgsz}
    _check(name, "metrics", record["metrics"], dict, "an object of name: number")
    return record


def _bare(name: str, record: dict[str, Any], space: str | None) -> dict[str, Any]:
    """A file that is nothing but an architecture, of a space that the user names."""
    if space is None:
        raise UserError(
            f"{name!r} says no space; if it holds an architecture as NNI exports it, give --space YAML"
        )
    if all(isinstance(v, dict) and "chosen" in v for v in record.values()):
        record = {"mutable_cfg": record}
    if not record.keys() <= set(SPELLINGS):
        _check_arch(name, record)
        record = {"arch": record}
    empty: dict[str, Any] = {"metrics": {}, "reward": None, "trial": None, "data": None, "versions": {}}
    return empty | {"schema": SCHEMA, "space": space, "imgsz": None} | record


def _check_arch(name: str, arch: Mapping[str, Any]) -> None:
    for label, value in arch.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise UserError(f"{name!r}: arch value of {label!r} is {value!r}; expected a number or a text")


def _check(name: str, key: str, value: Any, kind: type, expected: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{name!r}: {key} is {value!r}; expected {expected}")


def _dumps(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def status(run_dir: str | Path) -> str:
    """One screen on a live, finished or killed run: state, steps, trials of the budget, time, best so far.
    On the folder of a retraining: state, epochs, score."""
    run = read_run(run_dir)
    progress = retraining(run)
    return "\n".join([*_state(run), *(_search(run) if progress is None else _retraining(run, progress))])


def _state(run: Run) -> list[str]:
    state = run_state(run) or "unknown (no run.json)"
    if state == "running":
        state += f", process {run.meta.get('pid')}"
    if state == "killed":
        command = str(run.meta.get("command") or f"--run-dir {run.folder}").removesuffix(" --resume")
        state += f", process {run.meta.get('pid')} is gone; go on with: {command} --resume"
    return [f"run         {run.name}  ({run.folder})", f"state       {state}"]


def _retraining(run: Run, progress: TrialProgress) -> list[str]:
    scores = read_json(run.folder / "result.json").get("metrics")
    val = [f"on val      {metrics_line(scores)}"] if isinstance(scores, dict) else []
    return [f"training    {progress.said(run.quality)}", *val]


def _search(run: Run) -> list[str]:
    failed = [t for t in run.trials if t.state == "failed"]
    running = running_trials(run)
    alive = process_alive(run.meta)
    cost = search_cost(run.trials)
    lines = []
    steps = steps_line(run)
    if steps:
        lines.append(f"steps       {steps}")
    supernet = supernet_info(run)
    if run.shares_weights or supernet is not None:
        lines.append(f"supernet    {supernet_line(supernet, alive)}")
    ranked = rank_report(run)
    if ranked and (said := warning(ranked.supernet)):
        lines.append(f"warning     {said}")

    budget = run.planned
    done = f"{len(run.trials)} of {budget}" if isinstance(budget, int) else str(len(run.trials))
    stopped = stopped_info(run.trials, count(run, "train", "epochs"))
    counts = [f"{len(run.complete)} complete", *([f"{stopped.trials} stopped in time"] if stopped else [])]
    counts.append(f"{len(failed)} failed")
    if running:
        counts.append(f"{len(running)} {'running' if alive else 'unfinished'}")
    lines.append(f"trials      {done}: {', '.join(counts)}; {len(run.infeasible)} infeasible")
    for trial in running if alive else ():
        lines.append(f"running     {trial.line(run.quality)}")
    left = search_left(run, running) if alive and len(run.trials) < (budget or 0) else None

    limit = run.search.get("max_seconds")
    unknown = cost.wall_seconds is None and run.trials
    wall = "unknown" if unknown else duration(cost.wall_seconds or 0.0)
    used = f"{wall} of {duration(limit)}" if isinstance(limit, int | float) else wall
    spent = search_spent(run)
    training = "".join(f"; {duration(spent[k].wall_seconds or 0)} {said}" for k, said in DOING if k in spent)
    until = f"; about {duration(left)} left to search" if left is not None else ""
    if stopped is not None:
        lines.append(f"stopped     {stopped.line}")
    lines.append(f"time        {used}; {duration(cost.trial_seconds)} in trials{training}{until}")

    lines += ["", results_table(run.trials, run.objectives, baseline=run.has_baseline, val=on_val(run))]
    lines += [f"{title(key)} of trials is {said}" for key, said in forecast_lines(run.folder).items()]
    beaten = controls_info(run)
    lines += ["", *beaten.lines()] if beaten else []
    if failed:
        lines += ["", "failed"] + [f"{t.number:>5}  {t.reason or 'no reason given'}" for t in failed[-5:]]
    return lines


DOING = (
    ("pretrain", "pre-training its backbone"),
    ("supernet", "training the supernet"),
    ("reignition", "reigniting backbones"),
)


def supernet_line(info: SupernetInfo | None, alive: bool = False) -> str:
    """`epoch 7 of 30, loss 2.77, about 14 min left; mAP50-95 at epoch 6: largest 0.60, smallest 0.61`."""
    if info is None:
        return "not trained yet"
    if info.trained:
        text = f"trained for {info.epochs} epoch{'s' * (info.epochs != 1)} in {duration(info.seconds)}"
    else:
        text = f"epoch {info.epochs} of {info.planned}" if info.planned else f"epoch {info.epochs}"
        text += f", loss {info.losses['loss'][-1][1]:.4f}" if "loss" in info.losses else ""
        if alive and info.left is not None:
            text += f", about {duration(info.left)} left"
    latest = max((points[-1][0] for points in info.scores.values()), default=0)
    scores = [
        f"{KINDS[kind]} {dict(points)[latest]:.4f}"
        for kind, points in info.scores.items()
        if latest in dict(points)
    ]
    return text + (f"; {title(info.quality)} at epoch {latest}: {', '.join(scores)}" if scores else "")


def forecast_lines(folder: Path) -> dict[str, str]:
    """metric -> how it was predicted for trials, and how well; {} where all were measured."""
    found = {}
    for key, of in read_json(Files(folder).target / "forecast.json").items():
        try:
            tau = "" if of["tau"] is None else f", tau {of['tau']:.2f}"
            found[key] = (
                f"predicted by a {of['by']} from {of['n']} networks that were timed, leave-one-out error "
                f"{of['error']:.1%} (at worst {of['worst']:.1%}){tau}; the step evaluate measures it"
            )
        except (KeyError, TypeError, ValueError):
            continue
    return found


SHOWN = ("map50_95", "map50", "top1", "top5", *TABLE_METRICS[1:])


def metrics_line(metrics: Mapping[str, float]) -> str:
    """`map50_95 0.5123, params_m 1.2, ...` for people."""
    return ", ".join(f"{key} {metrics[key]:.4g}" for key in SHOWN if key in metrics)
