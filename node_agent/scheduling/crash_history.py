"""What a node remembers of tasks that ran when its agent died.

Rules: a task that was the only one that ran died alone, several died in company; which of them was at fault
is not known then. Nothing is remembered past a boot of the node, or beyond `MOST` tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from batchflow.support.frozen import frozen

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
