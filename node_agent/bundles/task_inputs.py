"""What a task takes from other tasks, values and files, brought to the node.

Blob Storage in trouble is tried again for about half a minute. What the node does not reach then is no task's
outcome: `StorageError` says that the node cannot run the task.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from batchflow.errors import BlobNotFound, StorageError
from batchflow.protocol import layout
from batchflow.protocol.fields import FieldError
from batchflow.protocol.passed import PassedFile, path_of, read_files, read_passed, read_places
from batchflow.support.backoff import Backoff
from batchflow.support.frozen import frozen
from batchflow.support.task_groups import task_group
from node_agent.bundles.environments import NO_ROOM

if TYPE_CHECKING:
    from batchflow.ports.storage import Container
    from batchflow.protocol.bundle import Bundle
    from batchflow.protocol.wire import TaskItem
    from node_agent.bundles.stored_file import StoredFile
    from node_agent.bundles.task_files import FileCache
    from node_agent.bundles.values import StoredValue, ValueCache

logger = logging.getLogger(__name__)

TRIES: Final = 6
"""Of a request to Blob Storage, with waits of 0.5 to 10 seconds between them."""

FETCHES: Final = 4
"""Values or files that a task's slot fetches at the same time."""

P = TypeVar("P")
T = TypeVar("T")


class Unfit(Exception):
    """A task cannot run, or no task of a slot can. `kind` is the name of the `TaskError`."""

    def __init__(self, kind: str, error: str) -> None:
        super().__init__(error)
        self.kind = kind


@frozen
class TaskInputs:
    """Fetches what tasks take, where the node does not have it."""

    ctl: Container
    out: Container
    kept_values: ValueCache
    kept_files: FileCache

    async def located(self, item: TaskItem) -> TaskItem:
        """Return a task that says itself where its values and files lie. Raises `Unfit`, `StorageError`."""
        blob = item.places
        if blob is None:
            return item
        try:
            if not blob.startswith(layout.ARGUMENTS):
                raise FieldError(f"{blob[:80]!r} is no blob of a task's inputs")
            inputs, files = read_places((await patiently(lambda: self.ctl.get(blob))).data)
        except FieldError as error:
            raise Unfit("TaskRejected", f"what it takes cannot be read: {error}") from error
        except StorageError as error:
            raise _unfit("the list of what it takes", error) from error
        return replace(item, inputs=inputs, files=files, places=None)

    async def values(self, places: list[Any] | None) -> list[StoredValue]:
        """Return the values at these places. Raises `Unfit`, `StorageError`."""
        if places is None:
            return []
        try:
            named = read_passed(places)
            blobs = {each.blob: each for each in named}
            found = await _all(
                lambda each: self.kept_values.fetch(each, self.out, patiently), [*blobs.values()]
            )
        except FieldError as error:
            raise Unfit("TaskRejected", f"where its inputs lie cannot be read: {error}") from error
        except StorageError as error:
            raise _unfit("a value that it takes", error) from error
        by_blob = dict(zip(blobs, found, strict=True))
        return [by_blob[each.blob] for each in named]

    async def files(self, places: list[Any] | None, bundle: Bundle) -> dict[str, StoredFile]:
        """Return the files at these places, by the paths that they have in the working directory.

        `bundle`: the task's own files. Raises `Unfit`, `StorageError`, OSError.
        """
        if places is None:
            return {}
        try:
            named = read_files(places)
            paths = [path_of(number, each.name) for number, each in enumerate(named)]
            found = dict(zip(paths, await _all(self._file, named), strict=True))
        except FieldError as error:
            raise Unfit("TaskRejected", f"which files it takes cannot be read: {error}") from error
        except StorageError as error:
            raise _unfit("a file that it takes", error) from error
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise Unfit("TaskFailed", f"a file that it takes does not fit on the disk: {error}") from error
        names = [file.name for file in bundle.files]
        for path in found:
            if taken := next((name for name in names if _meets(name, path)), None):
                what = f"the bundle has {taken!r} where a file of another task goes, {path!r}: rename it"
                raise Unfit("TaskRejected", what)
        return found

    async def _file(self, place: PassedFile) -> StoredFile:
        signature = place.signature
        container = self.ctl if signature is None else self.out
        if signature is None and not place.blob.startswith(layout.ARGUMENTS):
            raise FieldError(f"{place.blob[:80]!r} is no copy of a file")
        return await self.kept_files.fetch(
            place.blob,
            lambda path: patiently(lambda: container.download(place.blob, path, signature=signature)),
        )


async def _all(fetch: Callable[[P], Awaitable[T]], places: Sequence[P]) -> list[T]:
    """Return what is at these places, `FETCHES` at the same time. Raises the first error."""
    found: dict[int, T] = {}
    limiter = anyio.CapacityLimiter(FETCHES)

    async def one(number: int, place: P) -> None:
        async with limiter:
            found[number] = await fetch(place)

    async with task_group() as group:
        for number, place in enumerate(places):
            group.start_soon(one, number, place)
    return [found[number] for number in range(len(places))]


def _unfit(what: str, error: StorageError) -> Exception:
    """Return what is raised when something of another task cannot be had."""
    if isinstance(error, BlobNotFound):
        return Unfit("TaskRejected", f"{what} is gone: {error}")
    if error.retryable:
        return error
    return Unfit("TaskRejected", f"{what} cannot be read: {error}")


def _meets(name: str, path: str) -> bool:
    """Return whether a file of a bundle is in the way of another one: at its place, or on the way there."""
    return name == path or path.startswith(f"{name}/") or name.startswith(f"{path}/")


async def patiently(request: Callable[[], Awaitable[T]]) -> T:
    """Try again while Blob Storage says that this may help."""
    backoff = Backoff(0.5)
    while True:
        try:
            return await request()
        except StorageError as error:
            if not error.retryable or backoff.tries + 1 >= TRIES:
                raise
            logger.warning("storage_retry", extra={"error": str(error), "tries": backoff.tries + 1})
        await backoff.wait()
