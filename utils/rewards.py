"""One number from the metrics of a trial: what the single-objective strategies maximise.

With acc the chosen accuracy (map50_95 or map50 of a detector, top1 or top5 of a classifier, 0..1), cost a
metric of which less is better (gflops, params_m, latency_ms, onnx_ms, int8_ms, ...) and target the cost one
would be content with, in the same unit:

    map, accuracy     acc
    weighted_product  acc * (cost / target) ** w      w = alpha if cost <= target else beta
    linear            acc - weight * cost / target

`weighted_product` is MnasNet's (Tan et al. 2019, arXiv 1807.11626, eq. 2 and 3): alpha = beta = -0.07 is its
soft constraint (5 % more accuracy is worth twice the cost), alpha = 0 with beta = -1 its hard one. At equal
accuracy no reward ever pays for a dearer network: exponents above 0 and weights below 0 are refused.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError, unknown
from utils.file_measures import FILE_COSTS, file_qualities
from utils.plugin import check_arguments, load_function, wanted, where
from utils.report.drawing import png

Metrics = Mapping[str, float]
DRIFT = "drift"  # from `weights`, before any training: experiments/drift.py
COST_KEYS = ("gflops", "params_m", "latency_ms", DRIFT, *FILE_COSTS)
QUALITIES = {  # task -> its main one first
    "detect": ("map50_95", "map50", *file_qualities("map50_95")),
    "classify": ("top1", "top5", *file_qualities("top1")),
}
QUALITY_KEYS = tuple(key for keys in QUALITIES.values() for key in keys)
REWARD_GETS = ("metrics", "baseline")  # what a user's own reward may ask for
BASELINE = "baseline"  # the target that stands for the cost of the unsearched network


def map_only(metrics: Metrics, *, metric: str = "map50_95") -> float:
    """The accuracy alone."""
    return metrics[metric]


def weighted_product(
    metrics: Metrics,
    *,
    metric: str = "map50_95",
    cost: str = "gflops",
    target: float | str = BASELINE,
    alpha: float = -0.07,
    beta: float = -0.07,
) -> float:
    """acc * (cost / target) ** w, w = alpha if cost <= target else beta (MnasNet eq. 2 and 3)."""
    ratio = metrics[cost] / float(target)
    return metrics[metric] * ratio ** (alpha if ratio <= 1 else beta)


def linear(
    metrics: Metrics,
    *,
    metric: str = "map50_95",
    cost: str = "gflops",
    target: float | str = BASELINE,
    weight: float = 0.1,
) -> float:
    """acc - weight * cost / target: `weight` is the mAP one gives up for one target's worth of cost."""
    return metrics[metric] - weight * (metrics[cost] / float(target))


REWARDS: dict[str, Callable[..., float]] = {
    "map": map_only,
    "accuracy": map_only,
    "weighted_product": weighted_product,
    "linear": linear,
}


def build_reward(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    baseline: Metrics | None = None,
    metric: str | None = None,
) -> Callable[[Metrics], float]:
    """`metrics -> reward`, with the options checked and bound.

    options:  the keyword arguments of the function in REWARDS; `exponent` sets alpha and beta alike
    baseline: the unsearched network's costs; needed when `target` is "baseline"
    metric:   the task's main quality: the default of the option `metric`, which then must be of that task
    Raises UserError for an unknown name, option or key, a value out of range, or a baseline not given. The
    function raises UserError when a trial's metrics lack what it reads.
    """
    bound = check_reward(name, options, metric)
    if is_own(name):
        return _own_reward(name, bound, baseline)
    if bound.get("target") == BASELINE:
        bound["target"] = resolve_target(bound, baseline)
    function = REWARDS[name]
    needed = [bound[key] for key in ("metric", "cost") if key in bound]

    def reward(metrics: Metrics) -> float:
        for key in needed:
            if key not in metrics:
                raise UserError(f"reward {name!r} needs the metric {key!r}; measured: {', '.join(metrics)}")
        if "cost" in bound and not metrics[bound["cost"]] > 0:
            raise UserError(
                f"reward {name!r} needs {bound['cost']} above 0, but got {metrics[bound['cost']]}"
            )
        return function(metrics, **bound)

    return reward


def check_reward(
    name: str, options: Mapping[str, Any] | None = None, metric: str | None = None
) -> dict[str, Any]:
    """Every option of a reward, defaults filled in; `target` may still be "baseline". Raises UserError.

    metric: as of `build_reward`; None where the task is not known yet.
    """
    if is_own(name):
        given = dict(options or {})
        check_arguments(load_function(name, "reward"), REWARD_GETS, given, name)
        return given
    if name not in REWARDS:
        raise unknown("reward", name, REWARDS)
    parameters = inspect.signature(REWARDS[name]).parameters
    bound = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    given = dict(options or {})
    if "exponent" in given and "alpha" in bound:
        if "alpha" in given or "beta" in given:
            raise UserError("exponent sets alpha and beta at once: give it, or the two of them")
        given["alpha"] = given["beta"] = given.pop("exponent")
    for key in given:
        if key not in bound:
            known = [*bound, "exponent"] if "alpha" in bound else list(bound)
            raise unknown(f"option of reward {name!r}", key, known)
    bound |= ({} if metric is None else {"metric": metric}) | given
    if metric is not None and bound["metric"] not in _of_same_task(metric):
        raise unknown("metric of the reward", bound["metric"], _of_same_task(metric))
    for key, value in bound.items():
        bound[key] = _checked(key, value)
    return bound


