"""`batchflow init`: a configuration to begin with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchflow.cli import terminal
from batchflow.cli.command import Command, Invocation, asynchronous
from batchflow.cli.exits import CommandError, Exit

if TYPE_CHECKING:
    from batchflow.cli.probes import Check

_PATH = click.Path(path_type=Path)


@click.command(cls=Command)
@click.argument("path", type=_PATH, default=Path("batchflow.toml"))
@click.option(
    "--from",
    "sources",
    type=_PATH,
    multiple=True,
    metavar="PATH",
    help="A credentials.json or batch.json of azure_realtime_batch, or their folder; repeat.",
)
@click.option("--force", is_flag=True, help="Write over the file that is there.")
@click.option("--no-try", "offline", is_flag=True, help="Do not ask the accounts.")
@asynchronous
async def init(
    invocation: Invocation, path: Path, sources: tuple[Path, ...], force: bool, offline: bool
) -> int:
    """Write a commented configuration, try the three accounts, and say what is missing and how to get it.

    Exit code 0 when the file is written, whatever the accounts say; `batchflow doctor` judges.
    """
    from batchflow.config.legacy_credentials import convert
    from batchflow.config.loader import load_settings
    from batchflow.config.reference import template

    converted = convert(sources)
    _write(path, template({"target": "azure", **converted.values}), force)
    terminal.note(f"{path} is written, for your eyes alone")
    for note in converted.notes:
        terminal.note(note)
    checks: list[Check] = []
    if not offline:
        from batchflow.cli.probes import try_accounts

        checks = await try_accounts(load_settings(path))
    if invocation.as_json:
        terminal.write_json([check.document() for check in checks])
    else:
        for check in checks:
            check.show()
    return Exit.OK


def _write(path: Path, text: str, force: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL)
    try:
        descriptor = os.open(path, flags, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o600)
            file.write(text)
    except FileExistsError:
        message = f"{path} is there already; --force writes over it, or name another file"
        raise CommandError(message, Exit.CONFLICT) from None
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}", Exit.OUTPUT) from error
