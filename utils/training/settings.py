"""How a detector is trained: the `train:` block of an experiment file, checked. Light: imports no torch.

`Distil` says what the networks of a supernet learn from each other and from other teachers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from utils.errors import unknown

# `train.hyp: auto`: the epochs from which on a file of data/hyps/ is used. Augmentation pays off only where
# images are seen often: BCCD at 160 px came to .290 without and .283 with a light mix in 12 epochs, at 96 px
# to .361 without and .440 with scratch-low in 60; without it a supernet of BCCD overfits after 22 (LOG.md).
AUTO = "auto"
AUGMENTATION = {1: "default.yaml", 25: "scratch-low.yaml", 200: "scratch-med.yaml"}


def augmentation_by_length() -> str:
    """`default.yaml (no augmentation), from 25 epochs on scratch-low.yaml, ...`."""
    first, *later = AUGMENTATION.items()
    return ", ".join([f"{first[1]} (none)", *(f"from {n} epochs on {name}" for n, name in later)])


# Raccoon, 160 px, 30 epochs from COCO weights: .418 at the full rate, which unlearns them, .528 at a fifth.
INHERITED_LR = 0.2


LATER = {"recover": 0.0, "mimic": 0.0}  # what runs that never heard of it go on with


class TrainSettings(BaseModel):
    """The `train:` block. The defaults suit short trainings from scratch on small data."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(6, ge=1, le=1_000_000, description="passes over the training images")
    batch: int = Field(16, ge=1, le=65_536, description="images per step and device")
    optimizer: Literal["AdamW", "SGD"] = Field("AdamW", description="SGD is with Nesterov momentum")
    lr: float = Field(0.006, gt=0, description="peak learning rate")
    backbone_lr: float | None = Field(
        None, gt=0, description="peak learning rate of the backbone; by default lr, as all others"
    )
    inherited_lr: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of lr for what comes from a parent or from `weights`; what is new learns at lr. "
        f"By default {INHERITED_LR}, or where backbone_lr is given 1",
    )
    recover: float = Field(
        0.5,
        ge=0,
        le=10,
        description="where `weights` are given: before its training a network that was cut learns, without "
        "labels, to give the maps that it gave, for so many times the epochs of the training; 0 = off",
    )
    mimic: float = Field(
        0.0,
        ge=0,
        description="where `weights` are given: weight of a loss that holds a network's maps near those that "
        "the weights gave in theirs while it is trained, falling to 0 with the epochs. For images like those "
        "that the weights have seen; 5 is much",
    )
    freeze: list[str] = Field(
        [], description="parts that are not trained: backbone, neck, head; their batch norms stand still too"
    )
    lr_final: float = Field(0.01, ge=0, le=1, description="the last step runs at lr * lr_final")
    lr_floor: float = Field(
        0.0, ge=0, le=1, description="the schedule ends in a constant lr * lr_floor; supernets like 0.05"
    )
    schedule: str | dict[str, Any] = Field(
        "linear",
        description="how lr falls after the warm-up: linear or cosine, from step to step; or by name one of "
        "torch.optim.lr_scheduler with its options, from epoch to epoch and without lr_final: "
        "{name: CosineAnnealingWarmRestarts, T_0: 80}",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum, or beta1 of AdamW")
    weight_decay: float = Field(5e-4, ge=0, description="only on weights with two or more dimensions")
    warmup_epochs: float = Field(
        2.0, ge=0, description="lr rises from 0 over so many epochs, half of the run at most"
    )
    warmup_bias_lr: float = Field(
        0.1,
        ge=0,
        description="the lr of biases starts here and falls to the schedule during the warm-up: a detection "
        "head starts with far too many objects, and its biases have to unlearn that quickly",
    )
    ema_decay: float = Field(
        0.9999, ge=0, lt=1, description="limit of the weight average's decay; 0 = no averaging"
    )
    ema_tau: float | None = Field(
        None,
        gt=0,
        description="steps in which the decay of the weight average grows; by default half of the run, "
        "2000 at most. A fixed 2000 averages nothing in a short run",
    )
    accumulate: int = Field(1, ge=1, description="batches whose gradients make one step")
    clip: float = Field(
        1.0, ge=0, description="largest norm of the gradient of the loss per image; 0 = no clipping"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on CUDA, and on CPUs with AMX when the network is big enough to gain"
    )
    hyp: str = Field(
        AUTO,
        description="file of augmentation settings and loss gains; auto: the one that the data's card names "
        f"(`hyp: FILE`), else one of data/hyps/ by the epochs of this training: {augmentation_by_length()}",
    )
    workers: int | None = Field(
        None, ge=0, le=1024, description="loader processes; by default 0 on CPU, 4 on CUDA"
    )
    val_every: int = Field(1, ge=1, description="validate every so many epochs, and always after the last")
    checkpoint_seconds: float = Field(
        60.0,
        ge=0,
        description="write a checkpoint after the first epoch that ends so long after the last one",
    )

    @field_validator("schedule", mode="before")
    @classmethod
    def _schedules_there_are(cls, schedule: Any) -> Any:
        if schedule not in ("linear", "cosine"):
            from utils.training.schedules import check  # imports torch

            if not isinstance(schedule, str | dict):
                raise ValueError("a name is needed, or {name: ..., and options}")
            check(schedule)
        return schedule

    @field_validator("freeze")
    @classmethod
    def _parts_there_are(cls, parts: list[str]) -> list[str]:
        for part in parts:
            if part not in ("backbone", "neck", "head"):
                raise unknown("part", part, ("backbone", "neck", "head"))
        return parts

    @model_validator(mode="after")
    def _one_rate_each(self) -> TrainSettings:
        if self.backbone_lr is not None and self.inherited_lr is not None:
            raise ValueError("backbone_lr and inherited_lr say two things of one weight: give one of them")
        return self

    @model_serializer(mode="wrap")
    def _what_is_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what came later and is not used: runs that never heard of it go on."""
        unused: dict[str, Any] = {"backbone_lr": None, "inherited_lr": None, "freeze": []}
        return {k: v for k, v in dump(self).items() if k not in unused or v != unused[k]}

    @property
    def evenly(self) -> TrainSettings:
        """The same, but what is inherited learns as fast as all else, unless these settings say otherwise."""
        said = self.inherited_lr is not None or self.backbone_lr is not None
        return self if said else self.model_copy(update={"inherited_lr": 1.0})

    @property
    def hyp_file(self) -> str:
        """The file that `hyp` stands for."""
        if self.hyp != AUTO:
            return self.hyp
        return f"data/hyps/{next(name for n, name in reversed(AUGMENTATION.items()) if n <= self.epochs)}"

    @property
    def augmentation(self) -> str:
        """Which augmentation this training has, and why, for people."""
        if self.hyp != AUTO:
            return f"augmentation: {self.hyp}"
        return (
            f"augmentation: {self.hyp_file}, chosen for {self.epochs} epochs (train.hyp=auto: "
            f"{augmentation_by_length()}; train.hyp=FILE for another)"
        )


# What the networks of a supernet learn from teachers ------------------------------------------------------

MAX = "max"  # the name of the teacher that every supernet has: its own largest net


class _Job(BaseModel):
    """Something to learn from one teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    teacher: str
    weight: float = Field(1.0, gt=0, description="of this loss, beside the others")
    warm_up: int = Field(0, ge=0, description="optimizer steps in which the weight grows to its full value")

    def weight_at(self, step: int) -> float:
        """The weight in an optimizer step, counted from 0: warm-up is linear, its first step counts."""
        return self.weight * min(1.0, (step + 1) / self.warm_up) if self.warm_up else self.weight


class Outputs(_Job):
    """Learn the raw output of a teacher from a file: students and the largest net do."""

    teacher: str = Field(description="one of `teachers`; students' learning from max is `weight` of distil")


class Mimic(_Job):
    """Learn to have a teacher's features: squared distance of each image's features, divided by their norm,
    mean over images and layers (United-Perception's mimic). Students do; the largest net too, from others."""

    layers: list[str] = Field(min_length=1, description="as `named_modules` of the network calls them")
    teacher: str = Field(MAX, description="max, or one of `teachers`")
    teacher_layers: list[str] | None = Field(None, description="one for each of `layers`; default the same")
    weight: float = Field(0.5, gt=0, description="of this loss, beside the others")

    @model_validator(mode="after")
    def _as_many(self) -> Mimic:
        if self.teacher_layers is not None and len(self.teacher_layers) != len(self.layers):
            raise ValueError(
                f"teacher_layers should name one layer for each of layers, {len(self.layers)}, "
                f"not {len(self.teacher_layers)}"
            )
        return self

    @property
    def pairs(self) -> Iterator[tuple[str, str]]:
        """(layer of the student, layer of the teacher)."""
        return zip(self.layers, self.teacher_layers or self.layers, strict=True)


class Final(BaseModel):
    """A teacher made of an architecture file and weights: of that very network, or of a supernet, of which
    they are cut out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arch: str = Field(description="architecture file: top/1.json of a run, or one's own")
    weights: str = Field(description="weight file")


class Distil(BaseModel):
    """The `distil:` block: what students, all nets of a supernet's step but the largest, learn from whom.

    distil: {weight: 1, labels: 0.5}                  # in-place distillation, the common case
    distil:
      labels: 0                                       # only the largest net sees the ground truth
      options: {divergence: alpha}
      mimic: [{layers: [neck.further.0], weight: 0.5}]
      teachers: {big: runs/big/best.pt}             # or {big: {arch: top/1.json, weights: FILE}}
      outputs: [{teacher: big, weight: 0.3, warm_up: 500}]
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weight: float = Field(
        1.0, ge=0, description="of what students learn from the largest net's raw output; 0 = nothing"
    )
    labels: float = Field(
        1.0,
        ge=0,
        description="weight of the ground truth for students; BigNAS has 0, detectors do better with some",
    )
    options: dict[str, Any] = Field({}, description="of the network's own distil: {divergence: alpha}")
    teachers: dict[str, str | Final] = Field(
        {},
        description="further teachers: name -> weight file that says its architecture; where it does not, "
        "or is a supernet's, {arch: top/1.json, weights: FILE}",
    )
    outputs: list[Outputs] = Field([], description="whose raw outputs are learnt, beside the largest net's")
    mimic: list[Mimic] = Field([], description="whose features are learnt")

    @model_validator(mode="after")
    def _fits_together(self) -> Distil:
        if self.weight + self.labels == 0 and not self.outputs:
            raise ValueError(
                "students need something to learn from: weight and labels are both 0, and outputs is empty"
            )
        if MAX in self.teachers:
            raise ValueError(
                "the teacher 'max' is the supernet's own largest net; give the file another name"
            )
        for job in self.outputs:
            if job.teacher == MAX:
                raise ValueError("what is learnt from max's output is distil.weight; outputs are others'")
        for name in (job.teacher for job in (*self.outputs, *self.mimic)):
            if name != MAX and name not in self.teachers:
                raise unknown("teacher", name, (MAX, *self.teachers))
        for name in self.teachers:
            if all(job.teacher != name for job in (*self.outputs, *self.mimic)):
                raise ValueError(
                    f"nothing is learnt from the teacher {name!r}; add outputs: [{{teacher: {name}}}]"
                )
        return self
