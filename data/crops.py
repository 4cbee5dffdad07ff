"""Detection data as a classifier sees them: every labelled object is an image of its own.

A crop is a Sample with exactly one box, which says what to cut out; data/pixels.py cuts it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from data.account import Account
from data.sample import Sample

LEAST = 1.0  # pixels: a box no wider or no higher shows nothing


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


def objects(samples: list[Sample]) -> list[Sample]:
    """One Sample an object, in the order of the images and of the boxes in them."""
    return [
        replace(s, boxes=s.boxes[i : i + 1], cls=s.cls[i : i + 1]) for s in samples for i in range(len(s.cls))
    ]
