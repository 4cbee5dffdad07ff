"""What all drawings share: colours, titles, PNGs, and how an arch is put into words."""

from __future__ import annotations

import html
import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from utils.files import write_bytes
from utils.history import Arch, Trial

Figure = dict[str, Any]

ACCENT, BASE, OTHER, MUTED = "#3d7be0", "#e8792b", "#1f9e89", "#98a2b3"
# Grey for poor to orange-red for best: the best lines stand out on white and on black.
SCALE = [(0.0, "#a9b4c2"), (0.45, "#7aa5e6"), (0.75, "#3d6fe0"), (1.0, "#d6336c")]
UNUSED = "unused"  # a gene that does nothing in this arch, dropped from its canonical form

TITLES = {
    "map50_95": "mAP50-95",
    "map50": "mAP50",
    "params_m": "params (M)",
    "gflops": "GFLOPs",
    "latency_ms": "latency (ms)",
    "top1": "top-1",
    "top5": "top-5",
}
_FILES = {"onnx": "ONNX", "int8": "INT8", "openvino": "OpenVINO", "openvino_int8": "OpenVINO INT8"}
TITLES |= {f"{kind}_ms": f"{name} (ms)" for kind, name in _FILES.items()}
for _key in ("map50_95", "top1"):
    TITLES |= {f"{kind}_{_key}": f"{TITLES[_key]} {name}" for kind, name in _FILES.items()}


def title(key: str) -> str:
    return TITLES.get(key, key)


@contextmanager
def png(path: Path, width: float, height: float, panels: int = 1) -> Iterator[list[Any]]:
    """Matplotlib axes, side by side on `width` x `height` inches, to draw on; then they are a PNG, whole or
    not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(picture)
    all_axes = list(picture.subplots(1, panels, squeeze=False)[0])
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
    yield all_axes
    content = io.BytesIO()
    picture.savefig(content, format="png", facecolor="white")
    write_bytes(path, content.getvalue())


def difference(arch: Arch, base: Arch | None) -> dict[str, Any]:
    """The genes in which `arch` differs from `base`; all of them when there is no base."""
    if base is None:
        return dict(arch)
    labels = [*arch, *(k for k in base if k not in arch)]
    return {k: arch.get(k, UNUSED) for k in labels if arch.get(k) != base.get(k)}


def describe(trial: Trial, base: Arch | None, most: int = 12, name: str = "trial") -> str:
    """Hover text: the metrics, then how the arch differs from the default. name: what it is one of."""
    lines = [f"<b>{name} {trial.number}</b>"] if trial.number >= 0 else []
    lines += [f"{title(k)} {v:.4g}" for k, v in trial.metrics.items() if "/" not in k]
    if trial.reward is not None:
        lines.append(f"reward {trial.reward:.4g}")
    genes = [f"{k} = {v}" for k, v in difference(trial.arch, base).items()]
    if not genes:
        genes = ["the default"] if base is not None else []
    if len(genes) > most:
        genes = [*genes[:most], f"and {len(genes) - most} more"]
    return "<br>".join([*lines[:1], *map(html.escape, lines[1:]), "", *map(html.escape, genes)])


def is_number(value: Any) -> TypeGuard[float]:
    """Finite, and no bool; numpy scalars count."""
    kinds = int | float | np.integer | np.floating
    good = isinstance(value, kinds) and not isinstance(value, bool)
    return good and bool(abs(value) <= sys.float_info.max)  # NaN is not


def y_axis(text: str) -> Figure:
    return {"title": {"text": text}, "automargin": True}


def layout(height: int, **axes: Mapping[str, Any]) -> Figure:
    return {
        "height": height,
        "margin": {"l": 52, "r": 16, "t": 36, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        **{name: dict(axis) for name, axis in axes.items()},
    }
