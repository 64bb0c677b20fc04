"""What all doubles do when they are closed."""

from __future__ import annotations

from batchflow.support.closing import Closes


class CheckedClosing(Closes):
    """The base of all doubles here. A closed one refuses to work."""

    closed = False

    async def aclose(self) -> None:
        self.closed = True
