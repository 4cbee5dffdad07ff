"""Spaces of serial codes: an arch is `{"code": "r_111-2111-211111-211"}`, in the dialect of the YAML.

    code: r_111-2111-211111-211   # the unsearched network, where every walk begins
    dialect: paper                # or vega; see models/serial/code.py
    detector: retinanet           # what stands on the backbone, see models/elastic/composed.py
    base: 64                      # planes of the first stage
    blocks: [8, 60]               # fewest and most
    stages: [4, 7]
    streams: 3                    # most extra streams of a stage; serial searches leave them as they are
    levels: {finest: 8, extra: 1} # of the neck: from this stride on, and how many beyond the last map
    neck: {out_channel: 256}      # as in other spaces, without its depth, which follows the code
    head: {depth: [4], out_channel: 256}

Searches vary codes by the operators of models/serial/code.py. Their genes are the blocks, one label each, for
strategies that know labels alone: `1`, `2`, `-1` and `-2` (which begin a stage), and "" where there is none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from math import ceil, comb
from pathlib import Path
from typing import Any

import numpy as np

from models.elastic.composed import MODELS, Composed, compose, declared, load
from models.elastic.parts import Part
from models.elastic.ranges import read_part
from models.serial.code import (
    CHANGES,
    EXTRA,
    RATES,
    Block,
    Bounds,
    Code,
    Stage,
    mutate,
    parse,
    translated,
)
from models.space import Arch, Choice, Genes, Take, Value, check_side
from models.space import Block as Drawn
from models.yaml_file import check_numbers, positive, read_mapping
from utils.errors import UserError, unknown
from utils.sides import Sides, pair, read_sides

KEYS = {
    **dict.fromkeys(("name", "nc", "ch", "code", "options", "rates")),
    "dialect": "paper",
    "detector": "retinanet",
    "base": 64,
    "blocks": [8, 60],
    "stages": [4, 7],
    "streams": EXTRA,
    "levels": {"finest": 8, "extra": 1},
}
WALK = 8  # mutations of the longest random walk
TRIES = 100  # mutations that are tried before a step is given up


class SerialSpace:
    """All codes within bounds that have the base code's kind of block and its number of `2`.

    Args:
        source: a YAML file or such a dict. nc: number of classes, overrides the file's. ch: input channels.

    Attributes: those of every space (models/space.py). base: the code that walks begin with. bounds, rates:
        of changes. stride: of the coarsest map that a code may have; image sides are multiples of it.

    Raises:
        UserError: for everything a file can get wrong.
    """

    formats: Mapping[str, str] = {"pt": ".pt2", "onnx": ".onnx"}
    ordered = layered = False
    walks = True  # random codes come from walks, not from genes drawn one by one

    def __init__(
        self, source: str | Path | dict[str, Any], nc: int | None = None, ch: int | None = None
    ) -> None:
        self.model: dict[str, Any] = copy.deepcopy(source) if isinstance(source, dict) else _read(source)
        model: dict[str, Any] = {key: value for key, value in KEYS.items() if value is not None} | self.model
        self.composed: Composed = compose({"detector": model["detector"], "backbone": "serial"})
        self.task, others = self.composed.task, [p for p in self.composed.parts if p != "backbone"]
        for key in self.model:
            if key not in KEYS and key not in others:
                raise unknown("key of a space YAML", key, [*KEYS, *others])
            check_numbers(str(key), self.model[key]) if key not in ("name", "code") else None
        self.nc = positive("nc", self.model.get("nc") if nc is None else nc)
        self.ch = positive("ch", ch or self.model.get("ch") or 3)
        self.planes = positive("base", model["base"])
        self.base = parse(str(model["code"]), model["dialect"])
        self.bounds = Bounds(_range("blocks", model["blocks"]), _range("stages", model["stages"]))
        self.most_streams = model["streams"]
        if type(self.most_streams) is not int or not 0 <= self.most_streams <= EXTRA:
            raise UserError(f"streams should be 0 to {EXTRA}, got {self.most_streams!r}")
        self.rates = _rates(model.get("rates"))
        self.levels = _levels(model["levels"])
        self.options = _known("option of the network", model.get("options"), self.composed.options)
        self.given = {name: _dims(name, self.model.get(name)) for name in others}
        self.name = str(self.model.get("name") or self.composed)
        self.notices: list[str] = []
        self.check(self.base)
        self._parts(self.base)
        vega = self.base.dialect == "vega"
        self.stride = 4 << (self.base.doublings if vega else self.bounds.stages[1] - 1)
        self.choices: dict[str, list[Value]] = self._choices()

    def _choices(self) -> dict[str, list[Value]]:
        default, found = _written(self.base), {}
        for i in range(self.bounds.blocks[1]):
            mine = default[i] if i < len(default) else ""
            others = ("1", "2") if i == 0 else ("1", "2", "-1", "-2", "")
            found[f"block.{i}"] = list(dict.fromkeys([mine, *others]))
        for i in range(self.bounds.stages[1] if self.most_streams else 0):
            mine = str(self.base.streams[i]) if i < len(self.base.streams) else "0"
            found[f"streams.{i}"] = list(dict.fromkeys([mine, *map(str, range(self.most_streams + 1))]))
        return found  # type: ignore[return-value]

    @property
    def outline(self) -> str:
        return (
            f"{self.composed.detector.stem} on the serial backbone {self.base}, dialect {self.base.dialect}, "
            f"{self.bounds.blocks[0]} to {self.bounds.blocks[1]} blocks in {self.bounds.stages[0]} to "
            f"{self.bounds.stages[1]} stages"
        )

    # Codes and archs.

    def code(self, arch: Mapping[str, Any]) -> Code:
        """The code of an arch, checked. Raises UserError for what is not of this space."""
        if set(arch) != {"code"} or not isinstance(arch["code"], str):
            raise UserError(f"an arch of {self.name} is like {self.default()}, got {dict(arch)}")
        return self.check(_parsed(arch["code"], self.base.dialect))

    def check(self, code: Code) -> Code:
        """The code. Raises UserError where it breaks a bound, or is of other blocks than the base."""
        said = self.bounds.broken(code)
        if said:
            raise UserError(f"serial code {code} has {said}")
        ours, theirs = ((c.kind, c.groups, c.group_width) for c in (self.base, code))
        if ours != theirs:
            raise UserError(f"serial code {code} is of other blocks than {self.name}'s {self.base}")
        if code.doublings != self.base.doublings or code.blocks[0].two != self.base.blocks[0].two:
            raise UserError(
                f"serial code {code} has {code.doublings} blocks 2; in {self.name} it is "
                f"{self.base.doublings}, as in {self.base}, never the first"
            )
        if max(code.streams) > self.most_streams:
            raise UserError(f"serial code {code} has more than {self.most_streams} extra streams in a stage")
        return code

    def default(self) -> Arch:
        return {"code": str(self.base)}

    def canonical(self, arch: Mapping[str, Any]) -> Arch:
        if "code" in arch or not set(arch) <= set(self.choices):
            return {"code": str(self.code(arch))}
        return self.repair(arch)

    def complete(self, arch: Mapping[str, Any]) -> Genes:
        code = _parsed(self.canonical(arch)["code"], self.base.dialect)
        written, streams = _written(code), list(map(str, code.streams))
        genes: Genes = {}
        for label in self.choices:
            kind, number = label.split(".")
            row, absent = (written, "") if kind == "block" else (streams, "0")
            genes[label] = row[int(number)] if int(number) < len(row) else absent
        return genes

    def repair(self, genes: Mapping[str, Any]) -> Arch:
        """The code that the genes write, with as few blocks, stages and `2` changed as the bounds ask for."""
        if "code" in genes:
            return self.canonical({"code": genes["code"]})
        stages: list[list[bool]] = []
        for label in self.choices:
            word = str(genes.get(label, "")) if label.startswith("block") else ""
            if word.startswith("-") or (word and not stages):
                stages.append([])
            if word:
                stages[-1].append(word[-1] == "2")
        streams = [min(int(genes.get(f"streams.{i}", 0)), self.most_streams) for i in range(len(stages))]
        return {"code": str(self._bounded(stages or [[False]], streams or [0]))}

    def _bounded(self, stages: list[list[bool]], streams: list[int]) -> Code:
        """The code of these stages, moved into the bounds."""
        (fewest, most), (few, many) = self.bounds.blocks, self.bounds.stages
        while len(stages) > many:
            stages[-2:] = [stages[-2] + stages[-1]]
        while len(stages) < few:
            longest = max(stages, key=len)
            if len(longest) == 1:
                longest.append(False)
            at = stages.index(longest)
            stages[at : at + 1] = [longest[: ceil(len(longest) / 2)], longest[ceil(len(longest) / 2) :]]
        while sum(map(len, stages)) > most:
            max(stages, key=len).pop()
        while sum(map(len, stages)) < fewest:
            min(stages, key=len).append(False)
        flat = [two and i > 0 for i, two in enumerate(two for stage in stages for two in stage)]
        flat[0] = self.base.blocks[0].two
        starts, at = [], 0
        for stage in stages:
            starts.append(at)
            at += len(stage)
        for i in [i for i in range(len(flat) - 1, 0, -1) if flat[i]][
            : max(0, sum(flat) - self.base.doublings)
        ]:
            flat[i] = False
        for i in [*starts[1:], *range(1, len(flat))]:
            if sum(flat) < self.base.doublings:
                flat[i] = True
        made: list[Stage] = []
        for start, stage in zip(starts, stages, strict=True):
            made.append(tuple(Block(flat[i], i) for i in range(start, start + len(stage))))
        padded = (*streams, *[0] * len(made))[: len(made)]
        return replace(self.base, stages=tuple(made), streams=padded)

    def size(self) -> tuple[int, int]:
        """(combinations of genes, codes that really differ). Both exact."""
        raw = 1
        for values in self.choices.values():
            raw *= len(values)
        later = self.base.doublings - self.base.blocks[0].two
        distinct = sum(
            comb(n - 1, s - 1) * comb(n - 1, later) * (self.most_streams + 1) ** s
            for n in range(self.bounds.blocks[0], self.bounds.blocks[1] + 1)
            for s in range(self.bounds.stages[0], min(n, self.bounds.stages[1]) + 1)
        )
        return raw, distinct

    # Walks.

    def walk(self, code: Code, rng: np.random.Generator, steps: int, changes: int = 3) -> Code:
        """So many mutations of a code; fewer where bounds leave no way."""
        for _ in range(steps):
            try:
                code = mutate(code, rng, rates=self.rates, bounds=self.bounds, changes=changes)
            except UserError:
                break
        return code

    def random(self, rng: np.random.Generator) -> Arch:
        return {"code": str(self.walk(self.base, rng, int(rng.integers(1, WALK + 1))))}

    def biased(self, rng: np.random.Generator, tilt: float) -> Arch:
        drawn = [self.random(rng) for _ in range(1 + ceil(abs(tilt)))]
        pick = max if tilt > 0 else min
        return pick(drawn, key=lambda arch: self.cost(arch, self.stride)["gflops"]) if tilt else drawn[0]

    def mutate(self, genes: Genes, rng: np.random.Generator, prob: float = 1.0) -> Genes:
        """1 to 3 changes of the code, whatever `prob` (0: none)."""
        return self._changed(genes, rng, 1 if prob else 0)

    def redraw(self, genes: Genes, rng: np.random.Generator, prob: float) -> Genes:
        """A walk, the longer the larger `prob`."""
        return self._changed(genes, rng, ceil(prob * WALK))

    def change(self, genes: Genes, rng: np.random.Generator) -> Genes:
        return self._changed(genes, rng, 1, 1)

    def _changed(self, genes: Genes, rng: np.random.Generator, steps: int, changes: int = 3) -> Genes:
        code = self.walk(self.code(self.repair(genes)), rng, steps, changes)
        return self.complete({"code": str(code)})

    def changes(self, genes: Genes) -> Iterator[Genes]:
        """All codes that are one change away."""
        code = self.code(self.repair(genes))
        for near in self._near(code):
            yield self.complete({"code": str(near)})

    def _near(self, code: Code) -> list[Code]:
        found = [c for change in CHANGES.values() for c in change(code, len(code.blocks))]
        return [c for c in dict.fromkeys(found) if c != code and self.bounds.broken(c) is None]

    def cross(self, mother: Genes, father: Genes, rng: np.random.Generator) -> Genes:
        """The first stages of one and the last of the other, cut at a stage that both have."""
        a, b = self.code(self.repair(mother)), self.code(self.repair(father))
        cut = (
            int(rng.integers(1, min(len(a.stages), len(b.stages))))
            if min(len(a.stages), len(b.stages)) > 1
            else 1
        )
        stages = [[block.two for block in stage] for stage in (*a.stages[:cut], *b.stages[cut:])]
        code = self._bounded(stages, [*a.streams[:cut], *b.streams[cut:]])
        return self.complete({"code": str(code)})

    def with_streams(self, arch: Mapping[str, Any], rng: np.random.Generator) -> Arch:
        """The arch with extra streams drawn anew for each stage, by `stream_weights`."""
        code = self.code(arch)
        weights = [np.array(self.stream_weights(code, i)) for i in range(len(code.stages))]
        drawn = tuple(int(rng.choice(len(w), p=w / w.sum())) for w in weights)
        return {"code": str(replace(code, streams=drawn))}

    def stream_weights(self, code: Code, stage: int) -> list[float]:
        """How often a stage has 0, 1, 2, ... extra streams: in proportion to 1 / (1 + their MACs), these in
        the mean of a stage of this backbone. (SP-NAS says so, and draws .4, .3, .2, .1 whatever they cost.)
        """

        def macs(k: int) -> int:
            streams = tuple(k if i == stage else 0 for i in range(len(code.stages)))
            return self._backbone_cost(replace(code, streams=streams), self.stride)[1]

        mean = macs(0) / len(code.stages)
        return [1 / (1 + (macs(k) - macs(0)) / mean) for k in range(self.most_streams + 1)]

    def serial(self, arch: Mapping[str, Any]) -> bool:
        """Whether no stage has extra streams."""
        return not any(self.code(arch).streams)

    def smallest(self) -> Arch:
        """Where single changes find nothing with fewer GFLOPs any more."""
        return dict(self._ends[0])

    def largest(self) -> Arch:
        return dict(self._ends[1])

    @cached_property
    def _ends(self) -> tuple[Arch, Arch]:
        return self._steepest(-1), self._steepest(1)

    def _steepest(self, sign: int) -> Arch:
        def price(code: Code) -> float:
            return sign * self.cost({"code": str(code)}, self.stride)["gflops"]

        code, value = replace(self.base, streams=(0,) * len(self.base.stages)), 0.0
        while True:
            best = max(self._near(code), key=price, default=code)
            value = price(code)
            if best == code or price(best) <= value:
                return {"code": str(code)}
            code = best

    def decided(self, take: Take) -> Arch:
        return self.repair({k: take(Choice(k, tuple(v), ())) for k, v in self.choices.items()})

    # Costs and networks.

    def side(self, arch: Mapping[str, Any], imgsz: Sides) -> Sides:
        return imgsz

    def cost(self, arch: Mapping[str, Value], imgsz: Sides) -> dict[str, float]:
        check_side(imgsz, self.stride)
        code = self.code(arch) if "code" in arch else self.code(self.repair(arch))
        params, macs = self._rest(code, imgsz) + self._backbone_cost(code, imgsz)
        return {"params_m": round(params) / 1e6, "gflops": 2 * round(macs) / 1e9}

    def _backbone_cost(self, code: Code, imgsz: Sides) -> tuple[int, int]:
        from models.serial.costs import backbone_cost

        return backbone_cost(code, self.ch, self.planes, bool(self.options["own_streams"]), imgsz)

    def _rest(self, code: Code, imgsz: Sides) -> np.ndarray:
        """[parameters, MACs] of all but the backbone. They hang on its maps alone, and each lateral layer on
        the width of its map: a constant, and so much for each channel of each map."""
        from models.backbones.serial import maps

        found = maps(code, self.planes)
        at = tuple(stride for _, stride in found)
        if (at, imgsz) not in self._known_rests:
            least = self._measured(code, [(8, stride) for stride in at], imgsz)
            more = [
                self._measured(code, [(16 if j == i else 8, stride) for j, stride in enumerate(at)], imgsz)
                for i in range(len(at))
            ]
            self._known_rests[at, imgsz] = least, (np.array(more) - least) / 8
        least, each = self._known_rests[at, imgsz]
        return least + (np.array([channels for channels, _ in found]) - 8) @ each

    def _measured(self, code: Code, maps: Sequence[tuple[int, int]], imgsz: Sides) -> np.ndarray:
        from models.elastic.costs import CostTable
        from models.serial.costs import Maps
        from utils.unborn import without_numbers

        with without_numbers():
            cost = CostTable(self._around(Maps(maps), code), (self.ch, *pair(imgsz)))({})
        return np.array([cost["params_m"] * 1e6, cost["gflops"] * 1e9 / 2])

    @cached_property
    def _known_rests(self) -> dict[Any, tuple[np.ndarray, np.ndarray]]:
        return {}

    def _parts(self, code: Code) -> dict[str, Part]:
        """The neck and the head that fit a code."""
        from models.backbones.serial import maps

        at = [stride for _, stride in maps(code, self.planes)]
        laterals = max(1, sum(stride >= self.levels["finest"] for stride in at))
        found = {}
        for name, given in self.given.items():
            depth = {"depth": [laterals, laterals + self.levels["extra"]]} if name == "neck" else {}
            found[name] = read_part(name, {**given, **depth}, self.composed.parts[name])
        return found

    def _around(self, backbone: Any, code: Code) -> Any:
        from models.backbones.serial import maps

        stride = maps(code, self.planes)[-1][1]
        return load(self.composed.detector).build(backbone, stride, self._parts(code), self.nc, self.options)

    def build(self, arch: Mapping[str, Any], names: Sequence[str] | None = None) -> Any:
        """The network of an arch: plain modules, fresh weights of torch's generator."""
        from nni.nas.space import model_context  # costs seconds

        from models.backbones.serial import aliases, build

        code = self.code(arch)
        with model_context({}):
            net = self._around(build(code, self.ch, self.options, self.planes), code)
        net.aliases = (*aliases(), *net.aliases)
        if names is not None:
            net.names = list(names)
        return net

    def classifier(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The YAML, without `nc`, of the same backbones as classifiers."""
        known = declared(MODELS / "backbones/serial.py").OPTIONS
        others = [part for part in self.composed.parts if part != "backbone"]
        model = {key: value for key, value in self.model.items() if key not in (*others, "nc", "levels")}
        kept = {key: value for key, value in self.options.items() if key in known}
        name = f"{self.name} as a classifier"
        return {**model, "name": name, "detector": "classifier", "options": {**kept, **options}}

    def supernet(self) -> Any:
        raise UserError(
            f"{self.name} is a space of serial codes: its networks share no supernet; drop `supernet:`"
        )

    def blocks(self, arch: Mapping[str, Any], imgsz: Sides) -> list[Drawn]:
        from models.backbones.serial import BLOCKS
        from models.elastic.outline import blocks_of

        code, (height, width), found = self.code(arch), pair(imgsz), []
        (kind, wide), shrunk = BLOCKS[code.kind], 4
        for i, stage in enumerate(code.shapes(self.planes)):
            for _, stride in stage:
                shrunk *= stride
            facts: dict[str, Any] = {"blocks": len(stage), "code": _text(code, i)}
            if code.streams[i]:
                facts["extra streams"] = code.streams[i]
            found.append(
                {
                    "part": "backbone",
                    "name": f"stage {i}",
                    "kind": kind.__name__,
                    "channels": stage[-1][0] * wide,
                    "side": read_sides([height // shrunk, width // shrunk]),
                    "sources": [],
                    "facts": facts,
                }
            )
        return found + blocks_of(self._parts(code), {})

    def exporters(self) -> Mapping[str, Callable[..., Any]]:
        from models.export_plain import EXPORTERS

        return EXPORTERS

    def spelled(self, arch: Mapping[str, Any]) -> dict[str, Any]:
        """`serial_code`: dialect -> text, of each that can say it."""
        code, found = self.code(arch), {}
        for dialect in ("paper", "vega"):
            try:
                found[dialect] = str(translated(code, dialect))
            except UserError:
                continue
        return {"serial_code": found}

    def read_spelled(self, record: Mapping[str, Any]) -> Arch | None:
        """The arch of a file's `serial_code`, whichever dialect it has."""
        said = record.get("serial_code")
        if not isinstance(said, Mapping) or not said:
            return None
        own = self.base.dialect
        dialect = own if own in said else next(iter(said))
        return self.canonical({"code": str(translated(parse(str(said[dialect]), dialect), own))})


@lru_cache(maxsize=4096)
def _parsed(text: str, dialect: str) -> Code:
    return parse(text, dialect)


def _written(code: Code) -> list[str]:
    """A word for each block, as genes have them."""
    return [
        "-" * (number > 0 and place == 0) + "12"[block.two]
        for number, stage in enumerate(code.stages)
        for place, block in enumerate(stage)
    ]


def _text(code: Code, stage: int) -> str:
    return "".join("12"[block.two] for block in code.stages[stage])


def _read(source: str | Path) -> dict[str, Any]:
    path = Path(source).expanduser()
    model = read_mapping(path, "a space: expected code and detector")
    model.setdefault("name", path.stem)
    return model


def _range(key: str, given: Any) -> tuple[int, int]:
    whole = isinstance(given, list) and len(given) == 2 and all(type(n) is int and n > 0 for n in given)
    if not whole or given[0] > given[1]:
        raise UserError(f"{key} should be the fewest and the most, like [8, 60], got {given!r}")
    return given[0], given[1]


def _rates(given: Any) -> dict[str, float]:
    rates = _known("change of a code", given, RATES)
    if not all(isinstance(r, int | float) and r >= 0 for r in rates.values()) or not sum(rates.values()):
        raise UserError(f"rates should be numbers from 0, not all of them 0, got {given!r}")
    return rates


def _levels(given: Any) -> dict[str, int]:
    levels = _known("key of levels", given, {"finest": 8, "extra": 1})
    finest, extra = levels["finest"], levels["extra"]
    if type(extra) is not int or extra < 0 or finest not in (4, 8, 16):
        raise UserError(f"levels should be like {{finest: 8, extra: 1}}, finest 4, 8 or 16, got {given!r}")
    return levels


def _dims(name: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict | None):
        raise UserError(f"{name} should be like {{out_channel: 64}}, got {given!r}")
    if name == "neck" and "depth" in (given or {}):
        raise UserError("neck.depth follows the code here; say `levels: {finest: 8, extra: 1}` instead")
    return dict(given or {})


def _known(what: str, given: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, dict | None):
        raise UserError(f"{what}: expected {{name: value}}, got {given!r}")
    for key in given or {}:
        if key not in known:
            raise unknown(what, key, known)
    return {**known, **(given or {})}
