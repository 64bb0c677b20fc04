"""Which published limits a fleet comes near to, and what it costs. Sources: `docs/scaling.md`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from node_agent.scheduling.cancellation import QUIET, RENEW_AFTER
from tests.simulations.fleet import Outcome

HEARTBEAT = 5.0
"""Seconds between an agent's signs of life, and between a session's looks at them."""
LINKS = 2
"""Connections that an agent keeps for each shard: tasks, results. For a moment now and then one more, to look
for dead letters."""
RECEIVERS = 5000
"""Of one queue, at once."""
BLOB_REQUESTS = 20_000
"""A second, of one Storage account."""
PREMIUM_MEGABYTES = 4.0
"""A second, in and out together, of one messaging unit."""


@dataclass(frozen=True, slots=True)
class Use:
    """How much of a limit is used."""

    name: str
    used: float
    limit: float

    @property
    def share(self) -> float:
        return self.used / self.limit

    def __str__(self) -> str:
        return f"{self.name}: {self.used:,.0f} of {self.limit:,.0f}"


def uses(outcome: Outcome) -> list[Use]:
    """The fullest first."""
    return sorted(_uses(outcome), key=lambda use: use.share, reverse=True)


def _uses(outcome: Outcome) -> Iterator[Use]:
    fleet = outcome.fleet
    shards = math.ceil(fleet.queues / fleet.namespaces)
    links = fleet.nodes * LINKS * shards + fleet.clients * (shards + 1)
    yield Use("connections of a namespace", links, fleet.tier.connections)
    yield Use("receivers of a queue", fleet.nodes, RECEIVERS)
    if fleet.tier.credits < math.inf:
        yield Use("credits/s of a namespace", outcome.fullest / outcome.elapsed, fleet.tier.credits)
    else:
        passed = outcome.megabytes / outcome.elapsed / fleet.namespaces
        yield Use("MB/s of a messaging unit", passed, PREMIUM_MEGABYTES)
    yield Use("% of a client's core", 100 * outcome.client_cpu, 100)
    yield Use("% of an agent's core", 100 * outcome.agent_cpu, 100)
    yield Use("% of the slots", 100 * outcome.busy, 100)
    yield Use("requests/s to Storage", storage_requests(outcome), BLOB_REQUESTS)


def storage_requests(outcome: Outcome) -> float:
    """A second: heartbeats written, heartbeats that sessions read, cancellations that busy agents read."""
    fleet = outcome.fleet
    beats = fleet.nodes / HEARTBEAT
    looks = 0.0 if fleet.duration <= QUIET else fleet.nodes * outcome.busy / RENEW_AFTER
    return beats + fleet.clients * beats + looks
