"""The directories of nodes, and the environment of the commands that run there.

A node's directory is laid out as on Azure: `shared`, `startup`, `workitems/<job>/job-1/<task>` with `wd`,
`stdout.txt` and `stderr.txt`. It is named after the short host name, so that a socket's path within it stays
below the kernel's limit.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from batchflow.local.batch.rest.metadata import path_of
from batchflow.settings import LOCAL_NODE
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.local.batch.core.entities import CommandSpec, NodeRecord, TaskRecord
    from batchflow.local.batch.nodes.node_user import NodeUser

_MACHINE_VARIABLES = ("PATH", "LANG")
"""Variables of this machine that every command sees."""


@frozen
class NodeAccount:
    """The account that the environment of a command names."""

    name: str
    url: str
    """Without a trailing slash."""


class NodeDirectories:
    """The nodes' directories below one root."""

    def __init__(self, root: Path, user: NodeUser | None = None) -> None:
        """`user`: whom the nodes' commands run as; None: the user of this process."""
        self._root = root
        self.user = user
        self._trash = root / "trash"

    def of(self, node: NodeRecord) -> Path:
        """Return a node's root directory."""
        return self._root / node.host_name

    def job(self, node: NodeRecord, job_id: str) -> Path:
        """Return the directory of a job's tasks on a node."""
        return self.of(node) / "workitems" / job_id / "job-1"

    def task(self, node: NodeRecord, job_id: str, task_id: str) -> Path:
        """Return a task's directory on a node."""
        return self.job(node, job_id) / task_id

    def startup(self, node: NodeRecord) -> Path:
        """Return the start task's directory on a node."""
        return self.of(node) / "startup"

    def lay_out(self, node: NodeRecord) -> None:
        """Make the directories that every node has."""
        for name in ("shared", "startup/wd", "workitems", "fsmounts"):
            (self.of(node) / name).mkdir(parents=True, exist_ok=True)
        if self.user is not None:
            self.user.own(self.of(node))

    async def discard(self, path: Path) -> None:
        """Rename a directory away at once, if it exists, and then delete it."""
        discarded = self._trash / uuid.uuid4().hex
        self._trash.mkdir(exist_ok=True)
        try:
            path.rename(discarded)
        except FileNotFoundError:
            return
        await asyncio.to_thread(shutil.rmtree, discarded, ignore_errors=True)


def task_environment(
    account: NodeAccount, disks: NodeDirectories, node: NodeRecord, task: TaskRecord
) -> dict[str, str]:
    """Return the environment of a task: the machine's few, the service's AZ_BATCH_ ones, the user's."""
    job_id, task_id = task.job.spec.id, task.spec.id
    directory = disks.task(node, job_id, task_id)
    preparation = disks.task(node, job_id, "jobpreparation")
    return {
        **_common_environment(account, disks, node, directory),
        "AZ_BATCH_JOB_ID": job_id,
        "AZ_BATCH_TASK_ID": task_id,
        "AZ_BATCH_JOB_PREP_DIR": str(preparation),
        "AZ_BATCH_JOB_PREP_WORKING_DIR": str(preparation / "wd"),
        **task.spec.command.environment,
    }


def start_task_environment(
    account: NodeAccount, disks: NodeDirectories, node: NodeRecord, command: CommandSpec
) -> dict[str, str]:
    """Return the environment of a start task. It tells that the node is the user's own machine."""
    common = _common_environment(account, disks, node, disks.startup(node))
    return {**common, **command.environment, LOCAL_NODE: "1"}


def _common_environment(
    account: NodeAccount, disks: NodeDirectories, node: NodeRecord, directory: Path
) -> dict[str, str]:
    root = disks.of(node)
    return {
        **{name: os.environ[name] for name in _MACHINE_VARIABLES if name in os.environ},
        "HOME": str(directory / "wd"),
        "HOSTNAME": node.host_name,
        "AZ_BATCH_ACCOUNT_NAME": account.name,
        "AZ_BATCH_ACCOUNT_URL": f"{account.url}/",
        "AZ_BATCH_POOL_ID": node.pool.spec.id,
        "BATCHFLOW_SCHEDULED_EVENTS": f"{account.url}{path_of(node.pool.spec.id, node.id)}",
        "AZ_BATCH_NODE_ID": node.id,
        "AZ_BATCH_NODE_IS_DEDICATED": "true" if node.dedicated else "false",
        "AZ_BATCH_NODE_ROOT_DIR": str(root),
        "AZ_BATCH_NODE_SHARED_DIR": str(root / "shared"),
        "AZ_BATCH_NODE_STARTUP_DIR": str(root / "startup"),
        "AZ_BATCH_NODE_MOUNTS_DIR": str(root / "fsmounts"),
        "AZ_BATCH_TASK_DIR": str(directory),
        "AZ_BATCH_TASK_WORKING_DIR": str(directory / "wd"),
    }
