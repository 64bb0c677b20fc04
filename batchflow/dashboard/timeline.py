"""What ended in a pool in the last quarter of an hour: runs, rates, latencies, failures. Pure.

Everything is bounded: the oldest runs are forgotten first, and a bucket keeps a sample of its latencies.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from batchflow.protocol.activity import RETENTION

if TYPE_CHECKING:
    from batchflow.protocol.activity import ActivityBatch, SlotRun

MOST_RUNS: Final = 20_000
"""Runs that are remembered, some 400 bytes each."""
STEP: Final = 5.0
"""Seconds of a bucket."""
_BUCKETS: Final = round(RETENTION / STEP)
_SAMPLE: Final = 200
"""Latencies that a bucket keeps."""
_GROUPS: Final = 200
"""Kinds of failures that are remembered."""
_EXAMPLES: Final = 10
_AHEAD: Final = 60.0
"""Seconds that a node's clock may be ahead; what is further ahead counts as now."""

_QUOTED: Final = re.compile(r"'[^']{0,200}'|\"[^\"]{0,200}\"")
_NUMBER: Final = re.compile(r"\b(?:0x)?[0-9a-f]*[0-9][0-9a-f]*\b", re.IGNORECASE)

Row = tuple[str, str, str, str, str, float, float, float, str, str]
"""uid, label, command, session, node, submitted, started, finished, status, error."""


def kind_of(error: str) -> str:
    """Return what an error has in common with others of its kind: without numbers and quoted names."""
    return _NUMBER.sub("#", _QUOTED.sub("'…'", error.strip())) or "no error text"


def _oldest(now: float) -> int:
    """Return the number of the oldest bucket that counts."""
    return int(now // STEP) - _BUCKETS + 1


@dataclass(slots=True)
class _Bucket:
    ended: int = 0
    failed: int = 0
    cancelled: int = 0
    latencies: list[float] = field(default_factory=list)


@dataclass(slots=True)
class FailureKind:
    """Failures that say the same."""

    text: str
    """The newest error."""
    last: float = 0.0
    counts: Counter[int] = field(default_factory=Counter)
    """Failures by the bucket of their end."""
    commands: Counter[str] = field(default_factory=Counter)
    examples: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=_EXAMPLES))
    """uid and label of the newest."""

    @property
    def count(self) -> int:
        return self.counts.total()

    def forget(self, oldest: int) -> None:
        """Count only what ended in this bucket or later."""
        for number in [each for each in self.counts if each < oldest]:
            del self.counts[number]

    def document(self) -> dict[str, Any]:
        """Return it as the page gets it."""
        return {
            "text": self.text,
            "count": self.count,
            "last": self.last,
            "commands": [name for name, _ in self.commands.most_common(3)],
            "examples": list(self.examples)[::-1],
        }


