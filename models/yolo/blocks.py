"""What each module of a detector YAML does to a feature map and what it costs, without torch.

Every block below is written like its stock forward pass and returns (channels, size) of what comes out. FLOPs
are 2 x MACs of the convolutions for one image in inference mode, which is exactly what
`torch.utils.flop_counter` counts, and of the matrix products of attention; parameters include BatchNorm's two
and the head's fixed DFL kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import Parameter, signature
from math import gcd

from utils.errors import UserError
from utils.sides import Size, area, both

Kernel = int | tuple[int, int]
Shape = tuple[int, Size]  # channels, (height, width) of the feature map
Signed = int  # may be below 0


@dataclass(frozen=True)
class Head:
    """What a YAML says about its head beside the row. reg_max: bins of a distance, 1: the distance itself.

    legacy: class towers of plain 3x3 convolutions, as v5 and v8 have them. end2end: a second pair of towers,
    one to one with the objects, whose boxes need no NMS. towers: classes that the class towers were made for,
    where these are more than there are now: stock fine-tuning keeps the towers of what it starts from.
    """

    reg_max: int = 16
    legacy: bool = True
    end2end: bool = False
    towers: int = 0


@dataclass
class Tally:
    """Running totals of one network or one part of it."""

    params: int = 0
    flops: int = 0

    def conv(
        self,
        c1: int,
        c2: int,
        size: Size,
        k: Kernel = 1,
        s: int = 1,
        p: int | None = None,
        g: int = 1,
        d: int = 1,
        bn: bool = True,
        bias: bool = False,
    ) -> Size:
        """Count Conv2d (+ BatchNorm2d) on a map of this `size`; returns that of the result."""
        kh, kw = k if isinstance(k, tuple) else (k, k)
        if min(c1, c2, kh, kw, s, g, d) < 1 or (p is not None and p < 0):
            raise UserError(f"a convolution cannot have {c1} -> {c2} channels, k={k}, s={s}, p={p}, g={g}")
        if c1 % g or c2 % g:
            raise UserError(f"{g} groups do not divide {c1} -> {c2} channels")
        height, width = ((side + 2 * pad(kh, p, d) - d * (kh - 1) - 1) // s + 1 for side in size)
        if height < 1 or width < 1:
            raise UserError(f"nothing is left of a {both(size)} map after k={k}, s={s}, p={p}")
        weights = c2 * (c1 // g) * kh * kw
        self.params += weights + 2 * c2 * bn + c2 * bias
        self.flops += 2 * weights * height * width
        return height, width

    def products(self, positions: int, channels: int, batch: int = 1) -> None:
        """Count the two matrix products of attention over `positions`: keys and values have so many
        `channels` in all heads together."""
        self.flops += 2 * batch * positions * positions * channels


def pad(k: int, p: int | None, d: int = 1) -> int:
    """The padding of a stock Conv: `p`, else what keeps the size at stride 1."""
    return (d * (k - 1) + 1) // 2 if p is None else p


# Each function mirrors the stock module's arguments after c1; `t` is where it counts, `x` the input.


def conv(
    t: Tally, x: Shape, c2: int, k: int = 1, s: int = 1, p: int | None = None, g: int = 1, d: int = 1
) -> Shape:
    return c2, t.conv(x[0], c2, x[1], k, s, p, g, d)


def nas_conv(t: Tally, x: Shape, c2: int, k: int = 1, s: int = 1, p: int | None = None, g: int = 1) -> Shape:
    return conv(t, x, c2, k, s, p, g)


def dwconv(t: Tally, x: Shape, c2: int, k: int = 1, s: int = 1, d: int = 1) -> Shape:
    return c2, t.conv(x[0], c2, x[1], k, s, None, gcd(x[0], c2), d)


def focus(t: Tally, x: Shape, c2: int, k: int = 1, s: int = 1, p: int | None = None, g: int = 1) -> Shape:
    height, width = x[1]
    if height % 2 or width % 2:
        raise UserError(f"Focus needs an even map, got {both(x[1])}")
    return conv(t, (4 * x[0], (height // 2, width // 2)), c2, k, s, p, g)


def ghost_conv(t: Tally, x: Shape, c2: int, k: int = 1, s: int = 1, g: int = 1) -> Shape:
    half = conv(t, x, c2 // 2, k, s, None, g)
    conv(t, half, c2 // 2, 5, 1, None, c2 // 2)
    return 2 * (c2 // 2), half[1]


def ghost_bottleneck(t: Tally, x: Shape, c2: int, k: int = 3, s: int = 1) -> Shape:
    y = ghost_conv(t, x, c2 // 2)
    if s == 2:
        y = dwconv(t, y, c2 // 2, k, s)
        conv(t, dwconv(t, x, x[0], k, s), c2)
    elif s != 1 or x[0] != c2:
        raise UserError(f"GhostBottleneck with stride {s} cannot add its input of {x[0]} channels to {c2}")
    return ghost_conv(t, y, c2)


def bottleneck(
    t: Tally, x: Shape, c2: int, shortcut: bool = True, g: int = 1, k: Sequence = (3, 3), e: float = 0.5
) -> Shape:
    hidden = t.conv(x[0], int(c2 * e), x[1], k[0])
    return c2, t.conv(int(c2 * e), c2, hidden, k[1], g=g)


def bottleneck_csp(
    t: Tally, x: Shape, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5
) -> Shape:
    h = int(c2 * e)
    _chain(t, conv(t, x, h), n, g, [3, 3])
    t.conv(x[0], h, x[1], bn=False)
    t.conv(h, h, x[1], bn=False)
    t.params += 2 * 2 * h  # one BatchNorm over the concatenation
    return conv(t, (2 * h, x[1]), c2)


def c3(t: Tally, x: Shape, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> Shape:
    return _csp(t, x, c2, e, lambda y: _chain(t, y, n, g, [1, 3]))


def c3x(t: Tally, x: Shape, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> Shape:
    return _csp(t, x, c2, e, lambda y: _chain(t, y, n, g, [(1, 3), (3, 1)]))


def c3ghost(
    t: Tally, x: Shape, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5
) -> Shape:
    return _csp(t, x, c2, e, lambda y: [ghost_bottleneck(t, y, y[0]) for _ in range(n)])


def c2(t: Tally, x: Shape, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> Shape:
    h = int(c2 * e)
    conv(t, x, 2 * h)
    _chain(t, (h, x[1]), n, g, [3, 3])
    return conv(t, (2 * h, x[1]), c2)


def c3k(
    t: Tally, x: Shape, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5, k: int = 3
) -> Shape:
    return _csp(t, x, c2, e, lambda y: _chain(t, y, n, g, [k, k]))


def c2f(t: Tally, x: Shape, c2: int, n: int = 1, shortcut: bool = False, g: int = 1, e: float = 0.5) -> Shape:
    return _split(t, x, c2, n, e, lambda y: bottleneck(t, y, y[0], g=g, k=[3, 3], e=1.0))


def c3k2(
    t: Tally,
    x: Shape,
    c2: int,
    n: int = 1,
    c3k: bool = False,
    e: float = 0.5,
    attn: bool = False,
    g: int = 1,
    shortcut: bool = True,
) -> Shape:
    def inner(y: Shape) -> object:
        if attn:
            return psa_block(t, bottleneck(t, y, y[0], g=g))
        return _c3k(t, y, y[0], 2, g=g) if c3k else bottleneck(t, y, y[0], g=g)

    return _split(t, x, c2, n, e, inner)


def c2f_cib(
    t: Tally,
    x: Shape,
    c2: int,
    n: int = 1,
    shortcut: bool = False,
    lk: bool = False,
    g: int = 1,
    e: float = 0.5,
) -> Shape:
    return _split(t, x, c2, n, e, lambda y: cib(t, y, y[0], e=1.0, lk=lk))


def cib(t: Tally, x: Shape, c2: int, shortcut: bool = True, e: float = 0.5, lk: bool = False) -> Shape:
    """YOLOv10's compact inverted block (arXiv 2405.14458), `lk` with the large 7x7 kernel."""
    h = 2 * int(c2 * e)
    y = conv(t, conv(t, x, x[0], 3, g=x[0]), h)
    for k in (7, 3) if lk else (3,):
        conv(t, y, h, k, g=h)
    y = conv(t, y, c2)
    return conv(t, y, c2, 3, g=c2)


