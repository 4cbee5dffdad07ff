"""Spaces of supernets: ranges per stage in YAML, archs as plain dicts. No torch until a cost is asked.

    network: retinanet                # models/detectors/retinanet.py, or the path of a plugin file
    backbone:
      depth: {min: [1, 1, 2, 2, 4], max: [1, 3, 4, 4, 6], sample: stage}
      out_channel: {min: [32, 48, 96, 192, 384], max: [64, 80, 160, 320, 640], stride: [16, 16, 32, 64, 128]}
      kernel_size: 3
    resolution: [512, 640]

`ElasticSpace` answers the same questions as `models.yolo.space.Space`, so every strategy can search it.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, PositiveInt, ValidationError, field_validator

from models.elastic.parts import Part
from models.elastic.ranges import read_part, read_resolution
from models.space import Arch, Choice, Value, known_values, leaning
from utils.errors import UserError, unknown

MODELS = Path(__file__).resolve().parents[1]
NETWORKS = {"retinanet": MODELS / "detectors/retinanet.py", "regnet": MODELS / "backbones/regnet.py"}
KEYS = ("name", "network", "nc", "ch", "resolution", "options")


class Declared(BaseModel):
    """What a network file says of itself.

    PARTS: name of a part -> its dims -> their value where a YAML is silent (None: it must say); `depth` is
        one of them and gives the number of stages (None: any).
    STRIDE: image sides are multiples of it. OPTIONS: settings that are not searched, and their defaults.
    """

    PARTS: dict[str, dict[str, Any]]
    STRIDE: PositiveInt
    OPTIONS: dict[str, Any] = {}
    TASK: Literal["detect", "classify"] = "detect"

    @field_validator("PARTS")
    @classmethod
    def _has_stages(cls, parts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, dims in parts.items():
            stages = dims.get("depth", 0)
            if stages is not None and (not isinstance(stages, int) or stages < 1):
                raise ValueError(f"{name} should have a depth, its number of stages or None")
        return parts


class ElasticSpace:
    """What may vary in a supernet.

    Args:
        source: a YAML file or such a dict.
        nc: number of classes, overrides the file's. ch: input channels, the file's, else 3.

    Attributes:
        name, nc, ch; task: detect or classify; stride: image sides are multiples of it.
        model: the YAML as a plain dict, ready for JSON; `ElasticSpace(model, nc, ch)` is this space again.
        parts: name -> Part, whose dims the network is built from.
        resolution: the choice of the image side, or None where the YAML leaves it to the experiment.
        options: settings of the network that are not searched.
        choices: label -> what it may be, in the order of the network, the default first.
            Labels read `backbone.depth.2` (stage 2), `backbone.kernel_size.2.0` (its first block),
            `neck.out_channel` (one for all stages), `resolution`.

    Raises:
        UserError: for everything a file can get wrong.
    """

    def __init__(
        self, source: str | Path | dict[str, Any], nc: int | None = None, ch: int | None = None
    ) -> None:
        self.model = copy.deepcopy(source) if isinstance(source, dict) else _read(source)
        self.plugin, declared = find_network(self.model.get("network"))
        self.stride, self.task = declared.STRIDE, declared.TASK
        for key in self.model:
            if key not in KEYS and key not in declared.PARTS:
                raise unknown("key of a space YAML", key, [*KEYS, *declared.PARTS])
        self.name = str(self.model.get("name") or self.model["network"])
        self.nc = _count("nc", self.model.get("nc") if nc is None else nc)
        self.ch = _count("ch", ch or self.model.get("ch") or 3)
        self.options: dict[str, Any] = _known_options(self.model.get("options"), declared.OPTIONS)
        self.notices: list[str] = []
        self.parts: dict[str, Part] = {}
        for name, dims in declared.PARTS.items():
            if name not in self.model:
                raise UserError(f"the space says nothing about {name!r}; it needs {name}: {{depth: ...}}")
            self.parts[name] = read_part(name, self.model[name], dims)
        self.resolution = read_resolution(self.model.get("resolution"), self.stride)

        found: dict[str, Choice] = {c.label: c for p in self.parts.values() for c in p.genes()}
        if self.resolution:
            found["resolution"] = self.resolution
        self.choices: dict[str, list[Value]] = {
            label: list(c.values) for label, c in found.items() if len(c.values) > 1
        }
        self._values = {label: {v: v for v in values} for label, values in self.choices.items()}
        self._gated = {k: v for part in self.parts.values() for k, v in part.gated().items()}
        self._ordered = any(part.ordered for part in self.parts.values())
        self.default()  # says so if no arch can meet an order

    def default(self) -> Arch:
        """The unsearched network: `middle` of every range that names one, else its largest value.

        Where an order forbids that, the first value that it allows.
        """
        return self._drawn(lambda values: values[0])

    def random(self, rng: np.random.Generator) -> Arch:
        """An arch whose choices are drawn one after the other, each uniform over what the order leaves."""
        return self._drawn(lambda values: values[int(rng.integers(len(values)))])

    def decided(self, pick: Callable[[list[Value]], Value]) -> Arch:
        """The arch that `pick` makes of the alternatives of each gene that does something, one by one."""
        arch: Arch = {}
        for part in self.parts.values():
            for chain in part.chains(arch):
                arch |= chain.draw(pick)
        if "resolution" in self.choices:
            arch["resolution"] = pick(self.choices["resolution"])
        return {label: arch[label] for label in self._live(arch)}

    def biased(self, rng: np.random.Generator, tilt: float) -> Arch:
        """A random arch that leans to small (`tilt` < 0) or large values; 0 is uniform.

        A value of rank r in 0..1 among its alternatives is drawn in proportion to exp(tilt * r).
        """

        def pick(values: list[Value]) -> Value:
            ordered = sorted(values) if all(not isinstance(v, str) for v in values) else values
            return ordered[leaning(rng, tilt, len(ordered))]

        return self._drawn(pick)

    def smallest(self) -> Arch:
        """Every number as small as the order allows."""
        return self._drawn(lambda values: _extreme(min, values))

    def largest(self) -> Arch:
        """Every number as large as the order allows: the net that teaches the others."""
        return self._drawn(lambda values: _extreme(max, values))

    def canonical(self, arch: Mapping[str, Any]) -> Arch:
        """`arch` without the genes of blocks beyond the depth, in the order of the network.

        Raises UserError for an unknown label or value, a missing label that matters, a broken order.
        """
        checked = known_values(arch, self._values, self.name)
        live = self._live(checked)
        for label in live:
            if label not in checked:
                raise UserError(f"the arch says nothing about {label!r}")
        for part in self.parts.values() if self._ordered else ():
            part.check_order(checked)
        return {label: checked[label] for label in live}

    def repair(self, arch: Mapping[str, Any]) -> Arch:
        """The arch nearest to `arch` that keeps every order; `canonical` where none is broken.

        Nearest in steps between neighbouring values: the depths first, because they say which blocks live.
        Raises UserError for an unknown label or value, and for a missing label that matters.
        """
        if not self._ordered:
            return self.canonical(arch)
        wanted = known_values(arch, self._values, self.name)
        found: Arch = {}
        for part in self.parts.values():
            for chain in part.chains(found):
                found |= chain.nearest(wanted)
        if "resolution" in self.choices and "resolution" in wanted:
            found["resolution"] = wanted["resolution"]
        for label in self._live(found):
            if label not in wanted:
                raise UserError(f"the arch says nothing about {label!r}")
        return {label: found[label] for label in self._live(found)}

    def complete(self, arch: Mapping[str, Any]) -> Arch:
        """`arch` with a value for every label: the default where the gene does nothing."""
        found = self.canonical(arch)
        return {label: found.get(label, values[0]) for label, values in self.choices.items()}

    def size(self) -> tuple[int, int]:
        """(raw, distinct): combinations of all choices, and archs that really differ. Both exact."""
        resolutions = len(self.resolution.values) if self.resolution else 1
        return prod(map(len, self.choices.values())), resolutions * prod(
            p.distinct() for p in self.parts.values()
        )

    def settings(self, arch: Mapping[str, Any]) -> dict[str, dict[str, list[Value]]]:
        """The arch spelled out as United-Perception's `subnet_settings`: part -> dim -> value per stage,
        or per live block where blocks of a stage may differ."""
        arch = self.canonical(arch)
        return {name: part.settings(arch) for name, part in self.parts.items()}

    def from_settings(self, settings: Mapping[str, Any]) -> Arch:
        """The arch of `subnet_settings`. Dims that are not searched may be left out.

        Raises UserError where they are not in this space.
        """
        arch: Arch = {}
        for name, given in settings.items():
            part = self.parts.get(_part_alias(name))
            if part is None:
                raise unknown("part in subnet_settings", name, self.parts)
            arch |= part.from_settings(given)
        if "resolution" in self.choices:
            arch.setdefault("resolution", self.choices["resolution"][0])
        return self.canonical(arch)

    def cost(self, arch: Mapping[str, Value], imgsz: int | tuple[int, int]) -> dict[str, float]:
        """Parameters in millions and GFLOPs (2 x MACs of convolutions and linear layers, one image).

        imgsz: side, or (height, width); an arch with a `resolution` is priced at that instead. Look-ups and
        sums after the first call, which builds the network without memory on torch's meta device. Equal to
        `torch.utils.flop_counter` on the extracted network.
        """
        if arch.keys() - self._values.keys():
            self.canonical(arch)  # says what is wrong
        size = arch.get("resolution", imgsz) if self.resolution else imgsz
        return self._costs(size)(arch)

    def build(self) -> Any:
        """The network, as its plugin builds it: elastic, or plain under NNI's `model_context`."""
        return load_network(self.plugin).build(self)

    def _costs(self, size: Any) -> Callable[[Mapping[str, Value]], dict[str, float]]:
        sides = size if isinstance(size, tuple) else (size, size)
        for side in sides:
            if isinstance(side, bool) or not isinstance(side, int) or side < 1 or side % self.stride:
                near = max(1, round(side / self.stride)) * self.stride
                raise UserError(f"imgsz {side} is not a multiple of the stride {self.stride}; try {near}")
        if sides not in self._tables:
            from models.elastic.costs import CostTable

            self._tables[sides] = CostTable(self._skeleton, (self.ch, *sides))
        return self._tables[sides]

    @cached_property
    def _tables(self) -> dict[tuple[int, int], Any]:
        return {}

    @cached_property
    def _skeleton(self) -> Any:
        import torch

        with torch.device("meta"):
            return self.build()

    def _live(self, arch: Mapping[str, Any]) -> list[str]:
        """Labels that mean something in `arch`, in the order of the network."""
        gated = self._gated
        if not gated:
            return list(self.choices)
        return [k for k in self.choices if k not in gated or gated[k][1] < gated[k][0](arch)]

    def _drawn(self, pick: Callable[[list[Value]], Value]) -> Arch:
        if self._ordered:
            return self.decided(pick)
        arch = {label: pick(values) for label, values in self.choices.items()}
        return {label: arch[label] for label in self._live(arch)}


