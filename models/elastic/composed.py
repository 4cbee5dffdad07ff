"""What an elastic network is composed of: a detector over a backbone, or one file that is all of it.

    network: {detector: retinanet, backbone: resnet}  # short: retinanet
    network: {detector: classifier, backbone: mine.py}
    network: mine.py                                  # the whole of it

A file says of itself, in literals: PARTS, OPTIONS, STRIDE (a backbone or a whole; a detector that
takes more sides of images than its backbone's stride divides), TASK (a detector or a whole).
Its function `build` makes
    a backbone of (part, ch, options): see models/elastic/stages.py
    a detector of (backbone, stride, parts, nc, options): a Network of models/detector.py
    a whole of (space): the same
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, PositiveInt, ValidationError, field_validator

from models.elastic.parts import Part
from utils.errors import UserError, unknown

MODELS = Path(__file__).resolve().parents[1]
DETECTORS = {
    "faster_rcnn": MODELS / "detectors/faster_rcnn.py",
    "retinanet": MODELS / "detectors/retinanet.py",
    "ssd": MODELS / "detectors/ssd.py",
    "classifier": MODELS / "detectors/classifier.py",
}
BACKBONES = {
    "resnet": MODELS / "backbones/resnet.py",
    "regnet": MODELS / "backbones/regnet.py",
    "mobilenet": MODELS / "backbones/mobilenet.py",
    "shufflenet": MODELS / "backbones/shufflenet.py",
    "serial": MODELS / "backbones/serial.py",  # of models/serial/space.py
}
NETWORKS = {"retinanet": ("retinanet", "resnet"), "regnet": ("classifier", "regnet")}  # short names


class Declared(BaseModel):
    """What a file says of itself.

    PARTS: name of a part -> its dims -> their value where a YAML is silent (None: it must say); `depth` is
        one of them and gives the number of stages (None: any).
    STRIDE: image sides are multiples of it; a backbone's last map has it.
    OPTIONS: settings that are not searched, and their defaults.
    SPELLING: how others write the archs of a backbone: `genotype` or `mutable_cfg`, see
        models/elastic/genotype.py and mmrazor.py.
    """

    PARTS: dict[str, dict[str, Any]]
    STRIDE: PositiveInt | None = None
    OPTIONS: dict[str, Any] = {}
    TASK: Literal["detect", "classify"] = "detect"
    SPELLING: Literal["genotype", "mutable_cfg"] | None = None

    @field_validator("PARTS")
    @classmethod
    def _has_stages(cls, parts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, dims in parts.items():
            stages = dims.get("depth", 0)
            if stages is not None and (not isinstance(stages, int) or stages < 1):
                raise ValueError(f"{name} should have a depth, its number of stages or None")
        return parts


@dataclass(frozen=True)
class Composed:
    """The files of a network, and what they say together. backbone: None where the detector is all of it.

    stride: image sides are multiples of it. scale: the stride of the backbone's last map.
    """

    name: str
    detector: Path
    backbone: Path | None
    parts: dict[str, dict[str, Any]]
    stride: int
    scale: int
    task: str
    options: dict[str, Any]
    spelling: str | None = None

    def __str__(self) -> str:
        return self.name

    def build(
        self, parts: Mapping[str, Part], nc: int, ch: int, options: Mapping[str, Any], space: Any
    ) -> Any:
        """The network: elastic, or plain under NNI's `model_context`. Fresh weights of torch's generator."""
        if self.backbone is None:
            return load(self.detector).build(space)
        backbone = load(self.backbone).build(parts["backbone"], ch, options)
        others = {name: part for name, part in parts.items() if name != "backbone"}
        return load(self.detector).build(backbone, self.scale, others, nc, options)


def compose(network: Any) -> Composed:
    """What a YAML's `network` names: a short name, a file, or {detector: ..., backbone: ...}.

    The declarations are read as literals, without running a file, so that a mistake in a YAML is answered
    before torch is imported. UserError for a file that is missing, no Python, or no network.
    """
    if network is None:
        raise UserError(f"the space does not say its network; add `network: {next(iter(NETWORKS))}`")
    if isinstance(network, str):
        if network not in NETWORKS:
            return _whole(network)
        detector, backbone = NETWORKS[network]
        name = network
    else:
        if not isinstance(network, dict) or set(network) != {"detector", "backbone"}:
            raise UserError(
                f"network should be like {{detector: retinanet, backbone: resnet}}, got {network!r}"
            )
        detector, backbone = network["detector"], network["backbone"]
        name = " on ".join(Path(str(part)).stem for part in (detector, backbone))
    above, below = _find("detector", detector, DETECTORS), _find("backbone", backbone, BACKBONES)
    said, base = declared(above), declared(below)
    if set(base.PARTS) != {"backbone"}:
        raise UserError(f"{below} is no backbone: its PARTS should be backbone alone, got {list(base.PARTS)}")
    parts, options = base.PARTS | said.PARTS, base.OPTIONS | said.OPTIONS
    scale = _stride(below, base)
    return Composed(name, above, below, parts, said.STRIDE or scale, scale, said.TASK, options, base.SPELLING)


def _whole(network: str) -> Composed:
    path = _find("network", network, {}, known=NETWORKS)
    said = declared(path)
    stride = _stride(path, said)
    return Composed(network, path, None, said.PARTS, stride, stride, said.TASK, said.OPTIONS)


def _stride(path: Path, said: Declared) -> int:
    if said.STRIDE is None:
        raise UserError(f"{path} is not a network: it declares no STRIDE")
    return said.STRIDE


def _find(kind: str, name: Any, files: Mapping[str, Path], known: Mapping[str, Any] | None = None) -> Path:
    """The file of a name, or one of somebody's own."""
    if isinstance(name, str) and name in files:
        return files[name]
    path = Path(str(name)).expanduser()
    if path.suffix != ".py":
        raise unknown(kind, name, [*(known or files), "a plugin's path, e.g. plugins/mine.py"])
    if not path.is_file():
        raise UserError(f"no {kind} file {name!r}")
    return path


def beside(folder: Path, network: Any) -> Any:
    """`network` of a YAML with the files that it names by a path relative to its folder."""
    if isinstance(network, dict):
        return {part: beside(folder, name) for part, name in network.items()}
    if isinstance(network, str) and network.endswith(".py") and not Path(network).expanduser().is_absolute():
        return str((folder / network).resolve())
    return network


def declared(path: Path) -> Declared:
    """What a file says of itself, read, not run."""
    try:
        lines = ast.parse(path.read_bytes(), path.name).body
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not Python: {error}") from None
    said: dict[str, Any] = {}
    for node in lines:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=value)
            ) if name in Declared.model_fields and value is not None:
                try:
                    said[name] = ast.literal_eval(value)
                except ValueError:
                    raise UserError(f"{path}: {name} should be a literal: it is read, not run") from None
    try:
        return Declared(**said)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise UserError(f"{path} is not a network: it declares no {name}") from None
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{path} is not a network: {name}: {first['input']!r} does not fit: {reason}"
        ) from None


def load(path: Path) -> Any:
    """The module of a file, under the name it would have if it were imported (built-in ones)."""
    if MODELS in path.parents:
        return import_module(".".join(("models", *path.relative_to(MODELS).with_suffix("").parts)))
    name = f"hello_nas_plugin_{path.stem}"
    known = sys.modules.get(name)
    if known is None or getattr(known, "__file__", None) != str(path):
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = known = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(known)
    if not callable(getattr(known, "build", None)):
        raise UserError(f"{path} is not a network: it has no function `build`")
    return known
