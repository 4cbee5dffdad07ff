"""YOLO detectors out of stock Ultralytics modules. The only file that imports Ultralytics' model classes.

What it works around, each where it happens: the row parser writes to class attributes (`Detect.legacy`,
`Conv.default_act`), all stock convolutions share one activation object, activations of single layers cannot
be written in YAML, and the loss wants settings on the model that only the stock trainer puts there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from models.detector import Batch, Detections, Network
from models.foreign_names import ClassRows
from models.space import Arch, pick
from models.yolo.blocks import repeats_inside
from models.yolo.parse import C3Options, ConvOptions, Row
from utils.errors import UserError
from utils.offline import quiet_ultralytics
from utils.training.distill import confidence, soft_scores, weighted

quiet_ultralytics()

import ultralytics.nn.modules  # noqa: E402
from ultralytics.nn.modules import C3, Bottleneck, Conv, Detect  # noqa: E402
from ultralytics.nn.tasks import DetectionModel, parse_model  # noqa: E402
from ultralytics.utils import DEFAULT_CFG  # noqa: E402
from ultralytics.utils.loss import E2ELoss, v8DetectionLoss  # noqa: E402
from ultralytics.utils.ops import xywh2xyxy  # noqa: E402
from ultralytics.utils.tal import dist2bbox, make_anchors  # noqa: E402
from ultralytics.utils.torch_utils import initialize_weights  # noqa: E402

STAMPS = ("i", "f", "type")
CLASSES_APART = 7680  # pixels between the boxes of one class and the next, so that one NMS does for all


class YoloDetector(Network):
    """A YOLO network with its loss and its NMS; `.model` is the stock DetectionModel with all weights.

    Raw output: the head's `boxes` [B, 4 x reg_max, A] and `scores` [B, nc, A] (logits) of all A anchor
    points, and the maps `feats` they were made of; of a head with two pairs of towers one such dict each, as
    `one2many` and `one2one`. `nms` says which of them answers: one to many with NMS, as stock Ultralytics
    does by default, or one to one without (its `nms=False`). The gains of the loss are Ultralytics' own
    (box 7.5, cls 0.5, dfl 1.5) until `set_gains` changes them.
    """

    candidates = 10_000  # Ultralytics takes 30,000

    def __init__(
        self,
        model: DetectionModel,
        names: Sequence[str] | None = None,
        nms: bool = True,
        stride: int = 1,
    ) -> None:
        super().__init__(model.model[-1].nc, max(stride, int(model.stride.max())))
        self.model, self.nms, self.epoch = model, nms, 0
        self.model.end2end = not nms
        self.model.args = copy.copy(DEFAULT_CFG)  # the loss reads its gains here
        last = len(model.model) - 1
        heads = ("cv3", "one2one_cv3") if hasattr(model.model[-1], "one2one_cv3") else ("cv3",)
        self.class_rows = {
            f"model.model.{last}.{head}.{i}.2": ClassRows()
            for head in heads
            for i in range(len(model.stride))
        }
        # A head is the last row, wherever that is, and no other row has such names.
        self.aliases = [
            (r"(?:model\.)*\d+\.((?:(?:one2one_)?cv[23]\.\d|dfl\.).*)", rf"model.model.{last}.\1"),
            (r"(?:model\.)*(\d+\..*)", r"model.model.\1"),
        ]
        if names is not None:
            self.names = list(names)

    @Network.names.setter  # type: ignore[attr-defined]
    def names(self, names: Sequence[str]) -> None:
        """Also where Ultralytics looks for them."""
        Network.names.fset(self, names)  # type: ignore[attr-defined]
        self.model.names = dict(enumerate(names))

    def set_gains(self, **gains: float) -> None:
        """Weights of the three parts of the loss: any of box, cls, dfl."""
        for key, gain in gains.items():
            if key not in ("box", "cls", "dfl"):
                raise UserError(f"unknown loss gain {key!r}; known: box, cls, dfl")
            setattr(self.model.args, key, gain)

    def forward(self, x: Batch | Tensor) -> Any:
        """The loss of a batch, or the stock model's own output for images: one door for wrappers (DDP)."""
        return self.loss(x) if isinstance(x, dict) else self.model(x)

    def raw(self, images: Tensor) -> dict[str, Any]:
        head = self.model.model[-1]
        mode, head.training = head.training, True  # in eval mode it would decode as well
        try:
            return self.model(images)
        finally:
            head.training = mode

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Of a training, from 0: the share of the one-to-many towers in the loss falls from .8 to .1."""
        self.epoch, self.model.args.epochs = epoch, epochs

    def losses(self, raw: Mapping[str, Any], batch: Batch) -> dict[str, Tensor]:
        """`box` (CIoU), `cls` (BCE) and `dfl` losses of Ultralytics, each a float32 scalar times its gain.

        Without bins (reg_max 1) `dfl` is the L1 of the distances. Where there are two pairs of towers, each
        has its own assignment of boxes and their losses are weighted as YOLO26's are (`begin_epoch`).

        Their sum is what is minimised, a mean over images. Ultralytics' trainer minimises it times the batch
        size: to follow one of its SGD recipes, scale the learning rate so. A batch without boxes is fine.
        """
        with torch.autocast(batch["img"].device.type, enabled=False):
            # Made anew each time, which costs nothing: kept, it would pin the device and be saved along.
            if "one2one" in raw:
                both = E2ELoss(self.model)
                both.updates = self.epoch - 1
                both.update()
                parts, _ = both({name: _float(one) for name, one in raw.items()}, batch)
            else:
                parts, _ = v8DetectionLoss(self.model)(_float(raw), batch)
        return dict(zip(("box", "cls", "dfl"), parts / len(batch["img"]), strict=True))

    def distil(self, raw: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, Tensor]:
        """`cls` and `dfl`: towards a teacher's raw output on the same images, at every anchor point.

        Scores by quality focal loss; distributions of the four distances by KL (localisation distillation,
        arXiv 2102.12252), weighted by how sure the teacher is of something there. The mean of both pairs of
        towers, where there are two.
        """
        if "one2one" in raw:
            pairs = [self.distil(raw[name], teacher[name]) for name in ("one2many", "one2one")]
            return {key: (pairs[0][key] + pairs[1][key]) / 2 for key in pairs[0]}
        bins, points = self.model.model[-1].reg_max, raw["scores"].size(2)
        # A teacher with more levels has the same ones first.
        teacher = {key: teacher[key][:, :, :points] for key in ("boxes", "scores")}
        with torch.autocast(raw["scores"].device.type, enabled=False):
            sure = confidence(teacher["scores"].float(), 1)  # [B, A]
            cls = soft_scores(raw["scores"].float(), teacher["scores"].float(), sure)
            ours, theirs = (r["boxes"].float().unflatten(1, (4, bins)) for r in (raw, teacher))
            if bins > 1:
                apart = F.kl_div(ours.log_softmax(2), theirs.softmax(2), reduction="none").sum(2).mean(1)
            else:
                apart = (ours - theirs).abs().flatten(1, 2).mean(1)
        return {"cls": cls, "dfl": weighted(apart, sure)}

    def decode(self, raw: Mapping[str, Any], images: Tensor) -> tuple[Tensor, Tensor]:
        head = self.model.model[-1]
        if "one2one" in raw:
            raw = raw["one2many" if self.nms else "one2one"]
        anchors, strides = make_anchors(_grids(raw["feats"]), head.stride, 0.5)
        distances = head.dfl(raw["boxes"].float())
        boxes = dist2bbox(distances, anchors.T[None], xywh=True, dim=1) * strides.T
        return xywh2xyxy(boxes.transpose(1, 2)), raw["scores"].float().sigmoid().transpose(1, 2)

    def select(self, boxes: Tensor, scores: Tensor, conf: float, iou: float, max_det: int) -> Detections:
        """As Ultralytics' own NMS with `multi_label`, but for its time limit, which drops whole images on a
        slow machine without an error. Without NMS the best `max_det` points, and of their classes as many."""
        if not self.nms:
            most = min(max_det, len(scores))
            points = scores.amax(1).topk(most).indices
            sure, order = scores[points].flatten().topk(most)
            order = order[sure > conf]
            which, labels = points[order // self.nc], order % self.nc
            return Detections(boxes=boxes[which], scores=scores[which, labels], labels=labels)
        which, labels = torch.where(scores > conf)
        sure = scores[which, labels]
        if len(sure) > self.candidates:
            best = sure.argsort(descending=True)[: self.candidates]
            which, labels, sure = which[best], labels[best], sure[best]
        apart = boxes[which] + labels[:, None].float() * CLASSES_APART
        keep = nms(apart, sure, iou)[:max_det]
        return Detections(boxes=boxes[which][keep], scores=sure[keep], labels=labels[keep])

    def part_of(self, name: str) -> str:
        row = int(name.split(".")[2])  # model.model.ROW....
        if row < len(self.model.yaml["backbone"]):
            return "backbone"
        return "head" if row == len(self.model.model) - 1 else "neck"


def build(
    stock: dict[str, Any],
    rows: Sequence[Row],
    ch: int,
    arch: Mapping[str, Any],
    names: Sequence[str] | None = None,
    nms: bool = True,
    stride: int = 1,
) -> YoloDetector:
    """The detector of an arch: stock Ultralytics and torch modules, fresh weights of torch's generator.

    The network is Ultralytics' own reading of `stock`, a resolved YAML, in which the layers of `rows` that
    YAML cannot express are then put in place. stride: that image sides are multiples of, where that is more
    than the head's largest.
    """
    with class_state_kept():
        model = widened(DetectionModel(stock, ch=ch, verbose=False))
    for row in rows:
        module = model.model[row.index]
        if isinstance(row.options, ConvOptions | C3Options):
            fit(module, row.options, arch)
            module.np = sum(p.numel() for p in module.parameters())
    initialize_weights(model)  # BatchNorm's eps and momentum, of the new layers too
    return YoloDetector(model, names, nms, stride)


def widened(model: DetectionModel) -> DetectionModel:
    """The model with class towers for as many classes as its YAML says under `towers`, if it does.

    Fine-tuned by stock Ultralytics, a network keeps the towers of what it started from, made for 80 classes,
    and its YAML does not tell. Called before the class that the parser has marked is put back.
    """
    head, towers = model.model[-1], int(model.yaml.get("towers") or 0)
    if towers > head.nc:
        widen(head, towers)
        initialize_weights(head)  # BatchNorm's eps and momentum
        head.bias_init()
        head.np = sum(p.numel() for p in head.parameters())
    return model


def widen(head: Detect, towers: int) -> None:
    """Class towers for `towers` classes in place of its own."""
    ch = [tower[0].conv.in_channels for tower in head.cv2]
    wide = type(head)(towers, ch=ch).cv3
    for tower in wide:
        tower[-1] = nn.Conv2d(tower[-1].in_channels, head.nc, 1)
    head.cv3 = wide
    if hasattr(head, "one2one_cv3"):
        head.one2one_cv3 = copy.deepcopy(wide)


def layers(stock: dict[str, Any], ch: int) -> nn.Sequential:
    """The rows of a resolved YAML as stock modules, without what turns them into a detector."""
    with class_state_kept():
        return parse_model(stock, ch, verbose=False)[0]


def fit(module: Any, options: ConvOptions | C3Options, arch: Mapping[str, Any]) -> None:
    """Give a stock block what its YAML row cannot say: activations, and the insides of a C3."""
    if isinstance(options, ConvOptions):
        module.act = activation(pick(arch, options.act))
        return
    width = pick(arch, options.width)
    module.cv1, module.cv2 = (stock_conv(options.cv(which, width), arch) for which in ("cv1", "cv2"))
    for choice, block in zip(options.bottlenecks, module.m, strict=False):  # as many as the depth
        h, hidden = options.hidden(width), options.bottleneck_hidden(width, pick(arch, choice))
        if hidden != h:
            block.cv1 = Conv(h, hidden, 1, act=block.cv1.act)
            block.cv2 = Conv(hidden, h, 3, g=options.g, act=block.cv2.act)


def stock_conv(options: ConvOptions, arch: Arch | Mapping[str, Any]) -> Conv:
    """The stock Conv that a NASConv becomes."""
    k, p = options.kernel_padding(pick(arch, options.kernel))
    act = activation(pick(arch, options.act))
    block = Conv(options.c1, options.c2, k, options.s, p, options.g, act=act)
    initialize_weights(block)
    return block


def stock_c3(options: C3Options, arch: Mapping[str, Any]) -> C3:
    """The stock C3 that a NASC3 becomes."""
    e = options.ratio(pick(arch, options.width))
    block = C3(options.c1, options.c2, pick(arch, options.depth), options.shortcut, options.g, e)
    fit(block, options, arch)
    initialize_weights(block)
    return block


def stock_block(module: str, c1: int, number: int, args: Sequence[Any]) -> nn.Module:
    """A stock row's block that reads `c1` channels, with `args` as models/yolo/parse.py resolves them."""
    kind: Any = getattr(ultralytics.nn.modules, module)
    if repeats_inside(module):
        block = kind(c1, args[0], number, *args[1:])
    elif number > 1:
        block = nn.Sequential(*(kind(c1, *args) for _ in range(number)))
    else:
        block = kind(c1, *args)
    initialize_weights(block)
    return block


