"""The documents that the Batch data plane answers with, drawn from its entities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchflow.local.batch.core.catalogue import IMAGES, PAST, find_image
from batchflow.local.batch.core.jobs import counts
from batchflow.local.batch.rest.values import iso_time

if TYPE_CHECKING:
    from batchflow.local.batch.core.entities import (
        AutoscaleRun,
        Document,
        Execution,
        FailureInfo,
        JobRecord,
        NodeRecord,
        Outcome,
        PoolRecord,
        StartTaskRecord,
        TaskRecord,
        Versioned,
    )

NODE_AGENT_VERSION = "1.12.6.0"
UNLIMITED = "P10675199DT2H48M5.4775807S"

_NODE_COUNTS = {
    "creating": "creating",
    "starting": "starting",
    "waitingforstarttask": "waitingForStartTask",
    "starttaskfailed": "startTaskFailed",
    "idle": "idle",
    "running": "running",
    "offline": "offline",
    "rebooting": "rebooting",
    "reimaging": "reimaging",
    "leavingpool": "leavingPool",
    "unusable": "unusable",
    "preempted": "preempted",
    "unknown": "unknown",
    "deallocated": "deallocated",
    "deallocating": "deallocating",
    "upgradingos": "upgradingOS",
}


def etag(stamp: Versioned) -> str:
    """Return the entity tag of a resource."""
    return f"0x8D{stamp.version:013X}"


def pool_document(pool: PoolRecord, base: str) -> Document:
    """Return a pool."""
    spec = pool.spec
    document: Document = {
        "id": spec.id,
        "url": f"{base}/pools/{spec.id}",
        **_stamp(pool.stamp),
        "state": pool.state,
        "stateTransitionTime": iso_time(pool.state_since),
        "allocationState": pool.allocation,
        "allocationStateTransitionTime": iso_time(pool.allocation_since),
        "vmSize": spec.vm_size,
        "resizeTimeout": f"PT{int(spec.resize_timeout)}S",
        "currentDedicatedNodes": pool.count(dedicated=True),
        "currentLowPriorityNodes": pool.count(dedicated=False),
        "targetDedicatedNodes": pool.wanted,
        "targetLowPriorityNodes": pool.spot_wanted,
        "enableAutoScale": spec.formula is not None,
        "taskSlotsPerNode": spec.task_slots,
        "taskSchedulingPolicy": {"nodeFillType": spec.fill},
        **spec.document,
    }
    if pool.resize_errors:
        document["resizeErrors"] = [_error(failure) for failure in pool.resize_errors]
    if spec.formula is not None:
        document["autoScaleFormula"] = spec.formula.text
        document["autoScaleEvaluationInterval"] = f"PT{int(spec.formula.interval)}S"
        if pool.formula_run is not None:
            document["autoScaleRun"] = formula_run_document(pool.formula_run)
    return document


def formula_run_document(run: AutoscaleRun) -> Document:
    """Return one evaluation of a pool's formula."""
    document: Document = {"timestamp": iso_time(run.at)}
    if run.failure is None:
        return document | {"results": run.results}
    return document | {"error": _error(run.failure)}


def node_document(node: NodeRecord, base: str) -> Document:
    """Return a node."""
    address = f"10.0.{node.serial // 250 % 250}.{4 + node.serial % 250}"
    document: Document = {
        "id": node.id,
        "url": node_url(node, base),
        "state": node.state,
        "schedulingState": "enabled" if node.enabled else "disabled",
        "stateTransitionTime": iso_time(node.state_since),
        "lastBootTime": iso_time(node.booted or node.allocated),
        "allocationTime": iso_time(node.allocated),
        "ipAddress": address,
        "ipv6Address": "",
        "affinityId": f"TVM:{node.id}",
        "vmSize": node.pool.spec.vm_size,
        "totalTasksRun": node.tasks_run,
        "runningTasksCount": len(node.runs),
        "runningTaskSlotsCount": node.slots_taken,
        "totalTasksSucceeded": node.tasks_succeeded,
        "recentTasks": [_task_info(task, base) for task in node.recent],
        "isDedicated": node.dedicated,
        "endpointConfiguration": {"inboundEndpoints": []},
        "nodeAgentInfo": {"version": NODE_AGENT_VERSION, "lastUpdateTime": iso_time(node.allocated)},
        "virtualMachineInfo": _machine_info(node.pool),
    }
    start_task = node.pool.spec.document.get("startTask")
    if start_task is not None:
        document["startTask"] = start_task
    if node.errors:
        document["errors"] = [_error(failure) for failure in node.errors]
    if node.start_task is not None:
        document["startTaskInfo"] = _start_task_info(node.start_task)
    return document


