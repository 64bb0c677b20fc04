"""A client's mailbox in a job: tasks go out, results come back, in any order, for as long as one likes."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import uuid
import weakref
from collections.abc import AsyncIterable, Iterable
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, BinaryIO, Unpack

import anyio

from batchflow.diagnosis.facts import SessionFacts, WaitingTask
from batchflow.diagnosis.pool import explain_pool
from batchflow.diagnosis.session import explain_session
from batchflow.errors import (
    BrokerError,
    ConfigurationError,
    ServiceError,
    SessionClosed,
    StorageError,
)
from batchflow.files import Files, collect, fetch, upload
from batchflow.model import UNSET, Counts, Event, Explanation, Result, Status
from batchflow.pools.open_sessions import OpenSession
from batchflow.protocol import layout
from batchflow.protocol.packing import PackingPolicy
from batchflow.protocol.wire import ResultItem
from batchflow.results import Results
from batchflow.sessions.agents_watch import AgentsWatch
from batchflow.sessions.cancellation import Cancellations
from batchflow.sessions.checkpoint_store import CheckpointStore
from batchflow.sessions.dead_letters import DeadLetterHandler
from batchflow.sessions.health import ProblemSource
from batchflow.sessions.map_run import DEFAULT_WINDOW, MapRun
from batchflow.sessions.presence import PresenceKeeper
from batchflow.sessions.receiver import ResultReceiver
from batchflow.sessions.sender import TaskSender
from batchflow.sessions.stats import LinkCounter, SessionStats
from batchflow.sessions.submission import Submission, TaskOptions, as_arguments, command_line
from batchflow.sessions.submitter import Submitter
from batchflow.sessions.tracker import Entry, Tracker, cancelled_result
from batchflow.streams import EventStream, MapResults, ResultStream, SessionResults
from batchflow.support.background import Background
from batchflow.support.process_tuning import HeapTrimmer
from batchflow.support.supervised import Supervised
from batchflow.support.task_groups import task_group
from batchflow.support.waiting import ChangeNotifier, Waiters
from batchflow.task import Task

if TYPE_CHECKING:
    from batchflow.pool import Pool
    from batchflow.ports.storage import Container
    from batchflow.retry import RetryPolicy

logger = logging.getLogger(__name__)


class Session(Supervised):
    """Made by `pool.session()`. Opened by `async with` or `await`, closed by leaving it or by `aclose`.

    All methods belong to the event loop that opened it.
    """

    def __init__(
        self,
        pool: Pool,
        name: str | None,
        job: str,
        files: Files | None,
        journal: str | PathLike[str] | None = None,
        timeout: float | None = None,
    ) -> None:
        found_again = name is not None
        if journal is not None and not found_again:
            raise ConfigurationError("a journal needs a session with a name: only that is found again")
        name = name or f"c-{uuid.uuid4().hex[:12]}"
        super().__init__(f"session {job}/{name}")
        self.pool = pool
        self.name: str = layout.check_name("client name", name)
        self.job_name: str = layout.check_name("job name", job)
        self.incarnation: str = uuid.uuid4().hex[:12]
        """New with each opening: it tells the tasks of this session from those of an earlier holder's."""
        self._settings = pool.runtime.settings.session
        self.close_timeout: float = self._settings.close_timeout
        self._files = files
        self._tracker = Tracker()
        self._policy = PackingPolicy()
        self._counter = LinkCounter()
        self._relief = HeapTrimmer(lambda: not len(self._tracker))
        self._change = ChangeNotifier()
        """Something happened that a reader of results may care for."""
        self._room = ChangeNotifier()
        """Something has left the outbox."""
        self._waiters = Waiters()
        """For an outcome."""
        self._accepting = Waiters()
        self._streams = weakref.WeakSet[EventStream]()
        self._troubles: dict[ProblemSource, ServiceError] = {}
        self._background = Background(self._warn)
        self._holds = False
        """Whether the mailbox, and the documents that go with it, have been ours."""
        self._ended = False
        self._reason = "closed"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._submitter = Submitter(self, timeout)
        self._ledger = CheckpointStore(self, journal) if found_again else None
        self._outbox = TaskSender(self)
        self._inbox = ResultReceiver(self)
        self._cancellations = Cancellations(self)
        self._presence = PresenceKeeper(self)
        self._agents = AgentsWatch(self)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "not open" if self._supervisor is None else "open"
        return f"<Session {self.name!r} in job {self.job_name!r} of pool {self.pool.id!r}, {state}>"

    def _repr_html_(self) -> str:
        from batchflow.display.cards import session_view

        return session_view(self)

    # ---- submitting

    async def submit(
        self,
        command: str,
        *params: Any,
        args: Any = UNSET,
        task_id: str | None = None,
        tag: Any = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        memory_limit: int | None = None,
        stream_output: bool = False,
    ) -> Task:
        """Put a task into the outbox; wait only when that is full, never for the reader of results.

        `command` names a file of the bundle. One positional string is a command line, split as a shell would;
        several positionals, or `args`, are the arguments as they are. `timeout`: seconds of running time.
        `memory_limit`: bytes. `tag`: any JSON, given back in the result.

        Raises `ConfigurationError` for what can never be sent, `SessionClosed`, `JobClosed`, `StorageError`
        when large arguments cannot be stored, `BrokerError` when there is no room and the broker has been
        away for `session.patience` seconds. Cancelled, the task may or may not have been submitted.
        """
        wish = Submission(
            command=command,
            arguments=command_line(params, args),
            task_id=task_id,
            tag=tag,
            timeout=timeout,
            retry=retry,
            memory_limit=memory_limit,
            stream_output=stream_output,
        )
        return Task(self, await self._submitter.submit(wish))

    async def submit_many(
        self, command: str, inputs: Iterable[Any], **options: Unpack[TaskOptions]
    ) -> list[Task]:
        """`submit` for each input: a list or tuple is the arguments, anything else is the one argument."""
        tasks = []
        for value in inputs:
            wish = Submission(command=command, arguments=as_arguments(value), **options)
            tasks.append(Task(self, await self._submitter.submit(wish)))
        self._submitter.burst_is_over = True
        return tasks

    def map(
        self,
        command: str,
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        ordered: bool = False,
        window: int | None = None,
        **options: Unpack[TaskOptions],
    ) -> ResultStream:
        """Run the command over the inputs and stream the results, as they come or in the inputs' order.

        Lazy: begins when it is read, and has at most `window` tasks under way or unread. `Result.index` is
        the place among the inputs. Leaving it early cancels what it had submitted. Raises
        `ConfigurationError` at once for options that can never be sent.
        """
        Submission(command=command, arguments=[], **options)
        if window is not None and window < 1:
            raise ConfigurationError(f"map: window is {window}, at least 1 is needed")
        run = MapRun(self, command, inputs, window or DEFAULT_WINDOW, options)
        return MapResults(self, run, ordered)

    async def run(self, command: str, *params: Any, args: Any = UNSET, **options: Unpack[TaskOptions]) -> Any:
        """Submit, await, return the value or raise the `TaskError`. Cancelled, it cancels the task."""
        wish = Submission(command=command, arguments=command_line(params, args), **options)
        entry = await self._submitter.enqueue(wish)
        self._tracker.claim(entry)
        try:
            return await Task(self, entry)
        except asyncio.CancelledError:
            self._give_up([entry])
            raise

    # ---- reading

    def results(self, *, follow: bool = False) -> ResultStream:
        """Each result that nobody had claimed (by awaiting, `run`, `map`) when it comes to be yielded, once.

        Ends when everything submitted so far has come; with `follow`, when the session ends.
        """
        return SessionResults(self, follow)

    def take(self, limit: int | None = None) -> Results:
        """The unclaimed results that have come since last asked, without waiting."""
        entries = iter(self._tracker.next_unclaimed, None)
        return Results(self._result(entry) for entry in itertools.islice(entries, limit))

    def events(self) -> EventStream:
        """Output lines, logs and progress of tasks, warnings of the session: those from now on."""
        stream = EventStream(self)
        self._streams.add(stream)
        return stream

    @property
    def counts(self) -> Counts:
        """How many tasks are where. `done` grows as outcomes arrive, whoever reads them."""
        return self._tracker.counts

    @property
    def stats(self) -> SessionStats:
        """What it has asked of the broker so far, and how often for each task."""
        counts = self.counts
        return self._counter.stats(counts.submitted, counts.done)

    async def explain(self) -> Explanation:
        """What is known of why results come, or do not."""
        pool = await explain_pool(self.pool.runtime)
        facts = SessionFacts(
            job=self.job_name,
            name=self.name,
            counts=self.counts,
            waiting=[WaitingTask(entry.uid, entry.task_id, entry.command) for entry in self._tracker],
            bundle=self._submitter.bundle,
            problem=self._trouble,
        )
        return await explain_session(pool, facts, self.pool.runtime.ctl)

    # ---- steering

    async def flush(self) -> None:
        """Return when the broker has accepted all tasks submitted so far, or they failed. Safe to cancel.

        In a session with a name, whoever opens it after a crash then knows of them, and waits for them.
        Raises `SessionClosed` when the session ended before, `BrokerError` when the broker has been away for
        `session.patience` seconds: what was not accepted is sent when it is back.
        """
        mark = self._tracker.next_sequence()
        while self._outbox.passed < mark:
            if self._ended:
                raise SessionClosed(self._reason)
            await self._next_room()
        while self._ledger is not None and not self._ledger.loaded:
            if self._ended:
                raise SessionClosed(self._reason)
            await self._next_change()
        await self._inbox.save_ledger()

    async def update_files(self, files: Files) -> None:
        """Tasks submitted from now on run with these files; those submitted before keep theirs."""
        self._check_open()
        self._submitter.bundle = (await upload(await collect(files), self.pool.runtime.ctl)).hash

    async def cancel_all(self) -> None:
        """`cancel` every task that has no outcome."""
        await self._cancel(list(self._tracker))

    # ---- what tasks and streams need of it

    async def _cancel(self, entries: list[Entry]) -> None:
        if all(entry.done for entry in entries):
            return
        self._check_open()
        await self._cancellations.cancel(self._withdraw(entries))

    def _give_up(self, entries: list[Entry]) -> None:
        """`_cancel`, without waiting for it: closing the session does."""
        if (left := self._withdraw(entries)) and not self._ended:
            self._background.start(
                self._cancellations.cancel(left), "cancel what nobody waits for", last=True
            )

    def _withdraw(self, entries: list[Entry]) -> list[Entry]:
        """End those that were not sent. Returns those that were, and have no outcome."""
        for entry in entries:
            if entry.item is not None and not entry.done:
                self._resolve(entry, cancelled_result(entry, "cancelled before it was sent"))
        self._changed()
        return [entry for entry in entries if not entry.done]

    def _abandon(self, run: MapRun) -> None:
        """Cancel what a dropped `map` had submitted. Called from anywhere, also by the garbage collector."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(lambda: self._give_up(run.stop()))

    async def _until_done(self, entry: Entry) -> None:
        self._tracker.claim(entry)
        if not entry.done:
            self._check_open()
            self._check_trouble()
            await self._waiters.wait(entry.sequence)
        entry.hand_over()

    async def _until_accepted(self, entry: Entry) -> None:
        if entry.status is Status.SENDING:
            self._check_open()
            self._check_trouble("sending")
            await self._accepting.wait(entry.sequence)
        if entry.done and entry.status is not Status.SUCCEEDED and not entry.was_accepted:
            entry.result().unwrap()

    async def _next_change(self) -> None:
        """Wait until something happened that a reader of results may care for."""
        self._check_trouble()
        await self._change.wait()

    async def _next_room(self) -> None:
        """Wait until something has left the outbox, or never will."""
        self._check_trouble("sending")
        await self._room.wait()

    def _resolve(self, entry: Entry, outcome: ResultItem, *, mail_comes: bool = False) -> bool:
        """Give a task an outcome of the session's own. False for a duplicate.

        `mail_comes`: an agent will give it one all the same.
        """
        if not self._tracker.resolve(entry, outcome):
            return False
        if mail_comes:
            self._inbox.give(entry)
        elif self._ledger is not None:
            self._ledger.account.consume(entry.uid)  # nobody will tell it to a later holder
        self._resolved(entry)
        return True

    def _resolved(self, entry: Entry) -> None:
        """Tell whoever waits for a task that it has its outcome, or for room in the outbox."""
        self._room.beat()
        self._waiters.wake(entry.sequence)
        self._accepting.wake(entry.sequence)
        if (on_done := entry.on_done) is not None:
            entry.on_done = None  # whoever holds the task shall not hold the map, and all its inputs
            on_done(entry)
        if entry.arguments_blob is not None:
            self._drop_later(self.pool.runtime.ctl, entry.arguments_blob, "delete arguments")

    @property
    def _outstanding(self) -> int:
        """Outcomes to come; at least one as long as it is not known what earlier holders are owed."""
        unknown = self._ledger is not None and not self._ledger.loaded
        return len(self._tracker) + unknown

    def _result(self, entry: Entry) -> Result:
        """The public form of an outcome, with the way to the files that the task left."""
        result = entry.result()
        if not result.files:
            return result
        prefix = layout.outputs_prefix(entry.job, entry.client, entry.uid)

        async def download(name: str) -> BinaryIO:
            return await fetch(self.pool.runtime.out, prefix + name)

        return replace(result, download=download)

    def _changed(self) -> None:
        self._change.beat()

    def _drop_later(self, container: Container, blob: str, name: str) -> None:
        self._background.start(self._drop_blob(container, blob), name, last=True)

    async def _drop_blob(self, container: Container, blob: str) -> None:
        try:
            await container.delete(blob)
        except StorageError as error:
            logger.warning("blob_not_deleted", extra={"blob": blob, "error": str(error)})

    def _tell(self, event: Event) -> None:
        for stream in self._streams:
            stream._tell(event)

    def _inform(self, message: str) -> None:
        self._tell(Event("info", message, time.time()))

    def _warn(self, message: str) -> None:
        logger.warning("session_warning", extra={"session": self._name, "reason": message})
        self._tell(Event("warning", message, time.time()))

    @property
    def _trouble(self) -> ServiceError | None:
        """What makes waiting for an outcome pointless; None when nothing does."""
        return next(iter(self._troubles.values()), None)

    def _check_trouble(self, source: ProblemSource | None = None) -> None:
        trouble = self._trouble if source is None else self._troubles.get(source)
        if trouble is not None:
            raise trouble

    def _set_trouble(self, source: ProblemSource, error: ServiceError) -> None:
        """Whoever waits for what cannot come gets the error, at once and until it has gone."""
        self._troubles[source] = error
        self._warn(str(error))
        self._waiters.fail(error)
        self._change.beat()
        if source == "sending":
            self._accepting.fail(error)
            self._room.beat()

    def _clear_trouble(self, source: ProblemSource, told: str) -> None:
        if self._troubles.pop(source, None) is not None:
            self._inform(told)

    def _check_open(self) -> None:
        if self._supervisor is None:
            raise SessionClosed("it was not opened: use `async with` or `await`")
        if self.closed:
            raise SessionClosed(self._reason)

    def _refuse(self, why: str) -> None:
        """Refuse tasks from now on; `submit` raises `JobClosed` with this text."""
        self._submitter.refusal = why

    async def _close_because(self, reason: str | None) -> None:
        """Close the session; `SessionClosed` says the reason, if one is given."""
        self._reason = reason or self._reason
        await self.aclose()

    # ---- the supervisor

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        registration = OpenSession(
            pool_id=self.pool.id,
            job=self.job_name,
            name=self.name,
            counts=lambda: self.counts,
            refuse=self._refuse,
            close=self._close_because,
        )
        self.pool.runtime.sessions.add(registration)
        agents = self._background.start(self._agents.start(), "start agents")
        try:
            await self._acquire()
            await self._work(agents)
        except Exception as error:
            self._reason = str(error)
            raise
        finally:
            self._closing.set()
            self._end()
            with anyio.CancelScope(shield=True), anyio.move_on_after(self.close_timeout / 4):
                await self._finish()
            self.pool.runtime.sessions.discard(registration)
            await self._background.aclose()

    def _end(self) -> None:
        """No outcome comes any more: whoever still waits is told."""
        self._ended = True
        closed = SessionClosed(self._reason)
        self._waiters.fail(closed)
        self._accepting.fail(closed)
        self._change.beat()
        self._room.beat()
        for stream in self._streams:
            stream._change.beat()
        self._background.cancel()

    async def _acquire(self) -> None:
        try:
            async with task_group() as group:
                group.start_soon(self._prepare_bundle)
                group.start_soon(self.pool.job_store.ensure, self.job_name)
                group.start_soon(self._outbox.open)
                group.start_soon(self._presence.open)
                group.start_soon(self._inbox.open)
                group.start_soon(self._cancellations.open)
        except ServiceError:
            await self.pool.runtime.refresh()  # raises PoolNotFound when that is why
            raise
        self._holds = True

    async def _prepare_bundle(self) -> None:
        if self._files is None:
            await self.pool.runtime.refresh()  # another client may have repurposed it
            bundle = self.pool.runtime.manifest.bundle or (await upload([], self.pool.runtime.ctl)).hash
        else:
            bundle = (await upload(await collect(self._files), self.pool.runtime.ctl)).hash
        self._submitter.bundle = bundle

    async def _work(self, agents: asyncio.Task[None]) -> None:
        async with task_group() as services:
            for service in (
                self._outbox.run,
                self._inbox.run,
                self._inbox.settle,
                self._inbox.keep,
                self._presence.run,
                self._cancellations.run,
                DeadLetterHandler(self).run,
            ):
                services.start_soon(service)
            services.start_soon(self._agents.run, agents)
            self._ready()
            await self._closing.wait()
            with anyio.move_on_after(self.close_timeout / 2):
                await self._outbox.drain()
                await self._until_owed_can_be_told()
                if len(self._tracker):
                    await asyncio.wait({agents})  # whoever leaves at once still wants his tasks run
            services.cancel_scope.cancel()
        if left := self._tracker.sending:
            raise BrokerError(f"{self._name} closed before the broker had accepted {left} of its tasks")

    async def _until_owed_can_be_told(self) -> None:
        """Only a ledger that was read can be saved, and by it a later holder waits for what was sent."""
        while self._ledger is not None and not self._ledger.loaded and self._outbox.passed:
            await self._change.wait()

    async def _finish(self) -> None:
        """Settle what was read, do what was begun, let go of the broker."""
        await self._inbox.flush_settlements()
        if self._ledger is not None:
            self._ledger.close()
        await self._background.finish()
        async with task_group() as group:
            group.start_soon(self._outbox.aclose)
            group.start_soon(self._inbox.aclose)
            if self._holds:
                group.start_soon(self._presence.release)
                group.start_soon(self._cancellations.release)
        self._relief.close()
