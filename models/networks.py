"""Any space by its YAML, and the plain network of any of its archs.

A YAML with the key `network` is an `ElasticSpace` (models/elastic_space.py), any other a `Space`: YOLO with
NAS rows. Both answer the same questions; `space.task` says what its networks do: detect or classify.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from models.elastic_space import ElasticSpace
from models.space import Space

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
        from models import yolo  # Ultralytics is not needed for the others

        return yolo.build(space, arch, names)
    from nni.nas.space import model_context

    with model_context(space.complete(arch)):
        net = space.build()
    if names is not None:
        net.names = list(names)
    return net
