"""What limits an agent on its node: a part of the settings, and of what an agent starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

# Annotated with the unit that the reference of the settings gives.
Seconds = Annotated[float, "s"]
Bytes = Annotated[int, "bytes"]
Tasks = Annotated[int, "tasks"]
Results = Annotated[int, "results"]
Nodes = Annotated[int, "nodes"]
Queues = Annotated[int, "queues"]
Processes = Annotated[int, "processes"]


@dataclass(frozen=True)
class AgentLimits:
    """The limits of agents, with their defaults. No slots, so that it can stand beside another base class."""

    heartbeat_interval: Seconds = 5.0
    """Seconds between two heartbeats; an agent whose last is older than three of them counts as gone."""
    drain_grace: Seconds = 30.0
    """Seconds that a stopped agent lets its tasks finish in."""
    grace: Seconds = 5.0
    """Seconds between TERM and KILL for the processes of a task that is past its limit."""
    child_tasks: Tasks = 10_000
    """A warm Python process is replaced after so many tasks."""
    child_memory: Bytes = 2 * 1024**3
    """A warm Python process that holds more bytes than this after a task is replaced."""
    warm_memory: Bytes = 512 * 1024**2
    """Bytes that the warm Python processes of sessions without a running task may hold, for each slot. Above
    it the one that was used least recently ends. 0: none is kept."""
    process_limit: Processes = 2000
    """Processes and threads that a task may have at once; one that has more is killed and ends as
    `TaskTooManyProcesses`. 0: no limit."""
    output_limit: Bytes = 64 * 1024
    """Bytes of stdout, and of stderr, that a result carries: the last ones."""
    result_limit: Bytes = 256 * 1024**2
    """Bytes that what a task returns may have, encoded; more is `ResultTooLarge`."""
    scheduled_events: str = "http://169.254.169.254/metadata/scheduledevents"
    """Where agents on spot nodes read that their node is about to be taken away; empty: nowhere. Nodes of the
    local cloud have an address of their own."""
    cache_limit: Bytes = 10 * 1024**3
    """Bytes of task files that an agent keeps on its disk."""
