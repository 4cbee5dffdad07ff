"""The one training loop: any object with `loss(batch) -> dict[str, Tensor]`, on one device or many."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm

from utils.errors import UserError
from utils.files import write_bytes
from utils.training.batch import to_device
from utils.training.lessons import Lesson, Plain
from utils.training.onednn import narrow_maps_contiguous
from utils.training.optimize import Ema, Flat, Schedule, apart, build_optimizer, freeze, reorder
from utils.training.precision import choose_precision, make_fabric
from utils.training.settings import LATER, TrainSettings

Row = dict[str, float]
CHECK_EVERY = 16  # steps between two looks at the loss; each look makes a GPU wait


class TrainingFailed(RuntimeError):
    """This training cannot go on (NaN loss, out of memory, nothing to learn from); the next one may."""


@dataclass
class TrainResult:
    """detector: the averaged weights, in eval mode; metrics: of the last validation, in full;
    curve: one row an epoch; seconds: wall time, of all sittings; steps: optimizer steps."""

    detector: nn.Module
    curve: list[Row]
    metrics: dict[str, float]
    seconds: float
    steps: int


def train(
    detector: nn.Module,
    train_loader: DataLoader,
    *,
    settings: TrainSettings,
    seed: int = 0,
    device: str | torch.device = "cpu",
    evaluate: Callable[[nn.Module, bool], dict[str, float]] | None = None,
    on_epoch: Callable[[Row], None] | None = None,
    on_resume: Callable[[list[Row]], None] | None = None,
    checkpoint: Path | None = None,
    progress: bool | None = None,
    fabric: Fabric | None = None,
    lesson: Callable[[Any], Lesson] = Plain,
    about: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train `detector` for `settings.epochs` passes over `train_loader`.

    detector:   `detector.loss(batch) -> dict[str, Tensor]`, scalars, mean per image; their sum is minimised
    evaluate:   called as (averaged detector, is it the last time) every `val_every` epochs and at the end
    on_epoch:   called after each epoch with its row: epoch (from 1), loss (mean over the epoch) and
                loss/<item>, lr (of the last step), seconds (since the start) and, if it was validated, the
                metrics without the per-class ones. Whatever it raises stops the training.
    on_resume:  called once with the rows of the epochs that a checkpoint holds, before it goes on from there
    checkpoint: file to write to now and then, and to go on from if it exists; the caller removes it
    progress:   bar on stderr; by default only on a terminal
    fabric:     a launched `Fabric(devices=..., strategy="ddp")` trains on several devices, `settings.batch`
                images on each
    lesson:     what a batch teaches the detector: by default its loss; a supernet, the sandwich
                (utils/training/lessons.py)
    about:      what else a checkpoint must agree in, JSON values

    Raises TrainingFailed with a reason; UserError for a checkpoint that is not of this training.
    """
    if len(train_loader) == 0:
        raise UserError("there are no training images")
    if fabric is None:
        height, width = next(iter(train_loader))["img"].shape[-2:]
        device = torch.device(device)
        fabric = make_fabric(device, choose_precision(settings.precision, device, detector, (height, width)))
    seed_everything(seed)
    works, state = _set_up(detector, train_loader, settings, seed, fabric, checkpoint, lesson, about or {})
    silent = None if progress is None else not progress  # None: tqdm shows the bar only on a terminal
    lead, ema = fabric.is_global_zero, works.ema
    if on_resume and state.curve and lead:
        on_resume([dict(row) for row in state.curve])
    with plain_failures(settings), narrow_maps_contiguous(works.detector):
        for epoch in range(state.epoch, settings.epochs):
            row = one_pass(works, state, epoch, disable=silent if lead else True)
            due = (epoch + 1) % settings.val_every == 0 or epoch + 1 == settings.epochs
            if evaluate and due and lead:
                state.metrics = evaluate(ema.detector, epoch + 1 == settings.epochs)
                row |= {k: v for k, v in state.metrics.items() if "/" not in k}
            state.close_epoch(row)
            if on_epoch and lead:
                on_epoch(dict(state.curve[-1]))
            fabric.barrier()
    works.flat.release()
    ema.flat.release()
    return TrainResult(ema.detector, state.curve, state.metrics, state.seconds, state.step)


