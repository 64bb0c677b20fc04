"""What the times of many tasks show. Pure: times are seconds since 1970."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

_MOST_NAMES: Final = 3
"""Tasks that a group of failures names."""
_FULL: Final = 0.8
"""Share of the slots' time from which the slots are what limited a run."""
_TAIL_SHARE: Final = 0.15
"""Share of a run's time from which its slow beginning or end is worth a sentence."""
_SHORT: Final = 0.005
"""Seconds below which a task costs about as much on its way as where it runs."""


@dataclass(frozen=True, slots=True)
class EndedTask:
    """One task that has ended."""

    task_id: str
    command: str
    node: str | None
    """None: no node has begun with it."""
    status: str
    kind: str | None
    """The class of the error."""
    error: str | None
    """The first line of the error."""
    submitted_at: float
    started_at: float | None
    finished_at: float | None

    @property
    def ran(self) -> bool:
        """Whether it is known from when to when it ran."""
        return self.started_at is not None and self.finished_at is not None

    @property
    def seconds(self) -> float:
        """How long it ran; 0.0 when that is not known."""
        if self.started_at is None or self.finished_at is None:
            return 0.0
        return max(0.0, self.finished_at - self.started_at)

    @property
    def waited(self) -> float:
        """Seconds from submit to start. The clocks of two machines differ, so it is at least 0.0."""
        return 0.0 if self.started_at is None else max(0.0, self.started_at - self.submitted_at)


@dataclass(frozen=True, slots=True)
class CommandFigures:
    """The tasks of one command. Times are in seconds; `None` where no task ran."""

    command: str
    tasks: int
    failed: int
    median: float | None
    p99: float | None
    longest: float | None
    total: float
    waited: float | None
    """The median of the seconds from submit to start."""


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Tasks that failed with the same words, numbers aside."""

    kind: str
    text: str
    count: int
    task_ids: tuple[str, ...]
    """The first few."""
    commands: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TimelineBar:
    """A task in a lane of its node."""

    lane: int
    run: EndedTask


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the value below which that share of sorted values lies, by the nearest rank; None of nothing."""
    if not values:
        return None
    return values[max(0, math.ceil(share * len(values)) - 1)]


def by_command(runs: Iterable[EndedTask]) -> list[CommandFigures]:
    """Return the figures of each command, that with the most time first."""
    groups: dict[str, list[EndedTask]] = defaultdict(list)
    for run in runs:
        groups[run.command].append(run)
    return sorted(map(_figures, groups.values()), key=lambda each: (-each.total, each.command))


def _figures(runs: list[EndedTask]) -> CommandFigures:
    took = sorted(run.seconds for run in runs if run.ran)
    waited = sorted(run.waited for run in runs if run.ran)
    return CommandFigures(
        command=runs[0].command,
        tasks=len(runs),
        failed=sum(run.status == "failed" for run in runs),
        median=percentile(took, 0.5),
        p99=percentile(took, 0.99),
        longest=percentile(took, 1.0),
        total=sum(took),
        waited=percentile(waited, 0.5),
    )


def failure_groups(runs: Iterable[EndedTask]) -> list[FailureGroup]:
    """Return the failures by what they say, the most frequent first."""
    groups: dict[tuple[str, str], list[EndedTask]] = defaultdict(list)
    for run in runs:
        if run.status == "failed":
            groups[run.kind or "", _without_numbers(run.error or "")].append(run)
    found = [
        FailureGroup(
            kind=kind,
            text=members[0].error or "",
            count=len(members),
            task_ids=tuple(run.task_id for run in members[:_MOST_NAMES]),
            commands=tuple(sorted({run.command for run in members})),
            nodes=tuple(sorted({run.node for run in members if run.node is not None})),
        )
        for (kind, _), members in groups.items()
    ]
    return sorted(found, key=lambda group: -group.count)


def _without_numbers(text: str) -> str:
    return "".join("0" if character.isdigit() else character for character in text)


def period(runs: Iterable[EndedTask]) -> tuple[float, float] | None:
    """Return when the first task began and the last one ended; None when none ran."""
    ran = [run for run in runs if run.ran]
    if not ran:
        return None
    start = min(run.started_at or 0.0 for run in ran)
    return start, max(start, max(run.finished_at or 0.0 for run in ran))


