"""The code of a serial backbone, SP-NAS's architecture: stages of blocks, written `111-2111-211111-211`.

Jiang et al., SP-NAS: Serial-to-Parallel Backbone Search for Object Detection, CVPR 2020. A whole code is
`r_111-2111-211111-211_0-0-2-0`: the kind of block (`b` basic, `r` bottleneck, `x(32x4d)` ResNeXt of 32 groups
of 4 channels), the stages, and for each stage how many extra streams run parallel to it (none where that part
is missing). The digits mean two things in the wild, so a code has a dialect:

    paper   `-` begins a stage whose first block has stride 2; `2` doubles the width from this block on
    vega    `-` begins a stage of twice the width; `2` is a block of stride 2      (Vega 1.3 and later)

Both read the code of ResNet-50 alike and nearly every other code differently.

Blocks have ids besides, by which a changed code takes its weights from the code that it was changed from. Ids
are no part of a code's identity.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from utils.errors import UserError

DIALECTS = ("paper", "vega")
KINDS = {"b": "basic", "r": "bottleneck", "x": "resnext"}
FURTHEST = 3  # blocks that a boundary or a doubling moves in one step, at the most
EXTRA = 3  # streams beside a stage, at the most


@dataclass(frozen=True)
class Block:
    """A `1` or a `2` of a code. id: stays with the block when others come and go around it."""

    two: bool = False
    id: int = field(default=0, compare=False)


Stage = tuple[Block, ...]


@dataclass(frozen=True)
class Code:
    """A serial backbone. Equal codes are equal networks; ids do not count."""

    stages: tuple[Stage, ...]
    streams: tuple[int, ...]  # extra ones of each stage
    kind: str = "r"  # of KINDS
    groups: int = 1
    group_width: int = 64
    dialect: str = "paper"

    def __str__(self) -> str:
        head = f"x({self.groups}x{self.group_width}d)" if self.kind == "x" else self.kind
        text = f"{head}_{'-'.join(''.join('12'[b.two] for b in stage) for stage in self.stages)}"
        return text + (f"_{'-'.join(map(str, self.streams))}" if any(self.streams) else "")

    @property
    def blocks(self) -> list[Block]:
        """All blocks, from the input on."""
        return [block for stage in self.stages for block in stage]

    @property
    def doublings(self) -> int:
        """How many blocks are a `2`."""
        return sum(block.two for block in self.blocks)

    def shapes(self, base: int = 64) -> list[list[tuple[int, int]]]:
        """For each block of each stage (planes, stride), as torchvision's residual blocks take them.

        base: planes of the first stage. Planes are a block's inner width; a bottleneck's output has four
        times as many channels.
        """
        planes, out = base, []
        for number, stage in enumerate(self.stages):
            row = []
            for place, block in enumerate(stage):
                begins = number > 0 and place == 0
                widens, strides = (block.two, begins) if self.dialect == "paper" else (begins, block.two)
                planes *= 1 + widens
                row.append((planes, 1 + strides))
            out.append(row)
        return out


def parse(text: str, dialect: str = "paper") -> Code:
    """The code that a text says, its blocks numbered from 0. Raises UserError for what is no code."""
    if dialect not in DIALECTS:
        raise UserError(f"dialect {dialect!r} is neither of {', '.join(DIALECTS)}")
    found = re.fullmatch(
        r"(?:(?P<kind>[br]|x(?:\((\d+)x(\d+)d\))?)_)?(?P<stages>[^_]*)(?:_(?P<streams>.*))?", text
    )
    if found is None or not found["stages"]:
        raise UserError(f"{text!r} is no serial code; expected one like r_111-2111-211111-211_0-0-0-0")
    stages = found["stages"].split("-")
    for stage in stages:
        if not re.fullmatch("[12]+", stage):
            what = f"holds {stage!r}" if stage else "has an empty stage"
            raise UserError(f"serial code {text!r} {what}; a stage is one digit a block, 1 or 2")
    streams = found["streams"].split("-") if found["streams"] is not None else ["0"] * len(stages)
    wrong = [k for k in streams if not re.fullmatch(f"[0-{EXTRA}]", k)]
    if wrong or len(streams) != len(stages):
        raise UserError(
            f"serial code {text!r}: {'-'.join(streams)!r} should name the extra streams of its "
            f"{len(stages)} stages, each 0 to {EXTRA}"
        )
    kind = (found["kind"] or "r")[0]
    groups, width = (int(found[2] or 32), int(found[3] or 4)) if kind == "x" else (1, 64)
    ids = iter(range(len(text)))
    made = tuple(tuple(Block(digit == "2", next(ids)) for digit in stage) for stage in stages)
    return Code(made, tuple(map(int, streams)), kind, groups, width, dialect)


def translated(code: Code, dialect: str) -> Code:
    """The same network in the other dialect, ids and all.

    Raises UserError for what that dialect cannot say: a first block of stride 2 (paper) or of twice the width
    (vega), and streams, which are counted by stages.
    """
    if dialect == code.dialect:
        return code
    if code.blocks[0].two or any(code.streams):
        what = "its first block is a 2" if code.blocks[0].two else "it has extra streams"
        raise UserError(f"serial code {code} cannot be said in the dialect {dialect}: {what}")
    stages: list[list[Block]] = []
    for number, stage in enumerate(code.stages):
        for place, block in enumerate(stage):
            begins = number > 0 and place == 0
            if block.two or not stages:
                stages.append([])
            stages[-1].append(replace(block, two=begins))
    made = tuple(map(tuple, stages))
    return replace(code, stages=made, streams=(0,) * len(made), dialect=dialect)


def heir(code: Code, parent: Code) -> Code:
    """`code` with the ids of `parent` on the blocks that are the same, and new ids on the others.

    Which are the same is what makes the fewest changes (an edit distance). A block that is added costs 1,
    more where it begins a stage or is a `2` and could not begin as the identity; one that is taken out costs
    1; one that begins or ceases to be a `2`, or to begin its stage, costs less than both. Of equals, blocks
    are added as late in a stage as can be. So a code needs no memory of how it came about, on any machine.
    """
    ours, theirs = _roles(code), _roles(parent)
    n, m = len(ours), len(theirs)
    best = [[0.0] * (m + 1) for _ in range(n + 1)]  # cheapest way to make ours[i:] of theirs[j:]
    for i in range(n, -1, -1):
        for j in range(m, -1, -1):
            ways = [way for way, _, _ in _ways(best, ours, theirs, i, j)]
            best[i][j] = min(ways) if ways else 0.0
    fresh = iter(range(1 + max(b.id for b in parent.blocks), 10**9))
    ids, i, j = [], 0, 0
    while i < n or j < m:
        _, a, b = min(_ways(best, ours, theirs, i, j), key=lambda way: way[0])
        if a:
            ids.append(parent.blocks[j].id if b else next(fresh))
        i, j = i + a, j + b
    return with_ids(code, ids)


def with_ids(code: Code, ids: Sequence[int]) -> Code:
    """The code with these ids on its blocks, from the input on."""
    return _regrouped(code, [replace(b, id=int(i)) for b, i in zip(code.blocks, ids, strict=True)])


Roles = list[tuple[bool, bool]]  # of each block: is it a 2, does it begin its stage


def _roles(code: Code) -> Roles:
    return [(block.two, place == 0) for stage in code.stages for place, block in enumerate(stage)]


def _ways(
    best: list[list[float]], ours: Roles, theirs: Roles, i: int, j: int
) -> list[tuple[float, int, int]]:
    """(cost, blocks of ours, blocks of theirs) of each step from (i, j), the preferred of equals first."""
    found = []
    if i < len(ours) and j < len(theirs):
        two, begins = (a != b for a, b in zip(ours[i], theirs[j], strict=True))
        found.append((best[i + 1][j + 1] + 0.6 * two + 0.4 * begins, 1, 1))
    if j < len(theirs):
        found.append((best[i][j + 1] + 1.0, 0, 1))
    if i < len(ours):
        found.append((best[i + 1][j] + 1.0 + 0.35 * any(ours[i]), 1, 0))
    return found


# Changing a code -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bounds:
    """What a code may grow and shrink to; the published ranges, which no published program enforces."""

    blocks: tuple[int, int] = (8, 60)
    stages: tuple[int, int] = (4, 7)

    def broken(self, code: Code) -> str | None:
        """Which bound a code breaks, in words; None where it keeps both."""
        for what, n, (low, high) in (
            ("blocks", len(code.blocks), self.blocks),
            ("stages", len(code.stages), self.stages),
        ):
            if not low <= n <= high:
                return f"{n} {what}, where {low} to {high} are allowed"
        return None


Change = Callable[
    [Code, int], list[Code]
]  # a code, and the id of its next new block -> all that it can become


def boundaries(code: Code, fresh: int) -> list[Code]:
    """A boundary between two stages moves by up to three blocks; both keep at least one."""
    out = []
    for i in range(len(code.stages) - 1):
        both, at = code.stages[i] + code.stages[i + 1], len(code.stages[i])
        for cut in range(max(1, at - FURTHEST), min(len(both) - 1, at + FURTHEST) + 1):
            if cut != at:
                pair = (both[:cut], both[cut:])
                out.append(replace(code, stages=code.stages[:i] + pair + code.stages[i + 2 :]))
    return out


def doublings(code: Code, fresh: int) -> list[Code]:
    """A `2` moves by up to three blocks, onto a `1`, never to the first block: its width is given."""
    blocks, out = code.blocks, []
    for at, block in enumerate(blocks):
        for to in range(max(1, at - FURTHEST), min(len(blocks) - 1, at + FURTHEST) + 1):
            if block.two and not blocks[to].two:
                moved = [replace(b, two=(b.two and i != at) or i == to) for i, b in enumerate(blocks)]
                out.append(_regrouped(code, moved))
    return out


def expansions(code: Code, fresh: int) -> list[Code]:
    """A new `1` behind any block, in its stage: there it can begin as the identity."""
    return [
        _with_stage(code, i, stage[: at + 1] + (Block(False, fresh),) + stage[at + 1 :])
        for i, stage in enumerate(code.stages)
        for at in range(len(stage))
    ]


def shrinkings(code: Code, fresh: int) -> list[Code]:
    """A `1` that does not begin its stage is taken out."""
    return [
        _with_stage(code, i, stage[:at] + stage[at + 1 :])
        for i, stage in enumerate(code.stages)
        for at in range(1, len(stage))
        if not stage[at].two
    ]


def additions(code: Code, fresh: int) -> list[Code]:
    """A new last stage of one `1`."""
    return [replace(code, stages=(*code.stages, (Block(False, fresh),)), streams=(*code.streams, 0))]


def removals(code: Code, fresh: int) -> list[Code]:
    """The last stage goes, if it holds no `2`."""
    if len(code.stages) == 1 or any(block.two for block in code.stages[-1]):
        return []
    return [replace(code, stages=code.stages[:-1], streams=code.streams[:-1])]


CHANGES: dict[str, Change] = {
    "boundary": boundaries,
    "doubling": doublings,
    "expand": expansions,
    "shrink": shrinkings,
    "add_stage": additions,
    "drop_stage": removals,
}
RATES = {
    "boundary": 0.3,
    "doubling": 0.15,
    "expand": 0.35,
    "shrink": 0.1,
    "add_stage": 0.05,
    "drop_stage": 0.05,
}


def mutate(
    code: Code,
    rng: np.random.Generator,
    *,
    rates: Mapping[str, float] = RATES,
    bounds: Bounds = Bounds(),
    changes: int = 3,
) -> Code:
    """A code that differs from `code` by 1 to `changes` changes, each as probable as the other.

    The kind of change is drawn by `rates` among those that are possible, then its place, all places alike:
    rates are true probabilities. It always ends. A block that stays keeps its id, a new one gets an id that
    `code` does not have. Raises UserError where no change is possible.
    """
    fresh = 1 + max(block.id for block in code.blocks)
    made = code
    for step in range(int(rng.integers(1, changes + 1))):
        left = {name: rate for name, rate in rates.items() if rate > 0}
        options: list[Code] = []
        while left and not options:  # a kind that is not possible leaves the others their proportions
            weights = np.array(list(left.values()))
            name = list(left)[rng.choice(len(left), p=weights / weights.sum())]
            left.pop(name)
            options = [c for c in CHANGES[name](made, fresh + step) if c != code and bounds.broken(c) is None]
        if not options:
            break
        made = options[rng.integers(len(options))]
    if made == code:
        raise UserError(
            f"serial code {code}: no change keeps {bounds.blocks} blocks and {bounds.stages} stages"
        )
    return made


def _with_stage(code: Code, number: int, stage: Stage) -> Code:
    return replace(code, stages=code.stages[:number] + (stage,) + code.stages[number + 1 :])


def _regrouped(code: Code, blocks: list[Block]) -> Code:
    """The code with these blocks in stages as long as its own."""
    left = iter(blocks)
    return replace(code, stages=tuple(tuple(next(left) for _ in stage) for stage in code.stages))
