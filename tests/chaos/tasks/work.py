"""A task of the chaos run: works for a while, tells its own name."""

import json
import os
import time
from pathlib import Path


def do_action(engine, args):
    """`args`: the task's name, seconds, where wanted a file to note the process in, and what to give back.

    Of a graph also: the file for notes, whether it fails, and the values of other tasks.
    """
    name, seconds, note, payload, *graph = args
    if graph:
        return in_graph(name, seconds, *graph)
    if note:
        Path(note).write_text(str(os.getpid()))
    time.sleep(seconds)
    return name + payload


def in_graph(name, seconds, notes, fails, values):
    append(notes, "begin", name, [value if isinstance(value, str) else "failed" for value in values])
    time.sleep(seconds)
    append(notes, "end", name, "failed" if fails else "succeeded")
    if fails:
        raise ValueError(f"{name} fails")
    return name


def append(notes, kind, name, what):
    """One line, in one write."""
    file = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, (json.dumps([kind, time.monotonic(), name, what]) + "\n").encode())
    finally:
        os.close(file)
