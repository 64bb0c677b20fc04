"""How many tasks share a message, and how many messages share a send: a pure policy.

A message costs the sender, the broker and the agent far more than a small task does, so tasks that come fast
ride together. Rules:

- Nothing waits for company: the policy is asked when the link is free, and takes from what is there. Only
  while tasks come so fast that `PACE` seconds bring several of them, sends begin that far apart; or while
  what is under way keeps every slot busy for longer than a pack would, for then hurry gains nothing. (A map
  submits as results come. Without that rule a few tasks that rode alone would come back alone, be followed
  by as many that ride alone, without end.)
- A task that takes longer than the work that a pack may hold rides alone. So do the first of a command whose
  duration is not known, `PROBES` for each slot. Those after them cannot begin before one of these has ended.
  A tenth of those that wait for each slot may ride together, each counted as `GUESS`: agents start them alone
  all the same, for they do not know the command either, and hand back what would wait should it be long.
- Tasks that share a pack are at most `work` seconds of expected work together, whatever their commands, at
  most `MOST_TASKS` and at most `MOST_BYTES` bytes. A single task makes a pack, however large.
- While a tenth of what every slot has left to do is more than `work`, a pack may hold that much, up to
  `MOST_WORK`: it delays no task then, and saves messages. As the backlog runs out packs shrink again, so that
  the last of them leave no slot idle for long. What is known to be the end of a burst is cut finer still:
  each pack takes half of what every slot has left, down to `LAST` seconds.
- What waits is spread over the slots that could take it, so that none idles while a pack holds the last
  tasks. Less than `least` seconds of work is not spread, for it would cost more messages than it saves time;
  nor is what would make more than `MOST_MESSAGES` messages a second at the rate at which tasks come; nor
  anything while what is under way keeps every slot busy for longer than a pack would.
- `work` and `least` follow the broker's round trip, measured with each send: an agent has one message in
  advance while its tasks are short, so a pack must last about as long as it takes to get the next one; and
  what a task gains by a message of its own is judged against the trips that it makes anyway.
- Sessions of one client know of each other's work. What they have under way counts as the session's own.
  While they keep every slot busy a session waits for a pace before each send, so that its packs are filled.
  While they do, the tasks of a map that is being submitted wait until they fill a message, and the end of a
  session's burst is no end: it is not cut finer.
- What keeps every slot busy is judged by the durations of tasks. Client, broker and agents may be slower than
  the slots, above all where these are many. So in a stream of tasks the time that a task is under way counts
  as well, by Little's law: how many are under way, by the rate at which they come. While it is longer than a
  pack, tasks wait for a pack to be filled, and are not spread: idle slots would not make them come sooner.
- Messages that are ready together leave in one send: at most two for each slot, `MOST_SENT` in all, and
  `MOST_BYTES` bytes, so that the rate at which slots are filled does not depend on the round trip. Under load
  sends begin further apart while the broker has much that is not done, so that packs are filled, and what
  would not fill another message waits for the next send.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from batchflow.protocol.durations import LEAST_DURATION, WEIGHT, Durations

if TYPE_CHECKING:
    from batchflow.protocol.documents import Heartbeat

MOST_TASKS: Final = 200
"""With less, an agent that is 20 ms away from the broker could not be kept busy with no-ops."""
MOST_BYTES: Final = 230_000
"""Below Service Bus's 256 KB in the Standard tier, with room for its own headers. Two tasks of 100 KB fit."""
MOST_SENT: Final = 100
"""Messages of one send."""
MOST_MESSAGES: Final = 100.0
"""Messages a second that a session makes by spreading tasks: two fifths of what the credits of a namespace of
the Standard tier allow, as each costs about four of its thousand with the results that come back."""
MOST_WORK: Final = 0.099
"""Seconds of expected work that a pack may hold, however much there is to do. Two tasks of 45 ms fit, also
where the clock shows a little more."""
PROBES: Final = 2
"""Tasks of an unknown command that ride alone, for each slot: one that runs, and one that follows."""
GUESS: Final = 0.005
"""Seconds that a task of an unknown command counts as, once it may share a message."""
LAST: Final = 0.02
"""Seconds of work below which the packs at the end of a burst do not shrink."""
PACE: Final = 0.002
"""Seconds between the beginnings of two sends under load: what a message costs client, broker and agent."""
ENVELOPE: Final = 512
"""Bytes that a message of several in a send takes besides its body."""

