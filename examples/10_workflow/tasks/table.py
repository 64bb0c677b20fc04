"""Leaves a file: the words and their counts as CSV."""

import csv
from typing import Any

from batchflow import Engine


def do_action(engine: Engine, args: list[Any]) -> None:
    with (engine.outputs / "words.csv").open("w", newline="") as file:
        csv.writer(file).writerows(sorted(args[0].items(), key=lambda each: (-each[1], each[0])))
