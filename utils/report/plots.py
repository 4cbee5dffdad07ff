"""What the report shows, each as two functions: `x_info(trials)` computes it, `draw_x(info)` only draws it.

A drawing is a plotly figure as a plain dict, so nothing heavy is imported; `report.html` themes it (text and
grid colours) for light and dark. The choices have their own file, `utils/report/genes.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.history import Trial
from utils.pareto import hypervolume, pareto_front
from utils.report.drawing import (
    ACCENT,
    BASE,
    MUTED,
    OTHER,
    Figure,
    describe,
    is_number,
    layout,
    png,
    title,
    y_axis,
)
from utils.report.runs import Objectives, baseline_of, completed, quality_of, reward_of

WIDE = 6.0  # times the lowest cost
SAMPLED = "sampled before the search"


@dataclass(frozen=True)
class Point:
    number: int
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class ParetoInfo:
    """Quality against one cost. `front`: numbers of the non-dominated trials, cheapest first.

    others: a second series, e.g. the n/s/m family, cheapest first.
    sampled: architectures that were scored before the search, which is judged without them.
    """

    quality: str
    cost: str
    points: list[Point]
    front: list[int]
    baseline: int | None
    others: list[Point]
    sampled: list[Point] = field(default_factory=list)

    @property
    def wide(self) -> bool:
        """Do costs with the sampled ones reach so far that they are better drawn by their logarithm?"""
        costs = [p.x for p in (*self.points, *self.others, *self.sampled)]
        return bool(self.sampled) and min(costs) > 0 and max(costs) / min(costs) > WIDE


def pareto_info(
    trials: Sequence[Trial],
    cost: str,
    quality: str = "map50_95",
    *,
    baseline: bool = True,
    others: Sequence[Trial] = (),
    sampled: Sequence[Trial] = (),
) -> ParetoInfo:
    """Trials that carry both metrics; the front is taken in this plane (quality up, cost down)."""
    able = [t for t in completed(trials) if quality in t.metrics and cost in t.metrics]
    base = baseline_of(able) if baseline else None
    arch = base.arch if base else None
    front = pareto_front(able, {quality: "max", cost: "min"}) if able else []
    rest = [t for t in completed(others) if quality in t.metrics and cost in t.metrics]
    scored = [t for t in completed(sampled) if quality in t.metrics and cost in t.metrics]
    return ParetoInfo(
        quality=quality,
        cost=cost,
        points=[Point(t.number, t.metrics[cost], t.metrics[quality], describe(t, arch)) for t in able],
        front=[t.number for t in sorted(front, key=lambda t: (t.metrics[cost], t.number))],
        baseline=base.number if base else None,
        others=sorted(
            (Point(t.number, t.metrics[cost], t.metrics[quality], _series_name(t)) for t in rest),
            key=lambda p: p.x,
        ),
        sampled=[
            Point(t.number, t.metrics[cost], t.metrics[quality], describe(t, arch, name="sampled"))
            for t in scored
        ],
    )


def _series_name(trial: Trial) -> str:
    """`n`, `s`, `m` where the arch says its scale, else its genes."""
    for key in ("scale", "name", "model"):
        if key in trial.arch:
            return str(trial.arch[key])
    return ", ".join(f"{k}={v}" for k, v in trial.arch.items()) or f"trial {trial.number}"


def draw_pareto(info: ParetoInfo) -> Figure:
    by_number = {p.number: p for p in info.points}
    front = [by_number[n] for n in info.front]
    dominated = [p for p in info.points if p.number not in info.front and p.number != info.baseline]
    hover = {"hovertemplate": "%{text}<extra></extra>"}
    data: list[Figure] = []
    if info.sampled:
        quiet = {"color": MUTED, "size": 5, "opacity": 0.7, "symbol": "circle-open"}
        data.append(scatter(info.sampled, SAMPLED, mode="markers", marker=quiet) | hover)
    data += [
        scatter(dominated, "dominated", mode="markers", marker={"color": MUTED, "size": 8, "opacity": 0.55})
        | hover,
        scatter(
            front,
            "Pareto front",
            mode="lines+markers",
            line={"color": ACCENT, "width": 2, "shape": "hv"},
            marker={"color": ACCENT, "size": 10},
        )
        | hover,
    ]
    if info.others:
        data.append(
            scatter(
                info.others,
                "unsearched family",
                mode="lines+markers+text",
                textposition="bottom right",
                line={"color": OTHER, "width": 1.5, "dash": "dot"},
                marker={"color": OTHER, "size": 10, "symbol": "triangle-up"},
            )
            | {"hovertemplate": "%{text}<br>%{x:.4g}, %{y:.4f}<extra></extra>"}
        )
    if info.baseline is not None:
        mark = {"color": BASE, "size": 14, "symbol": "diamond", "line": {"width": 1.5, "color": "#ffffff"}}
        data.append(
            scatter([by_number[info.baseline]], "baseline (not searched)", mode="markers", marker=mark)
            | hover
        )
    plan = layout(height=430, xaxis={"title": {"text": title(info.cost)}}, yaxis=y_axis(title(info.quality)))
    if info.wide:
        ticks = _round_numbers([p.x for p in (*info.points, *info.others, *info.sampled)])
        plan["xaxis"] |= {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    plan["annotations"] = [
        {
            "x": math.log10(p.x) if info.wide else p.x,
            "y": p.y,
            "text": str(p.number),
            "showarrow": False,
            "yshift": 13,
            "font": {"size": 11},
        }
        for p in front
        if p.number != info.baseline and len(front) <= 15
    ]
    return {"data": data, "layout": plan}


def _round_numbers(values: Sequence[float]) -> list[float]:
    """1, 2, 5 times powers of ten, from below the smallest value to above the largest."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [float(f"{digit}e{power}") for power in range(low, high + 1) for digit in (1, 2, 5)]


