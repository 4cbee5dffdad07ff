"""`report.html`: one offline page that says what a search found, what it cost and what it does not show.

It reads the run folder only (`history.jsonl` is enough): of a live, stopped, crashed or foreign run.
Nothing in the page loads from anywhere; its Content-Security-Policy forbids it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.choices import (
    ImportanceInfo,
    ParallelInfo,
    draw_importance,
    draw_parallel,
    importance_info,
    parallel_info,
)
from utils.drawing import Figure, difference, title
from utils.files import write_text
from utils.history import History, Trial
from utils.plots import (
    ConvergenceInfo,
    convergence_info,
    curves_info,
    draw_convergence,
    draw_curves,
    draw_pareto,
    failures_info,
    pareto_info,
    save_pareto_png,
)
from utils.results import gain, highlights, percent, signed, write_csv
from utils.runs import (
    COSTS,
    Objectives,
    Run,
    baseline_of,
    completed,
    device_hours,
    duration,
    front_of,
    read_json,
    read_run,
    reward_of,
    run_state,
    search_cost,
    top_trials,
)

TOP_DEFAULT = 3


def write_report(
    run_dir: str | Path, *, baselines: str | Path | Sequence[Trial] | None = None, png: bool = True
) -> Path:
    """Write `report.html`, `results.csv` and, with `png`, `pareto.png`; each replaced in one step.

    baselines: a second series for the front, e.g. the run folder of the unsearched n/s/m family, or its trials;
        by default `baselines.jsonl` in the run folder, when there is one.
    Raises UserError when `run_dir` holds no history.
    """
    run = read_run(run_dir)
    others = _others(run, baselines)
    write_csv(run.folder, [*run.trials, *run.infeasible])
    if png:
        cost = next((k for k, way in run.objectives.items() if way == "min"), COSTS[0])
        info = pareto_info(run.trials, cost, run.quality, baseline=run.has_baseline, others=others)
        save_pareto_png(info, run.folder / "pareto.png")
    path = run.folder / "report.html"
    write_text(path, render(report_context(run, others)))
    return path


def _others(run: Run, baselines: str | Path | Sequence[Trial] | None) -> list[Trial]:
    if baselines is None:
        return completed(History(run.folder / "baselines.jsonl").load())
    if isinstance(baselines, str | Path):
        return read_run(baselines).complete
    return completed(baselines)


def render(context: dict[str, Any]) -> str:
    """The page. All text is escaped by jinja; figures travel as JSON that cannot close its own script tag."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(__file__).with_name("report_template.html").read_text())
    figures = json.dumps(context["figures"], allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    script = ""
    if context["figures"]:
        from plotly.offline import get_plotlyjs

        script = get_plotlyjs()
    return template.render(**context, figures_json=figures, plotly=script)


@dataclass(frozen=True)
class Verdict:
    """Did the search beat the unsearched baseline?

    kind: `better` (some trial is nowhere worse and somewhere better), `trade` (only a higher reward),
    `no`, or `open` when it cannot be said. trial: the one the sentence is about.
    """

    kind: str
    text: str
    trial: Trial | None = None


def verdict(trials: Sequence[Trial], objectives: Objectives, *, baseline: bool = True) -> Verdict:
    done = [t for t in completed(trials) if all(k in t.metrics for k in objectives)]
    base = baseline_of(done) if baseline else None
    if not completed(trials):
        return Verdict("open", "No trial has completed, so there is nothing to compare yet.")
    if base is None:
        best = top_trials(trials, 1)[0]
        return Verdict(
            "open", f"Trial {best.number} is best by reward. There is no baseline to compare with.", best
        )
    searched = [t for t in done if t is not base]
    if not searched:
        return Verdict("open", "Only the unsearched baseline has completed so far.", base)
    dominating = top_trials([t for t in searched if _dominates(t, base, objectives)])
    if dominating:
        best = dominating[0]
        more = len(dominating) - 1
        also = f" {more} more beat it in every objective." if more else ""
        return Verdict(
            "better", f"Yes: trial {best.number} has {_against(best, base, objectives)}.{also}", best
        )
    best = top_trials(searched, 1)[0]
    if reward_of(best) > reward_of(base):
        return Verdict(
            "trade",
            f"Partly: trial {best.number} has a higher reward with {_against(best, base, objectives)}, "
            "but no trial beats the baseline in every objective.",
            best,
        )
    return Verdict("no", "No: no trial reached the reward of the unsearched baseline.", best)


def _dominates(t: Trial, base: Trial, objectives: Objectives) -> bool:
    gains = [(t.metrics[k] - base.metrics[k]) * (1 if way == "max" else -1) for k, way in objectives.items()]
    return min(gains) >= 0 and max(gains) > 0


def _against(t: Trial, base: Trial, objectives: Objectives) -> str:
    """`mAP50-95 0.612 (+0.034, +5.9 %) and GFLOPs 3.1 (-0.4, -11.4 %)`."""
    parts = []
    for key in objectives:
        absolute, relative = gain(t.metrics[key], base.metrics[key])
        change = (
            "unchanged" if absolute == 0 else ", ".join(filter(None, [signed(absolute), percent(relative)]))
        )
        parts.append(f"{title(key)} {number(t.metrics[key])} ({change})")
    return " and ".join(parts)


def number(value: float | None) -> str:
    """For people: four digits after the point below 1, four significant ones above."""
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def report_context(run: Run, others: Sequence[Trial] = ()) -> dict[str, Any]:
    """Everything the template shows, as plain values; no number is formatted before here."""
    cost = search_cost(run.trials)
    failures = failures_info(run.trials, run.infeasible)
    state = run_state(run)
    importance = {"reward": importance_info(run.trials)}
    if any(run.quality in t.metrics for t in run.complete):
        importance[run.quality] = importance_info(run.trials, run.quality)
    front = {t.number for t in front_of(run.trials, run.objectives)}
    parallel = parallel_info(run.trials, [c.label for c in importance["reward"].choices])
    convergence = convergence_info(run.trials, run.objectives)
    metric_keys = _metric_keys(run)
    return {
        "name": run.name,
        "state": state,
        "live": state.startswith("running"),
        "facts": _facts(run),
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "verdict": verdict(run.trials, run.objectives, baseline=run.has_baseline),
        "cards": _cards(run),
        "rows": _highlight_rows(run, metric_keys),
        "metric_titles": [title(k) for k in metric_keys],
        "top": _top_rows(run, metric_keys),
        "trials": _trial_rows(run, metric_keys, front),
        "failures": failures["failed"],
        "infeasible": {reason: len(numbers) for reason, numbers in failures["infeasible"].items()},
        "importance_note": importance["reward"].note,
        "parallel_left_out": parallel.left_out,
        "reference": " and ".join(f"{title(k)} {number(v)}" for k, v in convergence.reference.items()),
        "figures": _figures(run, others, importance, parallel, convergence),
        "cost": _cost_rows(run),
        "versions": {str(k): str(v) for k, v in _mapping(run.meta.get("versions")).items()},
        "seeds": _seeds(run),
        "command": _command(run),
        "limits": _limits(run, bool(others)),
        "has_png": (run.folder / "pareto.png").exists(),
        "trials_in_all": cost.trials,
    }


def _figures(
    run: Run,
    others: Sequence[Trial],
    importance: dict[str, ImportanceInfo],
    parallel: ParallelInfo,
    convergence: ConvergenceInfo,
) -> dict[str, dict[str, Figure]]:
    """name of the plot -> tab -> figure; a plot without anything to show is left out."""
    done = run.complete
    if not done:
        return {}
    figures: dict[str, dict[str, Figure]] = {"pareto": {}}
    first = [k for k, way in run.objectives.items() if way == "min"]
    for key in dict.fromkeys([*first, *COSTS]):
        info = pareto_info(run.trials, key, run.quality, baseline=run.has_baseline, others=others)
        if info.points:
            figures["pareto"][title(key)] = draw_pareto(info)
    drawn = {title(k): draw_importance(info) for k, info in importance.items() if info.choices}
    if drawn:
        figures["importance"] = drawn
    if len(done) > 1 and parallel.labels:
        figures["parallel"] = {"": draw_parallel(parallel)}
    if len(done) > 1:
        figures["convergence"] = {"over trials": draw_convergence(convergence)}
        if convergence.seconds is not None:
            figures["convergence"]["over time"] = draw_convergence(convergence, "seconds")
    curves = curves_info(run.trials, run.objectives, baseline=run.has_baseline)
    if curves.curves:
        figures["curves"] = {"": draw_curves(curves)}
    return {k: v for k, v in figures.items() if v}


def _metric_keys(run: Run) -> list[str]:
    """Columns of the tables: quality, objectives, then the usual costs; per-class scores stay in the CSV."""
    wanted = dict.fromkeys([run.quality, "map50", *run.objectives, "params_m", "gflops", "latency_ms"])
    return [k for k in wanted if any(k in t.metrics for t in run.trials)]


def _highlight_rows(run: Run, keys: list[str]) -> list[dict[str, Any]]:
    """One row a trial; a trial that is best in two ways carries both names."""
    base = run.baseline
    named: dict[int, list[str]] = {}
    for name, t in highlights(run.trials, run.objectives, base):
        named.setdefault(t.number, []).append(name)
    by_number = {t.number: t for t in run.complete}
    return [
        {
            "names": ", ".join(names),
            "number": n,
            "cells": [_cell(by_number[n], base, k, run.objectives) for k in [*keys, "reward"]],
        }
        for n, names in named.items()
    ]


def _cell(t: Trial, base: Trial | None, key: str, objectives: Objectives) -> dict[str, str]:
    """A value and what it gains on the baseline; `tone` says whether that is good or bad."""
    value = t.reward if key == "reward" else t.metrics.get(key)
    start = None if base is None else base.reward if key == "reward" else base.metrics.get(key)
    if value is None or start is None or base is t:
        return {"value": number(value), "gain": "", "tone": ""}
    absolute, relative = gain(value, start)
    less_is_better = objectives.get(key) == "min" or key in COSTS
    good = absolute < 0 if less_is_better else absolute > 0
    tone = "" if absolute == 0 else "good" if good else "bad"
    return {"value": number(value), "gain": percent(relative) or signed(absolute), "tone": tone}


def _cards(run: Run) -> list[dict[str, str]]:
    """The headline numbers."""
    base, quality, cards = run.baseline, run.quality, []
    scored = [t for t in run.complete if quality in t.metrics]
    if scored:
        best = min(scored, key=lambda t: (-t.metrics[quality], t.number))
        cell = _cell(best, base, quality, run.objectives)
        cards.append({"label": f"best {title(quality)}", "note": f"trial {best.number}"} | cell)
    costs = [k for k, way in run.objectives.items() if way == "min"]
    if costs and base is not None and costs[0] in base.metrics and quality in base.metrics:
        able = [t for t in scored if costs[0] in t.metrics and t.metrics[quality] >= base.metrics[quality]]
        cheap = min(able, key=lambda t: (t.metrics[costs[0]], t.number))
        cell = _cell(cheap, base, costs[0], run.objectives)
        note = "the baseline itself" if cheap is base else f"trial {cheap.number}"
        label = f"fewest {title(costs[0])}" if costs[0] == "gflops" else f"lowest {title(costs[0])}"
        cards.append({"label": f"{label} at no loss", "note": note} | cell)
    failed = sum(t.state == "failed" for t in run.trials)
    note = f"{len(run.complete)} complete, {failed} failed"
    budget = run.search.get("max_trials")
    value = f"{len(run.trials)} of {budget}" if isinstance(budget, int) else str(len(run.trials))
    cards.append({"label": "trials", "value": value, "gain": "", "tone": "", "note": note})
    cost = search_cost(run.trials)
    wall = cost.trial_seconds if cost.wall_seconds is None else cost.wall_seconds
    hours = device_hours(cost, run.meta)
    cards.append({"label": "search took", "value": duration(wall), "gain": "", "tone": "", "note": hours})
    return cards


def _top_rows(run: Run, keys: list[str]) -> list[dict[str, Any]]:
    k = run.search.get("top_k")
    base = run.baseline
    rows = []
    for rank, t in enumerate(top_trials(run.trials, k if isinstance(k, int) else TOP_DEFAULT), start=1):
        record = read_json(run.folder / "top" / f"{rank}.json")
        written = record.get("trial") == t.number  # files of an earlier ranking are not this trial's
        files = sorted(p.name for p in (run.folder / "top").glob(f"{rank}.*") if p.name.count(".") == 1)
        retrained = _mapping(_mapping(record.get("retrained")).get("metrics")) if written else {}
        rows.append(
            {
                "rank": rank,
                "number": t.number,
                "cells": [_cell(t, base, key, run.objectives) for key in [*keys, "reward"]],
                "files": files if written else [],
                "genes": difference(t.arch, base.arch if base else None),
                "retrained": number(retrained[run.quality]) if run.quality in retrained else "",
            }
        )
    return rows


def _trial_rows(run: Run, keys: list[str], front: set[int]) -> list[dict[str, Any]]:
    base = run.baseline
    arch = base.arch if base else None
    return [
        {
            "number": t.number,
            "state": t.state,
            "front": t.number in front,
            "values": [(t.metrics.get(k), number(t.metrics.get(k))) for k in keys],
            "reward": (t.reward, number(t.reward)),
            "seconds": t.seconds,
            "parents": ", ".join(map(str, t.parents)),
            "genes": difference(t.arch, arch),
            "is_default": base is not None and t.arch == base.arch,
            "reason": t.reason or "",
        }
        for t in run.trials
    ]


def _facts(run: Run) -> list[str]:
    """The line under the title: what was searched, on what, how."""
    facts = []
    if run.experiment.get("space"):
        facts.append(f"space {Path(str(run.experiment['space'])).name}")
    if run.experiment.get("data"):
        facts.append(f"data {Path(str(run.experiment['data'])).name}")
    if run.experiment.get("imgsz"):
        facts.append(f"{run.experiment['imgsz']} px")
    strategy = run.search.get("strategy")
    name = strategy.get("name") if isinstance(strategy, dict) else strategy
    if name:
        facts.append(f"strategy {name}")
    return facts


def _cost_rows(run: Run) -> dict[str, str]:
    cost = search_cost(run.trials)
    rows = {"time in trials": duration(cost.trial_seconds), "device time": device_hours(cost, run.meta)}
    if cost.wall_seconds is not None:
        rows["wall time while trials ran"] = duration(cost.wall_seconds)
    if cost.parallel is not None:
        rows["trials at a time"] = f"{cost.parallel:.1f} on average"
    if cost.trials:
        rows["mean trial"] = duration(cost.trial_seconds / cost.trials)
    lost = sum(t.seconds for t in run.trials if t.state == "failed")
    if lost:
        rows["of it in failed trials"] = duration(lost)
    if run.meta.get("device"):
        rows["device"] = str(run.meta["device"])
    return rows


def _seeds(run: Run) -> str:
    trial_seeds = sorted({t.seed for t in run.trials if t.seed is not None})
    search = run.experiment.get("seed")
    parts = [f"search {search}"] if search is not None else []
    if trial_seeds:
        few = ", ".join(map(str, trial_seeds[:6])) + (", …" if len(trial_seeds) > 6 else "")
        parts.append(f"trials {few}")
    return "; ".join(parts) or "not recorded"


def _command(run: Run) -> str:
    given = run.meta.get("command")
    if isinstance(given, list):
        return " ".join(map(str, given))
    if given:
        return str(given)
    if run.experiment:
        return f"python hello_nas.py run {run.folder / 'experiment.yaml'} --run-dir NEW_FOLDER"
    return "not recorded: this folder holds only a history"


def _limits(run: Run, has_family: bool) -> list[str]:
    """What the reader must not conclude, for this run."""
    done = len(run.complete)
    limits = [
        "Each architecture was trained once. Two trainings of the same one with other seeds differ too; a gain "
        "smaller than that spread (unknown here) is not a finding. Retrain the winner and the baseline with two "
        "seeds or more before you rely on it.",
    ]
    if done > 1:
        limits.append(
            f"The winner is the best of {done} noisy scores on the split the search was scored on, so its score "
            "is optimistic. The held-out val split was not used in choosing."
        )
    epochs = _mapping(run.experiment.get("train")).get("epochs")
    if isinstance(epochs, int):
        limits.append(
            f"Trials trained for {epochs} epoch{'s' * (epochs != 1)}. An order after a short training need not "
            "be the order after a long one."
        )
    if any("latency_ms" in t.metrics for t in run.complete):
        limits.append("Latency holds for the device it was measured on, and for no other.")
    if not has_family:
        limits.append(
            "The unsearched n/s/m family is not drawn, so this page cannot say whether searching beat scaling."
        )
    if run.baseline is None:
        limits.append("The unsearched baseline did not complete, so gains cannot be given.")
    return limits


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
