"""`async with` for objects that have an `aclose`, and an `aclose` that cancellation does not stop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Protocol, Self

import anyio
from anyio import CancelScope

if TYPE_CHECKING:
    from types import TracebackType

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
        await self.aclose()


async def close_shielded(link: _Link | None) -> None:
    """Close a link in a task that is being cancelled, so that its messages go back to the broker.

    None: nothing to close.
    """
    if link is not None:
        with CancelScope(shield=True), anyio.move_on_after(_BOUND):
            await link.aclose()