def a2c2f(
    t: Tally,
    x: Shape,
    c2: int,
    n: int = 1,
    a2: bool = True,
    area: Signed = 1,
    residual: bool = False,
    mlp_ratio: float = 2.0,
    e: float = 0.5,
    g: int = 1,
    shortcut: bool = True,
) -> Shape:
    """YOLO12's area attention (arXiv 2502.12524); without `a2` C3k blocks."""
    h = int(c2 * e)
    if h % 32:
        raise UserError(f"needs hidden channels in multiples of 32, got {h}")
    if a2 and residual and x[0] != c2:
        raise UserError(f"its residual needs as many channels in as out, got {x[0]} -> {c2}")
    y = conv(t, x, h)
    for _ in range(n):
        for _ in range(2 if a2 else 0):
            _area_block(t, y, mlp_ratio, area)
        if not a2:
            _c3k(t, y, h, 2, g=g)
    t.params += c2 if a2 and residual else 0
    return conv(t, ((1 + n) * h, x[1]), c2)


def _area_block(t: Tally, x: Shape, mlp_ratio: float, areas: int) -> None:
    dim, size = x
    if area(size) % max(areas, 1):
        raise UserError(f"{areas} areas do not divide a {both(size)} map")
    conv(t, x, 3 * dim)
    t.products(area(size) // max(areas, 1), 2 * dim, max(areas, 1))
    conv(t, x, dim, 7, g=dim)
    conv(t, x, dim)
    conv(t, conv(t, x, int(dim * mlp_ratio)), dim)


def psa(t: Tally, x: Shape, c2: int, e: float = 0.5) -> Shape:
    return c2psa(t, x, c2, 1, e)


def c2psa(t: Tally, x: Shape, c2: int, n: int = 1, e: float = 0.5) -> Shape:
    if x[0] != c2:
        raise UserError(f"needs as many channels in as out, got {x[0]} -> {c2}")
    h = int(c2 * e)
    conv(t, x, 2 * h)
    for _ in range(n):
        psa_block(t, (h, x[1]))
    return conv(t, (2 * h, x[1]), c2)


def psa_block(t: Tally, x: Shape) -> Shape:
    """Attention of heads of 64 channels, keys of half of them, and a feed-forward pair."""
    c, size = x
    heads = max(c // 64, 1)
    if c % heads:
        raise UserError(f"{heads} heads of attention do not divide {c} channels")
    keys = c // heads // 2 * heads
    conv(t, x, c + 2 * keys)
    t.products(area(size), c + keys)
    conv(t, x, c, 3, g=c)
    conv(t, x, c)
    conv(t, conv(t, x, 2 * c), c)
    return x


def scdown(t: Tally, x: Shape, c2: int, k: int, s: int) -> Shape:
    """YOLOv10's downsampling: 1x1, then k x k channel by channel."""
    return conv(t, conv(t, x, c2), c2, k, s, g=c2)


def spp(t: Tally, x: Shape, c2: int, k: Sequence = (5, 9, 13)) -> Shape:
    conv(t, x, x[0] // 2)
    return conv(t, (x[0] // 2 * (len(k) + 1), x[1]), c2)


def sppf(t: Tally, x: Shape, c2: int, k: int = 5, n: int = 3, shortcut: bool = False) -> Shape:
    return spp(t, x, c2, [k] * n)


def upsample(t: Tally, x: Shape, size: None = None, scale_factor: int = 2, mode: str = "nearest") -> Shape:
    height, width = x[1]
    return x[0], (height * scale_factor, width * scale_factor)


def max_pool(t: Tally, x: Shape, k: int, s: int | None = None, p: int = 0) -> Shape:
    height, width = ((side + 2 * p - k) // (s or k) + 1 for side in x[1])
    return x[0], (height, width)


def zero_pad(t: Tally, x: Shape, sides: Sequence) -> Shape:
    if len(sides) != 4 or sides[0] + sides[1] != sides[2] + sides[3]:
        raise UserError(f"ZeroPad2d takes [left, right, top, bottom] that keep a square map, got {sides}")
    height, width = x[1]
    return x[0], (height + sides[2] + sides[3], width + sides[0] + sides[1])


def identity(t: Tally, x: Shape) -> Shape:
    return x


def concat(t: Tally, xs: list[Shape], dimension: int = 1) -> Shape:
    if dimension != 1:
        raise UserError(f"Concat joins channels, dimension 1, got {dimension}")
    if len({size for _, size in xs}) > 1:
        raise UserError(f"the inputs have different sizes: {', '.join(both(size) for _, size in xs)}")
    return sum(c for c, _ in xs), xs[0][1]


def detect(t: Tally, xs: list[Shape], nc: int, head: Head = Head()) -> Shape:
    """Ultralytics' anchor-free head, with all of its towers."""
    reg_max = head.reg_max
    box, cls = max(16, xs[0][0] // 4, 4 * reg_max), max(xs[0][0], min(max(nc, head.towers), 100))
    for x in xs * (2 if head.end2end else 1):
        conv(t, conv(t, x, box, 3), box, 3)
        if head.legacy:
            conv(t, conv(t, x, cls, 3), cls, 3)
        else:
            y = conv(t, dwconv(t, x, x[0], 3), cls)
            conv(t, dwconv(t, y, cls, 3), cls)
        t.conv(box, 4 * reg_max, x[1], bn=False, bias=True)
        t.conv(cls, nc, x[1], bn=False, bias=True)
    if reg_max > 1:  # the distribution's mean is a frozen 1x1 convolution over 4 x anchors positions
        t.params += reg_max
        t.flops += 2 * reg_max * 4 * sum(area(size) for _, size in xs)
    return nc + 4 * reg_max, xs[0][1]


def v10_detect(t: Tally, xs: list[Shape], nc: int, head: Head = Head()) -> Shape:
    return detect(t, xs, nc, Head(16, False, True, head.towers))  # whatever else the YAML says


def _chain(t: Tally, x: Shape, n: int, g: int, k: Sequence) -> Shape:
    for _ in range(n):
        x = bottleneck(t, x, x[0], g=g, k=k, e=1.0)
    return x


def _csp(t: Tally, x: Shape, c2: int, e: float, inner: Callable[[Shape], object]) -> Shape:
    h = int(c2 * e)
    inner(conv(t, x, h))
    conv(t, x, h)
    return conv(t, (2 * h, x[1]), c2)


def _split(t: Tally, x: Shape, c2: int, n: int, e: float, inner: Callable[[Shape], object]) -> Shape:
    """C2f and its kin: two halves, `n` blocks one after the other on the second, all of them joined."""
    h = int(c2 * e)
    conv(t, x, 2 * h)
    for _ in range(n):
        inner((h, x[1]))
    return conv(t, ((2 + n) * h, x[1]), c2)


_c3k = c3k  # C3k2 has an argument of this name

# Name in a YAML row -> what it does. NASConv and NASC3 count as the stock block they start from.
BLOCKS: dict[str, Callable[..., Shape]] = {
    "Conv": conv,
    "DWConv": dwconv,
    "Focus": focus,
    "GhostConv": ghost_conv,
    "GhostBottleneck": ghost_bottleneck,
    "Bottleneck": bottleneck,
    "BottleneckCSP": bottleneck_csp,
    "C3": c3,
    "C3x": c3x,
    "C3Ghost": c3ghost,
    "C2": c2,
    "C2f": c2f,
    "C3k2": c3k2,
    "C2fCIB": c2f_cib,
    "A2C2f": a2c2f,
    "PSA": psa,
    "C2PSA": c2psa,
    "SCDown": scdown,
    "SPP": spp,
    "SPPF": sppf,
    "Concat": concat,
    "nn.Upsample": upsample,
    "nn.MaxPool2d": max_pool,
    "nn.ZeroPad2d": zero_pad,
    "nn.Identity": identity,
    "Detect": detect,
    "v10Detect": v10_detect,
    "NASConv": nas_conv,
    "NASC3": c3,
}

HEADS = ("Detect", "v10Detect")
JOINING = ("Concat", *HEADS)  # modules that read a list of rows

# Module -> what of its rows may be a choice: channels out, repeats, hidden channels. All others are fixed.
VARIES: dict[str, tuple[str, ...]] = {
    "Conv": ("width",),
    "GhostConv": ("width",),
    "SCDown": ("width",),
    "SPP": ("width",),
    "SPPF": ("width",),
    "BottleneckCSP": ("width", "depth", "e"),
    "C3": ("width", "depth", "e"),
    "C3x": ("width", "depth", "e"),
    "C3Ghost": ("width", "depth"),
    "C2": ("width", "depth", "e"),
    "C2f": ("width", "depth", "e"),
    "C3k2": ("width", "depth", "e"),
    "C2fCIB": ("width", "depth", "e"),
    "A2C2f": ("width", "depth", "e"),
    "PSA": ("e",),
    "C2PSA": ("depth", "e"),
}
MODERN = ("C3k2", "A2C2f", "C2fCIB")  # a network with one of them has the light class towers


@cache
def arguments(module: str) -> dict[str, Parameter]:
    """What a row may write for `module`, in order. Repeats (`n`) are the row's number, not an argument."""
    found = {k: v for k, v in list(signature(BLOCKS[module]).parameters.items())[2:] if k != "head"}
    return {k: v for k, v in found.items() if k != "n" or not repeats_inside(module)}


def scales_width(module: str) -> bool:
    """Whether the first argument is an output width that the width multiple scales."""
    return "c2" in signature(BLOCKS[module]).parameters


def repeats_inside(module: str) -> bool:
    """Whether the row's number means blocks inside the module rather than copies of it."""
    return module != "SPPF" and "n" in signature(BLOCKS[module]).parameters


def check_arguments(module: str, args: list) -> None:
    """Raise UserError unless `args` fit the module in number and kind."""
    known = arguments(module)
    needed = sum(p.default is Parameter.empty for p in known.values())
    if not needed <= len(args) <= len(known):
        raise UserError(f"takes [{', '.join(known)}]{f', at least {needed}' if needed else ''}, got {args}")
    for (name, parameter), value in zip(known.items(), args, strict=False):
        if not any(_is_a(value, kind) for kind in str(parameter.annotation).split(" | ")):
            raise UserError(f"argument {name} should be {parameter.annotation}, got {value!r}")


def _is_a(value: object, kind: str) -> bool:
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if kind == "Signed":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "float":
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    if kind == "bool":
        return isinstance(value, bool) or value in (0, 1)
    if kind == "None":
        return value is None
    if kind == "Sequence":
        return isinstance(value, list) and all(_is_a(v, "int") for v in value)
    return isinstance(value, str)
