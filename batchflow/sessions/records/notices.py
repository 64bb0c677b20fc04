"""What a session tells its user while it works: warnings, notes and the events of its tasks."""

from __future__ import annotations

import time
import weakref
from collections import deque
from typing import Final

from batchflow.model import Event
from batchflow.support.event_log import event_logger
from batchflow.support.repeat_filter import RepeatFilter
from batchflow.support.waiting import ChangeNotifier

logger = event_logger(__name__)

MAX_EVENTS: Final = 10_000
"""Unread events that one reader keeps; a further one drops the oldest."""


class EventQueue:
    """The unread events of one reader. When it is full, the oldest event is dropped."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self.change: ChangeNotifier = ChangeNotifier()
        """Notified when there is a new event, or when none comes any more."""
        self.dropped: int = 0
        """Events that were dropped unread."""

    def __len__(self) -> int:
        """Return how many events are unread."""
        return len(self._events)

    def put(self, event: Event) -> None:
        self.dropped += len(self._events) == MAX_EVENTS
        self._events.append(event)
        self.change.notify()

    def take(self) -> Event | None:
        """Remove and return the oldest event; None when there is none."""
        return self._events.popleft() if self._events else None


class Notices:
    """The readers of a session's events, and the ways to tell them something."""

    def __init__(self, session: str) -> None:
        """`session`: its name in the log."""
        self._session = session
        self._queues = weakref.WeakSet[EventQueue]()
        self._repeats = RepeatFilter()
        self._progress: Event | None = None
        """What is done at this moment, for readers that come later."""

    def __len__(self) -> int:
        """Return how many readers there are."""
        return len(self._queues)

    def subscribe(self) -> EventQueue:
        """Return a queue of the events from now on, with the progress that was told last.

        A queue that is dropped is forgotten.
        """
        queue = EventQueue()
        if self._progress is not None:
            queue.put(self._progress)
        self._queues.add(queue)
        return queue

    def unsubscribe(self, queue: EventQueue) -> None:
        """Put no more into this queue. Idempotent."""
        self._queues.discard(queue)
        queue.change.notify()

    def tell(self, event: Event) -> None:
        for queue in self._queues:
            queue.put(event)

    def inform(self, message: str) -> None:
        self.tell(Event("info", message, time.time()))

    def progress(self, message: str) -> None:
        """Tell the readers how far the session itself is with what its tasks wait for."""
        self._progress = Event("progress", message, time.time())
        self.tell(self._progress)

    def end_progress(self) -> None:
        """Tell later readers nothing of it: the tasks wait for nothing any more."""
        self._progress = None

    def warn(self, message: str) -> None:
        """Tell the readers and the log. A warning that repeats is told at growing intervals."""
        if not self._repeats.passes(message, time.monotonic()):
            return
        logger.warning("session_warning", extra={"session": self._session, "reason": message})
        self.tell(Event("warning", message, time.time()))

    def end(self) -> None:
        """Wake the readers: no event comes any more."""
        for queue in self._queues:
            queue.change.notify()
