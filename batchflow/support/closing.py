"""`async with` for objects that have an `aclose`, and an `aclose` that cancellation does not stop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Protocol, Self

import anyio
from anyio import CancelScope

from batchflow.errors import BatchflowError, TasksLeftWaiting
from batchflow.support.event_log import event_logger

if TYPE_CHECKING:
    from types import TracebackType

logger = event_logger(__name__)

_BOUND: Final = 5.0
"""Seconds that a shielded close may take."""


class _Link(Protocol):
    async def aclose(self) -> None: ...


class Closes(ABC):
    """A base class for objects that `aclose`, or leaving `async with`, closes."""

    @abstractmethod
    async def aclose(self) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.aclose()
        except BatchflowError as failure:
            follows = isinstance(failure, TasksLeftWaiting)  # from the block's own error, which tells more
            if error is None or (isinstance(error, Exception) and not follows):
                raise
            # A cancellation or an interrupt must arrive as such.
            logger.warning("closing_failed", extra={"what": repr(self), "error": str(failure)})
            error.add_note(f"closing {self!r} failed as well: {failure}")


async def close_shielded(link: _Link | None) -> None:
    """Close a link in a task that is being cancelled, so that its messages go back to the broker.

    None: nothing to close.
    """
    if link is not None:
        with CancelScope(shield=True), anyio.move_on_after(_BOUND):
            await link.aclose()
