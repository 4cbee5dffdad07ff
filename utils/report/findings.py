"""What the step `evaluate` left of the winner and of the unsearched network, for the report: curves,
confusion, classes and pictures. As in plots.py, `x_info` computes and `draw_x` only draws; no torch.

The files may be absent, of another version or damaged: what cannot be read is left out.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.history import Trial
from utils.report.drawing import ACCENT, BASE, OTHER, Figure, is_number, layout, title, y_axis
from utils.report.outcomes import says_of
from utils.report.runs import Run, read_json, top_trials
from utils.report.summary import value_cell, verdict_of
from utils.run_files import Files

MOST_CURVES = 10  # classes whose curves are drawn
MOST_LABELS = 26  # of a confusion matrix, the background among them
LINES = [ACCENT, BASE, OTHER, "#c2417a", "#7a5bd0", "#8a7a22", "#4aa3c7", "#b5534a", "#5e9c4b", "#6b7280"]


@dataclass(frozen=True)
class Findings:
    """One network on val. name: for people, e.g. `trial 9, retrained`; data: its findings.json."""

    name: str
    trial: int
    folder: Path
    data: dict[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        found = self.data.get("metrics")
        return {k: v for k, v in found.items() if is_number(v)} if isinstance(found, dict) else {}

    @property
    def names(self) -> list[str]:
        found = self.data.get("names")
        return [str(n) for n in found] if isinstance(found, list) else []


def findings_of(run: Run) -> list[Findings]:
    """Of the headline's trial, else of the best by reward, and of the unsearched network behind it; fewer
    where `evaluate` left nothing."""
    base = run.baseline
    wanted: list[Trial] = [t for t in (verdict_of(run).trial, *top_trials(run.trials)) if t is not None]
    winner = next(
        (f for t in wanted if t is not base and (f := _read(run, t.number, f"trial {t.number}"))), None
    )
    unsearched = _read(run, base.number, "unsearched") if base is not None else None
    return [f for f in (winner, unsearched) if f is not None]


def _read(run: Run, trial: int, name: str) -> Findings | None:
    folder = Files(run.folder).of_trial("evaluate", trial)
    data = read_json(folder / "findings.json")
    if not isinstance(data.get("metrics"), dict):
        return None
    how = says_of(run.shares_weights).get(str(data.get("weights")).split("/")[0], "")
    return Findings(f"{name}, {how}" if how else name, trial, folder, data)


# Precision and recall ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PrecisionRecallInfo:
    """At IoU .5. mean: precision at each recall, over the classes; by_class: the same of the classes with the
    most objects; ap: of each of these and, as "", of the mean (101 points, as COCO has it)."""

    name: str
    recall: list[float]
    mean: list[float]
    by_class: dict[str, list[float]]
    ap: dict[str, float]
    left_out: int


def precision_recall_info(found: Findings) -> PrecisionRecallInfo | None:
    """None for a classifier, and where there are no curves."""
    curves = found.data.get("curves")
    given = curves.get("precision") if isinstance(curves, dict) else None
    recall = curves.get("recall") if isinstance(curves, dict) else None
    if not isinstance(given, dict) or not isinstance(recall, list) or not given:
        return None
    able = {
        k: v
        for k, v in given.items()
        if isinstance(v, list) and len(v) == len(recall) and all(map(is_number, v))
    }
    if not able:
        return None
    objects = dict(zip(found.names, _counts(found), strict=False))
    shown = sorted(able, key=lambda k: -objects.get(k, 0))[:MOST_CURVES]
    mean = np.mean(list(able.values()), axis=0)
    return PrecisionRecallInfo(
        name=found.name,
        recall=recall,
        mean=mean.tolist(),
        by_class={k: able[k] for k in able if k in shown},
        ap={"": float(mean.mean())} | {k: float(np.mean(able[k])) for k in shown},
        left_out=len(able) - len(shown),
    )


def _counts(found: Findings) -> list[int]:
    given = found.data.get("objects")
    return [int(n) for n in given if is_number(n)] if isinstance(given, list) else []


def draw_precision_recall(infos: Sequence[PrecisionRecallInfo]) -> dict[str, Figure]:
    """tab -> figure: all of them, mean over the classes, then each by class."""
    means = [(f"{info.name}, mAP50 {info.ap['']:.3f}", info.recall, info.mean) for info in infos]
    tabs = {"all classes": _pr_figure(means)}
    for info in infos:
        lines = [(f"{k} {info.ap[k]:.3f}", info.recall, v) for k, v in info.by_class.items()]
        if len(lines) > 1:
            tabs[f"{info.name}, by class"] = _pr_figure(lines)
    return tabs


def _pr_figure(lines: Sequence[tuple[str, list[float], list[float]]]) -> Figure:
    data = [
        {"type": "scatter", "mode": "lines", "x": xs, "y": [round(y, 4) for y in ys], "name": name}
        | {"line": {"color": LINES[i % len(LINES)], "width": 2.2}}
        | {"hovertemplate": "recall %{x:.2f}: precision %{y:.3f}<extra>%{fullData.name}</extra>"}
        for i, (name, xs, ys) in enumerate(lines)
    ]
    axes = {"xaxis": {"title": {"text": "recall"}, "range": [0, 1.005]}, "yaxis": y_axis("precision")}
    axes["yaxis"] |= {"range": [0, 1.02]}
    return {"data": data, "layout": layout(400, **axes)}


# Confusion --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConfusionInfo:
    """counts [found as][truly]; shares of the same, of all that is truly so (None where there is nothing).

    left_out: labels that are confused least and for which there is no room
    """

    name: str
    labels: list[str]
    counts: list[list[int]]
    shares: list[list[float | None]]
    left_out: int


def confusion_info(found: Findings) -> ConfusionInfo | None:
    given = found.data.get("confusion")
    labels = given.get("labels") if isinstance(given, dict) else None
    try:
        matrix = np.array(given["matrix"] if isinstance(given, dict) else [], float)
    except (KeyError, TypeError, ValueError):
        return None
    if not isinstance(labels, list) or matrix.shape != (len(labels), len(labels)) or not len(labels):
        return None
    wrong = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    order = np.argsort(-wrong, kind="stable")
    keep = sorted(
        {*order[:MOST_LABELS].tolist(), len(labels) - 1} if len(labels) > MOST_LABELS else range(len(labels))
    )
    truly = matrix.sum(0)
    part = matrix[np.ix_(keep, keep)]
    shares = [
        [float(part[i, j] / truly[column]) if truly[column] else None for j, column in enumerate(keep)]
        for i in range(len(keep))
    ]
    names = [str(labels[i]) for i in keep]
    return ConfusionInfo(found.name, names, part.astype(int).tolist(), shares, len(labels) - len(keep))


def draw_confusion(info: ConfusionInfo) -> Figure:
    """A column is what an object truly is, a row what it was found as."""
    ticks = [name if len(name) <= 14 else f"{name[:13]}…" for name in info.labels]
    at = list(range(len(ticks)))
    few = len(ticks) <= 12
    heat = {
        "type": "heatmap",
        "x": at,
        "y": at,
        "z": info.shares,
        "customdata": info.counts,
        "text": [[str(n) if n else "" for n in row] for row in info.counts],
        "texttemplate": "%{text}" if few else "",
        "colorscale": [[0, "rgba(61,123,224,0)"], [1, "rgba(61,123,224,0.85)"]],
        "zmin": 0,
        "zmax": 1,
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": "truly %{x}, found as %{y}: %{customdata}, %{z:.0%}<extra></extra>",
    }
    named = {"tickvals": at, "ticktext": ticks, "automargin": True, "showgrid": False, "zeroline": False}
    plan = layout(
        120 + max(240, min(22 * len(ticks), 560)) + (40 if few else 0),
        xaxis={"title": {"text": "truly"}, "tickangle": -60 if max(map(len, ticks)) > 3 else 0} | named,
        yaxis={"title": {"text": "found as"}, "autorange": "reversed"} | named,
    )
    plan["margin"] |= {"t": 12}
    return {"data": [heat], "layout": plan}


# Classes ----------------------------------------------------------------------------------------------------


def class_rows(found: Sequence[Findings], quality: str) -> list[dict[str, Any]]:
    """A row a class of val: its objects, then its score by each network; the first one's with its gain on the
    last one. [] where there is one class, of which the whole score says all."""
    if not found or len(found[0].names) < 2:
        return []
    counts, rows = _counts(found[0]), []
    for i, name in enumerate(found[0].names):
        scores = [f.metrics.get(f"{quality}/{name}") for f in found]
        if all(score is None for score in scores):
            continue
        cells = [value_cell(scores[0], scores[-1] if len(scores) > 1 else None)]
        cells += [value_cell(score, None) for score in scores[1:]]
        rows.append(
            {
                "name": name,
                "objects": counts[i] if i < len(counts) else 0,
                "cells": [(score, c) for score, c in zip(scores, cells, strict=True)],
            }
        )
    return rows


def score_title(quality: str) -> str:
    """What a class's share of a quality is called: AP50-95 for mAP50-95."""
    return title(quality).removeprefix("m")


