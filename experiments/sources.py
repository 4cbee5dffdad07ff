"""Weight files read once in a process, and sorted for the networks of a space."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch

from models.inherit import Source
from models.networks import open_any_space
from models.space import Space
from models.weights import WeightFile, read_weights
from utils.errors import UserError
from utils.training.measure import torch_threads


def source(path: Path | WeightFile, space: Space) -> Source | WeightFile:
    """A file's weights, read and sorted for the networks of a space; once in a process for the same file.

    Only read, where the space has no network with all of its layers.
    """
    model = json.dumps(space.model, sort_keys=True)
    if isinstance(path, WeightFile):
        return _sorted(path, model, space.nc, space.ch)
    return _source(path, path.stat().st_mtime_ns, model, space.nc, space.ch)


@functools.lru_cache(maxsize=4)
def _source(path: Path, changed: int, model: str, nc: int, ch: int) -> Source | WeightFile:
    return _sorted(read_weights(path), model, nc, ch)


def _sorted(file: WeightFile, model: str, nc: int, ch: int) -> Source | WeightFile:
    like = _like(model, nc, ch)
    if like is None:
        return file
    with torch_threads(1):  # a process whose threads have worked cannot be forked for a trial
        return Source(file, like)


@functools.lru_cache(maxsize=4)
def _like(model: str, nc: int, ch: int) -> Any:
    """A network that has all layers of a space, or None. It takes no random numbers from anybody."""
    space = open_any_space(json.loads(model), nc, ch)
    with torch.random.fork_rng(devices=[]):
        try:
            return space.supernet()
        except UserError:  # its networks share no layers, or those that vary are no elastic ones
            return space.build(space.largest()) if space.layered else None
