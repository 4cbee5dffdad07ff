"""Exported files in eight bits: static quantisation after training, calibrated on training images.

ONNX by onnxruntime (QDQ: signed weights, a scale for each output channel; unsigned activations, a scale for
each tensor, from the smallest and largest value seen), OpenVINO by NNCF. What comes after the last
convolutions (boxes from distances, scores from logits) stays float: one scale for pixels and probabilities
loses the latter.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.exported import onnx_session, quiet

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FIXED = "/dfl/"  # Ultralytics' mean of a distribution, written as a convolution: part of the decoding


class Images:
    """Images for a calibration, one after the other, as onnxruntime asks for them.

    images: float32 [N, C, H, W], 0..1
    """

    def __init__(self, images: np.ndarray, name: str) -> None:
        self._rest: Iterator[np.ndarray] = iter(images)
        self._name = name

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._rest, None)
        return None if image is None else {self._name: image[None]}


def decoding(model: Any) -> list[str]:
    """The names of an ONNX graph's nodes that come after its last convolutions and matrix products."""
    needs: set[str] = set()  # tensors that a weighted layer is still to see
    after = []
    for node in reversed(model.graph.node):
        weighted = node.op_type in WEIGHTED and FIXED not in node.name
        if weighted or needs & set(node.output):
            needs |= set(node.input)
        else:
            after.append(node.name)
    return after


def quantise_onnx(source: Path, path: Path, images: np.ndarray) -> Path:
    """An ONNX file in INT8 beside the float one. images: float32 [N, C, H, W], 0..1, at least one."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="quantise-") as scratch, quiet():
        ready = Path(scratch) / "ready.onnx"
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)  # folds constants, fuses
        model = onnx.load(str(ready))
        _name_all(model)
        onnx.save(model, str(ready))
        quantize_static(
            str(ready),
            str(path),
            Images(images, model.graph.input[0].name),  # type: ignore[arg-type]
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=decoding(model),
            calibrate_method=CalibrationMethod.MinMax,
        )
    return path


def _name_all(model: Any) -> None:
    """Nodes are left out by name, so each needs one."""
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{number}"


def openvino_of(source: Path, folder: Path) -> Path:
    """An ONNX file as OpenVINO's two, model.xml and model.bin, in a new folder."""
    import openvino

    folder.mkdir()
    openvino.save_model(
        openvino.convert_model(str(source)), str(folder / "model.xml"), compress_to_fp16=False
    )
    return folder


def quantise_openvino(source: Path, folder: Path, images: np.ndarray) -> Path:
    """The folder of `openvino_of` for an ONNX file, in INT8. images: as of `quantise_onnx`."""
    import nncf
    import onnx
    import openvino

    model = onnx.load(str(source))
    _name_all(model)
    with tempfile.TemporaryDirectory(prefix="quantise-") as scratch, quiet():
        named = Path(scratch) / "named.onnx"
        onnx.save(model, str(named))
        float_model = openvino.convert_model(str(named))
        here = {op.get_friendly_name() for op in float_model.get_ordered_ops()}
        after = [name for name in decoding(model) if name in here]
        smaller = nncf.quantize(
            float_model,
            nncf.Dataset([image[None] for image in images]),
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=after, validate=False),
        )
    folder.mkdir()
    openvino.save_model(smaller, str(folder / "model.xml"), compress_to_fp16=False)
    return folder


QUANTISERS: dict[str, Callable[[Path, Path, np.ndarray], Path]] = {
    "onnx": quantise_onnx,
    "openvino": quantise_openvino,
}


def suffix(runtime: str) -> str:
    """Of a file of a runtime; OpenVINO's is a folder."""
    return ".onnx" if runtime == "onnx" else ""


def runs_of(path: Path, runtime: str, threads: int) -> Callable[[Tensor], list[Tensor]]:
    """What runs a file on float32 images [B, C, H, W], 0..1, and gives its outputs."""
    if runtime == "onnx":
        return onnx_session(path, threads)[0]
    import openvino

    how = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(str(path / "model.xml"), "CPU", how)
    return lambda images: [torch.from_numpy(np.array(found)) for found in model([images.numpy()]).values()]
