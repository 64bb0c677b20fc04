"""Which services a command speaks to, and which pool it means."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from batchflow.cli import terminal
from batchflow.cli.exits import CommandError, Exit
from batchflow.config.loader import is_local_cloud_up, nearest, over_local_cloud
from batchflow.errors import ConfigurationError, PoolNotFound
from batchflow.settings import BatchSettings, Settings

if TYPE_CHECKING:
    from batchflow.client import Client
    from batchflow.config.project_file import Configuration
    from batchflow.pool import Pool


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
