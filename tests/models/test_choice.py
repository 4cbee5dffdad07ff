"""A choice knows its order, and nobody else decides what is larger."""

import ast
from pathlib import Path

import pytest

from models.space import Choice

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "values, ascending, largest",
    [
        ((16, 8, 24), (8, 16, 24), 24),
        ((1.0, 0.5, 2), (0.5, 1.0, 2), 2),
        (("5x5", "11x11", "3x3"), ("3x3", "5x5", "11x11"), "11x11"),
        (("SiLU", "Identity", "ReLU"), ("SiLU", "Identity", "ReLU"), "SiLU"),
    ],
)
def test_values_are_ordered_by_their_size(values, ascending, largest):
    choice = Choice("x", values)
    assert choice.default == values[0]
    assert choice.ascending == ascending
    assert choice.largest == largest
    assert choice.smallest == ascending[0]


def test_steps_are_counted_between_neighbours_and_words_are_one_apart():
    kernels, acts = Choice("k", ("5x5", "3x3", "7x7")), Choice("a", ("SiLU", "ReLU", "Mish"))
    assert kernels.steps("3x3", "7x7") == 2 and kernels.steps("5x5", "5x5") == 0
    assert acts.steps("SiLU", "Mish") == 1 and acts.steps("ReLU", "ReLU") == 0


def test_an_order_that_is_said_counts_and_outlives_fewer_values():
    paths = Choice("p", ("b", "a", "c", "d"), ("c", "a", "d", "b"))
    assert (paths.smallest, paths.default, paths.largest) == ("c", "b", "b")
    fewer = paths.only(["d", "a"])
    assert fewer.values == ("d", "a") and fewer.ascending == ("a", "d") and fewer.largest == "d"
    assert paths.only(list(paths.values)) is paths
    assert Choice("a", ("x", "y"), ()).ascending == ("x", "y")


# How the house is built ---------------------------------------------------------------------------------


def imports(path):
    """Modules of models/ that a file imports anywhere, also late and for types only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_no_file_of_models_leads_back_to_itself():
    files = {name_of(path): path for path in (ROOT / "models").rglob("*.py")}
    leads = {name: {m for m in imports(path) if m in files} for name, path in files.items()}
    while leads:
        ends = [name for name, to in leads.items() if not to & leads.keys()]
        assert ends, f"a circle among {sorted(leads)}"
        for name in ends:
            del leads[name]


def test_nobody_asks_which_kind_of_space_it_holds():
    for folder in ("models", "experiments", "utils", "data"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                    assert "Space" not in ast.unparse(node.args[1]), f"{path}:{node.lineno}"
