"""What a user did wrong, said in one line."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 4000  # characters of a message


class UserError(ValueError):
    """Something the user wrote cannot work. The command line prints its one line and exits with status 2.

    The message names what was wrong, the value, and what would be right. Anything else that is raised is
    our bug and keeps its traceback. Names and values in it may hold line breaks; the message does not. A
    value of thousands of characters is cut in its middle.
    """

    def __init__(self, message: object = "") -> None:
        text = printable(message)
        cut = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
        super().__init__(text if len(text) <= LONGEST else cut)


class Malformed(ValueError):
    """A text that is not the format it should be, or none that can be worked with: one line that goes on
    after the name of the file, `is not YAML: ...`, with the place if it is known."""


def printable(text: object) -> str:
    """A text that every terminal and file takes: control characters and broken bytes of names are escaped."""
    kept = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return "".join(kept)


def did_you_mean(value: object, known: Iterable[object]) -> str:
    """`; did you mean 'evolution'?` when something known is close to `value`, else an empty string."""
    names = {str(k).lower(): str(k) for k in known}  # a slip in upper and lower case is the nearest of all
    close = get_close_matches(str(value).lower(), names, n=1, cutoff=0.55)
    return f"; did you mean {names[close[0]]!r}?" if close else ""


def unknown(kind: str, value: object, known: Iterable[object]) -> UserError:
    """For a name we do not know: `unknown strategy 'evolutoin'; did you mean 'evolution'? known: ...`"""
    names = [str(k) for k in known]
    hint = did_you_mean(value, names) or ";"
    return UserError(f"unknown {kind} {str(value)!r}{hint} known: {', '.join(names)}")
