"""Views in a notebook that are shown at once, and again when the services have answered.

A view is drawn without waiting, of what is known. What is asked for meanwhile changes the same output.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from batchflow.errors import BatchflowError

_BOUND: Final = 10.0
"""Seconds that the services have; after them the view stays as it is."""

_asking: set[asyncio.Task[None]] = set()


class LiveView:
    """A base class of what a notebook shows at once, and again when `_ask` has brought it up to date."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        raise NotImplementedError

    async def _ask(self) -> object:
        """Ask the services for what the view shows. Raises a `BatchflowError` where that is not possible."""
        raise NotImplementedError

    def _ipython_display_(self) -> None:
        _show(self._repr_html_, repr(self), self._ask)


def _show(html: Callable[[], str], text: str, ask: Callable[[], Awaitable[object]]) -> None:
    """Show a view in the cell that runs. `ask`: brings what it shows up to date."""
    from IPython.display import DisplayHandle

    handle: Any = DisplayHandle()  # type: ignore[no-untyped-call]
    handle.display({"text/html": html(), "text/plain": text}, raw=True)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return

    async def refresh() -> None:
        try:
            async with asyncio.timeout(_BOUND):
                await ask()
        except (BatchflowError, TimeoutError):
            return  # what is shown is what was known
        handle.update({"text/html": html(), "text/plain": text}, raw=True)

    task = loop.create_task(refresh(), name="refresh a view")
    _asking.add(task)
    task.add_done_callback(_asking.discard)
