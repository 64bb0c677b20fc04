"""The Batch job that hosts the agents of a pool: the names of its generations, and its tasks."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from batchflow.pools.agent_launch import LaunchCommand
from batchflow.ports.compute import BatchTask, BatchTaskInfo
from batchflow.protocol.documents import PoolManifest

_KEPT_JOBS: Final = 10
"""Ended jobs of agents that go with their pool; older ones are left to Batch."""


def agent_tasks(
    launch: LaunchCommand, first: int, count: int, task_slots: int, container: str | None = None
) -> list[BatchTask]:
    """Return the Batch tasks that are agents, each filling its node."""
    return [
        BatchTask(
            f"agent-{number}",
            launch.command,
            files=launch.files,
            slots=task_slots,
            retries=-1,
            container=container,
        )
        for number in range(first, first + count)
    ]


def next_number(tasks: list[BatchTaskInfo]) -> int:
    """Return the number of the next agent: above all that there are, because one may have been deleted."""
    return max((int(task.id.rpartition("-")[2]) for task in tasks), default=-1) + 1


def generations(manifest: PoolManifest) -> list[str]:
    """Return the agents' job and its last predecessors, which Batch keeps after they ended."""
    stem, _, number = manifest.agents_job.rpartition("-")
    return [f"{stem}-{each}" for each in range(max(1, int(number) - _KEPT_JOBS + 1), int(number) + 1)]


def next_generation(manifest: PoolManifest) -> PoolManifest:
    """Rename the agents' job in the manifest, because a Batch job that has ended cannot be used again."""
    stem, _, number = manifest.agents_job.rpartition("-")
    return replace(manifest, agents_job=f"{stem}-{int(number) + 1}")
