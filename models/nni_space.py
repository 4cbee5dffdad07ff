"""The choices of any space as NNI sees them, without a network."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from models.networks import open_any_space
from models.space import Arch, Space

with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)  # NNI 3.0 meets names in torch.nn that are no modules
    from nni.mutable import Categorical
    from nni.nas.nn.pytorch import ModelSpace
from nni.nas.space import current_model, model_context


class ArchSpace(ModelSpace):
    """The NNI model space of any YAML's choices, without a network: for searches whose weights live elsewhere
    (in a trained supernet) or whose evaluator needs none.

    Args (plain data, so that a trial process can rebuild the space):
        model: the YAML as a dict, of any space.
        nc: number of classes. ch: input channels.

    Attributes:
        space: what may vary; the same object in all archs of a process, so that costs are tabled once.
        arch: once frozen, the canonical arch; None before.
    """

    arch: Arch | None

    def __init__(self, model: dict[str, Any], nc: int, ch: int = 3) -> None:
        super().__init__()
        self._arguments = model, nc, ch
        self.space = _opened(json.dumps(model), nc, ch)
        sample = current_model()
        self.arch = None if sample is None else self.space.canonical(sample)
        for label, values in self.space.choices.items() if sample is None else ():
            self.add_mutable(Categorical(values, label=label))

    def freeze(self, sample: Mapping[str, Any]) -> ArchSpace:
        """The space with this arch, canonical or complete. Raises UserError for one of another space."""
        with model_context(self.space.complete(sample)):
            return ArchSpace(*self._arguments)


def model_space(space: Space, trained: bool) -> ModelSpace:
    """A space as NNI sees it. trained: trials train its networks; where it is one of layers, NNI then sees
    them all."""
    if trained and space.layered:
        from models.yolo.nas import YoloModelSpace  # needs Ultralytics

        return YoloModelSpace(space.model, space.nc, space.ch)
    return ArchSpace(space.model, space.nc, space.ch)


@lru_cache(maxsize=8)
def _opened(model: str, nc: int, ch: int) -> Space:
    """A trial in process rebuilds its space from the arguments; reading them anew would take longer than many
    an evaluation."""
    return open_any_space(json.loads(model), nc, ch)
