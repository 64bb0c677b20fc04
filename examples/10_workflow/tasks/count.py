"""Counts the words of one file."""

from collections import Counter
from pathlib import Path
from typing import Any

from batchflow import Engine


def do_action(engine: Engine, args: list[Any]) -> dict[str, int]:
    return dict(Counter(Path(args[0]).read_text("utf-8").split()))
