import os
import re
import subprocess
import sys

import pytest

from utils import cores


@pytest.mark.parametrize(
    ("there", "at_a_time", "each"), [(8, 1, 8), (8, 2, 4), (8, 3, 2), (1, 1, 1), (2, 4, 1)]
)
def test_trainings_share_the_cores(monkeypatch, there, at_a_time, each):
    monkeypatch.setattr(cores, "cores", lambda: there)
    assert cores.threads_each(at_a_time) == each


@pytest.mark.parametrize(
    ("threads", "percent", "said"),
    [
        (4, 25.0, "1.0 of 4 cores busy.*threads=3 may be much faster than 4"),
        (4, 90.0, "threads=1 may"),
        (4, 10.0, None),  # 0.4 of a core
        (3, 25.0, None),  # there is one for it
        (1, 100.0, None),
    ],
)
def test_threads_that_would_wait_for_others_are_warned_of(monkeypatch, threads, percent, said):
    monkeypatch.setattr(cores, "cores", lambda: 4)
    monkeypatch.setattr("psutil.cpu_count", lambda: 4)
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: percent)
    hint = cores.hint_if_busy(threads)
    assert hint is None if said is None else re.search(said, hint)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_only_cores_that_the_process_may_use_count():
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); from utils.cores import cores; print(cores())"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"1\n"
    assert 1 <= cores.cores() <= len(os.sched_getaffinity(0))
