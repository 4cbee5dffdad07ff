"""The data and the space that an experiment names, opened so that they agree."""

from __future__ import annotations

from pathlib import Path

from data.dataset import Dataset, open_dataset
from experiments.config import Experiment
from models.networks import AnySpace, open_any_space
from utils.errors import UserError

PUBLISHED = {"detect": 80, "classify": 1000}  # classes of COCO and of ImageNet


def open_data(exp: Experiment, cache: Path) -> Dataset:
    """The experiment's data, split for a search. Raises UserError for whatever is wrong with them."""
    task = open_any_space(exp.space, nc=1).task
    return open_dataset(exp.data, cache, seed=exp.seed, val_fraction=exp.search.val_fraction, task=task)


def open_space(exp: Experiment, dataset: Dataset) -> AnySpace:
    """The experiment's space with the data's classes. Raises UserError when its `nc` says otherwise.

    Published files all say nc: 80, or 1000 for classifiers, whatever they are used on, so that is no
    statement about the data.
    """
    space = open_any_space(exp.space, nc=dataset.nc)
    said = space.model.get("nc", dataset.nc)
    if said not in (PUBLISHED[space.task], dataset.nc):
        raise UserError(
            f"{exp.space} says nc: {said}, but {dataset.name} has {dataset.nc} classes "
            f"({', '.join(dataset.names)}); remove nc from the file, or correct it"
        )
    return space
