"""Device and number format of a training."""

from __future__ import annotations

import gc
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn

from utils.errors import UserError
from utils.sides import Sides, area


class Autocast(MixedPrecision):
    """Mixed precision that leaves the inputs alone: Fabric's would round box coordinates to bf16 as well
    (at 640 px an error of more than a pixel). Autocast itself casts what convolutions take."""

    def convert_input(self, data: Any) -> Any:
        return data


def make_fabric(device: torch.device, precision: str, devices: int = 1, strategy: str = "auto") -> Fabric:
    """`precision`: fp32, bf16 or fp16. More than one of `devices` trains data-parallel (strategy "ddp")."""
    if precision == "fp16" and device.type != "cuda":
        raise UserError(f"train.precision=fp16 needs CUDA, not {device.type}; use bf16 or fp32")
    plugins: list[Any] = []
    if precision != "fp32":
        plugins = [Autocast("16-mixed" if precision == "fp16" else "bf16-mixed", device.type)]
    chosen = [device.index or 0] if device.type == "cuda" and devices == 1 else devices
    return Fabric(accelerator=device.type, devices=chosen, strategy=strategy, plugins=plugins)


def leave_group() -> None:
    """The last thing that a rank does, when nothing but a DDP wrapper still knows the group.

    At the exit of Python gloo's threads may find the interpreter gone and abort the process, whose work is
    done (pytorch/pytorch#179291).
    """
    gc.collect()  # the wrapper
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 is computed in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


# Millions of parameters x pixels of an image / 64^2 from which bf16 was seen to pay on a CPU with AMX: 1.1 to
# 1.9 times faster training from here on, nothing gained below, where the overhead of single operations rules.
BF16_PAYS = 2.0


def choose_precision(wanted: str, device: torch.device, detector: nn.Module, imgsz: Sides) -> str:
    """fp32, bf16 or fp16 for `train.precision`, of which `auto` is decided here."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if has_bf16(device) else "fp16"
    work = sum(p.numel() for p in detector.parameters()) / 1e6 * area(imgsz) / 64**2
    return "bf16" if has_bf16(device) and work >= BF16_PAYS else "fp32"
