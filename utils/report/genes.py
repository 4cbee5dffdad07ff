"""What the choices of a space did: parallel rows coloured by reward, and how much each one matters.

Two functions a plot, as in `utils/report/plots.py`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from utils.history import Trial
from utils.report.drawing import ACCENT, BASE, MUTED, SCALE, UNUSED, Figure, layout, title
from utils.report.runs import completed, reward_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ParallelInfo:
    """One row a choice, one line a trial.

    labels: choices that took more than one value, at most `most`, the important ones first
    values: for each label what it took, in a natural order; positions: [trial][label] index into values
    """

    labels: list[str]
    values: list[list[str]]
    positions: list[list[int]]
    numbers: list[int]
    rewards: list[float]
    left_out: int


def parallel_info(trials: Sequence[Trial], order: Sequence[str] = (), most: int = 14) -> ParallelInfo:
    """order: labels to put first (those that matter); the others follow in the order of the network."""
    done = completed(trials)
    table = gene_table(done)
    labels = [k for k in dict.fromkeys([*order, *table]) if k in table]
    shown = labels[:most]
    values = [sorted(set(table[k]), key=_natural) for k in shown]
    return ParallelInfo(
        labels=shown,
        values=values,
        positions=[[values[j].index(table[k][i]) for j, k in enumerate(shown)] for i in range(len(done))],
        numbers=[t.number for t in done],
        rewards=[reward_of(t) for t in done],
        left_out=len(labels) - len(shown),
    )


def gene_table(trials: Sequence[Trial]) -> dict[str, list[str]]:
    """label -> its value in each trial as text; only labels with more than one value among these trials."""
    labels = dict.fromkeys(k for t in trials for k in t.arch)
    table = {k: [str(t.arch.get(k, UNUSED)) for t in trials] for k in labels}
    return {k: column for k, column in table.items() if len(set(column)) > 1}


def _natural(value: str) -> tuple[int, str, float, str]:
    """k4 < k6 < k10, x1.0 < x1.5, unused last."""
    head = value.rstrip("0123456789.")
    try:
        number = float(value[len(head) :])
    except ValueError:
        head, number = value, 0.0
    return (value == UNUSED, head, number, value)


def draw_parallel(info: ParallelInfo) -> Figure:
    """Choices from top to bottom, reward at the bottom. Rows instead of plotly's parcoords: long labels and
    phones fit, lines can be hovered, and no WebGL is needed."""
    rows = len(info.labels)
    low, high = (min(info.rewards), max(info.rewards)) if info.rewards else (0.0, 1.0)
    span = (high - low) or 1.0
    levels = [(r - low) / span for r in info.rewards]
    ranked = sorted(range(len(levels)), key=lambda i: levels[i])
    faint = 0.9 if len(ranked) <= 30 else 0.45
    data: list[Figure] = []
    for place, i in enumerate(ranked):  # the best are drawn last, on top
        best = place == len(ranked) - 1
        # trials that share a value are spread a little, so that lines can be told apart; display only
        spread = (place / max(1, len(ranked) - 1) - 0.5) * 0.5
        stops = [_slot(p + spread, len(info.values[j])) for j, p in enumerate(info.positions[i])]
        xs, ys = _flowing([*stops, levels[i]], steps=14 if len(ranked) <= 50 else 7)
        head = f"<b>trial {info.numbers[i]}, reward {info.rewards[i]:.4f}</b>"
        names = [f"{k} {info.values[j][info.positions[i][j]]}" for j, k in enumerate(info.labels)]
        line = {"color": colour(levels[i]), "width": 3 if best else 1.4}
        data.append(
            {"type": "scatter", "mode": "lines", "x": xs, "y": ys, "line": line, "showlegend": False}
            | {"opacity": 1.0 if best else faint, "text": "<br>".join([head, *map(html.escape, names)])}
            | {"hovertemplate": "%{text}<extra></extra>"}
        )
    ticks = [
        {"x": _slot(p, len(values)), "y": j, "text": html.escape(v), "showarrow": False, "yshift": 12}
        | {"font": {"size": 11}, "bgcolor": "#ffffff", "borderpad": 0, "opacity": 0.85}
        for j, values in enumerate(info.values)
        for p, v in enumerate(values)
    ]
    ends = [
        {"x": x, "y": rows, "text": f"{v:.4f}", "showarrow": False, "yshift": -14, "xanchor": a}
        | {"font": {"size": 11}}
        for x, v, a in ((0.0, low, "left"), (1.0, high, "right"))
    ]
    plan = layout(height=46 * (rows + 1) + 40)
    plan["margin"] |= {"t": 24, "b": 24}
    plan["xaxis"] = {"visible": False, "range": [-0.03, 1.03], "fixedrange": True}
    plan["yaxis"] = {
        "range": [rows + 0.5, -0.6],
        "tickvals": [*range(rows), rows],
        "ticktext": [*map(html.escape, info.labels), "<b>reward</b>"],
        "automargin": True,
        "zeroline": False,
        "fixedrange": True,
    }
    plan["annotations"] = ticks + (ends if info.rewards else [])
    plan["hovermode"] = "closest"
    return {"data": data, "layout": plan}


def _flowing(stops: Sequence[float], steps: int) -> tuple[list[float], list[float]]:
    """A curve through (stops[j], j) that crosses every row vertically and never overshoots (smoothstep)."""
    t = np.arange(steps) / steps
    ease = t * t * (3 - 2 * t)
    xs = [a + (b - a) * e for a, b in zip(stops, stops[1:], strict=False) for e in ease]
    ys = [j + part for j in range(len(stops) - 1) for part in t]
    return [round(float(x), 4) for x in [*xs, stops[-1]]], [round(float(y), 3) for y in [*ys, len(stops) - 1]]


def _slot(position: float, count: int) -> float:
    """The place on a row 0..1 of value number `position` out of `count`."""
    return (position + 0.5) / count


def colour(level: float) -> str:
    """0 (poor) .. 1 (best) on SCALE, as #rrggbb."""
    for (a, low), (b, high) in zip(SCALE, SCALE[1:], strict=False):
        if level <= b:
            part = (level - a) / (b - a)
            ends = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (low, high)]
            return "#" + "".join(f"{round(x + part * (y - x)):02x}" for x, y in zip(*ends, strict=True))
    return SCALE[-1][1]