def find_network(network: Any) -> tuple[Path, Declared]:
    """(file, what it declares) of a network: a name of NETWORKS or a plugin file.

    The declarations are read as literals, without running the file, so that a mistake in a YAML is answered
    before torch is imported. UserError for a file that is missing, no Python, or no network.
    """
    if not isinstance(network, str):
        raise UserError(f"the space does not say its network; add `network: {next(iter(NETWORKS))}`")
    path = NETWORKS.get(network)
    if path is None:
        path = Path(network).expanduser()
        if path.suffix != ".py":
            raise unknown("network", network, [*NETWORKS, "a plugin's path, e.g. plugins/mine.py"])
        if not path.is_file():
            raise UserError(f"no network file {network!r}")
    try:
        lines = ast.parse(path.read_bytes(), path.name).body
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not Python: {error}") from None
    declared: dict[str, Any] = {}
    for node in lines:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in Declared.model_fields:
                try:
                    declared[name] = ast.literal_eval(value)
                except ValueError:
                    raise UserError(f"{path}: {name} should be a literal: it is read, not run") from None
    try:
        return path, Declared(**declared)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise UserError(f"{path} is not a network: it declares no {name}") from None
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{path} is not a network: {name}: {first['input']!r} does not fit: {reason}"
        ) from None


