"""The tasks, for every contender the same."""

import time
from collections.abc import Callable
from typing import Any

TASK_SECONDS = 0.001


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


TASKS: dict[str, Callable[[Any], Any]] = {function.__name__: function for function in (noop, spin, nap, echo)}