_WORK: Final = (0.03, 0.05)
"""The least and the most seconds of expected work that a pack may hold where there is no backlog."""
_OF_BACKLOG: Final = 0.1
"""What a pack may hold of the work that every slot has left, as far as this is more."""
_LOADED_PACE: Final = 0.02
"""The most seconds between the beginnings of two sends: by then a pack of no-ops is full."""
_OF_UNDER_WAY: Final = 0.05
"""How far sends begin apart, of the time that what is under way takes, as far as this is more."""
_STREAM: Final = 2 / PACE
"""Tasks a second from which on they are a stream."""
_LEAST: Final = (PACE, 0.01)
"""The least and the most seconds of work below which tasks are not spread."""
_LONG: Final = 1.0
"""Seconds: a task that has run for longer holds its slot, as far as short ones are concerned."""
_ROUNDING: Final = 1 + 1e-9
"""Thirty durations of a thirtieth are not more than the whole."""
_MEMORY: Final = 1.0
"""Seconds over which the rate of arrivals is taken."""


@dataclass(slots=True, eq=False)
class PackingPolicy:
    """How a sender packs, from what it learned of commands, broker and the stream of tasks."""

    slots: int = 1
    """Places for running tasks that can be counted on: see `open_slots`."""
    durations: Durations = field(default_factory=Durations)
    round_trip: float | None = None
    """Seconds that a send takes; None before the first."""
    rate: float = 0.0
    """Tasks a second that have been submitted lately."""
    elsewhere: float = 0.0
    """Seconds of work, of all slots together, that other sessions of the client have under way."""
    _submitted: int = 0
    _asked_at: float | None = None
    _latest: float = 0.0
    """The rate of the tasks that went into the last packs."""

    @property
    def work(self) -> float:
        """Seconds of expected work in a pack, at most, where there is no backlog."""
        least, most = _WORK
        return 2 * MOST_WORK if self.round_trip is None else min(most, max(least, 2 * self.round_trip))

    @property
    def least(self) -> float:
        """Seconds of work that are not spread; nothing before it is known what a message costs."""
        if self.round_trip is None:
            return 0.0
        least, most = _LEAST
        return min(most, max(least, self.round_trip / 2))

    def seen(self, command: str, duration: float) -> None:
        """Note that a task of this command took so many seconds."""
        durations = self.durations
        durations.seen(command, duration)
        durations.probes.pop(command, None)
        # A long one counts as a full pack, so that a few of them do not make a backlog.
        durations.overall += WEIGHT * (min(max(duration, LEAST_DURATION), MOST_WORK) - durations.overall)

    def sent(self, took: float) -> None:
        """Note that a send was accepted after so many seconds. Slow ones weigh little: they tell of load."""
        known = self.round_trip
        if known is None:
            self.round_trip = took
        else:
            self.round_trip = known + (0.5 if took < known else 0.02) * (took - known)

    def submitted(self, total: int, now: float) -> None:
        """Note how many tasks have been submitted until now. Called whenever packs are about to be made."""
        passed = _MEMORY if self._asked_at is None else max(0.0, now - self._asked_at)
        self.rate = self.rate * math.exp(-passed / _MEMORY) + (total - self._submitted) / _MEMORY
        self._latest = (total - self._submitted) / max(passed, PACE)
        self._submitted, self._asked_at = total, now

    def pause(self, now: float, under_way: int = 0, size: int = 0) -> float:
        """Return the seconds to wait before the next packs. 0 as soon as tasks come one by one again and
        may begin soon. `under_way`: as for `pack`; `size`: bytes that wait."""
        busy = self._busy(under_way)
        pace = min(_LOADED_PACE, max(PACE, _OF_UNDER_WAY * self._delay(under_way)))
        if self._is_busy_elsewhere(under_way) and size < MOST_BYTES:
            return pace
        if self._asked_at is None:
            return 0.0
        if not self._is_stream and (busy <= self.work or size >= MOST_BYTES):
            return 0.0
        return max(0.0, self._asked_at + pace - now)

    def gathers(self, waiting: int, size: int) -> bool:
        """Return whether a message is to be filled with tasks that are being submitted.

        So it is while other sessions keep every slot busy. Arguments: the tasks and bytes that wait.
        """
        return self.others_are_busy and waiting < self._full and size < MOST_BYTES

    def messages(self, waiting: int, under_way: int = 0, *, is_last: bool = False) -> int:
        """Return how many messages may share the next send. Arguments as for `pack`."""
        most = min(MOST_SENT, 2 * max(1, self.slots))
        if is_last or self._delay(under_way) <= self.work:
            return most
        return min(most, max(1, waiting // self._full))

    def pack(
        self, waiting: int, under_way: int = 0, room: int = MOST_BYTES, *, is_last: bool = False
    ) -> Pack:
        """Return a message to fill now. `waiting`: how many tasks there are in all; `under_way`: how many the
        broker has that have no outcome; `room`: the bytes that are left in the send; `is_last`: whether no
        more tasks are coming after these, as far as is known."""
        busy, share = self._busy(under_way), waiting / max(1, self.slots)
        least = self.least
        if self.round_trip is None or self._delay(under_way) <= self.work:
            most = max(math.ceil(share), math.ceil(self.rate / MOST_MESSAGES))
        elif is_last:
            most, least = math.ceil(share / 2), max(least, LAST)
        else:
            most = MOST_TASKS
        return Pack(
            self.durations.means,
            most=min(MOST_TASKS, max(1, most)),
            most_work=self.work,
            least_work=least,
            room=room,
            busy=busy,
            waiting=share,
            probes=self.durations.probes,
            enough=None if self.round_trip is None else PROBES * max(1, self.slots),
        )

    @property
    def others_are_busy(self) -> bool:
        """Whether other sessions keep every slot busy for longer than a pack would."""
        return self.elsewhere / max(1, self.slots) > self.work

    @property
    def _full(self) -> int:
        """The tasks of a full pack."""
        return min(MOST_TASKS, math.ceil(MOST_WORK / max(self.durations.overall, LEAST_DURATION)))

    def _is_busy_elsewhere(self, under_way: int) -> bool:
        """Whether other sessions keep every slot busy for longer than a pack would, and this one does not."""
        own = under_way * self.durations.overall / max(1, self.slots)
        return own <= self.work < self._busy(under_way)

    @property
    def _is_stream(self) -> bool:
        return min(self.rate, self._latest) >= _STREAM

    def _delay(self, under_way: int) -> float:
        """Return the seconds until a task that is sent now has its turn."""
        busy = self._busy(under_way)
        return max(busy, under_way / max(self.rate, self._latest)) if self._is_stream else busy

    def _busy(self, under_way: int) -> float:
        """Return the seconds that what is under way keeps every slot busy."""
        return (under_way * self.durations.overall + self.elsewhere) / max(1, self.slots)


@dataclass(slots=True)
class Pack:
    """A message that is being filled, task by task."""

    durations: Mapping[str, float]
    """Seconds, by command."""
    most: int
    """Tasks, unless they are next to no work."""
    most_work: float
    """Seconds, where there is no backlog."""
    least_work: float = 0.0
    """Seconds of work that may ride together however many tasks it is."""
    room: int = MOST_BYTES
    """Bytes; less than `MOST_BYTES` where other messages share the send."""
    busy: float = 0.0
    """Seconds that what is under way keeps every slot busy."""
    waiting: float = 0.0
    """Tasks for each slot that wait, those of this pack included. They are taken for as long as these."""
    probes: dict[str, int] = field(default_factory=dict)
    """How many tasks of an unknown command were packed, by command."""
    enough: int | None = None
    """Of these: then they may ride together; None: never."""
    unknown: str | None = None
    """The command of all tasks of this pack, when it is not known how long they take."""
    count: int = 0
    work: float = 0.0
    size: int = 0

    def admits(self, command: str, size: int) -> bool:
        """Tell whether the next task may ride along: if so, it does. `size`: its bytes.

        The first always may, unless it would have to share the send and is too large for that.
        """
        duration = self.durations.get(command)
        work = self.work + (self._guessed(command) if duration is None else duration)
        if (self.count or self.room < MOST_BYTES) and self.size + size > self.room:
            return False
        if self.count and (
            self.unknown != (command if duration is None else None) or not self._has_room(work)
        ):
            return False
        if duration is None:
            self.unknown = command
            self.probes[command] = self.probes.get(command, 0) + 1
        self.count += 1
        self.work = work
        self.size += size
        return True

    def _guessed(self, command: str) -> float:
        """Return the seconds that a task of an unknown command counts as."""
        alone = self.enough is None or self.probes.get(command, 0) < self.enough
        return math.inf if alone else GUESS

    def _has_room(self, work: float) -> bool:
        if self.count >= self.most and (self.count >= MOST_TASKS or work > self.least_work * _ROUNDING):
            return False
        if self.unknown is not None:
            return work <= min(MOST_WORK, _OF_BACKLOG * self.waiting * GUESS) * _ROUNDING
        if work <= self.most_work * _ROUNDING:
            return True
        backlog = self.busy + self.waiting * work / (self.count + 1)
        return work <= min(MOST_WORK, _OF_BACKLOG * backlog) * _ROUNDING


def open_slots(beats: Iterable[Heartbeat]) -> int:
    """Count the slots that short tasks can use, by the agents' heartbeats: those that no long task holds."""
    return sum(
        beat.slots - sum(beat.beat_at - task.since > _LONG for task in beat.running)
        for beat in beats
        if beat.state in ("starting", "ready")
    )
