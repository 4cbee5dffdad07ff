"""What an export found out, and what every export measures with."""

from __future__ import annotations

import contextlib
import io
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.sides import Sides, pair

TOLERANCE = 1e-3  # of scores, 0..1, and of boxes as shares of the image side; float32 noise is about 1e-6


@dataclass(frozen=True)
class Exported:
    """path: the file or folder. max_difference: largest absolute difference of raw outputs, boxes in shares
    of the image side and scores in 0..1, over images of `sizes` [B, 3, H, W], other than the exported size.
    notes: lines for people. values: figures for a JSON, e.g. onnxruntime's latency in ms."""

    path: Path
    format: str
    max_difference: float
    sizes: list[tuple[int, ...]]
    notes: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        checked = ", ".join("x".join(map(str, s)) for s in self.sizes)
        worst = f"at {checked} it differs from torch by {self.max_difference:.2g} at most"
        return "\n  ".join([f"{self.path}: loaded again, {worst}", *self.notes])


class ExportFailed(RuntimeError):
    """The file was written but is not the network; it has been removed."""


def median_ms(run: Callable[[], object], seconds: float = 1.0) -> float:
    """Median wall time of one call, after warm-up, over `seconds` or 20 calls, whichever is more."""
    for _ in range(5):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 20 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def other_sizes(imgsz: Sides, stride: int) -> list[tuple[int, ...]]:
    """Batches that the export did not see: another batch size, larger, smaller and of another shape."""
    height, width = pair(imgsz)
    small = max(stride, height // 2 // stride * stride)
    return [(2, 3, height + stride, width + stride), (1, 3, small, width + 2 * stride)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters and quantisers talk a lot, about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def onnx_session(path: Path, threads: int) -> tuple[Callable[[Tensor], list[Tensor]], str]:
    """(what runs the file on images, version of onnxruntime)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(found) for found in session.run(None, {name: images.numpy()})]

    return run, onnxruntime.__version__
