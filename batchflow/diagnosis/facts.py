"""The facts that a diagnosis found about a pool, and those that a session hands to it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchflow.errors import ServiceError
    from batchflow.model import Counts


@dataclasses.dataclass(slots=True)
class PoolFacts:
    """The facts of a pool, filled in service by service; None: that service has not answered."""

    nodes: dict[str, str] | None = None
    """The state of each node, by its id."""
    wanted: int | None = None
    """Nodes that Batch was asked for."""
    agents: dict[str, str] | None = None
    """The state of each living agent, by its host."""
    slots: int | None = None
    running: int | None = None
    """Tasks that run."""
    tasks: dict[str, str] | None = None
    """The host of each running task, by the task's uid."""
    queued: int | None = None
    """Messages in the task queues."""
    dead: int | None = None
    """Messages in the dead-letter queues."""

    def known(self) -> dict[str, Any]:
        """Return the facts that are known, by their names."""
        return {
            each.name: value
            for each in dataclasses.fields(self)
            if (value := getattr(self, each.name)) is not None
        }


class WaitingTask(NamedTuple):
    """A task of a session that has no outcome."""

    uid: str
    task_id: str
    """The user's label."""
    command: str


@frozen
class SessionFacts:
    """The facts that a session has of itself."""

    job: str
    name: str
    counts: Counts
    waiting: Sequence[WaitingTask]
    bundle: str | None
    """The hash of the bundle that tasks submitted now run with."""
    problem: ServiceError | None
    """The error that makes waiting for an outcome pointless."""
    environment: str | None = None
    """What is done for the packages that its tasks require; None: they are there, or failed."""
    environment_failure: str | None = None
    """Why the packages that its tasks require cannot be had."""
    unmet: Sequence[str] = ()
    """What tasks require of their nodes that no living agent has, in words."""
    unfitting: Sequence[str] = ()
    """What tasks require that no node may have free at this moment, in words."""
