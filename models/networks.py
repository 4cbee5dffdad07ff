"""The door to every kind of space: one dict. What a space is stands in models/space.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from models.elastic.space import ElasticSpace
from models.serial.space import SerialSpace
from models.space import Space
from models.yaml_file import read_mapping
from models.yolo.space import YoloSpace
from utils.errors import UserError
from utils.sides import Sides, both

# The key of a YAML that tells its kind; a YAML with none of them is YOLO's, which says what it lacks.
SPACES: dict[str, Callable[..., Space]] = {
    "code": SerialSpace,
    "network": ElasticSpace,
    "backbone": YoloSpace,
}


def open_any_space(
    source: str | Path | dict[str, Any], nc: int | None = None, ch: int | None = None
) -> Space:
    """The space of a YAML file or such a dict. Raises UserError for everything a file can get wrong."""
    try:
        model = source if isinstance(source, dict) else read_mapping(Path(source).expanduser(), "a space")
    except UserError:  # YOLO's have other places to look at, and say what is wrong
        model = {}
    kind = next((kind for key, kind in SPACES.items() if key in model), SPACES["backbone"])
    return kind(source, nc, ch)


def build(space: Space, arch: Mapping[str, Any], names: Sequence[str] | None = None) -> Any:
    """The network of an arch: plain modules, fresh weights of torch's generator. names: of the classes."""
    return space.build(arch, names)


def describe(space: Space, imgsz: Sides) -> str:
    """The space as a text for people: every choice, how many archs, and what the extremes cost."""
    choices = space.choices
    lines = [f"{space.name}: {space.nc} classes, {space.outline}, {len(choices)} choices"]
    lines += [f"note: {notice}" for notice in space.notices]
    wide = max(map(len, choices), default=0)
    if choices:
        lines += ["", *(f"  {c:<{wide}}  {'  '.join(map(str, v))}" for c, v in choices.items())]
        raw, distinct = space.size()
        lines += ["", f"archs: {_many(raw)} raw, {_many(distinct)} distinct"]
    where = "each at its resolution" if "resolution" in choices else f"at {both(imgsz)}"
    left = max(13, len(where) + 2)
    lines += ["", f"{where:<{left}}params (M)    GFLOPs"]
    kinds = {"smallest": space.smallest(), "default": space.default(), "largest": space.largest()}
    for kind, arch in kinds.items() if choices else [("fixed", space.default())]:
        cost = space.cost(arch, imgsz)
        lines.append(f"  {kind:<{left - 2}}{cost['params_m']:10.3f}{cost['gflops']:10.3f}")
    return "\n".join(lines)


def _many(n: int) -> str:
    digits = str(n)
    return f"{n:,}" if n < 10**6 else f"{digits[0]}.{digits[1:3]}e{len(digits) - 1}"