ENOUGH = 8  # complete trials below which importance says nothing


@dataclass(frozen=True)
class Importance:
    """Share of the variance of the target that one choice explains by itself (its main effect).

    share: epsilon squared, about 0 for a choice without effect (it may come out a little negative), 1 for all
    low, high: 95 % jackknife interval; effects: value -> (mean minus overall mean, number of trials)
    """

    label: str
    share: float
    low: float
    high: float
    effects: dict[str, tuple[float, int]]


@dataclass(frozen=True)
class ImportanceInfo:
    """floor: what the luckiest choice stays below in 95 % of shuffles; None when there are too few trials."""

    target: str
    trials: int
    choices: list[Importance]
    floor: float | None
    note: str


def importance_info(
    trials: Sequence[Trial], target: str = "reward", *, shuffles: int = 400, seed: int = 0
) -> ImportanceInfo:
    """How much each choice matters for `target` (`reward` or a metric), largest first.

    epsilon^2 = (SSB - (k - 1) MSW) / SST of a one-way analysis of variance, k values of the choice (Kelley
    1935): the main effect of fANOVA (Hutter et al. 2014), less the share that k groups explain by chance,
    which a forest on a few dozen trials does not take off. Interactions are not seen; choices that the
    strategy always varied together cannot be told apart by any method.
    """
    done = [t for t in completed(trials) if target == "reward" or target in t.metrics]
    values = [reward_of(t) if target == "reward" else t.metrics[target] for t in done]
    table = gene_table(done)
    n = len(done)
    if n < ENOUGH:
        some = f"{n} complete trial{'s' * (n != 1)}"
        note = f"{some}: too few to tell which choices matter (at least {ENOUGH} are needed)."
        return ImportanceInfo(target, n, [], None, note)
    y = np.asarray(values) - np.mean(values)
    if not table or not float(y @ y) > 0:
        return ImportanceInfo(target, n, [], None, "All trials agree: there is no variation to explain.")
    choices, codes = [], []
    for label, column in table.items():
        names, code = np.unique(column, return_inverse=True)
        share, error = _epsilon_squared(y, code)
        effects = {
            str(name): (float(y[code == g].mean()), int((code == g).sum())) for g, name in enumerate(names)
        }
        effects = dict(sorted(effects.items(), key=lambda e: -e[1][0]))
        choices.append(Importance(label, share, share - 1.96 * error, share + 1.96 * error, effects))
        codes.append(code)
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(np.tile(y, (shuffles, 1)), axis=1)
    luck = np.max([_shares(shuffled, code) for code in codes], axis=0)
    floor = float(np.quantile(luck, 0.95))
    choices.sort(key=lambda c: -c.share)
    clear = [c.label for c in choices if c.share > floor]
    if clear:
        note = f"{_list(clear)} stand{'s' * (len(clear) == 1)} out from chance in these {n} trials."
    else:
        note = f"No choice stands out from chance in these {n} trials: do not read the order as a finding."
    return ImportanceInfo(target, n, choices, floor, note)


