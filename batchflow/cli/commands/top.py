"""`batchflow top`: nodes, slots, queue, rate and failures of a pool, as they change."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import time
import tty
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from batchflow.cli import terminal
from batchflow.cli.command import Command, Invocation, asynchronous
from batchflow.cli.connecting import find_pool
from batchflow.cli.exits import Exit
from batchflow.cli.shell_names import pool_names
from batchflow.display.meter import rate_text
from batchflow.printable import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from batchflow.cli.snapshot import Snapshot
    from batchflow.pool import Pool


_STATE: Final = 8
_AGENT: Final = 8
"""Columns of these words that are left where the terminal is narrow."""
_COST_EVERY: Final = 10.0
"""Seconds between two looks at the cost, which reads a document of each agent."""


@click.command(cls=Command)
@click.argument("pool", required=False, shell_complete=pool_names)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    default=1.0,
    show_default=True,
    help="Seconds between looks.",
)
@click.option("--once", is_flag=True, help="One look, and no more.")
@asynchronous
async def top(invocation: Invocation, pool: str | None, interval: float, once: bool) -> int:
    """Watch a POOL until q or Ctrl-C: live on a terminal, lines elsewhere, with --json objects."""
    configuration = invocation.configuration()
    stop = asyncio.Event()
    async with invocation.client(configuration) as client:
        found = await find_pool(client, pool, configuration)
        with invocation.interrupts.answered_by(stop.set):
            if not once and not invocation.as_json and terminal.is_live(sys.stdout):
                await _watch(found, interval, stop)
            else:
                await _print(found, interval, once, invocation.as_json, stop)
    return Exit.OK


@dataclass(slots=True)
class Rate:
    """Tasks a second, from what each agent has completed."""

    completed: dict[str, int]
    at: float

    @classmethod
    def begin(cls, seen: Snapshot) -> Rate:
        return cls({beat.agent: beat.completed for beat in seen.beats}, time.monotonic())

    def between(self, seen: Snapshot) -> float:
        """Count since the look that this was made at; agents that came since are counted from nothing."""
        more = sum(beat.completed - self.completed.get(beat.agent, 0) for beat in seen.beats)
        return max(0, more) / max(time.monotonic() - self.at, 1e-3)


async def _looks(pool: Pool, interval: float, stop: asyncio.Event) -> Any:
    from batchflow.cli.snapshot import look

    before: Rate | None = None
    cost, asked_at = None, 0.0
    while not stop.is_set():
        now = time.monotonic()
        if now - asked_at >= _COST_EVERY:
            cost, asked_at = await pool.cost(), now
        seen = await look(pool, cost)
        yield seen, None if before is None else before.between(seen)
        before = Rate.begin(seen)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), interval)


async def _print(pool: Pool, interval: float, once: bool, as_json: bool, stop: asyncio.Event) -> None:
    async for seen, rate in _looks(pool, interval, stop):
        if as_json:
            terminal.write_json({**seen.document(), "rate": rate})
        else:
            terminal.write(_line(seen, rate))
        if once:
            return


def _line(seen: Snapshot, rate: float | None) -> str:
    busy = f"{seen.running}/{seen.slots} slots"
    speed = "" if rate is None else f", {rate_text(rate)}"
    problems = f", {len(seen.problems)} nodes in trouble" if seen.problems else ""
    return (
        f"{seen.pool}: {len(seen.beats)}/{len(seen.nodes)} nodes, {busy}, {seen.queued} queued, "
        f"{seen.completed} done{speed}, {seen.failed} failed, "
        f"{seen.cancelled} cancelled, {seen.dead} dead, cost {seen.cost.short}{problems}"
    )


async def _watch(pool: Pool, interval: float, stop: asyncio.Event) -> None:
    from rich.console import Console
    from rich.live import Live

    with _left_by_q(stop), Live(console=Console(), auto_refresh=False, screen=True) as live:
        async for seen, rate in _looks(pool, interval, stop):
            live.update(_drawn(seen, rate), refresh=True)


@contextlib.contextmanager
def _left_by_q(stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` when `q` is typed, without waiting for the end of a line and without showing it."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    descriptor, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(descriptor)

    def typed() -> None:
        if b"q" in os.read(descriptor, 64).lower():
            stop.set()

    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, typed)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _drawn(seen: Snapshot, rate: float | None) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("NODE", no_wrap=True, overflow="ellipsis")
    for head, width in (("STATE", _STATE), ("AGENT", _AGENT)):
        table.add_column(head, no_wrap=True, overflow="ellipsis", min_width=width)
    for head, width in (("BUSY", 5), ("DONE", 7), ("FAILED", 6), ("CANCELLED", 9), ("LOAD", 5)):
        table.add_column(head, justify="right", no_wrap=True, min_width=width)
    beats = {beat.node: beat for beat in seen.beats}
    for node in seen.nodes:
        beat = beats.get(node.id)
        load = "-" if beat is None or beat.load is None else f"{beat.load:.1f}"
        ended = ("-", "-", "-")
        if beat is not None:
            ended = (str(beat.completed), str(beat.failed - beat.cancelled), str(beat.cancelled))
        cells = (
            node.host or node.id,
            node.state,
            node.agent or "-",
            f"{node.running}/{node.slots}",
            *ended,
            load,
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    parts: list[RenderableType] = [Text(_line(seen, rate), style="bold"), Text(), table]
    parts += [Text(f"! {printable(problem)}", style="red") for problem in seen.problems]
    return Group(*parts)
