"""Running: sends the inputs that were not sent, writes each result once, and leaves in order.

What a session knows of its tasks outlives the process (its mailbox), and so does what was written (the
record). Going on with a run therefore is: open the session by its name, send the inputs that the broker has
not accepted, read until nothing is owed, and send anew what neither the record nor the mailbox knows of.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import anyio

from batchflow.cli import terminal
from batchflow.cli.sources.workflows import is_workflow, with_values
from batchflow.model import Result, Status
from batchflow.protocol.values.json_form import json_form
from batchflow.retry import RetryPolicy
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from batchflow.cli.progress import Progress
    from batchflow.cli.record import RunRecord
    from batchflow.cli.sources.tables import Item
    from batchflow.display.meter import Meter
    from batchflow.session import Session
    from batchflow.task import Task

_WINDOW: Final = 20_000
"""Maximum number of tasks under way while results are read."""
_SAVE_INTERVAL: Final = 1.0
"""Seconds between two notes of how many inputs the broker has."""
_MOMENT: Final = 1.0
"""Seconds without mail after which what is there counts as read."""
_LEAVE_TIMEOUT: Final = 5.0
"""Seconds that the broker has, at the end, to accept what was sent."""


Write = Callable[[dict[str, Any]], None]
"""Writes a result, as its document, where it was asked for."""


class Run:
    """One process's part of a run."""

    def __init__(
        self, session: Session, record: RunRecord, meter: Meter, progress: Progress, write: Write | None
    ) -> None:
        """`write`: takes each result; None: it goes to stdout."""
        self._session = session
        self._record = record
        self._meter = meter
        self._progress = progress
        self._output = write
        self._items = record.items()
        self._waits = is_workflow(self._items)
        self._tasks: dict[int, Task] = {}
        """Of a workflow: the tasks that this process has submitted, by the numbers of their inputs."""
        self._documents: dict[int, dict[str, Any]] = {}
        """Of a workflow: the results that were written."""
        self._written: set[int] = set()
        for document in record.results():
            self._note(document)
        self._sent = record.plan.accepted
        self._moved = asyncio.Event()
        """A task was sent, or the last one."""
        self._room = asyncio.Event()

    @property
    def missing(self) -> list[int]:
        """The inputs that have no result yet."""
        return [index for index in range(len(self._items)) if index not in self._written]

    async def complete(self) -> None:
        """Return when each input has its result. Cancelled, what was sent goes on: see `leave`."""
        self._progress.advance()
        accepted = self._record.plan.accepted
        to_send: Iterable[int] = [index for index in self.missing if index >= accepted]
        if self._waits and accepted:
            to_send = []  # what was sent before comes first, for others wait for it
        try:
            await self._complete(to_send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._drop_waiting()

    async def _complete(self, to_send: Iterable[int]) -> None:
        while self.missing:
            async with task_group() as group:
                group.start_soon(self._save_now_and_then)
                sending = asyncio.create_task(self._send(to_send), name="send inputs")
                try:
                    await self._read(sending)
                finally:
                    sending.cancel()
                    await asyncio.wait([sending])
                group.cancel_scope.cancel()
            to_send = self.missing
            if unknown := [index for index in to_send if index < self._sent]:
                self._progress.note(f"{len(unknown)} tasks are unknown to the pool and are sent anew")

    async def _drop_waiting(self) -> None:
        """Drop what was not sent because it waits: who goes on with the run submits it again."""
        for task in self._tasks.values():
            if task.status is Status.WAITING:
                await task.cancel()

    async def send_all(self) -> None:
        """Return when the broker has accepted every input."""
        for index in self.missing:
            if index >= self._record.plan.accepted:
                await self._send_one(index)
        await self._save_accepted()

    async def read_what_comes(self) -> None:
        """Write results until it is cancelled."""
        async for result in self._session.results(follow=True):
            self._write(result)

    async def read_what_is_there(self) -> None:
        """Write results until one comes that ended after we asked, or for a moment none."""
        asked = time.time()
        reading = self._session.results()
        while True:
            with anyio.move_on_after(_MOMENT) as waiting:
                try:
                    result = await anext(reading)
                except StopAsyncIteration:
                    return
                self._write(result)
            if waiting.cancelled_caught or (result.finished_at or asked) > asked:
                return

    async def read_until(self, index: int) -> None:
        """Write results until that of one input is there."""
        reading = self._session.results(follow=True)
        while index not in self._written:
            self._write(await anext(reading))

    async def leave(self) -> int:
        """Wait until the broker has what was sent; return the number of tasks that go on."""
        with anyio.move_on_after(_LEAVE_TIMEOUT):
            await self._save_accepted()
        return self._sent - sum(index < self._sent for index in self._written)

    # ---- sending

    async def _send(self, indices: Iterable[int]) -> None:
        try:
            for index in indices:
                await self._until_room()
                await self._send_one(index)
        finally:
            self._moved.set()

    async def _until_room(self) -> None:
        counts = self._session.counts
        while counts.submitted - counts.done >= _WINDOW:
            self._room.clear()
            await self._room.wait()
            counts = self._session.counts

    async def _send_one(self, index: int) -> None:
        item, plan = self._items[index], self._record.plan
        if (failed := self._failed_before(item)) is not None:
            self._add(failed_dependency(index, item, failed))
            return
        task = await self._session.submit(
            item.command,
            args=with_values(item.arguments, self._input) if item.after else item.arguments,
            after=[self._tasks[each] for each in item.after if each in self._tasks],
            task_id=str(index),
            timeout=plan.timeout,
            retry=RetryPolicy(max_attempts=1 + plan.retries) if plan.retries else None,
            memory_limit=plan.memory_limit,
            stream_output=plan.stream_output,
            expires=plan.expires if item.expires is None else item.expires,
        )
        if self._waits:
            self._tasks[index] = task
        self._sent = max(self._sent, index + 1)
        self._moved.set()

    def _failed_before(self, item: Item) -> dict[str, Any] | None:
        """Return the result of the first task that it waits for, and that failed in an earlier process."""
        for each in item.after:
            document = self._documents.get(each)
            if each not in self._tasks and document is not None and document["status"] != "succeeded":
                return document
        return None

    def _input(self, number: int) -> Any:
        """Return what stands for a task's value: the task, or its value if an earlier process has that."""
        return self._tasks[number] if number in self._tasks else self._documents[number]["value"]

    async def _save_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_INTERVAL)
            await self._save_accepted()

    async def _save_accepted(self) -> None:
        """Note how much was sent, once the broker has it."""
        waiting = (index for index, task in self._tasks.items() if task.status is Status.WAITING)
        sent = min((self._sent, *waiting))
        await self._session.flush()
        if self._record.plan.accepted != sent:
            self._record.plan.accepted = sent
            self._record.save()

    # ---- reading

    async def _read(self, sending: asyncio.Task[None]) -> None:
        """Read results until everything is sent and every result has come."""
        while True:
            self._moved.clear()
            async for result in self._session.results():
                self._write(result)
                self._room.set()
            if sending.done():
                sending.result()
                return
            await self._moved.wait()

    def _write(self, result: Result) -> None:
        """Write a result into the record, then to the output; drop a second one for the same input."""
        index = int(result.task_id) if result.task_id.isdecimal() else -1
        if not 0 <= index < len(self._items) or index in self._written:
            return
        self._add(document_of(result, index, self._items[index]))

    def _note(self, document: dict[str, Any]) -> None:
        self._written.add(document["index"])
        if self._waits:
            self._documents[document["index"]] = document

    def _add(self, document: dict[str, Any]) -> None:
        self._record.add(document)
        self._note(document)
        self._meter.ended(document["status"], time.monotonic())
        self._progress.advance()
        if self._output is None:
            self._progress.line(terminal.encode(document))
        else:
            self._output(document)


