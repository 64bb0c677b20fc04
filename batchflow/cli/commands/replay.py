"""`batchflow replay`: a task once more, here, in the foreground, under a debugger if asked."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchflow.cli import terminal
from batchflow.cli.command import Command, Invocation, asynchronous
from batchflow.cli.connecting import find_pool
from batchflow.cli.exits import CommandError, Exit
from batchflow.cli.planning import use_settings_of
from batchflow.cli.record import RunRecord, known_runs, latest
from batchflow.cli.shell_names import pool_names

if TYPE_CHECKING:
    from batchflow.cli.replaying.finding import FoundTask
    from batchflow.cli.replaying.preparing import PreparedTask
    from batchflow.config.project_file import Configuration
    from batchflow.pool import Pool

_LONGEST = 60
"""Characters of an error in the list."""


@click.command(cls=Command)
@click.argument("task", required=False)
@click.option(
    "--run", "run_name", metavar="NAME", shell_complete=known_runs, help="TASK is one of its inputs."
)
@click.option("--pool", metavar="NAME", shell_complete=pool_names, help="[default: the only one]")
@click.option("--job", metavar="NAME", default="", help="Only tasks of this job.")
@click.option("--session", metavar="NAME", default="", help="Only tasks of this session.")
@click.option("--pdb", is_flag=True, help="Stop at the task's first line, and where it fails.")
@click.option("--no-packages", is_flag=True, help="With the packages of this Python, not with the task's.")
@click.option(
    "--folder", type=click.Path(path_type=Path), metavar="DIR", help="Where its files go, to be kept there."
)
@asynchronous
async def replay(
    invocation: Invocation,
    task: str | None,
    run_name: str | None,
    pool: str | None,
    job: str,
    session: str,
    pdb: bool,
    no_packages: bool,
    folder: Path | None,
) -> int:
    """Run a TASK here once more, with the files, arguments, packages and variables that it had.

    TASK is the number of a run's input (the latest run by default), or the id or the label of a task that
    failed, in whatever session, or that the broker gave up on. Without TASK, those are listed.

    The task gets the same engine, and no limits. It executes its code on this machine, as you.
    """
    with ExitStack() as stack:
        if folder is None:
            place = (
                Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="batchflow-replay-"))) / "task"
            )
        else:
            place = folder.absolute()
            if place.exists():
                raise CommandError(f"--folder: {folder} is there already; name one that is not", Exit.USAGE)
        options = {"pdb": pdb, "json": invocation.as_json}
        prepared: PreparedTask | None
        record = _record_of(task, run_name, session, job)
        if record is not None:
            prepared = await _of_run(invocation, record, int(task or 0), place, not no_packages, options)
        else:
            prepared = await _of_pool(invocation, task, pool, (job, session), place, not no_packages, options)
        if prepared is None:
            return Exit.OK
        for note in prepared.notes:
            terminal.note(f"note: {note}")
        if folder is not None:
            terminal.note(f"its files are in {place / 'files'}")
        return _in_foreground(prepared)


def _record_of(task: str | None, run_name: str | None, session: str, job: str) -> RunRecord | None:
    """Return the run whose input is meant; None: a task of the pool is."""
    if run_name is None and (task is None or not task.isdecimal() or session or job):
        return None
    if task is None or not task.isdecimal():
        raise CommandError("--run needs the number of one of its inputs as TASK", Exit.USAGE)
    record = RunRecord.open(run_name or latest())
    if int(task) >= record.plan.count:
        what = f"run {record.plan.name!r} has the inputs 0 to {record.plan.count - 1}"
        raise CommandError(f"{what}; a task of another session: --session NAME", Exit.NOT_FOUND)
    return record


async def _of_run(
    invocation: Invocation,
    record: RunRecord,
    index: int,
    place: Path,
    packages: bool,
    options: dict[str, bool],
) -> PreparedTask:
    from batchflow.cli.replaying.finding import find_task, input_of
    from batchflow.cli.replaying.preparing import prepare

    plan = record.plan
    if plan.local:
        found = input_of(record, index, None, {})
        _announce(found)
        return await prepare(found, None, place, out=None, packages=packages, **options)
    use_settings_of(invocation, record)
    configuration = invocation.configuration()
    async with invocation.client(configuration) as client:
        opened = await find_pool(client, plan.pool, configuration)
        kept = await find_task(opened, str(index), plan.job, plan.name)
        found = kept or input_of(
            record, index, opened.runtime.manifest.bundle, _variables(configuration, plan.job)
        )
        _announce(found)
        runtime = opened.runtime
        return await prepare(found, runtime.ctl, place, out=runtime.out, packages=packages, **options)


def _variables(configuration: Configuration, job: str) -> dict[str, str]:
    of_job = configuration.job(job)
    return {**(of_job.env or {}), **(of_job.secrets or {})}


async def _of_pool(
    invocation: Invocation,
    task: str | None,
    pool: str | None,
    of: tuple[str, str],
    place: Path,
    packages: bool,
    options: dict[str, bool],
) -> PreparedTask | None:
    """Prepare a task that failed; without `task` list them. `of`: the job and the session, or nothing."""
    from batchflow.cli.replaying.finding import find_task
    from batchflow.cli.replaying.preparing import prepare

    configuration = invocation.configuration()
    async with invocation.client(configuration) as client:
        opened = await find_pool(client, pool, configuration)
        if task is None:
            await _list(invocation, opened, *of)
            return None
        found = await find_task(opened, task, *of)
        if found is None:
            what = f"pool {opened.id!r} keeps no failed task {task!r}"
            raise CommandError(f"{what}; those that it keeps: batchflow replay", Exit.NOT_FOUND)
        _announce(found)
        runtime = opened.runtime
        return await prepare(found, runtime.ctl, place, out=runtime.out, packages=packages, **options)


async def _list(invocation: Invocation, pool: Pool, job: str, session: str) -> None:
    from batchflow.cli.replaying.finding import failed_tasks

    kept = await failed_tasks(pool, job, session)
    if invocation.as_json:
        for each in kept:
            task = each.task
            terminal.write_json(
                {"id": task.uid, "task": task.task_id, "job": task.job, "session": task.client}
                | {"command": task.command, "node": each.node, "at": each.at, "error": each.error}
            )
        return
    if not kept:
        terminal.note(f"pool {pool.id!r} keeps no failed task")
        return
    rows = []
    for each in kept:
        when = time.strftime("%m-%d %H:%M:%S", time.localtime(each.at))
        first = each.error.partition("\n")[0][:_LONGEST]
        rows.append((each.task.uid, each.task.task_id, each.task.client, each.task.command, when, first))
    terminal.write_table(("ID", "TASK", "SESSION", "COMMAND", "FAILED", "ERROR"), rows)


def _announce(found: FoundTask) -> None:
    item = found.item
    terminal.note(f"task {item.task_id} of session {item.client}: {item.command}, attempt {item.attempt}")
    if found.error is not None:
        terminal.note(f"it failed: {found.error}")


def _in_foreground(prepared: PreparedTask) -> int:
    """Run the task in a process that has the terminal; return its exit code.

    Ctrl-C is the task's affair. What else asks this process to end is passed on to the task.
    """
    command = (sys.executable, "-P", "-m", "node_agent.replay", str(prepared.folder))
    # Nothing else runs on the loop: the client is closed, and the task has the terminal. So the loop's own
    # handlers would not be called.
    loop = asyncio.get_running_loop()
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, _: object) -> None:
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    loop.remove_signal_handler(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if loop.remove_signal_handler(number):  # not under nohup
            signal.signal(number, pass_on)
    process = subprocess.Popen(command, env=prepared.environment)
    for missed in early:
        process.send_signal(missed)
    code = process.wait()
    return code if code >= 0 else 128 - code
