"""The agent's end of a warm Python child: its process, its channel, its two output pipes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import orjson

from batchflow.support.frozen import frozen
from node_agent.child import frames
from node_agent.execution.capture import Pipe
from node_agent.system import process_groups
from node_agent.system.tail import Tail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from node_agent.bundles.workspace import Place
    from node_agent.execution.child_template import ChildTemplate

_READ_SIZE: Final = 256 * 1024
_BUFFER: Final = 512 * 1024
"""Bytes that either end can send before the other one reads: the tasks of a message in one go. The kernel may
allow less."""
_FRAME_ROOM: Final = 1024**2
"""Bytes that a frame may hold besides a value of the largest size."""
_LINE_LOST: Final = 1.0
"""Seconds that a child which closed its channel may take to end before it is killed."""
_NEVER_READY: Final = 255
"""Exit code of a child of which no more is known."""
_UNREADABLE: Final = (frames.FrameError, orjson.JSONDecodeError, struct.error)


@frozen
class WorkerSettings:
    """The settings of every worker of a slot."""

    env: Mapping[str, str]
    cwd: Path
    node: str
    result_limit: int
    memory_mark: int
    output_limit: int
    most_processes: int | None = None
    """Processes and threads of this user, above which the kernel refuses tasks any more; None: its own."""


@frozen
class Answer:
    """A child's answer to a task."""

    kind: int
    flags: int
    payload: bytes
    stdout: str
    stderr: str
    began_at: float
    ended_at: float
    """Seconds since the epoch."""


@frozen
class Gone:
    """The child's process ended before it answered."""

    exit_code: int
    stdout: str
    stderr: str


@frozen
class Unbegun:
    """Everything that was sent was taken back before it began: no answer is on its way."""


@frozen
class _Said:
    """A CALL or a NOTE."""

    kind: int
    fields: dict[str, Any]


