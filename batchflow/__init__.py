"""Interactive task execution on Azure Batch, asyncio-native.

What is here is loaded when it is first used: `import batchflow` alone loads no azure package.
"""

from __future__ import annotations

TYPE_CHECKING = False  # without `typing`, for processes of the local cloud that hold little else
if TYPE_CHECKING:
    from typing import Any, Final

    from batchflow.client import Client
    from batchflow.costs.cost import Cost
    from batchflow.engine import Engine, current_engine
    from batchflow.errors import (
        BatchflowError,
        ConfigurationError,
        Permanent,
        Retry,
        ServiceError,
        SessionClosed,
        TaskError,
    )
    from batchflow.job import Job
    from batchflow.model import Budget, Counts, Event, Explanation, Image, Node, PoolSpec, Result, Status
    from batchflow.pool import Pool
    from batchflow.results import Results
    from batchflow.retry import RetryPolicy
    from batchflow.session import Session
    from batchflow.settings import Settings
    from batchflow.streams import ResultStream
    from batchflow.task import Task

__all__ = [
    "BatchflowError",
    "Budget",
    "Client",
    "ConfigurationError",
    "Cost",
    "Counts",
    "Engine",
    "Event",
    "Explanation",
    "Image",
    "Job",
    "Node",
    "Permanent",
    "Pool",
    "PoolSpec",
    "Result",
    "ResultStream",
    "Results",
    "Retry",
    "RetryPolicy",
    "ServiceError",
    "Session",
    "SessionClosed",
    "Settings",
    "Status",
    "Task",
    "TaskError",
    "current_engine",
]

_ROOMS: Final = {
    "client": ("Client",),
    "costs.cost": ("Cost",),
    "engine": ("Engine", "current_engine"),
    "errors": (
        "BatchflowError",
        "ConfigurationError",
        "Permanent",
        "Retry",
        "ServiceError",
        "SessionClosed",
        "TaskError",
    ),
    "job": ("Job",),
    "model": ("Budget", "Counts", "Event", "Explanation", "Image", "Node", "PoolSpec", "Result", "Status"),
    "pool": ("Pool",),
    "results": ("Results",),
    "retry": ("RetryPolicy",),
    "session": ("Session",),
    "settings": ("Settings",),
    "streams": ("ResultStream",),
    "task": ("Task",),
}
_ROOM_OF: Final = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    room = _ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"module 'batchflow' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"batchflow.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
