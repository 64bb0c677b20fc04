"""A client's connection to a job: submits tasks and receives their results."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from dataclasses import asdict
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, Unpack, overload

from batchflow.diagnosis.facts import SessionFacts, WaitingTask
from batchflow.diagnosis.readiness import cannot_become_ready
from batchflow.diagnosis.session import explain_session
from batchflow.display.workflow import WorkflowGraph
from batchflow.errors import ConfigurationError, ServiceError, TaskNotFound
from batchflow.files import Files
from batchflow.functions.calls import as_command
from batchflow.model import UNSET, Counts, Explanation
from batchflow.pools.open_sessions import OpenSession
from batchflow.protocol import layout
from batchflow.protocol.values.arguments import as_arguments, command_line
from batchflow.results import Results
from batchflow.sessions.agents_watch import AgentSource
from batchflow.sessions.inspection import TaskInspector
from batchflow.sessions.lifecycle import SessionLifecycle
from batchflow.sessions.map_run import DEFAULT_WINDOW, MapRun
from batchflow.sessions.parts import SessionParts
from batchflow.sessions.records.context import SessionContext
from batchflow.sessions.records.stats import SessionStats
from batchflow.sessions.records.submission import Submission, repeatable
from batchflow.sessions.records.task_options import MapOptions, TaskOptions
from batchflow.streams import EventStream, MapResults, ResultStream, SessionResults
from batchflow.support.supervised import Supervised
from batchflow.task import Task, input_of

if TYPE_CHECKING:
    from batchflow.environments.requirements import Requirements
    from batchflow.pools.elastic.scaler import PoolScaler
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.protocol.documents import JobDocument
    from batchflow.sessions.options import SessionOptions
    from batchflow.sessions.records.tracker import Entry


T = TypeVar("T")
Function = Callable[..., T]
AsyncFunction = Callable[..., Coroutine[Any, Any, T]]
Inputs = Iterable[Any] | AsyncIterable[Any]


class SessionPool(Protocol):
    """The pool, as its sessions see it."""

    @property
    def runtime(self) -> PoolRuntime: ...

    @property
    def scaler(self) -> PoolScaler: ...

    async def start(self) -> None: ...

    def session(self, *, job: str, files: Files, requirements: Requirements) -> Session: ...

    async def explain(self) -> Explanation: ...


class Session(Supervised):
    """Made by `pool.session()`. Opened by `async with` or `await`, closed by leaving it or by `aclose`.

    All methods belong to the event loop that opened it: elsewhere they raise `WrongEventLoop`. Only `counts`,
    `stats`, `name` and `repr` may be used in any thread.
    """

    def __init__(
        self,
        pool: SessionPool,
        *,
        name: str | None,
        job: str,
        files: Files | None,
        options: SessionOptions,
        ensure_job: Callable[[str], Coroutine[Any, Any, JobDocument]],
    ) -> None:
        """`ensure_job`: makes the job of that name if there is none; raises `JobClosed`."""
        found_again = name is not None
        if options.journal is not None and not found_again:
            raise ConfigurationError("a journal needs a session with a name: only that is found again")
        name = f"c-{uuid.uuid4().hex[:12]}" if name is None else name
        super().__init__(f"session {job}/{name}")
        self._pool = pool
        self.name: str = layout.check_name("client name", name)
        self.job_name: str = layout.check_name("job name", job)
        self._files = files
        self._ensure_job = ensure_job
        self._context = context = SessionContext.create(
            pool.runtime,
            name=self.name,
            job=self.job_name,
            affinity=self._affinity,
            is_opened=lambda: self._supervisor is not None,
            is_closed=lambda: self.closed,
        )
        self.incarnation: str = context.incarnation
        """New with each opening: it tells the tasks of this session from those of an earlier holder's."""
        self.close_timeout: float = context.settings.close_timeout
        self._parts = SessionParts.create(
            context,
            found_again=found_again,
            options=options,
            input_of=lambda value: input_of(value, self._parts.outcomes),
            task_of=self._task,
            agent_source=AgentSource(
                start=pool.start,
                explain=pool.explain,
                hopeless=partial(cannot_become_ready, pool.runtime, 1),
            ),
            scaler=pool.scaler,
            open_session=pool.session,
        )
        self._lifecycle = SessionLifecycle(self._parts, self._name, lambda: self.close_timeout)

    @property
    def pool_id(self) -> str:
        """The id of the pool that the session's tasks run on."""
        return self._context.runtime.pool_id

    def __repr__(self) -> str:
        state = "closed" if self.closed else "not open" if self._supervisor is None else "open"
        return f"<Session {self.name!r} in job {self.job_name!r} of pool {self.pool_id!r}, {state}>"

    def _repr_html_(self) -> str:
        from batchflow.display.html import card, fact_table, task_counts

        facts = fact_table([("pool", self.pool_id), ("state", "closed" if self.closed else "open")])
        return card("Session", f"{self.job_name}/{self.name}", facts, task_counts(asdict(self.counts)))

    # ---- submitting

    @overload
    async def submit(
        self, command: AsyncFunction[T], *params: Any, args: Any = UNSET, **options: Unpack[TaskOptions]
    ) -> Task[T]: ...

    @overload
    async def submit(
        self, command: Function[T], *params: Any, args: Any = UNSET, **options: Unpack[TaskOptions]
    ) -> Task[T]: ...

    @overload
    async def submit(
        self, command: str, *params: Any, args: Any = UNSET, **options: Unpack[TaskOptions]
    ) -> Task[Any]: ...

    async def submit(
        self,
        command: str | Function[Any],
        *params: Any,
        args: Any = UNSET,
        **options: Unpack[TaskOptions],
    ) -> Task[Any]:
        """Put a task into the outbox; wait only when that is full, never for the reader of results.

        `command` is a function, or names a file of the bundle. For a file, one positional string is a command
        line, split as a shell would. Several positionals, or `args`, are the arguments as they are; keywords
        of a function come by `functools.partial`. `timeout`: seconds of running time.
        `memory_limit`: bytes. `tag`: any JSON, given back in the result.

        A task anywhere in the arguments is waited for, and its value takes its place; of `task.file(name)`,
        the path of that file. The tasks of `after` are waited for as well. When one fails, this one ends as
        `DependencyFailed` and never runs; with `on_failure="pass"` it runs, and gets the failed `Result`.
        `expires`: seconds from now, or a `timedelta`. What has not begun by then never does: `TaskExpired`.

        `requires`: some of {"slots": 2 (or "all"), "memory": bytes, "gpus": 1, "tags": ["ssd"]} of its node.
        What no node of the pool can run ends as `TaskRejected`. `priority`: "interactive", "normal" or
        "bulk", in place of the session's.

        Raises `ConfigurationError` for what can never be sent, `InvalidDependency`, `SessionClosed`,
        `JobClosed`, `StorageError` when large arguments cannot be stored, `BrokerError` when there is no
        room and the broker has been away for `session.patience` seconds. Cancelled, it has submitted no task.
        """
        called = as_command(command)
        given = command_line(params, args, split=isinstance(called, str))
        submission = Submission.of(called, given, **options)
        return self._task(await self._parts.submitter.enqueue(submission))

    @overload
    async def submit_many(
        self, command: AsyncFunction[T], inputs: Iterable[Any], **options: Unpack[TaskOptions]
    ) -> list[Task[T]]: ...

    @overload
    async def submit_many(
        self, command: Function[T], inputs: Iterable[Any], **options: Unpack[TaskOptions]
    ) -> list[Task[T]]: ...

    @overload
    async def submit_many(
        self, command: str, inputs: Iterable[Any], **options: Unpack[TaskOptions]
    ) -> list[Task[Any]]: ...

    async def submit_many(
        self, command: str | Function[Any], inputs: Iterable[Any], **options: Unpack[TaskOptions]
    ) -> list[Task[Any]]:
        """Submit a task for each input: a list or tuple is the arguments, else the input is the argument.

        All are encoded before the first is submitted. Raises `ArgumentNotSerializable`, which names the
        input and the place in it, and what `submit` raises.
        """
        called, options = as_command(command), repeatable(options)
        submissions = [Submission.of(called, as_arguments(value), **options) for value in inputs]
        self._parts.submitter.prepare(submissions)
        tasks: list[Task[Any]] = [
            self._task(await self._parts.submitter.enqueue(each)) for each in submissions
        ]
        self._context.tracker.end_of_burst = True
        return tasks

    @overload
    def map(
        self, command: AsyncFunction[T], inputs: Inputs, **options: Unpack[MapOptions]
    ) -> ResultStream[T]: ...

    @overload
    def map(self, command: Function[T], inputs: Inputs, **options: Unpack[MapOptions]) -> ResultStream[T]: ...

    @overload
    def map(self, command: str, inputs: Inputs, **options: Unpack[MapOptions]) -> ResultStream[Any]: ...

    def map(
        self,
        command: str | Function[Any],
        inputs: Inputs,
        *,
        ordered: bool = False,
        window: int | None = None,
        **options: Unpack[TaskOptions],
    ) -> ResultStream[Any]:
        """Run the command over the inputs and stream the results, as they come or in the inputs' order.

        Lazy: begins when it is read, and has at most `window` tasks under way or unread. `Result.index` is
        the place among the inputs. Leaving it early cancels what it had submitted. Raises
        `ConfigurationError` at once for options that can never be sent.
        """
        called, options = as_command(command), repeatable(options)
        Submission.of(called, [], **options)
        if window is not None and window < 1:
            raise ConfigurationError(f"map: window is {window}, at least 1 is needed")
        run = MapRun(
            self._context,
            self._parts.outcomes,
            self._parts.submitter,
            command=called,
            inputs=inputs,
            window=window or DEFAULT_WINDOW,
            options=options,
        )
        return MapResults(run, ordered, self._parts.outcomes, self._parts.cancellations)

    @overload
    async def run(
        self, command: AsyncFunction[T], *params: Any, args: Any = UNSET, **options: Unpack[TaskOptions]
    ) -> T: ...

    @overload
    async def run(
        self, command: Function[T], *params: Any, args: Any = UNSET, **options: Unpack[TaskOptions]
    ) -> T: ...

    @overload
    async def run(
        self, command: str, *params: Any, args: Any = UNSET, **options: Unpack[TaskOptions]
    ) -> Any: ...

    async def run(
        self,
        command: str | Function[Any],
        *params: Any,
        args: Any = UNSET,
        **options: Unpack[TaskOptions],
    ) -> Any:
        """Submit, await, return the value or raise the `TaskError`. Cancelled, it cancels the task.

        So it does when it raises a `ServiceError` (`NoAgents`, `BrokerError`), because the caller has no
        handle of the task.
        """
        called = as_command(command)
        submission = Submission.of(
            called, command_line(params, args, split=isinstance(called, str)), **options
        )
        entry = await self._parts.submitter.enqueue(submission)
        self._context.tracker.claim(entry)
        try:
            return await self._task(entry)
        except (asyncio.CancelledError, ServiceError):
            entry.abandon()
            self._parts.cancellations.give_up([entry])
            raise

    def task(self, task_id: str) -> Task[Any]:
        """Return the newest task of that label.

        Known are those without an outcome, those whose result is unread, and those with a handle that lives.
        Raises `TaskNotFound`.
        """
        if (entry := self._context.tracker.labelled(task_id)) is None:
            raise TaskNotFound(
                f"{self._name} knows no task {task_id!r}: a task whose result was read is forgotten with its "
                "last handle"
            )
        return self._task(entry)

    def _task(self, entry: Entry) -> Task[Any]:
        return Task(entry, self._parts.outcomes, self._parts.cancellations)

    # ---- reading

    def results(self, *, follow: bool = False) -> ResultStream:
        """Read each result that no call had claimed (by awaiting, `run`, `map`) when it is yielded, once.

        Ends when everything submitted so far has come; with `follow`, when the session ends.
        """
        return SessionResults(self._parts.outcomes, follow)

    def take(self, limit: int | None = None) -> Results:
        """Return the unclaimed results that have come since last asked, without waiting."""
        results = iter(self._parts.outcomes.next_unclaimed, None)
        return Results(itertools.islice(results, limit))

    def events(self) -> EventStream:
        """Read output lines, logs and progress of tasks, and warnings of the session, from now on."""
        return EventStream(self._context.notices, self._context.lifetime)

    def graph(self) -> WorkflowGraph:
        """Draw the tasks that wait or waited for others, and these, as they are now; the newest 1,000.

        May be called in any thread.
        """
        record = self._parts.submitter.dependents.record
        return WorkflowGraph(record.nodes(), record.forgotten)

    @property
    def counts(self) -> Counts:
        """How many tasks are where; `done` grows as outcomes arrive. May be read in any thread."""
        return self._context.tracker.counts

    @property
    def stats(self) -> SessionStats:
        """What it has asked of the broker so far, and how often for each task. May be read in any thread."""
        counts = self.counts
        return self._context.counter.stats(counts.submitted, counts.done)

    async def explain(self) -> Explanation:
        """Explain why results come, or do not."""
        pool, context = await self._pool.explain(), self._context
        unmet, unfitting = await self._parts.submitter.needs.explain()
        facts = SessionFacts(
            job=self.job_name,
            name=self.name,
            counts=self.counts,
            waiting=[WaitingTask(entry.uid, entry.task_id, entry.command) for entry in context.tracker],
            bundle=self._parts.submitter.bundle,
            problem=context.problems.first,
            environment=self._parts.environment.progress,
            environment_failure=self._parts.environment.failure,
            unmet=unmet,
            unfitting=unfitting,
        )
        return await explain_session(pool, facts, context.runtime.ctl)

    def report(self, path: str | PathLike[str]) -> Path:
        """Write a page about the tasks that have ended: when and where they ran, and what limited them.

        The file is HTML that needs nothing else and executes nothing; what is there is replaced. It shows the
        last 20,000 tasks. Task ids, commands and the first lines of errors are in it, arguments and values
        are not. Returns the path. Raises OSError when it cannot be written. Works when the session is closed.
        """
        from batchflow.display.report.page import ReportFacts, page

        history = self._parts.outcomes.history
        facts = ReportFacts(
            title=f"Session {self.name}",
            place=f"pool {self.pool_id}, job {self.job_name}",
            counts=asdict(self.counts),
            ended=history.total,
            slots=self._context.policy.slots or None,
            made_at=time.time(),
        )
        target = Path(path)
        target.write_text(page(facts, history.runs()), encoding="utf-8")
        return target

    # ---- steering

    async def flush(self) -> None:
        """Return when the broker has accepted all tasks submitted so far, or they failed. Safe to cancel.

        It does not wait for tasks that wait for others: the session sends these later.
        In a session with a name the checkpoint is saved as well, and so are the tasks that wait for others: a
        later session of this name knows of all of them, and goes on. Raises `SessionClosed` when the session
        ended before, `StorageError`, `BrokerError` when the broker has been away for `session.patience`
        seconds: what was not accepted is sent when it is back, and what was not saved is saved then.
        """
        await self._parts.sender.until_sent()
        if (keeper := self._parts.submitter.dependents.keeper) is not None:
            await keeper.until_saved()
        await self._parts.receiver.until_saved()

    async def update_files(self, files: Files, *, requirements: Requirements | None = None) -> None:
        """Change the files of tasks submitted from now on; tasks submitted before keep theirs.

        `requirements`: their Python packages; None: those until now. Raises `ConfigurationError`, or
        `EnvironmentFailed` in the resolver's words; then both stay as they are. Safe to cancel.
        """
        self._context.lifetime.check_open()
        await self._parts.change(files, requirements)

    async def cancel_all(self) -> None:
        """Cancel every task that has no outcome."""
        await self._parts.cancellations.cancel(list(self._context.tracker))

    # ---- the supervisor

    def _registration(self) -> OpenSession:
        """Return what the client and the pool need of a session that is open."""
        return OpenSession(
            pool_id=self.pool_id,
            job=self.job_name,
            name=self.name,
            counts=lambda: self.counts,
            refuse=self._parts.submitter.refuse,
            close=self._close_because,
            tasks=TaskInspector(self._parts),
        )

    async def _close_because(self, reason: str | None) -> None:
        """Close the session; `SessionClosed` says the reason, if one is given."""
        lifetime = self._context.lifetime
        lifetime.reason = reason or lifetime.reason
        await self.aclose()

    async def _serve(self) -> None:
        await self._lifecycle.run(
            self._registration(), self._files, self._ensure_job, ready=self._ready, closing=self._closing
        )
