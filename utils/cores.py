"""CPU cores, and how trainings share them."""

from __future__ import annotations

from functools import cache


@cache
def cores() -> int:
    """Physical cores that this process may use: affinity and a container's quota count."""
    import joblib
    import psutil

    return min(joblib.cpu_count(), psutil.cpu_count(logical=False) or joblib.cpu_count())


def threads_each(at_a_time: int) -> int:
    """CPU threads of each of so many trainings.

    One alone leaves a core free. Its threads wait for each other many times a step, so that a second one may
    gain little, and where another program takes its core, a step takes many times as long.
    """
    return max(1, cores() - 1 if at_a_time == 1 else cores() // at_a_time)
