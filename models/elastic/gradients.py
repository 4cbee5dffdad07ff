"""Slices that a whole elastic network keeps between passes, and whose gradients are added in place."""

from __future__ import annotations

from typing import Any

from torch import nn

from models.elastic.layers import Elastic
from models.elastic.slicing import ranks


def cached_slices(net: nn.Module) -> SliceCache:
    """Promise that the weights stay as they are inside: without gradients, a layer then cuts its slice once
    an arch instead of once a forward pass.

    Said by the caller, because it cannot be seen: fused optimizers and flat buffers change weights without
    telling torch's version counters.
    """
    return SliceCache(net)


def direct_gradients(net: nn.Module) -> SliceCache:
    """Slices that add their gradients straight into their places in `param.grad`, and are cut once an arch.

        direct = direct_gradients(net)
        with direct:  # once for every step, after zero_grad(set_to_none=False)
            sandwich_step(pupil, set_arch, batch, archs)

    Without it, every slice makes a gradient of the size of the whole weight. Gradients come out the same, but
    the parameters themselves take no part in the backward pass: hooks on them do not run, so this is not for
    DDP, and `torch.autograd.grad` does not find them. Inside, weights should stay as they are and `.grad` the
    tensors that they are at the start.

    Entering raises ValueError with several ranks, and for a parameter without `.grad`
    (`utils.training.optimize.Flat` gives every one its own).
    """
    return SliceCache(net, direct=True)


class SliceCache:
    """What `cached_slices` and `direct_gradients` return: a context that may be entered again and again."""

    def __init__(self, net: nn.Module, direct: bool = False) -> None:
        self.layers = [m for m in net.modules() if isinstance(m, Elastic)]
        self.direct = direct
        self.caches: list[dict[Any, Any]] = [{} for _ in self.layers]
        self.places: list[int] = []

    def __enter__(self) -> None:
        if self.direct and ranks() > 1:
            raise ValueError("several ranks exchange gradients by hooks on whole parameters")
        places = self._places()
        for layer, cache in zip(self.layers, self.caches, strict=True):
            if places != self.places:
                cache.clear()
            layer.write(cache=cache, direct=self.direct)
        self.places = places

    def __exit__(self, *error: object) -> None:
        for layer, cache in zip(self.layers, self.caches, strict=True):
            if not layer.views():
                cache.clear()
            layer.write(cache=None, direct=False)

    def _places(self) -> list[int]:
        """Where in memory everything is that views are of."""
        found = []
        for layer in self.layers:
            for name, p in layer._parameters.items():
                if p is not None:
                    found.append(p.data_ptr())
                    if self.direct and p.requires_grad:
                        if p.grad is None:
                            raise ValueError(f"{name} {tuple(p.shape)} has no .grad to add to")
                        found.append(p.grad.data_ptr())
            found += [b.data_ptr() for b in layer._buffers.values() if b is not None]
        return found
