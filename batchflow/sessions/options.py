"""How a session was asked to be: what `Pool.session` takes beside names and files."""

from __future__ import annotations

from dataclasses import field
from os import PathLike
from typing import TYPE_CHECKING

from batchflow.errors import ConfigurationError
from batchflow.model import Budget
from batchflow.protocol.lanes import Priority, check_priority
from batchflow.protocol.variables import TaskVariables
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.environments.requirements import Requirements


@frozen
class SessionOptions:
    """Each as `Pool.session` tells it."""

    journal: str | PathLike[str] | None = None
    timeout: float | None = None
    """Seconds that a task may run; None: as the settings say."""
    share_processes: bool | None = None
    """None: as the pool says."""
    unpickle: bool = False
    requirements: Requirements | None = None
    """None: the pool's."""
    variables: TaskVariables = field(default_factory=TaskVariables)
    """The environment variables of its tasks, beside those of its job and its pool."""
    budget: Budget | None = None
    """What its tasks may cost; None: without a limit of its own."""

    priority: Priority | None = None
    """Whose tasks go before those of others; None: "normal"."""
    broadcast: float | None = None
    """Seconds for which its tasks are ordered, each of the node that its label names.

    None: they are queued for all nodes."""

    def __post_init__(self) -> None:
        check_priority(self.priority)
        if self.budget is not None and not isinstance(self.budget, Budget):
            raise ConfigurationError(f"budget is {self.budget!r}; it must be a Budget(node_hours=10)")
