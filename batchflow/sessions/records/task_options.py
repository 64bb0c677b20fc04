"""The options of tasks, as the methods of sessions take them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from batchflow.protocol.lanes import Priority
    from batchflow.retry import RetryPolicy


class TaskOptions(TypedDict, total=False):
    """What `submit`, `run` and `submit_many` take beside the command; `Session.submit` tells of each."""

    task_id: str | None
    tag: Any
    timeout: float | None
    retry: RetryPolicy | None
    memory_limit: int | None
    stream_output: bool
    after: Any
    on_failure: Literal["pass"] | None
    expires: float | timedelta | None
    requires: Mapping[str, Any] | None
    priority: Priority | None


class MapOptions(TaskOptions, total=False):
    """What `map` takes beside the command and the inputs: each as `Session.map` has it."""

    ordered: bool
    window: int | None
