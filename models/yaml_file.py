"""The one reader of YAML files of spaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.yaml_text import load_yaml, short

LARGEST = 1_000_000  # of any number in a space: a slip of the finger should not fill the memory


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


def check_numbers(where: str, value: Any) -> None:
    """Raises UserError for a number in a space's YAML that no network can have: above a million, infinite."""
    if isinstance(value, dict):
        for key, inner in value.items():
            check_numbers(f"{where}.{key}", inner)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            check_numbers(f"{where}[{i}]", inner)
    elif isinstance(value, int | float) and not abs(value) <= LARGEST:
        raise UserError(f"{where} should be a number of {LARGEST:,} at most, got {short(value)}")
