"""Which GPUs a run's trainings take, and how several at a time share them out.

A process that was handed a GPU sees only that one, which torch then calls cuda:0; so `device=cuda:1` of the
experiment is settled here, once, and trainings ask `training_device`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from utils.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
HANDED_OUT = "NAS_DEVICE"  # what a process with a GPU of its own calls it


def training_device(device: str, environment: Mapping[str, str] = os.environ) -> str:
    """`device` of the experiment, or `cuda` where this process was handed one GPU."""
    return environment.get(HANDED_OUT) or device


def hand_out(gpu: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Let this process see one GPU, in CUDA_VISIBLE_DEVICES' words. Before CUDA is initialised."""
    environment.update({VISIBLE: gpu, HANDED_OUT: "cuda"})


def gpus_to_share(
    device: str, indices: Any = None, environment: Mapping[str, str] = os.environ
) -> tuple[str, ...]:
    """The GPUs that a run's trainings share, each as CUDA_VISIBLE_DEVICES names it. Raises UserError.

    device:  of the experiment; `cuda:1` is that one alone, `cuda` and `auto` are all that torch sees here
    indices: `training_service.gpu_indices`, which of them, as torch counts; None = all
    """
    import torch

    there = torch.cuda.device_count()
    if not there:
        raise UserError(f"trials are to have a GPU, but this machine shows no CUDA GPU (device={device})")
    named = environment.get(VISIBLE)
    # Numbers or UUIDs; CUDA stops reading at the first that it does not know.
    names = [name.strip() for name in named.split(",")] if named else [str(n) for n in range(there)]
    chosen = check_indices(indices)
    for index in chosen or ():
        if index >= there:
            seen = f" ({VISIBLE}={named})" if named else ""
            raise UserError(
                f"training_service.gpu_indices: {index}, but there are {there} CUDA devices{seen}, from 0"
            )
    text = device.strip().lower().removeprefix("cuda:")
    if text.isdecimal():
        if chosen is not None and int(text) not in chosen:
            raise UserError(
                f"device={device} is not among training_service.gpu_indices {chosen}: give one of the two"
            )
        chosen = [int(text)]
    return tuple(names[n] for n in (range(there) if chosen is None else chosen) if n < len(names))


def check_indices(indices: Any, where: str = "training_service") -> list[int] | None:
    """`0`, `"0,1"` or `[0, 1]` as a list, in NNI's ways of writing. Raises UserError for anything else."""
    if indices is None:
        return None
    parts: Sequence[Any] = indices.split(",") if isinstance(indices, str) else indices
    parts = parts if isinstance(parts, list) else [parts]
    numbers = [int(p) if isinstance(p, str) and p.strip().isdecimal() else p for p in parts]
    fits = all(type(n) is int and n >= 0 for n in numbers)
    if not numbers or not fits or len(set(numbers)) < len(numbers):
        raise UserError(f"{where}.gpu_indices: {indices!r} is no list of different GPUs like [0, 1]")
    return numbers
