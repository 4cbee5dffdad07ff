"""The tables and headline of the report as plain rows: what was found, by how much it gains, what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from utils.drawing import difference, title
from utils.history import Trial
from utils.results import gain, highlights, percent, signed
from utils.runs import (
    COSTS,
    Objectives,
    Run,
    baseline_of,
    completed,
    device_hours,
    duration,
    read_json,
    retrained,
    reward_of,
    search_cost,
    top_trials,
)

TOP_DEFAULT = 3


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
        text = f"Yes: trial {best.number} has {_against(best, base, objectives)}."
        top = top_trials(searched, 1)[0]
        if top is not best:
            text += f" Best by reward is trial {top.number}: {_against(top, base, objectives)}."
        return Verdict("better", text, best)
    best = top_trials(searched, 1)[0]
    if reward_of(best) > reward_of(base):
        return Verdict(
            "trade",
            f"Partly: trial {best.number} has a higher reward with {_against(best, base, objectives)}, "
            "but no trial beats the baseline in every objective.",
            best,
        )
    return Verdict("no", "No: no trial reached the reward of the unsearched baseline.", best)


def family_verdict(trials: Sequence[Trial], family: Sequence[Trial], objectives: Objectives) -> str:
    """How many members of an unsearched family a trial dominates, and the other way round; "" without one."""
    members = [t for t in completed(family) if all(k in t.metrics for k in objectives)]
    done = [t for t in completed(trials) if all(k in t.metrics for k in objectives)]
    if not members or not done:
        return ""
    beaten = [m for m in members if any(_dominates(t, m, objectives) for t in done)]
    beating = [t for t in done if any(_dominates(m, t, objectives) for m in members)]
    return (
        f"Against the unsearched family: trials beat {len(beaten)} of its {len(members)} members in every "
        f"objective; {len(beating)} of the {len(done)} trials are beaten by a member."
    )


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


def metric_keys(run: Run) -> list[str]:
    """Columns of the tables: quality, objectives, then the usual costs; per-class scores stay in the CSV."""
    wanted = dict.fromkeys(
        [run.quality, "map50", "top5", *run.objectives, "params_m", "gflops", "latency_ms"]
    )
    return [k for k in wanted if any(k in t.metrics for t in run.trials)]


def highlight_rows(run: Run, keys: list[str]) -> list[dict[str, Any]]:
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
            "cells": [cell(by_number[n], base, k, run.objectives) for k in [*keys, "reward"]],
        }
        for n, names in named.items()
    ]


def cell(t: Trial, base: Trial | None, key: str, objectives: Objectives) -> dict[str, str]:
    """A value and what it gains on the baseline; `tone` says whether that is good or bad."""
    value = t.reward if key == "reward" else t.metrics.get(key)
    start = None if base is None else base.reward if key == "reward" else base.metrics.get(key)
    if value is None or start is None or base is t:
        return {"value": number(value), "gain": "", "tone": ""}
    absolute, relative = gain(value, start)
    less_is_better = objectives.get(key) == "min" or key in COSTS
    good = absolute < 0 if less_is_better else absolute > 0
    tone = "" if absolute == 0 else "good" if good else "bad"
    change = "no change" if absolute == 0 else percent(relative) or signed(absolute)
    return {"value": number(value), "gain": change, "tone": tone}


def cards(run: Run) -> list[dict[str, str]]:
    """The headline numbers."""
    base, quality, found = run.baseline, run.quality, list[dict[str, str]]()
    scored = [t for t in run.complete if quality in t.metrics]
    if scored:
        best = min(scored, key=lambda t: (-t.metrics[quality], t.number))
        shown = cell(best, base, quality, run.objectives)
        found.append({"label": f"best {title(quality)}", "note": f"trial {best.number}"} | shown)
    costs = [k for k, way in run.objectives.items() if way == "min"]
    if costs and base is not None and costs[0] in base.metrics and quality in base.metrics:
        able = [t for t in scored if costs[0] in t.metrics and t.metrics[quality] >= base.metrics[quality]]
        cheap = min(able, key=lambda t: (t.metrics[costs[0]], -t.metrics[quality], t.number))
        shown = cell(cheap, base, costs[0], run.objectives)
        note = "none is cheaper without loss" if cheap is base else f"trial {cheap.number}"
        label = f"fewest {title(costs[0])}" if costs[0] == "gflops" else f"lowest {title(costs[0])}"
        found.append({"label": f"{label} at no loss", "note": note} | shown)
    failed = sum(t.state == "failed" for t in run.trials)
    note = f"{len(run.complete)} complete, {failed} failed"
    budget = run.search.get("max_trials")
    value = f"{len(run.trials)} of {budget}" if isinstance(budget, int) else str(len(run.trials))
    found.append({"label": "trials", "value": value, "gain": "", "tone": "", "note": note})
    cost = search_cost(run.trials)
    wall = cost.trial_seconds if cost.wall_seconds is None else cost.wall_seconds
    hours = device_hours(cost, run.meta)
    found.append({"label": "search took", "value": duration(wall), "gain": "", "tone": "", "note": hours})
    return found


def top_rows(run: Run, keys: list[str]) -> list[dict[str, Any]]:
    k = run.search.get("top_k")
    base = run.baseline
    rows = []
    for rank, t in enumerate(top_trials(run.trials, k if isinstance(k, int) else TOP_DEFAULT), start=1):
        record = read_json(run.folder / "top" / f"{rank}.json")
        written = record.get("trial") == t.number  # files of an earlier ranking are not this trial's
        found = sorted((run.folder / "top").glob(f"{rank}.*")) if written else []
        files = {p.name: f"top/{p.name}" for p in found if p.name.count(".") == 1}
        weights = f"trials/{t.number:04d}/weights.pt"
        if f"{rank}.pt" not in files and (run.folder / weights).exists():
            files["weights"] = weights
        rows.append(
            {
                "rank": rank,
                "number": t.number,
                "cells": [cell(t, base, key, run.objectives) for key in [*keys, "reward"]],
                "files": files,
                "genes": difference(t.arch, base.arch if base else None),
            }
        )
    return rows


def retrained_rows(run: Run, keys: list[str]) -> list[dict[str, Any]]:
    """The full trainings by quality, each against the baseline that was retrained in the same way."""
    results = retrained(run)
    trials = {n: Trial(n, {}, metrics=r["metrics"]) for n, r in results.items()}
    base = trials.get(0) if run.has_baseline else None
    ranked = sorted(trials.values(), key=lambda t: (-t.metrics.get(run.quality, 0.0), t.number))
    return [
        {
            "name": "baseline" if t is base else f"trial {t.number}",
            "epochs": mapping(results[t.number].get("train")).get("epochs", "–"),
            "seed": results[t.number].get("seed", "–"),
            "cells": [cell(t, base, key, run.objectives) for key in keys],
        }
        for t in ranked
    ]


def trial_rows(run: Run, keys: list[str], front: set[int]) -> list[dict[str, Any]]:
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


def cost_rows(run: Run) -> dict[str, str]:
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
        rows["time in failed trials"] = duration(lost)
    if run.meta.get("device"):
        rows["device"] = str(run.meta["device"])
    return rows


def mapping(value: Any) -> dict[str, Any]:
    """What a foreign file should hold a mapping for, {} if it does not."""
    return value if isinstance(value, dict) else {}