def node_counts_document(pool: PoolRecord) -> Document:
    """Count a pool's nodes by state."""
    return {
        "poolId": pool.spec.id,
        "dedicated": _node_counts([node for node in pool.nodes.values() if node.dedicated]),
        "lowPriority": _node_counts([node for node in pool.nodes.values() if not node.dedicated]),
    }


def job_document(job: JobRecord, base: str) -> Document:
    """Return a job."""
    spec = job.spec
    document: Document = {
        "id": spec.id,
        "url": f"{base}/jobs/{spec.id}",
        **_stamp(job.stamp),
        "state": job.state,
        "stateTransitionTime": iso_time(job.state_since),
        "usesTaskDependencies": False,
        "priority": spec.priority,
        "maxParallelTasks": spec.max_parallel,
        "allowTaskPreemption": False,
        "poolInfo": {"poolId": spec.pool_id},
        "onAllTasksComplete": "terminatejob" if spec.ends_with_tasks else "noaction",
        "onTaskFailure": "noaction",
        **spec.document,
        "constraints": {"maxWallClockTime": UNLIMITED, "maxTaskRetryCount": 0}
        | (spec.document.get("constraints") or {}),
        "executionInfo": {"startTime": iso_time(job.stamp.created), "poolId": spec.pool_id},
    }
    if job.previous is not None:
        document["previousState"], since = job.previous
        document["previousStateTransitionTime"] = iso_time(since)
    if job.ended is not None:
        document["executionInfo"]["endTime"] = iso_time(job.ended)
    if job.reason is not None:
        document["executionInfo"]["terminateReason"] = job.reason
    return document


def task_counts_document(job: JobRecord) -> Document:
    """Count a job's tasks and their slots by state."""
    return {"taskCounts": counts(job, slots=False), "taskSlotCounts": counts(job, slots=True)}


def task_document(task: TaskRecord, base: str) -> Document:
    """Return a task."""
    spec = task.spec
    document: Document = {
        "id": spec.id,
        "url": task_url(task, base),
        **_stamp(task.stamp),
        "state": task.state,
        "stateTransitionTime": iso_time(task.state_since),
        "commandLine": spec.command.command_line,
        "requiredSlots": spec.slots,
        "userIdentity": {"autoUser": {"scope": "pool", "elevationLevel": "nonadmin"}},
        **spec.document,
        "constraints": {
            "maxWallClockTime": UNLIMITED,
            "retentionTime": "P7D",
            "maxTaskRetryCount": spec.command.max_retries,
        }
        | (spec.document.get("constraints") or {}),
        "executionInfo": _execution_info(task.execution),
    }
    if task.previous is not None:
        document["previousState"], since = task.previous
        document["previousStateTransitionTime"] = iso_time(since)
    if task.place is not None and task.state != "active":
        document["nodeInfo"] = _node_info(task, task.place, base)
    return document


def image_documents(retired: frozenset[str] = frozenset()) -> list[Document]:
    """Return the images that a pool may be made of. `retired`: their end of life has come."""
    ends = {image: PAST if image.name in retired else image.end_of_life for image in IMAGES}
    return [
        {
            "nodeAgentSKUId": image.agent,
            "imageReference": {
                "publisher": image.publisher,
                "offer": image.offer,
                "sku": image.sku,
                "version": "latest",
            },
            "osType": "linux",
            "capabilities": [],
            "verificationType": "verified" if image.verified else "unverified",
            **({"batchSupportEndOfLife": end} if end else {}),
        }
        for image, end in ends.items()
    ]


