"""Trials that stop in time: a training whose curve says that its architecture is hopeless is ended.

The rule is median stopping (Golovin et al. 2017, "Google Vizier"): a trial stops at an epoch when the best
value that it has reached is below the median, over the trials that were completed before, of the means of
their values up to that epoch. Where we depart from the paper: a small network is not hopeless because large
ones score more, so by default a trial is compared only with those that cost no more than it.

NNI has the rule twice and neither fits: its assessors sit in the dispatcher of a search of hyperparameters,
which an architecture search replaces by its strategy, and its middleware `MedianStop` calls an engine's
`kill_model`, which no engine has (nni 3.0, "it can't be used"). So a trial judges itself after each epoch, by
the curves in history.jsonl.

Only trials count that the strategy had been told of before it asked for this one (asked.jsonl): so what
becomes of a trial hangs on files alone, and a trial that was killed and runs again ends as it would have.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from experiments.config import EarlyStop
from experiments.job import Job
from utils.history import Arch, Trial, is_real
from utils.report.drawing import title

Row = Mapping[str, float]  # of a curve


class Stopped(Exception):
    """A training that was ended because its architecture is hopeless; says why. No failure."""


@dataclass(frozen=True)
class Judge:
    """Whether a training is hopeless. rivals: those that it is compared with; epochs: after which it ends
    anyway, None = unknown."""

    rule: EarlyStop
    quality: str
    rivals: Sequence[Trial]
    epochs: int | None = None

    def check(self, curve: Sequence[Row]) -> None:
        """Raises Stopped with the reason. curve: a row an epoch so far; nothing is decided where the last one
        has no score."""
        reason = self.verdict(curve)
        if reason:
            raise Stopped(reason)

    def verdict(self, curve: Sequence[Row]) -> str | None:
        """Why a training is hopeless after the last row of its curve; None where it is not."""
        values = _values(curve, self.quality)
        if not curve or len(curve) not in values:
            return None
        epoch, best = len(curve), max(values.values())
        if epoch < self.rule.after or epoch == self.epochs or not self.rivals:
            return None
        means = [mean for t in self.rivals if (mean := mean_until(t.curve, self.quality, epoch)) is not None]
        if len(means) < self.rule.least:
            return None
        median = statistics.median(means)
        if best >= median:
            return None
        others = f"{len(means)} trials" + (" that cost no more" if self.rule.among == "cheaper" else "")
        name = title(self.quality)
        return f"stopped after epoch {epoch}: {name} {best:.4f} is below {median:.4f}, the median of {others}"


def mean_until(curve: Sequence[Row], quality: str, epoch: int) -> float | None:
    """The mean of a curve's values up to an epoch, counted from 1; None where it did not come so far."""
    values = [value for at, value in _values(curve, quality).items() if at <= epoch]
    return sum(values) / len(values) if values and len(curve) >= epoch else None


def _values(curve: Sequence[Row], quality: str) -> dict[int, float]:
    """epoch -> value, of the epochs that were scored."""
    return {epoch: row[quality] for epoch, row in enumerate(curve, 1) if is_real(row.get(quality))}


def judge_of(job: Job, arch: Arch) -> Judge | None:
    """What may stop a trial of this job; None for no rule, for the unsearched network, which all others are
    compared with, and outside a search."""
    rule, number = job.exp.search.early_stop, job.number
    if rule is None or not number:
        return None
    told = job.run.told_before(number)
    finished = [t for t in job.run.history.load() if t.number in told and t.state == "complete"]
    if rule.among == "cheaper":
        finished = list(no_dearer(finished, job.space.cost(arch, job.exp.imgsz), cost_keys(job)))
    epochs = job.exp.train.epochs if job.exp.search.evaluator is None else None
    return Judge(rule, job.task.quality, finished, epochs)


def no_dearer(trials: Iterable[Trial], costs: Mapping[str, float], keys: Iterable[str]) -> Iterable[Trial]:
    """The trials that cost no more than `costs` in any of these."""
    keys = list(keys)
    return (t for t in trials if all(t.metrics.get(key, math.inf) <= costs[key] for key in keys))


def cost_keys(job: Job) -> list[str]:
    """The costs that the search minimises, as far as they are known without measuring; GFLOPs for those that
    are not."""
    free = job.space.cost(job.space.default(), job.exp.imgsz)
    minimised = [key for key, way in job.exp.search.objectives.items() if way == "min"]
    return list(dict.fromkeys(key if key in free else "gflops" for key in minimised))
