"""`batchflow up`: keeps a local cloud, and publishes how to reach it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchflow.cli import terminal
from batchflow.cli.command import Command, Invocation, asynchronous
from batchflow.cli.exits import CommandError, Exit
from batchflow.config.loader import local_cloud_file
from batchflow.settings import PREFIX, Settings
from batchflow.support.progress_report import counted
from batchflow.support.threads import in_thread

if TYPE_CHECKING:
    from batchflow.local.server import LocalCloud

_PORT = click.IntRange(0, 65535)
_HEARTBEAT_INTERVAL = 1.0
"""Seconds; heartbeats cost nothing here, and `batchflow top` stays up to date."""
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(cls=Command)
@click.option(
    "--nodes", type=click.IntRange(min=0), metavar="N", default=2, show_default=True, help="Of a new pool."
)
@click.option(
    "--slots",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Tasks at once on a node.",
)
@click.option(
    "--latency",
    type=click.FloatRange(0, 3600),
    metavar="SECONDS",
    default=0.0,
    help="Seconds of delay of each answer.",
)
@click.option(
    "--boot-time",
    type=click.FloatRange(0, 3600),
    metavar="SECONDS",
    default=0.0,
    help="Seconds that a node takes to boot.",
)
@click.option(
    "--autoscale-interval",
    type=click.FloatRange(1, 604_800),
    metavar="SECONDS",
    default=300.0,
    show_default=True,
    help="Seconds between two evaluations of the formula of an elastic pool.",
)
@click.option("--servicebus-port", type=_PORT, metavar="PORT", default=0, help="[default: any that is free]")
@click.option("--batch-port", type=_PORT, metavar="PORT", default=0, help="[default: any that is free]")
@click.option("--blob-port", type=_PORT, metavar="PORT", default=0, help="[default: any that is free]")
@click.option("--node-user", metavar="NAME", help="Whom the nodes run as, if root starts the cloud.")
@click.option("--write-config", type=_FILE, help="A configuration file to write as well.")
@click.option("--write-env", type=_FILE, help="A file of variables to write as well.")
@click.option("--show-keys", is_flag=True, help="Print the settings with their keys on a terminal as well.")
@asynchronous
async def up(
    invocation: Invocation,
    nodes: int,
    slots: int,
    latency: float,
    boot_time: float,
    autoscale_interval: float,
    servicebus_port: int,
    batch_port: int,
    blob_port: int,
    node_user: str | None,
    write_config: Path | None,
    write_env: Path | None,
    show_keys: bool,
) -> int:
    """Keep a local cloud up until Ctrl-C.

    Other commands find it by themselves where no configuration names Azure, or by --profile local. On a
    terminal its addresses are printed. For other programs its settings are printed into a pipe, as variables
    or with --json, and they hold its keys; the files that --write-config and
    --write-env name have them too. The files are for their owner alone, and are removed at the end.
    """
    from batchflow.local.server import LocalCloud, Ports

    cloud = LocalCloud(
        nodes=nodes,
        slots=slots,
        latency=latency,
        boot_delay=boot_time,
        autoscale_interval=autoscale_interval,
        ports=Ports(servicebus_port, batch_port, blob_port),
        node_user=node_user,
    )
    size = f"{counted(nodes, 'node')} for a new pool, {counted(slots, 'slot')} each"
    stop = asyncio.Event()
    place = local_cloud_file(os.environ)
    with _the_only_one(place), invocation.interrupts.answered_by(stop.set):
        await _keep(invocation, cloud, size, place, (write_config, write_env), stop, show_keys)
    terminal.note("the local cloud has ended")
    return Exit.OK


async def _keep(
    invocation: Invocation,
    cloud: LocalCloud,
    size: str,
    place: Path,
    copies: tuple[Path | None, Path | None],
    stop: asyncio.Event,
    show_keys: bool,
) -> None:
    from batchflow.cli.cloud_status import show
    from batchflow.cli.late_pools import LatePools
    from batchflow.dashboard.server import serve
    from batchflow.local.directory import remove_abandoned

    settings = await cloud.start()
    settings = replace(settings, agent=replace(settings.agent, heartbeat_interval=_HEARTBEAT_INTERVAL))
    variables = _variables(settings, place)
    config, env = copies
    try:
        async with contextlib.AsyncExitStack() as stack:
            files = stack.enter_context(contextlib.ExitStack())
            files.enter_context(_kept(place, settings.to_toml()))
            if config is not None:
                files.enter_context(_kept(config, settings.to_toml()))
            if env is not None:
                files.enter_context(_kept(env, _lines(variables)))
            _print_addresses(settings, place)
            server, address = await serve(await stack.enter_async_context(LatePools(settings)))
            stack.push_async_callback(server.aclose)
            terminal.note(f"dashboard: {address}")
            if invocation.as_json or show_keys or sys.stdout is None or not sys.stdout.isatty():
                _print(invocation, variables)
            terminal.note(f"ready: {size}; Ctrl-C ends it")
            await in_thread(remove_abandoned)
            await show(settings, stop, cloud.errors)
    finally:
        await cloud.aclose()


@contextlib.contextmanager
def _the_only_one(place: Path) -> Iterator[None]:
    """Hold the lock beside the file: one cloud is found at a time."""
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if place.parent.stat().st_uid != os.getuid():
            raise CommandError(f"{place.parent} belongs to another user", Exit.CONFLICT)
        descriptor = os.open(place.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}", Exit.OUTPUT) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        message = f"a local cloud is up already; its settings are in {place}"
        raise CommandError(message, Exit.CONFLICT) from None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _kept(path: Path, text: str) -> Iterator[None]:
    from batchflow.local.publishing import published

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(published(path, text))
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error.strerror}", Exit.OUTPUT) from error
        yield


def _variables(settings: Settings, place: Path) -> dict[str, str]:
    """Return the environment variables with which another program connects."""
    found = {f"{PREFIX}CONFIG": str(place), f"{PREFIX}TARGET": "local"}
    for group in ("batch", "storage", "servicebus"):
        values = getattr(settings, group)
        for item in fields(values):
            if (value := getattr(values, item.name)) not in (None, False):
                found[f"{PREFIX}{group}_{item.name}".upper()] = str(value)
    return found


def _lines(variables: dict[str, str]) -> str:
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())


def _print_addresses(settings: Settings, place: Path) -> None:
    """Write on stderr where the services are. No key is among it."""
    bus = settings.servicebus.connection_string or ""
    blob = settings.storage.connection_string or ""
    rows = (
        ("Batch", settings.batch.url),
        ("Service Bus", _part(bus, "Endpoint=")),
        ("Blob Storage", settings.storage.account_url or _part(blob, "BlobEndpoint=")),
        ("settings", f"{place} (--show-keys prints them)"),
    )
    for name, value in rows:
        if value:
            terminal.note(f"{name:13} {value}")


def _part(connection_string: str, name: str) -> str | None:
    return next(
        (part.removeprefix(name) for part in connection_string.split(";") if part.startswith(name)), None
    )


def _print(invocation: Invocation, variables: dict[str, str]) -> None:
    if invocation.as_json:
        terminal.write_json(variables)
    else:
        terminal.write(_lines(variables).rstrip("\n"))
