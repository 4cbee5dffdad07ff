"""Several runs on one page: their fronts in one plot, what each found and what it cost in one table.

As in plots.py, `compare_info` computes and `draw_fronts` only draws; run folders are all it reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import write_text
from utils.history import Trial
from utils.pareto import pareto_front
from utils.report.drawing import ACCENT, BASE, OTHER, Figure, layout, title, y_axis
from utils.report.outcomes import alike, says_of
from utils.report.page import render
from utils.report.plots import Point, describe, scatter
from utils.report.progress import device_cost, search_spent
from utils.report.runs import Run, device_hours, duration, read_search
from utils.report.summary import mapping, value_cell, verdict_of
from utils.rewards import COST_KEYS
from utils.sides import told

LINES = [ACCENT, BASE, OTHER, "#c2417a", "#7a5bd0", "#8a7a22", "#4aa3c7", "#b5534a", "#5e9c4b", "#6b7280"]
# Where runs differ in one of these, their scores are not of the same thing. label -> how a run says it
SAME: dict[str, Callable[[Run], Any]] = {
    "data": lambda run: Path(str(run.experiment.get("data") or "")).name,
    "image size": lambda run: told(run.experiment.get("imgsz")),
    "seed of the split": lambda run: run.experiment.get("seed"),
    "epochs of a trial": lambda run: mapping(run.experiment.get("train")).get("epochs"),
    "start": lambda run: mapping(run.meta.get("start")).get("from", "scratch"),
    "weights": lambda run: "slices of a supernet" if run.shares_weights else "trained in each trial",
}


@dataclass(frozen=True)
class Front:
    """A run's front in the plane of a cost, cheapest first, and its unsearched network where it has one."""

    name: str
    points: list[Point]
    baseline: Point | None


@dataclass(frozen=True)
class CompareInfo:
    """fronts: cost -> one of each run that knows it; differ: what the runs do not share -> each run's own."""

    quality: str
    fronts: dict[str, list[Front]]
    differ: dict[str, list[str]]
    names: list[str]


def compare_info(runs: Sequence[Run]) -> CompareInfo:
    """UserError for runs that are judged by different scores."""
    qualities = list(dict.fromkeys(run.quality for run in runs))
    if len(qualities) > 1:
        said = ", ".join(f"{run.folder}: {title(run.quality)}" for run in runs)
        raise UserError(f"these runs cannot be compared, they are judged by different scores ({said})")
    names = unique_names(runs)
    fronts: dict[str, list[Front]] = {}
    for cost in COST_KEYS:
        found = [_front(run, name, cost) for run, name in zip(runs, names, strict=True)]
        if any(front.points for front in found):
            fronts[cost] = [front for front in found if front.points]
    differ = {}
    for label, say in SAME.items():
        values = [str(say(run)) for run in runs]
        if len(set(values)) > 1:
            differ[label] = values
    return CompareInfo(qualities[0], fronts, differ, names)


def unique_names(runs: Sequence[Run]) -> list[str]:
    """Each run's folder, with as much of the path as tells it from the others."""
    parts = [run.folder.resolve().parts for run in runs]
    deep = 1
    while len({p[-deep:] for p in parts}) < len(set(parts)):
        deep += 1
    return [str(Path(*p[-deep:])) for p in parts]


def _front(run: Run, name: str, cost: str) -> Front:
    able = [t for t in run.complete if run.quality in t.metrics and cost in t.metrics]
    front = pareto_front(able, {run.quality: "max", cost: "min"}) if able else []
    base = run.baseline if run.baseline in able else None
    arch = base.arch if base else None

    def point(t: Trial) -> Point:
        return Point(
            t.number, t.metrics[cost], t.metrics[run.quality], describe(t, arch, name=f"{name}, trial")
        )

    ordered = sorted(front, key=lambda t: (t.metrics[cost], t.number))
    return Front(name, [point(t) for t in ordered], point(base) if base else None)