def save_pareto_png(info: ParetoInfo, path: Path) -> Path:
    """The front as a picture for a README. Infinite or missing values never get here."""
    from matplotlib.ticker import LogLocator, NullLocator

    by_number = {p.number: p for p in info.points}
    front = [by_number[n] for n in info.front]
    rest = [p for p in info.points if p.number not in info.front and p.number != info.baseline]
    with png(path, 7, 4.6) as (axes,):
        if info.sampled:
            xs, ys = [p.x for p in info.sampled], [p.y for p in info.sampled]
            axes.scatter(xs, ys, s=14, facecolor="none", edgecolor=MUTED, lw=0.7, label=SAMPLED)
        if info.wide:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
        axes.scatter(
            [p.x for p in rest], [p.y for p in rest], s=28, color=MUTED, alpha=0.6, lw=0, label="dominated"
        )
        axes.step([p.x for p in front], [p.y for p in front], where="post", color=ACCENT, lw=1.6)
        axes.scatter(
            [p.x for p in front], [p.y for p in front], s=46, color=ACCENT, zorder=3, label="Pareto front"
        )
        if info.others:
            xs, ys = [p.x for p in info.others], [p.y for p in info.others]
            axes.plot(xs, ys, ":^", color=OTHER, lw=1.4, ms=7, label="unsearched family")
            for p in info.others:
                axes.annotate(
                    p.text, (p.x, p.y), (6, -10), textcoords="offset points", fontsize=8, color=OTHER
                )
        if info.baseline is not None:
            p = by_number[info.baseline]
            axes.scatter(
                [p.x], [p.y], s=90, color=BASE, marker="D", edgecolor="white", zorder=4, label="baseline"
            )
        if not info.points and not info.sampled:
            axes.text(0.5, 0.5, "no complete trial", ha="center", va="center", transform=axes.transAxes)
        axes.set_xlabel(title(info.cost))
        axes.set_ylabel(title(info.quality))
        axes.grid(alpha=0.25)
        if info.points or info.sampled:
            axes.legend(edgecolor="none", fontsize=9)
        _number(axes, front)
    return path


