"""Which services a command speaks to, and which pool it means; whether its local cloud is still up."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from batchflow.cli import terminal
from batchflow.cli.exits import CommandError, Exit
from batchflow.config.loader import is_local_cloud_up, nearest, over_local_cloud
from batchflow.errors import BatchflowError, ConfigurationError, PoolNotFound
from batchflow.settings import BatchSettings, Settings

if TYPE_CHECKING:
    from batchflow.cli.record import RunRecord
    from batchflow.client import Client
    from batchflow.config.project_file import Configuration
    from batchflow.pool import Pool
    from batchflow.session import Session


_INTERVAL: Final = 0.5
"""Seconds between two looks."""
_ENDING: Final = 5.0
"""Seconds that the cloud may take to end, once its connections are lost."""
_CLOSING: Final = 1.0
"""Seconds for closing a session whose services are gone."""


def settings_of(configuration: Configuration) -> Settings:
    """Return the settings to connect with: the local cloud that is up, where no service is named.

    Raises `ConfigurationError`, which says what there is to do, when there is none.
    """
    settings = configuration.settings
    if settings.connected:
        return settings
    nothing = configuration.path is None and settings.batch == BatchSettings()
    if settings.target == "local" or nothing:
        if is_local_cloud_up(os.environ):
            return over_local_cloud(settings, os.environ)
        where = "target is local" if settings.target == "local" else "there is no configuration"
        raise ConfigurationError(
            f"{where}, and no local cloud is up. Start one in another terminal: batchflow up; "
            "or write a configuration for Azure: batchflow init"
        )
    try:
        return settings.check()
    except ConfigurationError as error:
        where = str(configuration.path or "the environment")
        raise ConfigurationError(f"{where}: {error}. What to get where: batchflow init") from error


async def find_pool(client: Client, name: str | None, configuration: Configuration) -> Pool:
    """Return the pool that is named, or the only one. Raises `CommandError`, naming those that are there."""
    if name is None and len(configuration.pools) == 1:
        name = next(iter(configuration.pools))
    if name is None:
        return await _only_pool(client)
    try:
        return await client.pool(name, progress=terminal.note)
    except PoolNotFound as error:
        names = [pool.id async for pool in client.pools()]
        hint = nearest(name, names) if names else f"; make one: batchflow pool create {name}"
        raise CommandError(f"there is no pool {name!r}{hint}", Exit.NOT_FOUND) from error


async def _only_pool(client: Client) -> Pool:
    pools = [pool async for pool in client.pools()]
    match pools:
        case [pool]:
            return pool
        case []:
            raise CommandError("there is no pool; make one: batchflow pool create NAME", Exit.NOT_FOUND)
        case _:
            names = ", ".join(sorted(pool.id for pool in pools))
            raise CommandError(f"which pool? There are: {names}. Say --pool NAME", Exit.USAGE)


class CloudWatch:
    """Whether the local cloud that a run works on is still up. A run on Azure, or with --local, has none."""

    def __init__(self, configuration: Configuration, record: RunRecord) -> None:
        self._record = record
        self._address = None if record.plan.local else _address_of(configuration)
        self._ended = False

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Raise one `CommandError` in place of what follows from the end of the cloud."""
        try:
            yield
        except BatchflowError as error:
            if not self._ended:
                raise
            raise self._error() from error

    @asynccontextmanager
    async def watched(self, session: Session) -> AsyncIterator[None]:
        """Cancel the block when the cloud ends, and raise `CommandError`."""
        if self._address is None:
            yield
            return
        import anyio  # takes a tenth of a second, and completion in a shell does without

        with anyio.CancelScope() as scope:
            watching = asyncio.create_task(self._until_ended(), name="watch the local cloud")
            watching.add_done_callback(lambda task: None if task.cancelled() else scope.cancel())
            try:
                yield
            finally:
                watching.cancel()
        if self._ended:
            session.close_timeout = _CLOSING
            raise self._error()

    async def settled(self) -> None:
        """Wait, after a lost connection, until the cloud would have ended if it is ending."""
        if self._address is not None:
            await asyncio.sleep(_ENDING)

    async def _until_ended(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL)
            if _address_of_what_is_up() != self._address:
                self._ended = True
                return

    def _error(self) -> CommandError:
        name, pool = self._record.plan.name, self._record.plan.pool
        return CommandError(
            "the local cloud of `batchflow up` has ended, and its pools and tasks with it; the results that "
            f"came are kept. To run the rest: batchflow up, then batchflow pool create {pool} --file ..., "
            f"then batchflow run --resume {name}",
            Exit.SERVICE,
        )


def _address_of(configuration: Configuration) -> str | None:
    """Return the address of the local cloud that a configuration leads to; None where that is another."""
    try:
        address = settings_of(configuration).batch.url
    except ConfigurationError:
        return None  # which the command says when it connects
    return address if address is not None and address == _address_of_what_is_up() else None


def _address_of_what_is_up() -> str | None:
    if not is_local_cloud_up(os.environ):
        return None
    try:
        return over_local_cloud(Settings(), os.environ).batch.url
    except ConfigurationError:  # it has ended at this moment
        return None
