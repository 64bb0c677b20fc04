"""The tasks of a broadcast, from the client's side: which nodes are asked, and what stands for no result."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from batchflow.errors import ConfigurationError
from batchflow.model import AGENT_GONE, Result, Status
from batchflow.pools.reports.heartbeats import read_heartbeats
from batchflow.protocol.broadcasts import BROADCAST, MOST_SECONDS
from batchflow.protocol.documents import gone_after
from batchflow.sessions.records.submission import is_duration
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.protocol.documents import Heartbeat


class BroadcastTask(Protocol):
    """The handle of a node's task."""

    @property
    def task_id(self) -> str: ...

    async def outcome(self) -> Result: ...


@frozen
class NodeStanding:
    """What a node is to a broadcast."""

    refusal: str | None = None
    """Why it is not asked; None: it is."""
    alive: bool = False
    """Whether its agent takes tasks."""


def check_timeout(timeout: float) -> None:
    """Raise `ConfigurationError` for seconds that a broadcast cannot have."""
    if not is_duration(timeout) or timeout > MOST_SECONDS:
        raise ConfigurationError(
            f"broadcast: timeout is {timeout!r}; seconds above 0 are needed, {MOST_SECONDS:g} at most"
        )


async def standings_of(runtime: PoolRuntime) -> dict[str, NodeStanding]:
    """Find the pool's nodes, by their ids. A client without rights on Batch sees those with an agent."""
    beats = {beat.node: beat for beat in await read_heartbeats(runtime.out)}
    states = dict.fromkeys(beats, "")
    if not runtime.connections.restricted:
        nodes = await runtime.connections.compute.nodes(runtime.pool_id)
        states |= {node.id: node.state for node in nodes}
    return {node: standing_of(states[node], beats.get(node)) for node in sorted(states)}


def standing_of(state: str, beat: Heartbeat | None) -> NodeStanding:
    """Tell what a node is to a broadcast. `state`: Batch's, empty where that is not known."""
    if state in AGENT_GONE:
        return NodeStanding(f"the node is {state}")
    if beat is None:
        return NodeStanding()
    if beat.state in ("draining", "exiting"):
        return NodeStanding("its agent is about to leave")
    if beat.state == "ready" and BROADCAST not in beat.accepts:
        return NodeStanding("its agent is of an earlier version: await pool.stop(), then pool.start()")
    return NodeStanding(alive=True)


async def run_on_each(
    runtime: PoolRuntime,
    standings: Mapping[str, NodeStanding],
    submit: Callable[[str], Awaitable[BroadcastTask]],
    *,
    command: str,
    timeout: float,
) -> dict[str, Result]:
    """Submit a task for each node that is asked, and return the results of all nodes, within the timeout.

    `command`: what a result shows that no agent gave.

    Raises `ServiceError`, `SessionClosed`, and what `submit` raises.
    """
    clock = asyncio.get_running_loop().time
    ends_at = clock() + timeout
    asked = [node for node, standing in standings.items() if standing.refusal is None]
    refusals = {node: standing.refusal for node, standing in standings.items() if standing.refusal}
    waiting: dict[str, asyncio.Future[Result]] = {}
    results: dict[str, Result] = {}
    watch = _NodeWatch(runtime, standings, clock())
    try:
        for node in asked:
            waiting[node] = asyncio.ensure_future((await submit(node)).outcome())
        while waiting and (left := ends_at - clock()) > 0:
            await asyncio.wait(waiting.values(), timeout=min(left, watch.interval))
            for node in [node for node, outcome in waiting.items() if outcome.done()]:
                results[node] = waiting.pop(node).result()
            if waiting:
                for node, reason in (await watch.missing(waiting, clock())).items():
                    refusals[node] = reason
                    waiting.pop(node).cancel()
        for node in waiting:
            results[node] = _no_result(command, node, "TaskTimeout", f"no result in {timeout:g} s")
    finally:
        for outcome in waiting.values():
            outcome.cancel()
    for node, reason in refusals.items():
        results[node] = _no_result(command, node, "NodeUnreached", reason)
    return {node: results[node] for node in standings}


class _NodeWatch:
    """Finds the nodes that are waited for in vain, by their agents' heartbeats."""

    def __init__(self, runtime: PoolRuntime, standings: Mapping[str, NodeStanding], now: float) -> None:
        self.interval: float = runtime.settings.agent.heartbeat_interval
        """Seconds between two looks."""
        self._out = runtime.out
        self._patience = {
            node: now + gone_after(self.interval)
            for node, standing in standings.items()
            if not standing.alive
        }
        """When a node whose agent does not live is given up."""
        self._looked_at = now

    async def missing(self, waiting: Mapping[str, Any], now: float) -> dict[str, str]:
        """Return the nodes without an agent, and what is said of them. Looks once in an interval."""
        if now < self._looked_at + self.interval:
            return {}
        self._looked_at = now
        beats = {beat.node for beat in await read_heartbeats(self._out)}
        found: dict[str, str] = {}
        for node in waiting:
            if node in beats:
                self._patience[node] = 0.0
            elif not (until := self._patience.get(node, 0.0)):
                self._patience[node] = now + self.interval  # its last result may be on its way
            elif now >= until:
                found[node] = "it has no agent, or its agent has left"
        return found


def _no_result(command: str, node: str, kind: str, reason: str) -> Result:
    return Result(
        task_id=node,
        job_id="",
        client="",
        command=command,
        status=Status.FAILED,
        index=0,
        kind=kind,
        error=f"node {node}: {reason}",
    )
