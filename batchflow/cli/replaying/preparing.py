"""Lays out on this machine what a task runs with: files, arguments, packages, variables."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchflow.cli.exits import CommandError, Exit
from batchflow.errors import BlobNotFound, ConfigurationError, ProtocolError
from batchflow.files import stored, write_files
from batchflow.files.collecting import file_digest
from batchflow.protocol import layout
from batchflow.protocol.environments import ARCHIVE, is_wheel, misfit_of
from batchflow.protocol.fields import FieldError
from batchflow.protocol.functions import PYTHON, python_of
from batchflow.protocol.passed import path_of, read_files, read_places
from batchflow.protocol.variables import TaskVariables
from batchflow.protocol.wire import Reference
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.cli.record import FileSpec
    from batchflow.cli.replaying.finding import FoundTask
    from batchflow.ports.storage import Container
    from batchflow.protocol.wire import TaskItem

FILES = "files"
"""The folder that the task finds its files in."""


@frozen
class PreparedTask:
    """A task whose files lie in a folder."""

    folder: Path
    environment: dict[str, str]
    """The environment variables of its process: those of this one, and the task's."""
    notes: tuple[str, ...]
    """What could not be had."""


async def prepare(
    found: FoundTask,
    ctl: Container | None,
    folder: Path,
    *,
    out: Container | None = None,
    packages: bool = True,
    **options: Any,
) -> PreparedTask:
    """Lay out a task in an empty folder. `packages`: with those that it requires; `options`: for its runner.

    `ctl`, `out`: the pool's containers; None: the task needs nothing of them. Raises `CommandError` for what
    a task cannot run without, `StorageError`, `ProtocolError`.
    """
    item, notes = await _located(found.item, ctl), list(found.notes)
    files = folder / FILES
    files.mkdir(parents=True)
    if found.files is not None:
        _copy(found.files, files)
    elif ctl is not None:
        await _bundle(ctl, item.bundle, files)
    document: dict[str, Any] = {
        "command": item.command,
        "task_id": item.task_id,
        "job": item.job,
        "client": item.client,
        "attempt": item.attempt,
        "function": {"keywords": item.keywords, "pickle": None} if item.function else None,
        "environment": None,
        **options,
    }
    if item.pickle is not None and ctl is not None:
        document["function"]["pickle"] = await _function(ctl, item.pickle, folder)
    if item.environment is not None and ctl is not None:
        if packages:
            document["environment"] = await _environment(ctl, item.environment, folder)
        else:
            notes.append("the packages of this Python are used, not those that the task required")
    variables = dict(found.variables)
    if item.variables is not None and ctl is not None:
        try:
            variables |= TaskVariables.decode((await ctl.get(item.variables)).data).all
        except BlobNotFound:
            notes.append("its environment variables are gone, because its session has closed: set them here")
    if item.files is not None and ctl is not None and out is not None:
        await _files_of_tasks(item, ctl, out, files)
    (folder / "arguments").write_bytes(await _arguments(item, ctl))
    (folder / "task.json").write_text(json.dumps(document), encoding="utf-8")
    return PreparedTask(folder, {**os.environ, **variables}, tuple(notes))


def _copy(specs: list[FileSpec], folder: Path) -> None:
    for spec in specs:
        try:
            write_files([spec] if isinstance(spec, str) else spec, folder)
        except (ConfigurationError, OSError) as error:
            raise CommandError(f"the run's files cannot be had: {error}", Exit.NOT_FOUND) from error


async def _bundle(ctl: Container, bundle_hash: str, folder: Path) -> dict[str, str]:
    """Download the files of a bundle, checked against their hashes; return these by name."""
    try:
        bundle = await stored(bundle_hash, ctl)
    except BlobNotFound as error:
        raise CommandError(f"its files are in the pool no longer: {error}", Exit.NOT_FOUND) from error
    for file in bundle.files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        await ctl.download(file.blob, path)
        if file_digest(path)[0] != file.sha256:
            raise ProtocolError(f"the content of {file.name!r} is not what its hash says")
        with path.open("rb") as content:
            executable = file.executable or content.read(2) == b"#!"
        path.chmod(0o755 if executable else 0o644)
    return {file.name: file.sha256 for file in bundle.files}


