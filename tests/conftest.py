"""Tests side by side (`make test`): several processes, each with its share of the cores.

Which process runs a test must not matter: files and caches are below `tmp_path`, ports are free ones. Tests
that would be in each other's way, or that share something dear, stay in one process as a group.
"""

import os

import pytest

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:  # before torch is imported: threads that wait for each other's cores take many times longer
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))

# They start NNI's manager, whose list of experiments is one file of the user's, or look at what it leaves.
NNI = ("test_nni_runtime.py", "test_nni_guard.py", "test_nni_repairs.py", "test_own.py", "test_gpus.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in NNI:
            item.add_marker(pytest.mark.xdist_group("nni"))
        elif _shares(item):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


def _shares(item: pytest.Item) -> bool:
    """Whether it takes a fixture that is made once a file: a trained network, a data set."""
    known = getattr(item, "_fixtureinfo").name2fixturedefs  # noqa: B009
    return any(definition.scope == "module" for found in known.values() for definition in found)
