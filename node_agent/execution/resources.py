"""What tasks need from Blob Storage, and what they leave there.

Blob Storage in trouble is tried again for about half a minute. What the node does not reach then is no task's
outcome: `StorageError` says that the node cannot run the task.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
import anyio.to_thread
import orjson

from batchflow.errors import BlobConflict, BlobNotFound, ConfigurationError, ProtocolError, StorageError
from batchflow.model import Status
from batchflow.protocol import layout, wire
from batchflow.protocol.functions import PYTHON, python_of
from batchflow.protocol.values.encoding import container_size, is_container
from batchflow.protocol.variables import TaskVariables, task_variables
from batchflow.support.frozen import frozen
from node_agent.bundles.environments import NO_ROOM
from node_agent.bundles.task_files import FileCache
from node_agent.bundles.task_inputs import TaskInputs, Unfit, patiently
from node_agent.bundles.values import ValueCache
from node_agent.bundles.variables import VariablesCache
from node_agent.execution.outcomes import Outcome, too_large
from node_agent.system import file_stamps, thread_limits

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from batchflow.ports.storage import Container
    from batchflow.protocol.bundle import Bundle, BundleFile

logger = logging.getLogger(__name__)

_TOKEN: Final = 8
"""Random bytes in the name of an execution."""
UPLOADS: Final = 4
"""Files of a task that are uploaded at once."""


class Bundles(Protocol):
    """What a slot needs of the cache."""

    def use(self, bundle_hash: str) -> AbstractAsyncContextManager[tuple[Bundle, Path]]: ...

    def distrust(self, bundle_hash: str) -> None: ...


class Environments(Protocol):
    """What a slot needs of the unpacked environments."""

    def use(self, bundle_hash: str) -> AbstractAsyncContextManager[Path]: ...


class RunningTasks(Protocol):
    """What outlives the agent: which task runs where."""

    def begin(self, slot: int, uids: Sequence[str]) -> None: ...

    def end(self, slot: int) -> None: ...


@frozen
class TaskResources:
    """Where the agent's slots fetch from and bring to."""

    agent: str
    bundles: Bundles
    environments: Environments
    ctl: Container
    out: Container
    running: RunningTasks
    inline_limit: int
    """Bytes of a value that travel in the result's message."""
    result_limit: int
    """Bytes that a value may have."""
    files: FileCache
    variables: VariablesCache = field(default_factory=VariablesCache)
    values: ValueCache = field(default_factory=ValueCache)

    async def fetch_bundle(self, bundle_hash: str, stack: AsyncExitStack) -> tuple[Bundle, Path]:
        """Have the files of a bundle in the cache until the stack ends. Raises `Unfit`, `StorageError`."""
        try:
            return await patiently(lambda: stack.enter_async_context(self.bundles.use(bundle_hash)))
        except BlobNotFound as error:
            raise Unfit("TaskRejected", f"its files are not in the pool: {error}") from error
        except ProtocolError as error:
            raise Unfit("TaskRejected", f"its files cannot be used: {error}") from error

    async def fetch_environment(self, bundle_hash: str, stack: AsyncExitStack) -> Path:
        """Have the packages of an environment on the disk until the stack ends.

        Raises `Unfit`, `StorageError`.
        """
        try:
            return await patiently(lambda: stack.enter_async_context(self.environments.use(bundle_hash)))
        except BlobNotFound as error:
            raise Unfit("TaskRejected", f"its environment is not in the pool: {error}") from error
        except ProtocolError as error:
            raise Unfit("TaskRejected", f"its environment cannot be used: {error}") from error
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            # Nodes are alike, and the other sessions go on: this is no failure of the node.
            raise Unfit("TaskFailed", f"its environment does not fit on the node's disk: {error}") from error

    async def fetch_variables(self, blob: str) -> Mapping[str, str]:
        """Return the environment variables that a task names, from memory when known. Raises `Unfit`."""
        if (known := self.variables.get(blob)) is not None:
            return known
        try:
            if not blob.startswith(layout.VARIABLES):
                raise ProtocolError(f"{blob[:80]!r} is no blob of variables")
            stored = TaskVariables.decode((await patiently(lambda: self.ctl.get(blob))).data)
            found = task_variables(stored.env, stored.secrets, "the task").all
        except BlobNotFound as error:
            raise Unfit("TaskRejected", f"its environment variables are gone: {error}") from error
        except (ProtocolError, ConfigurationError) as error:
            raise Unfit("TaskRejected", f"its environment variables cannot be used: {error}") from error
        except StorageError as error:
            raise Unfit("TaskFailed", f"its environment variables could not be fetched: {error}") from error
        variables = thread_limits.followed(found)
        self.variables.add(blob, variables)
        return variables

    async def fetch_function(self, bundle_hash: str, stack: AsyncExitStack) -> Path:
        """Have a function by value in the cache until the stack ends; return its file.

        Raises `Unfit`, `StorageError`.
        """
        bundle, folder = await self.fetch_bundle(bundle_hash, stack)
        if not all([await _is_right(folder / file.name, file) for file in bundle.files]):
            logger.warning("function_damaged", extra={"bundle": bundle_hash})
            self.bundles.distrust(bundle_hash)
            bundle, folder = await self.fetch_bundle(bundle_hash, stack)
        pythons = {file.name: python_of(file.name) for file in bundle.files}
        for name, python in pythons.items():
            if python == PYTHON:
                return folder / name
        found = ", ".join(python for python in pythons.values() if python)
        if not found:
            raise Unfit("TaskRejected", "its function is not in the bundle that it names")
        raise Unfit(
            "TaskRejected",
            f"its function travels as byte code of Python {found}, this node has Python {PYTHON}: put the "
            f"function into a module, or use a pool whose nodes have Python {found}",
        )

    async def fetch_arguments(self, item: wire.TaskItem) -> list[Any] | bytes:
        """Return the arguments of a task; bytes are a container. Raises `Unfit`, `StorageError`."""
        reference = item.params
        if isinstance(reference, list):
            return reference
        if reference.data is not None:
            return reference.data
        try:
            blob = await patiently(lambda: self.ctl.get(reference.blob))
            if is_container(blob.data):
                return blob.data
            arguments = orjson.loads(blob.data)
        except BlobNotFound as error:
            raise Unfit("TaskRejected", f"its arguments are gone: {error}") from error
        except orjson.JSONDecodeError as error:
            raise Unfit("TaskRejected", f"its arguments are not JSON: {error}") from error
        if not isinstance(arguments, list):
            raise Unfit("TaskRejected", "its arguments are not a list")
        return arguments

    @property
    def inputs(self) -> TaskInputs:
        """Return what fetches the values and files that tasks take from other tasks."""
        return TaskInputs(self.ctl, self.out, self.values, self.files)

    def fits(self, outcome: Outcome) -> bool:
        """Return whether all of an outcome travels in the result's message."""
        return not outcome.outputs and outcome.size <= self.inline_limit

    async def store(self, item: wire.TaskItem, outcome: Outcome) -> Outcome:
        """Upload what does not fit into the result's message; the outcome as it travels.

        Raises OSError when a file that the task left cannot be read, unless the task has forbidden it.
        Raises `StorageError` when Blob Storage is in trouble, and not when it refuses what is stored.
        """
        try:
            return await self._store(item, outcome)
        except (StorageError, PermissionError) as error:
            if isinstance(error, StorageError) and error.retryable:
                raise
            text = f"what it left could not be stored: {error}"
            return replace(outcome, status=Status.FAILED, kind="TaskFailed", error=text, value=None)

    async def _store(self, item: wire.TaskItem, outcome: Outcome) -> Outcome:
        if outcome.outputs:
            folder = _execution(item, self.agent) if item.execution_folders else ""
            outcome = replace(outcome, files=await self._upload(item, outcome, folder), folder=folder)
        value = outcome.value
        if not isinstance(value, bytes) or outcome.size <= self.inline_limit:
            return outcome
        if is_container(value):
            value = value[: container_size(value)]
        if len(value) > self.result_limit:
            return too_large(outcome, len(value), self.result_limit)
        execution = f"{self.agent}-{secrets.token_hex(_TOKEN)}"
        name = layout.result_blob(item.job, item.client, item.uid, item.attempt, execution)
        with suppress(BlobConflict):  # an earlier try has written it: no other execution has this name
            await patiently(lambda: self.out.put(name, value, create=True))
        with suppress(OSError):  # without room in memory, who takes the value fetches it
            self.values.keep(name, value)
        return replace(outcome, value=wire.Reference(name, len(value)))

    async def _upload(self, item: wire.TaskItem, outcome: Outcome, folder: str) -> tuple[str, ...]:
        """Upload the task's files. In an execution's own folder, nothing that is there is overwritten.

        A session of an older batchflow looks for them in the task's folder, where the last execution wins.
        """
        prefix = layout.outputs_prefix(item.job, item.client, item.uid, folder)
        names = outcome.output_names()
        limiter = anyio.CapacityLimiter(UPLOADS)

        async def upload(name: str, path: Path) -> None:
            async with limiter:
                with suppress(BlobConflict):  # an earlier try has written it
                    await patiently(lambda: self.out.upload(prefix + name, path, create=bool(folder)))

        error: Exception | None = None
        try:
            async with anyio.create_task_group() as group:
                for name, path in zip(names, outcome.outputs, strict=True):
                    group.start_soon(upload, name, path)
        except* (StorageError, OSError) as errors:
            error = _first(errors)  # raised in here it would come in a group, before Python 3.11.4
        if error is not None:
            raise error
        if folder:  # another execution writes the same blobs otherwise
            for name, path in zip(names, outcome.outputs, strict=True):
                with suppress(OSError):  # what is not kept is fetched
                    self.files.add(prefix + name, path)
        return names


async def _is_right(path: Path, file: BundleFile) -> bool:
    """Check a file that a task reads in the cache itself, where other tasks may have changed it."""
    return await anyio.to_thread.run_sync(file_stamps.holds, str(path), file.size, file.sha256)


def _execution(item: wire.TaskItem, agent: str) -> str:
    """Return a name that no other execution has, and that none can know before."""
    return f"{item.attempt}-{agent}-{secrets.token_hex(_TOKEN)}"


def _first(errors: BaseExceptionGroup[Exception]) -> Exception:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error
