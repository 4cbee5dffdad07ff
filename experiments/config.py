"""One experiment = one YAML file, checked strictly before anything heavy is imported.

`load_experiment("experiments/x.yaml", ["train.epochs=3", "data=mine.yaml"])` gives a frozen `Experiment`,
or raises `UserError` with one line that names the key, the value and the nearest thing we know.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from data.hyp import hyp_of, load_hyp
from utils.errors import Malformed, UserError, did_you_mean, unknown
from utils.files import write_text
from utils.offline import cache_dir
from utils.sides import Sides, pair, parse_sides, read_sides
from utils.steps import STEPS
from utils.training.settings import AUTO, MAX, Distil, Final, TrainSettings
from utils.yaml_text import load_yaml, parse_yaml

ROOT = Path(__file__).resolve().parent.parent


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NameAlone(Strict):
    """`evolution` is short for `{name: evolution}`."""

    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Named(NameAlone):
    """A name with options that others know and check: `{name: evolution, sample_size: 3}`."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Sampling(NameAlone):
    """How random archs are drawn while a supernet trains (models/sampling.py): `uniform`, or
    `{name: best_of, k: 3}`."""

    name: Literal["uniform", "stratified", "best_of"] = Field(
        "uniform", description="uniform, stratified (by cost) or best_of (the lowest loss of k)"
    )
    bins: int = Field(16, ge=1, description="of the cost, one as likely as the other")
    pool: int = Field(2000, ge=1, description="archs to fill them with")
    key: Literal["gflops", "params_m"] = Field("gflops", description="the cost that is meant")
    k: int = Field(3, ge=1, description="archs that best_of takes the one of lowest loss from")
    worst: bool = Field(False, description="the one of highest loss instead")

    @model_validator(mode="after")
    def _ignores_nothing(self) -> Self:
        beyond = {"uniform": ["bins", "pool", "key", "k", "worst"], "stratified": ["k", "worst"]}
        for key in beyond.get(self.name, []):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{self.name} sampling has no {key}")
        return self


class EarlyStop(Strict):
    """`search.early_stop`: which trials end before their last epoch (experiments/early_stop.py). `median` is
    short for `{rule: median}`."""

    rule: Literal["median"] = Field(
        "median", description="below the median of what finished trials had reached by that epoch"
    )
    after: int = Field(2, ge=1, description="epochs that every trial is trained for")
    among: Literal["cheaper", "all"] = Field(
        "cheaper", description="whom a trial is compared with: those that cost no more, or all"
    )
    least: int = Field(3, ge=1, description="finished trials to compare with, or nobody is stopped")

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"rule": value} if isinstance(value, str) else value


LEAST_TIMED = 6  # archs that a prediction of latencies is fitted to


