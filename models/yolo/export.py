"""A YOLO detector as a file of Ultralytics'; models/export.py is the door.

.pt       what `ultralytics.YOLO(...)` loads where this package is not installed
.onnx     any batch, height and width; read by onnxruntime and by `YOLO("x.onnx")`
openvino  a folder for OpenVINO, where its package is installed
"""

from __future__ import annotations

import contextlib
import copy
import io
import pickletools
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.exported import TOLERANCE, Exported, ExportFailed, median_ms, onnx_session, other_sizes
from models.weights import FORMAT
from models.yolo.detector import YoloDetector
from models.yolo.stock_yaml import expand
from utils.errors import UserError
from utils.offline import quiet_ultralytics
from utils.report.model_card import ULTRALYTICS_VAL
from utils.sides import area, both, pair, shown

STOCK = ("torch.", "ultralytics.", "collections.OrderedDict", "__builtin__.set")


def _export_pt(
    detector: YoloDetector, folder: Path, about: dict[str, Any], data: str | None, threads: int
) -> Exported:
    quiet_ultralytics()
    from ultralytics import YOLO

    path, lost = _write_pt(detector, folder, about, data)
    foreign = [name for name in pickled_globals(path) if not name.startswith(STOCK)]
    if foreign:
        raise ExportFailed(f"the pickle names {', '.join(foreign)}: it would not load without this package")
    again = YOLO(str(path)).model.eval()
    again.end2end = not detector.nms  # stock predict and val choose by their setting `nms`
    sizes = other_sizes(about["imgsz"], detector.stride)
    difference = _difference(detector, lambda images: _raw(again, images), sizes)
    if lost:
        notes = [
            "stock YOLO(...).train() would build another network, a YAML cannot say all of this one: "
            + "; ".join(lost[:3])
            + ("; ..." if len(lost) > 3 else ""),
            "train it by YOLO(...).train(trainer=KeepArchitecture, ...), see models/keep_architecture.py",
        ]
    else:
        notes = ["stock YOLO(...).train() keeps this architecture: the YAML inside says all of it"]
    # YOLO.val pads to rectangles with half a stride of grey around by default: mAP moves on small images.
    notes.append(ULTRALYTICS_VAL)
    return Exported(path, "pt", difference, sizes, notes, {"stock_train_keeps_it": not lost, "lost": lost})


def _write_pt(
    detector: YoloDetector, folder: Path, about: dict[str, Any], data: str | None
) -> tuple[Path, list[str]]:
    """(path, what stock training would lose). float32: Ultralytics rounds to half, which moves mAP."""
    import ultralytics

    apart = expand(detector.model)
    net: Any = apart.net.cpu().float().eval().requires_grad_(False)
    for tensor in (*net.parameters(), *net.buffers()):  # no views of larger storages, no channels_last
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    arguments = {"task": "detect", "imgsz": about["imgsz"], "data": data, "single_cls": False}
    net.names, net.task, net.args, net.criterion = dict(enumerate(about["names"])), "detect", arguments, None
    path = folder / "model.pt"
    torch.save(
        {
            "epoch": -1,
            "best_fitness": None,
            "model": net,
            "ema": None,
            "updates": None,
            "optimizer": None,
            "train_args": arguments,
            "train_metrics": {},
            "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "version": ultralytics.__version__,
            "license": "AGPL-3.0 (https://ultralytics.com/license)",
            FORMAT: about | {"renamed": apart.renamed},
        },
        path,
    )
    return path, apart.lost


