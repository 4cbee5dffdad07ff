"""Networks of elastic spaces as files for other people's tools; models/export.py is the door to them.

The input is `images` [B, 3, H, W] float32 RGB, 0..1. A detector's file gives, before NMS, `boxes` [B, A, 4]
xyxy in pixels of the input and `scores` [B, A, classes] 0..1; a classifier's `probabilities` [B, classes].

.pt2    a `torch.export` program: `torch.export.load(path).module()(images)` needs nothing besides torch
.onnx   any batch, height and width; class names and what the outputs are stand in its metadata
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.detectors.retinanet import RetinaNet
from models.elastic.space import ElasticSpace
from models.exported import TOLERANCE, Exported, ExportFailed, median_ms, other_sizes
from utils.errors import UserError

OPSET = 17
MEANINGS = {
    "boxes": "[B, A, 4] xyxy in pixels of the input, before NMS",
    "scores": "[B, A, classes] 0..1, one for each class and box, before NMS",
    "probabilities": "[B, classes] 0..1, they sum to 1",
}
Run = Callable[[Tensor], Sequence[Tensor]]


class Boxes(nn.Module):
    """RetinaNet with its boxes decoded and its scores 0..1. Shapes are read from the maps, so that exporters
    can follow any image size; the same numbers as `RetinaNet.grid` and its box coder."""

    outputs = ("boxes", "scores")

    def __init__(self, net: RetinaNet) -> None:
        super().__init__()
        self.net, self.clip = net, net.coder.bbox_xform_clip
        for level, cell in enumerate(net.anchors.cell_anchors):
            self.register_buffer(f"cell{level}", cell.detach().clone())
        self.coarsest = 2 ** (net.neck.first + len(net.anchors.cell_anchors) - 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.net.neck(self.net.backbone(images))
        logits, offsets = self.net.cls(maps), self.net.box(maps)
        anchors = torch.cat([self.anchors(i, x, images) for i, x in enumerate(logits)])
        sides = anchors[:, 2:] - anchors[:, :2]
        moved = torch.cat([_rows(x, 4) for x in offsets], 1)
        centres = moved[..., :2] * sides + (anchors[:, :2] + sides / 2)
        halves = moved[..., 2:].clamp(max=self.clip).exp() * sides / 2
        scores = torch.cat([_rows(x, self.net.nc) for x in logits], 1).sigmoid()
        return torch.cat((centres - halves, centres + halves), -1), scores

    def anchors(self, level: int, x: Tensor, images: Tensor) -> Tensor:
        """[h x w x anchors of a position, 4] of a level's map."""
        (h, w), (height, width) = x.shape[-2:], images.shape[-2:]
        ys = torch.arange(h, device=x.device)[:, None].expand(h, w).flatten() * (height // h)
        xs = torch.arange(w, device=x.device)[None].expand(h, w).flatten() * (width // w)
        shifts = torch.stack((xs, ys, xs, ys), 1).float()
        return (shifts[:, None] + self.get_buffer(f"cell{level}")).flatten(0, 1)


class Probabilities(nn.Module):
    """A classifier whose logits have become probabilities."""

    outputs = ("probabilities",)

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net, self.coarsest = net, net.stride

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.net(images).softmax(1),)


def deployed(net: Any, space: ElasticSpace) -> Boxes | Probabilities:
    """The network as it is exported, in eval mode on the CPU; `net` itself is not touched.

    UserError for a detector of somebody's plugin, whose raw output we cannot know how to decode.
    """
    net = copy.deepcopy(net).cpu().float().eval().requires_grad_(False)
    for tensor in (*net.parameters(), *net.buffers()):  # channels_last would be written down as well
        tensor.data = tensor.data.contiguous()
    if space.task == "classify":
        return Probabilities(net).eval()
    if not isinstance(net, RetinaNet):
        raise UserError(
            f"networks of {space.plugin} cannot be exported: only RetinaNet's boxes are known here"
        )
    return Boxes(net).eval()


# The files -------------------------------------------------------------------------------------------------


def export_program(
    net: Any, space: ElasticSpace, folder: Path, about: Mapping[str, Any], threads: int
) -> Exported:
    """A `torch.export` program. Any batch; any sides, too, if the exported size leaves more than one position
    on the coarsest map: the exporter takes a side of 1 for a constant."""
    wrapped, path, side = deployed(net, space), folder / "model.pt2", about["imgsz"]
    free = side > wrapped.coarsest
    least = wrapped.coarsest + space.stride
    shapes: dict[int, Any] = {0: torch.export.Dim("batch", max=4096)}
    if free:
        for axis, name in ((2, "h"), (3, "w")):
            shapes[axis] = space.stride * torch.export.Dim(name, min=least // space.stride, max=512)
    with _quiet(), torch.no_grad():
        example = torch.rand(2, space.ch, side, side)
        program = torch.export.export(wrapped, (example,), dynamic_shapes=(shapes,), strict=False)
        extra = {"about.json": json.dumps(_about(wrapped, about))}
        torch.export.save(program, path, extra_files=extra)
        again: Any = torch.export.load(path).module()
    sizes = other_sizes(side, space.stride)
    if free:
        sizes = [(b, space.ch, max(least, h), w) for b, _, h, w in sizes]
    else:
        sizes = [(b, space.ch, side, side) for b in (1, 3)]
    difference = compare(wrapped, again, sizes)
    sides = f"H and W multiples of {space.stride} from {least}" if free else f"H and W exactly {side}"
    note = f"torch.export.load(FILE).module()(images [B, {space.ch}, H, W] 0..1), {sides}: {_gives(wrapped)}"
    values = {"outputs": list(wrapped.outputs), "least_side": least if free else side, "any_side": free}
    return Exported(path, "pt", difference, sizes, [note], values)


def export_onnx(
    net: Any, space: ElasticSpace, folder: Path, about: Mapping[str, Any], threads: int
) -> Exported:
    import onnx
    import onnxruntime

    wrapped, path, side = deployed(net, space), folder / "model.onnx", about["imgsz"]
    free = {"images": {0: "batch", 2: "height", 3: "width"}}
    free |= {
        name: {0: "batch"} | ({1: "anchors"} if len(wrapped.outputs) > 1 else {}) for name in wrapped.outputs
    }
    with _quiet(), torch.no_grad():
        # The other exporter needs one more package and takes a side of 1 for a constant.
        torch.onnx.export(
            wrapped,
            (torch.rand(2, space.ch, side, side),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=list(wrapped.outputs),
            dynamic_axes=free,
        )
    model = onnx.load(str(path))
    for key, value in _about(wrapped, about).items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    onnx.save(model, str(path))

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(found) for found in session.run(None, {"images": images.numpy()})]

    sizes = other_sizes(side, space.stride)
    sizes = [(b, space.ch, h, w) for b, _, h, w in sizes]
    difference = compare(wrapped, run, sizes)
    image = torch.rand(1, space.ch, side, side)
    ms = median_ms(lambda: run(image))
    notes = [
        f"onnxruntime: {ms:.2f} ms an image of {side} px (median, CPU, {threads} threads, no NMS)",
        f"images [B, {space.ch}, H, W] 0..1, H and W multiples of {space.stride}: {_gives(wrapped)}",
    ]
    values = {"onnxruntime_ms": ms, "threads": threads, "onnxruntime": onnxruntime.__version__}
    return Exported(path, "onnx", difference, sizes, notes, values)


def compare(wrapped: nn.Module, run: Run, sizes: Sequence[tuple[int, ...]]) -> float:
    """Largest absolute difference between `run` and torch on random images, boxes in shares of the longer
    side. ExportFailed if it matters."""
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for size in sizes:
        images = torch.rand(size, generator=generator)
        with torch.no_grad():
            expected, got = wrapped(images), run(images)
        for name, a, b in zip(wrapped.outputs, expected, got, strict=True):  # type: ignore[arg-type]
            if a.shape != b.shape:
                raise ExportFailed(f"at {list(size)} its {name} are {list(b.shape)}, torch's {list(a.shape)}")
            apart = (a - b).abs() / (max(size[2:]) if name == "boxes" else 1)
            worst = max(worst, apart.max().item()) if apart.isfinite().all() else float("nan")
    if not worst <= TOLERANCE:
        raise ExportFailed(f"its outputs differ from torch by {worst:.3g}, more than {TOLERANCE}")
    return worst


def _about(wrapped: Boxes | Probabilities, about: Mapping[str, Any]) -> dict[str, Any]:
    outputs = {name: MEANINGS[name] for name in wrapped.outputs}
    return {
        "names": dict(enumerate(about["names"])),
        "imgsz": about["imgsz"],
        "stride": wrapped.net.stride,
        "input": "[B, channels, H, W] float32, RGB, 0..1; H and W multiples of stride",
        "outputs": outputs,
        "arch": about["arch"],
        "licence": "AGPL-3.0",
    }


def _gives(wrapped: Boxes | Probabilities) -> str:
    return ", ".join(f"{name} {MEANINGS[name]}" for name in wrapped.outputs)


def _rows(x: Tensor, values: int) -> Tensor:
    """[B, anchors x values, H, W] -> [B, H x W x anchors, values]."""
    return x.unflatten(1, (-1, values)).permute(0, 3, 4, 1, 2).flatten(1, 3)


@contextlib.contextmanager
def _quiet() -> Any:
    """Exporters talk a lot, about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


FORMATS: dict[str, Callable[..., Exported]] = {"pt": export_program, "onnx": export_onnx}
