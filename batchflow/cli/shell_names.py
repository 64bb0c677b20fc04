"""The names of pools and jobs for completion in a shell, as the configuration and the services have them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from batchflow.cli.command import Invocation
from batchflow.cli.connecting import find_pool
from batchflow.cli.exits import CommandError
from batchflow.errors import BatchflowError

if TYPE_CHECKING:
    import click

_PATIENCE: Final = 5.0
"""Seconds that services have to answer: a shell stands still meanwhile."""
_Names = set[str]


def pool_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a pool."""
    return _completed(context, incomplete, _pools)


def job_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a job, of the pool that the command line names or the only one."""

    def jobs(invocation: Invocation, found: _Names) -> Coroutine[Any, Any, None]:
        return _jobs(invocation, found, context.params.get("pool"))

    return _completed(context, incomplete, jobs)


def _completed(
    context: click.Context,
    incomplete: str,
    find: Callable[[Invocation, _Names], Coroutine[Any, Any, None]],
) -> list[str]:
    """Return the names that are found in time; what is wrong is for the command itself to say."""
    import asyncio

    found: _Names = set()
    with contextlib.suppress(BatchflowError, CommandError, TimeoutError):
        asyncio.run(asyncio.wait_for(find(context.ensure_object(Invocation), found), _PATIENCE))
    return sorted(name for name in found if name.startswith(incomplete))


async def _pools(invocation: Invocation, found: _Names) -> None:
    configuration = invocation.configuration()
    found.update(configuration.pools)
    async with invocation.client(configuration) as client:
        async for pool in client.pools():
            found.add(pool.id)


async def _jobs(invocation: Invocation, found: _Names, pool: str | None) -> None:
    configuration = invocation.configuration()
    found.update(configuration.jobs)
    async with invocation.client(configuration) as client:
        async for job in (await find_pool(client, pool, configuration)).jobs():
            found.add(job.name)