def parallelism(runs: Iterable[EndedTask], start: float, end: float, bins: int) -> list[float]:
    """Return the mean number of tasks that ran in each of equal parts of a period."""
    if end <= start:
        return [0.0] * bins
    width = (end - start) / bins
    busy = [0.0] * bins
    for run in runs:
        if run.started_at is None or run.finished_at is None:
            continue
        first, last = (run.started_at - start) / width, (run.finished_at - start) / width
        for index in range(max(0, int(first)), min(bins - 1, int(last)) + 1):
            busy[index] += max(0.0, min(last, index + 1) - max(first, index))
    return busy


def lanes(runs: Iterable[EndedTask]) -> dict[str, list[TimelineBar]]:
    """Return the tasks of each node in lanes, in none of which two tasks overlap."""
    nodes: dict[str, list[EndedTask]] = defaultdict(list)
    for run in runs:
        if run.ran and run.node is not None:
            nodes[run.node].append(run)
    return {node: _placed(nodes[node]) for node in sorted(nodes)}


def _placed(runs: list[EndedTask]) -> list[TimelineBar]:
    free_from: list[float] = []
    placed = []
    for run in sorted(runs, key=lambda run: (run.started_at or 0.0, run.finished_at or 0.0)):
        begun, ended = run.started_at or 0.0, run.finished_at or 0.0
        lane = next((index for index, free in enumerate(free_from) if free <= begun), len(free_from))
        if lane == len(free_from):
            free_from.append(ended)
        free_from[lane] = ended
        placed.append(TimelineBar(lane, run))
    return placed


def limits(runs: Sequence[EndedTask], slots: int | None) -> list[str]:
    """Say in sentences what kept the tasks from ending sooner, the most important first.

    `slots`: of the pool; None, or too few: as many as were ever seen busy at once.
    """
    ran = [run for run in runs if run.ran]
    span = period(ran)
    if span is None or span[1] <= span[0]:
        return ["No task ran for a measurable time."]
    start, end = span
    places = max(slots or 1, most_at_once(ran))
    asked = min(run.submitted_at for run in ran)
    whole = end - min(asked, start)
    busy = sum(run.seconds for run in ran) / (places * (end - start))
    said = []
    if start - asked > _TAIL_SHARE * whole:
        said.append(f"The first task began {start - asked:.3g} s after the first submit: no node was ready.")
    tail = _tail(ran, start, end, places)
    if tail > _TAIL_SHARE * (end - start):
        said.append(
            f"In the last {tail:.3g} s fewer than half of the {places} slots were busy: submit the longest "
            f"tasks first, or divide them."
        )
    took = sorted(run.seconds for run in ran)
    median = percentile(took, 0.5) or 0.0
    if busy >= _FULL:
        said.append(f"The {places} slots were busy {busy:.0%} of the time: more nodes would end it sooner.")
    elif median < _SHORT:
        said.append(
            f"Half of the tasks ran for less than {1000 * median:.2g} ms, about as long as a task is on its "
            f"way: do more in each task."
        )
    elif not said:
        said.append(
            f"The {places} slots were busy {busy:.0%} of the time: tasks were submitted more slowly than "
            f"they could run."
        )
    return said


def most_at_once(runs: Iterable[EndedTask]) -> int:
    """Return the greatest number of tasks that ran at the same time; at least 1."""
    moments = []
    for run in runs:
        if run.started_at is not None and run.finished_at is not None:
            moments += [(run.started_at, 1), (run.finished_at, -1)]
    most = now = 0
    for _, step in sorted(moments):  # at one moment, ends come before starts
        now += step
        most = max(most, now)
    return max(1, most)


def _tail(ran: Sequence[EndedTask], start: float, end: float, places: int) -> float:
    """Return how long before the end fewer than half of the slots were busy without a break."""
    if places < 2:
        return 0.0
    bins = 200
    busy = parallelism(ran, start, end, bins)
    idle = next((index for index, number in enumerate(reversed(busy)) if number >= places / 2), bins)
    return idle * (end - start) / bins
