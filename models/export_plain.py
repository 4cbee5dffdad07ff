"""Networks of elastic spaces as files for other people's tools; models/export.py is the door to them.

The input is `images` [B, 3, H, W] float32 RGB, 0..1. A detector's file gives, before NMS, `boxes` [B, A, 4]
xyxy in pixels of the input and `scores` [B, A, classes] 0..1; a classifier's `probabilities` [B, classes].

.pt2    a `torch.export` program: `torch.export.load(path).module()(images)` needs nothing besides torch;
        Faster R-CNN's holds RoIAlign and NMS of torchvision, which has to be imported before
.onnx   any batch, height and width; class names and what the outputs are stand in its metadata
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.detector import Network
from models.export_torchvision import export_torchvision
from models.exported import TOLERANCE, Exported, ExportFailed, median_ms, onnx_session, other_sizes, quiet
from utils.errors import UserError
from utils.sides import pair, shown

OPSET = 17
MEANINGS = {
    "boxes": "[B, A, 4] xyxy in pixels of the input, before NMS",
    "scores": "[B, A, classes] 0..1, one for each class and box, before NMS",
    "probabilities": "[B, classes] 0..1, they sum to 1",
}
Run = Callable[[Tensor], Sequence[Tensor]]


class Deployed(nn.Module):
    """A network whose raw output is decoded."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.net.decode(self.net.raw(images), images)


def deployed(net: Any) -> Deployed:
    """The network as it is exported, in eval mode on the CPU; `net` itself is not touched.

    UserError for somebody's network without `decode`: how to read its raw output only it can say.
    """
    if not hasattr(net, "decode") or type(net).decode is Network.decode:
        raise UserError(
            f"{type(net).__name__} cannot be exported: it has no `decode` (see models/detector.py)"
        )
    net = copy.deepcopy(net).cpu().float().eval().requires_grad_(False)
    for tensor in (*net.parameters(), *net.buffers()):  # channels_last would be written down as well
        tensor.data = tensor.data.contiguous()
    return Deployed(net).eval()


# The files -------------------------------------------------------------------------------------------------


