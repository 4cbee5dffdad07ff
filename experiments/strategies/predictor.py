"""Evolution with an accuracy predictor: measure a few architectures, then let thousands compete in memory.

A regressor is fitted to what was measured (surrogate.py); NSGA-II (pareto.py) searches with its predictions
and the exact costs; the most promising archs of all it met are measured, and everything begins again. As in
Once-for-all (Cai et al. 2020, section 3.3) and NSGANetV2 (Lu et al. 2020, section 3.1).

In the supernet of surrogate.py (46,656 archs, top-1 and GFLOPs) 60 measured archs reached a hypervolume of
.406, mean of 3 seeds (.402 to .413); random ones .367 (.362 to .369), NSGA-II alone .357 (.339 to .370). 30
reached .383. An `exploration` of 0.01 or 1 instead of 0.5 made no difference that 3 seeds could show.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.strategies.pareto import ParetoEvolution
from experiments.strategies.surrogate import LEAST, Encoder, Floats, Skill, Surrogate, held_out, skill
from models.sampling import leaning
from utils.errors import UserError
from utils.files import write_text
from utils.history import Arch, Trial, arch_key
from utils.limits import violation
from utils.pareto import as_costs, check_objectives, sort_fronts
from utils.report.drawing import title
from utils.rewards import DRIFT

if TYPE_CHECKING:
    from experiments.strategies.contract import Setup

DRAWS = 500  # random archs tried before we call the space exhausted
GENERATION = 50  # archs that are predicted at once, and the population that they compete in
MOST = 500  # measured archs that are fitted to; a fit takes time with their cube
SHORT_LIST = 150  # of the predicted front, from which a batch is chosen
POINTS = 4096  # where the gain of a candidate is looked at


@dataclass(frozen=True)
class Candidate:
    """An arch that was met in memory. metrics: predicted, and exact where they cost nothing; hoped: the same,
    better by `exploration` standard deviations where predicted."""

    arch: Arch
    metrics: dict[str, float]
    hoped: dict[str, float]


class Predictor:
    """See `AskTell`.

    startup:     archs measured before the first fit, leaning to small and large sizes in turn; those known
                 from an earlier step count
    batch:       archs proposed after each fit
    evaluations: archs that each search in memory looks at
    exploration: standard deviations by which an unsure prediction is taken to be better when a batch is
                 chosen

    Every objective whose value is not known for nothing is predicted, and so is a cost that is limited and
    has to be measured (latency_ms). After each fit predictor.json in the run folder says how well.
    """

    def __init__(
        self, setup: Setup, *, startup: int, batch: int, evaluations: int, exploration: float
    ) -> None:
        check_objectives(setup.objectives)
        self.quality = next((key for key, way in setup.objectives.items() if way == "max"), "")
        if not self.quality:
            raise UserError("strategy 'predictor' needs an objective to maximise, such as map50_95: max")
        self.setup, self.space = setup, setup.space
        self.startup, self.batch = startup, batch
        self.evaluations, self.exploration = evaluations, exploration
        self.parents: tuple[int, ...] = ()
        self._rng = np.random.default_rng(setup.seed)
        self._encode = Encoder(setup.space, setup.quick)
        free = set(setup.quick(setup.space.default())) if setup.quick else set()
        self._targets = [key for key in setup.objectives if key not in free]
        self._limited = [k for k in {limit.key: None for limit in setup.limits} if k not in free]
        self._measured: dict[str, Trial] = {}  # complete, stopped, and infeasible ones that were measured
        self._proposed: set[str] = set()
        self._drawn = 0
        self._queue = setup.head_start(batch)
        self._models: dict[str, Surrogate] = {}
        self._expected: dict[str, float] = {}  # what was predicted of an arch when it was proposed
        self._fits: list[dict[str, Any]] = []
        self._seen = -1  # measured archs at the last fit
        for trial in setup.known:
            if trial.state == "complete":
                self._measured[trial.key] = trial
        self._known = set(self._measured)

    def ask(self) -> Arch | None:
        """Known archs that were good, then the first few, then the best predicted; None = exhausted."""
        if not self._queue and self._may_fit():
            self._queue = self._promising()
        while self._queue:
            arch = self._queue.pop(0)
            if self._is_new(arch):
                return arch
        for _ in range(DRAWS):
            arch = self._draw()
            if self._is_new(arch) and arch_key(arch) not in self._known:
                return arch
        return None

    def tell(self, trial: Trial) -> None:
        """Raises UserError when a complete trial was not measured for an objective."""
        self._proposed.add(trial.key)
        if trial.state == "complete":
            for key in self._targets:
                if key not in trial.metrics:
                    have = ", ".join(trial.metrics) or "nothing"
                    raise UserError(f"objective {key!r} was not measured; trial {trial.number} has {have}")
        if trial.state != "failed":
            self._measured.pop(trial.key, None)  # known before: the search's own value counts, as the newest
            self._measured[trial.key] = trial

    def closing(self) -> str | None:
        """How good the predictions are, fitted to everything; for the end of a search."""
        if not self._may_fit():
            return None
        if self._seen != len(self._measured):
            self._fit()
        self._write()
        last = self._fits[-1]
        ours, cost = Skill(**last["held_out"]), last["cost_alone"]
        text = f"predictor: held-out tau {_short(ours.tau)} (n={ours.n}), RMSE {ours.rmse:.4f}"
        if cost is not None:
            text += f"; {title(last['cost'])} alone: tau {_short(cost['tau'])}, RMSE {cost['rmse']:.4f}"
        ahead = self._ahead()
        if ahead is not None:
            text += f"; of what it proposed: tau {_short(ahead.tau)} (n={ahead.n}), RMSE {ahead.rmse:.4f}"
        return text

    # What is measured.

    def _may_fit(self) -> bool:
        enough = len(self._told(self.quality)) >= max(LEAST, self.startup) or self._drawn >= self.startup
        return enough and all(len(self._told(key)) >= LEAST for key in self._targets)

    def _told(self, key: str) -> list[Trial]:
        """What is to be fitted to: the newest with a finite value."""
        found = [t for t in self._measured.values() if math.isfinite(t.metrics.get(key, math.nan))]
        return found[-MOST:]

    def _is_new(self, arch: Arch) -> bool:
        key = arch_key(arch)
        new = key not in self._proposed
        self._proposed.add(key)
        return new

    def _draw(self) -> Arch:
        """Random, leaning to small and large in turn. Where drift is limited, near one that was within the
        limits: what is drawn from the whole space hardly ever is."""
        self._drawn += 1
        within = [t.arch for t in self._measured.values() if t.state == "complete"]
        if DRIFT in self._limited and within:
            genes = self.space.complete(within[int(self._rng.integers(len(within)))])
            arch = self.space.repair(self.space.mutate(genes, self._rng, 1 / len(self.space.choices)))
        else:
            arch = self.space.biased(self._rng, leaning(self._drawn))
        return self.setup.within_limits(arch, self._rng)

    # What is predicted.

    def _fit(self) -> None:
        for key in [*self._targets, *self._limited]:
            trials = self._told(key)
            if len(trials) < LEAST:
                continue  # of a limit, not an objective: nothing is said about it yet
            x = self._encode([t.arch for t in trials])
            y = self._values(key, trials)
            self._models[key] = Surrogate().fit(x, y)
            if key == self.quality:
                cost, costs = self._cost_of(trials)
                ours, alone = held_out(x, y, self._models[key], costs, self.setup.seed)
                alone_too = None if alone is None else asdict(alone)
                self._fits.append({"held_out": asdict(ours), "cost": cost, "cost_alone": alone_too})
        self._seen = len(self._measured)

    def _values(self, key: str, trials: Sequence[Trial]) -> Floats:
        """What a model of `key` is fitted to. A stopped training would have come to more than it had: where
        that is less than all others came to, it counts as the worst of them."""
        ended = [t.metrics[key] for t in trials if t.state != "stopped"]
        least = min(ended, default=-math.inf) if key == self.quality else -math.inf
        return np.array(
            [max(t.metrics[key], least) if t.state == "stopped" else t.metrics[key] for t in trials]
        )

    def _cost_of(self, trials: Sequence[Trial]) -> tuple[str | None, Floats | None]:
        """The cost that the regressor has to beat, of each trial."""
        metrics = [self._facts(t) for t in trials]
        for key in ("gflops", "params_m"):
            if all(key in m for m in metrics):
                return key, np.array([m[key] for m in metrics])
        return None, None

    def _facts(self, trial: Trial) -> dict[str, float]:
        return {**trial.metrics, **(self.setup.quick(trial.arch) if self.setup.quick else {})}

    def _predict(self, archs: Sequence[Arch]) -> list[Candidate]:
        quick = self.setup.quick
        metrics = [dict(quick(arch)) if quick else {} for arch in archs]
        hoped = [dict(m) for m in metrics]
        x = self._encode(archs)
        for key, model in self._models.items():
            better = {"max": 1.0, "min": -1.0}.get(self.setup.objectives.get(key, ""), 0.0)
            means, doubts = model.predict(x)
            for i, (mean, doubt) in enumerate(zip(means, doubts, strict=True)):
                metrics[i][key] = float(mean)
                hoped[i][key] = float(mean + better * self.exploration * doubt)
        return [Candidate(*each) for each in zip(archs, metrics, hoped, strict=True)]

    def _promising(self) -> list[Arch]:
        """Fit, search in memory, and choose a batch."""
        self._fit()
        self._write()
        search = ParetoEvolution(
            self.space,
            self.setup.objectives,
            seed=int(self._rng.integers(2**31)),
            population_size=GENERATION,
            start="random",
            limits=self.setup.limits,
            within_limits=self.setup.within_limits,
        )
        trials = [t for t in self._measured.values() if t.state == "complete"]
        base = self._predict([t.arch for t in trials])
        search.tell_all([_as_trial(c, t.number) for c, t in zip(base, trials, strict=True)])
        met: list[Candidate] = []
        while len(met) < self.evaluations:
            asked = iter(search.ask, None)  # until the space is exhausted
            archs = list(islice(asked, min(GENERATION, self.evaluations - len(met))))
            if not archs:
                break
            found = self._predict(archs)
            search.tell_all([_as_trial(c, -1) for c in found])
            met += found
        chosen = self._choose([c for c in met if arch_key(c.arch) not in self._proposed], base)
        self._expected |= {arch_key(c.arch): c.metrics[self.quality] for c in chosen}
        return [c.arch for c in chosen]

    def _choose(self, met: list[Candidate], base: list[Candidate]) -> list[Candidate]:
        """The candidates that would push the front farthest, one after the other: by the share of the box of
        objectives that each would newly dominate. Those that keep the limits come first."""
        limits = self.setup.limits
        kept = [c for c in met if violation(limits, c.metrics) == 0]
        fronts = sort_fronts(as_costs([c.hoped for c in kept], self.setup.objectives))
        short = [kept[i] for front in fronts for i in front][:SHORT_LIST]
        if not short:
            return sorted(met, key=lambda c: violation(limits, c.metrics))[: self.batch]
        costs = as_costs([c.hoped for c in short], self.setup.objectives)
        rivals = [c.metrics for c in base if violation(limits, c.metrics) == 0]
        known = as_costs(rivals, self.setup.objectives)
        both = np.concatenate([costs, known])
        low, high = both.min(0), both.max(0)
        points = low + (high - low) * self._rng.random((POINTS, costs.shape[1]))
        for row in known:
            points = points[~np.all(row <= points, axis=1)]
        chosen: list[int] = []
        while len(chosen) < min(self.batch, len(short)):
            left = [i for i in range(len(short)) if i not in chosen]
            gains = [int(np.all(costs[i] <= points, axis=1).sum()) for i in left]
            best = left[int(np.argmax(gains))]  # where nobody gains: the first, which is on the first front
            chosen.append(best)
            points = points[~np.all(costs[best] <= points, axis=1)]
        return [short[i] for i in chosen]

    # What is written down.

    def _ahead(self) -> Skill | None:
        """Of the predictions that were made before the arch was measured, because it seemed good."""
        pairs = [
            (expected, self._measured[key].metrics[self.quality])
            for key, expected in self._expected.items()
            if key in self._measured and self._measured[key].state == "complete"
        ]
        if not pairs:
            return None
        expected, measured = np.array(pairs).T
        return skill(expected, measured)

    def _write(self) -> None:
        if self.setup.run_dir is None:
            return
        ahead = self._ahead()
        facts = {
            "quality": self.quality,
            "regressor": "Gaussian process, Matern 5/2",
            "known": len(self._known),
            "fits": self._fits,
            "proposed": None if ahead is None else asdict(ahead),
        }
        write_text(self.setup.run_dir / "predictor.json", json.dumps(facts, indent=1) + "\n")


def _as_trial(candidate: Candidate, number: int) -> Trial:
    return Trial(number, candidate.arch, candidate.metrics)


def _short(tau: float | None) -> str:
    return "undefined" if tau is None else f"{tau:.2f}"
