"""The program `batchflow`: finds the command, loads it, turns what went wrong into a message and a code."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import click

from batchflow.cli import terminal
from batchflow.cli.command import Group, Invocation
from batchflow.cli.exits import CommandError, Exit, Interrupted, StdoutClosed, code_of
from batchflow.cli.remedies import as_commands
from batchflow.errors import BatchflowError
from batchflow.support import linux

_COMMANDS: Final = {
    "init": "init",
    "doctor": "doctor",
    "up": "up",
    "pool": "pool",
    "job": "job",
    "run": "run",
    "submit": "run",
    "results": "run",
    "runs": "runs",
    "cancel": "run",
    "logs": "logs",
    "replay": "replay",
    "top": "top",
    "dashboard": "dashboard",
    "cost": "cost",
    "prices": "prices",
    "monitor": "monitor",
    "explain": "explain",
    "completion": "completion",
}
"""Each command and the module that has it, in the order of the help."""


class Commands(Group):
    """Each is loaded when it is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"batchflow.cli.commands.{_COMMANDS[name]}"), name)
        return command


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="batchflow-azure", message="batchflow %(version)s")
def batchflow() -> None:
    """Run tasks interactively on Azure Batch, and on a local cloud.

    Results go to stdout, everything else to stderr.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    terminal.fill_standard_streams()
    linux.heed_children()
    invocation = Invocation()
    try:
        return _run(invocation, arguments)
    except Exception as error:
        if invocation.debug:
            logging.getLogger(__name__).exception("command_failed")
        return _report(error, invocation)


def _run(invocation: Invocation, arguments: Sequence[str] | None) -> int:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=logging.CRITICAL)
    code = batchflow.main(arguments, prog_name="batchflow", standalone_mode=False, obj=invocation)
    return code if isinstance(code, int) else Exit.OK


def _report(error: Exception, invocation: Invocation) -> int:
    """Say in one message what went wrong; the exit code that goes with it."""
    match error:
        case click.exceptions.NoArgsIsHelpError():
            terminal.note(error.format_message())
            return Exit.USAGE
        case click.UsageError():
            where = error.ctx.command_path if error.ctx else "batchflow"
            terminal.note(f"{where}: {error.format_message()}\nTry '{where} --help'.")
            return Exit.USAGE
        case click.ClickException():
            terminal.note(f"batchflow: {error.format_message()}")
            return Exit.USAGE
        case Interrupted() | click.Abort():
            terminal.note("batchflow: interrupted")
            return invocation.exit_code
        case StdoutClosed():
            terminal.note("batchflow: stdout was closed")
            return Exit.STDOUT_CLOSED
        case CommandError():
            terminal.note(f"batchflow: {error}")
            return error.code
        case BatchflowError():
            terminal.note(f"batchflow: {as_commands(str(error))}")
            return code_of(error)
        case _:
            what = f"{type(error).__name__}: {error}"
            terminal.note(f"batchflow: {what} (an error in batchflow itself; --debug tells more)")
            return Exit.INTERNAL


if __name__ == "__main__":
    sys.exit(main())
