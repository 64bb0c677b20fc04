"""A run opened in its pool: its record held, its files checked, its session open, its progress shown."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from batchflow.cli import terminal
from batchflow.cli.command import Invocation
from batchflow.cli.connecting import CloudWatch, find_pool
from batchflow.cli.exits import CommandError, Exit
from batchflow.cli.planning import check_files, use_settings_of
from batchflow.cli.progress import Progress, Silent
from batchflow.cli.record import RunRecord
from batchflow.cli.remedies import as_commands
from batchflow.cli.sources.tables import ResultTable
from batchflow.model import Budget
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.cli.running import Run, Write
    from batchflow.config.project_file import Configuration
    from batchflow.display.meter import Meter
    from batchflow.pool import Pool
    from batchflow.session import Session


async def read_results(invocation: Invocation, record: RunRecord, index: int, follow: bool) -> None:
    """Add new results of the run to the record; with `follow`, wait for the result of one input.

    Raises `CommandError` when another process reads.
    """
    use_settings_of(invocation, record)
    async with open_run(invocation, record, partial(Silent, quiet=True)) as work:
        if follow:
            await work.run.read_until(index)
        else:
            await work.run.read_what_is_there()


@frozen
class OpenRun:
    """A run in an open session, with its record, its meter and its progress."""

    pool: Pool
    record: RunRecord
    session: Session
    run: Run
    meter: Meter
    shown: Progress


@asynccontextmanager
async def open_run(
    invocation: Invocation,
    record: RunRecord,
    show: Callable[[Meter], Progress],
    *,
    path: str | None = None,
    output: str | None = None,
) -> AsyncIterator[OpenRun]:
    """Open a run. Its block ends as soon as the local cloud of `batchflow up` does: then `CommandError`."""
    from batchflow.cli.running import Run

    cloud = CloudWatch(invocation.configuration(), record)
    with record.held(), show(meter := record.meter()) as shown, cloud.told():
        async with open_pool(invocation, record) as pool:
            await check_files(pool, record, path)
            with open_output(record, output) as write:
                async with (
                    _session_of(pool, record, invocation.configuration()) as session,
                    cloud.watched(session),
                ):
                    record.begun = True
                    watching = asyncio.create_task(_show_events(session, shown, cloud), name="tell events")
                    try:
                        run = Run(session, record, meter, shown, write)
                        yield OpenRun(pool, record, session, run, meter, shown)
                    finally:
                        watching.cancel()


@contextlib.contextmanager
def open_output(record: RunRecord, path: str | None) -> Iterator[Write | None]:
    """Open the file for the results and write those that the record has; None stands for stdout.

    The results are lines of JSON or, in a file whose name ends in `.csv`, rows of a table.
    """
    if path is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(
                open(path, "w", encoding="utf-8", errors="backslashreplace", newline="")
            )
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error.strerror}", Exit.OUTPUT) from error
        stack.callback(terminal.close, file)
        encode: Callable[[dict[str, Any]], str] = terminal.encode
        if path.lower().endswith(".csv"):
            table = ResultTable(record.items())
            terminal.write(table.head, file)
            encode = table.row

        def write(document: dict[str, Any]) -> None:
            terminal.write(encode(document), file)

        for document in record.results():
            write(document)
        yield write


@contextlib.contextmanager
def reporting(work: OpenRun, path: str | None) -> Iterator[None]:
    """Write a report of what has ended when the block ends, also when it is interrupted.

    Raises `CommandError` at the beginning for a file that cannot be written.
    """
    if path is None:
        yield
        return
    with _writing(path), open(path, "a", encoding="utf-8"):
        pass
    try:
        yield
    finally:
        with _writing(path):
            work.session.report(path)
        work.shown.note(f"report: {path}")


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}", Exit.OUTPUT) from error


@asynccontextmanager
async def open_pool(invocation: Invocation, record: RunRecord) -> AsyncIterator[Pool]:
    plan = record.plan
    if plan.local:
        from batchflow.client import Client

        async with Client.local(nodes=plan.nodes) as client:
            yield await client.ensure_pool("run", files=plan.files or ())
        return
    configuration = invocation.configuration()
    async with invocation.client(configuration) as client:
        pool = await find_pool(client, plan.pool, configuration)
        if plan.pool != pool.id:
            plan.pool = pool.id
            record.save()
        yield pool


def _session_of(pool: Pool, record: RunRecord, configuration: Configuration) -> Session:
    """Make the run's session. The record has no variables, because secrets are to lie in no further file."""
    plan = record.plan
    budget = None if plan.budget is None else Budget.parse(plan.budget)
    job = configuration.job(plan.job)
    return pool.session(
        plan.name,
        job=plan.job,
        files=plan.files,
        requirements=plan.requirements,
        env=job.env,
        secrets=job.secrets,
        budget=budget,
    )


async def _show_events(session: Session, shown: Progress, cloud: CloudWatch) -> None:
    """Show warnings of the session, and the output of tasks where it was asked for."""
    async for event in session.events():
        if event.kind in ("stdout", "stderr"):
            shown.note(f"[{event.task_id}] {event.message}")
        elif event.kind == "progress" and event.task_id is None:
            shown.note(event.message)
        elif event.kind != "info":
            await cloud.settled()
            shown.note(f"{event.kind}: {as_commands(event.message, session.pool_id)}")
