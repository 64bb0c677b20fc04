"""The record of what agents' slots did in the last quarter of an hour, as it lies in Blob Storage. Pure.

An agent appends one line of JSON for each interval in which tasks ended. Its blobs are a ring: each takes a
fifth of the time, and begins anew when its turn comes again. So the record never grows beyond its bound, and
needs no right to delete.

Code on a node can write the record too. So a reader checks each field, and passes over a line that is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import orjson

from batchflow.protocol import layout
from batchflow.support.frozen import frozen

VERSION: Final = 1
RETENTION: Final = 900.0
"""Seconds for which the record is kept, at least."""
SEGMENT: Final = 300.0
"""Seconds that one blob of the ring takes."""
SEGMENTS: Final = 4
"""Blobs of the ring: those of `RETENTION`, and the one that is being written."""
MOST_TEXT: Final = 200
"""Characters of a text in the record; the rest is cut."""
LAST_TIME: Final = 1e11
"""Seconds since the epoch, in the year 5138: what a node says is later was made up."""
STATUSES: Final = ("succeeded", "failed", "cancelled")
_LONGEST_LINE: Final = 1024 * 1024
"""Bytes of a line that are read; an agent writes far less."""


class SlotRun(NamedTuple):
    """One try of a task that ended it. Times are seconds since the epoch, by the node's clock."""

    uid: str
    task_id: str
    command: str
    job: str
    client: str
    submitted_at: float
    started_at: float
    finished_at: float
    status: str
    """One of `STATUSES`."""
    error: str = ""
    """The first line of the error; empty without one."""


@frozen
class ActivityBatch:
    """What one agent tells of one interval."""

    agent: str
    node: str
    """The node's id in Batch."""
    host: str
    number: int
    """Counted by the agent from 0: a line that was appended twice is known by it."""
    at: float
    ended: int
    """Tasks that ended, also those without a run here."""
    failed: int
    """Of these, those that failed."""
    cancelled: int
    runs: Sequence[SlotRun]

    @property
    def dropped(self) -> int:
        """Tasks that ended without a run here, because there were too many."""
        return max(0, self.ended - len(self.runs))


def encode(batch: ActivityBatch) -> bytes:
    """Write a batch as a line."""
    document = {
        "v": VERSION,
        "agent": batch.agent,
        "node": batch.node,
        "host": batch.host,
        "number": batch.number,
        "at": batch.at,
        "ended": batch.ended,
        "failed": batch.failed,
        "cancelled": batch.cancelled,
        "runs": batch.runs,
    }
    return orjson.dumps(document, default=tuple, option=orjson.OPT_APPEND_NEWLINE)


def decode(data: bytes) -> Iterator[ActivityBatch]:
    """Read what was appended; a line that is cut, of a later version or not valid is left out."""
    for line in data.splitlines():
        if 0 < len(line) <= _LONGEST_LINE and (batch := _batch(line)) is not None:
            yield batch


def segment_blob(agent: str, at: float) -> str:
    """Return the blob that an agent writes at that time. `at`: seconds since the epoch."""
    return f"{layout.ACTIVITY}{agent}/{segment(at) % SEGMENTS}.jsonl"


def segment(at: float) -> int:
    """Return the number of the segment that a time is in."""
    return math.floor(at / SEGMENT)


def _batch(line: bytes) -> ActivityBatch | None:
    try:
        told: Any = orjson.loads(line)
        if not isinstance(told, dict) or not _is_whole(told["v"]) or told["v"] > VERSION:
            return None
        names = [told[key] for key in ("agent", "node", "host")]
        numbers = [told[key] for key in ("number", "ended", "failed", "cancelled")]
        if not all(map(_is_text, names)) or not all(map(_is_whole, numbers)) or not _is_time(told["at"]):
            return None
        runs = tuple(run for row in told["runs"] if _is_run(run := SlotRun(*row)))
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    agent, node, host = names
    number, ended, failed, cancelled = numbers
    return ActivityBatch(agent, node, host, number, told["at"], ended, failed, cancelled, runs)


def _is_run(run: SlotRun) -> bool:
    texts = (run.uid, run.task_id, run.command, run.job, run.client, run.error)
    times = (run.submitted_at, run.started_at, run.finished_at)
    return all(map(_is_text, texts)) and all(map(_is_time, times)) and run.status in STATUSES


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= MOST_TEXT + 1  # the mark of a cut text is one more


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < LAST_TIME
