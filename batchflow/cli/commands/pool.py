"""`batchflow pool`: machines, their agents, and the files that tasks run with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from batchflow.cli import terminal
from batchflow.cli.command import Group, Invocation, asynchronous
from batchflow.cli.confirming import confirm
from batchflow.cli.connecting import find_pool
from batchflow.cli.exits import CommandError, Exit
from batchflow.cli.shell_names import pool_names
from batchflow.environments.requirements import named_requirements
from batchflow.errors import ConfigurationError, PoolExists
from batchflow.model import Budget
from batchflow.support.progress_report import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchflow.config.project_file import Configuration
    from batchflow.model import PoolSpec
    from batchflow.pool import Pool


@click.group(cls=Group)
def pool() -> None:
    """Make, show, change and remove pools."""


_name = click.argument("name", shell_complete=pool_names)
_files = click.option(
    "--file", "files", multiple=True, metavar="PATH", help="A file or directory that tasks run with; repeat."
)
_wait = click.option("--wait", is_flag=True, help="Return when every node has a living agent.")
_timeout = click.option(
    "--wait-timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Seconds for --wait.",
)


class Spot(click.ParamType[Any]):
    """A number of spot nodes, or two of them with a colon between."""

    name = "spot"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        parts = value.split(":")
        if len(parts) > 2 or not all(part.isdecimal() for part in parts):
            self.fail(f"{value!r} is neither a number, such as 4, nor two, such as 0:4", param, ctx)
        counts = tuple(map(int, parts))
        return counts if len(counts) == 2 else counts[0]


_elastic_options = [
    click.option("--min-nodes", type=click.IntRange(min=0), metavar="N", help="Of an elastic pool."),
    click.option(
        "--max-nodes",
        type=click.IntRange(min=0),
        metavar="N",
        help="The pool is elastic: it grows up to N nodes with its work.",
    ),
]


def _spec_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a new pool."""
    count = click.IntRange(min=0)
    options = [
        click.option("--nodes", type=count, metavar="N", help="Dedicated nodes, of a fixed number."),
        *_elastic_options,
        click.option("--spot", type=Spot(), metavar="N", help="Spot nodes; MIN:MAX of an elastic pool."),
        click.option(
            "--slots", type=count, metavar="N", help="Tasks at once on a node; 0: as many as it has cores."
        ),
        click.option("--vm-size", metavar="SIZE", help="As Azure names it, such as standard_d2s_v3."),
        click.option("--image", metavar="PUBLISHER:OFFER:SKU", help="One that Batch supports."),
        click.option("--apt", multiple=True, metavar="PACKAGE", help="Debian package; repeat."),
        click.option(
            "--requirements",
            multiple=True,
            metavar="REQUIREMENT",
            help='Python package of its tasks, repeat; or a file of them; or "current".',
        ),
        click.option(
            "--pip",
            multiple=True,
            metavar="REQUIREMENT",
            help="Another name of --requirements, for packages.",
        ),
        click.option("--java", metavar="VERSION", help='A Java runtime: a version, or "default".'),
        click.option(
            "--budget", metavar="BUDGET", help='Over its life: node-hours (12) or money ("20 EUR").'
        ),
        click.option(
            "--sharing",
            type=click.Choice(["fifo", "fair"]),
            help="How sessions share the slots: first come, first served, or each its share.",
        ),
        click.option("--start-command", metavar="LINE", help="Run on each node before it takes work."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _spec(configuration: Configuration, name: str, given: dict[str, Any]) -> PoolSpec:
    """Read the file's description, and over it what the command line says."""
    changes = {key: value for key, value in given.items() if value not in (None, ())}
    java = changes.get("java")
    if java is not None and java != "default" and not java.isdigit():
        raise ConfigurationError(f'--java: {java!r} is not a version, such as 17, nor "default"')
    if "requirements" in changes:
        changes["requirements"] = named_requirements(changes["requirements"])
    if java is not None:
        changes["java"] = True if java == "default" else int(java)
    if (budget := changes.get("budget")) is not None:
        changes["budget"] = Budget.parse(budget)
    described = configuration.pool(name)
    if "max_nodes" in changes and "nodes" not in changes:
        described = replace(described, nodes=None)
    elif "nodes" in changes and not changes.keys() & {"min_nodes", "max_nodes"}:
        described = replace(described, min_nodes=None, max_nodes=None)
    return replace(described, **changes)


@pool.command()
@_name
@_files
@_spec_options
@_wait
@_timeout
@asynchronous
async def create(
    invocation: Invocation,
    name: str,
    files: tuple[str, ...],
    wait: bool,
    wait_timeout: float | None,
    **given: Any,
) -> int:
    """Make the pool NAME, as the configuration file describes it and the options say."""
    configuration = invocation.configuration()
    spec = _spec(configuration, name, {"files": files, **given})
    async with invocation.client(configuration) as client:
        try:
            made = await client.create_pool(spec)
        except PoolExists as error:
            hint = f"to bring it up to its description: batchflow pool ensure {name}"
            raise CommandError(f"there is a pool {name!r} already; {hint}", Exit.CONFLICT) from error
        return await _made(invocation, made, wait, wait_timeout)


@pool.command()
@click.argument("name", required=False, shell_complete=pool_names)
@_files
@_spec_options
@_wait
@_timeout
@asynchronous
async def ensure(
    invocation: Invocation,
    name: str | None,
    files: tuple[str, ...],
    wait: bool,
    wait_timeout: float | None,
    **given: Any,
) -> int:
    """Make the pool NAME, or bring the one that is there up to its description.

    Without NAME: every pool that the configuration file describes.
    """
    configuration = invocation.configuration()
    names = list(configuration.pools) if name is None else [name]
    if not names:
        raise ConfigurationError("the configuration describes no pools ([pools.NAME]), and no NAME is given")
    async with invocation.client(configuration) as client:
        for each in names:
            spec = _spec(configuration, each, {"files": files, **given})
            found = await client.ensure_pool(each, nodes=spec.nodes, spec=spec, progress=terminal.note)
            await _made(invocation, found, wait, wait_timeout)
    return Exit.OK


async def _made(invocation: Invocation, made: Pool, wait: bool, timeout: float | None) -> int:
    terminal.note(f"pool {made.id!r} {made.origin}")
    if wait:
        await _wait_ready(made, timeout)
    if invocation.as_json:
        document = {"pool": made.id, "choice": made.origin.choice, "why": made.origin.why}
        terminal.write_json(document)
    return Exit.OK


async def _wait_ready(pool: Pool, timeout: float | None) -> None:
    try:
        await pool.wait_ready(timeout=timeout, progress=terminal.note)
    except TimeoutError as error:
        raise CommandError(str(error), Exit.NO_NODES) from error


@pool.command(name="list")
@asynchronous
async def list_(invocation: Invocation) -> int:
    """List the pools that batchflow knows in this account."""
    from batchflow.cli.snapshot import look

    async with invocation.client() as client:
        rows = [await look(each) async for each in client.pools()]
    if invocation.as_json:
        terminal.write_json([row.document() for row in rows])
    elif rows:
        heads = ("POOL", "NODES", "AGENTS", "BUSY", "QUEUED", "COST")
        cells = [
            (
                each.pool,
                len(each.nodes),
                len(each.beats),
                f"{each.running}/{each.slots}",
                each.queued,
                each.cost.short,
            )
            for each in rows
        ]
        terminal.write_table(heads, cells)
    else:
        terminal.note("there are no pools; make one: batchflow pool create NAME")
    return Exit.OK


@pool.command()
@_name
@asynchronous
async def show(invocation: Invocation, name: str) -> int:
    """Show the nodes of the pool NAME, and what is on them."""
    from batchflow.cli.snapshot import look

    configuration = invocation.configuration()
    async with invocation.client(configuration) as client:
        found = await find_pool(client, name, configuration)
        seen = await look(found)
        info = await client.connections.compute.pool(found.id)
    if invocation.as_json:
        terminal.write_json({**seen.document(), "vm_size": info.vm_size, "state": info.state})
        return Exit.OK
    wanted = info.target
    terminal.write(f"pool {seen.pool}: {len(seen.nodes)} of {wanted} nodes {info.vm_size}, {info.allocation}")
    terminal.write(
        f"{seen.running} of {seen.slots} slots busy, {seen.queued} messages queued, {seen.dead} dead"
    )
    for problem in seen.problems:
        terminal.write(f"! {problem}")
    if seen.nodes:
        cells = [
            (node.host or "-", node.state, node.agent or "-", f"{node.running}/{node.slots}", node.id)
            for node in seen.nodes
        ]
        terminal.write_table(("HOST", "STATE", "AGENT", "BUSY", "NODE"), cells)
    return Exit.OK


@pool.command()
@_name
@click.argument("nodes", type=click.IntRange(min=0), required=False)
@_elastic_options[0]
@_elastic_options[1]
@click.option(
    "--spot", type=Spot(), metavar="N", default=0, show_default=True, help="Spot nodes; MIN:MAX if elastic."
)
@_wait
@_timeout
@asynchronous
async def resize(
    invocation: Invocation,
    name: str,
    nodes: int | None,
    min_nodes: int | None,
    max_nodes: int | None,
    spot: int | tuple[int, int],
    wait: bool,
    wait_timeout: float | None,
) -> int:
    """Ask for so many NODES, or let the pool grow and shrink with its work: --max-nodes.

    A pool that shrinks loses its idlest nodes.
    """
    if nodes is None and max_nodes is None:
        raise click.UsageError("say how many NODES, or --max-nodes for an elastic pool")
    configuration = invocation.configuration()
    async with invocation.client(configuration) as client:
        found = await find_pool(client, name, configuration)
        await found.resize(nodes, min_nodes=min_nodes, max_nodes=max_nodes, spot=spot, progress=terminal.note)
        bounds = found.runtime.manifest.elastic
        if bounds is None and isinstance(spot, int):
            told = f"{counted(nodes or 0, 'node')} and {counted(spot, 'spot node')} are asked for"
        else:
            told = f"it grows and shrinks with its work: {bounds}"
        size = {"nodes": nodes, "min_nodes": min_nodes, "max_nodes": max_nodes, "spot": spot}
        invocation.report(f"pool {name!r}: {told}", pool=name, **size)
        if wait:
            await _wait_ready(found, wait_timeout)
    return Exit.OK


@pool.command()
@_name
@_files
@click.option("--reset", is_flag=True, help="Boot every node anew, with the start task of the description.")
@asynchronous
async def repurpose(invocation: Invocation, name: str, files: tuple[str, ...], reset: bool) -> int:
    """Give the pool NAME other files: those of sessions opened from now on."""
    configuration = invocation.configuration()
    spec = configuration.pool(name)
    paths = files or spec.files
    if not paths:
        raise ConfigurationError("repurpose: no files: say --file PATH, or describe the pool's files")
    async with invocation.client(configuration) as client:
        found = await find_pool(client, name, configuration)
        await found.repurpose(
            list(paths),
            reset=reset,
            spec=spec if reset and name in configuration.pools else None,
            progress=terminal.note,
        )
    text = f"pool {name!r}: sessions opened from now on run with {', '.join(map(str, paths))}"
    invocation.report(text, pool=name, files=list(map(str, paths)), reset=reset)
    return Exit.OK


@pool.command()
@_name
@_wait
@_timeout
@asynchronous
async def start(invocation: Invocation, name: str, wait: bool, wait_timeout: float | None) -> int:
    """Start the agents that do not live; a run does it by itself."""
    configuration = invocation.configuration()
    async with invocation.client(configuration) as client:
        found = await find_pool(client, name, configuration)
        await found.start(progress=terminal.note)
        invocation.report(f"pool {name!r}: its agents are started", pool=name, agents="started")
        if wait:
            await _wait_ready(found, wait_timeout)
    return Exit.OK


@pool.command()
@_name
@click.option("--now", is_flag=True, help="Kill what runs; it runs again when agents are started.")
@asynchronous
async def stop(invocation: Invocation, name: str, now: bool) -> int:
    """End the agents, after their tasks. The machines, and what is queued, stay."""
    configuration = invocation.configuration()
    async with invocation.client(configuration) as client:
        found = await find_pool(client, name, configuration)
        await found.stop(drain=not now, progress=terminal.note)
    text = f"pool {name!r}: its agents have ended; its machines are there, and cost money"
    invocation.report(text, pool=name, agents="stopped")
    return Exit.OK


@pool.command()
@click.argument("names", nargs=-1, shell_complete=pool_names)
@click.option("--all", "everything", is_flag=True, help="Every pool that batchflow made.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--wait", is_flag=True, help="Return when the machines are gone.")
@asynchronous
async def delete(
    invocation: Invocation, names: tuple[str, ...], everything: bool, yes: bool, wait: bool
) -> int:
    """Remove pools: machines, queues, documents, files, and what is queued or unread."""
    if everything == bool(names):
        raise click.UsageError("name the pools, or say --all")
    configuration = invocation.configuration()
    async with invocation.client(configuration) as client:
        if everything:
            found = [each async for each in client.pools()]
        else:
            found = [await find_pool(client, name, configuration) for name in names]
        if everything and found and not yes:
            confirm(", ".join(each.id for each in found))
        for each in found:
            await each.delete(wait=wait, progress=terminal.note)
            invocation.report(f"pool {each.id!r} is deleted", pool=each.id, state="deleted")
    return Exit.OK
