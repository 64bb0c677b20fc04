"""Runs a program to its end and returns what it printed: an installer, a compiler."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from batchflow.errors import ConfigurationError
from batchflow.support import linux

_LONGEST_SAID: Final = 4000
"""Characters of the end of what a program said that an error repeats."""
_PIECE: Final = 1 << 16


class CommandFailed(Exception):
    """A program that ended with another exit code than 0; the text is the end of its stderr."""


async def run_command(
    command: Sequence[str],
    heard: Callable[[str], object] | None = None,
    *,
    variables: Mapping[str, str] | None = None,
) -> str:
    """Run a program without input and return its stdout.

    `heard` gets each line that the program writes to stderr, when it does. `variables`: of its environment,
    beside ours. Raises `CommandFailed`, and
    `ConfigurationError` in a program that ignores SIGCHLD, where no exit code can be had. Safe to cancel: the
    program is killed.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(variables or {})},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        printed, said = await asyncio.gather(process.stdout.read(), _listen(process.stderr, heard))
        await process.wait()
    except BaseException:
        with suppress(ProcessLookupError):  # it may have ended by itself just now
            process.kill()
        await process.wait()
        raise
    if linux.children_are_ignored():
        raise ConfigurationError(
            f"this program ignores SIGCHLD, so whether {command[0]} succeeded is not known; at the program's "
            f"start: signal.signal(signal.SIGCHLD, signal.SIG_DFL)"
        )
    if process.returncode != 0:
        raise CommandFailed(said.strip()[-_LONGEST_SAID:])
    return printed.decode(errors="replace")


async def _listen(stream: asyncio.StreamReader, heard: Callable[[str], object] | None) -> str:
    said = rest = ""
    while piece := (await stream.read(_PIECE)).decode(errors="replace"):
        said = (said + piece)[-2 * _LONGEST_SAID :]
        *lines, rest = (rest + piece).split("\n")
        if heard is not None:
            for line in lines:
                heard(line)
    return said
