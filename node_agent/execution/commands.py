"""What a command is: a pure decision, made before anything runs.

A command is the name of a file of the bundle, never a path that leads elsewhere: `x.py` is Python with a
`do_action`, `x.jar` is Java, anything else must be executable (by its bit, or by beginning with "#!"). The
names in a bundle were checked when it was read.
"""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING, Any, Final

import orjson

from batchflow.protocol.bundle import Bundle, check_name
from batchflow.support.frozen import frozen
from node_agent.child import java
from node_agent.execution.startable import obstacle

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_NAMES_SHOWN: Final = 8


@frozen
class Action:
    """A file with a `do_action`, or a function: the Python worker runs it."""


@frozen
class RunProgram:
    """A program to run in the working directory."""

    argv: tuple[str, ...]


@frozen
class Refusal:
    """Not to be run."""

    reason: str
    kind: str = "TaskRejected"


ACTION: Final = Action()


def resolve(
    command: str,
    args: Sequence[Any] | bytes,
    bundle: Bundle,
    files: Path,
    directory: Path,
    env: Mapping[str, str] | None = None,
) -> Action | RunProgram | Refusal:
    """Return what a command is. `files`: the cached files, `directory`: where the program will find them.

    `args`: bytes are a container, which only Python opens. `env`: what the program will have;
    None: this process's.
    """
    if (refusal := _refuse(command, bundle)) is not None:
        return refusal
    if command.endswith(".py"):
        return ACTION
    if isinstance(args, bytes):
        return Refusal(f"{command}: a program takes texts and numbers, and an argument is neither")
    try:
        words = [word(arg) for arg in args]
    except ValueError as error:
        return Refusal(f"{command}: {error}")
    path = str(directory / command)
    if command.endswith(".jar"):
        found = java.find(env)
        if found is None:
            return Refusal(f"{command}: {java.MISSING}", "TaskFailed")
        return RunProgram((found, "-jar", path, *words))
    if not os.stat(files / command).st_mode & 0o111:
        return Refusal(
            f"{command!r} cannot be run: it is neither .py nor .jar, not executable, and has no '#!' line"
        )
    path_there = None if env is None else env.get("PATH")
    if (found_obstacle := obstacle(files / command, directory, path_there)) is not None:
        kind = "TaskFailed" if found_obstacle.on_this_node else "TaskRejected"
        return Refusal(f"{command} cannot be started: {found_obstacle.reason}", kind)
    return RunProgram((path, *words))


def word(arg: Any) -> str:
    """Return an argument of a program: text as it is, a number in digits, anything else as JSON."""
    text = arg if isinstance(arg, str) else orjson.dumps(arg).decode()
    if "\0" in text:
        raise ValueError(f"an argument holds NUL, which no program can be given: {text[:80]!r}")
    return text


def _refuse(command: str, bundle: Bundle) -> Refusal | None:
    if command in bundle:
        return None
    names = [file.name for file in bundle.files]
    if (base := command.rpartition("/")[2]) in bundle:
        hint = f"; did you mean {base!r}?"
    else:
        near = difflib.get_close_matches(command, names, 1, 0.6)
        hint = f"; did you mean {near[0]!r}?" if near else ""
    try:
        check_name(command)
    except ValueError as error:
        return Refusal(
            f"the command is not the name of a file of the bundle: {error}{hint} ({_listing(names)})"
        )
    return Refusal(f"{command!r} is not in the bundle{hint} ({_listing(names)})")


def _listing(names: list[str]) -> str:
    if not names:
        return "the bundle is empty"
    shown = ", ".join(names[:_NAMES_SHOWN])
    rest = len(names) - _NAMES_SHOWN
    return f"it holds {shown}" + (f" and {rest} more" if rest > 0 else "")
