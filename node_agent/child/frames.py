"""What an agent and its Python child say to each other: length-prefixed frames.

A frame is four bytes of length (of the payload, big-endian), one byte of kind, and the payload. The core
holds bytes that do not make a frame yet; it does no I/O.

====================  ==========  ==================================================================
kind                  direction   payload
====================  ==========  ==================================================================
SETUP                 to child    JSON: settings that hold for the child's life
PLACE                 to child    JSON: the working directory of the tasks after it
TASK                  to child    one task: JSON, or the length of that, it, and arguments in a container
NEXT_TASK             to child    the same: one of several tasks that are under way
CANCEL                to child    empty: the running task is to end
GO                    to child    empty: what the last task left is dealt with, start the next one
REPLY                 to child    JSON: how a program that the task asked for ended
FORGET                to child    empty: answered by FORGOTTEN, after the tasks that came before it
READY                 to agent    the child's process id as text: it takes tasks
VALUE                 to agent    `ANSWER`, then the value as JSON or in a container
FAILURE               to agent    `ANSWER`, then JSON: how the task failed
CALL                  to agent    JSON: run a program
NOTE                  to agent    JSON: a log line or progress
FORGOTTEN             to agent    empty
LATE                  to agent    empty: it was too late to begin a task; the child waits for a FORGET
====================  ==========  ==================================================================

Rules: a child runs the tasks that it was sent one after the other, in order, and answers each with one
VALUE or FAILURE before it starts the next. When the flags are not 0, it starts the next one only after a GO.
After a CANCEL it starts none.

Each task needs a permit, a count in an eventfd that both hold: the child takes one before it starts a task,
and passes over a task without a word when there is none. The agent takes back the tasks that have not begun
by taking their permits, then sends FORGET and awaits the answer before it sends more: no task that was taken
back can take the permit of a later one.

A task says until when it may begin, by the monotonic clock. A child that gets to it later, because it stood
still, begins neither this task nor those after it: it says LATE and passes over them until the FORGET comes
with which the agent takes them back.

Being woken for each answer would cost the agent, and the task that runs meanwhile, more than a short task
does. So while several answers are due the agent does not watch the line, but reads it every `LOOK` seconds.
What one of these tasks says or asks waits so long at most.
"""

from __future__ import annotations

from struct import Struct

SETUP, TASK, CANCEL, GO, REPLY, FORGET, NEXT_TASK, PLACE = 1, 2, 3, 4, 5, 6, 7, 8
READY, VALUE, FAILURE, CALL, NOTE, FORGOTTEN, LATE = 17, 18, 19, 20, 21, 22, 23

TOUCHED = 1
"""Flag: files appeared, vanished or changed in the working directory."""
LEFTOVERS = 2
"""Flag: processes that the task started, or the agent for it, may still be there."""
PRINTED = 4
"""Flag: output waits in the pipes."""
RETIRE = 8
"""Flag: the child is to be replaced."""

LOOK = 0.005

ANSWER = Struct(">Bdd")
"""Flags; when the task began and ended, in seconds since the epoch."""
_HEADER = Struct(">IB")
HEADER_SIZE = _HEADER.size


NODE_UNFIT = "NodeUnfit"
"""The kind of failure of a task that did not begin, because its directory is not there. It is no outcome."""


class FrameError(Exception):
    """Bytes that are no frames of ours."""


def encode(kind: int, payload: bytes = b"") -> bytes:
    return _HEADER.pack(len(payload), kind) + payload


class Decoder:
    """Bytes in, frames out.

    Invariant: between calls, less than one whole frame is held.
    """

    __slots__ = ("_held", "_limit")

    def __init__(self, limit: int) -> None:
        """`limit`: bytes of payload above which a frame is refused."""
        self._held = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the frames that are whole now, as (kind, payload). Raises `FrameError`."""
        held = self._held
        if not held:
            frames, start = self._split(data)
            held += data[start:]
            return frames
        held += data
        with memoryview(held) as view:
            frames, start = self._split(view)
        if start:
            del held[:start]
        return frames

    def _split(self, data: bytes | memoryview) -> tuple[list[tuple[int, bytes]], int]:
        """Return the frames in it, and where what is left begins."""
        frames: list[tuple[int, bytes]] = []
        start = 0
        while len(data) - start >= HEADER_SIZE:
            length, kind = _HEADER.unpack_from(data, start)
            if length > self._limit:
                raise FrameError(f"a frame of {length} bytes, above the limit of {self._limit}")
            end = start + HEADER_SIZE + length
            if len(data) < end:
                break
            frames.append((kind, bytes(data[start + HEADER_SIZE : end])))
            start = end
        return frames, start
