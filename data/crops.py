"""Detection data as a classifier sees them: every labelled object is an image of its own.

A crop is a Sample with exactly one box, which says what to cut out; data/pixels.py cuts it.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np

from data.account import Account
from data.sample import Dataset, Sample

LEAST = 1.0  # pixels: a box no wider or no higher shows nothing

PLACES = 20  # that are tried for a piece of background


def croppable(samples: list[Sample], account: Account) -> list[Sample]:
    """The same images without the boxes of a pixel or less, which are counted."""
    kept = []
    for sample in samples:
        height, width = sample.shape
        large = (sample.boxes[:, 2:] * np.array([width, height]) > LEAST + 1e-4).all(1)
        account.note("tiny", sample.image.name, int((~large).sum()))
        kept.append(replace(sample, boxes=sample.boxes[large], cls=sample.cls[large]))
    return kept


def with_objects(samples: list[Sample], account: Account) -> list[Sample]:
    """Only the images that show something; the others are counted."""
    for sample in samples:
        if not len(sample.cls):
            account.note("no object", sample.image.name)
    return [s for s in samples if len(s.cls)]


def crops_of(dataset: Dataset) -> Dataset:
    """The objects of a detection data set, each in the split that its image is in. Where all are of one
    class, places that show none are a second one, `background`, one an object: a classifier needs two."""
    account = deepcopy(dataset.account)
    names, rng, splits = list(dataset.names), np.random.default_rng(0), {}
    if len(names) == 1:
        names.append("background")
    for split, samples in dataset.splits.items():
        found = objects(with_objects(croppable(samples, account), account))
        splits[split] = found + (backgrounds(samples, rng) if len(dataset.names) == 1 else [])
    return replace(
        dataset,
        names=names,
        splits=splits,
        format=f"objects of {dataset.format}",
        account=account,
        task="classify",
    )


def backgrounds(samples: list[Sample], rng: np.random.Generator) -> list[Sample]:
    """For each object a place of its size in its image that touches none; class 1. Where `PLACES` draws find
    no such place, there is none for it."""
    found = []
    for sample in samples:
        for size in sample.boxes[:, 2:]:
            for centre in rng.uniform(size / 2, 1 - size / 2, (PLACES, 2)):
                apart = np.abs(sample.boxes[:, :2] - centre) >= (sample.boxes[:, 2:] + size) / 2
                if apart.any(1).all():
                    box = np.concatenate([centre, size])[None].astype(np.float32)
                    found.append(replace(sample, boxes=box, cls=np.ones(1, np.int64)))
                    break
    return found


def objects(samples: list[Sample]) -> list[Sample]:
    """One Sample an object, in the order of the images and of the boxes in them."""
    return [
        replace(s, boxes=s.boxes[i : i + 1], cls=s.cls[i : i + 1]) for s in samples for i in range(len(s.cls))
    ]