def failed_dependency(index: int, item: Item, failed: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a task for which another one, that failed, was to end first."""
    error = failed.get("error")
    if failed.get("kind") != "DependencyFailed":
        name = failed.get("task", failed["index"])
        error = f"it waited for task {name} ({failed.get('command', '')}), which {failed['status']}: {error}"
    document = {"index": index, "task": item.label, "command": item.command, "arguments": item.arguments}
    document |= {"status": "failed", "error": error, "kind": "DependencyFailed"}
    return {key: value for key, value in document.items() if value is not None}


def document_of(result: Result, index: int, item: Item | None = None) -> dict[str, Any]:
    """Return a result as a line of JSON; what is empty is left out."""
    times = (result.started_at, result.finished_at)
    document = {
        "index": index,
        "task": item.label if item else None,
        "command": result.command or (item.command if item else ""),
        "arguments": item.arguments if item else None,
        "status": result.status.value,
        "value": json_form(result.value, otherwise=repr),
        "error": result.error,
        "kind": result.kind,
        "traceback": result.traceback,
        "attempt": result.attempt if result.attempt > 1 else None,
        "node": result.node,
        "seconds": None if None in times else round(times[1] - times[0], 6),  # type: ignore[operator]
        "stdout": result.stdout or None,
        "stderr": result.stderr or None,
        "files": list(result.files) or None,
    }
    always = ("index", "status", "value") if result.ok else ("index", "status", "error")
    return {key: value for key, value in document.items() if value is not None or key in always}