def _number(axes: Any, points: Sequence[Point]) -> None:
    """Write trial numbers over points, the highest first, where they do not run into each other."""
    axes.figure.draw_without_rendering()  # places are known only then
    taken: list[tuple[float, float]] = []
    for p in sorted(points, key=lambda p: -p.y):
        x, y = axes.transData.transform((p.x, p.y))  # in pixels, of which a number takes 30 x 24
        if all(abs(x - left) > 30 or abs(y - top) > 24 for left, top in taken):
            taken.append((x, y))
            axes.annotate(
                str(p.number), (p.x, p.y), (0, 6), textcoords="offset points", ha="center", fontsize=8
            )


def scatter(points: Sequence[Point], name: str, **style: Any) -> Figure:
    xs, ys = [p.x for p in points], [p.y for p in points]
    return {"type": "scatter", "x": xs, "y": ys, "text": [p.text for p in points], "name": name} | style


@dataclass(frozen=True)
class ConvergenceInfo:
    """After each complete trial, in the order in which they ended.

    seconds: since the first trial started, None for a history without start times
    hypervolume: of the front so far, against `reference` (the worst value of each objective in the whole run)
    """

    numbers: list[int]
    seconds: list[float] | None
    rewards: list[float]
    best: list[float]
    hypervolume: list[float] | None
    reference: dict[str, float]


def convergence_info(trials: Sequence[Trial], objectives: Objectives) -> ConvergenceInfo:
    timed = all(t.started > 0 for t in trials)
    done = sorted(completed(trials), key=lambda t: (t.started + t.seconds if timed else 0.0, t.number))
    start = min((t.started for t in trials), default=0.0)
    rewards = [reward_of(t) for t in done]
    steps = [[t for t in done[: i + 1] if all(k in t.metrics for k in objectives)] for i in range(len(done))]
    reference: dict[str, float] = {}
    volumes: list[float] | None = None
    if done and steps[-1] and len(objectives) > 1:
        for key, way in objectives.items():
            values = [t.metrics[key] for t in steps[-1]]
            reference[key] = min(values) if way == "max" else max(values)
        volumes = [hypervolume(step, objectives, reference) for step in steps]
    return ConvergenceInfo(
        numbers=[t.number for t in done],
        seconds=[t.started + t.seconds - start for t in done] if timed and done else None,
        rewards=rewards,
        best=[float(v) for v in np.maximum.accumulate(rewards)] if rewards else [],
        hypervolume=volumes,
        reference=reference,
    )


def draw_convergence(info: ConvergenceInfo, over: str = "trials") -> Figure:
    """over: `trials` (finished so far) or `seconds`."""
    if over == "seconds" and info.seconds is not None:
        scale, unit = (3600, "hours") if max(info.seconds) > 7200 else (60, "minutes")
        xs, label = [s / scale for s in info.seconds], f"{unit} since the start"
    else:
        xs, label = [float(i + 1) for i in range(len(info.numbers))], "trials finished"
    names = [f"trial {n}" for n in info.numbers]
    data: list[Figure] = [
        {"type": "scatter", "mode": "markers", "x": xs, "y": info.rewards, "text": names, "name": "a trial"}
        | {"marker": {"color": MUTED, "size": 7, "opacity": 0.6}}
        | {"hovertemplate": "%{text}: reward %{y:.4f}<extra></extra>"},
        {"type": "scatter", "mode": "lines", "x": xs, "y": info.best, "text": names, "name": "best reward"}
        | {"line": {"color": ACCENT, "width": 2.5, "shape": "hv"}}
        | {"hovertemplate": "best reward %{y:.4f} (%{text})<extra></extra>"},
    ]
    plan = layout(height=430, xaxis={"title": {"text": label}}, yaxis=y_axis("reward"))
    if info.hypervolume is not None:
        data.append(
            {"type": "scatter", "mode": "lines", "x": xs, "y": info.hypervolume, "yaxis": "y2"}
            | {"name": "hypervolume", "line": {"color": OTHER, "width": 2.5, "shape": "hv"}}
            | {"text": names, "hovertemplate": "hypervolume %{y:.4g} (%{text})<extra></extra>"}
        )
        plan["yaxis"]["domain"] = [0.45, 1]
        plan["yaxis2"] = y_axis("hypervolume") | {"domain": [0, 0.36], "rangemode": "tozero"}
        plan["xaxis"]["anchor"] = "y2"
    return {"data": data, "layout": plan}


