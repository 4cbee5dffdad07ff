"""Functions of a user's own Python file: found, checked, called with what they ask for by name."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from utils.errors import UserError, did_you_mean, unknown


def load_function(path: str | Path, name: str) -> Callable[..., Any]:
    """The function `name` of a Python file, which is run for it, once for each version of the file.

    UserError, one line, when there is no such file or function, and for whatever running the file raises.
    """
    try:
        changed = Path(path).stat().st_mtime_ns
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; a Python file with {name}(...) is needed") from None
    module = _run(str(path), changed)
    function = getattr(module, name, None)
    if not inspect.isfunction(function):
        functions = [n for n, f in vars(module).items() if inspect.isfunction(f)]
        hint = did_you_mean(name, functions) or f"; it has {', '.join(functions) or 'no function'}"
        raise UserError(f"{path} has no function {name!r}{hint}")
    return function


@lru_cache(maxsize=16)
def _run(path: str, changed: int) -> Any:
    spec = importlib.util.spec_from_file_location(f"own_{Path(path).stem}_{changed}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{path}, {where(error, path)}: {type(error).__name__}: {error}") from None
    return module


def where(error: BaseException, path: str | Path) -> str:
    """`line 12`: the last one of the file that an error came through."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    return f"line {lines[-1]}" if lines else "somewhere below it"


def check_arguments(
    function: Callable[..., Any], offered: Iterable[str], options: Mapping[str, Any], what: str
) -> None:
    """Can `function` be called with some of `offered`, and all of `options`, by name? UserError if not."""
    offered = tuple(offered)
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    own = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD and name not in offered]
    for key in options:
        if key in offered or not (takes_all or key in own):
            raise unknown(f"option of {what}", key, own)
    for name in own:
        if parameters[name].default is inspect.Parameter.empty and name not in options:
            raise UserError(
                f"{what} asks for {name!r}, which is neither an option that is given nor one of "
                f"{', '.join(offered)}"
            )


def wanted(function: Callable[..., Any], offered: Iterable[str]) -> set[str]:
    """Which of `offered` the function has parameters for."""
    return set(inspect.signature(function).parameters) & set(offered)
