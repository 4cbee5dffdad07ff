"""The data and the space that an experiment names, opened so that they agree."""

from __future__ import annotations

from pathlib import Path

from data.dataset import Dataset, open_dataset
from experiments.config import Experiment
from models.space import Space
from utils.errors import UserError

COCO_CLASSES = 80


def open_data(exp: Experiment, cache: Path) -> Dataset:
    """The experiment's data, split for a search. Raises UserError for whatever is wrong with them."""
    return open_dataset(exp.data, cache, seed=exp.seed, val_fraction=exp.search.val_fraction)


def open_space(exp: Experiment, dataset: Dataset) -> Space:
    """The experiment's space with the data's classes. Raises UserError when its `nc` says otherwise.

    Published files all say nc: 80, whatever they are used on, so 80 is no statement about the data.
    """
    said = Space(exp.space).nc
    if said not in (COCO_CLASSES, dataset.nc):
        raise UserError(
            f"{exp.space} says nc: {said}, but {dataset.name} has {dataset.nc} classes "
            f"({', '.join(dataset.names)}); remove nc from the file, or correct it"
        )
    return Space(exp.space, nc=dataset.nc)