class TargetSettings(Strict):
    """The machine that networks are for, and how files are measured on it. `pi@board` is short for
    `{host: pi@board}`."""

    host: str | None = Field(None, description="as ssh takes it, without a password; null: this machine")
    python: str = Field("python3", description="the host's, with numpy and onnxruntime (or openvino)")
    threads: int = Field(1, ge=1, le=1024, description="of the runtime")
    seconds: float = Field(4.0, gt=0, le=600, description="that each file is timed")
    predict: int = Field(
        20,
        ge=0,
        le=20,
        description="archs that are timed before the search; the latency of all others is predicted from "
        "them, and finalists are timed themselves. 0: each arch is timed",
    )
    calibration: int = Field(
        64, ge=1, le=100_000, description="images of search_train that INT8's ranges are taken from"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"host": value} if isinstance(value, str) else value

    @field_validator("predict")
    @classmethod
    def _enough_for_a_fit(cls, value: int) -> int:
        if 0 < value < LEAST_TIMED:
            raise ValueError(f"a prediction needs {LEAST_TIMED} or more; 0 times each arch")
        return value

    @field_validator("host")
    @classmethod
    def _is_a_host(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[^\s-]\S*", value):
            raise ValueError("a host is needed, like pi@board")
        return value


def target_settings(**keys: Any) -> TargetSettings:
    """A target of these keys. UserError for one that cannot be."""
    try:
        return TargetSettings(**keys)
    except ValidationError as error:
        raise _one_line(error, "target") from None


class SearchSettings(Strict):
    """The `search:` block."""

    strategy: Named = Field(
        Named(name="evolution"), description="random, evolution, rl, tpe, grid, pareto, predictor or streams"
    )
    engine: Literal["nni", "inline"] = Field(
        "nni", description="nni: one process a trial; inline: in process"
    )
    max_trials: int = Field(12, ge=1, le=10_000_000, description="trials to finish, the baseline among them")
    max_seconds: float | None = Field(None, gt=0, description="start no trial after so much wall time")
    max_trial_seconds: float | None = Field(None, gt=0, description="a trial that takes longer has failed")
    concurrency: int = Field(1, ge=1, le=1024, description="trials at a time")
    evaluator: Named | None = Field(
        None, description="a Python file of yours whose `evaluate` is a trial (experiments/own.py)"
    )
    reward: Named = Field(
        Named(name="map"),
        description="map (or accuracy), weighted_product, linear, or a Python file of yours with a function "
        "reward(metrics, ...)",
    )
    limits: dict[str, str] = Field({}, description='hard limits, e.g. {gflops: "<= 4"}')
    objectives: dict[str, Literal["max", "min"]] = Field(
        {"map50_95": "max", "gflops": "min"},
        description="of the Pareto front, and of the strategies pareto and predictor",
    )
    measure: list[str] = Field(
        [],
        description="what to measure beside params_m and gflops: latency_ms; drift, how far an arch is from "
        "`weights` before training (0: as it is, 1: nothing is left); of the exported file onnx_ms, "
        "int8_ms, openvino_ms, openvino_int8_ms, and its quality: onnx_map50_95, int8_map50_95, ...",
    )
    target: TargetSettings = Field(
        TargetSettings(), description="the machine whose onnx_ms, int8_ms, ... are meant: a host, or a block"
    )
    top_k: int = Field(3, ge=1, le=100_000, description="architectures exported, with their weights")
    top: Literal["reward", "front"] = Field(
        "reward",
        description="which those are: of the best reward, or of the front of `objectives`, spread over it",
    )
    inherit: Literal["parent"] | None = Field(
        None,
        description="parent: a child of evolution or pareto starts from its first parent's trained weights; "
        "the weights of all trials are kept then",
    )
    screen: int | None = Field(
        None,
        ge=0,
        le=1000,
        description="so many archs for each trial are looked at before a search that starts from `weights`, "
        "which begins with those that drift least from them for their cost (pareto, evolution, predictor); "
        "by default 4",
    )
    early_stop: EarlyStop | None = Field(
        None,
        description="ends hopeless trials in time: median, or {rule: median, after: 2}; off: every trial is "
        "trained to its end",
    )
    screen_to: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="spread the archs that a screened search begins with evenly over the GFLOPs from the "
        "unsearched network's down to this share of them, and the sides of `resolution` over them; null: "
        "those that drift least",
    )
    baseline: bool = Field(True, description="run the unsearched default of the space as trial 0")
    val_fraction: float = Field(0.2, gt=0, lt=1, description="share of train the search is scored on")
    data_portion: list[float] | None = Field(
        None,
        description="val_fraction as aw_nas has it, [0, 0.9, 0.1]: shares of train that nobody sees (a "
        "surrogate's, there), that weights learn from, and that the search is scored on",
    )
    training_service: dict[str, Any] | None = Field(
        None,
        description="{platform: local, gpu_indices: [0, 1]}, or remote with a machine_list as NNI takes it",
    )

    @model_validator(mode="before")
    @classmethod
    def _last_portion(cls, value: Any) -> Any:
        """`val_fraction` is the last of `data_portion`, where that alone is given."""
        given = value.get("data_portion") if isinstance(value, Mapping) else None
        last = given[-1] if isinstance(given, list) and given else None
        fits = isinstance(last, int | float) and 0 < last < 1
        return {"val_fraction": last, **value} if fits else value

    @field_validator("early_stop", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return None if value is False or value == "off" else value  # YAML reads `off` as false

    @field_validator("data_portion")
    @classmethod
    def _portions(cls, value: list[float] | None, info: ValidationInfo) -> list[float] | None:
        if value is None:
            return value
        if len(value) != 3 or min(value) < 0 or not value[1] or not value[2]:
            raise ValueError(
                "three shares of train are needed: [unseen, weights, search], the last two above 0"
            )
        if sum(value) > 1 + 1e-9:
            raise ValueError(f"the shares sum to {sum(value):g}, and 1 is all there is")
        if info.data.get("val_fraction", value[2]) != value[2]:
            raise ValueError(f"val_fraction is {info.data['val_fraction']}: give one of the two")
        return value

    @model_serializer(mode="wrap")
    def _what_is_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what was not given of later keys: runs that never heard of them go on."""
        unsaid = {"data_portion": None, "early_stop": None, "target": TargetSettings().model_dump()}
        return {k: v for k, v in dump(self).items() if k not in unsaid or v != unsaid[k]}


class Phase(Strict):
    """One choice of `supernet.schedule`."""

    boundary: list[int] = Field(min_length=1, description="epochs, from 1, in which a phase begins")
    value: list[list[int | float | str]] = Field(description="what may be drawn in each phase")


class SupernetSettings(Strict):
    """The `supernet:` block; where it stands, architectures inherit their weights instead of training them.

    The supernet is trained by the `train:` block, on search_train.
    """

    subnets: list[Literal["max", "random", "min"]] = Field(
        ["max", "random", "random", "min"], description="the archs of one step, on one batch; max comes first"
    )
    sampling: Sampling = Field(Sampling(), description="how random ones are drawn")
    distil: Distil = Field(Distil(), description="what the others learn from the largest, and from teachers")
    devices: int = Field(1, ge=1, description="GPUs (or processes, on a CPU) that train it data-parallel")
    calibration: int = Field(
        256, ge=2, description="training images that an arch's batch norm is re-estimated on"
    )

    schedule: dict[str, Phase] = Field(
        {},
        description="what is drawn when: {backbone.kernel_size: {boundary: [1, 81], value: [[7], [7, 5]]}}",
    )

    @field_validator("subnets")
    @classmethod
    def _max_comes_first(cls, value: list[str]) -> list[str]:
        if not value or "max" in value[1:]:
            raise ValueError("max should come first, and only there: it teaches the others")
        return value

    @model_validator(mode="after")
    def _somebody_teaches(self) -> Self:
        learnt = self.distil.weight or any(job.teacher == MAX for job in self.distil.mimic)
        if self.subnets[0] != "max" and learnt:
            raise ValueError(
                "max should come first: it teaches the others (nobody does with distil.weight=0)"
            )
        if self.schedule and self.sampling.name != "uniform":
            raise ValueError("a schedule needs sampling: uniform")
        return self

    @model_serializer(mode="wrap")
    def _what_is_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a schedule where there is none: runs that never heard of it go on."""
        return {k: v for k, v in dump(self).items() if k != "schedule" or v}


class PretrainSettings(Strict):
    """The `pretrain:` block: the backbone learns to classify before it is part of a detector (DetNAS, steps 1
    and 4 of 1903.10979). Labels are smoothed, and lr falls to zero."""

    data: str | None = Field(
        None,
        description="an ImageFolder, or any data of objects, to be cut out; null: the objects of `data`",
    )
    imgsz: int | None = Field(
        None,
        ge=32,
        le=16_384,
        description="side of the square pictures; null: about half of the experiment's",
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of a label that all classes get")
    last_channel: int = Field(0, ge=0, description="of a 1x1 convolution before the classes; 0: none")
    alone: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="share of the epochs in which only the unsearched path learns, before all paths begin as "
        "it: larger kernels with its own as their middle; 0: none",
    )
    winners: bool = Field(
        False, description="whether what is retrained after the search begins with such a training of its own"
    )
    train: dict[str, Any] = Field({}, description="what it changes of train: {epochs: 30, lr: 0.01}")


class SampleSettings(Strict):
    """The `sample:` and `sample_accuracy:` blocks: archs whose cost, or whose accuracy too, is looked at."""

    n: int = Field(10_000, ge=1, le=10_000_000, description="how many architectures")
    gflops: tuple[float, float] | None = Field(None, description="only archs between these, both included")
    traverse: bool = Field(False, description="walk through the space in even strides instead of drawing")

    @field_validator("gflops")
    @classmethod
    def _is_a_range(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] <= value[1]:
            raise ValueError("two costs are needed, the smaller one first, none below 0")
        return value


class SampleAccuracySettings(SampleSettings):
    n: int = Field(200, ge=1, le=10_000_000, description="how many architectures")


class ParallelSettings(Strict):
    """The `parallel:` block."""

    max_trials: int = Field(6, ge=1, le=100_000, description="trials beyond those of the search")


class ReignitionSettings(Strict):
    """The `reignition:` block. How the backbones are trained says the block `pretrain:`."""

    patience: int = Field(
        2, ge=0, description="generations without a trial that came onto the front; 0: without waiting"
    )
    times: int = Field(2, ge=1, le=2, description="at most; the second one only if the front stalls again")
    max_trials: int = Field(6, ge=1, le=100_000, description="further trials of the search each time")


class Seeded(Strict):
    """Each arch is trained once with each seed."""

    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field(
        [0, 1], min_length=1, description="of the trainings; each arch once with each"
    )

    @field_validator("seeds")
    @classmethod
    def _differ(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value):
            raise ValueError("each seed once: the same one gives the same training")
        return value


class RankSettings(Seeded):
    """The `rank:` block: archs trained from scratch, to see whether the supernet orders them alike."""

    n: int = Field(15, ge=3, le=100_000, description="archs, spread over the space's costs")
    train: dict[str, Any] = Field({}, description="what these trainings change of train: {epochs: 6}")


Control = Literal["winner", "serial", "unsearched", "smallest", "largest", "random", "random_search"]


class ControlsSettings(Seeded):
    """The `controls:` block: what the winner has to beat, trained exactly as the winner is."""

    which: list[Control] = Field(
        ["winner", "unsearched", "random", "random_search"],
        min_length=1,
        description="winner; serial (the best before the step parallel); unsearched, smallest, largest of "
        "the space; random, at the winner's cost; random_search, the winner of one with as many trials",
    )
    by: Literal["finetune", "retrain"] | None = Field(
        None,
        description="the step whose start and schedule all of them get; null: finetune with a supernet, else "
        "retrain",
    )
    random: int = Field(1, ge=1, le=1000, description="how many archs are drawn at the winner's cost")
    within: float = Field(0.05, gt=0, lt=1, description="share by which their cost may differ from it")


OF_TRIALS = ("trial", "reignited")  # starts of retrainings that each trial has of its own
SCRATCH = "scratch"  # the start of a member of the family that shows what trained weights are worth


class Member(Strict):
    """One of the family: a detector YAML, or `{space: ..., weights: ...}` with a start of its own."""

    space: str = Field(description="the detector YAML")
    weights: str | None = Field(
        None, description="its own start, or `scratch`; null: the experiment's `weights`"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"space": value} if isinstance(value, str) else value


def _imgsz(given: Any) -> Sides:
    imgsz = parse_sides(given) if isinstance(given, str) else read_sides(given)
    for side in pair(imgsz):
        if side < 32:
            raise ValueError("input should be greater than or equal to 32")
        if side > 16_384:
            raise ValueError("input should be less than or equal to 16384")
        if side % 4:  # the space knows more: experiments/inputs.py
            raise ValueError(f"a multiple of 4 is needed, the nearest is {max(32, round(side / 4) * 4)}")
    return imgsz


# Written as it is: pydantic makes a list of a tuple, then warns that the list is none.
Imgsz = Annotated[Sides, PlainValidator(_imgsz), PlainSerializer(lambda sides: sides, return_type=Any)]


class Experiment(Strict):
    """An experiment file with its overrides applied; paths are absolute."""

    name: str = Field(description="the run's folder below runs/")
    space: str = Field(
        description="detector YAML with its choices, or a trained Ultralytics detector, best.pt, to be made "
        "smaller: weights, data and imgsz are its own then where nothing else is said"
    )
    data: str = Field("data/digits.yaml", description="YOLO YAML, VOC folder or COCO JSON")
    weights: str | None = Field(
        None,
        description="trained weights that every training starts from: a file (.pt, .pth, .safetensors), or a "
        "name that Ultralytics publishes, e.g. yolov5nu.pt; null: from scratch",
    )
    refit: int = Field(
        64,
        ge=0,
        description="training images on which the layers of a cut network are fitted to what they gave "
        "before the cut, by least squares, before it is trained; 0: not",
    )
    imgsz: Imgsz = Field(
        64,
        description="side of the square input, pixels, or [height, width], also 384x640; multiples of the "
        "network's stride, 32 for most",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1")
    seed: int = Field(
        0, ge=0, lt=2**63, description="of weights, splits, the order of images and the strategy's choices"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads of a trial; default cores / concurrency"
    )
    train: TrainSettings = Field(TrainSettings(), description="how a trial, or the supernet, is trained")
    search: SearchSettings = Field(SearchSettings(), description="what is looked for, how, and how long")
    supernet: SupernetSettings | None = Field(None, description="train one set of weights for all archs")
    pretrain: PretrainSettings | None = Field(
        None, description="train the backbone as a classifier first: step pretrain"
    )
    sample: SampleSettings = Field(SampleSettings(), description="archs whose costs are looked at")
    sample_accuracy: SampleAccuracySettings = Field(
        SampleAccuracySettings(), description="slices that are scored before the search"
    )
    reignition: ReignitionSettings = Field(
        ReignitionSettings(), description="backbones of a front that stalls, trained as classifiers"
    )
    parallel: ParallelSettings = Field(
        ParallelSettings(), description="serial codes with extra streams that are trained after the search"
    )
    rank: RankSettings = Field(
        RankSettings(), description="archs trained from scratch, to be compared with their slices"
    )
    controls: ControlsSettings = Field(
        ControlsSettings(), description="what the winner has to beat, trained as the winner is"
    )
    retrain: dict[str, Any] = Field(
        {},
        description="what the retrain step changes of train: {epochs: 50}; start: trial begins with what "
        "each trial has learnt, reignited with that and a backbone that classifies, null as all trainings do",
    )
    finetune: dict[str, Any] = Field(
        {}, description="what the finetune step changes of a tenth of train's epochs at a tenth of its lr"
    )
    family: list[Member] = Field(
        [],
        description="detector YAMLs that the baselines step trains, unsearched; {space: ..., weights: ...} "
        "where one starts from weights of its own",
    )
    loggers: list[str] = Field(
        [], description="beside the log.csv of each training: tensorboard, wandb, mlflow"
    )
    steps: list[str] = Field(["search"], description=f"in this order: {', '.join(STEPS)}")

    @field_validator("device", "name", mode="before")
    @classmethod
    def _number_is_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, value: str) -> str:
        if not re.fullmatch(r"[\w.-]+", value) or value.startswith("."):
            raise ValueError("use letters, digits, '_', '-' and '.' only: it names a folder below runs/")
        return value


# Blocks that may be a name alone, and where they stand.
NAMED: dict[str, type[Strict]] = {
    "strategy": SearchSettings,
    "reward": SearchSettings,
    "evaluator": SearchSettings,
    "sampling": SupernetSettings,
}


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read, override and check an experiment file.

    overrides: `key=value` with dotted keys and YAML values, e.g. `search.limits.gflops="<= 2"`.
    Relative paths inside are looked up from the current folder, then from the project's.
    Raises UserError: no such file, not YAML, an unknown key, a value that does not fit.
    """
    raw = read_yaml_mapping(Path(path), "experiment")
    for key, kind in (("backbone", "space"), ("names", "data")):
        if key in raw:
            raise UserError(f"{path} is no experiment; give it to one: EXPERIMENT.yaml {kind}={path}")
    return check_experiment(apply_overrides(raw, overrides), source=str(path))


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`raw` with each `dotted.key=value` put in. UserError for what is not key=value."""
    starts = [item for item in overrides if item.startswith("weights=")]
    if len(starts) > 1:
        raise UserError(f"weights are given twice: {' and '.join(starts)}; say one")
    for item in overrides:
        _set(raw, *_split_override(item))
    return raw


def check_experiment(raw: dict[str, Any], source: str) -> Experiment:
    """A raw mapping -> `Experiment`. Raises UserError for the first thing that is wrong."""
    try:
        exp = Experiment(**raw)
    except ValidationError as error:
        raise _one_line(error, source) from None
    exp = _with_files(_with_own_network(exp, source))
    if exp.search.inherit and exp.supernet is not None:
        raise UserError(
            f"{source}: search.inherit is {exp.search.inherit!r}, but slices of a supernet are not trained: "
            "drop one of the two"
        )
    if exp.search.early_stop and exp.supernet is not None:
        raise UserError(
            f"{source}: search.early_stop ends trainings, but slices of a supernet are not trained: say off"
        )
    if "pretrain" in exp.steps and exp.pretrain and exp.supernet is None:
        raise UserError(
            f"{source}: the step 'pretrain' is for a supernet's backbone, and there is no `supernet:` block; "
            "for what is retrained there is pretrain.winners"
        )
    retrain_start(exp)
    if "controls" in exp.steps:
        controls_by(exp)
    settings = (pretrain_settings, retrain_settings, finetune_settings, rank_settings)
    for train in (exp.train, *(of(exp) for of in settings)):
        load_hyp(hyp_file(exp, train))
        if train.schedule not in ("linear", "cosine"):
            from utils.training.schedules import rates  # imports torch

            rates(train.schedule, train.lr, train.epochs)
    for step in exp.steps:
        if step not in STEPS:
            raise unknown("step", step, STEPS)
        needed = STEPS[step].needs
        if needed and getattr(exp, needed) is None:
            raise UserError(f"{source}: the step {step!r} needs a `{needed}:` block")
    return exp


def _with_own_network(exp: Experiment, source: str) -> Experiment:
    """The experiment with a YAML for each space that is a checkpoint (models/yolo/checkpoint.py): what is not
    said of weights, data and imgsz is the checkpoint's. UserError for one that is no detector's."""
    if not any(_is_checkpoint(space) for space in (exp.space, *(m.space for m in exp.family))):
        return exp
    from models.yolo.checkpoint import side_of  # imports torch

    family = []
    for member in exp.family:
        if _is_checkpoint(member.space):
            space, file = _around(member.space, "family", exp.imgsz)
            member = Member(space=space, weights=member.weights or str(file.path))
        family.append(member)
    changes: dict[str, Any] = {"family": family}
    if _is_checkpoint(exp.space):
        said = exp.model_fields_set
        changes["space"], file = _around(exp.space, "space", exp.imgsz if "imgsz" in said else None)
        changes["weights"] = exp.weights or str(file.path)
        if "imgsz" not in said:
            changes["imgsz"] = side_of(file)
        if "data" not in said:
            changes["data"] = file.settings.get("data")
        for key in ("imgsz", "data"):
            if not changes.get(key, True):
                raise UserError(f"{source}: {exp.space} does not say its {key}; give {key}=...")
        if "data" in changes and not Path(str(changes["data"])).exists():
            raise UserError(
                f"{source}: the data that {exp.space} was trained on, {changes['data']}, are not here; give "
                "data=PATH"
            )
    return exp.model_copy(update=changes)


def _is_checkpoint(space: str) -> bool:
    return Path(space).suffix.lower() in (".pt", ".pth")


def _around(checkpoint: str, key: str, imgsz: Sides | None) -> tuple[str, Any]:
    """(a YAML file of the space around the network in a checkpoint, what was read of that)."""
    from models.yolo.checkpoint import space_around

    path = _find(checkpoint, key, "a detector YAML, or a trained detector's .pt,")
    text, file = space_around(path, imgsz)
    return str(_kept(text, f"{path.stem}.yaml")), file


def _kept(text: str, name: str) -> Path:
    """A file of that name and text in the cache."""
    file = cache_dir() / "spaces" / hashlib.sha256(text.encode()).hexdigest()[:12] / name
    if not file.is_file():
        write_text(file, text)
    return file


def _with_files(exp: Experiment) -> Experiment:
    """The experiment with the paths of all files that it names made absolute. UserError for an absent one."""

    def hyp(block: Mapping[str, Any], key: str) -> dict[str, Any]:
        name = block.get("hyp", AUTO)
        if name == AUTO:
            return dict(block)
        return {
            **block,
            "hyp": str(_find(str(name), f"{key}.hyp", "a YAML of augmentation settings, or auto,")),
        }

    def teacher(named: str | Final) -> str | Final:
        if isinstance(named, Final):
            return Final(arch=found(named.arch, "architecture"), weights=found(named.weights, "weight"))
        return found(named, "weight")

    def found(name: str, kind: str) -> str:
        return str(_find(name, "supernet.distil.teachers", f"a {kind} file"))

    supernet = exp.supernet
    if supernet is not None and supernet.distil.teachers:
        teachers = {name: teacher(named) for name, named in supernet.distil.teachers.items()}
        distil = supernet.distil.model_copy(update={"teachers": teachers})
        supernet = supernet.model_copy(update={"distil": distil})
    own = own_files(exp).items()
    return exp.model_copy(
        update={
            "space": str(_space(exp.space, "space")),
            "family": [
                Member(space=str(_space(m.space, "family")), weights=_weights(m.weights)) for m in exp.family
            ],
            "weights": _weights(exp.weights),
            "supernet": supernet,
            "data": str(
                _find(exp.data, "data", "a YOLO data YAML, a Pascal VOC folder or a COCO JSON", True)
            ),
            "search": with_own_files(exp, {k: _find(str(p), f"search.{k}", OWN[k]) for k, p in own}),
            "train": exp.train.model_copy(update=hyp({"hyp": exp.train.hyp}, "train")),
            "pretrain": _pretrain_files(exp.pretrain, hyp),
            "retrain": hyp(exp.retrain, "retrain"),
            "finetune": hyp(exp.finetune, "finetune"),
            "rank": exp.rank.model_copy(update={"train": hyp(exp.rank.train, "rank.train")}),
        }
    )


def _pretrain_files(
    found: PretrainSettings | None, hyp: Callable[[Mapping[str, Any], str], dict[str, Any]]
) -> PretrainSettings | None:
    if found is None:
        return None
    what = "an ImageFolder, or data of objects,"
    data = str(_find(found.data, "pretrain.data", what, True)) if found.data else None
    return found.model_copy(update={"data": data, "train": hyp(found.train, "pretrain.train")})


def _weights(name: str | None) -> str | None:
    """A weight file's path made absolute; other names are for `experiments.starts.find_weights`."""
    for base in (Path.cwd(), ROOT) if name else ():
        path = base / Path(str(name)).expanduser()
        if path.is_file():
            return str(path.resolve())
    return name


# What a user's own file in the `search:` block is for, and what its function may ask for beside its options.
OWN = {
    "evaluator": "a Python file with a function evaluate(arch, network, data, report)",
    "reward": "a reward that we know, or a Python file with a function reward(metrics)",
}
EVALUATOR_GETS = ("arch", "network", "data", "report")


def own_files(exp: Experiment) -> dict[str, Path]:
    """The Python files that the `search:` block names, by key. UserError for an evaluator that is none."""
    found = {}
    for key, what in OWN.items():
        named = getattr(exp.search, key)
        if named is not None and named.name.endswith(".py"):
            found[key] = Path(named.name)
        elif key == "evaluator" and named is not None:
            raise UserError(f"search.evaluator: {named.name!r} should be {what}")
    return found


def wanted_metrics(exp: Experiment) -> set[str]:
    """The metrics that the experiment's reward, limits, objectives or `search.measure` speak of."""
    search = exp.search
    options = search.reward.options
    named = {options.get("cost", "gflops"), options.get("metric", "")}
    return {*search.objectives, *search.limits, *search.measure, *filter(None, map(str, named))}


def with_own_files(exp: Experiment, files: Mapping[str, Path]) -> SearchSettings:
    """The `search:` block with other places of these files."""
    named = {key: getattr(exp.search, key).model_copy(update={"name": str(p)}) for key, p in files.items()}
    return exp.search.model_copy(update=named)


def pretrain_settings(exp: Experiment) -> TrainSettings:
    """`train` as `pretrain.train` changes it: lr falls to zero, all parts learn alike."""
    changes: dict[str, Any] = {"lr_final": 0.0, "warmup_bias_lr": 0.0, "freeze": []}
    changes |= {"backbone_lr": None, "inherited_lr": None}
    return changed(exp.train, changes | (exp.pretrain.train if exp.pretrain else {}), "pretrain.train")


def retrain_settings(exp: Experiment) -> TrainSettings:
    """`train` as the `retrain` block changes it."""
    changes = {key: value for key, value in exp.retrain.items() if key != "start"}
    return changed(exp.train, changes, "retrain")


def retrain_start(exp: Experiment) -> str | None:
    """`trial` or `reignited` where retraining begins with what each trial has left; None: as every training.

    UserError for a start of another name.
    """
    start = exp.retrain.get("start")
    if start not in (None, *OF_TRIALS):
        raise UserError(
            f"retrain.start is {start!r}; expected `trial`, for the weights that a trial left, `reignited`, "
            "for these with a backbone trained as a classifier, or null, for the start of every training: "
            "`weights`, or scratch"
        )
    if start == "reignited" and exp.pretrain and exp.pretrain.winners:
        raise UserError(
            "retrain.start is 'reignited' and pretrain.winners is true: both train the backbones as "
            "classifiers; drop one of the two"
        )
    return start


def controls_by(exp: Experiment) -> Literal["finetune", "retrain"]:
    """The step whose start and schedule the controls get. UserError for one that they cannot have."""
    by = exp.controls.by or ("retrain" if exp.supernet is None else "finetune")
    if by == "finetune" and exp.supernet is None:
        raise UserError(
            "controls.by is 'finetune', but there is no `supernet:` block to take slices from; expected "
            "'retrain'"
        )
    if by == "retrain" and (start := retrain_start(exp)):
        raise UserError(
            f"the step 'controls' trains networks that no trial has trained, but retrain.start is {start!r}: "
            "drop one of the two"
        )
    return by


def finetune_settings(exp: Experiment) -> TrainSettings:
    """A tenth of `train`, as the `finetune` block changes that."""
    return changed(exp.train, {**a_tenth_of(exp.train), **exp.finetune}, "finetune")


def a_tenth_of(train: TrainSettings) -> dict[str, Any]:
    """What changes for weights that are nearly trained: a tenth of the epochs, at a tenth of the lr.

    There is hardly a warm-up, and none of the biases: a trained head needs none.
    """
    epochs = math.ceil(train.epochs / 10)
    warmup = min(train.warmup_epochs, epochs / 10)
    return {"epochs": epochs, "lr": train.lr / 10, "warmup_epochs": warmup, "warmup_bias_lr": 0.0}


def rank_settings(exp: Experiment) -> TrainSettings:
    """`train` as `rank.train` changes it: how archs are trained from scratch for the comparison."""
    return changed(exp.train, exp.rank.train, "rank.train")


def hyp_file(exp: Experiment, train: TrainSettings) -> str:
    """The file of augmentation settings of a training: named, or for `auto` the data's own, or by length."""
    return (hyp_of(exp.data) if train.hyp == AUTO else None) or train.hyp_file


def augmentation(exp: Experiment, train: TrainSettings) -> str:
    """Which augmentation a training has, and why, for people."""
    own = hyp_of(exp.data) if train.hyp == AUTO else None
    if own is None:
        return train.augmentation
    return f"augmentation: {own}, which {exp.data} asks for (train.hyp=FILE for another)"


def changed(train: TrainSettings, changes: Mapping[str, Any], block: str) -> TrainSettings:
    """`train` with `changes`. Raises UserError for a key or value that does not fit."""
    for key, value in changes.items():
        if key not in TrainSettings.model_fields:
            raise unknown(f"key in {block}", key, TrainSettings.model_fields)
        try:
            TrainSettings.model_validate({key: value})
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UserError(f"{block}.{key}: {value!r} does not fit: {reason}") from None
    return TrainSettings.model_validate(train.model_dump() | dict(changes))


def read_yaml_mapping(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError when it is missing, not YAML, or something else."""
    if not path.is_file():
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.yaml")])
        raise UserError(f"no {what} file {str(path)!r}{near}")
    raw = load_yaml(path.read_text(encoding="utf-8", errors="ignore"), str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path} should be a mapping of keys to values, but holds a {type(raw).__name__}")
    return raw


def _split_override(item: str) -> tuple[list[str], Any]:
    key, equals, value = item.partition("=")
    if not equals or not key:
        raise UserError(f"{item!r} is neither a file nor key=value (for example train.epochs=3)")
    try:
        return key.split("."), parse_yaml(value)
    except Malformed:
        return key.split("."), value  # `search.limits.gflops=<= 2` needs no quotes


def _set(raw: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        if key in NAMED and not isinstance(raw.get(key), dict):
            # `evolution` takes options as `{name: evolution}` does
            default = NAMED[key].model_fields[key].default
            name = raw.get(key, default and default.name)
            raw[key] = {} if name is None else {"name": name}
        elif not isinstance(raw.get(key), dict):
            raw[key] = {}
        raw = raw[key]
    raw[keys[-1]] = value


def _find(path: str, key: str, what: str, folder_too: bool = False) -> Path:
    """The file, absolute, from the current folder or the project's. UserError if there is none."""
    for base in (Path.cwd(), ROOT):
        found = base / Path(path).expanduser()
        if found.is_file() or (found.exists() and folder_too):
            return found.resolve()
        if found.exists():
            raise UserError(f"{key}: {path!r} is a folder; {what} is needed")
    folder = next((b / path for b in (Path.cwd(), ROOT) if (b / path).parent.is_dir()), None)
    near = did_you_mean(Path(path).name, [p.name for p in folder.parent.iterdir()]) if folder else ""
    raise UserError(f"{key}: {path!r} does not exist{near}; {what} is needed")


def _space(name: str, key: str) -> Path:
    """The YAML of a space. One of Ultralytics' own, or a scale of a file (yolo11s.yaml of yolo11.yaml), is
    copied under the name that was asked for, which tells the scale."""
    try:
        return _find(name, key, "a detector YAML")
    except UserError:
        from models.yolo.parse import locate

        asked = Path(name).expanduser()
        file = next((f for path in (asked, ROOT / asked) if (f := locate(path)) is not None), None)
        if file is None:
            raise
    return _kept(file.read_text(encoding="utf-8", errors="ignore"), asked.name)


# pydantic's kinds of complaint in words of YAML.
KINDS = {
    "dict_type": "a block of keys and values is needed, like {key: value}",
    "model_type": "a block of keys and values is needed, like {key: value}",
    "model_attributes_type": "a block of keys and values is needed, like {key: value}",
    "list_type": "a list is needed, like [one, two]",
    "tuple_type": "a pair is needed, like [0.5, 2]",
    "string_type": "text is needed",
    "int_type": "a whole number is needed",
    "int_parsing": "a whole number is needed",
    "int_from_float": "a whole number is needed",
    "float_type": "a number is needed",
    "float_parsing": "a number is needed",
    "bool_type": "true or false is needed",
    "bool_parsing": "true or false is needed",
}


def _one_line(error: ValidationError, source: str) -> UserError:
    """pydantic's first complaint in the words of the file: the dotted key, the value, what would be right."""
    first = error.errors()[0]
    keys = [str(k) for k in first["loc"]]
    dotted = ".".join(keys)
    if first["type"] == "extra_forbidden":
        return unknown_key(dotted, source)
    if first["type"] == "missing":
        return UserError(f"{source}: the key {dotted!r} is missing")
    reason = KINDS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    if first["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        return unknown(dotted, first["input"], known)
    return UserError(f"{source}: {dotted}: {first['input']!r} does not fit: {reason[0].lower()}{reason[1:]}")


def unknown_key(dotted: str, source: str) -> UserError:
    """`unknown key 'search.max_trails'; did you mean 'search.max_trials'?`"""
    known = known_keys()
    last = dotted.rsplit(".", 1)[-1]
    block = dotted.rsplit(".", 1)[0] + "." if "." in dotted else ""
    siblings = [k for k in known if k.startswith(block) and "." not in k[len(block) :]]
    hint = did_you_mean(dotted, known) or did_you_mean(last, [k.rsplit(".", 1)[-1] for k in known])
    return UserError(f"{source}: unknown key {dotted!r}{hint or '; known: ' + ', '.join(siblings)}")


def known_keys() -> list[str]:
    """Every dotted key an experiment file may hold."""
    return [key for key, _ in _fields(Experiment)]


def describe_keys(block: str = "") -> str:
    """Every key of an experiment, or of one of its blocks, with its default and meaning, from the models that
    check them. UserError for a block that there is none of."""
    fields = dict(_fields(Experiment))
    wanted = [key for key in fields if not block or key == block or key.startswith(f"{block}.")]
    if not wanted:
        tops = [key for key in fields if any(k.startswith(f"{key}.") for k in fields)]
        raise UserError(
            f"unknown block {block!r}{did_you_mean(block, fields) or '; known: ' + ', '.join(tops)}"
        )
    heads = {key: f"{key}{_shown(fields[key])}" for key in wanted}
    width = min(44, max(map(len, heads.values()))) + 2
    lines: list[str] = []
    for key, head in heads.items():
        meaning = textwrap.wrap(fields[key].description or "", 110 - width, break_on_hyphens=False)
        if len(head) >= width:
            lines, head = [*lines, head], ""
        lines += [f"{first:<{width}}{rest}" for first, rest in zip_longest([head], meaning, fillvalue="")]
    return "\n".join(lines)


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, what the model says of it), blocks before what is in them."""
    for name, field in model.model_fields.items():
        yield prefix + name, field
        for inner in get_args(field.annotation) or (field.annotation,):  # of `X | None` and `list[X]`, too
            if isinstance(inner, type) and issubclass(inner, BaseModel) and inner is not Named:
                yield from _fields(inner, f"{prefix}{name}.")


def _shown(field: FieldInfo) -> str:
    """` = 6`, as one would write it; nothing for a block, ` (needed)` where there is no default."""
    if field.is_required():
        return " (needed)"
    value = field.default
    if isinstance(value, Named):
        return f" = {value.name}"
    return "" if isinstance(value, BaseModel) or value is None else f" = {json.dumps(value).strip(chr(34))}"
