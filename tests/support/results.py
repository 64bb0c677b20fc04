"""Results for tests that show them."""

from __future__ import annotations

from typing import Any

from batchflow.model import Result, Status


def a_result(index: int = 0, **fields: Any) -> Result:
    """Make the result of a task that succeeded, with other fields where a test gives them."""
    plain: dict[str, Any] = {
        "task_id": str(index),
        "job_id": "default",
        "client": "me",
        "command": "x.py",
        "status": Status.SUCCEEDED,
        "index": index,
    }
    return Result(**{**plain, **fields})
