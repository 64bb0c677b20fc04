"""`batchflow dashboard`: the live page of pools, until Ctrl-C."""

from __future__ import annotations

import asyncio

import click

from batchflow.cli import terminal
from batchflow.cli.command import Command, Invocation, asynchronous
from batchflow.cli.connecting import find_pool
from batchflow.cli.exits import Exit
from batchflow.cli.shell_names import pool_names


@click.command(cls=Command)
@click.option("--pool", metavar="NAME", shell_complete=pool_names, help="Only this one. [default: all]")
@click.option("--port", type=click.IntRange(0, 65535), metavar="PORT", default=0, help="[default: any]")
@click.option(
    "--listen", metavar="HOST[:PORT]", help="An address that other machines reach, such as 0.0.0.0:8787."
)
@click.option("--control", is_flag=True, help="Let the page cancel, retry, resize and drain.")
@asynchronous
async def dashboard(
    invocation: Invocation, pool: str | None, port: int, listen: str | None, control: bool
) -> int:
    """Show pools live in a browser: what runs where, what waits and why, what failed.

    The address holds a token: whoever has it may look, and act with --control. Only programs of this machine
    reach it, unless --listen says otherwise. The token is $BATCHFLOW_DASHBOARD_TOKEN, or a new one.
    """
    from batchflow.dashboard.server import LOOPBACK, is_loopback, parse_listen

    host, listen_port = (LOOPBACK, port) if listen is None else parse_listen(listen)
    configuration = invocation.configuration()
    stop = asyncio.Event()
    async with invocation.client(configuration) as client:
        only = None if pool is None else (await find_pool(client, pool, configuration)).id
        address = await client.dashboard(pool=only, host=host, port=listen_port or port, control=control)
        if not is_loopback(host):
            may = "see and change your pools" if control else "see your pools"
            terminal.note(
                f"anyone who reaches {host} and has this address can {may}; it is not encrypted: put a proxy "
                "with TLS before it"
            )
        if invocation.as_json:
            terminal.write_json({"url": str(address)})
        else:
            terminal.write(str(address))
        terminal.note("Ctrl-C ends it")
        with invocation.interrupts.answered_by(stop.set):
            await stop.wait()
    return Exit.OK
