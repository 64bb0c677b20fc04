"""Slots, bundles and tasks for tests, made of text."""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from batchflow.ports.broker import QueueRef
from batchflow.protocol.bundle import Bundle, BundleFile
from batchflow.protocol.documents import AgentConfig, ContainerAccess, QueueAccess
from node_agent.execution.slot import Execution, Outcome, Slot
from node_agent.system.file_stamps import stamp
from tests.support.waiting import BOUND

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from batchflow.protocol.wire import EventItem

_QUEUE = QueueAccess(QueueRef("namespace", "queue"), "Endpoint=sb://namespace/")
_CONTAINER = ContainerAccess("https://account/container", "signature")


def config(**changes: Any) -> AgentConfig:
    """An agent's settings."""
    plain = AgentConfig("pool", (_QUEUE,), (_QUEUE,), _CONTAINER, _CONTAINER, 60.0)
    return replace(plain, **{"grace": 1.0, **changes})


def materialise(root: Path, contents: Mapping[str, str | bytes]) -> tuple[Bundle, Path]:
    """A bundle, and a folder as the cache makes it. Names that end in "*" are executable."""
    files, data = [], {}
    for name, content in contents.items():
        raw = content.encode() if isinstance(content, str) else content
        plain = name.removesuffix("*")
        files.append(BundleFile(plain, hashlib.sha256(raw).hexdigest(), len(raw), name != plain))
        data[plain] = raw
    bundle = Bundle.of(files)
    folder = root / "cached" / bundle.hash
    for file in bundle.files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[file.name])
        os.chmod(path, 0o555 if file.executable or data[file.name].startswith(b"#!") else 0o444)
        stamp(str(path))
    return bundle, folder


@asynccontextmanager
async def bench(root: Path, **changes: Any) -> AsyncIterator[Bench]:
    """A slot for a block; `changes`: of the agent's settings. Nothing may be left of it afterwards."""
    made = Bench(root, **changes)
    try:
        async with asyncio.timeout(2 * BOUND):
            yield made
    finally:
        await made.slot.aclose()


class Bench:
    """One slot, and short ways to run something in it."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.root = root
        self.events: list[EventItem] = []
        self.slot = Slot(
            0,
            root / "slots",
            config(**changes),
            on_event=lambda _, event: self.events.append(event),
            node="node-1",
        )
        self._count = 0

    def execution(self, bundle: Bundle, command: str, args: list[Any], **limits: Any) -> Execution:
        self._count += 1
        return Execution(
            f"run:{self._count}", str(self._count), "client", "job", command, args, bundle, 1, **limits
        )

    async def run(
        self, contents: Mapping[str, str | bytes], command: str, *args: Any, **limits: Any
    ) -> Outcome:
        """One task of that bundle."""
        bundle, files = materialise(self.root, contents)
        return await self.slot.run(self.execution(bundle, command, list(args), **limits), files)

    def messages(self, kind: str) -> list[str]:
        """The messages of the events of a kind."""
        return [event.message for event in self.events if event.kind == kind]

    async def python(self, source: str, *args: Any, **limits: Any) -> Outcome:
        """One task whose file is this source."""
        return await self.run({"task.py": source}, "task.py", *args, **limits)


def keep(found: dict[int, Outcome]) -> Callable[[int, Sequence[Outcome]], None]:
    """What puts the outcomes of `run_many` there, by their index."""
    return lambda first, outcomes: found.update(enumerate(outcomes, first))


def value(outcome: Outcome) -> Any:
    """What a task that must have succeeded returned."""
    assert outcome.error is None, (outcome.error, outcome.traceback, outcome.stderr)
    return None if outcome.value is None else orjson.loads(outcome.value)
