"""NNI's TPE tuner as an ask/tell object.

`nni.nas.strategy.TPE` sleeps one second for every model, forgets everything on resume and, against repeats,
falls back to walking the grid from its first corner. Its tuner has none of that once we ask it ourselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from nni.nas.strategy import TPE

from utils.history import Arch, Trial, arch_key

if TYPE_CHECKING:
    from experiments.strategies.contract import Setup

SUGGESTIONS = 100  # asked of the tuner, and looked around, before we draw at random
DRAWS = 500  # random archs tried before we call the space exhausted


class _KeepAll:
    """In place of the tuner's own deduplication; ours is on the canonical arch."""

    def __call__(self, parameters: Any) -> Any:
        return parameters

    def add_history(self, parameters: Any) -> None:
        pass


class Tpe:
    """See `AskTell`. startup: random trials before the model is used; gamma: good ones = gamma *
    sqrt(trials).
    """

    def __init__(self, setup: Setup, *, startup: int, candidates: int = 24, gamma: float = 0.25) -> None:
        arguments = {"n_startup_jobs": startup, "n_ei_candidates": candidates, "gamma": gamma}
        self.setup = setup
        self.space = setup.space
        self.parents: tuple[int, ...] = ()
        self._tuner: Any = TPE(optimize_mode="maximize", seed=setup.seed, tpe_args=arguments).tuner
        self._tuner.update_search_space(
            {
                label: {"_type": "choice", "_value": list(values)}
                for label, values in self.space.choices.items()
            }
        )
        self._tuner.dedup = _KeepAll()
        self._rng = np.random.default_rng(setup.seed)
        self._proposed: set[str] = set()
        self._running: dict[str, tuple[int, dict[str, Any]]] = {}
        self._worst = 0.0

    def ask(self) -> Arch | None:
        """The tuner's suggestion, or one near to it if that was proposed before; None = exhausted."""
        number = len(self._proposed)
        for attempt in range(SUGGESTIONS):
            suggested = self._tuner.generate_parameters(number)
            # With a handful of values per label its maximum hardly moves, so it soon repeats itself: look
            # around it, farther each time, rather than anywhere.
            near = suggested | self._redrawn(0 if attempt == 0 else 1 + attempt // 10)
            arch = self.setup.within_limits(near, self._rng)
            key = arch_key(arch)
            if key not in self._proposed:
                self._proposed.add(key)
                if arch == self.space.repair(suggested):
                    self._running[key] = (number, suggested)
                else:
                    self._tuner.trial_end(number, False)
                return arch
            self._tuner.trial_end(number, False)
        for _ in range(DRAWS):
            arch = self.setup.within_limits(self.space.random(self._rng), self._rng)
            key = arch_key(arch)
            if key not in self._proposed:
                self._proposed.add(key)
                return arch
        return None

    def _redrawn(self, count: int) -> dict[str, Any]:
        labels = list(self.space.choices)
        chosen = self._rng.choice(len(labels), size=min(count, len(labels)), replace=False)
        values = [self.space.choices[labels[i]] for i in chosen]
        return {labels[i]: v[int(self._rng.integers(len(v)))] for i, v in zip(chosen, values, strict=True)}

    def tell(self, trial: Trial) -> None:
        """A failed or infeasible arch counts as the worst reward seen so far, or 0 if that is worse."""
        self._proposed.add(trial.key)
        if trial.reward is not None:
            self._worst = min(self._worst, trial.reward)
        value = self._worst if trial.reward is None else trial.reward
        if trial.key in self._running:
            number, suggested = self._running.pop(trial.key)
            self._tuner.receive_trial_result(number, suggested, value)
        else:  # the baseline, or an arch that is not quite what the tuner suggested
            self._tuner.import_data([{"parameter": self.space.complete(trial.arch), "value": value}])
