"""Extra streams beside the stages of serial codes, SP-NAS's second phase (section 3.3 of the paper).

Each proposal takes a code of the Pareto front of those that have no extra streams, one as likely as another,
and draws the streams of every stage anew, the rarer the more they cost (models/serial/space.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.space import Space
from utils.errors import UserError
from utils.history import Arch, Trial, arch_key
from utils.pareto import check_objectives, pareto_front

DRAWS = 500  # archs drawn before all are taken to have been tried


class Streams:
    """Ask/tell; see `AskTell`. known: trials of the serial search, which parents come from."""

    def __init__(
        self, space: Space, objectives: Mapping[str, str], *, seed: int, known: Sequence[Trial] = ()
    ) -> None:
        check_objectives(objectives)
        if not hasattr(space, "with_streams"):
            raise UserError(
                f"strategy 'streams' needs a space of serial codes (`code: ...`), not {space.name}"
            )
        self.space: Any = space
        self.objectives = dict(objectives)
        self.parents: tuple[int, ...] = ()
        self._proposed: set[str] = set()
        self._serial: dict[str, Trial] = {}
        self._rng = np.random.default_rng(seed)
        for trial in known:
            self._take(trial)

    def ask(self) -> Arch | None:
        """An arch with extra streams that was not proposed before; None where none is found."""
        for _ in range(DRAWS):
            front = pareto_front(list(self._serial.values()), self.objectives)
            i = int(self._rng.integers(max(1, len(front))))
            arch, self.parents = (
                (front[i].arch, (front[i].number,)) if front else (self.space.default(), (0,))
            )
            drawn = self.space.with_streams(arch, self._rng)
            if not self.space.serial(drawn) and arch_key(drawn) not in self._proposed:
                self._proposed.add(arch_key(drawn))
                return drawn
        return None

    def tell(self, trial: Trial) -> None:
        self._proposed.add(trial.key)
        self._take(trial)

    def _take(self, trial: Trial) -> None:
        if trial.state == "complete" and self.space.serial(trial.arch):
            self._serial.setdefault(trial.key, trial)