def load_network(path: Path) -> Any:
    """The module of a network file, under the name it would have if it were imported (built-in networks)."""
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
        raise UserError(f"{path} is not a network: it has no function build(space)")
    return known


def _read(source: str | Path) -> dict[str, Any]:
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"no space file {str(source)!r}")
    try:
        model = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{path} is not YAML: {getattr(error, 'problem', None) or error}{where}") from None
    if not isinstance(model, dict):
        raise UserError(f"{path} is not a space: expected network and its parts, got {model!r}")
    model.setdefault("name", path.stem)
    plugin = model.get("network")
    if isinstance(plugin, str) and plugin.endswith(".py") and not Path(plugin).expanduser().is_absolute():
        model["network"] = str((path.parent / plugin).resolve())
    return model


def _count(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{key} should be a whole number, 1 or more, got {value!r}")
    return value


def _known_options(given: Any, known: dict[str, Any]) -> dict[str, Any]:
    if given is None:
        return dict(known)
    if not isinstance(given, dict):
        raise UserError(f"options should be like {{name: value}}, got {given!r}")
    for key in given:
        if key not in known:
            raise unknown("option of the network", key, known)
    return {**known, **given}


def _part_alias(name: str) -> str:
    """United-Perception names the two towers of a head, which here share their dims."""
    return "head" if name in ("roi_head", "roi_head.cls_subnet", "roi_head.box_subnet") else name


def _extreme(best: Callable[[Iterable[Any]], Any], values: Sequence[Value]) -> Value:
    return values[0] if any(isinstance(v, str) for v in values) else best(values)
