"""Task groups whose failure is one error, which callers can catch by its type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

if TYPE_CHECKING:
    from types import TracebackType


class task_group:  # noqa: N801 - used like a function
    """Open anyio's task group, which raises the first error of its tasks instead of an exception group.

    A class and no generator: `asyncio.run` closes suspended generators, also in a forked child, where the
    group belongs to the parent.
    """

    _group: TaskGroup

    async def __aenter__(self) -> TaskGroup:
        self._group = anyio.create_task_group()
        return await self._group.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return await self._group.__aexit__(kind, error, trace)
        except BaseExceptionGroup as errors:
            raise first_error(errors) from errors


def first_error(error: BaseException) -> BaseException:
    """Return the first error in a group, at any depth."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
