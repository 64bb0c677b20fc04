"""`batchflow logs`: what a node's agent logs, and what a task printed."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from batchflow.cli import terminal
from batchflow.cli.command import Command, Invocation, asynchronous
from batchflow.cli.connecting import find_pool
from batchflow.cli.exits import CommandError, Exit
from batchflow.cli.record import RunRecord, known_runs, latest
from batchflow.cli.shell_names import pool_names
from batchflow.config.loader import nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchflow.client import Client
    from batchflow.pool import Pool

_POLL: Final = 1.0
"""Seconds between two looks at a node's log, which grows every five seconds."""
_TASK_POLL: Final = 0.2
_TAIL: Final = 64 * 1024
"""Bytes of a start task's output that are shown."""


@click.command(cls=Command)
@click.argument("target")
@click.option(
    "--run",
    "run_name",
    metavar="NAME",
    shell_complete=known_runs,
    help="The task's run. [default: the latest]",
)
@click.option(
    "--pool", metavar="NAME", shell_complete=pool_names, help="The node's pool. [default: the only one]"
)
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(min=0),
    metavar="N",
    default=100,
    show_default=True,
    help="The last ones.",
)
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes.")
@asynchronous
async def logs(
    invocation: Invocation,
    target: str,
    run_name: str | None,
    pool: str | None,
    lines: int,
    follow: bool,
) -> int:
    """Print what TARGET said: a node (its id, its host name, or how one of them begins), or the number of a
    task's input.

    The logs of a pool that was deleted are kept for 30 days: its nodes are found by --pool and their id.

    A task's output comes with its result, to the machine that began its run; with --follow it is waited for.
    """
    if target.isdecimal():
        return await _task_logs(invocation, _run_of(run_name), int(target), follow)
    configuration = invocation.configuration()
    async with invocation.client(configuration) as client:
        on_terminal = sys.stdout is not None and sys.stdout.isatty()
        write = _write_object if invocation.as_json else _write_text if on_terminal else terminal.write
        try:
            await _node_logs(await find_pool(client, pool, configuration), target, lines, follow, write)
        except CommandError as error:
            if error.code != Exit.NOT_FOUND or not await _kept_logs(client, pool, target, lines, write):
                raise
    return Exit.OK


# ---- a task


def _run_of(name: str | None) -> RunRecord:
    try:
        return RunRecord.open(name or latest())
    except CommandError as error:
        where = "what a task printed is where its run was begun; what its node says: batchflow logs NODE"
        raise CommandError(f"{error}; {where}", error.code) from error


async def _task_logs(invocation: Invocation, record: RunRecord, index: int, follow: bool) -> int:
    if index >= record.plan.count:
        message = f"run {record.plan.name!r} has the inputs 0 to {record.plan.count - 1}"
        raise CommandError(message, Exit.NOT_FOUND)
    document = _find(record, index) or await _come(invocation, record, index, follow)
    if invocation.as_json:
        terminal.write_json(document)
        return Exit.OK
    for name in ("stdout", "stderr", "traceback"):
        if text := document.get(name):
            terminal.write(text.rstrip("\n"))
    terminal.note(f"input {index}: {document['status']}; {document.get('error') or 'no error'}")
    return Exit.OK


async def _come(invocation: Invocation, record: RunRecord, index: int, follow: bool) -> dict[str, Any]:
    """Return the result that is in the pool, or, where another process reads it from there, in the record."""
    while True:
        try:
            await _fetch(invocation, record, index, follow)
        except CommandError as error:
            if error.code is not Exit.CONFLICT:
                raise
        if (document := _find(record, index)) is not None:
            return document
        if not follow:
            what = f"input {index} of run {record.plan.name!r} has no result yet"
            raise CommandError(f"{what}; --follow waits for it", Exit.FAILED)
        await asyncio.sleep(_TASK_POLL)


async def _fetch(invocation: Invocation, record: RunRecord, index: int, follow: bool) -> None:
    from batchflow.cli.open_run import read_results

    plan = record.plan
    if plan.local or index >= plan.accepted:
        with record.held():  # no other process sends it
            what = "its local cloud has ended" if plan.local else "it is not known to be sent"
            how = f"batchflow run --resume {plan.name}"
            raise CommandError(f"input {index} of run {plan.name!r}: {what}; {how}", Exit.FAILED)
    await read_results(invocation, record, index, follow)


def _find(record: RunRecord, index: int) -> dict[str, Any] | None:
    return next((document for document in record.results() if document["index"] == index), None)


# ---- a node


