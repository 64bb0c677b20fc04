"""A session's last tasks with what was put in and what came out, as text, while a live view watches. Pure.

Nothing is kept before the first view, and what is kept is bounded in number and in length.
"""

from __future__ import annotations

import reprlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from datetime import date, timedelta
from datetime import time as time_of_day
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from batchflow.model import Status, StoredArgument
from batchflow.protocol.activity import MOST_TEXT, SlotRun
from batchflow.protocol.values import arguments
from batchflow.protocol.values.kept import KeptArguments
from batchflow.protocol.values.received import ReceivedValue
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.protocol.wire import ResultItem
    from batchflow.sessions.records.task_options import TaskOptions
    from batchflow.sessions.records.tracker import Entry

MOST_RUNS: Final = 5_000
MOST_DETAILS: Final = 500
"""Tasks that succeeded whose details are kept, and as many that did not."""
MOST_LOOK: Final = 100
"""Tasks that are noted between two looks."""
MOST_VALUE: Final = 2_000
"""Characters of arguments and of a value."""
MOST_ARGUMENTS: Final = 64 * 1024
"""Bytes of encoded arguments that are kept, and opened to be shown."""
MOST_OUTPUT: Final = 16_000
"""Characters of a traceback and of what was printed."""

_PLAIN: Final = (bool, bytes, complex, date, float, time_of_day, timedelta, type(None), UUID)


class _Text(reprlib.Repr):
    """Values as short texts. Objects are named by their type: to print a large table takes milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 400
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 20
        self.maxlevel = 4

    def repr_instance(self, x: Any, level: int) -> str:
        if isinstance(x, _PLAIN):
            return super().repr_instance(x, level)
        if isinstance(x, StoredArgument):
            return f"<{x.kind}, {x.size:,} bytes in Blob Storage>"
        shape = getattr(x, "shape", None)
        return f"<{type(x).__name__}{f' {shape}' if type(shape) is tuple else ''}>"


_text: Final = _Text()


@frozen
class LargeArguments:
    """Stands for arguments that are too large to be kept."""

    size: int
    """In bytes, encoded."""


class RecentTasks:
    """The last tasks that ended since a view watches."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: returns the seconds since the epoch."""
        self._clock = clock
        self._runs: deque[SlotRun] = deque(maxlen=MOST_RUNS)
        self._hosts: deque[str] = deque(maxlen=MOST_RUNS)
        self._total = 0
        self._room = MOST_LOOK
        self._succeeded: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._others: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def add(self, entry: Entry, item: ResultItem) -> None:
        """Note a task that has its outcome, unless too many have ended since the last look.

        A flood of short tasks is not slowed by a view. Tasks that failed have a quarter of the room alone.
        """
        self._room -= 1
        if self._room < (MOST_LOOK // 4 if item.status is Status.SUCCEEDED else 0):
            self._room += 1
            return
        self._total += 1
        self._runs.append(_run(entry, item, self._clock()))
        self._hosts.append(item.host or "")
        kept = self._succeeded if item.status.value == "succeeded" else self._others
        kept[entry.uid] = detail(entry, item) | {
            "received": self._clock(),
            "args": _kept(entry.arguments),
            "options": entry.options,
        }
        if len(kept) > MOST_DETAILS:
            kept.popitem(last=False)

    def since(self, seen: int) -> tuple[int, Iterable[tuple[str, SlotRun]]]:
        """Return the number of tasks that were noted, and host and run of those that came after `seen`."""
        self._room = MOST_LOOK
        fresh = min(self._total - seen, len(self._runs))
        pairs = list(zip(self._hosts, self._runs, strict=True))
        return self._total, pairs[len(pairs) - fresh :]

    def find_arguments(self, uid: str) -> tuple[dict[str, Any], Any] | None:
        """Return the details of a task, and its arguments as the session keeps them; None: not kept.

        `LargeArguments` stands for those of more than `MOST_ARGUMENTS`.
        """
        known = self._succeeded.get(uid) or self._others.get(uid)
        return None if known is None else (known, known["args"])

    def find(self, uid: str) -> dict[str, Any] | None:
        """Return the details of a task; None when they are not kept."""
        known = self._succeeded.get(uid) or self._others.get(uid)
        if known is None:
            return None
        return known | {"args": _shown(known["args"]), "options": _options_text(known["options"])}


def detail(entry: Entry, item: ResultItem | None) -> dict[str, Any]:
    """Return what is known of a task, as texts and numbers. `item`: its outcome, if it has one."""
    known: dict[str, Any] = {
        "uid": entry.uid,
        "task_id": entry.task_id,
        "command": entry.command,
        "job": entry.job,
        "client": entry.client,
        "status": entry.status.value,
        "submitted": entry.submitted_at,
        "args": _shown(entry.arguments) if item is None else None,
        "options": _options_text(entry.options) if item is None else None,
    }
    if item is None:
        if entry.running_on is not None:
            known |= {"node": entry.running_on.host, "started": entry.running_on.since}
        return known
    return known | {
        "status": item.status.value,
        "kind": item.kind,
        "error": _cut(item.error, MOST_OUTPUT),
        "traceback": _cut(item.traceback, MOST_OUTPUT),
        "stdout": _cut(item.stdout, MOST_OUTPUT),
        "stderr": _cut(item.stderr, MOST_OUTPUT),
        "value": _shown(item.value) if item.status.value == "succeeded" else None,
        "node": item.host,
        "attempt": item.attempt,
        "attempts": [
            {"number": each.number, "error": _cut(each.error, 500), "node": each.node, "at": each.finished_at}
            for each in item.history[-20:]
        ],
        "started": item.started_at,
        "finished": item.finished_at,
        "files": list(item.files[:100]),
    }


def _run(entry: Entry, item: ResultItem, now: float) -> SlotRun:
    finished = now if item.finished_at is None else item.finished_at
    return SlotRun(
        uid=entry.uid,
        task_id=entry.task_id[:MOST_TEXT],
        command=entry.command[:MOST_TEXT],
        job=entry.job,
        client=entry.client,
        submitted_at=entry.submitted_at,
        started_at=finished if item.started_at is None else item.started_at,
        finished_at=finished,
        status=item.status.value,
        error=(item.error or "").partition("\n")[0][:MOST_TEXT],
    )


def _kept(given: list[Any] | KeptArguments | None) -> list[Any] | KeptArguments | LargeArguments | None:
    """Return arguments, or what stands for them where they are large."""
    if given is None:
        return None
    size = len(given.data if isinstance(given, KeptArguments) else arguments.in_blob(given, None))
    return LargeArguments(size) if size > MOST_ARGUMENTS else given


def _options_text(options: TaskOptions | None) -> str | None:
    """Return options as they are written in a call."""
    if options is None:
        return None
    return _cut(", ".join(f"{name}={value!r}" for name, value in options.items()), MOST_VALUE)


def _shown(value: Any) -> str:
    """Return a value as text: nothing of it is copied but what is shown."""
    if isinstance(value, KeptArguments):
        value = _kept(value)
    if isinstance(value, LargeArguments):
        return f"{value.size:,} bytes"
    if isinstance(value, KeptArguments):
        value = value.open()
    if type(value) is ReceivedValue:
        value = value.value
    return _cut(_text.repr(value), MOST_VALUE) or ""


def _cut(text: str | None, most: int) -> str | None:
    if text is None or len(text) <= most:
        return text
    return f"{text[: most // 4]}\n… {len(text) - most:,} characters are left out …\n{text[-most * 3 // 4 :]}"
