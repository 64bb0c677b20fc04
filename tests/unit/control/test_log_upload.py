"""The agent's log on its way to a blob: nothing is lost but what is too much, and that is said."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from batchflow.errors import BlobNotFound, StorageError
from node_agent.control import log_upload
from node_agent.control.log_upload import LogUploader


class Blobs:
    """Append blobs; `append` can be made to fail or to stand still."""

    def __init__(self) -> None:
        self.texts: dict[str, bytes] = {}
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = asyncio.Event()

    async def append(self, name: str, data: bytes) -> int:
        self.begun.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.texts[name] = self.texts.get(name, b"") + data
        return len(self.texts[name])


def keeper(*events: str) -> LogUploader:
    made = LogUploader(logging.Formatter("%(message)s"))
    say(made, *events)
    return made


def say(to: LogUploader, *events: str) -> None:
    for event in events:
        to.emit(logging.makeLogRecord({"msg": event}))


async def flush(to: LogUploader, blobs: Any, name: str = "logs/p/n/a.log") -> None:
    await to.flush_to(blobs, name)


async def test_what_is_cancelled_under_way_is_not_lost() -> None:
    """An agent that ends while it appends appends once more; lines may come twice, not never."""
    blobs, log = Blobs(), keeper("first")
    blobs.gate.clear()
    appending = asyncio.create_task(flush(log, blobs))
    await blobs.begun.wait()
    say(log, "second")
    appending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await appending
    blobs.gate.set()
    await flush(log, blobs)
    assert blobs.texts == {"logs/p/n/a.log": b"first\nsecond\n"}


@pytest.mark.parametrize("error", [StorageError("away", retryable=True), BlobNotFound("no container")])
async def test_what_cannot_be_appended_waits(error: Exception) -> None:
    """In its order, before what comes later."""
    blobs, log = Blobs(), keeper("first")
    blobs.error = error
    await flush(log, blobs)
    say(log, "second")
    blobs.error = None
    await flush(log, blobs)
    assert blobs.texts == {"logs/p/n/a.log": b"first\nsecond\n"}


async def test_too_much_is_let_go_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest lines; memory stays bounded while the storage is away."""
    monkeypatch.setattr(log_upload, "MOST_BYTES", 20)
    blobs, log = Blobs(), keeper(*(f"line {number}" for number in range(10)))
    await flush(log, blobs)
    assert blobs.texts == {"logs/p/n/a.log": b'{"event":"lines_dropped","lines":8}\nline 8\nline 9\n'}


async def test_a_blob_that_is_full_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """An append blob takes so many appends and no more: an agent may live for months."""
    monkeypatch.setattr(log_upload, "MOST_APPENDS", 2)
    blobs, log = Blobs(), keeper()
    for number in range(5):
        say(log, str(number))
        await flush(log, blobs)
    assert blobs.texts == {
        "logs/p/n/a.log": b"0\n1\n",
        "logs/p/n/a.1.log": b"2\n3\n",
        "logs/p/n/a.2.log": b"4\n",
    }