def _shares(y: Floats, code: Ints) -> Floats:
    """epsilon^2 of groups `code` [n] for each centred row of y [rows, n] -> [rows]."""
    counts = np.bincount(code)
    n, k = len(code), len(counts)
    total = (y**2).sum(1)
    between = ((y @ np.eye(k)[code]) ** 2 / counts).sum(1)
    if n <= k:
        return np.zeros(len(y))
    return (between - (k - 1) * (total - between) / (n - k)) / total


def _epsilon_squared(y: Floats, code: Ints) -> tuple[float, float]:
    """epsilon^2 and its jackknife standard error (Efron 1979: sqrt((n-1)/n * sum (t_i - mean t)^2)).

    Leaving out trial i changes only its own group's sum and count, so all n repetitions are one expression.
    """
    n, counts = len(y), np.bincount(code)
    sums = np.bincount(code, weights=y)
    own, size = sums[code], counts[code]
    alone = size == 1
    groups = len(counts) - alone
    total = float(y @ y) - y**2 - y**2 / (n - 1)
    rest = np.divide((own - y) ** 2, size - 1, out=np.zeros(n), where=~alone)
    between = (sums**2 / counts).sum() - own**2 / size + rest - y**2 / (n - 1)
    free = n - 1 - groups
    usable = (free > 0) & (total > 0)
    within = np.divide(total - between, free, out=np.zeros(n), where=usable)
    left_out = np.divide(between - (groups - 1) * within, total, out=np.zeros(n), where=usable)
    error = np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    return float(_shares(y[None], code)[0]), float(error)


def _list(names: Sequence[str], most: int = 4) -> str:
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def draw_importance(info: ImportanceInfo, most: int = 15) -> Figure:
    shown = info.choices[:most][::-1]  # plotly draws the first at the bottom
    floor = info.floor if info.floor is not None else float("inf")
    texts = [
        f"<b>{html.escape(c.label)}</b><br>share {c.share:.2f}, "
        f"95 % {max(0, c.low):.2f} to {min(1, c.high):.2f}<br>"
        + "<br>".join(f"{html.escape(v)}: {m:+.4f} ({n} trials)" for v, (m, n) in c.effects.items())
        for c in shown
    ]
    shares = [max(0.0, c.share) for c in shown]
    bar = {
        "type": "bar",
        "orientation": "h",
        "x": shares,
        "y": [html.escape(c.label) for c in shown],
        "text": texts,
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": [ACCENT if c.share > floor else MUTED for c in shown]},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, min(1.0, c.high) - s) for c, s in zip(shown, shares, strict=True)],
            "arrayminus": [max(0.0, s - max(0.0, c.low)) for c, s in zip(shown, shares, strict=True)],
            "thickness": 1.2,
            "width": 3,
            "color": "#7b8794",
        },
        "showlegend": False,
    }
    plan = layout(height=26 * len(shown) + 90)
    plan["xaxis"] = {
        "title": {"text": f"share of the variance of {title(info.target)} explained"},
        "rangemode": "tozero",
    }
    plan["yaxis"] = {"automargin": True, "ticksuffix": " "}
    plan["hovermode"] = "closest"
    plan["bargap"] = 0.35
    if info.floor is not None:
        line = {"color": BASE, "width": 1.5, "dash": "dash"}
        plan["shapes"] = [
            {"type": "line", "x0": floor, "x1": floor, "y0": 0, "y1": 1, "yref": "paper", "line": line}
        ]
        plan["annotations"] = [
            {"x": floor, "y": 1, "yref": "paper", "text": "chance", "showarrow": False, "yanchor": "bottom"}
            | {"font": {"size": 11, "color": BASE}}
        ]
    return {"data": [bar], "layout": plan}