@dataclass(frozen=True)
class CurvesInfo:
    """metric over epochs, one (number, epochs, values) a trial; best and baseline are to be highlighted."""

    metric: str
    curves: list[tuple[int, list[float], list[float]]]
    best: int | None
    baseline: int | None


def curves_info(trials: Sequence[Trial], objectives: Objectives, *, baseline: bool = True) -> CurvesInfo:
    quality = quality_of(objectives)
    metric = quality if any(quality in e for t in trials for e in t.curve) else "loss"
    curves = []
    for t in trials:
        rows = [(e.get("epoch", i), e.get(metric)) for i, e in enumerate(t.curve)]
        good = [(float(x), float(y)) for x, y in rows if is_number(x) and is_number(y)]
        if good:
            curves.append((t.number, [x for x, _ in good], [y for _, y in good]))
    drawn = {number for number, _, _ in curves}
    done = [t for t in completed(trials) if t.number in drawn]
    best = max(done, key=lambda t: (reward_of(t), -t.number)).number if done else None
    return CurvesInfo(metric, curves, best, 0 if baseline and 0 in drawn else None)


def draw_curves(info: CurvesInfo) -> Figure:
    data = []
    order = sorted(info.curves, key=lambda c: (c[0] == info.best, c[0] == info.baseline))
    for number, xs, ys in order:
        name, style = f"trial {number}", {"color": MUTED, "width": 1.2}
        if number == info.baseline:
            name, style = "baseline", {"color": BASE, "width": 2.5}
        if number == info.best:
            name = f"best, trial {number}" + (" (the baseline)" if number == info.baseline else "")
            style = {"color": ACCENT, "width": 3.0}
        marked = number in (info.best, info.baseline)
        data.append(
            {"type": "scatter", "mode": "lines+markers" if len(xs) == 1 else "lines", "x": xs, "y": ys}
            | {"name": name, "line": style, "opacity": 1.0 if marked else 0.55, "showlegend": marked}
            | {"hovertemplate": f"{name}, epoch %{{x}}: %{{y:.4f}}<extra></extra>"}
        )
    plan = layout(height=466, xaxis={"title": {"text": "epoch"}}, yaxis=y_axis(title(info.metric)))
    plan["hovermode"] = "closest"
    return {"data": data, "layout": plan}


def failures_info(trials: Sequence[Trial], infeasible: Sequence[Trial]) -> dict[str, dict[str, list[int]]]:
    """{"failed": {reason: [numbers]}, "infeasible": {limit: [-1, ...]}}, the most frequent first."""
    groups: dict[str, dict[str, list[int]]] = {"failed": {}, "infeasible": {}}
    for t in trials:
        if t.state == "failed":
            groups["failed"].setdefault(t.reason or "no reason given", []).append(t.number)
    for t in infeasible:
        groups["infeasible"].setdefault(_limit(t.reason), []).append(t.number)
    return {k: dict(sorted(g.items(), key=lambda e: -len(e[1]))) for k, g in groups.items()}


def _limit(reason: str | None) -> str:
    """Infeasible archs differ in the value that breaks a limit; count them by the limit."""
    words = (reason or "no reason given").split()
    numbers = [i for i, w in enumerate(words) if w.replace(".", "", 1).isdigit()]
    if len(numbers) > 1:
        words[numbers[0]] = "…"
    return " ".join(words)
