"""What a function becomes where the name of a file may stand. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from batchflow.support.frozen import frozen


@frozen
class FunctionCommand:
    """A function where the name of a file may stand."""

    label: str
    """`module:qualname`: the command, as results, errors and the wire have it."""
    args: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The arguments that a `functools.partial` brought along."""
    modules: frozenset[str] = frozenset()
    """The modules of the user's project that it needs."""
    pickled: bytes | None = None
    """The function, if it travels by value."""

    def arguments(self, given: list[Any]) -> list[Any]:
        """Return the arguments of a call. The keywords are the last of them, if there are any."""
        arguments = [*self.args, *given]
        return [*arguments, dict(self.keywords)] if self.keywords else arguments


def label_of(command: str | FunctionCommand) -> str:
    return command.label if isinstance(command, FunctionCommand) else command
