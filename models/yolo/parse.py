"""The one reader of detector YAML: YOLOv5 v6 files as people have them, and Ultralytics' own, v5 to 26.

A file is resolved to plain rows (channels, repeats and `None` strings worked out, inputs checked); `NASConv`
and `NASC3` rows, and stock rows that vary, carry what they may become. No torch here: a mistake in a YAML is
answered at once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any

from models.space import Choice, Value, pick
from models.yaml_file import check_numbers, positive, read_mapping
from models.yolo.blocks import (
    BLOCKS,
    HEADS,
    JOINING,
    MODERN,
    Head,
    Shape,
    Tally,
    check_arguments,
    repeats_inside,
    scales_width,
)
from models.yolo.reach import LevelOptions, read_levels, read_widths, sources_of
from models.yolo.rows import Fits, StockOptions, Vary
from models.yolo.values import (
    MOST_BLOCKS,
    is_positive,
    items,
    read_depths,
    read_factors,
    relative,
    short,
    stock_first,
)
from utils.errors import UserError, unknown
from utils.sides import Size

# Heads of Ultralytics' that are no detector's here -> what they are for.
OTHER_HEADS = {
    **dict.fromkeys(("Segment", "Segment26", "SemanticSegment"), "segmentation"),
    **dict.fromkeys(("Pose", "Pose26"), "pose estimation"),
    **dict.fromkeys(("OBB", "OBB26"), "oriented boxes"),
    **dict.fromkeys(("YOLOESegment", "YOLOESegment26", "YOLOEDetect", "WorldDetect"), "detection by text"),
    **dict.fromkeys(("Classify",), "classification"),
    **dict.fromkeys(("Depth",), "depth estimation"),
    **dict.fromkeys(("RTDETRDecoder",), "RT-DETR"),
}
ACTIVATIONS = ("SiLU", "Identity", "ReLU", "ReLU6", "LeakyReLU", "Hardswish", "GELU", "Mish")
PROBE = 256  # side of the image with which shapes and strides are worked out, as Ultralytics does
PROBED = PROBE, PROBE

FREE = ("Concat", "nn.Upsample", "nn.MaxPool2d", "nn.ZeroPad2d", "nn.Identity")  # rows that cost nothing
FOLDERS = ("v5", "v8", "v10", "11", "12", "26")  # of Ultralytics' own files
# What the NAS blocks offer unless the file's `choices:` or the row's own {...} says otherwise.
OPTIONS: dict[str, dict[str, Any]] = {
    "NASConv": {"kernel": ["k", "k-2", "k+2"], "act": ["SiLU", "Identity", "ReLU"], "width": [1.0]},
    "NASC3": {
        "width": [1.0, 1.5, 2.0],
        "kernel": [1, 3],
        "act": ["SiLU", "Identity", "ReLU"],
        "bottleneck": [1.0, 1.5, 2.0],
        "depth": "1..n",
        "out": [1.0],
    },
}
KEYS = [
    "nc",
    "ch",
    "channels",
    "depth_multiple",
    "width_multiple",
    "scales",
    "scale",
    "anchors",
    "activation",
]
KEYS += ["reg_max", "towers", "end2end", "nms", "backbone", "head", "choices", "resolution", "name"]


@dataclass(frozen=True)
class ConvOptions:
    """A searchable Conv: c1 -> c2 channels, kernel k, stride s, padding p, g groups.

    `kernel` values are names such as "3x3"; `act` values are names of torch.nn activations; `width` values
    are channels out, None where there are always c2.
    """

    c1: int
    c2: int
    k: int
    s: int
    p: int
    g: int
    kernel: Choice
    act: Choice
    width: Choice | None = None

    def settled(self, arch: Mapping[str, Value], c1: int) -> ConvOptions:
        """The same in an arch in which it reads `c1` channels."""
        return replace(self, c1=c1, c2=int(pick(arch, self.width)) if self.width else self.c2)

    def kernel_padding(self, name: Value) -> tuple[int, int]:
        """(kernel, padding) of a candidate: p' = p + (k' - k) / 2 keeps the output size at any stride."""
        k = int(str(name).split("x")[0])
        return k, self.p + (k - self.k) // 2


@dataclass(frozen=True)
class C3Options:
    """A searchable C3: `n` repeats in the file, `e` its hidden share of the `own` channels out there.

    `width` and `bottlenecks[j]` multiply hidden channels, `depth` counts bottlenecks; bottleneck j exists,
    and its choice means something, only when j < depth. `out` values are channels out, c2 in an arch; hidden
    channels do not depend on them.
    """

    c1: int
    c2: int
    n: int
    shortcut: bool
    g: int
    e: float
    width: Choice
    cv1_kernel: Choice
    cv1_act: Choice
    cv2_kernel: Choice
    cv2_act: Choice
    depth: Choice
    bottlenecks: tuple[Choice, ...]
    out: Choice
    own: int

    def settled(self, arch: Mapping[str, Value], c1: int) -> C3Options:
        """The same in an arch in which it reads `c1` channels."""
        return replace(self, c1=c1, c2=int(pick(arch, self.out)))

    def hidden(self, width: Value) -> int:
        return int(self.own * (self.e * float(width)))

    def ratio(self, width: Value) -> float:
        """What stock YAML calls e: hidden channels are int(c2 * e)."""
        if self.c2 == self.own:
            return self.e * float(width)
        hidden = self.hidden(width)
        e = hidden / self.c2
        return e if int(self.c2 * e) == hidden else (hidden + 0.5) / self.c2

    def cv(self, which: str, width: Value) -> ConvOptions:
        """cv1 or cv2 at a width: a 1x1 convolution in the stock block."""
        kernel, act = (self.cv1_kernel, self.cv1_act) if which == "cv1" else (self.cv2_kernel, self.cv2_act)
        return ConvOptions(self.c1, self.hidden(width), 1, 1, 0, 1, kernel, act)

    def bottleneck_hidden(self, width: Value, factor: Value) -> int:
        return int(self.hidden(width) * float(factor))


@dataclass(frozen=True)
class Row:
    """One layer with everything resolved: its args are what the stock module takes after c1 and n."""

    index: int
    source: int | list[int]
    number: int
    module: str
    args: list[Any]
    options: ConvOptions | C3Options | StockOptions | LevelOptions | None = None

    def choices(self) -> list[Choice]:
        """The row's real choices, in the order of the network."""
        o = self.options
        if isinstance(o, ConvOptions):
            found = [o.kernel, o.act, *([o.width] if o.width else [])]
        elif isinstance(o, C3Options):
            found = [o.width, o.cv1_kernel, o.cv1_act, o.cv2_kernel, o.cv2_act, o.depth, *o.bottlenecks]
            found.append(o.out)
        elif isinstance(o, StockOptions):
            found = [o.width, o.depth, o.e]
        elif isinstance(o, LevelOptions):
            found = [o.levels]
        else:
            found = []
        return [c for c in found if len(c.values) > 1]


