"""Stock rows that vary: channels out, repeats and inner ratio as choices, all of which stock YAML can say.

    choices:
      C3k2: {width: [1.0, 0.75], depth: 1..n, e: [1.0, 0.5]}
      Conv: {width: [1.0, 0.75]}

Without `choices:` and without NAS rows every module of `VARIES` (models/yolo/blocks.py) has the usual ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any

from models.space import Choice, Value, pick
from models.yolo.blocks import BLOCKS, VARIES, arguments, repeats_inside
from models.yolo.values import read_depths, read_factors, short
from utils.errors import UserError, unknown

# What modules that may vary offer where a file has neither `choices` nor NAS rows. `width` and `e` are
# factors of the row's own; channels out are rounded up to multiples of 8, as Ultralytics does.
USUAL: dict[str, Any] = {
    "width": [1.0, 0.75, 0.5, 1.25],
    "depth": ["n", "n-1", "n+1"],
    "e": [1.0, 0.75, 0.5],
}
STRUCTURE = ("Concat", "Detect", "v10Detect", "nn.")  # nobody asks why these do not vary
MOST_WIDTHS = 64  # that may come out of a concatenation, of which it is checked that they fit

Fits = Callable[[list[Any], int], bool]  # (args, channels in): whether such a row can be


@dataclass(frozen=True)
class StockOptions:
    """A stock row that varies; what does not is a choice of one value.

    args: of the file's row. full: the same with all defaults before the ratio `e`, which is `own` there.
    width: channels out, multiples of 8. depth: repeats. e: hidden channels as a share of those out.
    follows: whether it has as many channels out as in, whatever these are.
    """

    args: tuple[Any, ...]
    full: tuple[Any, ...]
    own: float
    width: Choice
    depth: Choice
    e: Choice
    follows: bool

    def settled(self, arch: Mapping[str, Value], c1: int) -> tuple[int, list[Any]]:
        """(repeats, args) of the row in an arch in which it reads `c1` channels."""
        e = pick(arch, self.e)
        args = list(self.args) if e == self.own else [*self.full, e, *self.args[len(self.full) + 1 :]]
        if args:
            args[0] = c1 if self.follows else pick(arch, self.width)
        return int(pick(arch, self.depth)), args


class Vary:
    """Makes the options of stock rows, one after the other.

    given: the file's `choices`. modules: of its rows.
    """

    def __init__(self, given: Any, modules: Sequence[Any]) -> None:
        self.usual = given is None and not any(str(m).startswith("NAS") for m in modules)
        self.wanted: dict[str, Mapping[str, Any]] = {}
        if self.usual:
            self.wanted = {m: {option: USUAL[option] for option in VARIES[m]} for m in VARIES}
        for module, options in (given or {}).items():
            if module in ("NASConv", "NASC3"):
                continue
            if module in BLOCKS and module not in VARIES:
                raise UserError(f"choices of {module}: it cannot vary; what can: {', '.join(VARIES)}")
            if module not in VARIES:
                raise unknown("block in choices", module, ["NASConv", "NASC3", *VARIES])
            self.wanted[module] = _known(module, options)
        self.widths: list[tuple[int, ...]] = []  # of each row so far, all that may come out

    def options(self, row: Any, read: Sequence[int], out: int, given: Any, fits: Fits) -> StockOptions | None:
        """What a row (models/yolo/parse.py) may become; None where that is nothing.

        read: channels of each input in the file's network; out: those that come out. given: what the row
        itself offers. Of the values those that give no layer fall away.
        """
        sources = row.source if isinstance(row.source, list) else [row.source]
        came = [self.widths[j] if self.widths else (c,) for j, c in zip(sources, read, strict=True)]
        follows = _follows(row, read[0]) and len(came[0]) > 1
        wanted = {**self.wanted.get(row.module, {}), **(_known(row.module, given) if given else {})}
        found = (
            _options(row, wanted, came[0] if follows else None, read[0], fits) if wanted or follows else None
        )
        if follows or row.module.startswith("nn."):
            widths = came[0]
        elif row.module == "Concat":
            widths = tuple(sorted({sum(parts) for parts in product(*came)}))[:MOST_WIDTHS]
        else:
            widths = found.width.values if found and "width" in wanted else (out,)  # type: ignore[assignment]
        self.widths.append(widths)
        return found

    def notices(self, modules: Sequence[str]) -> list[str]:
        """One line that names the modules of a searched file that have no choices."""
        fixed = dict.fromkeys(m for m in modules if m not in VARIES and not m.startswith(STRUCTURE))
        return [f"cannot vary, kept as they are: {', '.join(fixed)}"] if fixed and self.usual else []


def _known(module: str, options: Any) -> Mapping[str, Any]:
    if module not in VARIES:
        raise UserError(f"it cannot vary; what can: {', '.join(VARIES)}")
    if not isinstance(options, dict):
        raise UserError(f"choices of {module} should be like {{depth: 1..n}}, got {short(options)}")
    for option in options:
        if option not in VARIES[module]:
            raise unknown(f"choice of {module}", option, VARIES[module])
    return options


def _follows(row: Any, c1: int) -> bool:
    """Whether a row has to have as many channels out as in."""
    said = dict(zip(arguments(row.module), row.args, strict=False))
    if said.get("c2") != c1:
        return False
    return bool(
        row.module in ("PSA", "C2PSA", "GhostBottleneck", "Bottleneck")
        or (row.module == "A2C2f" and said.get("residual"))
        or (row.module == "SPPF" and said.get("shortcut"))
        or (row.number > 1 and not repeats_inside(row.module))
    )


def _options(
    row: Any, wanted: Mapping[str, Any], came: tuple[int, ...] | None, c1: int, fits: Fits
) -> StockOptions:
    """came: the widths that a row follows; None: it has its own, and reads `c1` channels."""
    names = list(arguments(row.module))
    defaults = [p.default for p in arguments(row.module).values()]
    place = names.index("e") if "e" in names else len(row.args)
    full = [*row.args[:place], *defaults[len(row.args) : place]]
    own = [*row.args, *defaults[len(row.args) :]]
    widths = (row.args[0],) if row.args else (0,)
    if "width" in wanted and came is None:
        offered = [ceil(own[0] * f / 8) * 8 for f in read_factors("width", wanted["width"])]
        widths = tuple(w for w in dict.fromkeys(offered) if w == own[0] or fits([w, *row.args[1:]], c1))
    pairs = [(w, w) for w in came] if came else [(w, c1) for w in widths]
    ratio = float(own[place]) if "e" in names else 1.0
    ratios: tuple[float, ...] = ()
    for e in [ratio * f for f in read_factors("e", wanted["e"])] if "e" in wanted else [ratio]:
        fit = e == ratio or all(fits([w, *full[1:], e, *row.args[place + 1 :]], c) for w, c in pairs)
        if fit and all(int(w * e) != int(w * other) for w, _ in pairs for other in ratios):
            ratios += (e,)
    for option, left in (("width", widths), ("e", ratios)):
        if not left:
            raise UserError(f"{option} offers nothing that fits: {wanted[option]!r}")
    label = f"{row.module.lower()}_{row.index}"
    depths = read_depths(wanted["depth"], row.number) if "depth" in wanted else (row.number,)
    return StockOptions(
        tuple(row.args),
        tuple(full),
        ratio,
        width=Choice(f"{label}_width", widths),
        depth=Choice(f"{label}_depth", depths),
        e=Choice(f"{label}_e", ratios),
        follows=came is not None,
    )
