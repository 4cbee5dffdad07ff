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
    """CPU threads of each of so many trainings."""
    return max(1, cores() // at_a_time)


def hint_if_busy(threads: int) -> str | None:
    """A line for people when other programs need cores that so many threads would wait for, else None.

    Threads meet after every operator. Where one of two has to share its core, a step takes 2.5 times as long
    as with a single thread (experiments/benchmarks/threads.py). Takes half a second to look.
    """
    import psutil

    if threads == 1:
        return None
    busy = psutil.cpu_percent(interval=0.5) / 100 * psutil.cpu_count()
    if threads + busy < cores() + 0.5:
        return None
    fewer = max(1, cores() - round(busy))
    return (
        f"note: other programs keep {busy:.1f} of {cores()} cores busy, and threads wait for each other: "
        f"threads={fewer} may be much faster than {threads}"
    )
