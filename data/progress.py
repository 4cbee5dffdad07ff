"""A bar where reading takes long enough to wonder; nothing where it does not, or where nobody watches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def progress(items: Sequence[T], what: str) -> Iterable[T]:
    """`items`, with a progress bar on a terminal once it has taken a second."""
    from tqdm import tqdm

    return tqdm(items, what, leave=False, delay=1, disable=None)
