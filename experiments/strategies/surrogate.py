"""Predicts metrics of architectures from those that were measured, and says how well it does.

The regressor is a Gaussian process: Matern 5/2 over standardised genes and costs, with one length scale and a
noise, both by marginal likelihood (Rasmussen and Williams 2006, section 5.4). Of those in scikit-learn it
ranked best what it had not seen: 299 subnets of a small RegNet supernet on handwritten digits, tau on the
rest after fitting n of them, mean of 8 splits. GFLOPs alone have .58.

                                n = 12    25    50   100
    Gaussian process               .62   .76   .80   .83
    the same, a scale per gene     .52   .69   .74   .82
    support vectors (RBF)          .60   .72   .78   .82
    gradient boosting              .62   .72   .77   .82
    extra trees                    .62   .73   .76   .80
    ridge regression               .64   .72   .78   .79
    random forest                  .64   .68   .72   .76

It also knows how unsure it is, and fits a hundred archs in a twentieth of a second.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.space import Arch, Space, numbers
from utils.report.rank import kendall_tau

Floats = NDArray[np.float64]
FOLDS = 5
LEAST = 6  # measured archs that a fit needs


class Encoder:
    """Archs as numbers. A gene that is a number becomes 0..1 between its smallest and largest value, a word
    one column for each, 0 or 1; a gene that does nothing has its default. Costs that need no measuring follow
    as logarithms: they are sums over all genes, which a regressor would have to learn otherwise."""

    def __init__(self, space: Space, costs: Callable[[Arch], Mapping[str, float]] | None = None) -> None:
        self.space, self.costs = space, costs
        self.choices: list[tuple[str, list[Any]]] = list(space.choices.items())

    def __call__(self, archs: Sequence[Arch]) -> Floats:
        """[archs, columns]"""
        return np.array([self._row(arch) for arch in archs], dtype=np.float64)

    def _row(self, arch: Arch) -> list[float]:
        row: list[float] = []
        genes: dict[str, Any] = self.space.complete(arch)
        for label, values in self.choices:
            if numbers(values):
                low, high = min(values), max(values)
                row.append((genes[label] - low) / (high - low or 1))
            else:
                row += [float(genes[label] == value) for value in values]
        if self.costs is not None:
            row += [math.log(max(cost, 1e-12)) for cost in self.costs(arch).values()]
        return row


class Surrogate:
    """The regressor. start: one fitted before, whose scales the search for this one's begins with."""

    def __init__(self, start: Surrogate | None = None) -> None:
        self._start = start
        self._gp: Any = None

    def fit(self, x: Floats, y: Floats) -> Surrogate:
        """x: [n, columns], y: [n]. Returns itself."""
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import Matern, WhiteKernel
        from threadpoolctl import threadpool_limits

        self._x_mean, self._x_scale = x.mean(0), _scale(x)
        self._y_mean, self._y_scale = float(y.mean()), float(_scale(y))
        kernel = Matern(3.0, (0.3, 100.0), nu=2.5) + WhiteKernel(0.1, (1e-4, 2.0))
        if self._start is not None:
            kernel = self._start._gp.kernel_
        self._gp = GaussianProcessRegressor(kernel)
        # The matrices are small: threads would cost more than they bring.
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore")  # a scale at its bound is an answer
            self._gp.fit((x - self._x_mean) / self._x_scale, (y - self._y_mean) / self._y_scale)
        return self

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """(mean, standard deviation of the mean: without the noise of a measurement), [n] each."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):
            mean, spread = self._gp.predict((x - self._x_mean) / self._x_scale, return_std=True)
        doubt = np.sqrt(np.maximum(0.0, spread**2 - self._gp.kernel_.k2.noise_level))
        return self._y_mean + self._y_scale * mean, self._y_scale * doubt


def _scale(values: Floats) -> Any:
    """Standard deviation of each column, 1 where it does not vary."""
    spread = values.std(0)
    return np.where(spread > 1e-12, spread, 1.0)


@dataclass(frozen=True)
class Skill:
    """How well predictions met what was measured: Kendall's tau (None if undefined), errors in its units."""

    n: int
    tau: float | None
    rmse: float
    mae: float


def skill(predicted: Floats, measured: Floats, ranking: Floats | None = None) -> Skill:
    """ranking: what tau is of, if not `predicted`."""
    error = predicted - measured
    tau = kendall_tau(predicted if ranking is None else ranking, measured)
    rmse, mae = float(np.sqrt((error**2).mean())), float(np.abs(error).mean())
    return Skill(len(measured), None if math.isnan(tau) else tau, rmse, mae)


def held_out(
    x: Floats, y: Floats, start: Surrogate, cost: Floats | None, seed: int
) -> tuple[Skill, Skill | None]:
    """(of the regressor, of `cost` alone), each arch predicted by a fit to the folds that it is not in.

    cost: [n], e.g. gflops; its tau is that of the costs themselves, its errors are those of a straight line
    in their logarithm.
    """
    folds = np.random.default_rng(seed).permutation(len(y)) % min(FOLDS, len(y))
    ours, line = np.empty(len(y)), np.empty(len(y))
    level = None if cost is None else np.log(np.maximum(cost, 1e-12))
    for fold in range(folds.max() + 1):
        here, others = folds == fold, folds != fold
        ours[here] = Surrogate(start).fit(x[others], y[others]).predict(x[here])[0]
        if level is not None:
            slope = np.cov(level[others], y[others], bias=True)
            gain = slope[0, 1] / slope[0, 0] if slope[0, 0] > 1e-24 else 0.0
            line[here] = y[others].mean() + gain * (level[here] - level[others].mean())
    return skill(ours, y), None if cost is None else skill(line, y, ranking=cost)