class PythonWorker:
    """One child. Lives from `start` to `close`; killing its process is the slot's affair."""

    def __init__(
        self,
        template: ChildTemplate,
        settings: WorkerSettings,
        mark: str,
        *,
        on_call: Callable[[PythonWorker, dict[str, Any]], None],
        on_note: Callable[[dict[str, Any]], None],
    ) -> None:
        self.mark = mark
        self.tasks = 0
        """Tasks answered."""
        self.private_at_start = 0
        """Bytes of memory that it had before it ran a task; see `process_groups.private`."""
        self.on_output: Callable[[str, bytes], None] | None = None
        """Gets what is printed, as it comes."""
        self.on_late: Callable[[], None] | None = None
        """Called when it was too late to begin a task: the worker begins none of the rest. What was sent is
        to be taken back by `recall`."""
        self._template = template
        self._settings = settings
        self._on_call = on_call
        self._on_note = on_note
        self._loop = asyncio.get_running_loop()
        self._decoder = frames.Decoder(settings.result_limit + _FRAME_ROOM)
        self._tails = {"stdout": Tail(settings.output_limit), "stderr": Tail(settings.output_limit)}
        self._pipes = {name: Pipe(self._sink(name), self._catch_up) for name in self._tails}
        self._socket, self._theirs = socket.socketpair()
        for end in (self._socket, self._theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self._permits = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._place: Place | None = None
        """Where its tasks run."""
        self._due = 0
        """Answers to tasks that were sent."""
        self._look: asyncio.TimerHandle | None = None
        """The next reading of the line, while it is not watched."""
        self._forgotten: asyncio.Future[None] | None = None
        self._unsent = bytearray()
        self._waiter: asyncio.Future[Answer | Unbegun | Gone] | None = None
        self._early: deque[Answer | _Said] = deque()
        """What came of tasks that were sent together before it was their turn: their answers, and what the
        later ones said before theirs."""
        self._gone: Gone | None = None
        self._process: process_groups.Adopted | None = None
        self._exit: asyncio.Task[None] | None = None
        self.ready: asyncio.Future[bool] = self._loop.create_future()
        """True when it takes tasks, False when it ended before."""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.alive

    @property
    def startup_error(self) -> str:
        """What it wrote to stderr before it ended."""
        return "" if self._gone is None else self._gone.stderr

    async def start(self) -> None:
        """Have the process forked. Raises OSError when it cannot be. Does not wait for `ready`."""
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._read)
        writers = [pipe.writer for pipe in self._pipes.values()]
        with self._theirs:
            shared = (self._theirs.fileno(), self._permits, *writers)
            await self._template.fork(self.mark, shared, self._settings.most_processes)
        for pipe in self._pipes.values():
            pipe.close_writer()
        self.send(frames.encode(frames.SETUP, orjson.dumps(self._setup())))

    def freeze(self) -> None:
        """Make the process stand still, threads that its tasks left included, until `thaw`."""
        if self._process is not None:
            self._process.freeze()

    def thaw(self) -> None:
        """Let the process go on."""
        if self._process is not None:
            self._process.thaw()

    def send(self, data: bytes) -> None:
        """Send frames; what the socket does not take at once follows by itself. No-op once it is closed."""
        if self._socket.fileno() < 0:
            return
        if not self._unsent:
            with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                data = data[self._socket.send(data) :]
            if not data:
                return
            self._loop.add_writer(self._socket, self._write)
        self._unsent += data

    def move(self, place: Place, packages: Path | None, variables: Mapping[str, str]) -> None:
        """Let the tasks that are sent from now on run there.

        `packages`: the folder of their environment; `variables`: those of their process's environment. Both
        are the same for all tasks of a worker.
        """
        if place is self._place:
            return
        first, self._place = self._place is None, place
        fields: dict[str, Any] = {
            "bundle": place.bundle.hash,
            "directory": str(place.directory),
            "watched": place.watched,
            "packages": None if packages is None else str(packages),
        }
        if first and variables:
            fields["variables"] = dict(variables)
        self.send(frames.encode(frames.PLACE, orjson.dumps(fields)))

    def dispatch(self, tasks: Sequence[bytes]) -> None:
        """Send tasks, as JSON, to be run one after the other."""
        self._due += len(tasks)
        kind = frames.NEXT_TASK if self._due > 1 else frames.TASK
        os.eventfd_write(self._permits, len(tasks))
        self.send(b"".join([frames.encode(kind, task) for task in tasks]))
        self._choose_what_to_watch()

    def recall(self) -> int:
        """Take back the tasks that have not begun; how many of the last ones.

        Before the next `dispatch`, `forgotten` must have returned.
        """
        if self._socket.fileno() < 0:
            return 0
        taken = 0
        with suppress(BlockingIOError):
            while True:
                os.eventfd_read(self._permits)
                taken += 1
        if taken:
            self._forgotten = self._loop.create_future()
            self.send(frames.encode(frames.FORGET))
            self._due -= taken
            if not self._due:
                self._resolve(Unbegun())
            self._choose_what_to_watch()
        return taken

    async def forgotten(self) -> None:
        """Return when the child has passed over what was taken back, or is gone. Safe to cancel."""
        if self._forgotten is not None and self._gone is None:
            await asyncio.shield(self._forgotten)
        self._forgotten = None

    def answer(self) -> asyncio.Future[Answer | Unbegun | Gone]:
        """Return the next answer, or why none comes. One at a time; the caller may resolve it otherwise."""
        waiter = self._waiter = self._loop.create_future()
        while self._early and not waiter.done():
            early = self._early.popleft()
            if isinstance(early, Answer):
                waiter.set_result(early)
            else:
                self._hear(early)
        if self._gone is not None and not waiter.done():
            waiter.set_result(self._gone)
        return waiter

    def answered(self) -> list[Answer]:
        """Return the answers that came with the one that was waited for, as far as there is nothing to do
        after them and nothing else was said before them."""
        found = []
        while self._early and isinstance(early := self._early[0], Answer) and not early.flags:
            found.append(early)
            self._early.popleft()
        return found

    def kill(self) -> None:
        """Kill the worker's own process."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)

    async def close(self) -> None:
        """Give back what the child's end took. The process must have been killed. Idempotent."""
        if self._exit is not None:
            await asyncio.wait([self._exit], timeout=process_groups.DEATH_BOUND)
            self._exit.cancel()
        if self._socket.fileno() < 0:
            return
        self._stop_reading()
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._theirs.close()
        os.close(self._permits)
        for pipe in self._pipes.values():
            pipe.close()
        if not self.ready.done():
            self.ready.set_result(False)

    def _setup(self) -> dict[str, Any]:
        return {
            "result_limit": self._settings.result_limit,
            "memory_mark": self._settings.memory_mark,
            "node": self._settings.node,
            "environment": self._template.changes(self._settings.env),
        }

    def _sink(self, name: str) -> Callable[[bytes], None]:
        def sink(data: bytes) -> None:
            self._tails[name].add(data)
            if self.on_output is not None:
                self.on_output(name, data)

        return sink

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._stop_reading()
            if self._process is None:
                self._never_ready()
            else:
                self._loop.call_later(_LINE_LOST, self.kill)
            return
        try:
            for kind, payload in self._decoder.feed(data):
                self._take(kind, payload)
        except _UNREADABLE:
            self._stop_reading()
            self.kill()
            if self._process is None:
                self._never_ready()
        else:
            self._choose_what_to_watch()

    def _choose_what_to_watch(self) -> None:
        """Read the socket from time to time while several answers are due, else whenever it is readable."""
        if self._due > 1:
            if self._look is None and self._loop.remove_reader(self._socket):
                self._look = self._loop.call_later(frames.LOOK, self._have_a_look)
        elif self._look is not None:
            self._look.cancel()
            self._look = None
            self._loop.add_reader(self._socket, self._read)

    def _have_a_look(self) -> None:
        self._read()
        if self._look is not None:
            self._look = self._loop.call_later(frames.LOOK, self._have_a_look)

    def _catch_up(self) -> None:
        """Take in the answers that came, so that what is printed after them belongs to the next task."""
        if self._look is not None:
            self._read()

    def _stop_reading(self) -> None:
        self._loop.remove_reader(self._socket)
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _take(self, kind: int, payload: bytes) -> None:
        match kind:
            case frames.VALUE | frames.FAILURE:
                self._answered(kind, payload)
            case frames.CALL | frames.NOTE:
                said = _Said(kind, orjson.loads(payload))
                if self._waiter is None or self._waiter.done():
                    self._early.append(said)
                else:
                    self._hear(said)
            case frames.FORGOTTEN:
                self._have_forgotten()
            case frames.LATE:
                if self.on_late is not None:
                    self.on_late()
            case frames.READY if not self.ready.done():
                self._adopt(payload)
            case _:
                raise frames.FrameError(f"a frame of kind {kind}")

    def _hear(self, said: _Said) -> None:
        """Pass on what the task said whose answer is waited for."""
        if said.kind == frames.CALL:
            self._on_call(self, said.fields)
        else:
            self._on_note(said.fields)

    def _answered(self, kind: int, payload: bytes) -> None:
        self.tasks += 1
        self._due -= 1
        flags, began_at, ended_at = frames.ANSWER.unpack_from(payload)
        if flags & frames.PRINTED:
            self._drain()
        stdout, stderr = self._cut("stdout"), self._cut("stderr")
        self._resolve(
            Answer(
                kind=kind,
                flags=flags,
                payload=payload[frames.ANSWER.size :],
                stdout=stdout,
                stderr=stderr,
                began_at=began_at,
                ended_at=ended_at,
            )
        )

    def _drain(self) -> None:
        for pipe in self._pipes.values():
            pipe.drain()

    def _cut(self, name: str) -> str:
        """Return what was printed until now; what comes later belongs to the next task."""
        tail = self._tails[name]
        if not tail.size:
            return ""
        self._tails[name] = Tail(tail.limit)
        return tail.text()

    def _resolve(self, end: Answer | Unbegun | Gone) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(end)
        elif isinstance(end, Answer):
            self._early.append(end)
        if isinstance(end, Gone):
            self._gone = end
            self._have_forgotten()

    def _have_forgotten(self) -> None:
        if self._forgotten is not None and not self._forgotten.done():
            self._forgotten.set_result(None)

    def _write(self) -> None:
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self._unsent.clear()
        if not self._unsent:
            self._loop.remove_writer(self._socket)

    def _adopt(self, payload: bytes) -> None:
        """Wait for the end of the process, which is a child of this one by now."""
        try:
            self._process = process_groups.Adopted(int(payload))
        except (ValueError, OSError) as error:
            raise frames.FrameError(f"no process of ours is ready: {payload!r:.40}: {error}") from error
        self._exit = asyncio.create_task(self._await_exit(), name=f"wait for child {self.pid}")
        self.private_at_start = process_groups.private(self.pid)
        self.ready.set_result(True)

    def _never_ready(self) -> None:
        """Note that the child's end was closed before it was ready: it could not be forked, or ended."""
        self._drain()
        self._resolve(Gone(_NEVER_READY, self._cut("stdout"), self._cut("stderr")))
        if not self.ready.done():
            self.ready.set_result(False)

    async def _await_exit(self) -> None:
        assert self._process is not None
        exit_code = await self._process.wait()
        self._read_rest()
        self._drain()
        self._resolve(Gone(exit_code, self._cut("stdout"), self._cut("stderr")))
        if not self.ready.done():
            self.ready.set_result(False)

    def _read_rest(self) -> None:
        """Take what the worker sent before it ended."""
        with suppress(OSError, *_UNREADABLE):
            while data := self._socket.recv(_READ_SIZE):
                for kind, payload in self._decoder.feed(data):
                    self._take(kind, payload)
