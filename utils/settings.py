"""How a detector is trained: the `train:` block of an experiment file, checked. Light: imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainSettings(BaseModel):
    """The `train:` block. The defaults suit short trainings from scratch on small data."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(6, ge=1, description="passes over the training images")
    batch: int = Field(16, ge=1, description="images per step and device")
    optimizer: Literal["AdamW", "SGD"] = Field("AdamW", description="SGD is with Nesterov momentum")
    lr: float = Field(0.006, gt=0, description="peak learning rate")
    lr_final: float = Field(0.01, ge=0, le=1, description="the last step runs at lr * lr_final")
    schedule: Literal["linear", "cosine"] = Field("linear", description="how lr falls after the warm-up")
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
    hyp: str = Field("data/hyps/default.yaml", description="file of augmentation settings and loss gains")
    workers: int | None = Field(None, ge=0, description="loader processes; by default 0 on CPU, 4 on CUDA")
    val_every: int = Field(1, ge=1, description="validate every so many epochs, and always after the last")
    checkpoint_seconds: float = Field(
        60.0,
        ge=0,
        description="write a checkpoint after the first epoch that ends so long after the last one",
    )
