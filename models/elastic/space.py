"""Spaces of supernets: ranges per stage in YAML, archs as plain dicts. No torch until a cost is asked.

    network: retinanet                # what it is composed of, see models/elastic/composed.py
    backbone:
      depth: {min: [1, 1, 2, 2, 4], max: [1, 3, 4, 4, 6], sample: stage}
      out_channel: {min: [32, 48, 96, 192, 384], max: [64, 80, 160, 320, 640], stride: [16, 16, 32, 64, 128]}
      kernel_size: 3
    resolution: [512, 640]

`ElasticSpace` keeps the contract of models/space.py, so every strategy can search it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from models.elastic import genotype, mmrazor
from models.elastic.composed import BACKBONES, beside, compose, declared
from models.elastic.outline import blocks_of
from models.elastic.parts import Part
from models.elastic.ranges import read_part, read_resolution
from models.space import Arch, Block, Choice, LabelledSpace, Take, Value, check_side, known_values
from models.yaml_file import check_numbers, positive, read_mapping
from utils.errors import UserError, unknown
from utils.sides import Sides, longer, pair

SPELLINGS: dict[str, Any] = {"genotype": genotype, "mutable_cfg": mmrazor}
KEYS = ("name", "network", "nc", "ch", "resolution", "options")


class ElasticSpace(LabelledSpace):
    """What may vary in a supernet.

    Args:
        source: a YAML file or such a dict.
        nc: number of classes, overrides the file's. ch: input channels, the file's, else 3.

    Attributes:
        parts: name -> Part, whose dims the network is built from.
        resolution: the choice of the longer side of images, or None where the YAML has none.
        options: settings of the network that are not searched.
        choices: label -> what it may be, in the order of the network, the default first.
            Labels read `backbone.depth.2` (stage 2), `backbone.kernel_size.2.0` (its first block),
            `neck.out_channel` (one for all stages), `resolution`.
        The others are those of every space (models/space.py).

    Raises:
        UserError: for everything a file can get wrong.
    """

    formats: Mapping[str, str] = {"pt": ".pt2", "onnx": ".onnx"}

    def __init__(
        self, source: str | Path | dict[str, Any], nc: int | None = None, ch: int | None = None
    ) -> None:
        self.model = copy.deepcopy(source) if isinstance(source, dict) else _read(source)
        self.composed = compose(self.model.get("network"))
        self.stride, self.task = self.composed.stride, self.composed.task
        for key in self.model:
            if key not in KEYS and key not in self.composed.parts:
                raise unknown("key of a space YAML", key, [*KEYS, *self.composed.parts])
            if key != "name":
                check_numbers(str(key), self.model[key])
        self.name = str(self.model.get("name") or self.composed)
        self.nc = positive("nc", self.model.get("nc") if nc is None else nc)
        self.ch = positive("ch", ch or self.model.get("ch") or 3)
        self.options: dict[str, Any] = _known_options(self.model.get("options"), self.composed.options)
        if self.composed.spelling == "genotype" and self.options["version"] == 3:
            self.formats = {**self.formats, "torchvision": ".torchvision.pth"}
        self.notices: list[str] = []
        self.parts: dict[str, Part] = {}
        for name, dims in self.composed.parts.items():
            if name not in self.model:
                raise UserError(f"the space says nothing about {name!r}; it needs {name}: {{depth: ...}}")
            self.parts[name] = read_part(name, self.model[name], dims)
        self.resolution = read_resolution(self.model.get("resolution"), self.stride)

        found: dict[str, Choice] = {c.label: c for p in self.parts.values() for c in p.genes()}
        if self.resolution:
            found["resolution"] = self.resolution
        self._label(list(found.values()))
        self._priced: dict[str, Choice] = {}
        self._gated = {k: v for part in self.parts.values() for k, v in part.gated().items()}
        self.ordered = any(part.ordered for part in self.parts.values())
        self.default()  # says so if no arch can meet an order

    @property
    def outline(self) -> str:
        stages = ", ".join(f"{part.name} of {part.stages}" for part in self.parts.values())
        return f"network {self.composed} with stages: {stages}"

    def random(self, rng: np.random.Generator) -> Arch:
        """An arch whose choices are drawn one after the other, each uniform over what the order leaves."""
        return self._drawn(lambda choice: choice.values[int(rng.integers(len(choice.values)))])

    def _decided(self, take: Take) -> Arch:
        arch: Arch = {}
        for part in self.parts.values():
            for chain in part.chains(arch):
                arch |= chain.draw(take)
        if "resolution" in self.genes:
            arch["resolution"] = take(self.genes["resolution"])
        return self._canonical(arch)

    def priced(self, choice: Choice) -> Choice:
        """The choice with its values in order. Words, such as the paths of a block, are in the order of what
        they cost in their place, with everything else at its default; they have none where all cost the same,
        as activations do."""
        if choice.ordered or len(choice.values) == 1:
            return choice
        if choice.label not in self._priced:
            self._priced[choice.label] = self._by_cost(self.genes[choice.label])
        ordered = self._priced[choice.label].ordered or ()
        return Choice(choice.label, choice.values, tuple(v for v in ordered if v in choice.values))

    def _by_cost(self, choice: Choice) -> Choice:
        base = {k: c.largest if ".depth" in k else c.default for k, c in self.genes.items()}
        costs: dict[Value, tuple[float, float]] = {}
        for value in choice.values:
            cost = self.cost({**base, choice.label: value}, 2 * self.stride)
            costs[value] = cost["gflops"], cost["params_m"]
        differ = len(set(costs.values())) > 1
        return Choice(choice.label, choice.values, tuple(sorted(costs, key=costs.__getitem__)) * differ)

    def canonical(self, arch: Mapping[str, Any]) -> Arch:
        """`arch` without the genes of blocks beyond the depth, in the order of the network.

        Raises UserError for an unknown label or value, a missing label that matters, a broken order.
        """
        checked = known_values(arch, self._values, self.name)
        live = self._live(checked)
        self._require(live, checked)
        for part in self.parts.values() if self.ordered else ():
            part.check_order(checked)
        return {label: checked[label] for label in live}

    def repair(self, genes: Mapping[str, Any]) -> Arch:
        """The arch nearest to the genes that keeps every order; `canonical` where none is broken.

        Nearest in steps between neighbouring values: the depths first, because they say which blocks live.
        Raises UserError for an unknown label or value, and for a missing label that matters.
        """
        if not self.ordered:
            return self.canonical(genes)
        wanted = known_values(genes, self._values, self.name)
        found: Arch = {}
        for part in self.parts.values():
            for chain in part.chains(found):
                found |= chain.nearest(wanted)
        if "resolution" in self.choices and "resolution" in wanted:
            found["resolution"] = wanted["resolution"]
        self._require(self._live(found), wanted)
        return self._canonical(found)

    def _distinct(self) -> int:
        return prod(part.distinct() for part in self.parts.values())

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

    def cost(self, arch: Mapping[str, Value], imgsz: Sides) -> dict[str, float]:
        """Parameters in millions and GFLOPs (2 x MACs of convolutions and linear layers, one image).

        imgsz: side, or (height, width); a `resolution` is the longer side in its place. Look-ups and sums
        after the first call, which builds the network without memory on torch's meta device. Equal to
        `torch.utils.flop_counter` on the extracted network.
        """
        if arch.keys() - self._values.keys():
            self.canonical(arch)  # says what is wrong
        return self._costs(self.side(arch, imgsz))(arch)

    def classifier(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The YAML, without `nc`, of the same backbones as classifiers, for images of any one size."""
        if self.composed.backbone is None:
            return super().classifier(options)
        known = declared(self.composed.backbone).OPTIONS
        names = {path: name for name, path in BACKBONES.items()}
        backbone = names.get(self.composed.backbone, str(self.composed.backbone))
        kept = {key: value for key, value in self.options.items() if key in known}
        return {
            "name": f"{self.name} as a classifier",
            "network": {"detector": "classifier", "backbone": backbone},
            "ch": self.ch,
            "backbone": copy.deepcopy(self.model["backbone"]),
            "options": {**kept, **options},
        }

    def build(self, arch: Mapping[str, Any], names: Sequence[str] | None = None) -> Any:
        """The network of an arch: plain modules, fresh weights of torch's generator."""
        from nni.nas.space import model_context  # costs seconds

        with model_context(self.complete(arch)):
            net = self.supernet()
        if names is not None:
            net.names = list(names)
        return net

    def supernet(self) -> Any:
        """The network, as its file builds it: elastic, or plain under NNI's `model_context`."""
        return self.composed.build(self.parts, self.nc, self.ch, self.options, self)

    def blocks(self, arch: Mapping[str, Any], imgsz: Sides) -> list[Block]:
        return blocks_of(self.parts, self.complete(arch))

    def exporters(self) -> Mapping[str, Callable[..., Any]]:
        from models.export_plain import EXPORTERS

        return EXPORTERS

    def spelled(self, arch: Mapping[str, Any]) -> dict[str, Any]:
        settings, key = {"subnet_settings": self.settings(arch)}, self.composed.spelling
        return settings if key is None else settings | {key: SPELLINGS[key].write(self, self.canonical(arch))}

    def read_spelled(self, record: Mapping[str, Any]) -> Arch | None:
        """The arch of a file's `subnet_settings`, or of what others call theirs; where the resolution is
        searched and they do not say it, it is the longer side of `imgsz`."""
        readers: dict[str, Callable[[Any], Arch]] = {"subnet_settings": self.from_settings}
        if (own := self.composed.spelling) is not None:
            readers[own] = lambda said: SPELLINGS[own].read(self, said)
        if own == "mutable_cfg":
            readers["genotype"] = readers[own]
        for key in (key for key in SPELLINGS if key in record and key not in readers):
            raise UserError(f"networks of {self.composed} have no {key}; give the arch instead")
        told = [key for key in readers if key in record]
        found = [self._at_side(readers[key](record[key]), record) for key in told]
        if any(arch != found[0] for arch in found):
            raise UserError(f"{' and '.join(told)} contradict each other; drop one")
        return found[0] if found else None

    def _at_side(self, arch: Arch, record: Mapping[str, Any]) -> Arch:
        if "resolution" not in arch or "image_size" in str(record.get("genotype")):
            return arch
        side = record.get("arch", {}).get("resolution", record["imgsz"] and longer(record["imgsz"]))
        return self.canonical(arch | {"resolution": side})

    def _costs(self, imgsz: Sides) -> Callable[[Mapping[str, Value]], dict[str, float]]:
        if imgsz not in self._tables:
            from models.elastic.costs import CostTable

            check_side(imgsz, self.stride)
            self._tables[imgsz] = CostTable(self._skeleton, (self.ch, *pair(imgsz)))
        return self._tables[imgsz]

    @cached_property
    def _tables(self) -> dict[Sides, Any]:
        return {}

    @cached_property
    def _skeleton(self) -> Any:
        from utils.unborn import without_numbers

        with without_numbers():
            return self.supernet()

    def _live(self, arch: Mapping[str, Any]) -> list[str]:
        """Labels that mean something in `arch`, in the order of the network."""
        gated = self._gated
        if not gated:
            return list(self.choices)
        return [k for k in self.choices if k not in gated or gated[k][1] < gated[k][0](arch)]

    def _canonical(self, genes: Arch) -> Arch:
        return {label: genes[label] for label in self._live(genes)}

    def _require(self, labels: Sequence[str], arch: Arch) -> None:
        for label in labels:
            if label not in arch:
                raise UserError(f"the arch says nothing about {label!r}")


def _read(source: str | Path) -> dict[str, Any]:
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"no space file {str(source)!r}")
    model = read_mapping(path, "a space: expected network and its parts")
    model.setdefault("name", path.stem)
    model["network"] = beside(path.parent, model.get("network"))
    return model


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