def _set_up(
    detector: nn.Module,
    train_loader: DataLoader,
    settings: TrainSettings,
    seed: int,
    fabric: Fabric,
    checkpoint: Path | None,
    lesson: Callable[[Any], Lesson],
    about: Mapping[str, Any],
) -> tuple[Works, State]:
    """What a training works with, and where it stands: at its checkpoint, if there is one. See `train`."""
    detector = detector.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    frozen = freeze(detector, settings.freeze)
    flat = Flat(detector, apart(detector, settings))
    scaler = getattr(fabric._precision, "scaler", None)  # a fused step unscales too late for clipping
    optimizer = build_optimizer(flat, settings, fused=scaler is None)
    learning = lesson(detector)
    model, optimizer = fabric.setup(learning.module, optimizer)
    loader = shard(train_loader, fabric)
    schedule = Schedule(settings, math.ceil(len(loader) / settings.accumulate))
    ema = Ema(detector, flat, settings.ema_decay, settings.ema_tau or min(2000.0, schedule.steps / 2))
    identity = {
        **settings.model_dump(exclude={"checkpoint_seconds", "workers"}),
        "seed": seed,
        **about,
    }
    state = State(detector, ema, optimizer, fabric, checkpoint, settings, identity)
    state.load()
    works = Works(settings, fabric, detector, model, learning, loader, optimizer, schedule, flat, ema, frozen)
    return works, state


@dataclass(frozen=True)
class Works:
    """What a pass over the images works with. frozen: batch norms that stay in eval mode."""

    settings: TrainSettings
    fabric: Fabric
    detector: nn.Module
    model: Any
    learning: Lesson
    loader: Any
    optimizer: Any
    schedule: Schedule
    flat: Flat
    ema: Ema
    frozen: list[nn.Module]


