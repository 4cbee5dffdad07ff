"""What a space is to the rest of the house: all that anybody may ask of one. No torch, no NNI.

`Space` is the contract; models/networks.py opens every kind. An arch is a plain dict. Searches work on
*genes*: a value for every label of `choices`, those that do nothing included. A space whose archs are
something else, a code in a string for instance, spells them in genes by `complete`, reads them by `repair`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import exp, prod
from typing import Any, Protocol

import numpy as np

from utils.errors import UserError, unknown
from utils.sides import Sides, pair, read_sides, scaled, shown

Value = str | int | float
Arch = dict[str, Value]
Genes = dict[str, Value]
Block = dict[str, Any]  # part, name, kind, channels, side (as `imgsz`; None: not known), sources, facts
_KERNEL = re.compile(r"(\d+)x\d+")


def amount(value: Value) -> float | None:
    """The size of a value: a number's own, the side of a kernel ("3x3"); None for any other word."""
    if not isinstance(value, str):
        return value
    kernel = _KERNEL.fullmatch(value)
    return float(kernel[1]) if kernel else None


def numbers(values: Sequence[Value]) -> bool:
    """Whether all are numbers, so that differences mean something."""
    return not any(isinstance(value, str) for value in values)


def by_size(values: Sequence[Value]) -> tuple[Value, ...]:
    """The values in ascending order; empty where one of them is a word without a size."""
    sizes = {value: amount(value) for value in values}
    return () if None in sizes.values() else tuple(sorted(values, key=sizes.__getitem__))  # type: ignore


@dataclass(frozen=True)
class Choice:
    """One decision: its label in an arch and what it may be, default first. A single value is no choice.

    ordered: the values from small to large, by default by their size; () where they have no order.
    """

    label: str
    values: tuple[Value, ...]
    ordered: tuple[Value, ...] | None = None

    def __post_init__(self) -> None:
        if self.ordered is None:
            object.__setattr__(self, "ordered", by_size(self.values))

    @property
    def default(self) -> Value:
        return self.values[0]

    @property
    def ascending(self) -> tuple[Value, ...]:
        """From small to large; as they were given where they have no order."""
        return self.ordered or self.values

    @property
    def smallest(self) -> Value:
        """The default where the values have no order."""
        return self.ordered[0] if self.ordered else self.values[0]

    @property
    def largest(self) -> Value:
        return self.ordered[-1] if self.ordered else self.values[0]

    def steps(self, a: Value, b: Value) -> int:
        """How many neighbours lie between two values; 1 for any two that differ where there is no order."""
        return abs(self.ordered.index(a) - self.ordered.index(b)) if self.ordered else int(a != b)

    def only(self, left: Sequence[Value]) -> Choice:
        """The choice among fewer of its values, in the order of `left`."""
        if len(left) == len(self.values):
            return self
        return Choice(self.label, tuple(left), tuple(v for v in self.ordered or () if v in left))


Take = Callable[[Choice], Value]


