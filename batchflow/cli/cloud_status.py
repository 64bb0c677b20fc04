"""The compact status of the local cloud that `batchflow up` shows while it keeps it."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Final

from batchflow.cli import terminal
from batchflow.errors import ServiceError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from batchflow.cli.snapshot import Snapshot
    from batchflow.client import Client
    from batchflow.local.http.internal_errors import InternalErrors
    from batchflow.settings import Settings

_INTERVAL: Final = 1.0
"""Seconds between two looks."""


async def show(settings: Settings, stop: asyncio.Event, errors: InternalErrors) -> None:
    """Show a live status on a terminal until `stop` is set; elsewhere only wait.

    The errors of the cloud itself are said on a terminal while it is up, and elsewhere at its end.
    """
    if not terminal.is_live(sys.stderr):
        await stop.wait()
        if errors.count:
            terminal.note(str(errors))
        return
    watching = asyncio.create_task(_watch(settings, errors), name="cloud status")
    try:
        await stop.wait()
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def _watch(settings: Settings, errors: InternalErrors) -> None:
    from rich.console import Console
    from rich.live import Live

    from batchflow.client import Client

    began = time.monotonic()
    async with Client(settings) as client:
        with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
            while True:
                text = _status_text(await _pools(client), time.monotonic() - began, errors)
                live.update(text, refresh=True)
                await asyncio.sleep(_INTERVAL)


async def _pools(client: Client) -> list[Snapshot]:
    from batchflow.cli.snapshot import look

    found = []
    async for pool in client.pools():
        try:
            found.append(await look(pool))
        except ServiceError:
            continue  # it is being made, or deleted
    return found


def _status_text(pools: list[Snapshot], age: float, errors: InternalErrors) -> RenderableType:
    from rich.text import Text

    lines = [f"local cloud, up {int(age) // 60}:{int(age) % 60:02}"]
    for each in pools:
        agents = f"{len(each.beats)}/{len(each.nodes)} nodes"
        busy = f"{each.running}/{each.slots} slots"
        lines.append(f"  {each.pool}: {agents}, {busy}, {each.queued} queued, {each.completed} done")
    if not pools:
        lines.append("  no pools yet: batchflow pool create NAME --file tasks/")
    if errors.count:
        lines.append(f"  {errors}; see the log")
    return Text("\n".join(lines), overflow="ellipsis", no_wrap=True)