class Timeline:
    """The record of a pool, put together from what its agents and the sessions of this process tell."""

    def __init__(self) -> None:
        self.runs: deque[Row] = deque(maxlen=MOST_RUNS)
        self.total: int = 0
        """Runs that were added, also those that are forgotten."""
        self.dropped: int = 0
        """Tasks that ended and of which no run is known."""
        self._known: OrderedDict[str, None] = OrderedDict()
        self._batches: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._buckets: dict[int, _Bucket] = {}
        self._groups: OrderedDict[str, FailureKind] = OrderedDict()

    def add_batch(self, batch: ActivityBatch, now: float) -> None:
        """Take what an agent told. A batch that came before changes nothing."""
        fresh = self.unknown([batch])
        deque(self.show(fresh, now), maxlen=0)
        deque(self.count(fresh, now), maxlen=0)

    def unknown(self, batches: Iterable[ActivityBatch]) -> list[ActivityBatch]:
        """Note batches, and return those that have not come before: for `show`, then for `count`."""
        found = []
        for batch in batches:
            key = (batch.agent, batch.number)
            if key not in self._batches:
                self._batches[key] = None
                found.append(batch)
        while len(self._batches) > MOST_RUNS:
            self._batches.popitem(last=False)
        return found

    def show(self, batches: Sequence[ActivityBatch], now: float) -> Iterator[None]:
        """Take the runs of batches, the oldest first, a batch at a step.

        Of more than `MOST_RUNS` runs the oldest would be forgotten at once: only the failures are taken.
        """
        later = sum(len(batch.runs) for batch in batches)
        for batch in batches:
            later -= len(batch.runs)
            for run in batch.runs:
                if later < MOST_RUNS or run.status == "failed":
                    self.add_run(batch.host, run, now)
            yield

    def count(self, batches: Iterable[ActivityBatch], now: float) -> Iterator[None]:
        """Take rates and latencies of batches, a batch at a step."""
        oldest, buckets = _oldest(now), self._buckets

        def bucket_of(at: float) -> _Bucket | None:
            number = int(min(at, now) // STEP)
            if number < oldest:
                return None
            found = buckets.get(number)
            if found is None:
                found = buckets[number] = _Bucket()
            return found

        for batch in batches:
            failed = cancelled = 0
            for run in batch.runs:
                is_failed, is_cancelled = run.status == "failed", run.status == "cancelled"
                failed += is_failed
                cancelled += is_cancelled
                bucket = bucket_of(run.finished_at)
                if bucket is not None:
                    bucket.ended += 1
                    bucket.failed += is_failed
                    bucket.cancelled += is_cancelled
                    if run.submitted_at and len(bucket.latencies) < _SAMPLE:
                        bucket.latencies.append(max(0.0, run.finished_at - run.submitted_at))
            self.dropped += batch.dropped
            if (bucket := bucket_of(batch.at)) is not None:
                bucket.ended += batch.dropped
                bucket.failed += max(0, batch.failed - failed)
                bucket.cancelled += max(0, batch.cancelled - cancelled)
            self._forget(now)
            yield

    def add_runs(self, runs: Iterable[tuple[str, SlotRun]], now: float) -> None:
        """Take the runs of a session of this process, with their hosts. Agents count them as well."""
        for host, run in runs:
            self.add_run(host, run, now)

    def add_run(self, host: str, run: SlotRun, now: float) -> None:
        """Take one run. One that is known, or too old, changes nothing."""
        if run.uid in self._known or run.finished_at < now - RETENTION:
            return
        self._known[run.uid] = None
        if len(self._known) > MOST_RUNS:
            self._known.popitem(last=False)
        finished = min(run.finished_at, now + _AHEAD)
        session = f"{run.job}/{run.client}"
        self.runs.append(
            (
                run.uid,
                run.task_id,
                run.command,
                session,
                host,
                run.submitted_at,
                min(run.started_at, finished),
                finished,
                run.status,
                run.error,
            )
        )
        self.total += 1
        if run.status == "failed":
            self._fail(run, finished, now)

    def since(self, seen: int) -> list[Row]:
        """Return the runs that were added after so many, as far as they are remembered."""
        fresh = min(self.total - seen, len(self.runs))
        return list(self.runs)[len(self.runs) - fresh :] if fresh > 0 else []

    def find(self, uid: str) -> Row | None:
        """Return the newest run of a task."""
        return next((row for row in reversed(self.runs) if row[0] == uid), None)

    def failures(self, now: float) -> list[dict[str, Any]]:
        """Return the groups of failures, the most frequent first. What is too old counts no longer."""
        for key, group in list(self._groups.items()):
            group.forget(_oldest(now))
            if not group.counts:
                del self._groups[key]
        groups = sorted(self._groups.values(), key=lambda group: (-group.count, -group.last))
        return [group.document() for group in groups[:50]]

    def series(self, now: float) -> dict[str, Any]:
        """Return rates and latencies by bucket, the oldest first, without the one that has not ended."""
        last = int(now // STEP)
        self._forget(now)
        buckets = [self._buckets.get(number) or _Bucket() for number in range(last - _BUCKETS + 1, last)]
        return {
            "step": STEP,
            "end": last * STEP,
            "rate": [round(each.ended / STEP, 2) for each in buckets],
            "failed": [round(each.failed / STEP, 2) for each in buckets],
            "p50": [quantile(each.latencies, 0.5) for each in buckets],
            "p99": [quantile(each.latencies, 0.99) for each in buckets],
        }

    def rate(self, now: float, seconds: float = 30.0) -> float:
        """Return the tasks that ended in a second, over the last whole buckets."""
        last = int(now // STEP)
        count = round(seconds / STEP)
        ended = sum(self._buckets[each].ended for each in range(last - count, last) if each in self._buckets)
        return ended / (count * STEP)

    def latency(self, now: float, share: float, seconds: float = 60.0) -> float | None:
        """Return the quantile of the seconds from submit to end; None when nothing ended."""
        last = int(now // STEP)
        found: list[float] = []
        for number in range(last - round(seconds / STEP), last + 1):
            if (bucket := self._buckets.get(number)) is not None:
                found += bucket.latencies
        return quantile(found, share)

    def _forget(self, now: float) -> None:
        if len(self._buckets) > _BUCKETS:
            for number in [each for each in self._buckets if each < _oldest(now)]:
                del self._buckets[number]

    def _fail(self, run: SlotRun, finished: float, now: float) -> None:
        key = kind_of(run.error)
        group = self._groups.setdefault(key, FailureKind(run.error))
        self._groups.move_to_end(key)
        if len(self._groups) > _GROUPS:
            self._groups.popitem(last=False)
        group.text = run.error or "no error text"
        group.counts[int(finished // STEP)] += 1
        if len(group.counts) > _BUCKETS:
            group.forget(_oldest(now))
        group.last = max(group.last, finished)
        group.commands[run.command] += 1
        if len(group.commands) > _GROUPS:
            del group.commands[min(group.commands, key=group.commands.__getitem__)]
        group.examples.append((run.uid, run.task_id))


def quantile(values: list[float], share: float) -> float | None:
    """Return a quantile of what was seen, rounded; None without any."""
    if not values:
        return None
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4)