def node_url(node: NodeRecord, base: str) -> str:
    """Return the URL of a node."""
    return f"{base}/pools/{node.pool.spec.id}/nodes/{node.id}"


def task_url(task: TaskRecord, base: str) -> str:
    """Return the URL of a task."""
    return f"{base}/jobs/{task.job.spec.id}/tasks/{task.spec.id}"


def _stamp(stamp: Versioned) -> Document:
    return {
        "eTag": etag(stamp),
        "lastModified": iso_time(stamp.modified),
        "creationTime": iso_time(stamp.created),
    }


def _error(failure: FailureInfo) -> Document:
    return {"code": failure.code, "message": failure.message}


def _node_counts(nodes: list[NodeRecord]) -> Document:
    totals = dict.fromkeys([*_NODE_COUNTS.values(), "total"], 0)
    for node in nodes:
        totals[_NODE_COUNTS[node.state]] += 1
    return totals | {"total": len(nodes)}


def _machine_info(pool: PoolRecord) -> Document:
    reference = pool.spec.document["virtualMachineConfiguration"]["imageReference"]
    image = find_image(*(str(reference.get(key, "")) for key in ("publisher", "offer", "sku")))
    if image is None:
        return {"imageReference": dict(reference)}
    return {
        "imageReference": {
            "publisher": image.publisher,
            "offer": image.offer,
            "sku": image.sku,
            "version": "latest",
            "exactVersion": "latest",
        }
    }


def _task_info(task: TaskRecord, base: str) -> Document:
    return {
        "taskUrl": task_url(task, base),
        "jobId": task.job.spec.id,
        "taskId": task.spec.id,
        "taskState": task.state,
        "executionInfo": _execution_info(task.execution),
    }


def _node_info(task: TaskRecord, node: NodeRecord, base: str) -> Document:
    directory = f"workitems/{task.job.spec.id}/job-1/{task.spec.id}"
    return {
        "affinityId": f"TVM:{node.id}",
        "nodeUrl": node_url(node, base),
        "poolId": node.pool.spec.id,
        "nodeId": node.id,
        "taskRootDirectory": directory,
        "taskRootDirectoryUrl": f"{node_url(node, base)}/files/{directory}",
    }


def _execution_info(execution: Execution) -> Document:
    document: Document = {"retryCount": execution.retries, "requeueCount": execution.requeues}
    times = {
        "startTime": execution.started,
        "endTime": execution.ended,
        "lastRetryTime": execution.last_retry,
        "lastRequeueTime": execution.last_requeue,
    }
    document |= {name: iso_time(time) for name, time in times.items() if time is not None}
    return document | _outcome(execution.outcome)


def _start_task_info(record: StartTaskRecord) -> Document:
    document: Document = {
        "state": "running" if record.ended is None else "completed",
        "startTime": iso_time(record.started),
        "retryCount": record.retries,
    }
    if record.ended is not None:
        document["endTime"] = iso_time(record.ended)
    if record.last_retry is not None:
        document["lastRetryTime"] = iso_time(record.last_retry)
    return document | _outcome(record.outcome)


def _outcome(outcome: Outcome | None) -> Document:
    if outcome is None:
        return {}
    document: dict[str, Any] = {"result": "success" if outcome.succeeded else "failure"}
    if outcome.exit_code is not None:
        document["exitCode"] = outcome.exit_code
    if outcome.failure is not None:
        document["failureInfo"] = {
            "category": outcome.failure.category,
            "code": outcome.failure.code,
            "message": outcome.failure.message,
            "details": [{"name": name, "value": value} for name, value in outcome.failure.details],
        }
    return document