def heads_like(head: Detect, towers: int) -> Callable[[Sequence[int]], Detect]:
    """What makes heads of the same kind that read other channels; their strides and biases are not set.

    towers: classes that the class towers are made for, 0: those that there are.
    """
    kind, nc, legacy = type(head), head.nc, isinstance(head.cv3[0][0], Conv)
    given = {"reg_max": head.reg_max, "end2end": hasattr(head, "one2one_cv2")} if kind is Detect else {}

    def make(channels: Sequence[int]) -> Detect:
        with class_state_kept():
            Detect.legacy = legacy
            made = kind(nc, ch=list(channels), **given)
            if towers > nc:
                widen(made, towers)
        initialize_weights(made)
        return made

    return make


def stock_head(nc: int, reg_max: int, channels: Sequence[int]) -> Detect:
    """A stock head with the plain class towers of v5 and v8, its strides still unknown."""
    with class_state_kept():
        Detect.legacy = True
        return Detect(nc, reg_max, ch=list(channels))


def bottleneck(h: int, hidden: int, options: C3Options) -> Bottleneck:
    """One stock bottleneck of a C3 with h channels, `hidden` of them inside."""
    return Bottleneck(h, h, options.shortcut, options.g, k=((1, 1), (3, 3)), e=hidden / h)


def activation(name: str) -> nn.Module:
    """A fresh activation of its own: stock convolutions share one object, which must never be changed."""
    return getattr(nn, name)()


def stamped(module: Any, like: Any) -> Any:
    """The module with what Ultralytics writes on a row's module to find its inputs."""
    for name in STAMPS:
        if hasattr(like, name):
            setattr(module, name, getattr(like, name))
    module.np = sum(p.numel() for p in module.parameters())
    return module


def _float(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The output of a pair of towers as the losses take it."""
    return {"boxes": raw["boxes"].float(), "scores": raw["scores"].float(), "feats": _grids(raw["feats"])}


def _grids(feats: Sequence[Tensor]) -> list[Tensor]:
    """Stand-ins with the maps' shapes, so that anchor points are float32 whatever autocast made of them."""
    return [torch.empty((), device=f.device).expand(f.shape) for f in feats]


@contextmanager
def class_state_kept() -> Iterator[None]:
    """The stock parser leaves its mark on classes, where it would change the next model; put it back."""
    legacy, act = Detect.legacy, Conv.default_act
    try:
        yield
    finally:
        Detect.legacy, Conv.default_act = legacy, act