def is_own(name: str) -> bool:
    """A user's file with a function `reward(metrics, ...)`, instead of one of REWARDS."""
    return name.endswith(".py")


def _own_reward(
    name: str, options: Mapping[str, Any], baseline: Metrics | None
) -> Callable[[Metrics], float]:
    """The `reward` of a user's file. It may ask for `baseline`, the unsearched network's costs."""
    function = load_function(name, "reward")

    def reward(metrics: Metrics) -> float:
        given = {"metrics": dict(metrics), "baseline": dict(baseline or {})}
        try:
            value = function(**{k: given[k] for k in wanted(function, REWARD_GETS)}, **options)
            return float(value)
        except (Exception, SystemExit) as error:
            at = f"{Path(name).name}, {where(error, name)}"
            raise UserError(f"{at}: {type(error).__name__}: {error}") from error

    return reward


def task_objectives(objectives: Mapping[str, str], metric: str) -> dict[str, str]:
    """The objectives with another task's main quality replaced by this task's: {map50_95: max, gflops: min},
    the default, becomes {top1: max, gflops: min} for `metric` top1. Raises UserError for any other quality of
    another task."""
    main = {keys[0] for keys in QUALITIES.values()}
    found = {metric if key in main else key: way for key, way in objectives.items()}
    for key in found:
        if key in QUALITY_KEYS and key not in _of_same_task(metric):
            raise unknown("metric in search.objectives", key, (*_of_same_task(metric), *COST_KEYS))
    return found


def _of_same_task(metric: str) -> tuple[str, ...]:
    return next(keys for keys in QUALITIES.values() if metric in keys)


def resolve_target(options: Mapping[str, Any], baseline: Metrics | None) -> float:
    """The number that `target` stands for: itself, or the baseline's cost. Raises UserError."""
    target = options.get("target", BASELINE)
    if target != BASELINE:
        return float(target)
    cost = options.get("cost", COST_KEYS[0])
    if baseline is None or cost not in baseline:
        have = ", ".join(baseline) if baseline else "nothing yet"
        raise UserError(f"reward target 'baseline' needs the baseline's {cost}; known of it: {have}")
    return _checked("target", baseline[cost])


def _checked(key: str, value: Any) -> Any:
    if key == "metric" and value not in QUALITY_KEYS:
        raise unknown("metric of the reward", value, QUALITY_KEYS)
    if key == "cost" and value not in COST_KEYS:
        raise unknown("cost of the reward", value, COST_KEYS)
    if key in ("metric", "cost") or (key == "target" and value == BASELINE):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        more = " or 'baseline'" if key == "target" else ""
        raise UserError(f"reward {key} is {value!r}; a number{more} is needed")
    if key == "target" and value <= 0:
        raise UserError(f"reward target is {value}; a cost above 0 is needed")
    if key in ("alpha", "beta") and value > 0:
        raise UserError(f"reward exponent {value} would reward slower networks; it must not be above 0")
    if key == "weight" and value < 0:
        raise UserError(f"reward weight {value} would reward slower networks; it must not be below 0")
    return float(value)


@dataclass(frozen=True)
class IsoReward:
    """Lines of equal reward: `lines[r]` is the accuracy needed for the reward r at each of `costs`."""

    title: str
    cost: str
    metric: str
    target: float | None
    costs: list[float]
    lines: dict[float, list[float]]


def iso_reward_info(
    name: str, options: Mapping[str, Any] | None, costs: Sequence[float], levels: Sequence[float]
) -> IsoReward:
    """What accuracy makes up for what cost. `target` must be a number here; costs above 0."""
    bound = check_reward(name, options)
    reward = build_reward(name, options)
    metric, cost = bound["metric"], bound.get("cost", COST_KEYS[0])
    lines: dict[float, list[float]] = {level: [] for level in levels}
    for at in costs:
        # Every reward is a straight line in the accuracy at a given cost, so two points tell all of it.
        start = reward({metric: 0.0, cost: at})
        slope = reward({metric: 1.0, cost: at}) - start
        for level in levels:
            lines[level].append((level - start) / slope)
    title = name + "".join(f", {k} {bound[k]:g}" for k in ("alpha", "beta", "weight") if k in bound)
    return IsoReward(title, cost, metric, bound.get("target"), list(costs), lines)


def draw_iso_reward(infos: Sequence[IsoReward], path: Path) -> None:
    """One panel for each reward, as a PNG."""
    with png(path, 4.4 * len(infos), 3.8, panels=len(infos)) as panels:
        for info, axes in zip(infos, panels, strict=True):
            for level, needed in info.lines.items():
                (line,) = axes.plot(info.costs, needed, lw=1.6)
                shown = [i for i, y in enumerate(needed) if 0 <= y <= 1]
                if shown:
                    last = shown[-1]
                    axes.annotate(
                        f"{level:g}",
                        (info.costs[last], needed[last]),
                        xytext=(4, 0),
                        textcoords="offset points",
                        color=line.get_color(),
                        va="center",
                        fontsize=8,
                        annotation_clip=False,
                    )
            if info.target is not None:
                axes.axvline(info.target, color="0.6", ls=":", lw=1)
                axes.annotate(
                    "target", (info.target, 1), xytext=(3, -9), textcoords="offset points", color="0.4"
                )
            axes.set_title(info.title, fontsize=10)
            axes.set(xlabel=info.cost, ylabel=info.metric, ylim=(0, 1))
            axes.set_xlim(min(info.costs), max(info.costs))
        panels[0].figure.suptitle("Lines of equal reward (the number is the reward)", fontsize=10)
