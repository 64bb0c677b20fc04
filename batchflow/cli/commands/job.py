"""`batchflow job`: named groups of tasks in a pool."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from batchflow.cli import terminal
from batchflow.cli.command import Group, Invocation, asynchronous
from batchflow.cli.confirming import confirm
from batchflow.cli.connecting import find_pool
from batchflow.cli.exits import Exit
from batchflow.cli.shell_names import job_names, pool_names
from batchflow.environments.requirements import named_requirements
from batchflow.errors import ConfigurationError, JobExists
from batchflow.support.progress_report import counted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from batchflow.job import Job
    from batchflow.pool import Pool


@click.group(cls=Group)
def job() -> None:
    """Make, show, close and remove jobs."""


_name = click.argument("name", shell_complete=job_names)
_pool = click.option("--pool", metavar="NAME", shell_complete=pool_names, help="[default: the only one]")


@asynccontextmanager
async def _pool_of(invocation: Invocation, name: str | None, job_name: str = "") -> AsyncIterator[Pool]:
    """Find the pool of that name, that of the job as the file describes it, or the only one."""
    configuration = invocation.configuration()
    async with invocation.client(configuration) as client:
        yield await find_pool(client, name or configuration.job(job_name).pool, configuration)


def _document(found: Job) -> dict[str, Any]:
    made = datetime.fromtimestamp(found.created_at, UTC).isoformat(timespec="seconds")
    return {"job": found.name, "pool": found.pool_id, "state": found.state, "created_at": made}


@job.command()
@_name
@_pool
@click.option(
    "--requirements",
    multiple=True,
    metavar="REQUIREMENT",
    help='Python package of its tasks, repeat; or a file of them; or "current".',
)
@asynchronous
async def create(invocation: Invocation, name: str, pool: str | None, requirements: tuple[str, ...]) -> int:
    """Make the job NAME. A run does it by itself.

    A file of requirements is locked now, so that others need not have it.
    """
    packages = named_requirements(requirements)
    async with _pool_of(invocation, pool, name) as found:
        made = await found.create_job(name, requirements=packages)
    invocation.report(f"job {name!r} is made in pool {found.id!r}", **_document(made))
    return Exit.OK


@job.command()
@click.argument("name", required=False, shell_complete=job_names)
@asynchronous
async def ensure(invocation: Invocation, name: str | None) -> int:
    """Make the job NAME that the configuration file describes, in its pool, if it is not there.

    Without NAME: every job that the file describes. What else the file says of a job, its command, files and
    limits, counts for each run that begins after it was changed.
    """
    configuration = invocation.configuration()
    names = list(configuration.jobs) if name is None else [name]
    if not names:
        raise ConfigurationError("the configuration describes no jobs ([jobs.NAME]), and no NAME is given")
    async with invocation.client(configuration) as client:
        for each in names:
            found = await find_pool(client, configuration.job(each).pool, configuration)
            await _ensure(invocation, found, each)
    return Exit.OK


async def _ensure(invocation: Invocation, pool: Pool, name: str) -> None:
    try:
        made, state = await pool.create_job(name), "is made"
    except JobExists:
        made, state = await pool.job(name), "is there"
    invocation.report(f"job {name!r} {state} in pool {pool.id!r}", **_document(made))


@job.command(name="list")
@_pool
@asynchronous
async def list_(invocation: Invocation, pool: str | None) -> int:
    """List the jobs of a pool, closed ones too, with how many of their tasks wait, run and are done."""
    from batchflow.pools.jobs import PoolJobs

    async with _pool_of(invocation, pool) as found:
        beats, jobs = await found.heartbeats(), PoolJobs(found.runtime)
        rows = [
            {**_document(each), "counts": asdict(await jobs.counts(each.name, beats))}
            async for each in found.jobs()
        ]
    if invocation.as_json:
        terminal.write_json(rows)
    elif rows:
        cells = [(row["job"], row["state"], *row["counts"].values(), row["created_at"]) for row in rows]
        heads = ("JOB", "STATE", *(name.upper() for name in rows[0]["counts"]), "CREATED")
        terminal.write_table(heads, cells)
    else:
        terminal.note(f"pool {found.id!r} has no jobs")
    return Exit.OK


@job.command()
@_name
@_pool
@asynchronous
async def show(invocation: Invocation, name: str, pool: str | None) -> int:
    """Show the job NAME, its open sessions, and how many of its tasks wait, run and are done.

    Tasks of sessions that were closed count for 14 days.
    """
    async with _pool_of(invocation, pool, name) as found:
        shown = await found.job(name)
        counts = await shown.counts()
        row = {**_document(shown), "counts": asdict(counts)}
        prefix = f"sessions/{name}/"
        blobs = [info.name async for info in found.runtime.ctl.list(prefix)]
        sessions = [name.removeprefix(prefix).removesuffix(".json") for name in blobs]
    if invocation.as_json:
        terminal.write_json({**row, "sessions": sessions})
        return Exit.OK
    terminal.write(f"job {name} of pool {row['pool']}: {row['state']}, made at {row['created_at']}")
    states = ", ".join(f"{number} {state}" for state, number in row["counts"].items() if state != "sessions")
    terminal.write(f"{counted(counts.sessions, 'open session')}; tasks: {states}")
    for session in sessions:
        terminal.write(f"session {session}")
    return Exit.OK


@job.command()
@_name
@_pool
@asynchronous
async def close(invocation: Invocation, name: str, pool: str | None) -> int:
    """Let the job NAME take no new tasks. What was sent goes on."""
    async with _pool_of(invocation, pool, name) as found:
        await (await found.job(name)).close()
        closed = await found.job(name)
    invocation.report(f"job {name!r} takes no new tasks; what was sent goes on", **_document(closed))
    return Exit.OK


@job.command()
@click.argument("names", nargs=-1, shell_complete=job_names)
@click.option("--all", "everything", is_flag=True, help="Every job of the pool.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_pool
@asynchronous
async def delete(
    invocation: Invocation, names: tuple[str, ...], everything: bool, yes: bool, pool: str | None
) -> int:
    """Cancel the tasks of jobs, drop their mail and their files."""
    if everything == bool(names):
        raise click.UsageError("name the jobs, or say --all")
    async with _pool_of(invocation, pool) as found:
        if everything:
            names = tuple([each.name async for each in found.jobs()])
            if names and not yes:
                confirm(f"{', '.join(names)} of pool {found.id}")
        else:
            for name in names:
                await found.job(name)
        for name in names:
            await found.delete_job(name)
            invocation.report(f"job {name!r} is deleted", job=name, pool=found.id, state="deleted")
    return Exit.OK