def _write_object(line: str) -> None:
    """Write a line as a JSON object. What is not an agent's JSON becomes the field `line`."""
    try:
        terminal.write_json(json.loads(line))
    except ValueError:
        terminal.write_json({"line": line})


def _write_text(line: str) -> None:
    """Write an agent's line of JSON as text: when, how grave, what, and its fields."""
    terminal.write(log_text(line))


def log_text(line: str) -> str:
    """Return an agent's line of JSON as text; any other line as it is."""
    try:
        fields = json.loads(line)
        at, level, event = (str(fields.pop(name)) for name in ("at", "level", "event"))
        when = datetime.fromisoformat(at).astimezone().strftime("%m-%d %H:%M:%S.%f")[:-3]
    except (ValueError, KeyError, TypeError, AttributeError):
        return line
    exception = fields.pop("exception", None)
    told = [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in fields.items()
        if name not in ("logger", "pid")
    ]
    text = "  ".join([when, f"{level:7}", event, *told])
    return text if exception is None else f"{text}\n{exception}"


async def _node_logs(pool: Pool, target: str, lines: int, follow: bool, write: Callable[[str], None]) -> None:
    node, blobs = await _find_node(pool, target)
    shown: dict[str, int] = {}
    etags: dict[str, str | None] = {}
    text = await _news(pool, blobs, shown, etags)
    if not text:
        text = await _start_task_said(pool, node)
    for line in text.splitlines()[-lines:] if lines else ():
        write(line)
    if not text:
        terminal.note(f"node {node} has said nothing yet")
    while follow:
        await asyncio.sleep(_POLL)
        _, blobs = await _find_node(pool, target)
        for line in (await _news(pool, blobs, shown, etags)).splitlines():
            write(line)


async def _find_node(pool: Pool, target: str) -> tuple[str, list[str]]:
    """Find the node's id, and the logs of the agents that it has had. Raises `CommandError`."""
    from batchflow.pools import node_logs
    from batchflow.pools.reports.heartbeats import read_heartbeats

    beats = await read_heartbeats(pool.runtime.out, fresh_only=False)
    beats.sort(key=lambda beat: beat.started_at)
    hosts = {beat.host: beat.node for beat in beats}
    ids = {node.id for node in await pool.nodes()} | set(hosts.values())
    found = {name for name in ids if name.startswith(target)}
    found |= {node for host, node in hosts.items() if host.startswith(target)}
    if len(found) != 1:
        names = sorted(hosts) or sorted(ids)
        hint = nearest(target, names) if names else "; it has no nodes"
        what = f"{len(found)} nodes begin with {target!r}" if found else f"there is no node {target!r}"
        raise CommandError(f"pool {pool.id!r}: {what}{hint}", Exit.NOT_FOUND)
    node = found.pop()
    out, index = pool.runtime.out, pool.runtime.connections.manifests.index
    logs = [log async for log in node_logs.find(out, index, pool.id) if not log.kept and log.node == node]
    return node, [log.name for log in logs]


async def _kept_logs(
    client: Client, pool: str | None, target: str, lines: int, write: Callable[[str], None]
) -> bool:
    """Write what is kept of a node whose pool is gone; False: nothing is. Raises `CommandError`."""
    logs = [log async for log in client.logs(pool) if log.kept and log.node.startswith(target)]
    if len(nodes := {(log.pool, log.node) for log in logs}) > 1:
        names = ", ".join(sorted(f"{node} (pool {of})" for of, node in nodes))
        raise CommandError(f"{len(nodes)} nodes begin with {target!r}: {names}", Exit.NOT_FOUND)
    said = [line for log in logs for line in (await log.read()).splitlines()]
    for line in said[-lines:] if lines else ():
        write(line)
    return bool(logs)


async def _news(pool: Pool, blobs: list[str], shown: dict[str, int], etags: dict[str, str | None]) -> str:
    """Return what the logs have gained since the last call."""
    from batchflow.errors import BlobNotFound

    text = b""
    for name in blobs:
        try:
            blob = await pool.runtime.out.get_if_changed(name, etags.get(name))
        except BlobNotFound:
            continue  # its agent has said nothing yet
        if blob is not None:
            text += blob.data[shown.get(name, 0) :]
            shown[name], etags[name] = len(blob.data), blob.etag
    return text.decode(errors="replace")


async def _start_task_said(pool: Pool, node: str) -> str:
    compute = pool.runtime.connections.compute
    said = [
        await compute.node_output(pool.id, node, f"startup/{name}.txt", _TAIL)
        for name in ("stdout", "stderr")
    ]
    return "".join(said)
