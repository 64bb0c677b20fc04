"""The child's end of the line to its agent. Blocking, for user code is; usable from any thread.

Nothing is read while no thread waits: there is no reader thread. A thread that waits for a frame reads (one
at a time, the leader), hands on what belongs to others, and wakes them.

The descriptor is closed on exec, and in every fork of this process: nothing that a task starts can write to
it or keep it open. End of file means that the agent is gone; then the process ends on the spot.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from contextlib import suppress

import orjson

from node_agent.child import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, TypeVar

    T = TypeVar("T")

_READ_SIZE: Final = 256 * 1024
_FRAME_LIMIT: Final = 2**31
AGENT_GONE: Final = 120
"""Exit code of a child whose agent went away."""


class Channel:
    """Frames over a blocking descriptor."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._fd = descriptor
        self._pid = os.getpid()
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._decoder = frames.Decoder(_FRAME_LIMIT)
        self._send_lock = threading.Lock()
        self._changed = threading.Condition()
        self._reading = False
        self._frames: deque[tuple[int, bytes]] = deque()
        self._go = False
        self._replies: dict[int, dict[str, Any]] = {}
        self._waiting: dict[int, Callable[[dict[str, Any]], None]] = {}
        self._calls = 0
        self._unanswered: set[int] = set()
        self._cancelled = False
        os.register_at_fork(after_in_child=self._close_fork)

    @property
    def pid(self) -> int:
        """The process that may use this channel."""
        return self._pid

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Send a frame."""
        view = memoryview(frames.encode(kind, payload))
        with self._send_lock:
            while view:
                view = view[os.write(self._fd, view) :]

    def next_frame(self) -> tuple[int, bytes]:
        """Wait for the next frame that is neither a reply, a GO nor a CANCEL."""
        return self._wait(lambda: self._frames.popleft() if self._frames else None)

    def go(self) -> None:
        """Wait for a GO; the tasks that were sent before it keep their turn."""
        self._wait(lambda: self._go or None)
        self._go = False

    def new_call(self, arrived: Callable[[dict[str, Any]], None] | None = None) -> int:
        """Return a number for a CALL. `arrived` gets the reply, in whatever thread reads it."""
        with self._changed:
            self._calls += 1
            self._unanswered.add(self._calls)
            if arrived is not None:
                self._waiting[self._calls] = arrived
            return self._calls

    def reply(self, call: int) -> dict[str, Any]:
        """Wait for the reply to a call."""
        return self._wait(lambda: self._replies.pop(call, None))

    def forget_calls(self) -> bool:
        """Forget the calls of a task that is over; return whether there were some without a reply."""
        with self._changed:
            unanswered = bool(self._unanswered)
            self._cancelled = False
            self._unanswered.clear()
            self._replies.clear()
            self._waiting.clear()
            return unanswered

    def cancelled(self) -> bool:
        """Return whether a CANCEL has come, without waiting."""
        self.pump()
        return self._cancelled

    def pump(self) -> None:
        """Take in what has arrived, without waiting."""
        with self._changed:
            if not self._reading and self._poll.poll(0):
                self._lead()

    def fileno(self) -> int:
        return self._fd

    def _wait(self, found: Callable[[], T | None]) -> T:
        with self._changed:
            while (result := found()) is None:
                if self._reading:
                    self._changed.wait()
                else:
                    self._lead()
            return result

    def _lead(self) -> None:
        """Read once, with the lock given back meanwhile."""
        self._reading = True
        self._changed.release()
        try:
            data = os.read(self._fd, _READ_SIZE)
        finally:
            self._changed.acquire()
            self._reading = False
            self._changed.notify_all()
        if not data:
            os._exit(AGENT_GONE)
        for kind, payload in self._decoder.feed(data):
            self._absorb(kind, payload)

    def _absorb(self, kind: int, payload: bytes) -> None:
        if kind == frames.CANCEL:
            self._cancelled = True
        elif kind == frames.GO:
            self._go = True
        elif kind == frames.REPLY:
            reply = orjson.loads(payload)
            self._unanswered.discard(reply["call"])
            if (arrived := self._waiting.pop(reply["call"], None)) is not None:
                arrived(reply)
            else:
                self._replies[reply["call"]] = reply
        else:
            self._frames.append((kind, payload))

    def _close_fork(self) -> None:
        with suppress(OSError):
            os.close(self._fd)
        self._fd = -1
