"""Connections over several namespaces, and what importing the SDKs leaves the collector of garbage to do."""

from __future__ import annotations

import subprocess
import sys

import pytest

from batchflow.errors import ConfigurationError
from batchflow.pools.connections import Connections
from batchflow.ports.broker import OutgoingMessage, QueueRef, QueueSpec
from batchflow.testing import MemoryBroker, MemoryStorage


def said(program: str) -> list[str]:
    """The words that a program in a process of its own prints."""
    command = [sys.executable, "-c", f"import gc; from batchflow.pools.connections import preload; {program}"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=110).stdout.split()


def test_preloaded_objects_count_as_old() -> None:
    """A collection of what is young has next to nothing to look at, and the collector works on."""
    enabled, frozen, young = said(
        "preload(); print(gc.isenabled(), gc.get_freeze_count(), len(gc.get_objects(0) + gc.get_objects(1)))"
    )
    assert (enabled, frozen) == ("True", "0")
    assert int(young) < 1000


@pytest.mark.parametrize(
    ("before", "after"), [("gc.disable()", "gc.isenabled()"), ("gc.freeze()", "gc.get_freeze_count() == 0")]
)
def test_preload_keeps_the_state_of_the_collector(before: str, after: str) -> None:
    """A collector that is off stays off; what the program froze stays frozen."""
    assert said(f"{before}; preload(); print({after})") == ["False"]


async def test_figures_are_those_of_each_queue_in_its_namespace() -> None:
    """In the order of the queues. A namespace that the settings do not name is refused by name."""
    async with MemoryBroker("first") as first, MemoryBroker("second") as second, MemoryStorage() as storage:
        connections = Connections(first, first, storage, None, more_admins=(second,))
        for broker in (first, second):
            await broker.create_queue(QueueSpec("tasks"))
        tasks = [QueueRef("second", "tasks"), QueueRef("first", "tasks")]
        async with await second.sender(tasks[0]) as sender:
            await sender.send(OutgoingMessage(b"one", "1"), OutgoingMessage(b"two", "2"))
        assert [each.active for each in await connections.figures(tasks)] == [2, 0]
        with pytest.raises(ConfigurationError, match="third"):
            await connections.figures([*tasks, QueueRef("third", "tasks")])
