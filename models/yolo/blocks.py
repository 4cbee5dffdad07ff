"""What each module of a detector YAML does to a feature map and what it costs, without torch.

Every block below is written like its stock forward pass and returns (channels, side) of what comes out. FLOPs
are 2 x MACs of the convolutions for one square image in inference mode, which is exactly what
`torch.utils.flop_counter` counts; parameters include BatchNorm's two and the head's fixed DFL kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import Parameter, signature
from math import gcd

from utils.errors import UserError

Kernel = int | tuple[int, int]
Shape = tuple[int, int]  # channels, side of the square feature map


@dataclass
class Tally:
    """Running totals of one network or one part of it."""

    params: int = 0
    flops: int = 0

    def conv(
        self,
        c1: int,
        c2: int,
        side: int,
        k: Kernel = 1,
        s: int = 1,
        p: int | None = None,
        g: int = 1,
        d: int = 1,
        bn: bool = True,
        bias: bool = False,
    ) -> int:
        """Count Conv2d (+ BatchNorm2d) on a `side` x `side` map; returns the side of the result."""
        kh, kw = k if isinstance(k, tuple) else (k, k)
        if min(c1, c2, kh, kw, s, g, d) < 1 or (p is not None and p < 0):
            raise UserError(f"a convolution cannot have {c1} -> {c2} channels, k={k}, s={s}, p={p}, g={g}")
        if c1 % g or c2 % g:
            raise UserError(f"{g} groups do not divide {c1} -> {c2} channels")
        out = (side + 2 * pad(kh, p, d) - d * (kh - 1) - 1) // s + 1
        if out < 1:
            raise UserError(f"nothing is left of a {side} x {side} map after k={k}, s={s}, p={p}")
        weights = c2 * (c1 // g) * kh * kw
        self.params += weights + 2 * c2 * bn + c2 * bias
        self.flops += 2 * weights * out * out
        return out


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
    if x[1] % 2:
        raise UserError(f"Focus needs an even map, got {x[1]} x {x[1]}")
    return conv(t, (4 * x[0], x[1] // 2), c2, k, s, p, g)


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


def c2f(t: Tally, x: Shape, c2: int, n: int = 1, shortcut: bool = False, g: int = 1, e: float = 0.5) -> Shape:
    h = int(c2 * e)
    conv(t, x, 2 * h)
    _chain(t, (h, x[1]), n, g, [3, 3])
    return conv(t, ((2 + n) * h, x[1]), c2)


def spp(t: Tally, x: Shape, c2: int, k: Sequence = (5, 9, 13)) -> Shape:
    conv(t, x, x[0] // 2)
    return conv(t, (x[0] // 2 * (len(k) + 1), x[1]), c2)


def sppf(t: Tally, x: Shape, c2: int, k: int = 5) -> Shape:
    return spp(t, x, c2, [k, k, k])


def upsample(t: Tally, x: Shape, size: None = None, scale_factor: int = 2, mode: str = "nearest") -> Shape:
    return x[0], x[1] * scale_factor


def max_pool(t: Tally, x: Shape, k: int, s: int | None = None, p: int = 0) -> Shape:
    return x[0], (x[1] + 2 * p - k) // (s or k) + 1


def zero_pad(t: Tally, x: Shape, sides: Sequence) -> Shape:
    if len(sides) != 4 or sides[0] + sides[1] != sides[2] + sides[3]:
        raise UserError(f"ZeroPad2d takes [left, right, top, bottom] that keep a square map, got {sides}")
    return x[0], x[1] + sides[0] + sides[1]


def identity(t: Tally, x: Shape) -> Shape:
    return x


def concat(t: Tally, xs: list[Shape], dimension: int = 1) -> Shape:
    if dimension != 1:
        raise UserError(f"Concat joins channels, dimension 1, got {dimension}")
    if len({side for _, side in xs}) > 1:
        raise UserError(f"the inputs have different sizes: {', '.join(f'{s} x {s}' for _, s in xs)}")
    return sum(c for c, _ in xs), xs[0][1]


def detect(t: Tally, xs: list[Shape], nc: int, reg_max: int = 16) -> Shape:
    """Ultralytics' anchor-free head with the two plain 3x3 towers that v5 and v8 have (`legacy`)."""
    box = max(16, xs[0][0] // 4, 4 * reg_max)
    cls = max(xs[0][0], min(nc, 100))
    for c1, side in xs:
        for width, out in ((box, 4 * reg_max), (cls, nc)):
            t.conv(c1, width, side, 3)
            t.conv(width, width, side, 3)
            t.conv(width, out, side, bn=False, bias=True)
    if reg_max > 1:  # the distribution's mean is a frozen 1x1 convolution over 4 x anchors positions
        t.params += reg_max
        t.flops += 2 * reg_max * 4 * sum(side * side for _, side in xs)
    return nc + 4 * reg_max, xs[0][1]


def _chain(t: Tally, x: Shape, n: int, g: int, k: Sequence) -> Shape:
    for _ in range(n):
        x = bottleneck(t, x, x[0], g=g, k=k, e=1.0)
    return x


def _csp(t: Tally, x: Shape, c2: int, e: float, inner: Callable[[Shape], object]) -> Shape:
    h = int(c2 * e)
    inner(conv(t, x, h))
    conv(t, x, h)
    return conv(t, (2 * h, x[1]), c2)


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
    "C2f": c2f,
    "SPP": spp,
    "SPPF": sppf,
    "Concat": concat,
    "nn.Upsample": upsample,
    "nn.MaxPool2d": max_pool,
    "nn.ZeroPad2d": zero_pad,
    "nn.Identity": identity,
    "Detect": detect,
    "NASConv": nas_conv,
    "NASC3": c3,
}


@cache
def arguments(module: str) -> dict[str, Parameter]:
    """What a row may write for `module`, in order. Repeats (`n`) are the row's number, not an argument."""
    return {k: v for k, v in list(signature(BLOCKS[module]).parameters.items())[2:] if k != "n"}


def scales_width(module: str) -> bool:
    """Whether the first argument is an output width that the width multiple scales."""
    return "c2" in signature(BLOCKS[module]).parameters


def repeats_inside(module: str) -> bool:
    """Whether the row's number means blocks inside the module rather than copies of it."""
    return "n" in signature(BLOCKS[module]).parameters


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
    if kind == "float":
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    if kind == "bool":
        return isinstance(value, bool) or value in (0, 1)
    if kind == "None":
        return value is None
    if kind == "Sequence":
        return isinstance(value, list) and all(_is_a(v, "int") for v in value)
    return isinstance(value, str)
