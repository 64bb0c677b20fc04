"""What the page may do to a pool when it was started with control: each action is asked back once.

The first request of an action gets a question and a number that is used once. Only a second request with that
number, for the same action, carries it out.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from batchflow.dashboard.dead_letters import replay
from batchflow.errors import ConfigurationError
from batchflow.pools.drain_orders import drain
from batchflow.support.event_log import event_logger

if TYPE_CHECKING:
    from batchflow.pool import Pool

logger = event_logger(__name__)

_LIFE: Final = 120.0
"""Seconds in which a question can be answered."""
_MOST_QUESTIONS: Final = 100
_MOST_NODES: Final = 10_000
_DRAINS: Final = "Its agent has its drain grace to finish what runs, hands back the rest, and leaves."


class Questions:
    """The questions that wait for their answers. Pure but for chance."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: OrderedDict[str, tuple[float, dict[str, Any]]] = OrderedDict()

    def ask(self, action: dict[str, Any]) -> str:
        """Note a question, and return the number that answers it."""
        number = secrets.token_urlsafe(16)
        self._open[number] = (self._clock() + _LIFE, action)
        while len(self._open) > _MOST_QUESTIONS:
            self._open.popitem(last=False)
        return number

    def answer(self, number: str, action: dict[str, Any]) -> bool:
        """Return whether this answers the question about this action; the number is used up then."""
        until, asked = self._open.pop(number, (0.0, {}))
        return self._clock() <= until and asked == action


def question(action: dict[str, Any]) -> str:
    """Return what a person is asked before the action. Raises `ConfigurationError` for what is none."""
    match action:
        case {"do": "cancel", "uid": str(), "label": str(label)}:
            return f"Cancel task {label[:80]}? If it runs, its process is killed."
        case {"do": "retry", "uid": str(), "label": str(label)}:
            return f"Submit task {label[:80]} once more, with the same arguments and options?"
        case {"do": "replay", "queue": str(queue), "number": int()}:
            return f"Send this dead letter to {queue[:80]} again, so that its tasks run?"
        case {"do": "resize", "nodes": int(nodes)} if 0 <= nodes <= _MOST_NODES:
            return f"Resize the pool to {nodes:,} dedicated nodes? It stops being elastic."
        case {"do": "drain", "node": str(node)}:
            return f"Drain node {node[:80]}? {_DRAINS}"
    raise ConfigurationError("the page does not know this action")


async def perform(pool: Pool, action: dict[str, Any]) -> str:
    """Carry an action out, and say what was done. Raises `BatchflowError`."""
    logger.info("dashboard_action", extra={"pool": pool.id, "action": action["do"]})
    match action:
        case {"do": "cancel", "uid": str(uid)}:
            for session in pool.runtime.open_sessions:
                if await session.tasks.cancel(uid):
                    return "The task is cancelled."
            raise ConfigurationError("no session of this program has that task under way")
        case {"do": "retry", "uid": str(uid)}:
            for session in pool.runtime.open_sessions:
                if session.tasks.detail(uid) is not None:
                    return f"Submitted again as {await session.tasks.retry(uid)}."
            raise ConfigurationError("no session of this program knows that task")
        case {"do": "replay", "queue": str(queue), "number": int(number)}:
            if not await replay(pool.runtime, queue, number):
                raise ConfigurationError("that dead letter is not there any more")
            return "The dead letter is in its queue again."
        case {"do": "resize", "nodes": int(nodes)}:
            await pool.resize(nodes)
            return f"Batch was asked for {nodes:,} nodes."
        case {"do": "drain", "node": str(node)}:
            manifest, settings = pool.runtime.manifest, pool.runtime.settings
            alive = await pool.heartbeats()
            leaving = [beat for beat in alive if beat.node == node]
            if not leaving:
                raise ConfigurationError(f"no agent lives on node {node!r}")
            grace = settings.agent.drain_grace
            await drain(pool.runtime.ctl, manifest.agents_job, grace, leaving=leaving, alive=alive)
            return f"Node {node} drains."
    raise ConfigurationError("the page does not know this action")
