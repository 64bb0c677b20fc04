"""The tasks, for every contender the same."""

import time

TASK_SECONDS = 0.001


def noop(argument):
    return None


def spin(argument):
    """Compute for 1 ms, whoever else computes: the clock is this thread's CPU time."""
    end = time.thread_time() + TASK_SECONDS
    while time.thread_time() < end:
        pass


def nap(argument):
    """Last for 1 ms on the clock."""
    time.sleep(TASK_SECONDS)


def echo(argument):
    return argument


TASKS = {function.__name__: function for function in (noop, spin, nap, echo)}
