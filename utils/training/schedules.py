"""The schedules of torch.optim.lr_scheduler by name, with their options, stepped once an epoch as torch's own
examples do.

    rates({"name": "CosineAnnealingWarmRestarts", "T_0": 80}, lr=0.005, epochs=480)[80]  # 0.005

All rates are worked out before a training begins, so one that is resumed goes on with the same to the bit.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import lr_scheduler

from utils.errors import UserError, unknown

# What a file cannot say.
LEFT_OUT = {
    "LambdaLR": "it wants a function",
    "MultiplicativeLR": "it wants a function",
    "SequentialLR": "it is made of others",
    "ChainedScheduler": "it is made of others",
    "ReduceLROnPlateau": "it waits for scores, which are not known beforehand",
}
OURS = ("linear", "cosine")
# Of the optimizer, of torch's own resuming, and of momentum, which stays what `momentum` says.
NOT_OPTIONS = ("self", "optimizer", "last_epoch", "cycle_momentum", "base_momentum", "max_momentum")


def known() -> dict[str, Any]:
    """Name -> class."""
    base = lr_scheduler.LRScheduler
    found = {n: c for n, c in vars(lr_scheduler).items() if inspect.isclass(c) and issubclass(c, base)}
    return {n: c for n, c in found.items() if c is not base and n[0] != "_" and n not in LEFT_OUT}


def check(schedule: str | Mapping[str, Any]) -> None:
    """Raise UserError for a name or an option that torch does not have, or a value that it does not take."""
    scheduler_of(schedule, 0.1)


def rates(schedule: str | Mapping[str, Any], lr: float, epochs: int) -> list[float]:
    """The rate of each epoch. Raises UserError as `check`, and for a schedule that ends earlier."""
    scheduler, found = scheduler_of(schedule, lr), []
    scheduler.optimizer._opt_called = True  # else torch warns that nothing was trained in between
    for epoch in range(epochs):
        found.append(float(scheduler.optimizer.param_groups[0]["lr"]))
        try:
            if epoch + 1 < epochs:
                scheduler.step()
        except ValueError as error:
            raise UserError(
                f"train.schedule: {_text(schedule)} ends before epoch {epoch + 2} of {epochs}: {error}"
            ) from None
    if not all(math.isfinite(rate) and rate >= 0 for rate in found):
        raise UserError(f"train.schedule: {_text(schedule)} has rates below 0 or none at all: {min(found)}")
    return found


def scheduler_of(schedule: str | Mapping[str, Any], lr: float) -> Any:
    """torch's scheduler of one weight that nobody trains."""
    options = {"name": schedule} if isinstance(schedule, str) else dict(schedule)
    name, classes = options.pop("name", None), known()
    if name in LEFT_OUT:
        raise UserError(f"the schedule {name} cannot be written down: {LEFT_OUT[name]}")
    if name not in classes:
        raise unknown("schedule", name, (*OURS, *classes))
    takes = {k: p for k, p in inspect.signature(classes[name]).parameters.items() if k not in NOT_OPTIONS}
    for option in options:
        if option not in takes:
            raise unknown(f"option of {name}", option, takes)
    absent = [k for k, p in takes.items() if p.default is p.empty and k not in options]
    if absent:
        raise UserError(f"the schedule {name} needs {' and '.join(absent)}, in epochs: {{name: {name}, ...}}")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=0.9)
    try:
        return classes[name](optimizer, **options)
    except Exception as error:
        raise UserError(f"the schedule {_text(schedule)} is refused by torch: {error}") from None


def _text(schedule: str | Mapping[str, Any]) -> str:
    if isinstance(schedule, str):
        return schedule
    return f"{schedule.get('name')} with { ({k: v for k, v in schedule.items() if k != 'name'}) }"
