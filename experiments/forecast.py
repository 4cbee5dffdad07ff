"""Latencies of the exported file for every arch, predicted from the few that were timed.

At most twenty archs are timed on the target, with fresh weights: the unsearched one, the smallest, the
largest, and random ones that lean to small and to large in turn. To the logarithms of what they take two
regressors are fitted, and the one with the smaller leave-one-out error is taken: a straight line in the
logarithms of GFLOPs and parameters, and the Gaussian process over genes and costs of the strategy `predictor`
(experiments/strategies/surrogate.py). In the run's `target` folder `forecast.json` says how well it does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import LEAST_TIMED
from models.sampling import leaning
from models.space import Arch, Space
from utils.errors import UserError
from utils.files import write_text
from utils.history import arch_key
from utils.report.rank import kendall_tau

MOST_DRAWS = 50  # for each arch that is to be timed
Price = Callable[[Arch], Mapping[str, float]]


@dataclass(frozen=True)
class Skill:
    """What leave-one-out says of one metric. n: timed archs; error: mean of |predicted - timed| / timed;
    worst: the largest of these; tau: Kendall's, None where it is undefined; by: which regressor."""

    n: int
    error: float
    worst: float
    tau: float | None
    by: str

    def __str__(self) -> str:
        tau = "" if self.tau is None else f", tau {self.tau:.2f}"
        return (
            f"predicted from {self.n} timed networks by a {self.by}; leave-one-out error {self.error:.1%} "
            f"(at worst {self.worst:.1%}){tau}"
        )


class Line:
    """Least squares of y [n] on the logarithms of costs, x [n, costs]."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> Line:
        self._mean = x.mean(0)
        self._weights = np.linalg.lstsq(x - self._mean, y - y.mean(), rcond=1e-6)[0]
        self._level = float(y.mean())
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self._level + (x - self._mean) @ self._weights


class Process:
    """The Gaussian process of the strategy `predictor`."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> Process:
        from experiments.strategies.surrogate import Surrogate

        self._fitted = Surrogate().fit(x, y)
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self._fitted.predict(x)[0]


def left_out(make: Callable[[], Any], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[n]: each value predicted by a fit to all others."""
    found = np.empty(len(y))
    for i in range(len(y)):
        others = np.arange(len(y)) != i
        found[i] = make().fit(x[others], y[others]).predict(x[i : i + 1])[0]
    return found


def skill(predicted: np.ndarray, timed: np.ndarray, by: str) -> Skill:
    """Of predictions, in milliseconds."""
    apart, tau = np.abs(predicted - timed) / timed, kendall_tau(predicted, timed)
    return Skill(len(timed), float(apart.mean()), float(apart.max()), None if math.isnan(tau) else tau, by)


class Forecast:
    """Predicts each of `metrics` for any arch of a space.

    timed: (arch, metrics) of what was measured, at least six with each metric. price: an arch's costs, which
    need no measuring.
    """

    def __init__(
        self,
        space: Space,
        price: Price,
        metrics: Sequence[str],
        timed: Sequence[tuple[Arch, Mapping[str, float]]],
    ) -> None:
        from experiments.strategies.surrogate import Encoder

        self._price, self._encode = price, Encoder(space, price)
        self._timed = {arch_key(arch): dict(found) for arch, found in timed}
        self._fits: dict[str, tuple[Callable[[Arch], np.ndarray], Any]] = {}
        self.skills: dict[str, Skill] = {}
        for metric in metrics:
            rows = [(arch, found[metric]) for arch, found in timed if metric in found]
            if len(rows) < LEAST_TIMED:
                raise UserError(
                    f"{metric}: {len(rows)} networks could be timed, and a prediction needs {LEAST_TIMED}; "
                    "the others were void. Leave the target to itself, or say search.target.predict=0"
                )
            self._fit(metric, [arch for arch, _ in rows], np.array([ms for _, ms in rows]))

    def _fit(self, metric: str, archs: Sequence[Arch], ms: np.ndarray) -> None:
        kinds: dict[str, tuple[Callable[[Arch], np.ndarray], Callable[[], Any]]] = {
            "line": (self._costs, Line),
            "gaussian process": (self._genes, Process),
        }
        found = []
        for by, (row, make) in kinds.items():
            x, y = np.array([row(arch) for arch in archs]), np.log(ms)
            found.append((skill(np.exp(left_out(make, x, y)), ms, by), row, make().fit(x, y)))
        best, row, fitted = min(found, key=lambda one: one[0].error)
        self.skills[metric], self._fits[metric] = best, (row, fitted)

    def _costs(self, arch: Arch) -> np.ndarray:
        return np.log([max(cost, 1e-12) for cost in self._price(arch).values()])

    def _genes(self, arch: Arch) -> np.ndarray:
        return self._encode([arch])[0]

    def __call__(self, arch: Arch) -> dict[str, float]:
        """Milliseconds by metric: as timed, where this arch was, else predicted."""
        known = self._timed.get(arch_key(arch), {})
        return {
            metric: known[metric] if metric in known else float(np.exp(fitted.predict(row(arch)[None])[0]))
            for metric, (row, fitted) in self._fits.items()
        }

    def save(self, path: Path) -> None:
        write_text(path, json.dumps({k: asdict(s) for k, s in self.skills.items()}, indent=1) + "\n")


def to_be_timed(space: Space, n: int, seed: int) -> list[Arch]:
    """At most `n` different archs that a forecast is fitted to; fewer where the space has fewer."""
    rng = np.random.default_rng([seed, 0xF0])
    found = {arch_key(a): a for a in (space.default(), space.smallest(), space.largest())}
    for draw in range(MOST_DRAWS * n):
        if len(found) >= n:
            break
        arch = space.biased(rng, leaning(draw + 1))
        found.setdefault(arch_key(arch), arch)
    return list(found.values())[:n]