def export_program(
    net: Any, folder: Path, about: Mapping[str, Any], data: str | None, threads: int
) -> Exported:
    """A `torch.export` program. Any batch; any sides, too, if the exported size leaves more than one position
    on the coarsest map: the exporter takes a side of 1 for a constant."""
    wrapped, path, (height, width) = deployed(net), folder / "model.pt2", pair(about["imgsz"])
    ch, stride, coarsest = about["ch"], net.stride, net.coarsest
    free, least = min(height, width) > coarsest, coarsest + stride
    shapes: dict[int, Any] = {0: torch.export.Dim("batch", max=4096)}
    if free:
        for axis, name in ((2, "h"), (3, "w")):
            shapes[axis] = stride * torch.export.Dim(name, min=least // stride, max=512)
    with quiet(), torch.no_grad():
        example = torch.rand(2, ch, height, width)
        program = torch.export.export(wrapped, (example,), dynamic_shapes=(shapes,), strict=False)
        extra = {"about.json": json.dumps(_about(wrapped, about))}
        torch.export.save(program, path, extra_files=extra)
        again: Any = torch.export.load(path).module()
    sizes = other_sizes(about["imgsz"], stride)
    if free:
        sizes = [(b, ch, max(least, h), w) for b, _, h, w in sizes]
    else:
        sizes = [(b, ch, height, width) for b in (1, 3)]
    difference = compare(wrapped, again, sizes)
    sides = f"H and W exactly {shown(about['imgsz'])}"
    if free:
        sides = f"H and W multiples of {stride} from {least}"
    needs = ["torch", *sorted(libraries(program))]
    before = "".join(f"import {name}; " for name in needs[1:])
    note = (
        f"{before}torch.export.load(FILE).module()(images [B, {ch}, H, W] 0..1), {sides}: {_gives(wrapped)}"
    )
    values = {"outputs": list(wrapped.net.outputs), "least_side": least if free else about["imgsz"]}
    values |= {"any_side": free, "needs": needs}
    return Exported(path, "pt", difference, sizes, [note], values)


def libraries(program: torch.export.ExportedProgram) -> set[str]:
    """The packages besides torch that have to be imported before the program is loaded: whose operators it
    holds."""
    ops = [node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    return {op.namespace for op in ops} & {"torchvision"}


def export_onnx(net: Any, folder: Path, about: Mapping[str, Any], data: str | None, threads: int) -> Exported:
    import onnx

    wrapped, path, imgsz = deployed(net), folder / "model.onnx", about["imgsz"]
    ch, stride, outputs = about["ch"], net.stride, net.outputs
    free = {"images": {0: "batch", 2: "height", 3: "width"}}
    free |= {name: {0: "batch"} | ({1: "anchors"} if "boxes" in outputs else {}) for name in outputs}
    with quiet(), torch.no_grad():
        # The other exporter needs one more package and takes a side of 1 for a constant.
        torch.onnx.export(
            wrapped,
            (torch.rand(2, ch, *pair(imgsz)),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=list(outputs),
            dynamic_axes=free,
        )
    model = onnx.load(str(path))
    for key, value in _about(wrapped, about).items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    onnx.save(model, str(path))

    run, version = onnx_session(path, threads)
    sizes = other_sizes(about["imgsz"], stride)
    sizes = [(b, ch, h, w) for b, _, h, w in sizes]
    difference = compare(wrapped, run, sizes)
    image = torch.rand(1, ch, *pair(imgsz))
    ms = median_ms(lambda: run(image))
    notes = [
        f"onnxruntime: {ms:.2f} ms an image of {shown(imgsz)} px (median, CPU, {threads} threads, no NMS)",
        f"images [B, {ch}, H, W] 0..1, H and W multiples of {stride}: {_gives(wrapped)}",
    ]
    values = {"onnxruntime_ms": ms, "threads": threads, "onnxruntime": version}
    return Exported(path, "onnx", difference, sizes, notes, values)


def compare(wrapped: Deployed, run: Run, sizes: Sequence[tuple[int, ...]]) -> float:
    """Largest absolute difference between `run` and torch on random images, boxes in shares of the longer
    side. ExportFailed if it matters."""
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for size in sizes:
        images = torch.rand(size, generator=generator)
        with torch.no_grad():
            expected, got = wrapped(images), run(images)
        for name, a, b in zip(wrapped.net.outputs, expected, got, strict=True):  # type: ignore[arg-type]
            if a.shape != b.shape:
                raise ExportFailed(f"at {list(size)} its {name} are {list(b.shape)}, torch's {list(a.shape)}")
            apart = (a - b).abs() / (max(size[2:]) if name == "boxes" else 1)
            worst = max(worst, apart.max().item()) if apart.isfinite().all() else float("nan")
    if not worst <= TOLERANCE:
        raise ExportFailed(f"its outputs differ from torch by {worst:.3g}, more than {TOLERANCE}")
    return worst


def _about(wrapped: Deployed, about: Mapping[str, Any]) -> dict[str, Any]:
    outputs = {name: MEANINGS[name] for name in wrapped.net.outputs}
    return {
        "names": dict(enumerate(about["names"])),
        "imgsz": about["imgsz"],
        "stride": wrapped.net.stride,
        "input": "[B, channels, H, W] float32, RGB, 0..1; H and W multiples of stride",
        "outputs": outputs,
        "arch": about["arch"],
        "licence": "AGPL-3.0",
    }


def _gives(wrapped: Deployed) -> str:
    return ", ".join(f"{name} {MEANINGS[name]}" for name in wrapped.net.outputs)


EXPORTERS: dict[str, Callable[..., Exported]] = {
    "pt": export_program,
    "onnx": export_onnx,
    "torchvision": export_torchvision,
}
