"""`batchflow run`, `submit` and `results`: a command over many inputs, now or later."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import click

from batchflow.cli import terminal
from batchflow.cli.command import Command, Invocation, asynchronous
from batchflow.cli.connecting import find_pool
from batchflow.cli.exits import CommandError, Exit, StdoutClosed
from batchflow.cli.planning import Wish, check_files, new_record, wish_options
from batchflow.cli.progress import Progress, Silent, progress
from batchflow.cli.record import RunRecord, exit_code, known_runs, latest
from batchflow.cli.remedies import as_commands
from batchflow.errors import BatchflowError
from batchflow.support.frozen import frozen
from batchflow.support.progress_report import counted

if TYPE_CHECKING:
    from batchflow.cli.running import Run
    from batchflow.display.meter import Meter
    from batchflow.pool import Pool
    from batchflow.session import Session


@click.command(cls=Command)
@wish_options
@click.option("--resume", metavar="NAME", shell_complete=known_runs, help="Go on with an earlier run.")
@click.option("--output", "-o", type=click.Path(dir_okay=False), metavar="FILE", help="[default: stdout]")
@click.option("--local", is_flag=True, help="On a local cloud of its own, which ends with the command.")
@click.option(
    "--nodes", type=click.IntRange(min=1), metavar="N", default=2, help="With --local. [default: 2]"
)
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@asynchronous
async def run(
    invocation: Invocation, resume: str | None, quiet: bool, more: tuple[str, ...], **options: Any
) -> int:
    """Run COMMAND, a file of the pool, over the inputs. Each result is a line of JSON, as it comes.

    An INPUT is read as JSON where it is JSON: a list is the arguments, anything else is the one argument.
    Without any, the command runs once, without arguments.

    Ctrl-C once leaves in order: what was sent goes on, and --resume NAME finds it. Twice leaves at once.
    """
    wish = Wish(**{**options, "texts": (*more, *options["texts"])})
    if resume is not None:
        return await _resume(invocation, resume, wish, quiet)
    configuration = invocation.configuration()
    return await _carry_out(invocation, new_record(invocation, wish, configuration), wish.command, quiet)


@click.command(cls=Command)
@wish_options
@asynchronous
async def submit(invocation: Invocation, more: tuple[str, ...], **options: Any) -> int:
    """Send COMMAND over the inputs, and leave: `batchflow results` reads what becomes of them.

    Returns when the pool has all of them, and prints the run's name.
    """
    wish = Wish(**{**options, "texts": (*more, *options["texts"])})
    record = new_record(invocation, wish, invocation.configuration())
    quiet = partial(progress, quiet=True)
    with _remembered(record):
        async with _working(invocation, record, quiet, path=wish.command) as work:
            await work.run.send_all()
    plan = record.plan
    terminal.note(
        f"pool {plan.pool!r} has {counted(plan.count, 'task')}: batchflow results {plan.name} --follow"
    )
    if invocation.as_json:
        terminal.write_json({"run": plan.name, "pool": plan.pool, "job": plan.job, "tasks": plan.count})
    else:
        terminal.write(plan.name)
    return Exit.OK


@click.command(cls=Command)
@click.argument("name", required=False, shell_complete=known_runs)
@click.option("--follow", "-f", is_flag=True, help="Return when each input has its result.")
@asynchronous
async def results(invocation: Invocation, name: str | None, follow: bool) -> int:
    """Print the results of the run NAME, the latest one by default, that have come until now.

    Those that were printed before come first. Exit code 1 when a task failed.
    """
    record = RunRecord.open(name or latest())
    for document in record.results():
        terminal.write_json(document)
    meter = record.meter()
    if not meter.complete:
        _as_before(invocation, record)
        meter = await _read_more(invocation, record, follow)
    left = record.plan.count - meter.done
    terminal.note(f"{meter.outcome}, {left} to come" if left else meter.outcome)
    return exit_code(meter)


@click.command(cls=Command)
@click.argument("name", shell_complete=known_runs)
@asynchronous
async def cancel(invocation: Invocation, name: str) -> int:
    """End the tasks that the run NAME has in the pool.

    What has not started a second later never starts, what runs is killed. Each ends as cancelled, as whoever
    waits for the run sees, now or by --resume; inputs that were not sent are not touched.
    """
    from batchflow.protocol.documents import Cancellation
    from batchflow.protocol.layout import cancellation_blob

    record = RunRecord.open(name)
    plan = record.plan
    if plan.local:
        raise CommandError(f"run {name!r} has a local cloud of its own: Ctrl-C ends it there", Exit.USAGE)
    _as_before(invocation, record)
    async with _pool_of(invocation, record) as pool:
        document = Cancellation(everything=True).encode()
        await pool.runtime.ctl.put(cancellation_blob(plan.job, plan.name), document)
    told = f"the tasks of run {name!r} are cancelled; see them: batchflow run --resume {name}"
    invocation.told(told, run=name, pool=pool.id, job=plan.job, state="cancelled")
    return Exit.OK


async def _read_more(invocation: Invocation, record: RunRecord, follow: bool) -> Meter:
    if record.plan.local:
        return record.meter()  # its cloud has ended: only --resume makes more
    with _remembered(record):
        async with _working(invocation, record, partial(progress, quiet=not follow)) as work:
            if follow:
                await work.run.complete()
            else:
                await work.run.read_what_is_there()
            return work.meter


async def read_mail(invocation: Invocation, record: RunRecord, index: int, follow: bool) -> None:
    """Add to the record what has come for the run; with `follow`, until the input has its result.

    Raises `CommandError` when another process reads.
    """
    _as_before(invocation, record)
    async with _working(invocation, record, partial(Silent, quiet=True)) as work:
        if follow:
            await work.run.read_until(index)
        else:
            await work.run.read_what_is_there()


async def _resume(invocation: Invocation, name: str, wish: Wish, quiet: bool) -> int:
    if wish.command or wish.texts or wish.csv or wish.json_lines or wish.manifest:
        raise click.UsageError("--resume goes on with the inputs that the run has; give no others")
    record = RunRecord.open(name)
    plan = record.plan
    plan.output = wish.output or plan.output
    if (meter := record.meter()).complete:
        with _output(record, plan.output):
            terminal.note(f"{meter.outcome}; all of them: batchflow results {name}")
        return exit_code(meter)
    if plan.local:
        plan.accepted = 0  # the cloud that had them has ended
    _as_before(invocation, record)
    return await _carry_out(invocation, record, None, quiet)


def _as_before(invocation: Invocation, record: RunRecord) -> None:
    invocation.config = invocation.config or record.plan.config
    invocation.profile = invocation.profile or record.plan.profile


async def _carry_out(invocation: Invocation, record: RunRecord, path: str | None, quiet: bool) -> int:
    with _remembered(record):
        shown, output = partial(progress, quiet=quiet), record.plan.output
        async with _working(invocation, record, shown, path=path, output=output) as work:
            return await _until_done(invocation, work)


@frozen
class _Work:
    """A run in an open session, and what belongs to it."""

    pool: Pool
    record: RunRecord
    run: Run
    meter: Meter
    shown: Progress


@asynccontextmanager
async def _working(
    invocation: Invocation,
    record: RunRecord,
    show: Callable[[Meter], Progress],
    *,
    path: str | None = None,
    output: str | None = None,
) -> AsyncIterator[_Work]:
    from batchflow.cli.running import Run

    with record.held(), show(meter := record.meter()) as shown:
        async with _pool_of(invocation, record) as pool:
            await check_files(pool, record, path)
            with _output(record, output) as file:
                async with _session_of(pool, record) as session:
                    record.begun = True
                    watching = asyncio.create_task(_tell(session, shown), name="tell events")
                    try:
                        yield _Work(pool, record, Run(session, record, meter, shown, file), meter, shown)
                    finally:
                        watching.cancel()


@contextlib.contextmanager
def _remembered(record: RunRecord) -> Iterator[None]:
    """Forget a run that ends before it has begun; of another one say how to go on."""
    try:
        yield
    except BaseException as error:
        if not record.begun:
            record.forget()
        elif isinstance(error, asyncio.CancelledError | BatchflowError):
            terminal.note(f"to go on with it: batchflow run --resume {record.plan.name}")
        raise


async def _until_done(invocation: Invocation, work: _Work) -> int:
    import anyio

    scope = anyio.CancelScope()
    name = work.record.plan.name
    invocation.interrupts.farewell = f"to go on with it: batchflow run --resume {name}"

    def interrupted() -> None:
        work.shown.note("interrupted: leaving in order; Ctrl-C again leaves at once")
        scope.cancel()

    try:
        with invocation.interrupts.answered_by(interrupted), scope:
            await work.run.complete()
            work.shown.note(work.meter.outcome)
            return exit_code(work.meter)
    except (StdoutClosed, CommandError):
        work.shown.note(f"{await _leave(work)}. All that has come: batchflow results {name}")
        if not work.meter.complete:
            work.shown.note(invocation.interrupts.farewell)
        raise
    if work.record.plan.local:
        await _drain(work)
    work.shown.note(f"{await _leave(work)}. To go on with it: batchflow run --resume {name}")
    return invocation.interrupts.exit_code


async def _drain(work: _Work) -> None:
    """Let the local cloud's nodes finish what they run, and write it."""
    reading = asyncio.create_task(work.run.read_what_comes(), name="read what comes")
    try:
        await work.pool.stop(progress=work.shown.note)
    finally:
        reading.cancel()
        await asyncio.wait([reading])


