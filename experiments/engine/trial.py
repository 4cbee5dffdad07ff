"""What an evaluator may ask of, and say to, the search that runs it. Does nothing outside a search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import nni


def current_arch() -> dict[str, Any] | None:
    """The architecture that this process was really given (all labels), None outside a trial."""
    parameter = nni.get_current_parameter()
    return None if parameter is None else dict(parameter.sample)


def report_intermediate(value: float, more: Mapping[str, float] | None = None) -> None:
    """One point of the learning curve, with `more` (epoch, loss) beside it in the web UI. Raises ValueError
    unless the value is finite, which fails this trial only."""
    point = {"default": _finite("intermediate result", value)}
    point |= {k: float(v) for k, v in (more or {}).items() if math.isfinite(v)}
    if nni.get_current_parameter() is not None:
        nni.report_intermediate_result(point if len(point) > 1 else point["default"])


def report_final(reward: float, metrics: Mapping[str, float] | None = None) -> None:
    """The result: `reward` is what the strategy maximises, `metrics` are shown beside it in the web UI.

    Raises ValueError unless the reward is finite, which fails this trial only. Metrics that JSON cannot say
    (NaN, infinity) are left out.
    """
    result = {"default": _finite("reward", reward)}
    for name, value in (metrics or {}).items():
        if name != "default" and math.isfinite(value):
            result[name] = float(value)
    if nni.get_current_parameter() is not None:
        nni.report_final_result(result)


def _finite(what: str, value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, str) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"the {what} must be a finite number, got {value!r}")
    return number
