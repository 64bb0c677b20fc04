"""Asks before much is lost."""

from __future__ import annotations

import sys

import click

from batchflow.cli.exits import CommandError, Exit


def confirm(what: str) -> None:
    """Raises `CommandError` when the answer is no, or when nobody is there to ask."""
    if not sys.stdin.isatty():
        raise CommandError(f"this deletes {what}; say --yes to mean it", Exit.USAGE)
    if not click.confirm(f"Delete {what}?", err=True):
        raise CommandError("nothing was deleted", Exit.FAILED)
