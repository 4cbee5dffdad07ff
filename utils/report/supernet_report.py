"""What the report shows of a search whose architectures share a supernet's weights.

As in plots.py, `x_info(run)` computes and `draw_x(info)` only draws; whatever a run does not have yet
is None.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any

from utils.report.drawing import ACCENT, BASE, MUTED, OTHER, Figure, is_number, layout, title, y_axis
from utils.report.progress import KINDS, SupernetInfo
from utils.report.rank import RankInfo, RankRow, Tau, rank_info
from utils.report.runs import Run, read_json
from utils.run_files import Files

FEWEST = 3  # architectures that a ranking is looked at of
FEW_EPOCHS = 12  # whose axis has a tick for each
COLOURS = {"max": ACCENT, "random": MUTED, "min": OTHER, "loss": BASE}


def draw_supernet(info: SupernetInfo) -> dict[str, Figure]:
    """tab -> figure: `scores` and `loss`, those that there are."""
    figures = {}
    if info.scores:
        figures["scores"] = _lines(info.scores, title(info.quality), marked=True)
    if info.losses:
        figures["loss"] = _lines(info.losses, "training loss")
    for figure in figures.values():
        if info.planned:
            figure["layout"]["xaxis"] |= {"range": [0, info.planned * 1.02]}
        if (info.planned or info.epochs) <= FEW_EPOCHS:
            figure["layout"]["xaxis"] |= {"dtick": 1}
    return figures


def _lines(series: dict[str, list[tuple[int, float]]], name: str, marked: bool = False) -> Figure:
    data = []
    for kind, points in series.items():
        label = (
            f"{KINDS[kind]} architecture" + "s" * (kind == "random") if kind in KINDS else "mean of a step"
        )
        data.append(
            {"type": "scatter", "name": label, "x": [x for x, _ in points], "y": [y for _, y in points]}
            | {"mode": "lines+markers" if marked or len(points) == 1 else "lines"}
            | {"line": {"color": COLOURS[kind], "width": 2.2}, "marker": {"color": COLOURS[kind], "size": 6}}
            | {"hovertemplate": f"{label}, epoch %{{x}}: %{{y:.4f}}<extra></extra>"}
        )
    return {"data": data, "layout": layout(340, xaxis={"title": {"text": "epoch"}}, yaxis=y_axis(name))}


# Does it rank rightly? --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranked:
    """One architecture and its place (1 = best, equal ones share the better place) by each of its scores.

    supernet, uncalibrated: its slice's score, batch norm re-estimated and as training left it
    alone: trained by itself, one score a seed; mean: of them, and what `by_alone` is the place by
    """

    number: int
    params_m: float
    gflops: float
    supernet: float
    uncalibrated: float | None
    alone: tuple[float, ...]
    by_supernet: int
    by_uncalibrated: int | None
    by_alone: int

    @property
    def mean(self) -> float:
        return sum(self.alone) / len(self.alone)


@dataclass(frozen=True)
class RankReport:
    """`rows` best trained alone first; `supernet` and `uncalibrated` as utils/report/rank.py has them."""

    rows: list[Ranked]
    supernet: RankInfo
    uncalibrated: RankInfo | None

    @property
    def tau(self) -> Tau:
        return self.supernet.tau["supernet"]


def rank_report(run: Run) -> RankReport | None:
    """What `rank/rank.json` holds; None without it, and for fewer than three readable architectures."""
    given = read_json(Files(run.folder).rank / "rank.json").get("rows")
    rows = [r for r in map(_sound, given if isinstance(given, list) else []) if r is not None]
    rows = [r for r in rows if r["standalone"].keys() == rows[0]["standalone"].keys()]
    if len(rows) < FEWEST:
        return None
    both = all(r["uncalibrated"] is not None for r in rows)
    infos = {
        how: rank_info([_rank_row(r, how) for r in rows], run.quality)
        for how in ("supernet", *(["uncalibrated"] if both else []))
    }
    by_supernet = places([r["supernet"] for r in rows])
    by_uncalibrated = places([r["uncalibrated"] for r in rows]) if both else [None] * len(rows)
    by_alone = places([_mean(r) for r in rows])
    ranked = [
        Ranked(
            number=r["number"],
            params_m=r["params_m"],
            gflops=r["gflops"],
            supernet=r["supernet"],
            uncalibrated=r["uncalibrated"],
            alone=_alone(r),
            by_supernet=slices,
            by_uncalibrated=uncalibrated,
            by_alone=alone,
        )
        for r, slices, uncalibrated, alone in zip(rows, by_supernet, by_uncalibrated, by_alone, strict=True)
    ]
    ranked.sort(key=lambda row: (row.by_alone, row.number))
    return RankReport(ranked, infos["supernet"], infos.get("uncalibrated"))


def _sound(row: Any) -> dict[str, Any] | None:
    """A row whose numbers are numbers, else None."""
    alone = row.get("standalone") if isinstance(row, dict) else None
    if not isinstance(alone, dict) or not alone or not all(map(is_number, alone.values())):
        return None
    if not all(is_number(row.get(key)) for key in ("number", "supernet", "params_m", "gflops")):
        return None
    own = row.get("uncalibrated")
    return row | {"number": int(row["number"]), "uncalibrated": own if is_number(own) else None}


def _rank_row(row: dict[str, Any], how: str) -> RankRow:
    return RankRow(row["number"], row[how], _alone(row), row["params_m"], row["gflops"])


def _alone(row: dict[str, Any]) -> tuple[float, ...]:
    return tuple(score for _, score in sorted(row["standalone"].items()))


def _mean(row: dict[str, Any]) -> float:
    return sum(row["standalone"].values()) / len(row["standalone"])


def places(scores: list[float]) -> list[int]:
    """1 for the highest, equal scores share the better place: [0.2, 0.5, 0.5] -> [3, 1, 1]."""
    return [1 + sum(other > score for other in scores) for score in scores]


def tau_rows(report: RankReport) -> list[dict[str, Any]]:
    """The taus to compare: name, value and interval for people, and where to draw them, % of -1..1."""
    taus = [("slices of the supernet", report.tau)]
    if report.uncalibrated is not None:
        taus.append(("slices, batch norm as training left it", report.uncalibrated.tau["supernet"]))
    taus += [("counting GFLOPs", report.supernet.tau["gflops"])]
    taus += [("counting parameters", report.supernet.tau["params_m"])]
    if report.supernet.ceiling is not None:
        taus.append(("training alone, seed against seed", report.supernet.ceiling))
    return [_tau_row(name, tau) for name, tau in taus]


def _tau_row(name: str, tau: Tau) -> dict[str, Any]:
    if not math.isfinite(tau.value):
        return {"name": name, "value": "undefined", "interval": "", "bar": None}
    bar = None
    if math.isfinite(tau.low):
        low, at, high = (round((v + 1) * 50, 2) for v in (tau.low, tau.value, tau.high))
        bar = {"left": low, "width": round(high - low, 2), "at": at}
    return {"name": name, "value": f"{tau.value:.2f}", "interval": _interval(tau), "bar": bar}


def _interval(tau: Tau) -> str:
    return f"{tau.low:.2f} to {tau.high:.2f}" if math.isfinite(tau.low) else ""


def tau_verdict(report: RankReport) -> str:
    """What the taus say together, in sentences that hold."""
    tau, gflops, n = report.tau, report.supernet.tau["gflops"], len(report.rows)
    if not math.isfinite(tau.value):
        return f"All of the {n} architectures score the same, so there is no order to compare."
    interval = f" (95 % interval {_interval(tau)})" if math.isfinite(tau.low) else ""
    text = f"Of {n} architectures that were trained alone, the supernet's order has Kendall's tau "
    text += f"{tau.value:.2f}{interval}. "
    if tau.low <= 0:
        text += "So it is not shown to rank better than chance."
    elif math.isfinite(gflops.value) and tau.value <= gflops.value:
        text += f"Counting GFLOPs does as well ({gflops.value:.2f}), for nothing."
    elif math.isfinite(gflops.value) and tau.low <= gflops.value:
        text += f"It is above that of counting GFLOPs ({gflops.value:.2f}), but within the doubt."
    elif math.isfinite(gflops.value):
        text += f"Even the lower end is above counting GFLOPs ({gflops.value:.2f})."
    return text.strip()


def regret_sentence(report: RankReport) -> str:
    """What it costs to train only the first few of the supernet's ranking."""
    regret = report.supernet.regret
    k = 3 if 3 in regret["supernet"] else max(regret["supernet"], default=0)
    if not k:
        return ""
    values = {name: f"{regret[name][k]:.4f}" for name in ("supernet", "gflops", "random")}
    if k == 1:
        text = "Its first is {supernet} below the best of all, the first by GFLOPs {gflops}, "
    else:
        text = f"The best of its first {k} is {{supernet}} below the best of all, of the first {k} by GFLOPs "
        text += "{gflops}, "
    return text.format(**values) + f"of {k} picked blindly {values['random']} in the mean."