@dataclass(frozen=True)
class Network:
    """A parsed detector: rows of backbone then head, the last one Detect or v10Detect."""

    name: str
    nc: int
    ch: int
    rows: tuple[Row, ...]
    strides: tuple[int, ...]  # of Detect's inputs
    max_stride: int  # image sides must be multiples of it
    activation: str | None  # of stock convolutions, e.g. "nn.ReLU()"; None is SiLU
    head: Head
    nms: bool  # False: boxes of the one-to-one head, without NMS
    notices: tuple[str, ...]


def read(path: str | Path) -> dict[str, Any]:
    """The YAML file as a dict, with `name` and, for files with `scales`, the `scale` its file name asks for.

    `yolo11n.yaml` also finds `yolo11.yaml` beside it or among the files that come with ultralytics, scale n.
    """
    path = Path(path).expanduser()
    file = locate(path)
    if file is None:
        raise UserError(f"no model file {str(path)!r}" + ("; it is a folder" if path.is_dir() else ""))
    model = read_mapping(file, "a detector: expected nc, backbone and head")
    letter = re.search(r"yolo(?:e-)?v?\d+([nslmx])", path.stem)
    if "scales" in model and letter and letter[1] in model["scales"]:
        model.setdefault("scale", letter[1])
    model.setdefault("name", path.stem)
    return model


def locate(path: Path) -> Path | None:
    """The file that `read` finds under this name."""
    return next((p for p in _places(path) if p.is_file()), None)


