"""A fault of oneDNN, which computes torch's convolutions on CPUs, kept away from what we train.

On CPUs with AVX2 and no AVX-512 the weight gradient of a strided 1x1 convolution of fewer than eight channels
is written past its workspace where maps or weight are channels_last in memory: wrong gradients, a hang or a
crash (uxlfoundation/oneDNN#6035; oneDNN 3.12 of torch 2.14). Contiguous tensors take another way through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

NARROW = 8  # channels of a group, from which on it is right

Forward = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@contextmanager
def narrow_maps_contiguous(net: nn.Module) -> Iterator[None]:
    """Within: the strided convolutions of `net`, elastic ones too, compute narrow 1x1 ones contiguously."""
    strided = [m for m in net.modules() if isinstance(m, nn.Conv2d) and max(m.stride) > 1]
    for conv in strided:
        conv._conv_forward = partial(_forward, conv._conv_forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for conv in strided:
            del conv.__dict__["_conv_forward"]


def _forward(forward: Forward, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of maps [B, C, H, W] by a weight [out, C / groups, k, k], which may be a slice."""
    if x.device.type == "cpu" and weight.shape[2:] == (1, 1) and weight.shape[1] < NARROW:
        # Of a 1x1 kernel the two formats differ in their strides only, which `contiguous` takes for equal.
        x, weight = x.contiguous(), weight.flatten(1)[:, :, None, None]
    return forward(x, weight, bias)
