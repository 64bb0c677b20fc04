"""How a command ends: its exit codes, and which error leads to which."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from batchflow import errors


class Exit(IntEnum):
    """The exit codes of every command."""

    OK = 0
    """It did what was asked for."""
    FAILED = 1
    """It ran, and something in it failed: a task, a check."""
    USAGE = 2
    """The command line, the configuration or an input is wrong; nothing was done."""
    NOT_FOUND = 3
    """There is no such pool, job, node, task or run."""
    SERVICE = 4
    """A service could not be reached, or refused."""
    CONFLICT = 5
    """It exists already, is closed, or is in use by another process."""
    NO_NODES = 6
    """No node can run the tasks: no nodes, no agents, or a start task that fails."""
    INTERNAL = 70
    """An error in batchflow itself; `--debug` shows where."""
    OUTPUT = 74
    """The results, or another file, cannot be written."""
    HUNG_UP = 129
    """The terminal was closed (128 + SIGHUP), which is otherwise like Ctrl-C."""
    INTERRUPTED = 130
    """Ctrl-C (128 + SIGINT); stderr names what was not finished."""
    STDOUT_CLOSED = 141
    """The reader of stdout has closed it (128 + SIGPIPE)."""
    TERMINATED = 143
    """128 + SIGTERM, which is otherwise like Ctrl-C."""


class CommandError(Exception):
    """A command cannot go on: one message for stderr, and the exit code."""

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message)
        self.code = code


class Interrupted(Exception):
    """A signal ended the command. Not a KeyboardInterrupt, of which click would make something else."""


class StdoutClosed(Exception):
    """The reader of stdout has closed it."""


_CODES: Final[tuple[tuple[type[errors.BatchflowError], Exit], ...]] = (
    (errors.ConfigurationError, Exit.USAGE),
    (errors.PoolNotFound, Exit.NOT_FOUND),
    (errors.JobNotFound, Exit.NOT_FOUND),
    (errors.PoolExists, Exit.CONFLICT),
    (errors.JobExists, Exit.CONFLICT),
    (errors.JobClosed, Exit.CONFLICT),
    (errors.MailboxInUse, Exit.CONFLICT),
    (errors.NoAgents, Exit.NO_NODES),
    (errors.QuotaExceeded, Exit.NO_NODES),
    (errors.AllocationFailed, Exit.NO_NODES),
    (errors.StartTaskFailed, Exit.NO_NODES),
    (errors.NodeUnusable, Exit.NO_NODES),
    (errors.TaskError, Exit.FAILED),
    (errors.BatchflowError, Exit.SERVICE),
)
"""The first that fits."""


def code_of(error: errors.BatchflowError) -> Exit:
    return next(code for kind, code in _CODES if isinstance(error, kind))
