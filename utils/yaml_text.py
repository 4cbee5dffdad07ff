"""YAML that somebody else wrote: read safely, or refused in one line."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any

from utils.errors import UserError, printable

if TYPE_CHECKING:
    import yaml

MOST = 1_000_000  # values, aliases counted as often as they stand for something
TEXT = "tag:yaml.org,2002:str"


def load_yaml(text: str, what: str, as_text: Container[str] = ()) -> Any:
    """The value of a YAML text; None where it is empty.

    what: begins the error, e.g. "data d.yaml". as_text: keys of the outermost mapping below which everything
    stays as it was written (no, 007 and 1e3 are words there).
    Raises UserError for what is not YAML, is nested too deeply, or unfolds to more than a million values.
    """
    import yaml

    loader = yaml.SafeLoader("")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MOST:
            raise UserError(f"{what} cannot be read: its aliases (*) stand for more than {MOST:,} values")
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in as_text:
                    _to_text(value)
        return loader.construct_document(node)
    except RecursionError:
        raise UserError(f"{what} cannot be read: it is nested too deeply") from None
    except UserError:
        raise
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        # what is no YAMLError comes from values that are tagged or look like dates and numbers and are none
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{what} is not YAML: {problem}{where}") from None
    finally:
        loader.dispose()


def short(value: object, most: int = 60) -> str:
    """How a value is shown in an error: on one line, and not all of it."""
    text = printable(repr(value))
    return text if len(text) <= most else text[: most - 3] + "..."


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node stands for; infinite where it holds itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        inner = node.value if isinstance(node.value, list) else []
        flat = [n for item in inner for n in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_size(n, known) for n in flat)
    return known[id(node)]


def _to_text(node: yaml.Node) -> None:
    if not isinstance(node.value, list):
        node.tag = TEXT
        return
    for item in node.value:
        for inner in item if isinstance(item, tuple) else (item,):
            _to_text(inner)
