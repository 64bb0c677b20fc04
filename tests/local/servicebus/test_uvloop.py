"""The local Service Bus on uvloop, which the local cloud's process runs on."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from batchflow.local.security.certificate import make_server_context
from batchflow.local.servicebus.server import ServiceBusServer

uvloop = pytest.importorskip("uvloop")


@asynccontextmanager
async def serving(ca_file: Path) -> AsyncIterator[ServiceBusServer]:
    server = ServiceBusServer(
        key=base64.b64encode(os.urandom(32)).decode(), ssl_context=make_server_context(ca_file)
    )
    await server.start()
    try:
        yield server
    finally:
        await server.aclose()


def test_what_is_due_already_is_armed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop's handle of a call that is due at once does not tell its moment."""

    async def arm() -> None:
        async with serving(tmp_path / "ca.pem") as server:
            due: Callable[[], float] = lambda: time.time() - 1.0  # noqa: E731
            monkeypatch.setattr(server._broker, "next_deadline", due)
            for _ in range(3):
                server._arm(time.time())
            monkeypatch.undo()
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(arm())
