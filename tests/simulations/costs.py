"""What things cost, as measured, and what the broker allows, as published: the input of the simulations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of CPU of one process, but for the ways, which are seconds of the clock.

    Measured with the Service Bus SDK on a machine of 2 cores, packs of 1 to 100 tasks, no-ops, and fitted by
    a cost for each message and one for each task.
    """

    round_trip: float = 0.0001
    """To the broker and back. Half of it passes each way."""
    send: float = 0.33e-3
    """A send, of however many messages: client or agent."""
    sent_message: float = 0.125e-3
    """Each message of it."""
    received_message: float = 0.26e-3
    """Received and completed, with messages prefetched: the client's results."""
    delivered_message: float = 0.43e-3
    """Received and completed, one asked for at a time: the agent's tasks."""
    client_task: float = 30e-6
    """All that a session does for a task besides messages, from `submit` to its result."""
    agent_task: float = 40e-6
    child_task: float = 40e-6
    """Frames, arguments and value of a task in its warm child."""
    blob: float = 0.005
    """A small blob read: the way, by the clock."""


NEAR = Costs()
"""The local cloud, or a client in the same rack."""
FAR = Costs(round_trip=0.02)
"""A client that reaches the broker in 20 ms."""


@dataclass(frozen=True, slots=True)
class Tier:
    """What one namespace of Service Bus allows. `docs/scaling.md` names the sources."""

    name: str
    credits: float
    """A second; each message sent or received is one."""
    connections: int
    burst: float = 1.0
    """Seconds of credits that may be used at once."""


STANDARD = Tier("Standard", 1000.0, 5000)
PREMIUM = Tier("Premium, 1 unit", float("inf"), 5000)
LOCAL = Tier("local", float("inf"), 5000)