def _places(path: Path) -> list[Path]:
    unified = re.sub(r"^(yolo(?:e-)?v?\d+)[nslmx](.*)$", r"\1\2", path.name)
    package = find_spec("ultralytics")  # located, not imported
    roots = (package and package.submodule_search_locations) or ()
    names = dict.fromkeys((path.name, unified)) if path.parent == Path() else ()
    folders = [Path(root) / "cfg/models" / folder for root in roots for folder in FOLDERS]
    return [path, path.with_name(unified), *(folder / name for name in names for folder in folders)]


def parse(model: dict[str, Any], nc: int | None = None, ch: int | None = None) -> Network:
    """Resolve a detector YAML. `nc` and `ch` override the file's, which usually say 80 and nothing.

    Raises UserError naming the row for anything that cannot be built.
    """
    if not isinstance(model, dict):
        raise UserError(f"not a detector: expected nc, backbone and head, got {short(model)}")
    raws, notices = _raw_rows(model), _notices(model)
    nc = _count("nc", model.get("nc") if nc is None else nc)
    ch = _count("ch", ch or model.get("ch") or model.get("channels") or 3)
    head, activation = _head(model, raws), _activation(model.get("activation"))
    nms = _switch("nms", model.get("nms")) is not False
    if not nms and not head.end2end:
        raise UserError(
            "nms: false needs a head that is one to one with objects: end2end: true, or v10Detect"
        )
    rows, shapes, fixed = _rows(model, raws, (ch, PROBED), nc, head, _multiples(model, notices))
    if [r.index for r in rows if r.module in HEADS] != [len(rows) - 1]:
        raise UserError(f"not a detector: the last row, and only it, must be Detect, got {rows[-1].module}")
    seen = inputs(rows[-1], (ch, PROBED), shapes[:-1])
    return Network(
        name=str(model.get("name") or "detector"),
        nc=nc,
        ch=ch,
        rows=tuple(rows),
        strides=tuple(PROBE // side for _, (side, _) in seen),
        max_stride=max(1, *(PROBE // side for _, (side, _) in shapes)),
        activation=activation,
        head=head,
        nms=nms,
        notices=(*notices, *fixed),
    )


def _notices(model: dict[str, Any]) -> list[str]:
    """What of the keys is set aside. Raises UserError for a slip and for numbers that no network has."""
    for key in KEYS:
        if key not in ("name", "scale", "anchors"):
            check_numbers(key, model.get(key))
    notices = []
    for key in (key for key in model if key not in KEYS):
        if get_close_matches(str(key), KEYS, cutoff=0.75):  # a slip; anything else is somebody's own note
            raise unknown("key of a model YAML", key, KEYS)
        notices.append(f"key {key!r} set aside: it means nothing here")
    if model.get("anchors") is not None:
        notices.append("anchors set aside: the head is Ultralytics' anchor-free Detect")
    return notices


def _head(model: dict[str, Any], raws: list[list[Any]]) -> Head:
    """What the stock parser makes of the head."""
    return Head(
        reg_max=_count("reg_max", model.get("reg_max", 16)),
        legacy=not any(raw[2] in MODERN for raw in raws),
        end2end=_switch("end2end", model.get("end2end")) is True or raws[-1][2] == "v10Detect",
        towers=_count("towers", model.get("towers") or 1),
    )


def _rows(
    model: dict[str, Any], raws: list[list[Any]], image: Shape, nc: int, head: Head, scaling: Scaling
) -> tuple[list[Row], list[Shape], list[str]]:
    """The rows with what they may become, what comes out of each, and which modules cannot vary."""
    activation = _activation(model.get("activation"))
    stock_act = activation[3:].split("(")[0] if activation else "SiLU"
    options = _options(model.get("choices"))
    vary = Vary(model.get("choices"), [raw[2] for raw in raws])
    rows: list[Row] = []
    shapes: list[Shape] = []
    for raw in raws:
        row = _resolve(raw, len(rows), nc, scaling)
        with naming(row.index, row.module):
            shape, read = run(row, image, shapes, Tally(), head), inputs(row, image, shapes)
            given = raw[3][-1] if raw[3] and isinstance(raw[3][-1], dict) else {}
            stock = {} if row.module in (*OPTIONS, *HEADS) else given
            found = vary.options(row, [c for c, _ in read], shape[0], stock, _fitting(row, read[0][1], head))
            if row.module in OPTIONS:
                own = _merge(options, row.module, given)
                row = replace(row, options=_choices(row, read[0][0], own, stock_act))
                vary.widths[-1] = _channels_out(row, vary.widths[:-1])
            elif row.module in HEADS and given:
                row = replace(row, options=read_levels(given, [PROBE // side for _, (side, _) in read]))
            elif found is not None:
                row = replace(row, options=found)
        rows.append(row)
        shapes.append(shape)
    return rows, shapes, vary.notices([row.module for row in rows])


def _channels_out(row: Row, widths: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """All that may come out of a NAS row; `widths`: of the rows before it. UserError where groups forbid."""
    o = row.options
    if isinstance(o, C3Options):
        return o.out.values  # type: ignore[return-value]
    assert isinstance(o, ConvOptions) and o.width is not None
    for c1 in (c for j in sources_of(row.index, row.source) for c in widths[j]):
        if c1 % o.g:
            raise UserError(f"{o.g} groups do not divide the {c1} channels that it may read")
    return o.width.values  # type: ignore[return-value]


def inputs(row: Row, image: Shape, shapes: Sequence[Shape]) -> list[Shape]:
    """The shapes that the row reads, given those of all rows before it."""
    if row.index == 0:
        return [image]
    return [shapes[j] for j in (row.source if isinstance(row.source, list) else [row.source])]


def run(row: Row, image: Shape, shapes: Sequence[Shape], tally: Tally, head: Head) -> Shape:
    """Count one row's stock block on the shapes of the rows before it; returns its own shape."""
    return count(row, inputs(row, image, shapes), tally, head)


def count(row: Row, xs: list[Shape], tally: Tally, head: Head) -> Shape:
    """Count one row's stock block on what it reads; returns its own shape."""
    block = BLOCKS[row.module]
    if row.module in HEADS:
        return block(tally, xs, *row.args, head)
    if row.module == "Concat":
        return block(tally, xs, *row.args)
    if repeats_inside(row.module):
        return block(tally, xs[0], row.args[0], row.number, *row.args[1:])
    y = block(tally, xs[0], *row.args)
    for _ in range(row.number - 1):
        if y[0] != xs[0][0]:  # the stock parser would build copies that do not fit each other
            raise UserError(
                f"{row.number} copies in a row need as many channels in as out, got {xs[0][0]} -> {y[0]}"
            )
        y = block(tally, y, *row.args)
    return y


def _fitting(row: Row, size: Size, head: Head) -> Fits:
    """Whether a row with other args, reading other channels, is one that can be built."""

    def fits(args: list[Any], c1: int) -> bool:
        try:
            count(replace(row, args=args), [(c1, size)], Tally(), head)
        except UserError:
            return False
        return True

    return fits


def _raw_rows(model: dict[str, Any]) -> list[list[Any]]:
    rows = []
    for part in ("backbone", "head"):
        given = model.get(part)
        if not isinstance(given, list) or not given:
            raise UserError(f"not a detector: {part!r} should be a list of rows, got {short(given)}")
        rows += given
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != 4 or not isinstance(row[3], list):
            raise UserError(f"row {i} should read [from, number, module, [args]], got {short(row)}")
        if isinstance(row[2], str) and row[2] in OTHER_HEADS:
            raise UserError(
                f"row {i}, {row[2]}: a head of {OTHER_HEADS[row[2]]}; only Detect and v10Detect are known"
            )
    return rows


def _resolve(raw: list[Any], i: int, nc: int, scaling: Scaling) -> Row:
    """Names and `None` strings to values, the width multiple on channels, the depth multiple on repeats."""
    source, number, module, args = raw
    if not isinstance(module, str) or module not in BLOCKS:
        raise unknown(f"module in row {i}", module, BLOCKS)
    with naming(i, module):
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MOST_BLOCKS:
            raise UserError(f"number should be 1 to {MOST_BLOCKS}, got {number!r}")
        _check_source(source, i, many=module in JOINING)
        args = [_literal(a, nc) for a in args]
        if args and isinstance(args[-1], dict):
            args = args[:-1]  # its choices, read later
        if module == "Detect" and len(args) == 2:
            args = args[:1]  # [nc, anchors] of YOLOv5 v6
        args = _as_scaled(module, args, scaling.letter)
        check_arguments(module, args)
        if module in HEADS and args[0] != nc:
            raise UserError(f"predicts {args[0]} classes where nc is {nc}; write {module} [nc]")
        if number > 1:
            number = max(round(number * scaling.depth), 1)
        if module == "NASConv" and number > 1:
            raise UserError(f"cannot be repeated, got number {number}; write {number} rows")
        if scales_width(module):
            args[0] = ceil(min(args[0], scaling.widest) * scaling.width / 8) * 8
    return Row(i, source, number, module, args)


def _as_scaled(module: str, args: list[Any], letter: str | None) -> list[Any]:
    """What the stock parser writes into rows of large scales."""
    if module == "C3k2" and letter in ("m", "l", "x"):
        return [*args[:1], True, *args[2:]]
    if module == "A2C2f" and letter in ("l", "x"):
        return [*args, True, 1.2]
    return args


def _check_source(source: Any, i: int, many: bool) -> None:
    listed = source if isinstance(source, list) else [source]
    if many != isinstance(source, list) or not listed:
        raise UserError(f"`from` should be {'a list of rows' if many else 'one row'}, got {source!r}")
    for j in listed:
        if isinstance(j, bool) or not isinstance(j, int):
            raise UserError(f"`from` should be row numbers, got {j!r}")
        if not (-i <= j < i or (i == 0 and j == -1)):
            exist = f"rows 0 to {i - 1}" if i else "only the image, -1,"
            raise UserError(f"reads row {j}, but {exist} exist before it")


def _literal(arg: Any, nc: int) -> Any:
    """YAML strings that mean something: nc, 'None', 'True', '[5, 9, 13]'; others stay strings."""
    if not isinstance(arg, str):
        return list(arg) if isinstance(arg, tuple) else arg
    if arg == "nc":
        return nc
    try:
        return ast.literal_eval(arg) if len(arg) < 200 else arg
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return arg


def _count(key: str, value: Any) -> int:
    if value is None:
        raise UserError(f"the model YAML does not say {key}; add e.g. `{key}: 80`")
    return positive(key, value)


@dataclass(frozen=True)
class Scaling:
    """Multiples of repeats and channels, most channels before scaling, and the scale's letter, if any."""

    depth: float
    width: float
    widest: float
    letter: str | None


def _multiples(model: dict[str, Any], notices: list[str]) -> Scaling:
    scales, letter = model.get("scales"), None
    if scales is None:
        found = [model.get("depth_multiple", 1.0), model.get("width_multiple", 1.0), float("inf")]
    else:
        if not isinstance(scales, dict) or not scales:
            raise UserError(f"scales should be like {{n: [0.33, 0.25, 1024]}}, got {short(scales)}")
        scale = model.get("scale")
        if not scale:
            scale = next(iter(scales))
            if len(scales) > 1:
                known = ", ".join(scales)
                notices.append(
                    f"no scale in the file's name, taking {scale!r}; set `scale:` to one of {known}"
                )
        if scale not in scales:
            raise unknown("scale", scale, scales)
        found, letter = scales[scale], scale
    if not isinstance(found, list) or len(found) != 3 or not all(is_positive(v) for v in found):
        raise UserError(f"depth and width multiples should be positive numbers, got {short(found)}")
    return Scaling(found[0], found[1], found[2], letter)


def _switch(key: str, value: Any) -> bool | None:
    if value not in (None, True, False):
        raise UserError(f"{key} should be true or false, got {short(value)}")
    return value


def _activation(given: Any) -> str | None:
    """`activation: nn.LeakyReLU(0.1)` of a file. Ultralytics evaluates the text, so only plain calls pass."""
    if given is None:
        return None
    match = re.fullmatch(r"(?:torch\.)?(nn\.(\w+)\([\d.]*\))", str(given).replace(" ", ""))
    if not match or match[2] not in ACTIVATIONS:
        raise unknown("activation", given, [f"nn.{a}()" for a in ACTIVATIONS])
    return match[1]


def _options(given: Any) -> dict[str, dict[str, Any]]:
    if given is None:
        return OPTIONS
    if not isinstance(given, dict):
        raise UserError(f"choices should be like {{NASConv: {{kernel: [k, k+2]}}}}, got {short(given)}")
    return {block: _merge(OPTIONS, block, given.get(block)) for block in OPTIONS}


def _merge(options: dict[str, dict[str, Any]], block: str, given: Any) -> dict[str, Any]:
    if given is None:
        return options[block]
    if not isinstance(given, dict):
        raise UserError(f"choices of {block} should be like {{act: [SiLU, ReLU]}}, got {short(given)}")
    for option in given:
        if option not in OPTIONS[block]:
            raise unknown(f"choice of {block}", option, OPTIONS[block])
    return {**options[block], **given}


def _choices(row: Row, c1: int, options: dict[str, Any], act: str) -> ConvOptions | C3Options:
    """What a NAS row may become. Labels come from the row's number, so they outlive every other edit."""
    i = row.index
    if row.module == "NASConv":
        c2, k, s, p, g = (row.args + [1, 1, None, 1][len(row.args) - 1 :])[:5]
        p = k // 2 if p is None else p
        kernel = Choice(f"nasconv_{i}", _kernels(options["kernel"], k, s, p))
        width = Choice(f"nasconv_{i}_width", read_widths("width", options["width"], c2, g))
        act_choice = Choice(f"nasconv_{i}_act", _acts(options["act"], act))
        return ConvOptions(c1, c2, k, s, p, g, kernel, act_choice, width)

    c2, shortcut, g, e = (row.args + [True, 1, 0.5][len(row.args) - 1 :])[:4]
    kernels, acts = _kernels(options["kernel"], 1, 1, 0), _acts(options["act"], act)
    # Narrow rows may round two widths to the same channels: the first stays.
    widths = tuple(
        {int(c2 * (e * w)): w for w in reversed(read_factors("width", options["width"]))}.values()
    )[::-1]
    depths = read_depths(options["depth"], row.number)
    factors = read_factors("bottleneck", options["bottleneck"])
    found = C3Options(
        *(c1, c2, row.number, bool(shortcut), g, e),
        width=Choice(f"c3_{i}_width", widths),
        cv1_kernel=Choice(f"c3_{i}_cv1", kernels),
        cv1_act=Choice(f"c3_{i}_cv1_act", acts),
        cv2_kernel=Choice(f"c3_{i}_cv2", kernels),
        cv2_act=Choice(f"c3_{i}_cv2_act", acts),
        depth=Choice(f"c3_{i}_depth", depths),
        bottlenecks=tuple(Choice(f"c3_{i}_m{j}", factors) for j in range(max(depths))),
        out=Choice(f"c3_{i}_out", read_widths("out", options["out"], c2)),
        own=c2,
    )
    for w in widths:
        for f in factors:
            hidden = found.hidden(w), found.bottleneck_hidden(w, f)
            if min(hidden) < 1 or hidden[0] % g or hidden[1] % g:
                raise UserError(
                    f"width {w} with bottleneck {f} gives {hidden} channels, which {g} groups cannot use"
                )
    return found


def _kernels(given: Any, k: int, s: int, p: int) -> tuple[str, ...]:
    found = []
    for item in items("kernel", given):
        new = relative("kernel", item, "k", k)
        fits = new >= 1 and (new - k) % 2 == 0 and p + (new - k) // 2 >= 0
        written = not isinstance(item, str)
        if not fits and written:
            raise UserError(
                f"kernel {new} cannot keep the output size of kernel {k}, padding {p}; change it by 2, 4, ..."
            )
        # A relative one falls away where it cannot be, or would step over pixels unseen (1x1, stride 2).
        if fits and (written or new >= s):
            found.append(new)
    return tuple(f"{n}x{n}" for n in stock_first("kernel", found, k, given))


def _acts(given: Any, stock: str) -> tuple[str, ...]:
    found = items("act", given)
    for act in found:
        if act not in ACTIVATIONS:
            raise unknown("act", act, ACTIVATIONS)
    return tuple(stock_first("act", found, stock, given))


@contextmanager
def naming(i: int, module: str) -> Iterator[None]:
    """Say in which row of the file an error is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"row {i}, {module}: {error}") from None
