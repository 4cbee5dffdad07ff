"""What may vary in a detector, and what each choice costs: archs as plain dicts, no torch, no NNI.

    space = YoloSpace("models/yolov5s_nas.yaml", nc=20)
    arch = space.random(np.random.default_rng(0))  # {"nasconv_0": "4x4", "nasconv_0_act": "ReLU", ...}
    space.cost(arch, imgsz=640)  # {"params_m": ..., "gflops": ...}

Costs are those of the built network, to the last digit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from models.elastic.ranges import read_resolution
from models.space import (
    Arch,
    Block,
    Choice,
    Genes,
    LabelledSpace,
    Take,
    Value,
    check_side,
    known_values,
    pick,
)
from models.yolo.blocks import Shape, Tally, scales_width
from models.yolo.outline import blocks_of
from models.yolo.parse import (
    FREE,
    PROBE,
    C3Options,
    ConvOptions,
    Row,
    count,
    inputs,
    naming,
    parse,
    read,
    run,
)
from models.yolo.reach import LevelOptions, dead_rows, sources_of
from models.yolo.rows import StockOptions
from utils.errors import UserError
from utils.sides import Sides, Size, pair

Cost = tuple[int, int]  # params, FLOPs


class YoloSpace(LabelledSpace):
    """The choices of a detector YAML and the fixed network around them.

    Args:
        source: a YAML file (YOLOv5 v6 or Ultralytics' layout of v5 to 26, with or without NAS rows) or such a
            dict.
        nc: number of classes; overrides the file's, which mostly says 80. Whether it agrees with a data set
            is the caller's to check.
        ch: input channels; the file's, else 3.

    Attributes:
        task: what its networks do. name, nc, ch: as parsed.
        strides: of the Detect inputs. max_stride: image sides are multiples of it.
        model: the YAML as a plain dict, ready for JSON; `Space(model, nc, ch)` is this space again.
        choices: label -> what it may be, in the order of the network, the stock network's value first.
            Labels are made of the row's number: `nasconv_0` (kernel), `nasconv_0_act`, `c3_2_width`,
            `c3_2_cv1`, `c3_2_cv1_act`, `c3_2_depth`, `c3_2_m0` (width of the first bottleneck); of stock rows
            `c3k2_2_width` (channels out), `c3k2_2_depth` (repeats), `c3k2_2_e` (inner ratio). Last comes
            `resolution`, the longer side of the images, where the YAML lists some.
        The others are those of every space (models/space.py).

    Raises:
        UserError: for everything a file can get wrong, naming the row.
    """

    task = "detect"
    formats: Mapping[str, str] = {"pt": ".pt", "onnx": ".onnx", "openvino": "_openvino_model"}

    def __init__(
        self, source: str | Path | dict[str, Any], nc: int | None = None, ch: int | None = None
    ) -> None:
        is_file = isinstance(source, (str, Path))
        self.model: dict[str, Any] = read(source) if is_file else copy.deepcopy(source)  # type: ignore
        self.network = network = parse(self.model, nc, ch)
        self.name, self.nc, self.ch, self.rows = network.name, network.nc, network.ch, network.rows
        self.strides, self.stride = network.strides, network.max_stride
        self.notices = list(network.notices)
        found = [choice for row in self.rows for choice in row.choices()]
        resolution = read_resolution(self.model.get("resolution"), self.stride)
        self._label([*found, resolution] if resolution else found)
        # Widths of stock rows decide what the rows after them read: then costs are sums along the network.
        self._moving = any(_moves(row) for row in self.rows)
        self.layered = not self._moving
        self._known: dict[Any, tuple[int, int, _C3Cost | None]] = {}
        head = self.rows[-1].options
        self._levels = head.levels if isinstance(head, LevelOptions) else None
        self._dead = dead_rows(self.rows, head) if isinstance(head, LevelOptions) else {}
        self._sizes = np.array([len(values) for values in self.choices.values()], dtype=np.int64)
        self._searched = [_Searched(row) for row in self.rows if row.options and row is not self.rows[-1]]
        self._tables: dict[Sides, _Table] = {}
        self._priced: dict[Value | None, list[tuple[int, Callable[[Genes], Any]]]] = {}
        self._defaults = {label: values[0] for label, values in self.choices.items()}

    @property
    def outline(self) -> str:
        return f"{len(self.rows)} rows"

    def random(self, rng: np.random.Generator) -> Arch:
        """An arch with every choice drawn uniformly, then made canonical."""
        drawn = rng.integers(self._sizes).tolist()
        return self._canonical({c: v[i] for (c, v), i in zip(self.choices.items(), drawn, strict=True)})

    def canonical(self, arch: Mapping[str, Any]) -> Arch:
        """`arch` without the genes that change nothing, in the order of the network, with our value types.

        Dropped: bottlenecks beyond the chosen depth. Replaced by the first equal one: a bottleneck width that
        rounds to the same channels. Two archs are one network exactly if their canonical forms agree.

        Raises UserError for an unknown label or value, and for a missing label that matters.
        """
        checked = known_values(arch, self._values, self.name)
        try:
            return self._canonical(checked)
        except KeyError as missing:
            raise UserError(f"the arch says nothing about {missing.args[0]!r}") from None

    def _decided(self, take: Take) -> Arch:
        arch: Arch = {}
        levels = self._levels.label if self._levels else ""
        if levels in self.genes:  # first: it says which rows there are
            arch[levels] = take(self.genes[levels])
        for row in self._alive(arch):
            arch |= {label: take(self.genes[label]) for label in row.labels}
            if row.c3:
                same = list(dict.fromkeys(row.same[pick(arch, row.c3.width)].values()))
                depth = pick(arch, row.c3.depth)
                arch |= {label: take(self.genes[label].only(same)) for label in row.bottlenecks[:depth]}
        if "resolution" in self.genes:
            arch["resolution"] = take(self.genes["resolution"])
        return arch

    def _distinct(self) -> int:
        archs = [{self._levels.label: v} for v in self._levels.values] if self._levels else [{}]
        return sum(prod(row.distinct(self.choices) for row in self._alive(arch)) for arch in archs)

    def _alive(self, arch: Mapping[str, Value]) -> list[_Searched]:
        """The searched rows that are in an arch."""
        dead = self._dead_in(arch)
        return [row for row in self._searched if row.index not in dead] if dead else self._searched

    def _dead_in(self, arch: Mapping[str, Value]) -> frozenset[int]:
        """Numbers of the rows that nothing reads in an arch."""
        return self._dead[pick(arch, self._levels)] if self._levels else frozenset()

    def cost(self, arch: Mapping[str, Value], imgsz: Sides) -> dict[str, float]:
        """Parameters in millions and GFLOPs (2 x MACs of one image of imgsz), without building anything.

        Table look-ups and sums, tens of thousands per second; equal to the built network's parameters and to
        `torch.utils.flop_counter` in inference mode. Raises UserError for an unknown label or value, and for
        an imgsz that is not a multiple of the largest stride. A `resolution` is the longer side in its place.
        """
        imgsz = self.side(arch, imgsz)
        if self._moving:
            return self._summed(arch, imgsz)
        table = self._tables.get(imgsz) or self._table(imgsz)
        params, flops = table.fixed
        try:
            for conv_label, conv_default, costs in table.convs:
                p, f = costs[arch.get(conv_label, conv_default)]
                params, flops = params + p, flops + f
            for c3 in table.c3s:
                p, f = c3.cost(arch)
                params, flops = params + p, flops + f
            for label, value in arch.items():
                self._values[label][value]
        except (KeyError, TypeError):
            self.canonical(arch)  # says what is wrong
            raise
        return {"params_m": params / 1e6, "gflops": flops / 1e9}

    def build(self, arch: Mapping[str, Any], names: Sequence[str] | None = None) -> Any:
        """The detector of an arch: stock modules, fresh weights of torch's generator."""
        from models.yolo.detector import build  # costs a second, and is not needed for counting

        arch = self.canonical(arch)
        rows = [row for row, _ in self.along(arch, PROBE)]
        return build(self.stock(arch), rows, self.ch, arch, names, self.network.nms, self.stride)

    def supernet(self) -> Any:
        """The stock detector with its searched rows elastic."""
        from models.yolo.elastic import with_elastic_rows

        arch = self.largest() if self._moving else self.default()
        if self._levels:  # with all rows
            arch = self._canonical(self.complete(arch) | {self._levels.label: self._levels.largest})
        return with_elastic_rows(self.build(arch), self.rows, self._dead, self._levels, self._moving)

    def blocks(self, arch: Mapping[str, Any], imgsz: Sides) -> list[Block]:
        genes, backbone = self.complete(arch), len(self.model["backbone"])
        rows = list(self.along(genes, self.side(genes, imgsz)))
        return blocks_of(rows, backbone, self._dead_in(genes), genes, self.network.head)

    def exporters(self) -> Mapping[str, Callable[..., Any]]:
        from models.yolo.export import EXPORTERS

        return EXPORTERS

    def stock(self, arch: Mapping[str, Any]) -> dict[str, Any]:
        """The arch as a resolved Ultralytics YAML of stock rows, as far as such a YAML can say it.

        In it: widths, repeats and ratios of stock rows, kernels of NASConv rows, widths and depths of NASC3
        rows. Activations, kernels inside a C3 and the widths of its bottlenecks are not expressible there.
        """
        arch = self.canonical(arch)
        rows = []
        for row, _ in self.along(arch, PROBE):
            o, number, module, args = row.options, row.number, row.module, list(row.args)
            if isinstance(o, ConvOptions):
                k, p = o.kernel_padding(pick(arch, o.kernel))
                module, args = "Conv", [o.c2, k, o.s, p, o.g]
            elif isinstance(o, C3Options):
                width, number = pick(arch, o.width), int(pick(arch, o.depth))
                module, args = "C3", [o.c2, o.shortcut, o.g, o.ratio(width)]
            rows.append([row.source, number, module, args])
        backbone = len(self.model["backbone"])
        head = self.network.head
        found: dict[str, Any] = {"nc": self.nc, "ch": self.ch, "reg_max": head.reg_max}
        if head.end2end:
            found["end2end"] = True
        if head.towers > self.nc:
            found["towers"] = head.towers  # Ultralytics' reader passes over it; see models/yolo/detector.py
        if self.network.activation:
            found["activation"] = self.network.activation
        return {**found, "backbone": rows[:backbone], "head": rows[backbone:]}

    def along(self, arch: Mapping[str, Value], imgsz: Sides) -> Iterator[tuple[Row, list[Shape]]]:
        """Each row as it is in an arch, its args and repeats settled, and the shapes that it reads.

        A row that nothing reads in this arch is an `nn.Identity`: the others keep their numbers.
        """
        shapes: list[Shape] = []
        dead = self._dead_in(arch)
        for row in self.rows:
            if row.index in dead:
                row = Row(row.index, -1, 1, "nn.Identity", [])
            if isinstance(row.options, LevelOptions):
                row = replace(row, source=row.source[: row.options.read(arch)])  # type: ignore[index]
            xs = inputs(row, (self.ch, pair(imgsz)), shapes)
            settled = _settled(row, arch, xs[0][0])
            yield settled, xs
            with naming(row.index, row.module):
                shapes.append(count(settled, xs, Tally(), self.network.head))

    def _summed(self, arch: Mapping[str, Value], imgsz: Sides) -> dict[str, float]:
        """`cost`, row after row; what a row costs is worked out once for all that decides it."""
        try:
            for label, value in arch.items():
                self._values[label][value]
        except (KeyError, TypeError):
            self.canonical(arch)  # says what is wrong
            raise
        genes = {**self._defaults, **arch}
        params = flops = 0
        for row, decides in self._priced_in(genes):
            key = (imgsz, row, decides(genes))
            found = self._known.get(key)
            if found is None:
                found = self._known[key] = self._counted(row, genes, imgsz)
            params, flops = params + found[0], flops + found[1]
            if found[2] is not None:
                p, f = found[2].cost(genes)
                params, flops = params + p, flops + f
        return {"params_m": params / 1e6, "gflops": flops / 1e9}

    def _priced_in(self, arch: Genes) -> list[tuple[int, Callable[[Genes], Any]]]:
        """The rows in an arch that cost something, each with what reads the genes that decide how much."""
        levels = pick(arch, self._levels) if self._levels else None
        if levels not in self._priced:
            rows = self._decisive(self._dead_in(arch))
            self._priced[levels] = [(row, itemgetter(*labels) if labels else len) for row, labels in rows]
        return self._priced[levels]

    def _decisive(self, dead: Container[int]) -> list[tuple[int, list[str]]]:
        """Row by row: its own choices, and those that its inputs' channels hang on."""
        found, out = [], list[list[str]]()  # labels of what channels out hang on
        for row in self.rows:
            o = row.options
            read = [label for j in sources_of(row.index, row.source) for label in out[j]]
            width, own = _width_of(row), [c.label for c in row.choices()]
            mine = [width.label] if width and width.label in own else []
            if isinstance(o, C3Options):  # of all inside there are tables
                own = mine
            if row.index not in dead and row.module not in FREE:
                found.append((row.index, list(dict.fromkeys(read + own))))
            follows = isinstance(o, StockOptions) and o.follows
            out.append(read if follows or not (o or scales_width(row.module)) else mine)
        return found

    def _counted(
        self, index: int, arch: Mapping[str, Value], imgsz: Sides
    ) -> tuple[int, int, _C3Cost | None]:
        """(parameters, FLOPs, tables of what is still to be added) of a row."""
        check_side(imgsz, self.stride)
        row, xs = next((row, xs) for row, xs in self.along(arch, imgsz) if row.index == index)
        o = row.options
        if isinstance(o, ConvOptions):
            return *_conv_costs(o, xs[0][1])[pick(arch, o.kernel)], None
        if isinstance(o, C3Options):
            return 0, 0, _C3Cost(o, xs[0][1])
        tally = Tally()
        count(row, xs, tally, self.network.head)
        return tally.params, tally.flops, None

    def _canonical(self, arch: Arch) -> Arch:
        found: Arch = {}
        if self._levels and self._levels.label in self.choices:
            found[self._levels.label] = arch[self._levels.label]
        for row in self._alive(found):
            for label in row.labels:
                found[label] = arch[label]
            if row.c3:
                same = row.same[pick(arch, row.c3.width)]
                depth = pick(arch, row.c3.depth)
                for label in row.bottlenecks[:depth]:
                    found[label] = same[arch[label]]
        if "resolution" in self.choices:
            found["resolution"] = arch["resolution"]
        return found

    def _table(self, imgsz: Sides) -> _Table:
        """Costs of every part that may vary, and of the rest together, at one image size."""
        check_side(imgsz, self.stride)
        fixed, table = Tally(), _Table((0, 0), [], [])
        image, shapes = (self.ch, pair(imgsz)), list[Shape]()
        for row in self.rows:
            source = inputs(row, image, shapes)[0]
            o = row.options
            tally = fixed if o is None else Tally()
            with naming(row.index, row.module):
                shapes.append(run(row, image, shapes, tally, self.network.head))
            if isinstance(o, ConvOptions):
                table.convs.append((o.kernel.label, o.kernel.values[0], _conv_costs(o, source[1])))
            elif isinstance(o, C3Options):
                table.c3s.append(_C3Cost(o, source[1]))
        table.fixed = fixed.params, fixed.flops
        return self._tables.setdefault(imgsz, table)


def _settled(row: Row, arch: Mapping[str, Value], c1: int) -> Row:
    """A row in an arch, which reads `c1` channels."""
    o = row.options
    if isinstance(o, StockOptions):
        number, args = o.settled(arch, c1)
        return replace(row, number=number, args=args)
    if isinstance(o, ConvOptions | C3Options):
        settled = o.settled(arch, c1)
        return replace(row, options=settled, args=[settled.c2, *row.args[1:]])
    return row


def _width_of(row: Row) -> Choice | None:
    """The choice of a row's channels out."""
    o = row.options
    if isinstance(o, C3Options):
        return o.out
    return o.width if isinstance(o, ConvOptions | StockOptions) else None


def _moves(row: Row) -> bool:
    """Whether rows after it have to be asked what they read."""
    o = row.options
    if isinstance(o, ConvOptions | C3Options):
        width = _width_of(row)
        return width is not None and width.values != (o.c2,)
    return o is not None


class _Searched:
    """One NAS row with its labels sorted for speed: those that always matter, those that depend on depth."""

    def __init__(self, row: Row) -> None:
        self.index, self.c3 = row.index, row.options if isinstance(row.options, C3Options) else None
        last = {c.label for c in self.c3.bottlenecks} if self.c3 else set()
        self.labels = [c.label for c in row.choices() if c.label not in last]
        self.bottlenecks = [c.label for c in row.choices() if c.label in last]
        # width -> {bottleneck factor: the first factor with as many channels}
        self.same: dict[Value, dict[Value, Value]] = {}
        if self.c3:
            factors = self.c3.bottlenecks[0].values
            for width in self.c3.width.values:
                first = {self.c3.bottleneck_hidden(width, f): f for f in reversed(factors)}
                self.same[width] = {f: first[self.c3.bottleneck_hidden(width, f)] for f in factors}

    def distinct(self, choices: Mapping[str, list[Value]]) -> int:
        """How many different blocks this row may become."""
        if self.c3 is None:
            return prod(len(choices[label]) for label in self.labels)
        shape = {self.c3.width.label, self.c3.depth.label}
        inner = prod(len(choices[label]) for label in self.labels if label not in shape)
        per_width = [len(set(self.same[w].values())) for w in self.c3.width.values]
        return inner * sum(n ** int(d) for n in per_width for d in self.c3.depth.values)


@dataclass
class _Table:
    fixed: Cost
    convs: list[tuple[str, Value, dict[Value, Cost]]]
    c3s: list[_C3Cost]


def _conv_costs(o: ConvOptions, size: Size) -> dict[Value, Cost]:
    found: dict[Value, Cost] = {}
    for name in o.kernel.values:
        k, p = o.kernel_padding(name)
        t = Tally()
        t.conv(o.c1, o.c2, size, k, o.s, p, o.g)
        found[name] = t.params, t.flops
    return found


class _C3Cost:
    """Costs of one NASC3 at one image size: tables per width, because everything inside depends on it."""

    def __init__(self, o: C3Options, size: Size) -> None:
        self.o = o
        self.tables = {}
        for w in o.width.values:
            h = o.hidden(w)
            last = Tally()
            last.conv(2 * h, o.c2, size)
            inner = {
                f: _bottleneck_cost(h, o.bottleneck_hidden(w, f), o.g, size) for f in o.bottlenecks[0].values
            }
            self.tables[w] = (
                (last.params, last.flops),
                _conv_costs(o.cv("cv1", w), size),
                _conv_costs(o.cv("cv2", w), size),
                inner,
            )

    def cost(self, arch: Mapping[str, Value]) -> Cost:
        o = self.o
        (p0, f0), cv1, cv2, inner = self.tables[pick(arch, o.width)]
        p1, f1 = cv1[pick(arch, o.cv1_kernel)]
        p2, f2 = cv2[pick(arch, o.cv2_kernel)]
        params, flops = p0 + p1 + p2, f0 + f1 + f2
        for choice in o.bottlenecks[: pick(arch, o.depth)]:
            p, f = inner[pick(arch, choice)]
            params += p
            flops += f
        return params, flops


def _bottleneck_cost(h: int, hidden: int, g: int, size: Size) -> Cost:
    t = Tally()
    t.conv(h, hidden, size)
    t.conv(hidden, h, size, 3, g=g)
    return t.params, t.flops
