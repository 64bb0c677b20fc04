"""A task of the chaos run: works for a while, tells its own name."""

import os
import time
from pathlib import Path


def do_action(engine, args):
    """`args`: the task's name, seconds, where wanted a file to note the process in, and what to give back."""
    name, seconds, note, payload = args
    if note:
        Path(note).write_text(str(os.getpid()))
    time.sleep(seconds)
    return name + payload
