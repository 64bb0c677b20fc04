"""One request in place of several that would ask the same at the same time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

K = TypeVar("K", bound="Hashable")
T = TypeVar("T")


class SharedCalls(Generic[K, T]):
    """Calls that are shared by all who make them, by a key, while they are under way."""

    def __init__(self, call: Callable[[K], Awaitable[T]]) -> None:
        self._call = call
        self._under_way: dict[K, asyncio.Future[T | None]] = {}

    async def get(self, key: K) -> T | None:
        """Return what the call for that key returns; None when another caller made it and got no answer.

        Raises what the call raises in the caller that made it. Safe to cancel: others then get None.
        """
        if (found := self._under_way.get(key)) is not None:
            return await asyncio.shield(found)
        answer = self._under_way[key] = asyncio.get_running_loop().create_future()
        result: T | None = None
        try:
            result = await self._call(key)
        finally:
            del self._under_way[key]
            answer.set_result(result)
        return result