async def _leave(work: _Work) -> str:
    """See that the pool has what was sent; what to say of it, and of what goes on without us."""
    plan, meter = work.record.plan, work.meter
    has = f"{meter.done} of {plan.count} have a result"
    if plan.local:
        return f"{has}, the local cloud ends with this command"
    left = await work.run.leave()
    return f"{has}, {left} were sent and go on in the pool" if left else has


@contextlib.contextmanager
def _output(record: RunRecord, path: str | None) -> Iterator[IO[str] | None]:
    """The file for the results, with those that the record has; None for stdout."""
    if path is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "w", encoding="utf-8", errors="backslashreplace"))
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error.strerror}", Exit.OUTPUT) from error
        stack.callback(terminal.close, file)
        for document in record.results():
            terminal.write(terminal.encode(document), file)
        yield file


@asynccontextmanager
async def _pool_of(invocation: Invocation, record: RunRecord) -> AsyncIterator[Pool]:
    plan = record.plan
    if plan.local:
        from batchflow.client import Client

        async with Client.local(nodes=plan.nodes) as client:
            yield await client.ensure_pool("run", files=plan.files or ())
        return
    configuration = invocation.configuration()
    async with invocation.client(configuration) as client:
        pool = await find_pool(client, plan.pool, configuration)
        plan.pool = pool.id
        yield pool


def _session_of(pool: Pool, record: RunRecord) -> Session:
    plan = record.plan
    return pool.session(plan.name, job=plan.job, files=plan.files)


async def _tell(session: Session, shown: Progress) -> None:
    """Warnings of the session, and what tasks print where that was asked for."""
    async for event in session.events():
        if event.kind in ("stdout", "stderr"):
            shown.note(f"[{event.task_id}] {event.message}")
        elif event.kind != "info":
            shown.note(f"{event.kind}: {as_commands(event.message, session.pool.id)}")
