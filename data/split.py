"""Carving a validation part out of a split, so that a search never scores on what will be reported."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from data.sample import Sample


def carve(
    samples: list[Sample], nc: int, fraction: float, seed: int, purpose: str
) -> tuple[list[Sample], list[Sample]]:
    """Split `samples` in two, the second holding about `fraction` of the images and of each class' images.

    Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011): the rarest class is dealt out first, so
    that it gets onto both sides whenever two images have it. Same samples, fraction, seed and purpose:
    same parts, in the order given. Images with the same bytes stay on one side.
    """
    leaders: dict[str, int] = {}
    group = np.array([leaders.setdefault(s.content or str(s.image), i) for i, s in enumerate(samples)])
    heads = np.unique(group)  # one image speaks for all its copies
    if len(heads) < 2:
        from utils.errors import UserError

        raise UserError(
            f"{len(heads)} image is too few to set some aside for {purpose!r}; "
            "declare the split or add images"
        )
    word = int.from_bytes(hashlib.sha1(purpose.encode()).digest()[:4], "big")  # purposes must not draw alike
    order = heads[np.random.default_rng([seed, word]).permutation(len(heads))]
    has = np.zeros((len(order), nc), bool)
    for row, i in enumerate(order):
        has[row, samples[i].cls] = True

    undecided, held = np.ones(len(order), bool), np.zeros(len(order), bool)
    target = min(max(1, round(fraction * len(order))), len(order) - 1)
    images_of = has.sum(0)
    for c in np.argsort(images_of, kind="stable"):
        if images_of[c] < 2:
            continue
        want = min(max(1, round(fraction * images_of[c])), images_of[c] - 1) - int((held & has[:, c]).sum())
        free = np.flatnonzero(undecided & has[:, c])
        chosen = free[: max(0, min(want, target - int(held.sum())))]
        held[chosen], undecided[free] = True, False
    held[np.flatnonzero(undecided)[: max(0, target - int(held.sum()))]] = True
    if not held.any():  # every class sits in one image: stratifying is impossible, the size still holds
        held[:target] = True

    side = dict(zip(order.tolist(), held.tolist(), strict=True))
    kept = [s for s, g in zip(samples, group.tolist(), strict=True) if not side[g]]
    return kept, [s for s, g in zip(samples, group.tolist(), strict=True) if side[g]]


def shared_content(a: list[Sample], b: list[Sample]) -> int:
    """How many images of `b` are also in `a`, by path or by bytes."""
    paths, bytes_ = {s.image for s in a}, {s.content for s in a if s.content}
    return sum(s.image in paths or s.content in bytes_ for s in b)
