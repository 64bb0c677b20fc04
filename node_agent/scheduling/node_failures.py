"""What the node itself could not run: what becomes of the task, and when the agent steps back. Pure.

Rules:

- A task that the node could not run is handed back, not charged. Its history counts how often that was so.
  It is tried ever later. After `MAX_UNABLE` times that is its outcome. A task that ran, and whose node was
  damaged afterwards, may have done that itself: after `MAX_LOST` times that is its outcome.
- A run is what a slot was given at once. After `MAX_FAILURES` runs in a row that the node could not do, of
  one slot or of all together, the agent steps back. A task that succeeds proves the node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from batchflow.model import Attempt, Status
from node_agent.scheduling.events import HandBack, Unable, Verdict
from node_agent.scheduling.state import SlotState, Task

MAX_FAILURES: Final = 3
MAX_UNABLE: Final = 20
MAX_LOST: Final = 3
UNABLE: Final = "the node could not run it"
LOST: Final = "the node lost its folder while it ran"
"""The beginnings of what the history of a task tells of that."""
_DELAY: Final = 2.0
_LONGEST_DELAY: Final = 30.0
"""Seconds before a task that nodes could not run twice is tried again; the first is doubled each time."""


@dataclass(slots=True)
class NodeFailures:
    """The failures of one agent's node. `host` is what the history of a task names."""

    host: str
    in_a_row: int = 0
    """Runs of all slots since a task has last succeeded."""

    def succeeded(self, slot: SlotState) -> None:
        """Note that a task of this slot has succeeded."""
        slot.failures = self.in_a_row = 0

    def failed(self, slot: SlotState) -> bool:
        """Note a task that could not be run in this slot; return whether that is one too many."""
        if not slot.unable:
            slot.unable = True
            slot.failures += 1
            self.in_a_row += 1
        return max(slot.failures, self.in_a_row) >= MAX_FAILURES

    def answer(self, task: Task, event: Unable) -> HandBack | Verdict:
        """Return the copy with which a task is tried elsewhere, or its outcome."""
        what, most = (LOST, MAX_LOST) if event.began else (UNABLE, MAX_UNABLE)
        times = 1 + sum([past.error.startswith(what) for past in task.item.history])
        if times >= most:
            error = f"{what}, {times} times; the last time: {event.error}"
            return Verdict(Status.FAILED, "WorkerDied", error)
        past = Attempt(task.item.attempt, f"{what}: {event.error}", self.host, event.at)
        delay = min(_LONGEST_DELAY, _DELAY * 2.0 ** (times - 2)) if times > 1 else 0.0
        return HandBack(task.number, delay=delay, history=(past,), reason="node")
