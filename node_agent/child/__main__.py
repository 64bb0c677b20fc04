"""The warm child: a Python process that runs `do_action` for one session in one slot, task after task.

`python -m node_agent.child FD` is the template that children are forked from (see `template`); FD is its
socket to the agent. A child has a channel to the agent and two eventfds (see `frames`); everything else comes
in frames. Imports as little as possible, because the first child has to start in tens of milliseconds; what
is needed seldom (asyncio, traceback) is loaded when it is needed.

Between two tasks the child puts back what the process as a whole has but one of: the current directory,
`sys.path`, `sys.stdout` and `sys.stderr`, and what `process_state` has. What else a task changes in its
process (imported modules and their variables, threads) stays for the later tasks of its session, as it does
in any process that is kept.

SIGTERM asks the running task to end: in an async `do_action` its asyncio task is cancelled, in a sync one
`Stopped` (a SystemExit) is raised where the main thread is, so that `finally` and `with` do their work.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import sys
import time

import orjson

from batchflow.protocol.values.misfits import Undecodable
from batchflow.support import linux
from node_agent.child import frames, runner, task_values, template
from node_agent.child.channel import AGENT_GONE, Channel
from node_agent.child.engine import TaskEngine
from node_agent.child.modules import Modules, NoAction
from node_agent.child.process_state import ProcessState, end_helpers
from node_agent.system.file_stamps import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Any

_FIONREAD = 0x541B
_LONGEST_ERROR = 4 * 1024
_LONGEST_TRACEBACK = 16 * 1024
_STRAGGLERS_WAIT = 1.0
"""Seconds for asyncio tasks that a `do_action` left behind to end once they are cancelled."""
_ENDED_BY_TERM = 143
_SPARE_MEMORY = 256 * 1024**2
_LIBRARIES = (f"{os.sep}asyncio{os.sep}", f"{os.sep}importlib{os.sep}")
_OWN_FILES = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def content_of(path: str) -> bytearray:
    """Return the bytes of a file. Arrays of its value lie in them, and can be written to."""
    with open(path, "rb", buffering=0) as file:
        data = bytearray(os.fstat(file.fileno()).st_size)
        view = memoryview(data)
        while view and (count := file.readinto(view)):
            view = view[count:]
    return data


class Stopped(SystemExit):
    """Raised in the main thread of a task that is to end."""


class AgentLine:
    """A task's engine reaches the agent by this."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.directory: str | None = None
        """Where programs can be run from here; None: the agent runs them, which sees what they print as
        it comes, and what memory they take."""

    def cancelled(self) -> bool:
        return self._channel.cancelled()

    def note(self, kind: str, message: str, data: Any) -> None:
        fields = {"kind": kind, "message": message.encode("utf-8", "replace").decode(), "data": data}
        self._channel.send(frames.NOTE, orjson.dumps(fields))

    def run(self, command: list[str]) -> dict[str, Any]:
        if self.directory is not None and os.getcwd() == self.directory:
            return runner.run(command)
        call = self._channel.new_call()
        self._channel.send(frames.CALL, orjson.dumps({"call": call, "command": command}))
        return self._channel.reply(call)

    async def run_async(self, command: list[str]) -> dict[str, Any]:
        import asyncio

        loop = asyncio.get_running_loop()
        answer: asyncio.Future[dict[str, Any]] = loop.create_future()

        def resolve(reply: dict[str, Any]) -> None:
            if not answer.done():
                answer.set_result(reply)

        def arrived(reply: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(resolve, reply)

        call = self._channel.new_call(arrived)
        loop.add_reader(self._channel.fileno(), self._channel.pump)
        self._channel.send(frames.CALL, orjson.dumps({"call": call, "command": command}))
        return await answer


class Child:
    """The loop over the tasks, and what is kept between them."""

    def __init__(self, channel: Channel, permits: int, settings: dict[str, Any]) -> None:
        self._channel = channel
        self._permits = permits
        self._line = AgentLine(channel)
        self._result_limit: int = settings["result_limit"]
        self._memory_mark: int = settings["memory_mark"]
        self._node: str = settings["node"]
        self._modules = Modules()
        self._stdout: Any = sys.stdout
        self._stderr: Any = sys.stderr
        self._stop: Callable[[], None] | None = None
        self._retire = False
        self._leaves_calls = False
        """Whether programs that the last task asked the agent for may be running."""
        self._loop: Any = None
        self._bundle = self._directory = ""
        self._watch = Watch("", [])
        signal.signal(signal.SIGTERM, self._on_term)
        self._state = ProcessState()

    def serve(self) -> None:
        """Run tasks until the agent closes the channel."""
        self._channel.send(frames.READY, str(os.getpid()).encode())
        while True:
            kind, payload = self._channel.next_frame()
            if kind == frames.FORGET:
                self._channel.send(frames.FORGOTTEN)
            elif kind == frames.PLACE:
                self._move(orjson.loads(payload))
            elif kind in (frames.TASK, frames.NEXT_TASK):
                task = task_values.read_task(payload)
                if time.monotonic() > task["start_by"]:
                    self._wait_for_forget()
                    continue
                if not self._may_start():
                    continue
                began_at = time.time()
                kind, answer = self._run(task)
                if os.getpid() != self._channel.pid:
                    os._exit(0)
                flags = self._flags()
                head = frames.ANSWER.pack(flags, began_at, time.time())
                self._channel.send(kind, head + answer)
                if flags:
                    self._channel.go()

    def _move(self, place: dict[str, Any]) -> None:
        """Let the tasks from now on run there."""
        self._watch.close()
        self._bundle, self._directory = place["bundle"], place["directory"]
        if place["packages"] is not None:
            self._modules.add_packages(place["packages"])
        if (variables := place.get("variables")) is not None:
            self._state.set_variables(variables)
        self._watch = Watch(self._directory, place["watched"])

    def _wait_for_forget(self) -> None:
        """Begin none of the tasks that were sent, for it is too late for the first of them."""
        self._channel.send(frames.LATE)
        while self._channel.next_frame()[0] != frames.FORGET:
            pass
        self._channel.send(frames.FORGOTTEN)

    def _may_start(self) -> bool:
        """Take a permit; there is none for a task that the agent took back."""
        try:
            os.eventfd_read(self._permits)
        except BlockingIOError:
            return False
        return True

    def _run(self, task: dict[str, Any]) -> tuple[int, bytes]:
        """Return the frame that answers a task. Never raises."""
        engine: TaskEngine | None = None
        began = time.monotonic()
        try:
            self._stop = _raise_stopped
            engine = self._prepare(task)
            if task["memory_limit"] is not None:
                self._limit_memory(task["memory_limit"])
            self._buffer_lines(task["stream"])
            try:
                call = self._call_of(task, engine)
                if self._modules.has_loaded():
                    self._accept_imports()
            except Undecodable as error:
                text = f"its arguments cannot be opened here: {error}"
                return frames.FAILURE, _failure_fields("TaskRejected", _cap(text))
            except BaseException as error:
                return frames.FAILURE, self._import_failure(task["command"], error)
            returned = call()
            if hasattr(type(returned), "__await__"):
                returned = self._await(returned)
            return self._answer(returned, task)
        except BaseException as error:
            if engine is None and isinstance(error, OSError):
                return frames.FAILURE, _failure_fields(frames.NODE_UNFIT, describe(error))
            return frames.FAILURE, self._failure(task["command"], error, task["memory_limit"])
        finally:
            self._stop = None
            if engine is not None:
                engine.close()
                if (engines := sys.modules.get("batchflow.engine")) is not None:
                    engines.enter(None)
            self._put_back(task, time.monotonic() - began)

    def _accept_imports(self) -> None:
        """Let what a file's import has changed stay as long as its modules do."""
        if signal.getsignal(signal.SIGTERM) != self._on_term:
            signal.signal(signal.SIGTERM, self._on_term)
        self._state.accept()

    def _call_of(self, task: dict[str, Any], engine: TaskEngine) -> Callable[[], Any]:
        """Return what the task is to call. Raises whatever its module raises when it is imported.

        Raises `Undecodable` when its arguments cannot be opened.
        """
        if (called := task.get("function")) is None:
            action = self._modules.action(task["command"])
            args = task_values.arguments_of(task, content_of)
            if (engines := sys.modules.get("batchflow.engine")) is not None:
                engines.enter(engine)
            return lambda: action(engine, args)
        function = self._modules.function(task["command"], called["pickle"])
        args = task_values.arguments_of(task, content_of)
        keywords = args.pop() if called["keywords"] else {}
        self._modules.own_import("batchflow.engine").enter(engine)
        return lambda: function(*args, **keywords)

    def _prepare(self, task: dict[str, Any]) -> TaskEngine:
        directory = self._directory
        if _working_directory() != directory:
            os.chdir(directory)
        self._line.directory = None if task["stream"] or task["memory_limit"] is not None else directory
        if self._modules.use(self._bundle, directory) and not self._state.begin_anew():
            self._retire = True
        return TaskEngine(
            self._line,
            task_id=task["task_id"],
            job_id=task["job"],
            client=task["client"],
            attempt=task["attempt"],
            node=self._node,
            working_dir=directory,
            trace=task.get("trace"),
        )

    def _answer(self, returned: Any, task: dict[str, Any]) -> tuple[int, bytes]:
        """Return the frame for what the task returned: of `do_action` (result, error), or the result itself.

        What a function returns is the result itself.
        """
        error: str | None = None
        if (
            "function" not in task
            and type(returned) is tuple
            and len(returned) == 2
            and isinstance(returned[1], (str, type(None)))
        ):
            returned, error = returned
        failed = error not in (None, "", "no error")
        try:
            value = task_values.encode(returned, self._result_limit, pickles=task.get("pickles", False))
        except (task_values.NotSerializable, task_values.TooLarge) as reason:
            if not failed:
                return frames.FAILURE, _failure_fields(reason.kind, str(reason))
            value = b"null"
        if not failed:
            return frames.VALUE, value
        return frames.FAILURE, _failure_fields("TaskFailed", _cap(str(error)), value=value)

    def _await(self, awaitable: Any) -> Any:
        """Run an async `do_action` on the child's one event loop."""
        asyncio = self._modules.own_import("asyncio")
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        loop = self._loop
        task = loop.create_task(_completed(awaitable))
        self._stop = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            return loop.run_until_complete(task)
        finally:
            self._end_stragglers(asyncio, loop)

    def _end_stragglers(self, asyncio: Any, loop: Any) -> None:
        """Cancel the asyncio tasks that the task left behind."""
        loop.remove_reader(self._channel.fileno())
        if left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()
            _, pending = loop.run_until_complete(asyncio.wait(left, timeout=_STRAGGLERS_WAIT))
            self._retire = self._retire or bool(pending)

    def _import_failure(self, command: str, error: BaseException) -> bytes:
        if isinstance(error, NoAction):
            return _failure_fields("TaskImportError", str(error))
        text = f"{command} does not import: {describe(error)}{self._modules.missing(command, error)}"
        return _failure_fields(
            "TaskImportError", text, traceback=self._traceback(error), exception=type(error).__name__
        )

    def _failure(self, command: str, error: BaseException, memory_limit: int | None) -> bytes:
        name = type(error).__name__
        fields: dict[str, Any] = {"traceback": self._traceback(error), "exception": name}
        if isinstance(error, Stopped):
            self._retire = True
            return _failure_fields("WorkerDied", f"the task was ended: {error}", **fields)
        if isinstance(error, SystemExit):
            self._retire = True
            fields["exit_code"] = _exit_code(error)
            return _failure_fields(
                "WorkerDied", f"the task ended its process: sys.exit({error.code!r:.200})", **fields
            )
        if isinstance(error, MemoryError) and memory_limit is not None:
            text = f"the task asked for more memory than its limit of {memory_limit} bytes allows"
            return _failure_fields("TaskOutOfMemory", text, **fields)
        if not isinstance(error, Exception) and name != "CancelledError":
            self._retire = True
            return _failure_fields("WorkerDied", f"the task raised {describe(error)}", **fields)
        text = describe(error) + self._modules.missing(command, error)
        return _failure_fields(
            "TaskFailed", text, **fields, **_request(error), **task_values.tell_raised(error)
        )

    def _traceback(self, error: BaseException) -> str:
        """Return the text of an exception and its causes, the user's own frames only."""
        try:
            traceback = self._modules.own_import("traceback")
            error.__traceback__ = _strip(error.__traceback__)
            text = "".join(traceback.format_exception(error))
        except Exception as reason:
            return f"(the traceback cannot be shown: {type(reason).__name__})"
        if self._modules.directory:
            text = text.replace(self._modules.directory + os.sep, "")
        return text if len(text) <= _LONGEST_TRACEBACK else f"[...]\n{text[-_LONGEST_TRACEBACK:]}"

    def _limit_memory(self, limit: int | None) -> None:
        """Let a request far beyond the limit fail at once; the agent watches what is really used."""
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = hard
        if limit is not None:
            soft = linux.data_memory() + 2 * limit + _SPARE_MEMORY
            soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    def _buffer_lines(self, live: bool) -> None:
        """Let lines leave at once when a session waits for them; otherwise Python gathers them."""
        if self._stdout.line_buffering != live:
            self._stdout.reconfigure(line_buffering=live)

    def _put_back(self, task: dict[str, Any], duration: float) -> None:
        if self._channel.cancelled():
            self._retire = True
        self._leaves_calls = self._channel.forget_calls()
        if task["memory_limit"] is not None:
            self._limit_memory(None)
        try:
            sys.stdout.flush()
            sys.stderr.flush()
            if sys.stdout is not self._stdout or sys.stderr is not self._stderr:
                sys.stdout, sys.stderr = self._stdout, self._stderr
                self._stdout.flush()
                self._stderr.flush()
        except Exception:
            sys.stdout, sys.stderr = self._stdout, self._stderr
            self._retire = True
        if not end_helpers() or not self._state.restore(duration):
            self._retire = True

    def _flags(self) -> int:
        flags = 0
        if self._watch.touched():
            flags |= frames.TOUCHED
        if _reap() or self._leaves_calls:
            flags |= frames.LEFTOVERS
        if _unread(1) or _unread(2):
            flags |= frames.PRINTED
        if self._retire or _holds_more_than(self._memory_mark):
            flags |= frames.RETIRE
        return flags

    def _on_term(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._channel.pid or self._stop is None:
            os._exit(_ENDED_BY_TERM)
        self._stop()


def _raise_stopped() -> None:
    raise Stopped("its process got SIGTERM")


async def _completed(awaitable: Any) -> Any:
    return await awaitable


def describe(error: BaseException) -> str:
    """Return an exception as one text of bounded length, even when its own `__str__` fails."""
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException as reason:
        return f"{name} (its text cannot be shown: __str__ raised {type(reason).__name__})"
    return _cap(f"{name}: {text}" if text else name)


def _cap(text: str) -> str:
    text = text[: _LONGEST_ERROR + 1].encode("utf-8", "replace").decode()
    return text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}... (cut)"


def _failure_fields(kind: str, error: str, *, value: bytes = b"null", **fields: Any) -> bytes:
    """Return a failure as JSON; the value, which is JSON already, comes last."""
    head = orjson.dumps({"kind": kind, "error": error, **_clean(fields)})
    return len(head).to_bytes(4, "big") + head + value


def _clean(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
        for name, value in fields.items()
    }


def _request(error: BaseException) -> dict[str, Any]:
    """Return what the task asked for by its exception: `Retry` or `Permanent`."""
    if (errors := sys.modules.get("batchflow.errors")) is None:
        return {}
    if isinstance(error, errors.Retry):
        return {"request": "retry", "delay": float(error.delay)}
    return {"request": "permanent"} if isinstance(error, errors.Permanent) else {}


def _exit_code(error: SystemExit) -> int:
    """Return the exit code that Python itself would end with."""
    if error.code is None:
        return 0
    return error.code if isinstance(error.code, int) else 1


def _strip(trace: TracebackType | None) -> TracebackType | None:
    """Leave out the frames by which this package called the user's code."""
    while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace


def _is_ours(filename: str) -> bool:
    if filename.startswith((_OWN_FILES, "<frozen ")):
        return True
    return any(library in filename for library in _LIBRARIES)


def _working_directory() -> str | None:
    """Return the current directory; None when it was removed. To ask is cheaper than to change it, the more
    so the deeper it lies."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _reap() -> bool:
    """Reap the dead children of this process; return whether living ones are left."""
    try:
        while True:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return True
    except ChildProcessError:
        return False


def _unread(descriptor: int) -> bool:
    """Return whether bytes wait in the pipe behind a descriptor."""
    number = bytearray(4)
    try:
        fcntl.ioctl(descriptor, _FIONREAD, number)
    except OSError:
        return True
    return any(number)


def _holds_more_than(mark: int) -> bool:
    """Return whether this process's resident memory is above the mark; its peak, cheaper to know, may rule
    it out.

    The kernel counts into that peak what the agent had when it started this process, so it proves nothing.
    """
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 <= mark:
        return False
    return linux.resident_memory() > mark


def main() -> None:
    line = int(sys.argv[1])
    os.set_inheritable(line, False)
    sys.argv[1:] = []
    sys.dont_write_bytecode = True
    import faulthandler

    faulthandler.enable()
    descriptors = template.serve(line)
    linux.become_subreaper()  # so that the processes that a task leaves behind can be found
    channel = Channel(descriptors[template.LINE])
    kind, payload = channel.next_frame()
    if kind != frames.SETUP:
        os._exit(AGENT_GONE)
    settings = orjson.loads(payload)
    for name, value in settings["environment"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    Child(channel, descriptors[template.PERMITS], settings).serve()


if __name__ == "__main__":
    main()
