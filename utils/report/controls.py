"""What the winner had to beat: the table of the step `controls`, from its `controls.json`."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from utils.history import Arch
from utils.report.drawing import is_number, title
from utils.report.runs import Run, read_json
from utils.run_files import Files

SURE = 2.0  # standard errors from which on a difference is more than what other seeds do


@dataclass(frozen=True)
class ControlRow:
    """One network. names: what it is; costs: params_m, gflops; searched: its score on search_val, where a
    search scored it; scores: seed -> its quality on val, of the trainings that are done."""

    names: list[str]
    arch: Arch
    digest: str
    costs: dict[str, float]
    trial: int | None
    searched: float | None
    scores: dict[int, float]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.scores.values()) if self.scores else None

    @property
    def spread(self) -> float | None:
        """Standard deviation between seeds; None with fewer than two."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class Difference:
    """The winner's mean less that of another, over the seeds that both have; error: its standard error from
    the spread of all networks together, None where no network has two seeds."""

    name: str
    value: float
    error: float | None

    @property
    def shown(self) -> bool:
        """Whether it is more than what other seeds do."""
        return self.error is not None and abs(self.value) > SURE * self.error

    def __str__(self) -> str:
        if self.error is None:
            return f"{self.value:+.4f} on {self.name}; one seed says nothing of what others would do"
        sure = "more" if self.shown else "no more"
        return f"{self.value:+.4f} on {self.name}, {sure} than seeds do (+-{SURE * self.error:.4f})"


@dataclass(frozen=True)
class ControlsInfo:
    """by: the step that all are trained as; epochs: of each training; seeds: that each gets."""

    rows: list[ControlRow]
    quality: str
    by: str
    epochs: int | None
    seeds: list[int]

    @property
    def spread(self) -> float | None:
        """Root mean square over the networks of the standard deviation between seeds."""
        variances = [row.spread**2 for row in self.rows if row.spread is not None]
        return math.sqrt(statistics.fmean(variances)) if variances else None

    @property
    def noise(self) -> str:
        """What other seeds do to a score; "" where nobody looked."""
        if self.spread is None:
            return ""
        several = sum(row.spread is not None for row in self.rows)
        return (
            f"Trained with other seeds, a network scores {self.spread:.4f} higher or lower (standard "
            f"deviation of {several} network{'s' * (several != 1)} of the step controls)"
        )

    @property
    def differences(self) -> list[Difference]:
        """The winner against each of the others."""
        winner = next((row for row in self.rows if "winner" in row.names), None)
        found = []
        for row in self.rows if winner else ():
            both = sorted(winner.scores.keys() & row.scores.keys()) if winner and row is not winner else []
            if winner and both:
                value = statistics.fmean(winner.scores[s] - row.scores[s] for s in both)
                error = None if self.spread is None else self.spread * math.sqrt(2 / len(both))
                found.append(Difference(", ".join(row.names), value, error))
        return found

    @property
    def how(self) -> str:
        """`fine-tuned for 8 epochs with seeds 0, 1`"""
        done = {"finetune": "fine-tuned", "retrain": "retrained"}.get(self.by, self.by)
        epochs = f" for {self.epochs} epoch{'s' * (self.epochs != 1)}" if self.epochs else ""
        return f"{done} alike{epochs}, seed{'s' * (len(self.seeds) != 1)} {', '.join(map(str, self.seeds))}"

    def lines(self) -> list[str]:
        """The table for the terminal, and what it says of the winner."""
        heads = [f"{title(self.quality)} on val", "sd", *(f"seed {s}" for s in self.seeds)]
        heads += ["search_val", "GFLOPs", "params (M)", "arch"]
        table = [[*self._cells(row), ", ".join(row.names)] for row in self.rows]
        wide = [max(map(len, column)) for column in zip(heads, *(row[:-1] for row in table), strict=True)]
        lines = [f"controls, {self.how}", "  ".join(h.rjust(w) for h, w in zip(heads, wide, strict=True))]
        for *cells, name in table:
            lines.append("  ".join(c.rjust(w) for c, w in zip(cells, wide, strict=True)) + f"  {name}")
        return [*lines, *(f"the winner: {difference}" for difference in self.differences)]

    def _cells(self, row: ControlRow) -> list[str]:
        values = [row.mean, row.spread, *(row.scores.get(seed) for seed in self.seeds)]
        values += [row.searched, row.costs.get("gflops"), row.costs.get("params_m")]
        return ["" if v is None else f"{v:.4f}" for v in values] + [row.digest]


def controls_info(run: Run) -> ControlsInfo | None:
    """What `controls/controls.json` holds; None without it, or without a network that can be read."""
    given = read_json(Files(run.folder).controls / "controls.json")
    rows = given.get("rows")
    known = [_row(row) for row in rows if _readable(row)] if isinstance(rows, list) else []
    if not known:
        return None
    epochs, seeds = given.get("epochs"), given.get("seeds")
    return ControlsInfo(
        rows=known,
        quality=run.quality,
        by=str(given.get("by", "")),
        epochs=epochs if type(epochs) is int else None,
        seeds=[seed for seed in seeds if type(seed) is int] if isinstance(seeds, list) else [],
    )


def _readable(row: Any) -> bool:
    kinds = {"names": list, "arch": dict, "scores": dict}
    return isinstance(row, dict) and all(isinstance(row.get(key), kind) for key, kind in kinds.items())


def _row(row: dict[str, Any]) -> ControlRow:
    trial, searched = row.get("trial"), row.get("search_val")
    return ControlRow(
        names=[str(name) for name in row["names"]],
        arch=row["arch"],
        digest=str(row.get("digest", "")),
        costs={key: row[key] for key in ("params_m", "gflops") if is_number(row.get(key))},
        trial=trial if type(trial) is int else None,
        searched=searched if is_number(searched) else None,
        scores={int(s): v for s, v in row["scores"].items() if s.isdigit() and is_number(v)},
    )
