"""Tests side by side (`make test`): several processes, each with its share of the cores.

A file is one process's, so what it trains once it trains once. Which process that is must not matter: files
and caches are below `tmp_path`, ports are free ones, and NNI's list of experiments has a lock of its own.
(Groups of xdist, finer than files, are lost on pytest 9.2 with xdist 3.8.)
"""

import gc
import os

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:  # before torch is imported: threads that wait for each other's cores take many times longer
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))


def pytest_collection_finish() -> None:
    """What was imported stays: looking through it for garbage was 8 % of the time of two files."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
