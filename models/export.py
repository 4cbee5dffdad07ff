"""A trained network as a file for other people's tools. Each is loaded again and compared before it counts.

.pt       what `ultralytics.YOLO(...)` loads where this package is not installed
.onnx     any batch, height and width; read by onnxruntime and by `YOLO("x.onnx")`
openvino  a folder for OpenVINO, where its package is installed

These are YOLO's. Networks of elastic spaces become .pt2 and .onnx, see models/export_plain.py.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import pickletools
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.exported import TOLERANCE, Exported, ExportFailed, median_ms, other_sizes
from models.networks import AnySpace
from models.weights import FORMAT, identity
from models.yolo.detector import YoloDetector
from models.yolo.space import Space
from models.yolo.stock_yaml import expand
from utils.errors import UserError, unknown
from utils.offline import quiet_ultralytics

STOCK = ("torch.", "ultralytics.", "collections.OrderedDict", "__builtin__.set")


def export(
    detector: Any,
    path: Path,
    format: str,
    *,
    space: AnySpace,
    arch: Mapping[str, Any],
    imgsz: int,
    names: Sequence[str] | None = None,
    data: str | None = None,
    threads: int = 1,
) -> Exported:
    """Write `detector`, any network of `space`, in a format of `FORMATS` to `path`, which must not exist.

    names: of the classes, by default the detector's own. data: what to tell Ultralytics it was trained on.
    threads: of onnxruntime, for its latency. The detector is left as it is.
    Raises UserError for an unknown format, one that these networks do not have, a path that is taken, a
    package that is missing.
    """
    check_format(format, space)
    if path.exists():
        raise UserError(f"{path} exists and is never overwritten; give another name or folder by --out")
    if format == "openvino" and find_spec("openvino") is None:
        raise UserError("format 'openvino' needs a package that is not installed: pip install openvino")
    about = identity(detector, space, arch, imgsz, names)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename: nothing has the final name before it was checked.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as scratch:
        if isinstance(space, Space):
            checked = FORMATS[format](detector, Path(scratch), about, data, threads)
        else:
            from models import export_plain

            checked = export_plain.FORMATS[format](detector, space, Path(scratch), about, threads)
        os.replace(checked.path, path)
    return Exported(path, format, checked.max_difference, checked.sizes, checked.notes, checked.values)


def check_format(format: str, space: AnySpace) -> None:
    """Raises UserError unless networks of this space can become files of this format."""
    if format not in FORMATS:
        raise unknown("export format", format, FORMATS)
    if format == "openvino" and not isinstance(space, Space):
        raise UserError(
            f"format 'openvino' is for YOLO detectors; {space.name} is exported as pt or onnx, and OpenVINO "
            "reads the latter"
        )


def file_name(stem: str, format: str, space: AnySpace) -> str:
    """What an export is called by default: 1.pt (YOLO), 1.pt2 (a torch.export program), 1.onnx, ..."""
    if format == "openvino":
        return f"{stem}_openvino_model"
    return f"{stem}.pt2" if format == "pt" and not isinstance(space, Space) else f"{stem}.{format}"


# Ultralytics -----------------------------------------------------------------------------------------------


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
    notes.append("YOLO(...).val(data=..., rect=False) scores it as we do")
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


# ONNX and OpenVINO -----------------------------------------------------------------------------------------


def _export_onnx(
    detector: YoloDetector, folder: Path, about: dict[str, Any], data: str | None, threads: int
) -> Exported:
    import onnxruntime

    path = _by_ultralytics(detector, folder, about, data, "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.numpy()})[0])

    sizes = other_sizes(about["imgsz"], detector.stride)
    difference = _difference(detector, run, sizes)
    image = torch.rand(1, 3, about["imgsz"], about["imgsz"])
    ms = median_ms(lambda: run(image))
    note = (
        f"onnxruntime: {ms:.2f} ms an image of {about['imgsz']} px (median, CPU, {threads} threads, no NMS)"
    )
    values = {"onnxruntime_ms": ms, "threads": threads, "onnxruntime": onnxruntime.__version__}
    return Exported(path, "onnx", difference, sizes, [note], values)


def _export_openvino(
    detector: YoloDetector, folder: Path, about: dict[str, Any], data: str | None, threads: int
) -> Exported:
    import openvino

    path = _by_ultralytics(detector, folder, about, data, "openvino")
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"})
    model = core.compile_model(str(next(path.glob("*.xml"))), "CPU")

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(model([images.numpy()])[0])

    sizes = other_sizes(about["imgsz"], detector.stride)
    difference = _difference(detector, run, sizes)
    image = torch.rand(1, 3, about["imgsz"], about["imgsz"])
    ms = median_ms(lambda: run(image))
    note = f"OpenVINO: {ms:.2f} ms an image of {about['imgsz']} px (median, CPU, {threads} threads, no NMS)"
    values = {"openvino_ms": ms, "threads": threads, "openvino": openvino.__version__}
    return Exported(path, "openvino", difference, sizes, [note], values)


def _by_ultralytics(
    detector: YoloDetector, folder: Path, about: dict[str, Any], data: str | None, format: str
) -> Path:
    """Ultralytics' own exporter, so that the file carries the metadata `YOLO("x.onnx")` reads."""
    quiet_ultralytics()
    from ultralytics import YOLO

    source, _ = _write_pt(detector, folder, about, data)
    # onnxslim, which `simplify` asks for, gains nothing measurable here and is one more thing to go wrong.
    extra = {"simplify": False} if format == "onnx" else {}
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # both talk a lot
        warnings.simplefilter("ignore")
        made = YOLO(str(source)).export(
            format=format, imgsz=about["imgsz"], dynamic=True, device="cpu", verbose=False, **extra
        )
    return Path(made)


# Comparing -------------------------------------------------------------------------------------------------


def _raw(net: Any, images: Tensor) -> Tensor:
    """Decoded boxes (xywh, pixels) and class scores, [B, 4 + nc, anchors], before NMS."""
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
        if got.shape != expected.shape:
            raise ExportFailed(f"at {list(size)} it gives {list(got.shape)}, torch {list(expected.shape)}")
        apart = (got - expected).abs()
        apart[:, :4] /= max(size[2:])  # pixels to shares of the image
        worst = max(worst, apart.max().item()) if apart.isfinite().all() else float("nan")
    if not worst <= TOLERANCE:
        raise ExportFailed(f"its outputs differ from torch by {worst:.3g}, more than {TOLERANCE}")
    return worst


FORMATS: dict[str, Callable[..., Exported]] = {
    "pt": _export_pt,
    "onnx": _export_onnx,
    "openvino": _export_openvino,
}