def draw_rank(report: RankReport) -> dict[str, Figure]:
    """tab -> the slice's score against training alone, bars from the worst to the best seed."""
    tabs = {"batch norm re-estimated": _scatter(report, [r.supernet for r in report.rows])}
    if report.uncalibrated is not None:
        scores = [r.uncalibrated or 0.0 for r in report.rows]
        tabs["batch norm as training left it"] = _scatter(report, scores)
    return tabs


def _scatter(report: RankReport, scores: list[float]) -> Figure:
    rows, quality = report.rows, title(report.supernet.quality)
    means = [r.mean for r in rows]
    spread = {
        "type": "data",
        "symmetric": False,
        "array": [max(r.alone) - m for r, m in zip(rows, means, strict=True)],
        "arrayminus": [m - min(r.alone) for r, m in zip(rows, means, strict=True)],
        "color": MUTED,
        "thickness": 1.5,
        "width": 3,
    }
    text = [
        html.escape(f"architecture {r.number}: alone {m:.4f}, slice {s:.4f}, {r.gflops:.4g} GFLOPs")
        for r, m, s in zip(rows, means, scores, strict=True)
    ]
    many = report.supernet.seeds
    data = [
        {"type": "scatter", "mode": "markers", "x": scores, "y": means, "error_y": spread, "text": text}
        | {"marker": {"color": ACCENT, "size": 9}, "showlegend": False, "name": "an architecture"}
        | {"hovertemplate": "%{text}<extra></extra>"}
    ]
    below = f"{quality} of its slice, on search_val"
    left = f"{quality} trained alone" + (f", {many} seeds" if many > 1 else "")
    return {"data": data, "layout": layout(360, xaxis={"title": {"text": below}}, yaxis=y_axis(left))}