async def _function(ctl: Container, bundle_hash: str, folder: Path) -> str:
    """Download a function by value; return its file."""
    place = folder / "function"
    names = await _bundle(ctl, bundle_hash, place)
    pythons = {python_of(name): name for name in names}
    if PYTHON not in pythons:
        others = ", ".join(sorted(python for python in pythons if python))
        what = f"its function travels as byte code of Python {others}, this is Python {PYTHON}"
        raise CommandError(f"{what}: run this command with Python {others}", Exit.USAGE)
    return str(place / pythons[PYTHON])


async def _environment(ctl: Container, bundle_hash: str, folder: Path) -> tuple[str, dict[str, str]]:
    """Download the packages; return the folder of their files, and the hashes of these by their names."""
    place = folder / "environment"
    hashes = await _bundle(ctl, bundle_hash, place)
    if misfit_of(hashes, PYTHON, os.uname().machine) is not None:
        built = next((name for name in hashes if name.startswith("target-")), "target-?").removeprefix(
            "target-"
        )
        here = f"{PYTHON} on {os.uname().machine}"
        what = f"its packages are built for Python {built.replace('-', ' on ', 1)}, this is Python {here}"
        raise CommandError(f"{what}: use that Python, or this one's packages by --no-packages", Exit.USAGE)
    if ARCHIVE not in hashes and not any(map(is_wheel, hashes)):
        raise ProtocolError(f"the bundle of its packages has no {ARCHIVE}, and no wheels")
    return str(place), hashes


async def _located(item: TaskItem, ctl: Container | None) -> TaskItem:
    """Return a task that says itself where the values and files lie that it took."""
    blob = item.places
    if blob is None or ctl is None:
        return item
    if not blob.startswith(layout.ARGUMENTS):
        raise ProtocolError(f"{blob[:80]!r} is no blob of a task's inputs")
    try:
        inputs, files = read_places((await ctl.get(blob)).data)
    except FieldError as error:
        raise ProtocolError(f"what it took cannot be read: {error}") from error
    except BlobNotFound as error:
        raise CommandError(f"the list of what it took is gone: {error}", Exit.NOT_FOUND) from error
    return replace(item, inputs=inputs or None, files=files or None, places=None)


async def _files_of_tasks(item: TaskItem, ctl: Container, out: Container, folder: Path) -> None:
    """Download the files that it took from other tasks, to where it found them."""
    try:
        places = read_files(item.files)
    except FieldError as error:
        raise ProtocolError(f"which files of other tasks it took cannot be read: {error}") from error
    for number, place in enumerate(places):
        container, prefix = (ctl, layout.ARGUMENTS) if place.signature is None else (out, layout.OUTPUTS)
        if not place.blob.startswith(prefix):
            raise ProtocolError(f"{place.blob[:80]!r} is no file of a task")
        path = folder / path_of(number, place.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            await container.download(place.blob, path)
        except BlobNotFound as error:
            raise CommandError(
                f"file {place.name!r} of another task is in the pool no longer: {error}", Exit.NOT_FOUND
            ) from error


async def _arguments(item: TaskItem, ctl: Container | None) -> bytes:
    """Return the arguments: JSON, or a container."""
    params = item.params
    if item.inputs is not None:
        raise ProtocolError(
            f"it took {len(item.inputs)} values from where other tasks had left them, which are deleted when "
            "a task has ended: submit it again with their values, and replay that"
        )
    if not isinstance(params, Reference):
        return json.dumps(params).encode()
    if params.data is not None:
        return params.data
    if ctl is None or not params.blob.startswith(layout.ARGUMENTS):
        raise ProtocolError(f"{params.blob[:80]!r} is no blob of arguments")
    try:
        return (await ctl.get(params.blob)).data
    except BlobNotFound as error:
        kept = "they are kept for session.retention seconds"
        raise CommandError(
            f"its arguments are in the pool no longer ({kept}): {error}", Exit.NOT_FOUND
        ) from error
