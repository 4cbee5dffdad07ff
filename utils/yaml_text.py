"""YAML that somebody else wrote: every fault is one line, and no text can hang or crash its reader.

A few bytes of YAML can say what no program survives: a hundred thousand levels of nesting, or ten lines of
aliases that stand for ten billion values (the "billion laughs").
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from typing import Any

import yaml

from utils.errors import Malformed, UserError, printable

DEEPEST = 100  # levels of lists and mappings inside each other; people write ten
MOST = 1_000_000  # values, where aliases are counted as often as they stand for something
TEXT = "tag:yaml.org,2002:str"


def load_yaml(text: str, what: str, as_text: Iterable[str] = ()) -> Any:
    """As `parse_yaml`, but raises UserError. what: begins the error, e.g. "data d.yaml"."""
    try:
        return parse_yaml(text, as_text)
    except Malformed as error:
        raise UserError(f"{what} {error}") from None


def parse_yaml(text: str, as_text: Iterable[str] = ()) -> Any:
    """The plain values of a YAML text, None where it is empty; no tag makes anything else.

    as_text: keys of the outermost mapping below which everything stays as it was written (no, 007 and 1e3
        are words there).
    Raises Malformed, and nothing else, for what is not YAML, is nested too deeply, or unfolds to more than a
    million values.
    """
    return copy.deepcopy(_parsed(text, tuple(as_text)))


@functools.lru_cache(maxsize=32)  # a run opens the same few files dozens of times
def _parsed(text: str, as_text: tuple[str, ...]) -> Any:
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in as_text:
                    _to_text(value)
        return None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}" if mark else ""
        verdict = "is not YAML" if not isinstance(error, _Refused) else "cannot be read"
        raise Malformed(f"{verdict}: {error.problem}{where}") from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        # What is no YAMLError comes from values that are tagged or look like dates and numbers and are none.
        raise Malformed(f"is not YAML: {' '.join(str(error).split()) or type(error).__name__}") from None
    finally:
        if loader is not None:
            loader.dispose()


def short(value: object, most: int = 60) -> str:
    """How a value is shown in an error: on one line, and not all of it."""
    text = printable(repr(value))
    return text if len(text) <= most else text[: most - 3] + "..."


class _Refused(yaml.MarkedYAMLError):
    """YAML, but none that can be worked with."""

    def __init__(self, problem: str, event: Any) -> None:
        super().__init__(problem=problem, problem_mark=event.start_mark)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also counts levels and values, through aliases too, while it reads."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        opens = isinstance(event, yaml.CollectionStartEvent)
        self._open += opens
        if self._open > DEEPEST:
            raise _Refused(f"it is nested too deeply, more than {DEEPEST} levels", event)
        node: Any = super().compose_node(parent, index)
        self._open -= opens
        if isinstance(event, yaml.AliasEvent):
            if not hasattr(node, "levels"):
                raise _Refused(f"its aliases (*) stand for themselves: *{event.anchor}", event)
            return node
        children = _children(node)
        node.levels = opens + max((child.levels for child in children), default=0)
        node.values = 1 + sum(child.values for child in children)
        if node.levels > DEEPEST:
            raise _Refused(f"it is nested too deeply, more than {DEEPEST} levels", event)
        if node.values > MOST:
            raise _Refused(f"its aliases (*) stand for more than {MOST:,} values", event)
        return node


def _children(node: yaml.Node) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _to_text(node: yaml.Node) -> None:
    if isinstance(node, yaml.ScalarNode):
        node.tag = TEXT
    for child in _children(node):
        _to_text(child)
