"""The tasks, for every contender the same."""

import time
from collections.abc import Callable
from typing import Any

TASK_SECONDS = 0.001
NUMPY_SECONDS = 0.005


def noop(argument: object) -> None:
    """Do nothing."""


def spin(argument: object) -> None:
    """Compute for 1 ms, whoever else computes: the clock is this thread's CPU time."""
    end = time.thread_time() + TASK_SECONDS
    while time.thread_time() < end:
        pass


def nap(argument: object) -> None:
    """Last for 1 ms on the clock."""
    time.sleep(TASK_SECONDS)


def echo(argument: Any) -> Any:
    return argument


def join(*parts: Any) -> int:
    """Count the values that it gets one by one, or as one list."""
    return len(parts[0]) if len(parts) == 1 and isinstance(parts[0], list) else len(parts)


def compute(argument: object) -> float:
    """Compute with numpy for 5 ms of this thread's CPU time."""
    import numpy as np

    values, total = np.arange(10_000, dtype=np.float64), 0.0
    end = time.thread_time() + NUMPY_SECONDS
    while time.thread_time() < end:
        total += float(np.sqrt(values + total).sum())
    return total


def series_sum(count: int) -> int:
    """Use what was required."""
    import numpy as np
    import pandas as pd

    return int(pd.Series(np.arange(count)).sum())


TASKS: dict[str, Callable[[Any], Any]] = {
    function.__name__: function for function in (noop, spin, nap, echo, compute)
}
