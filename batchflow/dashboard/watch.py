"""Looks at one pool for all watchers of its page, each part as often as it is worth asking."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from batchflow.dashboard.hub import Hub, event
from batchflow.dashboard.timeline import Timeline
from batchflow.dashboard.views import changed, node_rows, now_view
from batchflow.errors import BatchflowError
from batchflow.support.event_log import event_logger

if TYPE_CHECKING:
    from batchflow.dashboard.source import Source
    from batchflow.dashboard.timeline import Row
    from batchflow.ports.compute import NodeInfo
    from batchflow.protocol.documents import Heartbeat

logger = event_logger(__name__)

_LOOK: Final = 1.0
"""Seconds between two looks."""
_PATIENCE: Final = 0.5
"""Seconds that a later look waits for answers. What comes after that is told by the next one."""
_LINGER: Final = 60.0
"""Seconds for which it goes on looking when no page is open: a person may open it again."""
_CHUNK: Final = 2_000
"""Runs in one event, so that a browser is never busy for long."""
_TURN: Final = 50
"""Batches that are taken in before other work has its turn."""
_TIMEOUT: Final = 30.0
_QUIET: Final = 10.0
"""Seconds without an end of a task after which it is asked why nothing moves, if something waits."""


class PoolWatch:
    """What is known of one pool, and its watchers. `start` begins to look."""

    def __init__(self, source: Source, *, clock: Callable[[], float] = time.time) -> None:
        self.source = source
        self.timeline: Timeline = Timeline()
        self.hub: Hub = Hub(self.snapshot)
        self.parts: dict[str, Any] = {}
        """What the page shows beside nodes and runs, by the part's name."""
        self._changes: dict[str, Any] = {}
        """The parts that have changed since they were told."""
        self._clock = clock
        self._rows: dict[str, dict[str, Any]] = {}
        self._infos: list[NodeInfo] = []
        self._beats: list[Heartbeat] = []
        self._sent = 0
        """Runs of the timeline that all watchers were sent."""
        self._seen: dict[tuple[str, str], int] = {}
        """Ended tasks of the sessions of this process that the timeline has."""
        self._due: dict[str, float] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        """The parts that are being asked, each by a task of its own."""
        self._problems: dict[str, str] = {}
        self._used_at = clock()
        self._moved_at = clock()
        self._task: asyncio.Task[None] | None = None
        self.looked: asyncio.Event = asyncio.Event()
        """Set when it has looked at everything once since it began to look."""

    def start(self) -> None:
        """Look from now on, until no page has been open for a minute.

        Idempotent. A watch that is closed does not begin again.
        """
        if self.hub.closed:
            return
        self._used_at = self._clock()
        if self._task is None or self._task.done():
            self.looked.clear()
            self._due.clear()
            self._task = asyncio.create_task(self._run(), name=f"dashboard of {self.source.pool_id}")

    async def aclose(self) -> None:
        """Look no longer, and end all watchers."""
        self.hub.close()
        ending = [*self._asking.values(), *([] if self._task is None else [self._task])]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)

    def snapshot(self) -> Iterator[bytes]:
        """Yield the events that tell everything, what is seen first at first."""
        nodes = {"all": self._rows}
        yield event({"pool": self.source.pool_id, "parts": self.parts, "nodes": nodes, "fresh": True})
        runs = list(self.timeline.runs)
        unsent = self.timeline.total - self._sent  # these come to all watchers at the next look
        runs = runs[: len(runs) - unsent] if unsent else runs
        yield from _pieces(runs)

    async def look(self) -> None:
        """Begin to ask what is due, and tell all watchers what has changed; nodes and figures first.

        Only the first look waits until all parts have answered. Later, one that does not delays no other.
        """
        await self._ask(
            ("beats", 2 * _LOOK, self._ask_beats),
            ("queues", 5.0, self._ask_queues),
            ("nodes", 10.0, self._ask_nodes),
            ("sessions", 3 * _LOOK, self._ask_sessions),
        )
        if not self.looked.is_set():
            self._tell()
        await self._ask(
            ("activity", 2 * _LOOK, self._ask_activity),
            ("jobs", 20.0, self._ask_jobs),
            ("dead", 20.0, self._ask_dead_letters),
            ("cost", 30.0, self._ask_cost),
            ("explain", 10.0, self._ask_why),
        )
        self._tell()
        self.looked.set()

    async def _run(self) -> None:
        while len(self.hub) or self._clock() - self._used_at < _LINGER:
            if len(self.hub):
                self._used_at = self._clock()
            try:
                await self.look()
            except Exception:
                logger.exception("dashboard_look_broken", extra={"pool": self.source.pool_id})
            await asyncio.sleep(_LOOK)

    async def _ask(self, *parts: tuple[str, float, Callable[[], Awaitable[None]]]) -> None:
        """Begin to ask the parts that are due and not being asked; wait for their answers.

        The first look waits for all of them, any other a little for those that it has begun.
        """
        begun = set()
        for what, every, ask in parts:
            now = time.monotonic()
            if what in self._asking or now < self._due.get(what, 0.0):
                continue
            self._due[what] = now + every - _LOOK / 10
            task = self._asking[what] = asyncio.create_task(self._answer(what, ask), name=f"ask {what}")
            begun.add(task)
        first = not self.looked.is_set()
        if first:
            begun |= {self._asking[what] for what, _, _ in parts if what in self._asking}
        if begun:
            await asyncio.wait(begun, timeout=None if first else _PATIENCE)

    async def _answer(self, what: str, ask: Callable[[], Awaitable[None]]) -> None:
        """Ask one part. What cannot be had is told on the page, and asked again later."""
        try:
            async with asyncio.timeout(_TIMEOUT):
                await ask()
        except (BatchflowError, TimeoutError) as error:
            self._problems[what] = str(error) or f"no answer for {_TIMEOUT:.0f} s"
            logger.info("dashboard_look_failed", extra={"what": what, "error": str(error)})
        except Exception as error:
            self._problems[what] = f"{what} cannot be shown: {error!r}"
            logger.exception("dashboard_look_broken", extra={"pool": self.source.pool_id, "what": what})
        else:
            self._problems.pop(what, None)
        finally:
            del self._asking[what]

    async def _ask_beats(self) -> None:
        self._beats = await self.source.beats()

    async def _ask_nodes(self) -> None:
        self._infos = await self.source.nodes()

    async def _ask_activity(self) -> None:
        now = self._clock()
        batches = await self.source.activity()
        if any(batch.ended and batch.at > now - _QUIET for batch in batches):
            self._moved_at = now
        fresh = self.timeline.unknown(batches)
        await _in_turns(self.timeline.show(fresh, now))
        if not self.looked.is_set():
            self._tell()  # counting them all takes longer than showing the latest
        await _in_turns(self.timeline.count(fresh, now))

    async def _ask_queues(self) -> None:
        self._put("queues", await self.source.queues())

    async def _ask_sessions(self) -> None:
        self._put("sessions", await self.source.sessions())

    async def _ask_jobs(self) -> None:
        self._put("jobs", await self.source.jobs())

    async def _ask_dead_letters(self) -> None:
        dead = any(queue["dead"] for queue in self.parts.get("queues", ()) if queue["kind"] == "tasks")
        self._put("dead", await self.source.dead_letters() if dead else [])

    async def _ask_cost(self) -> None:
        self._put("cost", await self.source.cost())

    async def _ask_why(self) -> None:
        now = self.parts.get("now", {})
        waits = now.get("waiting") or now.get("messages") or now.get("trouble") or not now.get("agents")
        moves = self._clock() - self._moved_at < _QUIET
        self._put("explain", await self.source.explain() if waits and not moves else None)

    def _put(self, part: str, value: Any) -> None:
        if self.parts.get(part) != value or part not in self.parts:
            self.parts[part] = value
            self._changes[part] = value

    def _take_own(self, now: float) -> None:
        sessions = {(session.job, session.name): session for session in self.source.own_sessions()}
        self._seen = {key: seen for key, seen in self._seen.items() if key in sessions}
        for key, session in sessions.items():
            seen, runs = session.tasks.ended_since(self._seen.get(key, 0))
            if seen < self._seen.get(key, 0):  # another session of the name
                seen, runs = session.tasks.ended_since(0)
            if seen != self._seen.get(key):
                self._seen[key] = seen
                self.timeline.add_runs(runs, now)
                self._moved_at = now

    def _tell(self) -> None:
        now = self._clock()
        self._take_own(now)
        rows = node_rows(self._infos, self._beats)
        fresh_nodes, gone = changed(self._rows, rows)
        self._rows = rows
        figures = now_view(
            self.timeline, rows, self.parts.get("sessions", ()), self.parts.get("queues", ()), now
        )
        figures["problems"] = sorted(set(self._problems.values()))
        self._put("now", figures)
        self._put("series", self.timeline.series(now))
        self._put("failures", self.timeline.failures(now))
        runs = self.timeline.since(self._sent)
        self._sent = self.timeline.total
        changes, self._changes = self._changes, {}
        document: dict[str, Any] = {"parts": changes}
        if fresh_nodes or gone:
            document["nodes"] = {"some": fresh_nodes, "gone": gone}
        if runs and len(runs) <= _CHUNK:
            document["runs"] = runs
        if len(self.hub):
            self.hub.send(event(document))
            if len(runs) > _CHUNK:
                for piece in _pieces(runs):
                    self.hub.send(piece)


def _pieces(runs: list[Row]) -> Iterator[bytes]:
    """Yield the events that tell of many runs, the newest first: these are what is looked at."""
    for end in range(len(runs), 0, -_CHUNK):
        yield event({"runs": runs[max(0, end - _CHUNK) : end]})


async def _in_turns(steps: Iterator[None]) -> None:
    """Go through steps, and let other work have its turn between them."""
    for number, _ in enumerate(steps):
        if number % _TURN == _TURN - 1:
            await asyncio.sleep(0)