def one_pass(works: Works, state: State, epoch: int, *, disable: bool | None) -> Row:
    """Train on all images once; returns epoch, losses and learning rate. disable: the bar."""
    settings, fabric, model, optimizer = works.settings, works.fabric, works.model, works.optimizer
    batches, clip = len(works.loader), settings.clip
    model.train()
    begin: Any = getattr(works.detector, "begin_epoch", None)
    if begin is not None:
        begin(epoch, settings.epochs)
    orders = works.learning.begin(epoch + 1)
    if orders:
        reorder(works.detector, works.flat, works.ema, optimizer, orders)
    for norm in works.frozen:
        norm.eval()
    set_epoch(works.loader, epoch)
    watch, labels = Watch(epoch), 0
    bar = tqdm(works.loader, f"epoch {epoch + 1}/{settings.epochs}", leave=False, disable=disable)
    for i, batch in enumerate(bar):
        # The last window of an epoch may be shorter: its mean is over what it has.
        window = min(settings.accumulate, batches - i // settings.accumulate * settings.accumulate)
        closes = (i + 1) % settings.accumulate == 0 or i + 1 == batches
        batch = to_device(batch, fabric.device)
        labels += len(batch.get("cls", "?"))

        found = works.learning.backward(model, batch, fabric, share=1 / window, last=closes, step=state.step)
        watch.add(*found)

        if closes:
            lr = works.schedule.apply(optimizer, state.step)
            if clip:
                fabric.clip_gradients(model, optimizer, max_norm=clip, error_if_nonfinite=False)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            works.ema.update(state.step)
            state.step += 1

    row = {"epoch": epoch + 1, **watch.close(), "lr": lr}
    if epoch == 0 and labels == 0:
        raise TrainingFailed(
            "there is not one label in the training images: nothing to learn from "
            "(boxes of 2 pixels or less at the size of training are dropped)"
        )
    return row


def seed_everything(seed: int) -> None:
    """Seed torch's generators, which initial weights and dropout draw from; data have their own."""
    torch.manual_seed(seed)


class Watch:
    """The losses of one epoch. They stay on the device and are looked at only now and then.

    rows: of each step the loss, then its parts.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch, self.checked = epoch, 0
        self.names: list[str] = []
        self.rows: list[Tensor] = []

    def add(self, loss: Tensor, parts: dict[str, Tensor]) -> None:
        self.names = list(parts)
        self.rows.append(torch.stack([loss, *parts.values()]))
        if len(self.rows) - self.checked >= CHECK_EVERY:
            self.check()

    def check(self) -> None:
        if self.checked == len(self.rows):  # an epoch may end just after a look
            return
        recent = torch.stack(self.rows[self.checked :])[:, 0]
        if not recent.isfinite().all():
            step = int((~recent.isfinite()).nonzero()[0])
            raise TrainingFailed(
                f"loss became {recent[step].item()} at epoch {self.epoch + 1}, "
                f"step {self.checked + step + 1}; try a lower train.lr, or train.precision=fp32"
            )
        self.checked = len(self.rows)

    def close(self) -> Row:
        """Mean of the loss and of each part."""
        self.check()
        loss, *parts = torch.stack(self.rows).double().mean(0).tolist()
        return {"loss": loss, **{f"loss/{k}": v for k, v in zip(self.names, parts, strict=True)}}


class State:
    """What a training has reached, and the file it survives in.

    Written only between epochs, whole or not at all. With a loader that draws from (seed, epoch), a training
    that is resumed ends with the same bits, on CPU, as one that was never stopped.
    """

    def __init__(
        self,
        detector: nn.Module,
        ema: Ema,
        optimizer: Any,
        fabric: Fabric,
        path: Path | None,
        settings: TrainSettings,
        identity: Mapping[str, Any],
    ) -> None:
        self.detector, self.ema, self.optimizer, self.fabric = detector, ema, optimizer, fabric
        self.path, self.settings = path, settings
        self.identity = dict(identity)
        self.epoch = self.step = 0
        self.curve: list[Row] = []
        self.metrics: dict[str, float] = {}
        self.before = 0.0  # seconds of earlier sittings
        self.started = self.saved = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def close_epoch(self, row: Row) -> None:
        self.epoch += 1
        self.curve.append({**row, "seconds": self.seconds})
        waited = time.monotonic() - self.saved
        if self.epoch < self.settings.epochs and waited >= self.settings.checkpoint_seconds:
            self.save()

    def save(self) -> None:
        if self.path is None or not self.fabric.is_global_zero:
            return
        content = io.BytesIO()
        torch.save(
            {
                "identity": self.identity,
                "epoch": self.epoch,
                "step": self.step,
                "detector": self.detector.state_dict(),
                "ema": self.ema.detector.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self._scaler.state_dict() if self._scaler else None,
                "rng": torch.get_rng_state(),
                "rng_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                "curve": self.curve,
                "metrics": self.metrics,
                "seconds": self.seconds,
            },
            content,
        )
        write_bytes(self.path, content.getvalue())
        self.saved = time.monotonic()

    def load(self) -> None:
        if self.path is None or not self.path.exists():
            return
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(
                f"{self.path} is not a checkpoint that can be read: {error}".splitlines()[0]
            ) from error
        before = LATER | saved["identity"]
        changed = [k for k, v in self.identity.items() if before.get(k) != v]
        if changed:
            k = changed[0]
            raise UserError(
                f"{self.path} was written by another training: {k} was {before.get(k)!r}, "
                f"now it is {self.identity[k]!r}"
            )
        self.detector.load_state_dict(saved["detector"])
        self.ema.detector.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self._scaler and saved["scaler"]:
            self._scaler.load_state_dict(saved["scaler"])
        torch.set_rng_state(saved["rng"])
        if saved["rng_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(saved["rng_cuda"])
        self.epoch, self.step = saved["epoch"], saved["step"]
        self.curve, self.metrics, self.before = saved["curve"], saved["metrics"], saved["seconds"]

    @property
    def _scaler(self) -> Any:
        return getattr(self.fabric._precision, "scaler", None)


def shard(loader: DataLoader, fabric: Fabric) -> DataLoader:
    """The part of `loader` that this device trains on: all of it, or every n-th sample."""
    if fabric.world_size == 1:
        return loader
    sampler, size = Shard(loader.sampler, fabric.global_rank, fabric.world_size), loader.batch_size or 1
    return DataLoader(
        loader.dataset,
        batch_size=size,
        sampler=sampler,
        drop_last=len(sampler) > size and len(sampler) % size == 1,  # batch norm wants two images
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
    )


class Shard(Sampler):
    """Samples rank, rank + n, rank + 2n, ... of another sampler; a few of the first ones again where they do
    not divide, so that all devices take as many steps."""

    def __init__(self, sampler: Any, rank: int, n: int) -> None:
        self.sampler, self.rank, self.n = sampler, rank, n

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.n)

    def __iter__(self) -> Iterator[Any]:
        order = list(self.sampler)
        order += order[: len(self) * self.n - len(order)]
        return iter(order[self.rank :: self.n])

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell whatever draws the order and the augmentation which epoch it is."""
    for part in (loader, getattr(loader, "dataset", None), getattr(loader, "sampler", None)):
        if part is not None and hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


@contextmanager
def plain_failures(settings: TrainSettings) -> Iterator[None]:
    """Out of memory, on whichever device, as TrainingFailed with what to do about it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not (
            "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
        ):
            raise
        raise TrainingFailed(
            f"out of memory with train.batch={settings.batch}; try train.batch={max(1, settings.batch // 2)} "
            f"train.accumulate={settings.accumulate * 2}, or a smaller imgsz"
        ) from error
