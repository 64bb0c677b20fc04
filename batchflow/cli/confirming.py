"""Confirmation of a command that deletes."""

from __future__ import annotations

import sys

import click

from batchflow.cli.exits import CommandError, Exit
from batchflow.printable import printable


def confirm(what: str) -> None:
    """Ask for confirmation. Raises `CommandError` when the answer is no, or when stdin is no terminal."""
    if not sys.stdin.isatty():
        raise CommandError(f"this deletes {what}; say --yes to mean it", Exit.USAGE)
    if not click.confirm(f"Delete {printable(what)}?", err=True):
        raise CommandError("nothing was deleted", Exit.FAILED)