# The predictor ----------------------------------------------------------------------------------------------


def predictor_line(run: Run) -> str:
    """How well the strategy's predictions met what it had not seen (`predictor.json`); "" without them."""
    facts = read_json(run.folder / "predictor.json")
    fits = facts.get("fits")
    last = fits[-1] if isinstance(fits, list) and fits and isinstance(fits[-1], dict) else {}
    ours, quality = last.get("held_out"), title(str(facts.get("quality") or run.quality))
    if not isinstance(ours, dict):
        return ""
    text = f"The predictor's held-out tau is {_short(ours.get('tau'))}, its error {_error(ours)} {quality}"
    text += f" (root mean square, {ours.get('n', '?')} architectures"
    alone = last.get("cost_alone")
    if isinstance(alone, dict):
        text += f"; {title(str(last.get('cost')))} alone: {_short(alone.get('tau'))}, {_error(alone)}"
    text += ")."
    ahead = facts.get("proposed")
    if isinstance(ahead, dict) and is_number(ahead.get("n")) and ahead["n"] > 1:
        text += f" Of the {ahead['n']} that it chose, predicted before they were scored: "
        text += f"tau {_short(ahead.get('tau'))}, error {_error(ahead)}."
    return text


def _short(tau: Any) -> str:
    return f"{tau:.2f}" if is_number(tau) else "undefined"


def _error(skill: dict[str, Any]) -> str:
    return f"{skill['rmse']:.4f}" if is_number(skill.get("rmse")) else "unknown"
