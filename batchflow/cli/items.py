"""What the tasks of a run get, from wherever it is written. All of it is read and checked before any is sent.

An input is an item: the command, and its arguments. As everywhere in batchflow a list is the arguments, and
anything else is the one argument. Text from the command line and from a CSV file is read as JSON where it is
JSON (`3`, `true`, `[1, 2]`), and is text as it stands where it is not.
 (split)"""

from __future__ import annotations

from typing import Any

from batchflow.support.frozen import frozen


@frozen
class Item:
    """One task to be: what it runs, and what with."""

    command: str
    arguments: list[Any]

    @classmethod
    def of(cls, command: str, value: Any) -> Item:
        """Make an item. A list is the arguments, any other value is the one argument."""
        return cls(command, value if isinstance(value, list) else [value])
