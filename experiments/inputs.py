"""The data and the space that an experiment names, opened so that they agree."""

from __future__ import annotations

from pathlib import Path

from data.boxes import LEAST_SIDE, small_boxes
from data.dataset import open_dataset
from data.sample import Dataset
from data.split import carve
from experiments.config import Experiment
from models.networks import open_any_space
from models.space import Space, check_side
from utils.errors import UserError
from utils.sides import shown

PUBLISHED = {"detect": (80, 20), "classify": (1000,)}  # classes of COCO, Pascal VOC and ImageNet


def open_data(exp: Experiment, cache: Path) -> Dataset:
    """The experiment's data, split for a search. Raises UserError for whatever is wrong with them."""
    task = open_any_space(exp.space, nc=1).task
    dataset = open_dataset(exp.data, cache, seed=exp.seed, val_fraction=exp.search.val_fraction, task=task)
    if exp.search.data_portion is not None:
        _leave_out(exp, dataset)
    small, boxes, said = _too_small(exp, dataset)
    if small:
        dataset.account.say(f"{small} of {boxes} {said}")
    return dataset


def _leave_out(exp: Experiment, dataset: Dataset) -> None:
    """Shorten search_train to its share of `search.data_portion`, which adds up to less than 1."""
    _, weights, search = exp.search.data_portion or [0.0, 1.0, 0.0]
    before = dataset.splits["search_train"]
    left_out = 1 - weights / (1 - search)
    if round(left_out * len(before)) > 0:
        kept, _ = carve(before, dataset.nc, left_out, exp.seed, "data_portion")
        dataset.splits["search_train"] = kept
        dataset.account.say(
            f"{len(before) - len(kept)} of {len(before)} images of search_train left out, as "
            f"search.data_portion {exp.search.data_portion} says"
        )


def check_box_sizes(exp: Experiment, dataset: Dataset) -> None:
    """UserError where every labelled object is too small to be learned at the experiment's image size."""
    small, boxes, said = _too_small(exp, dataset)
    if 0 < small == boxes:
        raise UserError(f"data {exp.data}: all {boxes} {said}")


def _too_small(exp: Experiment, dataset: Dataset) -> tuple[int, int, str]:
    """How many boxes are of a pixel or two, of how many, and what becomes of them."""
    if dataset.task != "detect":
        return 0, 0, ""
    small, boxes, half = small_boxes(dataset.splits["train"], exp.imgsz)
    said = (
        f"boxes in train are {LEAST_SIDE:g} pixels or less wide or high at imgsz {shown(exp.imgsz)}, and "
        f"training drops such; imgsz={shown(half)} keeps half of all"
    )
    return small, boxes, said


def open_space(exp: Experiment, dataset: Dataset) -> Space:
    """The experiment's space with the data's classes. Raises UserError when its `nc` says otherwise, and for
    an `imgsz` that its networks cannot have.

    Published files all say nc: 80 or 20, or 1000 for classifiers, whatever they are used on, so that is no
    statement about the data.
    """
    space = open_any_space(exp.space, nc=dataset.nc)
    said = space.model.get("nc", dataset.nc)
    if said not in (*PUBLISHED[space.task], dataset.nc):
        raise UserError(
            f"{exp.space} says nc: {said}, but {dataset.name} has {dataset.nc} classes "
            f"({', '.join(dataset.names)}); remove nc from the file, or correct it"
        )
    if "resolution" not in space.choices:
        check_side(exp.imgsz, space.stride)
    return space


def open_splits(exp: Experiment, cache: Path, split_seed: int) -> Dataset:
    """The experiment's data, split as the search with that seed had them."""
    return open_data(exp.model_copy(update={"seed": split_seed}), cache)
