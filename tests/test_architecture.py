"""What holds the house up, asked of the code itself: which way imports point, walls, short functions."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("utils", "data", "models", "experiments", "hello_nas")  # each imports from those before it
LONGEST = 60  # lines of a function
# NNI behind one wall: its engine, its strategies and ours that it drives, spaces as it sees them, and elastic
# layers, which are its mutables.
NNI_INSIDE = (
    "experiments/engine/",
    "experiments/strategies/",
    "models/nni_space.py",
    "models/yolo/nas.py",
    "models/elastic/layers.py",
    "models/elastic/space.py",
    "models/serial/space.py",
    "models/supernet.py",
)
# What a user runs, not what the house is built of: scripts, and the trainer for stock Ultralytics.
SCRIPTS = ("experiments/benchmarks/", "experiments/examples/", "models/keep_architecture.py")
MODELS_OF_ULTRALYTICS = ("ultralytics.nn", "ultralytics.models", "ultralytics.YOLO")


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Module name -> its syntax tree, of all product code."""
    files = [ROOT / "hello_nas.py", *(p for floor in FLOORS[:-1] for p in (ROOT / floor).rglob("*.py"))]
    return {_name(p): ast.parse(p.read_text()) for p in files}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def path_of(module: str) -> str:
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if (ROOT / path).is_dir() else f"{path}.py"


def imported(module: str) -> list[str]:
    """The dotted names that a module imports, late imports and those for type checkers too."""
    found, todo = [], list(ast.iter_child_nodes(trees()[module]))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are absolute here"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        todo += ast.iter_child_nodes(node)
    return found


@functools.cache
def ours(module: str) -> frozenset[str]:
    """The modules of the house that a module imports."""
    found = set()
    for name in imported(module):
        while name not in trees() and "." in name:
            name = name.rpartition(".")[0]
        found |= {name} & trees().keys()
    return frozenset(found - {module})


def circles() -> list[set[str]]:
    """Sets of modules that import each other, however far around (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(ours(module)):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            at = stack.index(module)
            found.append(set(stack[at:]))
            del stack[at:]

    for module in sorted(trees()):
        if module not in index:
            visit(module)
    return [circle for circle in found if len(circle) > 1]


def test_imports_point_one_way():
    wrong = [
        f"{module} imports {other}"
        for module in trees()
        for other in ours(module)
        if FLOORS.index(other.split(".")[0]) > FLOORS.index(module.split(".")[0])
    ]
    assert wrong == []


def test_no_modules_import_each_other_not_even_late():
    assert [sorted(circle) for circle in circles()] == []


@pytest.mark.parametrize(
    ("packages", "inside"), [(("nni",), NNI_INSIDE), (MODELS_OF_ULTRALYTICS, ("models/yolo/",))]
)
def test_walls(packages, inside):
    outside = [
        f"{path_of(module)} imports {name}"
        for module in trees()
        for name in imported(module)
        if any(f"{name}.".startswith(f"{package}.") for package in packages)
        and not path_of(module).startswith((*inside, *SCRIPTS))
    ]
    assert outside == []


def test_functions_are_short():
    long = [
        f"{module}.{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for module, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > LONGEST
    ]
    assert long == []


def test_every_module_says_what_it_is():
    assert [module for module, tree in trees().items() if not ast.get_docstring(tree)] == []
