"""What a session tells its user while it works."""

from __future__ import annotations

from batchflow.sessions.records.notices import Notices


def test_readers_get_a_repeated_warning_once() -> None:
    """Notes are not held back."""
    notices = Notices("session j/c")
    queue = notices.subscribe()
    for _ in range(3):
        notices.warn("the broker is away")
        notices.inform("the broker is back")
    assert len(queue) == 1 + 3
