"""`batchflow explain`: why nothing happens, if nothing does."""

from __future__ import annotations

from dataclasses import asdict

import click

from batchflow.cli import terminal
from batchflow.cli.command import Command, Invocation, asynchronous
from batchflow.cli.connecting import find_pool
from batchflow.cli.exits import Exit
from batchflow.cli.remedies import as_commands
from batchflow.cli.shell_names import pool_names


@click.command(cls=Command)
@click.argument("pool", required=False, shell_complete=pool_names)
@asynchronous
async def explain(invocation: Invocation, pool: str | None) -> int:
    """Explain what keeps a POOL from working, and what to do about it."""
    configuration = invocation.configuration()
    async with invocation.client(configuration) as client:
        found = await find_pool(client, pool, configuration)
        explanation = await found.explain()
    if invocation.as_json:
        causes = [asdict(cause) for cause in explanation.causes]
        terminal.write_json(
            {"summary": explanation.summary, "causes": causes, "facts": {**explanation.facts}}
        )
    else:
        terminal.write(as_commands(str(explanation), found.id))
    return Exit.OK
