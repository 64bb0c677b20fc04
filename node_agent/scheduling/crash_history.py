"""What a node remembers of tasks that ran when its agent died.

Rules: a task that was the only one that ran died alone, several died in company; which of them was at fault
is not known then. Nothing is remembered past a boot of the node, or beyond `MOST` tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.protocol.wire import TaskItem

MOST: Final = 4096


@frozen
class CrashCount:
    """How often the agent died while a task ran."""

    alone: int = 0
    in_company: int = 0
    last_at: float = 0.0
    """Seconds since the epoch."""


def after_crash(known: Mapping[str, CrashCount], running: Sequence[str], at: float) -> dict[str, CrashCount]:
    """Return what is remembered when the agent died while these tasks, by uid, ran."""
    crashes = dict(known)
    alone = len(running) == 1
    for uid in running:
        before = crashes.pop(uid, CrashCount())
        crashes[uid] = CrashCount(
            alone=before.alone + alone, in_company=before.in_company + (not alone), last_at=at
        )
    return dict(list(crashes.items())[-MOST:])


def died_alone(known: Mapping[str, CrashCount], items: Iterable[TaskItem]) -> bool:
    """Return whether the agent has died while it ran one of these tasks alone.

    Then all tasks of their message go back apart: while one is on its way back, no other begins. A new
    message may have such a task, because a later session sends what waited under its first uid.
    """
    return any(item.uid in known and known[item.uid].alone for item in items)
