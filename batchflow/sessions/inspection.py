"""The tasks of a session, as live views show them and act on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchflow.errors import ConfigurationError
from batchflow.protocol.values.kept import KeptArguments
from batchflow.sessions.records.recent import MOST_ARGUMENTS, LargeArguments, detail
from batchflow.sessions.records.submission import Submission

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchflow.protocol.activity import SlotRun
    from batchflow.sessions.parts import SessionParts
    from batchflow.sessions.records.tracker import Entry


class TaskInspector:
    """Finds tasks by their uid."""

    def __init__(self, parts: SessionParts) -> None:
        self._parts = parts

    def ended_since(self, seen: int) -> tuple[int, Iterable[tuple[str, SlotRun]]]:
        """Return how many tasks ended while views watched, and host and run of those after `seen`."""
        return self._parts.outcomes.history.watch().since(seen)

    def detail(self, uid: str) -> dict[str, Any] | None:
        """Return what is known of a task, with what it waits for and what waits for it."""
        entry = self._open_task(uid)
        known = self._parts.outcomes.history.watch().find(uid) if entry is None else detail(entry, None)
        if known is None:
            return None
        inputs, consumers = self._parts.submitter.dependents.record.around(uid)
        return known | {"inputs": inputs, "consumers": consumers}

    async def cancel(self, uid: str) -> bool:
        """Cancel a task; return False when it has ended or is not known."""
        entry = self._open_task(uid)
        if entry is None:
            return False
        await self._parts.cancellations.cancel([entry])
        return True

    async def retry(self, uid: str) -> str:
        """Submit a task once more, with its options and the session's files of now.

        Raises `ConfigurationError` for one that cannot be repeated.
        """
        kept = self._parts.outcomes.history.watch().find_arguments(uid)
        if kept is None:
            raise ConfigurationError("the session has forgotten this task: submit it again in the program")
        known, arguments = kept
        if ":" in known["command"]:
            raise ConfigurationError("this task calls a function: submit it again in the program")
        if isinstance(arguments, LargeArguments):
            raise ConfigurationError(
                f"its arguments are {arguments.size:,} bytes, and a live view keeps {MOST_ARGUMENTS:,}: "
                "submit it again in the program"
            )
        opened = arguments.open() if isinstance(arguments, KeptArguments) else arguments
        if opened is None or (isinstance(arguments, KeptArguments) and arguments.stored):
            raise ConfigurationError("its arguments are not here any more: submit it again in the program")
        options: dict[str, Any] = {"task_id": known["task_id"], **(known["options"] or {})}
        submission = Submission.of(known["command"], list(opened), **options)
        return (await self._parts.submitter.enqueue(submission)).uid

    def _open_task(self, uid: str) -> Entry | None:
        incarnation, _, sequence = uid.partition(":")
        if incarnation != self._parts.context.incarnation or not sequence.isdecimal():
            return None
        return self._parts.context.tracker.find(int(sequence))
