"""Tasks of a session that wait for others, in the model: the real graph, its dependents and their keeper.

The keeper's coroutines run as steps of the model. Its container tries a failed request again by itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from batchflow.errors import BlobNotFound, ServiceError
from batchflow.model import Status
from batchflow.protocol import wire
from batchflow.protocol.wire import ResultItem, TaskItem
from batchflow.sessions.records.submission import Submission, TaskInput
from batchflow.sessions.records.tracker import Entry
from batchflow.sessions.workflows import stored
from batchflow.sessions.workflows.dependents import Dependents
from batchflow.sessions.workflows.graph import RunsWith, Waiting
from batchflow.sessions.workflows.keeper import WorkflowKeeper
from tests.model import history
from tests.model.world import Backoff, Call, Steps, StepsTo, Wait, sleep

if TYPE_CHECKING:
    from tests.model.agents import Work
    from tests.model.sessions import Session

Answer = TypeVar("Answer")

_GATHER: Final = 0.05
_LOOK: Final = 1.0
"""Seconds between two looks for documents that are needed no longer, and for inputs that never come."""


@dataclass(frozen=True, slots=True)
class _Awaited(Awaitable[Answer]):
    """Steps of the model, as a coroutine awaits them."""

    steps: StepsTo[Answer]

    def __await__(self) -> Generator[Any, Any, Answer]:
        return self.steps


def steps_of(make: Callable[[], Coroutine[Any, Any, Answer]]) -> StepsTo[Answer]:
    """A coroutine, as steps of the model."""
    return (yield from make().__await__())


class _Container:
    """The storage of the keeper's documents."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._blobs = session.world.cloud.blobs

    async def put(self, blob: str, data: bytes) -> None:
        await _Awaited(self._done(lambda: self._blobs.put(blob, data)))
        for task in stored.decode(data):
            self._session.world.note(history.Saved(self._session.now, task.uid))

    async def get(self, blob: str) -> Any:
        data, _ = await _Awaited(self._done(lambda: self._blobs.get(blob)))
        return SimpleNamespace(data=data)

    async def list(self, prefix: str) -> AsyncIterator[Any]:
        found = await _Awaited(self._done(lambda: [name for name in self._blobs if name.startswith(prefix)]))
        for name in found:
            yield SimpleNamespace(name=name)

    def _done(self, do: Callable[[], Any]) -> StepsTo[Any]:
        backoff = Backoff()
        while True:
            try:
                return (yield Call(do))
            except BlobNotFound:
                raise
            except ServiceError:
                yield backoff.wait(self._session)


class _Outcomes:
    """What dependents need of the outcomes of a session."""

    def __init__(self, session: Session) -> None:
        self.change = SimpleNamespace(notify=lambda: None)
        self.resolve = session.resolve
        self.on_ended: Callable[[Entry], None]


