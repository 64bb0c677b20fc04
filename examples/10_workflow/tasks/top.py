"""Reads a file that another task left: the argument is its path. Returns the first rows."""

import csv
from pathlib import Path
from typing import Any

from batchflow import Engine


def do_action(engine: Engine, args: list[Any]) -> list[list[str]]:
    path, rows = args
    with Path(path).open(newline="") as file:
        return list(csv.reader(file))[:rows]
