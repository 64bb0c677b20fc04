"""What every command has: its common options, its configuration, its client, its event loop."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from batchflow.cli import terminal
from batchflow.cli.exits import Exit, Interrupted

if TYPE_CHECKING:
    from batchflow.cli.interrupts import Interrupts
    from batchflow.client import Client
    from batchflow.config.project_file import Configuration


_SENTENCE = 200
"""Characters of a command's first sentence in a list, at most."""


@dataclass
class Invocation:
    """One call of the program: what its common options say."""

    config: str | None = None
    profile: str | None = None
    as_json: bool = False
    debug: bool = False
    running: Interrupts | None = None
    """The signals of the command that runs."""

    @property
    def interrupts(self) -> Interrupts:
        assert self.running is not None, "a coroutine runs"
        return self.running

    @property
    def exit_code(self) -> int:
        """The exit code of a command that was interrupted."""
        return Exit.INTERRUPTED if self.running is None else self.running.exit_code

    def report(self, text: str, **document: Any) -> None:
        """Report what was done: in words on stderr, and as an object on stdout where JSON is asked for."""
        terminal.note(text)
        if self.as_json:
            terminal.write_json(document)

    def configuration(self) -> Configuration:
        """Read the configuration of this command. Raises `ConfigurationError`."""
        from batchflow.config.project_file import load_configuration

        return load_configuration(self.config, profile=self.profile, environment=os.environ)

    @asynccontextmanager
    async def client(self, configuration: Configuration | None = None) -> AsyncIterator[Client]:
        """Open a client by the configuration, or on the local cloud that is up where there is none."""
        from batchflow.cli.connecting import settings_of
        from batchflow.client import Client

        async with Client(settings_of(configuration or self.configuration())) as client:
            yield client


def _store(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value not in (None, False) and parameter.name is not None:
        setattr(context.ensure_object(Invocation), parameter.name, value)


def _debug(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Invocation).debug = True
        logging.getLogger().setLevel(logging.WARNING)
        logging.getLogger("batchflow").setLevel(logging.DEBUG)


def common_options() -> list[click.Parameter]:
    """Add the options that are taken before and after a command's name."""
    return [
        click.Option(
            ["--config"],
            metavar="FILE",
            expose_value=False,
            callback=_store,
            type=click.Path(),
            help="The configuration file. [default: $BATCHFLOW_CONFIG, ./batchflow.toml, ./credentials.json]",
        ),
        click.Option(
            ["--profile"],
            metavar="NAME",
            expose_value=False,
            callback=_store,
            help="A profile of the file; `local` is the local cloud that is up.",
        ),
        click.Option(
            ["--json", "as_json"],
            is_flag=True,
            expose_value=False,
            callback=_store,
            help="JSON on stdout, for programs.",
        ),
        click.Option(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            callback=_debug,
            help="Tracebacks, and the log, on stderr.",
        ),
    ]


class Command(click.Command):
    """A command with the common options."""

    def __init__(self, name: str | None, **options: Any) -> None:
        super().__init__(name, **{**options, "params": [*(options.get("params") or []), *common_options()]})


class Group(click.Group):
    """A group of such commands."""

    command_class = Command

    def __init__(self, name: str | None, **options: Any) -> None:
        super().__init__(name, **{**options, "params": [*(options.get("params") or []), *common_options()]})

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; name the nearest one when there is none of that name."""
        try:
            return super().resolve_command(context, arguments)
        except click.UsageError as error:
            from batchflow.config.loader import nearest

            raise click.UsageError(
                f"there is no command {arguments[0]!r}{nearest(arguments[0], self.list_commands(context))}",
                context,
            ) from error

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List each command with its whole first sentence."""
        commands = {name: self.get_command(context, name) for name in self.list_commands(context)}
        rows = [(name, each.get_short_help_str(_SENTENCE)) for name, each in commands.items() if each]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def asynchronous(work: Callable[..., Coroutine[Any, Any, int]]) -> Callable[..., int]:
    """Make a command of a coroutine, which gets the invocation and returns the exit code."""

    @functools.wraps(work)
    def run(*args: Any, **options: Any) -> int:
        import asyncio

        from batchflow.cli.interrupts import Interrupts

        invocation = click.get_current_context().ensure_object(Invocation)
        invocation.running = interrupts = Interrupts()

        async def interruptible() -> int:
            interrupts.install()
            try:
                return await work(invocation, *args, **options)
            except asyncio.CancelledError:
                if interrupts.signal is None:
                    raise
                raise Interrupted from None

        return asyncio.run(interruptible())

    return run
