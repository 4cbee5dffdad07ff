"""The one reader of YAML files of spaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.yaml_text import load_yaml, short


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The file as a dict. what: "a space: expected network and its parts", for who gives another file.

    Author names in people's headers are often not UTF-8; nothing that we read is outside ASCII.
    Raises UserError for what cannot be read, is no YAML or no mapping.
    """
    try:
        model = load_yaml(path.read_text(encoding="utf-8", errors="ignore"), str(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not isinstance(model, dict):
        raise UserError(f"{path} is not {what}, got {short(model)}")
    return model


def positive(key: str, value: Any) -> int:
    """A whole number from 1. Raises UserError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{key} should be a whole number, 1 or more, got {value!r}")
    return value
