"""YAML and JSON that somebody else wrote: every fault is one line, and no text can hang or crash its reader.

Both formats can say in a few bytes what no program survives: a hundred thousand levels of nesting, and in
YAML ten lines of aliases that stand for ten billion values (the "billion laughs").
"""

from __future__ import annotations

import json
from typing import Any

import yaml

DEEPEST = 100  # levels of lists and mappings inside each other; people write ten
MOST_REPEATED = 100_000  # values that a YAML's aliases may add to those that are written down


class Malformed(ValueError):
    """A text that is not YAML or JSON, or no sane one. The message is one line, with the place if known."""


def parse_yaml(text: str) -> Any:
    """The plain values of a YAML text; no tag makes anything else. Raises Malformed, and nothing else."""
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Malformed(f"{error.problem}{f' at line {mark.line + 1}' if mark else ''}") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        # Apart from the first, what PyYAML lets through from values that only look like dates or numbers.
        raise Malformed(" ".join(str(error).split()) or type(error).__name__) from None
    finally:
        if loader is not None:
            loader.dispose()


def parse_json(text: str | bytes, deepest: int | None = DEEPEST) -> Any:
    """The values of a JSON text. Raises Malformed, and nothing else.

    deepest: levels of nesting that are taken; None spares large files a walk, where the values are checked
        for their shape anyway.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise Malformed("it is nested too deeply") from None
    except ValueError as error:
        raise Malformed(" ".join(str(error).split())) from None
    if deepest is not None and _levels(value, deepest) > deepest:
        raise Malformed(f"it is nested more than {deepest} levels deep")
    return value


def _levels(value: Any, most: int) -> int:
    """How deep lists and objects of a JSON value lie in each other; counted no further than `most` + 1."""
    levels, inside = 0, [value] if isinstance(value, list | dict) else []
    while inside and levels <= most:
        levels += 1
        children = (v for part in inside for v in (part.values() if isinstance(part, dict) else part))
        inside = [v for v in children if isinstance(v, list | dict)]
    return levels


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also counts levels and values, through aliases too, while it reads."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open = 0
        self._written = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        opens = isinstance(event, yaml.CollectionStartEvent)
        self._open += opens
        if self._open > DEEPEST:
            raise _refused(f"it is nested more than {DEEPEST} levels deep", event)
        node: Any = super().compose_node(parent, index)
        self._open -= opens
        if isinstance(event, yaml.AliasEvent):
            if not hasattr(node, "levels"):
                raise _refused(f"the alias *{event.anchor} stands for something that contains it", event)
            return node
        self._written += 1
        children: list[Any] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        node.levels = opens + max((child.levels for child in children), default=0)
        node.values = 1 + sum(child.values for child in children)
        if node.levels > DEEPEST:
            raise _refused(f"it is nested more than {DEEPEST} levels deep", event)
        if node.values - self._written > MOST_REPEATED:
            raise _refused(f"its aliases stand for more than {MOST_REPEATED} values", event)
        return node


def _refused(problem: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
