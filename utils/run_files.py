"""Where things lie in the folder of a run. What they hold is said by who writes them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


def said_in(folder: Path, path: Path, root: Path) -> str:
    """How a JSON file in `folder` names the file at `path`: from there where it lies within the run `root`,
    so that a run can be moved; else absolutely."""
    path = path.resolve()
    if path.is_relative_to(root.resolve()):
        return Path(os.path.relpath(path, folder.resolve())).as_posix()
    return str(path)


@dataclass(frozen=True)
class Files:
    """The paths in a run's folder, whether there is something or not."""

    folder: Path

    @property
    def plan(self) -> Path:
        """What the folder of the command `retrain` trains; no other folder has it."""
        return self.folder / "plan.json"

    @property
    def pretrain(self) -> Path:
        """The folder of the step `pretrain`."""
        return self.folder / "pretrain"

    @property
    def pretrained(self) -> Path:
        """The supernet's backbone as a classifier."""
        return self.pretrain / "weights.pt"

    @property
    def pretrained_alone(self) -> Path:
        """The unsearched path as a classifier, as which all paths begin."""
        return self.pretrain / "alone" / "last.pt"

    @property
    def supernet(self) -> Path:
        """The folder of the supernet's training."""
        return self.folder / "supernet"

    @property
    def supernet_weights(self) -> Path:
        return self.supernet / "weights.pt"

    @property
    def sampled(self) -> Path:
        """The folder of the step `sample_accuracy`."""
        return self.folder / "sample_accuracy"

    @property
    def screened(self) -> Path:
        """What was looked at before a search from trained weights."""
        return self.folder / "screened.json"

    def reignited(self, number: int) -> Path:
        """A trial's detector whose backbone was trained as a classifier; its children start from it."""
        return self.of_trial("reignition", number) / "weights.pt"

    @property
    def target(self) -> Path:
        """The folder of what was timed on the target, and of what is predicted from that."""
        return self.folder / "target"

    @property
    def rank(self) -> Path:
        """The folder of the step `rank`."""
        return self.folder / "rank"

    @property
    def controls(self) -> Path:
        """The folder of the step `controls`."""
        return self.folder / "controls"

    @property
    def random_search(self) -> Path:
        """The folder of the search with as many trials that the step `controls` makes: a run of its own."""
        return self.controls / "random_search"

    def of_trial(self, kind: str, number: int) -> Path:
        """A trial's folder of a kind: `trials`, `evaluate`, `retrain`, `finetune`."""
        return self.folder / kind / f"{number:04d}"

    @property
    def top(self) -> list[Path]:
        """The architecture files of the top models that there are, the best first."""
        files = [p for p in (self.folder / "top").glob("*.json") if p.stem.isdigit()]
        return sorted(files, key=lambda p: int(p.stem))
