"""Metrics of tasks: counters that are read when they are exported, and histograms of the sampled tasks.

A histogram's `record` costs as much as a small task, so it is called for sampled tasks alone: the shape is
the same. Counters are plain numbers here; they are exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from batchflow.sessions.tracing.providers import active_meter

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation

    from batchflow.protocol.wire import ResultItem

_POISONED: Final = "TaskPoisoned"

_Labels = tuple[tuple[str, str], ...]


class Meters:
    """The instruments of this process. All sessions share them."""

    def __init__(self, meter: Meter) -> None:
        self._tasks: Counter[_Labels] = Counter()
        self._retries: Counter[_Labels] = Counter()
        self._dead_letters: Counter[_Labels] = Counter()
        self._busy: dict[_Labels, int] = {}
        self._slots: dict[_Labels, int] = {}
        for name, numbers, text in (
            ("batchflow.tasks", self._tasks, "Tasks that have ended, by outcome."),
            ("batchflow.task.retries", self._retries, "Attempts after the first one."),
            ("batchflow.dead_letters", self._dead_letters, "Tasks that the broker gave up on."),
        ):
            meter.create_observable_counter(name, [_reader(numbers)], unit="{task}", description=text)
        for name, slots, text in (
            ("batchflow.slots.busy", self._busy, "Slots that ran a task at these agents' last heartbeats."),
            (
                "batchflow.slots",
                self._slots,
                "Slots of the agents that live, extrapolated from a sample.",
            ),
        ):
            meter.create_observable_gauge(name, [_reader(slots)], unit="{slot}", description=text)
        self._queue_wait = meter.create_histogram(
            "batchflow.task.queue_wait", "s", "From the submission of a task to its beginning on a node."
        )
        self._run_time = meter.create_histogram("batchflow.task.run_time", "s", "How long a task ran.")
        self._round_trip = meter.create_histogram(
            "batchflow.task.round_trip", "s", "From the submission of a task to its result in the session."
        )

    def ended(self, pool: str, item: ResultItem) -> None:
        """Count a task that has its outcome."""
        labels: _Labels = (("batchflow.pool", pool),)
        self._tasks[(*labels, ("batchflow.outcome", item.status.value))] += 1
        if item.attempt > 1:
            self._retries[labels] += item.attempt - 1
        if item.kind == _POISONED:
            self._dead_letters[labels] += 1

    def letters(self, pool: str, kinds: Iterable[str]) -> None:
        """Count the tasks of dead letters that this client has turned into results, by the kinds of these.

        Not those that are poisoned: `ended` counts them, in whichever client their session is.
        """
        self._dead_letters[(("batchflow.pool", pool),)] += sum(kind != _POISONED for kind in kinds)

    def times(self, pool: str, item: ResultItem, now: float) -> None:
        """Record the times of a sampled task. `now`: seconds since the epoch, when its result came."""
        labels = {"batchflow.pool": pool, "batchflow.command": item.command}
        if item.started_at is not None:
            self._queue_wait.record(max(0.0, item.started_at - item.submitted_at), labels)
            if item.finished_at is not None:
                self._run_time.record(max(0.0, item.finished_at - item.started_at), labels)
        self._round_trip.record(max(0.0, now - item.submitted_at), labels)

    def slots(self, pool: str, busy: int, slots: int) -> None:
        """Note what the agents' heartbeats say."""
        labels: _Labels = (("batchflow.pool", pool),)
        self._busy[labels], self._slots[labels] = busy, slots


class _Current:
    """The meters of the program's provider."""

    provider: object = None
    meters: Meters | None = None


def active_meters() -> Meters | None:
    """Return the process's instruments; None where the program has set up no metrics."""
    found = active_meter()
    if found is None:
        return None
    provider, meter = found
    if _Current.provider is not provider:
        _Current.provider, _Current.meters = provider, Meters(meter)
    return _Current.meters


class _reader:  # noqa: N801 - a function with a state, called by the exporter's thread
    def __init__(self, numbers: Mapping[_Labels, int]) -> None:
        self._numbers = numbers

    def __call__(self, options: CallbackOptions) -> Iterable[Observation]:
        from opentelemetry.metrics import Observation

        return [Observation(number, dict(labels)) for labels, number in list(self._numbers.items())]
