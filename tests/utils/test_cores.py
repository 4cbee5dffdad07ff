import os
import subprocess
import sys

import pytest

from utils import cores


@pytest.mark.parametrize(
    ("there", "at_a_time", "each"), [(8, 1, 7), (8, 2, 4), (8, 3, 2), (2, 1, 1), (1, 1, 1), (2, 4, 1)]
)
def test_trainings_share_the_cores_and_one_alone_leaves_one_free(monkeypatch, there, at_a_time, each):
    monkeypatch.setattr(cores, "cores", lambda: there)
    assert cores.threads_each(at_a_time) == each


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_only_cores_that_the_process_may_use_count():
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); from utils.cores import cores; print(cores())"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"1\n"
    assert 1 <= cores.cores() <= len(os.sched_getaffinity(0))