def draw_fronts(info: CompareInfo, cost: str) -> Figure:
    """A line a run, its unsearched network as a diamond in the same colour."""
    data: list[Figure] = []
    for front in info.fronts[cost]:
        colour = LINES[info.names.index(front.name) % len(LINES)]
        hover = {"hovertemplate": "%{text}<extra></extra>", "legendgroup": front.name}
        line = {"color": colour, "width": 2, "shape": "hv"}
        mark = {"color": colour, "size": 8}
        data.append(scatter(front.points, front.name, mode="lines+markers", line=line, marker=mark) | hover)
        if front.baseline is not None:
            mark = {
                "color": colour,
                "size": 13,
                "symbol": "diamond-open",
                "line": {"width": 2, "color": colour},
            }
            shown = scatter([front.baseline], f"{front.name}, unsearched", mode="markers", marker=mark)
            data.append(shown | hover | {"showlegend": False})
    plan = layout(460, xaxis={"title": {"text": title(cost)}}, yaxis=y_axis(title(info.quality)))
    return {"data": data, "layout": plan}


def compare_rows(runs: Sequence[Run], names: Sequence[str]) -> list[dict[str, Any]]:
    """A row a run: its winner on search_val and on val against its own unsearched network, and its cost."""
    rows = []
    for run, name in zip(runs, names, strict=True):
        found, base, key = verdict_of(run), run.baseline, run.quality
        trial = found.trial
        pairs = alike(run, trial.number) if trial is not None and trial is not base else []
        kind, score, start = pairs[-1] if pairs else ("", None, None)
        ours = trial.metrics.get(key) if trial else None
        theirs = base.metrics.get(key) if base is not None and trial is not base else None
        spent = search_spent(run)
        strategy = run.search.get("strategy")
        rows.append(
            {
                "name": name,
                "folder": str(run.folder),
                "strategy": str(strategy.get("name") if isinstance(strategy, dict) else strategy or "–"),
                "trials": f"{len(run.complete)} of {len(run.trials)}",
                "kind": found.kind,
                "verdict": found.text,
                "winner": "–"
                if trial is None
                else "unsearched"
                if trial is base
                else f"trial {trial.number}",
                "unsearched": value_cell(base.metrics.get(key) if base else None, None),
                "search": value_cell(ours, theirs),
                "val": value_cell(score, start) | {"note": says_of(run.shares_weights).get(kind, "")},
                "costs": _costs(trial, base if base is not trial else None),
                "time": duration(device_cost(spent).trial_seconds),
                "hours": device_hours(device_cost(spent), run.meta),
            }
        )
    return rows


def _costs(trial: Trial | None, base: Trial | None) -> dict[str, dict[str, str]]:
    known = {k: trial.metrics[k] for k in COST_KEYS if k in trial.metrics} if trial else {}
    return {k: value_cell(v, base.metrics.get(k) if base else None, True, k) for k, v in known.items()}


def write_comparison(run_dirs: Sequence[str | Path], out: Path | None = None) -> Path:
    """Write the page that compares these runs: `out`, by default comparison.html in the first one's folder.

    UserError for a folder that is no run, runs that cannot be compared, and an `out` that exists.
    """
    runs = [read_search(folder) for folder in run_dirs]
    if len({run.folder.resolve() for run in runs}) < len(runs):
        raise UserError("a run is given twice; give each folder once")
    if out is not None and out.exists():
        raise UserError(f"{out} exists and is never overwritten; give another --out")
    info = compare_info(runs)
    path = out or runs[0].folder / "comparison.html"
    rows = compare_rows(runs, info.names)
    context = {
        "names": info.names,
        "quality": title(info.quality),
        "differ": info.differ,
        "rows": rows,
        "costs": {k: title(k) for k in COST_KEYS if any(k in row["costs"] for row in rows)},
        "figures": {"fronts": {title(k): draw_fronts(info, k) for k in info.fronts}} if info.fronts else {},
        "written": time.strftime("%Y-%m-%d %H:%M"),
    }
    write_text(path, render("compare_template.html", context))
    return path
