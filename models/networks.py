"""Any space by its YAML, and the plain network of any of its archs.

A YAML with the key `network` is an `ElasticSpace` (models/elastic/space.py), any other a `Space`: YOLO with
NAS rows. Both answer the same questions; `space.task` says what its networks do: detect or classify.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from models.elastic.space import ElasticSpace
from models.yolo.space import Space

AnySpace = Space | ElasticSpace


def open_any_space(
    source: str | Path | dict[str, Any], nc: int | None = None, ch: int | None = None
) -> AnySpace:
    """The space of a YAML file or such a dict. Raises UserError for everything a file can get wrong."""
    return ElasticSpace(source, nc, ch) if is_elastic(source) else Space(source, nc, ch)


def is_elastic(source: str | Path | dict[str, Any]) -> bool:
    """Whether this is the YAML of an elastic network. False too for what cannot be read: `Space` says why."""
    if isinstance(source, dict):
        return "network" in source
    try:
        model = yaml.safe_load(Path(source).expanduser().read_text(encoding="utf-8", errors="ignore"))
    except (OSError, yaml.YAMLError, ValueError):
        return False
    return isinstance(model, dict) and "network" in model


def build(space: AnySpace, arch: Mapping[str, Any], names: Sequence[str] | None = None) -> Any:
    """The network of an arch: plain modules, fresh weights of torch's generator.

    names: of the classes. Raises UserError for an arch that is not of this space.
    """
    if isinstance(space, Space):
        from models.yolo import detector as yolo  # Ultralytics is not needed for the others

        return yolo.build(space, arch, names)
    from nni.nas.space import model_context

    with model_context(space.complete(arch)):
        net = space.build()
    if names is not None:
        net.names = list(names)
    return net


def describe(space: AnySpace, imgsz: int) -> str:
    """The space as a text for people: every choice, how many archs, and what the extremes cost."""
    if isinstance(space, Space):
        what = f"{len(space.rows)} rows"
    else:
        stages = ", ".join(f"{part.name} of {part.stages}" for part in space.parts.values())
        what = f"network {space.model['network']} with stages: {stages}"
    lines = [f"{space.name}: {space.nc} classes, {what}, {len(space.choices)} choices"]
    lines += [f"note: {notice}" for notice in space.notices]
    wide = max(map(len, space.choices), default=0)
    if space.choices:
        lines += ["", *(f"  {c:<{wide}}  {'  '.join(map(str, v))}" for c, v in space.choices.items())]
        raw, distinct = space.size()
        lines += ["", f"archs: {_many(raw)} raw, {_many(distinct)} distinct"]
    where = "each at its resolution" if "resolution" in space.choices else f"at {imgsz} x {imgsz}"
    left = max(13, len(where) + 2)
    lines += ["", f"{where:<{left}}params (M)    GFLOPs"]
    kinds = {"smallest": space.smallest(), "default": space.default(), "largest": space.largest()}
    for kind, arch in kinds.items() if space.choices else [("fixed", {})]:
        cost = space.cost(arch, imgsz)
        lines.append(f"  {kind:<{left - 2}}{cost['params_m']:10.3f}{cost['gflops']:10.3f}")
    return "\n".join(lines)


def _many(n: int) -> str:
    digits = str(n)
    return f"{n:,}" if n < 10**6 else f"{digits[0]}.{digits[1:3]}e{len(digits) - 1}"
