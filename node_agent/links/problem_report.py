"""Where a link reports that it does not work."""

from __future__ import annotations

from typing import Protocol


class ProblemReport(Protocol):
    """The problems of the agent, each under the name of the link that has it."""

    def begin(self, where: str, text: str) -> bool:
        """Report a problem; True when there was none under that name."""

    def end(self, where: str) -> bool:
        """Report that it is over; True when there was one."""