class Workflow:
    """What waits in one session; it is the dependents' releaser."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.entries: dict[int, Entry] = {}
        """The tasks of the session that others may take, by their places."""
        nothing = SimpleNamespace(
            needed=lambda _entry, _waiting: None, ended=lambda _: None, add=lambda _: None
        )
        self.dependents = Dependents(
            cast(Any, _Outcomes(session)), self, cast(Any, nothing), cast(Any, nothing)
        )
        context = SimpleNamespace(
            job_name=session.plan.job,
            name=session.plan.name,
            incarnation=session.name,
            tracker=session.tracker,
            runtime=SimpleNamespace(ctl=_Container(session), manifest=SimpleNamespace(lanes=())),
            notices=SimpleNamespace(inform=lambda _: None, warn=lambda _: None),
            delete_later=lambda _container, blob, _what: session.spawn(session.drop_blob(blob)),
        )
        self.keeper = self.dependents.keeper = WorkflowKeeper(
            cast(Any, context),
            session.mailbox.record,
            session.mailbox.state,
            cast(Any, nothing),
            forget_blob=lambda _: None,
            clock=lambda: session.now,
        )
        session.mailbox.record.beyond = lambda: session.tracker.sent_beyond(session.passed, session.in_flight)
        self._unsaved = False
        self._writing = False
        self._tidy = True
        """Whether documents were looked for since everything has ended."""

    @property
    def quiet(self) -> bool:
        """Whether nothing is left to do."""
        return self.keeper.restored and self._tidy and not (self.dependents.is_behind or self._writing)

    # The releaser

    def has_room(self) -> bool:
        return self._session.has_outbox_room()

    def release(self, waiting: Waiting) -> bool:
        """Put a task into the outbox, with the values that it takes."""
        entry, submission = waiting.entry, waiting.submission
        values = [_value(each.entry) for each in submission.inputs]
        item = TaskItem(
            client=entry.client,
            job=entry.job,
            task_id=entry.task_id,
            command=entry.command,
            params=[*submission.arguments, values],
            uid=entry.uid,
            bundle=waiting.runs_with.bundle,
            submitted_at=entry.submitted_at,
        )
        self._session.tracker.release(entry, wire.encode(item))
        return True

    async def release_by_reference(self, waiting: Waiting) -> None:
        raise AssertionError("all that waits is short")

    def keep_unsent(self, waiting: Waiting) -> None:
        """Arguments are not shown here."""

    # What waits

    def inputs(self, places: tuple[int, ...]) -> tuple[Entry, ...]:
        """Those of these tasks that the session knows."""
        return tuple(self.entries[place] for place in places if place in self.entries)

    def hold(self, entry: Entry, work: Work) -> None:
        """Take in a new task."""
        inputs, after = self.inputs(work.inputs), self.inputs(work.after)
        submission = Submission(
            command=entry.command,
            arguments=work.arguments(),
            on_failure="pass" if work.passes else None,
            inputs=tuple(map(TaskInput, inputs)),
        )
        self._session.tracker.hold(entry)
        waits = tuple(dict.fromkeys([*inputs, *after]))
        self.dependents.hold(Waiting(entry, submission, waits, RunsWith("bundle")))
        self._unsaved, self._tidy = True, False

    def restore(self) -> Steps:
        """Go on with what waits since earlier sessions."""
        yield from steps_of(lambda: self.keeper.restore(self._take_over, self.dependents.ended))

    def _take_over(self, waiting: Waiting) -> None:
        self.entries[waiting.entry.index] = waiting.entry
        self.dependents.hold(waiting)
        self._tidy = False

    # Services

    def work(self) -> Steps:
        """Send and end what could not be at once."""
        while True:
            yield Wait(lambda: self.dependents.is_behind and self.has_room())
            self.dependents.work()

    def keep(self) -> Steps:
        """Write down what waits, and delete what is needed no longer."""
        session = self._session
        yield Wait(lambda: self.keeper.restored)
        while True:
            yield Wait(lambda: self._unsaved, session.now + _LOOK)
            if self._unsaved:
                yield sleep(session, _GATHER)
            yield Wait(lambda: not self._writing)
            yield from self._write()
            self.keeper.delete_documents()
            self._tidy = not (len(session.tracker) or session.tracker.unclaimed)
            self.keeper.give_up_lost()

    def _write(self) -> Steps:
        self._writing, self._unsaved = True, False
        yield from steps_of(self.keeper.write)
        self._writing = False
        self._unsaved |= self.keeper.unsaved > 0

    def close(self, deadline: float) -> Steps:
        """Write down what is left."""
        self.dependents.stop()
        yield Wait(lambda: self.keeper.restored and not self._writing, deadline)
        if self.keeper.restored and not self._writing:
            self._session.spawn(self._write())
            yield Wait(lambda: not self._writing, deadline)


def _value(entry: Entry) -> str:
    """What a task hands to another one: its value, or how it failed."""
    item: ResultItem = entry.read()
    return str(item.value) if item.status is Status.SUCCEEDED else f"{item.status.value} {item.kind}"