def pickled_globals(path: Path) -> list[str]:
    """Every class and function that loading the file would look up, without loading it."""
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
        content = archive.read(name)
    found: set[str] = set()
    texts: list[str] = []
    for opcode, value, _ in pickletools.genops(io.BytesIO(content)):
        if opcode.name == "GLOBAL":
            found.add(str(value).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            found.add(".".join(texts[-2:]))
        elif isinstance(value, str):
            texts.append(value)
    return sorted(found)


def _export_onnx(
    detector: YoloDetector, folder: Path, about: dict[str, Any], data: str | None, threads: int
) -> Exported:
    path = _by_ultralytics(detector, folder, about, data, "onnx")
    session, version = onnx_session(path, threads)
    found = {"onnxruntime": version}
    return _measured(path, "onnx", detector, about, threads, lambda x: session(x)[0], "onnxruntime", found)


def _export_openvino(
    detector: YoloDetector, folder: Path, about: dict[str, Any], data: str | None, threads: int
) -> Exported:
    if find_spec("openvino") is None:
        raise UserError("format 'openvino' needs a package that is not installed: pip install openvino")
    import openvino

    path = _by_ultralytics(detector, folder, about, data, "openvino")
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"})
    model = core.compile_model(str(next(path.glob("*.xml"))), "CPU")

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(model([images.numpy()])[0])

    return _measured(
        path, "openvino", detector, about, threads, run, "OpenVINO", {"openvino": openvino.__version__}
    )


def _measured(
    path: Path,
    format: str,
    detector: YoloDetector,
    about: dict[str, Any],
    threads: int,
    run: Callable[[Tensor], Tensor],
    runtime: str,
    versions: dict[str, str],
) -> Exported:
    """What `run` gives beside torch, and how long it takes."""
    imgsz = about["imgsz"]
    sizes = other_sizes(imgsz, detector.stride)
    if not detector.nms:  # its best points are counted when it is exported: smaller images have too few
        sizes = [size for size in sizes if size[2] * size[3] >= area(imgsz)]
    difference = _difference(detector, run, sizes)
    image = torch.rand(1, 3, *pair(imgsz))
    ms = median_ms(lambda: run(image))
    notes = [f"{runtime}: {ms:.2f} ms an image of {shown(imgsz)} px (median, CPU, {threads} threads, no NMS)"]
    if not detector.nms:
        notes.append(f"it needs no NMS: [n, 6] of x1 y1 x2 y2, score, class; images of {both(imgsz)} or more")
    values = {f"{runtime.lower()}_ms": ms, "threads": threads, **versions}
    return Exported(path, format, difference, sizes, notes, values)


def _by_ultralytics(
    detector: YoloDetector, folder: Path, about: dict[str, Any], data: str | None, format: str
) -> Path:
    """Ultralytics' own exporter, so that the file carries the metadata `YOLO("x.onnx")` reads."""
    quiet_ultralytics()
    from ultralytics import YOLO

    source, _ = _write_pt(detector, folder, about, data)
    # `simplify` asks for onnxslim, which gains nothing measurable here and is one more thing to go wrong.
    extra = {"simplify": False} if format == "onnx" else {}
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # both talk a lot
        warnings.simplefilter("ignore")
        made = YOLO(str(source)).export(
            format=format,
            imgsz=about["imgsz"],
            dynamic=True,
            device="cpu",
            verbose=False,
            nms=None if detector.nms else False,
            **extra,
        )
    return Path(made)


def _raw(net: Any, images: Tensor) -> Tensor:
    """Decoded boxes (xywh, pixels) and class scores, [B, 4 + nc, anchors], before NMS; of a network that
    answers without it [B, n, 6]: boxes (xyxy), score and class, the surest first."""
    output = net(images)
    return output[0] if isinstance(output, tuple | list) else output


def _difference(
    detector: YoloDetector, run: Callable[[Tensor], Tensor], sizes: Sequence[tuple[int, ...]]
) -> float:
    """Largest absolute difference between `run` and torch on random images. ExportFailed if it matters."""
    net = copy.deepcopy(detector.model).cpu().float().eval()
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for size in sizes:
        images = torch.rand(size, generator=generator)
        with torch.no_grad():
            expected, got = _raw(net, images), run(images)
        if not detector.nms:  # a file answers with as many boxes as it was exported for
            expected = expected[:, : got.shape[1]]
        if got.shape != expected.shape:
            raise ExportFailed(f"at {list(size)} it gives {list(got.shape)}, torch {list(expected.shape)}")
        if detector.nms:
            apart = (got - expected).abs()
            apart[:, :4] /= max(size[2:])  # pixels to shares of the image
        else:
            apart = _apart(got, expected, max(size[2:]))
        worst = max(worst, apart.max().item()) if apart.isfinite().all() else float("nan")
    if not worst <= TOLERANCE:
        raise ExportFailed(f"its outputs differ from torch by {worst:.3g}, more than {TOLERANCE}")
    return worst


def _apart(got: Tensor, expected: Tensor, side: int) -> Tensor:
    """How far each of the boxes [B, n, 6] is from the nearest one there of its class, [B, n]; boxes in shares
    of `side`. Equally sure ones may change places, and the least sure be others."""
    scale = torch.tensor([1 / side] * 4 + [1.0, 1e3])
    near = torch.cdist(got * scale, expected * scale, p=float("inf")).amin(2)
    ends = (got[..., 4] - expected[:, -1:, 4]).abs()  # what is as sure as the last may be cut off there
    return torch.minimum(near, ends)


EXPORTERS: dict[str, Callable[..., Exported]] = {
    "pt": _export_pt,
    "onnx": _export_onnx,
    "openvino": _export_openvino,
}
