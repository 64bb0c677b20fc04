"""`batchflow run`, `submit` and `results`: a command over many inputs, now or later."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import click

from batchflow.cli import terminal
from batchflow.cli.command import Command, Invocation, asynchronous
from batchflow.cli.exits import CommandError, Exit, StdoutClosed
from batchflow.cli.open_run import OpenRun, open_output, open_pool, open_run, reporting
from batchflow.cli.planning import RunOptions, failed_record, new_record, run_options, use_settings_of
from batchflow.cli.progress import progress
from batchflow.cli.record import RunRecord, exit_code, known_runs, latest, summary
from batchflow.errors import BatchflowError
from batchflow.support.progress_report import counted

_output = click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Lines of JSON; NAME.csv: a table. [default: stdout]",
)


@click.command(cls=Command)
@run_options
@click.option("--resume", metavar="NAME", shell_complete=known_runs, help="Go on with an earlier run.")
@_output
@click.option("--local", is_flag=True, help="On a local cloud of its own, which ends with the command.")
@click.option(
    "--nodes", type=click.IntRange(min=1), metavar="N", default=2, help="With --local. [default: 2]"
)
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write a page of HTML about what ran when and where, and what limited it.",
)
@asynchronous
async def run(
    invocation: Invocation,
    resume: str | None,
    quiet: bool,
    report: str | None,
    more: tuple[str, ...],
    **given: Any,
) -> int:
    """Run COMMAND, a file of the pool, over the inputs. Each result is a line of JSON, as it comes.

    An INPUT is read as JSON where it is JSON: a list is the arguments, anything else is the one argument.
    Without any, the command runs once, without arguments.

    Ctrl-C once leaves in order: what was sent goes on, and --resume NAME finds it. Twice leaves at once.
    """
    options = RunOptions(**{**given, "texts": (*more, *given["texts"])})
    if resume is not None:
        return await _resume(invocation, resume, options, quiet, report)
    if (record := _planned(invocation, options)) is None:
        return Exit.OK
    return await _carry_out(invocation, record, options.command, quiet, report)


@click.command(cls=Command)
@run_options
@asynchronous
async def submit(invocation: Invocation, more: tuple[str, ...], **given: Any) -> int:
    """Send COMMAND over the inputs, and leave: `batchflow results` reads what becomes of them.

    Returns when the pool has all of them, and prints the run's name.
    """
    options = RunOptions(**{**given, "texts": (*more, *given["texts"])})
    if options.workflow is not None:
        raise click.UsageError("this command sends tasks that wait for others: batchflow run --workflow FILE")
    if (record := _planned(invocation, options)) is None:
        return Exit.OK
    quiet = partial(progress, quiet=True)
    with _remembered(record):
        async with open_run(invocation, record, quiet, path=options.command) as work:
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
@_output
@asynchronous
async def results(invocation: Invocation, name: str | None, follow: bool, output: str | None) -> int:
    """Print the results of the run NAME, the latest one by default, that have come until now.

    Those that were printed before come first. Exit code 1 when a task failed.
    """
    record = RunRecord.open(name or latest())
    if output is None:
        for document in record.results():
            terminal.write_json(document)
    if record.meter().complete or record.plan.local:  # no other than --resume makes more of a local one
        with open_output(record, output):
            pass
    else:
        use_settings_of(invocation, record)
        await _read_more(invocation, record, follow, output)
    terminal.note(summary(record))
    return exit_code(record.meter())


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
    use_settings_of(invocation, record)
    async with open_pool(invocation, record) as pool:
        document = Cancellation(everything=True, job_stays=True).encode()
        await pool.runtime.ctl.put(cancellation_blob(plan.job, plan.name), document)
    text = f"the tasks of run {name!r} are cancelled; see them: batchflow run --resume {name}"
    invocation.report(text, run=name, pool=pool.id, job=plan.job, state="cancelled")
    return Exit.OK


def _planned(invocation: Invocation, options: RunOptions) -> RunRecord | None:
    """Record the run that the options describe; None when nothing is left to run."""
    if options.failed_of is None:
        return new_record(invocation, options, invocation.configuration())
    record = failed_record(invocation, options)
    if record is None:
        terminal.note(f"no input of run {options.failed_of!r} failed or was cancelled")
    return record


async def _read_more(invocation: Invocation, record: RunRecord, follow: bool, output: str | None) -> None:
    with _remembered(record):
        shown = partial(progress, quiet=not follow)
        async with open_run(invocation, record, shown, output=output) as work:
            if follow:
                await work.run.complete()
            else:
                await work.run.read_what_is_there()


async def _resume(
    invocation: Invocation, name: str, options: RunOptions, quiet: bool, report: str | None
) -> int:
    files = (options.csv, options.json_lines, options.manifest, options.workflow)
    inputs = (options.texts, *files, options.failed_of)
    if options.command or any(inputs):
        raise click.UsageError("--resume goes on with the inputs that the run has; give no others")
    record = RunRecord.open(name)
    plan = record.plan
    plan.output = options.output or plan.output
    if (meter := record.meter()).complete:
        with open_output(record, plan.output):
            terminal.note(f"{summary(record)}\nall of them: batchflow results {name}")
        return exit_code(meter)
    if plan.local:
        plan.accepted = 0  # the cloud that had them has ended
    use_settings_of(invocation, record)
    return await _carry_out(invocation, record, None, quiet, report)


async def _carry_out(
    invocation: Invocation, record: RunRecord, path: str | None, quiet: bool, report: str | None
) -> int:
    with _remembered(record):
        shown, output = partial(progress, quiet=quiet), record.plan.output
        async with open_run(invocation, record, shown, path=path, output=output) as work:
            with reporting(work, report):
                return await _until_done(invocation, work)


@contextlib.contextmanager
def _remembered(record: RunRecord) -> Iterator[None]:
    """Forget a run that ends before it has begun; of another one say how to go on."""
    try:
        yield
    except BaseException as error:
        if not record.begun:
            record.forget()
        elif isinstance(error, asyncio.CancelledError | BatchflowError):
            terminal.note(_ways_on(record))
        raise


async def _until_done(invocation: Invocation, work: OpenRun) -> int:
    import anyio

    scope = anyio.CancelScope()
    name = work.record.plan.name
    invocation.interrupts.farewell = _ways_on(work.record)

    def interrupted() -> None:
        work.shown.note("interrupted: leaving in order; Ctrl-C again leaves at once")
        scope.cancel()

    try:
        with invocation.interrupts.answered_by(interrupted), scope:
            await work.run.complete()
            work.shown.note(summary(work.record))
            return exit_code(work.meter)
    except (StdoutClosed, CommandError):
        work.shown.note(f"{await _leave(work)}. All that has come: batchflow results {name}")
        if not work.meter.complete:
            work.shown.note(invocation.interrupts.farewell)
        raise
    if work.record.plan.local:
        await _drain(work)
    work.shown.note(f"{await _leave(work)}\n{_ways_on(work.record)}")
    return invocation.interrupts.exit_code


def _ways_on(record: RunRecord) -> str:
    """Return what can be done about a run that was left."""
    name = record.plan.name
    way = f"to go on with it: batchflow run --resume {name}"
    return way if record.plan.local else f"{way}\nto end its tasks: batchflow cancel {name}"


async def _drain(work: OpenRun) -> None:
    """Let the local cloud's nodes finish what they run, and write it."""
    reading = asyncio.create_task(work.run.read_what_comes(), name="read what comes")
    try:
        await work.pool.stop(progress=work.shown.note)
    finally:
        reading.cancel()
        await asyncio.wait([reading])


async def _leave(work: OpenRun) -> str:
    """Check that the pool has what was sent; return what to say of it, and of what goes on without us."""
    plan, meter = work.record.plan, work.meter
    has = f"{meter.done} of {plan.count} have a result"
    if plan.local:
        return f"{has}, the local cloud ends with this command"
    left = await work.run.leave()
    return f"{has}, {left} were sent and go on in the pool" if left else has