# Pictures ---------------------------------------------------------------------------------------------------


def pictures_info(found: Findings) -> list[dict[str, Any]]:
    """The pictures with what is in them and what was found, ready to be drawn: `uri` (the picture itself),
    `width` and `height` of the original, `truth` and `found`: objects with text, colour, x, y, w and h."""
    given = found.data.get("pictures")
    shown = [_picture(found, p) for p in (given if isinstance(given, list) else []) if isinstance(p, dict)]
    return [p for p in shown if p is not None]


def _picture(found: Findings, given: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        name = str(given["file"])
        content = (found.folder / Path(name).name).read_bytes()
        width, height = int(given["width"]), int(given["height"])
        truth, seen = _objects(found.names, given["truth"]), _objects(found.names, given["found"])
    except (OSError, KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None
    detects = "boxes" in given["truth"]
    return {
        "id": Path(name).stem,
        "name": str(given.get("name", name)),
        "uri": "data:image/jpeg;base64," + base64.b64encode(content).decode(),
        "width": width,
        "height": height,
        "line": round(max(width, height) / 110, 2),
        "text": round(max(width, height) / 15, 2),
        "wrong": int(given.get("mistakes") or 0),
        "why": str(given.get("why", "")),
        "detects": detects,
        "truth": truth,
        "found": seen,
    }


def _objects(names: Sequence[str], given: Mapping[str, Any]) -> list[dict[str, Any]]:
    scores = given.get("scores")
    objects = []
    for i, label in enumerate(given["labels"]):
        text = names[int(label)] + (f" {scores[i]:.2f}" if scores else "")
        found = {"text": text, "label": int(label), "colour": f"hsl({label * 137.508 % 360:.0f} 85% 62%)"}
        if "boxes" in given:
            x1, y1, x2, y2 = (float(v) for v in given["boxes"][i])
            found |= {k: round(v, 2) for k, v in {"x": x1, "y": y1, "w": x2 - x1, "h": y2 - y1}.items()}
        objects.append(found)
    return objects