class Space(Protocol):
    """What may vary, and the fixed network around it.

    name, nc (classes), ch (input channels), task (detect or classify); stride: of image sides.
    model: the YAML as a plain dict, ready for JSON; `open_any_space(model, nc, ch)` is this space again.
    choices: label -> what it may be, in the order of the network, the default first.
    ordered: whether some combinations of genes stand for no arch, so that `repair` moves them.
    layered: whether NNI sees the candidates of every layer where trials train its networks.
    formats: what its networks are exported to -> how such a file's name ends.
    notices: what in the YAML was set aside; outline: what the fixed network is. Both for people.
    """

    name: str
    nc: int
    ch: int
    task: str
    stride: int
    model: dict[str, Any]
    choices: dict[str, list[Value]]
    ordered: bool
    layered: bool
    formats: Mapping[str, str]
    notices: list[str]

    @property
    def outline(self) -> str: ...

    # Archs. All of them are canonical: genes that do nothing are left out, equal networks are equal archs.
    def default(self) -> Arch:
        """The unsearched network."""

    def smallest(self) -> Arch: ...
    def largest(self) -> Arch: ...
    def random(self, rng: np.random.Generator) -> Arch: ...
    def biased(self, rng: np.random.Generator, tilt: float) -> Arch:
        """A random arch that leans to small (tilt < 0) or large sizes; 0 is uniform."""

    def decided(self, take: Take) -> Arch:
        """The arch that `take` makes of each choice that does something, one by one."""

    def canonical(self, arch: Mapping[str, Any]) -> Arch:
        """The arch as we write it, also from genes. UserError for what is not of this space."""

    def size(self) -> tuple[int, int]:
        """(combinations of all genes, archs that really differ)."""

    # Genes, for searches.
    def complete(self, arch: Mapping[str, Any]) -> Genes: ...
    def repair(self, genes: Mapping[str, Any]) -> Arch:
        """The arch nearest to what the genes stand for."""

    def cross(self, mother: Genes, father: Genes, rng: np.random.Generator) -> Genes: ...
    def mutate(self, genes: Genes, rng: np.random.Generator, prob: float) -> Genes:
        """Each gene becomes another with probability `prob`."""

    def redraw(self, genes: Genes, rng: np.random.Generator, prob: float) -> Genes:
        """Each gene is drawn anew with probability `prob`."""

    def change(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """One gene is drawn anew."""

    def changes(self, genes: Genes) -> Iterator[Genes]:
        """All that differ in one gene."""

    # Costs and networks.
    def classifier(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The YAML, without `nc`, of the same backbones as classifiers. UserError where there are none."""

    def side(self, arch: Mapping[str, Any], imgsz: Sides) -> Sides:
        """Pixels of the images that an arch works on, where the experiment says `imgsz`: of that shape, with
        its `resolution` as the longer side."""

    def cost(self, arch: Mapping[str, Value], imgsz: Sides) -> dict[str, float]:
        """params_m and gflops (2 x MACs of one image), without building anything: 50,000 a second."""

    def build(self, arch: Mapping[str, Any], names: Sequence[str] | None = None) -> Any:
        """The network of an arch (models/detector.py): plain modules, fresh weights of torch's generator."""

    def supernet(self) -> Any:
        """One network with the weights of all archs, of elastic layers."""

    def blocks(self, arch: Mapping[str, Any], imgsz: Sides) -> list[Block]:
        """The arch from the image to the head, for a drawing; [] where there is none.

        A block: `part` (backbone, neck, head); `name`, the same in every arch; `kind`; `channels` that come
        out (None for a head) and the `side` of their map; `sources`, names of the blocks it reads where that
        is not the one before; `facts`, name -> value of all that makes it up.
        """

    def exporters(self) -> Mapping[str, Callable[..., Any]]:
        """Format -> what writes it; see models/export.py."""

    def spelled(self, arch: Mapping[str, Any]) -> dict[str, Any]:
        """The arch as others write it, beside ours in top/N.json: keys of that file -> values."""

    def read_spelled(self, record: Mapping[str, Any]) -> Arch | None:
        """The arch that such keys of a file tell of; None where it has none."""


class LabelledSpace:
    """The verbs that follow from labelled choices alone, for spaces whose archs are values of them.

    genes: the choices that have alternatives. A subclass has `_decided`, and `_canonical` for what is known
    to be of this space.
    """

    name: str
    stride: int
    genes: dict[str, Choice]
    choices: dict[str, list[Value]]
    ordered = layered = False

    def _label(self, found: Sequence[Choice]) -> None:
        """Take up the choices of the network, in its order."""
        self.genes = {c.label: c for c in found if len(c.values) > 1}
        self.choices = {label: list(c.values) for label, c in self.genes.items()}
        self._values = {label: {v: v for v in values} for label, values in self.choices.items()}

    def decided(self, take: Take) -> Arch:
        return self._decided(lambda choice: take(self.priced(choice)))

    def _decided(self, take: Take) -> Arch:
        """`decided`, of choices whose order may not be known yet."""
        raise NotImplementedError

    def canonical(self, arch: Mapping[str, Any]) -> Arch:
        raise NotImplementedError

    def _canonical(self, genes: Genes) -> Arch:
        raise NotImplementedError

    def _drawn(self, take: Take) -> Arch:
        if self.ordered:
            return self._decided(take)
        return self._canonical({label: take(choice) for label, choice in self.genes.items()})

    def default(self) -> Arch:
        """The unsearched network: the first value of every choice, or the first that an order allows."""
        return self._drawn(lambda choice: choice.default)

    def smallest(self) -> Arch:
        """Every choice as small as it may be: the cheapest arch where costs grow with every size."""
        return self._drawn(lambda choice: self.priced(choice).smallest)

    def largest(self) -> Arch:
        """Every choice as large as it may be: the net that teaches the others."""
        return self._drawn(lambda choice: self.priced(choice).largest)

    def biased(self, rng: np.random.Generator, tilt: float) -> Arch:
        """A random arch that leans to small (`tilt` < 0) or large sizes; 0 is uniform.

        A size of rank r in 0..1 among its alternatives is drawn in proportion to exp(tilt * r); what has no
        order is drawn uniformly.
        """

        def take(choice: Choice) -> Value:
            choice = self.priced(choice)
            values = choice.ascending
            return values[leaning(rng, tilt if choice.ordered else 0.0, len(values))]

        return self._drawn(take)

    def priced(self, choice: Choice) -> Choice:
        """The choice with its values in order, where only their costs say which is the larger."""
        return choice

    def complete(self, arch: Mapping[str, Any]) -> Genes:
        """`arch` with a value for every label: the default where the gene does nothing."""
        found = self.canonical(arch)
        return {label: found.get(label, values[0]) for label, values in self.choices.items()}

    def repair(self, genes: Mapping[str, Any]) -> Arch:
        return self.canonical(genes)

    def cross(self, mother: Genes, father: Genes, rng: np.random.Generator) -> Genes:
        """Each gene from either with equal chances (uniform crossover)."""
        return {label: (father if rng.random() < 0.5 else mother)[label] for label in mother}

    def mutate(self, genes: Genes, rng: np.random.Generator, prob: float) -> Genes:
        genes = dict(genes)
        for label, values in self.choices.items():
            if rng.random() < prob:
                others = [value for value in values if value != genes[label]]
                genes[label] = others[rng.integers(len(others))]
        return genes

    def redraw(self, genes: Genes, rng: np.random.Generator, prob: float) -> Genes:
        genes = dict(genes)
        for label, values in self.choices.items():
            if rng.random() < prob:
                genes[label] = values[int(rng.integers(len(values)))]
        return genes

    def change(self, genes: Genes, rng: np.random.Generator) -> Genes:
        label = list(self.choices)[int(rng.integers(len(self.choices)))]
        values = self.choices[label]
        return {**genes, label: values[int(rng.integers(len(values)))]}

    def changes(self, genes: Genes) -> Iterator[Genes]:
        for label, values in self.choices.items():
            yield from ({**genes, label: value} for value in values if value != genes[label])

    def side(self, arch: Mapping[str, Any], imgsz: Sides) -> Sides:
        longest = arch.get("resolution") if "resolution" in self.choices else None
        return imgsz if longest is None else scaled(imgsz, longest, self.stride)

    def classifier(self, options: Mapping[str, Any]) -> dict[str, Any]:
        raise UserError(f"{self.name} has no backbone that could be a classifier's; it needs a `network:`")

    def size(self) -> tuple[int, int]:
        """(raw, distinct): combinations of all choices, and archs that really differ. Both exact."""
        resolutions = len(self.choices.get("resolution", [None]))
        return prod(map(len, self.choices.values())), resolutions * self._distinct()

    def _distinct(self) -> int:
        """How many different networks there are, at one resolution."""
        raise NotImplementedError

    def blocks(self, arch: Mapping[str, Any], imgsz: Sides) -> list[Block]:
        return []

    def spelled(self, arch: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def read_spelled(self, record: Mapping[str, Any]) -> Arch | None:
        for key in ("subnet_settings", "genotype"):
            if key in record:
                raise UserError(f"{key} belong to spaces with a `network`; give its arch instead")
        return None


def known_values(arch: Mapping[str, Any], values: Mapping[str, Mapping[Value, Value]], name: str) -> Arch:
    """`arch` with its values as the space `name` writes them (1 becomes 1.0 where that is the choice).

    Raises UserError for a label or a value that is not among `values`.
    """
    checked: Arch = {}
    for label, value in arch.items():
        if label not in values:
            raise unknown(f"choice in an arch of {name}", label, values)
        known = values[label]
        if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value not in known:
            raise unknown(f"value of {label}", value, known)
        checked[label] = known[value]
    return checked


def check_side(imgsz: Sides, stride: int) -> None:
    """Raise UserError unless the sides of images are multiples of the network's largest stride."""
    if any(type(side) is not int or side < 1 or side % stride for side in pair(imgsz)):
        near = read_sides([max(1, round(side / stride)) * stride for side in pair(imgsz)])
        raise UserError(f"imgsz {shown(imgsz)} is not a multiple of the stride {stride}; try {shown(near)}")


def pick(arch: Mapping[str, Value], choice: Choice) -> Any:
    """The value an arch gives a choice: its default where the arch says nothing."""
    return arch.get(choice.label, choice.values[0])


def leaning(rng: np.random.Generator, tilt: float, n: int) -> int:
    """A number of 0 .. n - 1, drawn in proportion to exp(tilt * its share of the way)."""
    cdf = _lean(tilt, n)
    return bisect_right(cdf, rng.random() * cdf[-1], hi=n - 1)


@lru_cache(maxsize=64)  # one tilt serves all genes of a draw
def _lean(tilt: float, n: int) -> list[float]:
    return list(accumulate(exp(tilt * i / max(1, n - 1)) for i in range(n)))
