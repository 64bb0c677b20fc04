"""`batchflow cost`: what a pool has cost so far."""

from __future__ import annotations

import click

from batchflow.cli import terminal
from batchflow.cli.command import Command, Invocation, asynchronous
from batchflow.cli.connecting import find_pool
from batchflow.cli.exits import Exit
from batchflow.cli.shell_names import pool_names


@click.command(cls=Command)
@click.argument("pool", required=False, shell_complete=pool_names)
@asynchronous
async def cost(invocation: Invocation, pool: str | None) -> int:
    """Show what a POOL has cost: node-hours, and money where `batchflow prices` has written the prices.

    Exit code 1 when the pool's budget is spent.
    """
    from batchflow.cli.snapshot import cost_document

    configuration = invocation.configuration()
    async with invocation.client(configuration) as client:
        found = await find_pool(client, pool, configuration)
        spent = await found.cost()
    if invocation.as_json:
        terminal.write_json({"pool": found.id, **cost_document(spent)})
    else:
        terminal.write(f"pool {found.id}")
        for name, value in spent.rows():
            terminal.write(f"{name + ':':<11}{value}")
    return Exit.FAILED if spent.is_spent else Exit.OK
