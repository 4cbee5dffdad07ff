"""YOLO detectors out of stock Ultralytics modules. The only file that imports Ultralytics' model classes.

What it works around, each where it happens: the row parser writes to class attributes (`Detect.legacy`,
`Conv.default_act`), all stock convolutions share one activation object, activations of single layers cannot
be written in YAML, and the loss wants settings on the model that only the stock trainer puts there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  Ultralytics' NMS takes torchvision's kernel only if somebody has imported it
from torch import Tensor, nn

from models.detector import Batch, Detections
from models.space import Arch
from models.yolo.parse import C3Options, ConvOptions
from models.yolo.space import Space, pick
from utils.distill import confidence, soft_scores, weighted
from utils.errors import UserError
from utils.offline import quiet_ultralytics

quiet_ultralytics()

from ultralytics.nn.modules import C3, Bottleneck, Conv, Detect  # noqa: E402
from ultralytics.nn.tasks import DetectionModel, parse_model  # noqa: E402
from ultralytics.utils import DEFAULT_CFG  # noqa: E402
from ultralytics.utils.loss import v8DetectionLoss  # noqa: E402
from ultralytics.utils.nms import non_max_suppression  # noqa: E402
from ultralytics.utils.tal import dist2bbox, make_anchors  # noqa: E402
from ultralytics.utils.torch_utils import initialize_weights  # noqa: E402

CANDIDATES = 10_000  # boxes of one image that enter NMS; Ultralytics takes 30,000


class YoloDetector(nn.Module):
    """A YOLO network with its loss and its NMS; `.model` is the stock DetectionModel with all weights.

    Shapes and units are those of `Batch` and `Detections` in models/detector.py. The gains of the loss are
    Ultralytics' own (box 7.5, cls 0.5, dfl 1.5) until `set_gains` changes them.
    """

    def __init__(self, model: DetectionModel, names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.model = model
        self.model.args = copy.copy(DEFAULT_CFG)  # the loss reads its gains here
        self.stride = int(model.stride.max())
        if names is not None:
            self.names = list(names)

    @property
    def names(self) -> list[str]:
        """Class names in the order of the labels."""
        return list(self.model.names.values())

    @names.setter
    def names(self, names: Sequence[str]) -> None:
        if len(names) != self.nc:
            raise UserError(f"{len(names)} class names for a detector of {self.nc} classes")
        self.model.names = dict(enumerate(names))

    @property
    def nc(self) -> int:
        return self.model.model[-1].nc

    def set_gains(self, **gains: float) -> None:
        """Weights of the three parts of the loss: any of box, cls, dfl."""
        for key, gain in gains.items():
            if key not in ("box", "cls", "dfl"):
                raise UserError(f"unknown loss gain {key!r}; known: box, cls, dfl")
            setattr(self.model.args, key, gain)

    def forward(self, x: Batch | Tensor) -> Any:
        """The loss of a batch, or the stock model's raw output for images: one door for wrappers (DDP)."""
        return self.loss(x) if isinstance(x, dict) else self.model(x)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`box` (CIoU), `cls` (BCE) and `dfl` losses of Ultralytics, each a float32 scalar times its gain.

        Their sum is what is minimised, a mean over images. Ultralytics' trainer minimises it times the batch
        size: to follow one of its SGD recipes, scale the learning rate so. A batch without boxes is fine.
        """
        return self.losses(self.raw(batch["img"]), batch)

    def raw(self, images: Tensor) -> dict[str, Any]:
        """The head's `boxes` [B, 4 x reg_max, A] and `scores` [B, nc, A] (logits) of all A anchor points, and
        the maps `feats` they were made of."""
        found = self.model(images)
        return found[1] if isinstance(found, tuple) else found  # eval mode decodes as well

    def losses(self, raw: Mapping[str, Any], batch: Batch) -> dict[str, Tensor]:
        """The same from a raw output that is at hand."""
        with torch.autocast(batch["img"].device.type, enabled=False):
            preds = {
                "boxes": raw["boxes"].float(),
                "scores": raw["scores"].float(),
                "feats": _grids(raw["feats"]),
            }
            # Made anew each time, which costs nothing: kept, it would pin the device and be saved along.
            parts, _ = v8DetectionLoss(self.model)(preds, batch)
        return dict(zip(("box", "cls", "dfl"), parts / len(batch["img"]), strict=True))

    def distil(self, raw: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, Tensor]:
        """`cls` and `dfl`: towards a teacher's raw output on the same images, at every anchor point.

        Scores by quality focal loss; distributions of the four distances by KL (localisation distillation,
        arXiv 2102.12252), weighted by how sure the teacher is of something there.
        """
        bins = self.model.model[-1].reg_max
        with torch.autocast(raw["scores"].device.type, enabled=False):
            sure = confidence(teacher["scores"].float(), 1)  # [B, A]
            cls = soft_scores(raw["scores"].float(), teacher["scores"].float(), sure)
            ours, theirs = (r["boxes"].float().unflatten(1, (4, bins)) for r in (raw, teacher))
            if bins > 1:
                apart = F.kl_div(ours.log_softmax(2), theirs.softmax(2), reduction="none").sum(2).mean(1)
            else:
                apart = (ours - theirs).abs().flatten(1, 2).mean(1)
        return {"cls": cls, "dfl": weighted(apart, sure)}

    @torch.no_grad()
    def predict(
        self, images: Tensor, conf: float = 0.001, iou: float = 0.7, max_det: int = 300
    ) -> list[Detections]:
        """What is in the images [B, 3, H, W], float32 RGB 0..1. Leaves train or eval mode as it was.

        A box may be reported once for each class above `conf`, as mAP wants. At most `CANDIDATES` boxes of an
        image, the best, enter NMS: an untrained network would otherwise spend seconds on noise.
        """
        head = self.model.model[-1]
        modes = [(m, m.training) for m in self.modules()]
        self.eval()
        head.training = (
            True  # the raw maps, please: decoding is done below, in float32 whatever autocast says
        )
        try:
            raw = self.model(images)
        finally:
            for module, mode in modes:
                module.training = mode
        with torch.autocast(images.device.type, enabled=False):
            anchors, strides = make_anchors(_grids(raw["feats"]), head.stride, 0.5)
            distances = head.dfl(raw["boxes"].float())
            boxes = dist2bbox(distances, anchors.T[None], xywh=True, dim=1) * strides.T
            decoded = torch.cat((boxes, raw["scores"].float().sigmoid()), 1)  # [B, 4 + nc, anchors]
            # The time limit of the stock function drops whole images on a slow machine without an error.
            found = non_max_suppression(
                *(decoded, conf, iou), multi_label=True, max_det=max_det, max_nms=CANDIDATES, max_time_img=1e9
            )
        return [Detections(boxes=d[:, :4], scores=d[:, 4], labels=d[:, 5].long()) for d in found]


def build(space: Space, arch: Mapping[str, Any], names: Sequence[str] | None = None) -> YoloDetector:
    """The detector of an arch: stock Ultralytics and torch modules, fresh weights of torch's generator.

    The network is Ultralytics' own reading of `space.stock(arch)`, in which the layers that its YAML cannot
    express are then put in place. Raises UserError for an arch that is not of this space.
    """
    arch = space.canonical(arch)
    with class_state_kept():
        model = DetectionModel(space.stock(arch), ch=space.ch, verbose=False)
    for row in space.rows:
        module = model.model[row.index]
        if row.options is not None:
            fit(module, row.options, arch)
            module.np = sum(p.numel() for p in module.parameters())
    initialize_weights(model)  # BatchNorm's eps and momentum, of the new layers too
    return YoloDetector(model, names)


def layers(space: Space) -> nn.Sequential:
    """The rows of the unsearched network as stock modules, without what turns them into a detector."""
    with class_state_kept():
        return parse_model(space.stock(space.default()), space.ch, verbose=False)[0]


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
    e = options.e * pick(arch, options.width)
    block = C3(options.c1, options.c2, pick(arch, options.depth), options.shortcut, options.g, e)
    fit(block, options, arch)
    initialize_weights(block)
    return block


def bottleneck(h: int, hidden: int, options: C3Options) -> Bottleneck:
    """One stock bottleneck of a C3 with h channels, `hidden` of them inside."""
    return Bottleneck(h, h, options.shortcut, options.g, k=((1, 1), (3, 3)), e=hidden / h)


def activation(name: str) -> nn.Module:
    """A fresh activation of its own: stock convolutions share one object, which must never be changed."""
    return getattr(nn, name)()


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


def __getattr__(name: str) -> Any:
    # NNI costs four seconds to import; who only builds or predicts does not pay them.
    if name == "YoloSpace":
        from models.yolo.nas import YoloSpace

        return YoloSpace
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
