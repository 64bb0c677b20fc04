"""Plans of runs: from the command line of `run` and `submit` to items, files and a pool."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchflow.cli import terminal
from batchflow.cli.local_imports import has_others, with_imports
from batchflow.cli.record import FileSpec, Plan, RunRecord, known_runs, named
from batchflow.cli.shell_names import job_names, pool_names
from batchflow.cli.sources.inputs import from_csv, from_json_lines, from_manifest, from_texts
from batchflow.cli.sources.tables import Item
from batchflow.cli.sources.workflows import from_workflow, part_of
from batchflow.config.loader import nearest
from batchflow.environments.requirements import named_requirements
from batchflow.errors import ConfigurationError
from batchflow.model import Budget
from batchflow.support.frozen import frozen
from batchflow.support.progress_report import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchflow.cli.command import Invocation
    from batchflow.config.project_file import Configuration
    from batchflow.pool import Pool
    from batchflow.protocol.bundle import Bundle


@frozen
class RunOptions:
    """The options of `run` and `submit`."""

    command: str | None
    texts: tuple[str, ...]
    csv: str | None = None
    json_lines: str | None = None
    manifest: str | None = None
    workflow: str | None = None
    failed_of: str | None = None
    header: bool = True
    separator: str | None = None
    as_text: bool = False
    pool: str | None = None
    job: str | None = None
    session: str | None = None
    files: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    local: bool = False
    nodes: int = 2
    output: str | None = None
    timeout: float | None = None
    retries: int | None = None
    memory_limit: int | None = None
    stream_output: bool = False
    budget: str | None = None
    expires: float | None = None


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that `run` and `submit` share."""
    path = click.Path(dir_okay=False, allow_dash=True)
    options = [
        click.argument("command", required=False),
        click.argument("texts", nargs=-1, metavar="[INPUT]..."),
        click.option("--input", "more", multiple=True, metavar="INPUT", help="An input; others may follow."),
        click.option("--csv", type=path, metavar="FILE", help="A row is an input; - is stdin."),
        click.option("--no-header", "header", flag_value=False, default=True, help="The CSV file has none."),
        click.option(
            "--delimiter",
            "separator",
            metavar="CHARACTER",
            callback=_separator,
            help="Between the columns of --csv; tab is one. [default: as the file has it]",
        ),
        click.option(
            "--jsonl", "json_lines", type=path, metavar="FILE", help="A line is an input; - is stdin."
        ),
        click.option("--manifest", type=path, metavar="FILE", help="A task.json of azure_realtime_batch."),
        click.option(
            "--workflow", type=path, metavar="FILE", help="Tasks that wait for others: TOML or JSON lines."
        ),
        click.option(
            "--failed-of",
            metavar="NAME",
            shell_complete=known_runs,
            help="Inputs of an earlier run that failed or were cancelled, once more.",
        ),
        click.option("--text", "as_text", is_flag=True, help="Inputs are text, also where they are JSON."),
        click.option("--pool", metavar="NAME", shell_complete=pool_names, help="[default: the only one]"),
        click.option("--job", metavar="NAME", shell_complete=job_names, help="[default: default]"),
        click.option("--session", metavar="NAME", help="The run's name. [default: a new one]"),
        click.option("--file", "files", multiple=True, metavar="PATH", help="What tasks run with; repeat."),
        click.option(
            "--requirements",
            multiple=True,
            metavar="REQUIREMENT",
            help='Python package of its tasks, repeat; or a file of them; or "current".',
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            help="Seconds for a task.",
        ),
        click.option(
            "--retries", type=click.IntRange(min=0), metavar="N", help="Further attempts of one that fails."
        ),
        click.option(
            "--memory", "memory_limit", type=click.IntRange(min=1), metavar="BYTES", help="Bytes for a task."
        ),
        click.option(
            "--budget",
            metavar="BUDGET",
            help='What its tasks may cost: node-hours (12) or money ("20 EUR").',
        ),
        click.option(
            "--expires",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            help="Seconds after which a task does not begin any more.",
        ),
        click.option("--stream", "stream_output", is_flag=True, help="Show what tasks print as they do."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _separator(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    value = {"tab": "\t", "\\t": "\t"}.get(value or "", value)
    if value is not None and (len(value) != 1 or value in '"\r\n'):
        raise click.BadParameter("one character, or tab, is needed, and it is no quote", context, parameter)
    return value


def use_settings_of(invocation: Invocation, record: RunRecord) -> None:
    """Use the configuration file and the profile that the run was begun with, unless others are named."""
    invocation.config = invocation.config or record.plan.config
    invocation.profile = invocation.profile or record.plan.profile


def failed_record(invocation: Invocation, options: RunOptions) -> RunRecord | None:
    """Record a new run of the inputs that failed or were cancelled in an earlier one; None: there are none.

    What the options leave open is as in the earlier run. Raises `CommandError` when there is no such run.
    """
    sources: list[Any] = [options.command, options.texts, options.csv, options.json_lines, options.manifest]
    sources.append(options.workflow)
    if any(sources):
        raise click.UsageError("--failed-of takes command and inputs of that run; give no others")
    assert options.failed_of is not None
    earlier = RunRecord.open(options.failed_of)
    use_settings_of(invocation, earlier)
    items, before = earlier.items(), earlier.plan
    failed = sorted(each["index"] for each in earlier.results() if each["status"] != "succeeded")
    if left := before.count - earlier.meter().done:
        terminal.note(f"{left} inputs of run {before.name!r} have no result yet: --resume {before.name}")
    if not failed:
        return None
    given = {
        name: value
        for name in ("pool", "job", "timeout", "retries", "memory_limit", "expires")
        if (value := getattr(options, name)) is not None
    }
    plan = replace(
        before,
        **given,
        name=_name(options),
        count=len(failed),
        local=before.local or options.local,
        files=[_absolute(each) for each in options.files] or before.files,
        requirements=named_requirements(options.requirements) or before.requirements,
        output=_output(options),
        stream_output=options.stream_output,
        started_at=time.time(),
        accepted=0,
    )
    terminal.note(f"{counted(len(failed), 'input')} of {before.count} of run {before.name!r}, once more")
    values = {each["index"]: each.get("value") for each in earlier.results()}
    return RunRecord.create(plan, part_of(items, failed, values))


def _name(options: RunOptions) -> str:
    return options.session or time.strftime(f"run-%Y%m%d-%H%M%S-{uuid.uuid4().hex[:4]}")


def _output(options: RunOptions) -> str | None:
    return None if options.output in (None, "-") else str(Path(options.output).absolute())


def new_record(invocation: Invocation, options: RunOptions, configuration: Configuration) -> RunRecord:
    """Record a new run.

    Raises `ConfigurationError` for bad options, `CommandError` for a name that is taken.
    """
    from batchflow.protocol.layout import DEFAULT_JOB, check_name

    job = configuration.job(options.job or DEFAULT_JOB)
    options = replace(options, command=options.command or job.command, files=options.files or job.files)
    items, files = _items(options)
    if not items:
        raise ConfigurationError("there are no inputs")
    name = _name(options)
    check_name("job name", job.name)
    plan = Plan(
        name,
        len(items),
        options.pool or job.pool,
        job.name,
        local=options.local,
        nodes=options.nodes,
        config=None if invocation.config is None else str(Path(invocation.config).absolute()),
        profile=invocation.profile,
        files=[_absolute(each) for each in files] or None,
        requirements=named_requirements(options.requirements) or _listed(job.requirements),
        output=_output(options),
        timeout=options.timeout if options.timeout is not None else job.timeout,
        retries=options.retries if options.retries is not None else job.retries,
        memory_limit=options.memory_limit if options.memory_limit is not None else job.memory_limit,
        stream_output=options.stream_output,
        budget=_budget(options.budget),
        expires=options.expires if options.expires is not None else job.expires,
    )
    return RunRecord.create(plan, items)


def _listed(requirements: str | Sequence[str] | None) -> str | list[str] | None:
    return requirements if requirements is None or isinstance(requirements, str) else list(requirements)


def _budget(text: str | None) -> str | None:
    """Return a budget as it was given. Raises `ConfigurationError` when it is none."""
    if text is not None:
        Budget.parse(text)
    return text


def _absolute(spec: FileSpec) -> FileSpec:
    return str(Path(spec).absolute()) if isinstance(spec, str) else spec


def _items(options: RunOptions) -> tuple[list[Item], list[FileSpec]]:
    """Return the items, and the files that they need beside those of the pool."""
    sources = [bool(options.texts), options.csv, options.json_lines, options.manifest, options.workflow]
    if sum(map(bool, sources)) > 1:
        raise click.UsageError(
            "inputs come from the command line, --csv, --jsonl, --manifest or --workflow: from one of them"
        )
    if options.workflow is not None:
        return _workflow_items(options, options.workflow)
    if options.manifest is not None:
        if options.command is not None:
            raise click.UsageError(f"a manifest names its commands itself; {options.command!r} is too much")
        manifest = from_manifest(options.manifest)
        return manifest.items, list(options.files) or [str(manifest.folder)]
    if options.command is None:
        raise click.UsageError("say which COMMAND to run, or --manifest FILE")
    return _with_files(options, options.command)


def _workflow_items(options: RunOptions, path: str) -> tuple[list[Item], list[FileSpec]]:
    if options.command is not None:
        raise click.UsageError(f"a workflow names its commands itself; {options.command!r} is too much")
    workflow = from_workflow(path)
    files: list[FileSpec] = [*(options.files or workflow.files)]
    if options.local and not files:
        files = [str(Path(path).parent)]
    return workflow.items, files


def _with_files(options: RunOptions, path: str) -> tuple[list[Item], list[FileSpec]]:
    files: list[FileSpec] = list(options.files)
    local = Path(path)
    command = local.name if local.is_file() and not files else str(local)
    if options.local and not files:
        if not local.is_file():
            raise ConfigurationError(
                f"{path}: no such file; with --local name the task's file, or say --file"
            )
        files = [_taken_along(local)]
    if options.csv is not None:
        rows = from_csv(
            command, options.csv, options.as_text, options.header, options.separator, terminal.note
        )
        return rows, files
    if options.json_lines is not None:
        return from_json_lines(command, options.json_lines), files
    return from_texts(command, options.texts or ("[]",), options.as_text), files


def _taken_along(task: Path) -> dict[str, str]:
    """Return the task's file and what it imports from its folder; say that the rest stays."""
    taken = with_imports(task)
    if has_others(task, taken):
        names = ", ".join(taken)
        terminal.note(f"files of this run: {names}. For all of the folder: --file {task.parent}/")
    return taken


async def check_files(pool: Pool, record: RunRecord, path: str | None) -> None:
    """Check that the commands are among the files that the tasks run with.

    A command that the pool does not have and that is a file here comes along by itself. Raises
    `ConfigurationError` before anything is sent.
    """
    commands = sorted({item.command for item in record.items()})
    if record.plan.files is not None:
        from batchflow.files import collect

        names = [source.file.name for source in await collect(record.plan.files)]
    else:
        bundle = await _bundle_of(pool)
        names = [] if bundle is None else [file.name for file in bundle.files]
        if path is not None and not {*commands} <= {*names} and Path(path).is_file():
            terminal.note(f"pool {pool.id!r} has no file {commands[0]}: {path} goes along")
            record.plan.files = [_taken_along(Path(path))]
            record.save()
            return
    for command in commands:
        if command not in names:
            where = f"pool {pool.id!r}" if record.plan.files is None else ", ".join(named(record.plan.files))
            hint = nearest(command, names) if names else "; it has no files at all"
            raise ConfigurationError(f"{where} has no file {command!r}{hint}")


async def _bundle_of(pool: Pool) -> Bundle | None:
    from batchflow.errors import BlobNotFound
    from batchflow.protocol.bundle import Bundle, bundle_blob

    wanted = pool.runtime.manifest.bundle
    if wanted is None:
        return None
    try:
        return Bundle.read((await pool.runtime.ctl.get(bundle_blob(wanted))).data, wanted)
    except BlobNotFound:
        return None
