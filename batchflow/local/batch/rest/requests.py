"""The bodies of the Batch data plane's requests, as specifications.

Every function takes a parsed JSON body and raises `Refused` for what the service would not take.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, Literal, cast, get_args

from batchflow.local.batch.core.catalogue import CORES, PAST, find_image
from batchflow.local.batch.core.entities import (
    AutoscaleFormula,
    BatchJobSpec,
    BatchPoolSpec,
    BatchTaskSpec,
    CommandSpec,
    Deallocation,
    ResourceFileSpec,
    StartTaskSpec,
)
from batchflow.local.batch.core.errors import Refused, invalid_property, not_implemented
from batchflow.local.batch.core.samples import AutoscaleTiming
from batchflow.local.batch.rest.values import Fields
from batchflow.support.frozen import frozen

RESIZE_TIMEOUT = 15 * 60.0
MIN_RESIZE_TIMEOUT = 5 * 60.0
MAX_FORMULA_INTERVAL = 168 * 3600.0
MAX_TASK_SLOTS = 256
MAX_TASKS_PER_REQUEST = 100
MAX_MODE_DIGITS = 5
"""Of a file's mode, in octal."""

_DEALLOCATIONS = get_args(Deallocation)
_POOL_REPEATED = (
    "displayName", "metadata", "networkConfiguration", "userAccounts", "upgradePolicy", "startTask",
    "targetNodeCommunicationMode", "resourceTags",
)  # fmt: skip
_POOL_REFUSED = (
    "applicationPackageReferences",
    "mountConfiguration",
    "certificateReferences",
    "applicationLicenses",
)


@frozen
class Resize:
    """The body of a resize; None leaves a count as it is."""

    dedicated: int | None
    spot: int | None
    option: Deallocation
    timeout: float | None


def parse_pool(
    body: object, now: float, retired: frozenset[str], timing: AutoscaleTiming
) -> tuple[BatchPoolSpec, int, int]:
    """Read a pool to create, with the numbers of dedicated and of spot nodes. `retired`: retired images."""
    fields = Fields(body)
    pool_id = fields.identifier("id")
    vm_size = _vm_size(fields)
    machine = _virtual_machine(fields, now, retired)
    formula = _formula(fields, timing)
    fields.refuse(*_POOL_REFUSED)
    dedicated = fields.integer("targetDedicatedNodes", 0, low=0)
    spot = fields.integer("targetLowPriorityNodes", 0, low=0)
    inter_node = fields.boolean("enableInterNodeCommunication", default=False)
    spec = BatchPoolSpec(
        id=pool_id,
        vm_size=vm_size,
        task_slots=_task_slots(fields, vm_size),
        fill=_fill(fields),
        start_task=parse_start_task(fields.fields("startTask")),
        resize_timeout=_resize_timeout(fields) or RESIZE_TIMEOUT,
        document={
            "virtualMachineConfiguration": machine,
            "enableInterNodeCommunication": inter_node,
            **fields.keep(*_POOL_REPEATED),
        },
        formula=formula,
    )
    _check_metadata(fields)
    fields.finish()
    return spec, dedicated, spot


def patch_pool(spec: BatchPoolSpec, body: object, now: float, *, current_nodes: int) -> BatchPoolSpec:
    """Return a pool's specification with the properties given changed, the others as they are."""
    fields = Fields(body)
    fields.refuse(*_POOL_REFUSED)
    changes = fields.keep(*_POOL_REPEATED)
    _check_metadata(fields)
    if fields.get("startTask") is not None:
        spec = replace(spec, start_task=parse_start_task(fields.fields("startTask")))
    if current_nodes and {"vmSize", "taskSlotsPerNode", "virtualMachineConfiguration"} & set(fields.document):
        raise Refused("OperationInvalidForCurrentState", Reason="the pool has nodes")
    if fields.get("vmSize") is not None:
        spec = replace(spec, vm_size=_vm_size(fields))
    if fields.get("virtualMachineConfiguration") is not None:
        changes["virtualMachineConfiguration"] = _virtual_machine(fields, now)
    if fields.get("taskSlotsPerNode") is not None:
        spec = replace(spec, task_slots=_task_slots(fields, spec.vm_size))
    if fields.get("taskSchedulingPolicy") is not None:
        spec = replace(spec, fill=_fill(fields))
    if fields.get("enableInterNodeCommunication") is not None:
        changes["enableInterNodeCommunication"] = fields.boolean(
            "enableInterNodeCommunication", default=False
        )
    fields.finish()
    return replace(spec, document=spec.document | changes)


def replace_pool_properties(spec: BatchPoolSpec, body: object) -> BatchPoolSpec:
    """Replace a pool's start task and metadata; remove what the body omits."""
    fields = Fields(body)
    if fields.get("metadata") is None:
        raise Refused("MissingRequiredProperty", PropertyName="metadata")
    for name in ("applicationPackageReferences", "certificateReferences"):
        if fields.get(name):
            raise not_implemented(f"the property '{name}'")
    fields.get("targetNodeCommunicationMode")
    _check_metadata(fields)
    kept = {key: value for key, value in spec.document.items() if key not in ("startTask", "metadata")}
    start_task = parse_start_task(fields.fields("startTask"))
    replaced = replace(spec, start_task=start_task, document=kept | fields.keep("startTask", "metadata"))
    fields.finish()
    return replaced


def parse_formula(body: object, timing: AutoscaleTiming) -> tuple[str | None, float | None]:
    """Return a pool's new formula and its interval; None for what stays."""
    fields = Fields(body)
    formula, interval = fields.text("autoScaleFormula"), _formula_interval(fields, timing)
    fields.finish()
    if formula is None and interval is None:
        raise Refused("MissingRequiredProperty", PropertyName="autoScaleFormula")
    return formula, interval


def parse_evaluation(body: object) -> str:
    """Return a formula to evaluate."""
    fields = Fields(body)
    formula = fields.required_text("autoScaleFormula")
    fields.finish()
    return formula


def parse_resize(body: object) -> Resize:
    """Read the size that a pool is to have."""
    fields = Fields(body)
    dedicated = _optional_count(fields, "targetDedicatedNodes")
    spot = _optional_count(fields, "targetLowPriorityNodes")
    if dedicated is None and spot is None:
        raise Refused("MissingRequiredProperty", PropertyName="targetDedicatedNodes")
    resize = Resize(
        dedicated, spot, parse_deallocation(fields, "nodeDeallocationOption"), _resize_timeout(fields)
    )
    fields.finish()
    return resize


def parse_remove_nodes(body: object) -> tuple[list[str], Deallocation, float | None]:
    """Read which nodes are to leave a pool."""
    fields = Fields(body)
    nodes = fields.get("nodeList")
    if not isinstance(nodes, list) or not all(isinstance(node, str) for node in nodes):
        raise invalid_property("nodeList", nodes, "A list of node ids is expected.")
    option = parse_deallocation(fields, "nodeDeallocationOption")
    timeout = _resize_timeout(fields)
    fields.finish()
    return nodes, option, timeout


def parse_deallocation(fields: Fields, key: str) -> Deallocation:
    """Read what becomes of the tasks of a node that leaves."""
    return cast("Deallocation", fields.choice(key, _DEALLOCATIONS, "requeue"))


def parse_node_option(body: object, key: str) -> Deallocation:
    """Return the one property of a request to reboot, re-image or disable a node; the body may be absent."""
    fields = Fields(body if body is not None else {})
    option = parse_deallocation(fields, key)
    fields.finish()
    return option


def parse_job(body: object) -> BatchJobSpec:
    """Return a job to create."""
    fields = Fields(body)
    job_id = fields.identifier("id")
    fields.refuse("jobManagerTask", "jobPreparationTask", "jobReleaseTask", "networkConfiguration")
    if fields.boolean("usesTaskDependencies", default=False):
        raise not_implemented("a job whose tasks depend on each other")
    actions = ("noaction", "performexitoptionsjobaction")
    if fields.choice("onTaskFailure", actions, "noaction") != "noaction":
        raise not_implemented("a job whose failed tasks decide about it")
    spec = _job(fields, job_id, fields.keep("displayName", "metadata", "commonEnvironmentSettings"))
    fields.finish()
    return spec


def patch_job(spec: BatchJobSpec, body: object, *, whole: bool) -> BatchJobSpec:
    """Change the given properties of a job; `whole`: omitted ones take their defaults."""
    fields = Fields(body)
    given = fields.document
    current: dict[str, Any] = {} if whole else _changeable(spec)
    merged = Fields(current | given)
    merged.refuse("networkConfiguration")
    changed = _job(merged, spec.id, merged.keep("metadata"))
    merged.finish()
    fixed = {key: value for key, value in spec.document.items() if key not in _changeable(spec)}
    return replace(changed, environment=spec.environment, document=fixed | changed.document)


def parse_terminate_job(body: object) -> str:
    """Return the reason why a job ends."""
    fields = Fields(body if body is not None else {})
    reason = fields.text("terminateReason", "UserTerminate")
    fields.finish()
    return reason or "UserTerminate"


def parse_disable_job(body: object) -> Literal["requeue", "terminate", "wait"]:
    """Read what becomes of a disabled job's running tasks."""
    fields = Fields(body)
    fields.required_text("disableTasks")
    option = fields.choice("disableTasks", ("requeue", "terminate", "wait"), "requeue")
    fields.finish()
    return cast("Literal['requeue', 'terminate', 'wait']", option)


def parse_tasks(body: object) -> list[Any]:
    """Return the task bodies of a collection, not parsed yet: each is judged on its own."""
    tasks = Fields(body).get("value")
    if not isinstance(tasks, list):
        raise Refused("MissingRequiredProperty", PropertyName="value")
    if len(tasks) > MAX_TASKS_PER_REQUEST:
        raise Refused(
            "RequestBodyTooLarge", MaxLimit=MAX_TASKS_PER_REQUEST, Reason="too many tasks in one request"
        )
    return tasks


def parse_task(body: object, job: BatchJobSpec) -> BatchTaskSpec:
    """Return a task to create in a job."""
    fields = Fields(body)
    task_id = fields.identifier("id")
    fields.refuse("containerSettings", "multiInstanceSettings", "applicationPackageReferences", "outputFiles",
                  "dependsOn", "exitConditions", "authenticationTokenSettings")  # fmt: skip
    spec = BatchTaskSpec(
        id=task_id,
        command=_task_command(fields, job),
        slots=fields.integer("requiredSlots", 1, low=1, high=MAX_TASK_SLOTS),
        document=fields.keep(
            "displayName",
            "resourceFiles",
            "environmentSettings",
            "affinityInfo",
            "constraints",
            "userIdentity",
        ),
    )
    fields.finish()
    return spec


def replace_task(spec: BatchTaskSpec, body: object, job: BatchJobSpec) -> BatchTaskSpec:
    """Return a task's specification with other constraints."""
    fields = Fields(body)
    constraints = fields.keep("constraints")
    retries, seconds = _task_constraints(fields, job)
    fields.finish()
    document = {key: value for key, value in spec.document.items() if key != "constraints"}
    command = replace(spec.command, max_retries=retries, max_seconds=seconds)
    return replace(spec, command=command, document=document | constraints)


def parse_start_task(fields: Fields | None) -> StartTaskSpec | None:
    """Read the start task of a pool."""
    if fields is None:
        return None
    fields.refuse("containerSettings")
    fields.keep("userIdentity")
    spec = StartTaskSpec(
        CommandSpec(
            command_line=fields.required_text("commandLine"),
            environment=fields.pairs("environmentSettings"),
            files=_resource_files(fields),
            max_retries=fields.integer("maxTaskRetryCount", 0, low=-1),
        ),
        wait_for_success=fields.boolean("waitForSuccess", default=True),
    )
    fields.finish()
    return spec


def _job(fields: Fields, job_id: str, document: dict[str, Any]) -> BatchJobSpec:
    pool = fields.fields("poolInfo")
    if pool is None:
        raise Refused("MissingRequiredProperty", PropertyName="poolInfo")
    pool.refuse("autoPoolSpecification")
    constraints = fields.fields("constraints")
    seconds = constraints.seconds("maxWallClockTime", None) if constraints is not None else None
    if constraints is not None:
        constraints.integer("maxTaskRetryCount", 0, low=-1)
        constraints.finish()
    fields.boolean("allowTaskPreemption", default=False)
    return BatchJobSpec(
        id=job_id,
        pool_id=pool.identifier("poolId"),
        priority=fields.integer("priority", 0, low=-1000, high=1000),
        max_parallel=fields.integer("maxParallelTasks", -1, low=-1),
        max_seconds=seconds,
        ends_with_tasks=fields.choice("onAllTasksComplete", ("noaction", "terminatejob"), "noaction")
        == "terminatejob",
        environment=fields.pairs("commonEnvironmentSettings"),
        document=document | fields.keep("constraints", "allowTaskPreemption"),
    )


def _changeable(spec: BatchJobSpec) -> dict[str, Any]:
    """Return what a PATCH may change of a job, as it is."""
    return {
        "priority": spec.priority,
        "maxParallelTasks": spec.max_parallel,
        "onAllTasksComplete": "terminatejob" if spec.ends_with_tasks else "noaction",
        "poolInfo": {"poolId": spec.pool_id},
        "constraints": spec.document.get("constraints"),
        "metadata": spec.document.get("metadata"),
        "allowTaskPreemption": spec.document.get("allowTaskPreemption"),
    }


def _task_command(fields: Fields, job: BatchJobSpec) -> CommandSpec:
    retries, seconds = _task_constraints(fields, job)
    return CommandSpec(
        command_line=fields.required_text("commandLine"),
        environment={**job.environment, **fields.pairs("environmentSettings")},
        files=_resource_files(fields),
        max_retries=retries,
        max_seconds=seconds,
    )


def _task_constraints(fields: Fields, job: BatchJobSpec) -> tuple[int, float | None]:
    of_job = job.document.get("constraints") or {}
    default = int(of_job.get("maxTaskRetryCount") or 0)
    constraints = fields.fields("constraints")
    if constraints is None:
        return default, None
    constraints.seconds("retentionTime", None)
    retries = constraints.integer("maxTaskRetryCount", default, low=-1)
    seconds = constraints.seconds("maxWallClockTime", None)
    constraints.finish()
    return retries, seconds


def _resource_files(fields: Fields) -> tuple[ResourceFileSpec, ...]:
    return tuple(_resource_file(item) for item in fields.each("resourceFiles"))


def _resource_file(fields: Fields) -> ResourceFileSpec:
    fields.refuse("autoStorageContainerName")
    reference = fields.fields("identityReference")
    identity = None if reference is None else reference.required_text("resourceId")
    url, container_url = fields.text("httpUrl"), fields.text("storageContainerUrl")
    path = fields.text("filePath", "") or ""
    source = url or container_url
    if source is None or (url is not None and container_url is not None):
        raise invalid_property(
            fields.name("httpUrl"), "", "Exactly one of httpUrl and storageContainerUrl is due."
        )
    if url is not None and not path:
        raise Refused("MissingRequiredProperty", PropertyName=fields.name("filePath"))
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise invalid_property(
            fields.name("filePath"), path, "A path within the task's directory is expected."
        )
    mode = fields.text("fileMode", "0770") or "0770"
    if not set(mode) <= set("01234567") or len(mode) > MAX_MODE_DIGITS:
        raise invalid_property(fields.name("fileMode"), mode, "An octal file mode is expected.")
    prefix = fields.text("blobPrefix", "") or ""
    fields.finish()
    return ResourceFileSpec(source, path, url is None, prefix, int(mode, 8), identity)


def _vm_size(fields: Fields) -> str:
    size = fields.required_text("vmSize")
    if size.lower() not in CORES:
        raise invalid_property("vmSize", size, "The specified VM size is not supported in this region.")
    return size.lower()


def _virtual_machine(fields: Fields, now: float, retired: frozenset[str] = frozenset()) -> dict[str, Any]:
    fields.keep("virtualMachineConfiguration")
    machine = fields.fields("virtualMachineConfiguration")
    if machine is None:
        raise Refused("MissingRequiredProperty", PropertyName="virtualMachineConfiguration")
    agent = machine.required_text("nodeAgentSKUId")
    image = machine.fields("imageReference")
    if image is None:
        raise Refused("MissingRequiredProperty", PropertyName=machine.name("imageReference"))
    if image.get("virtualMachineImageId") is None:
        _check_image(image, agent, now, retired)
    machine.refuse("containerConfiguration")
    return machine.document


def _check_image(fields: Fields, agent: str, now: float, retired: frozenset[str]) -> None:
    names = [fields.required_text(key) for key in ("publisher", "offer", "sku")]
    image = find_image(*names)
    if image is None:
        reason = (
            "The specified image is not supported by the Batch service; see the list of supported images."
        )
        raise invalid_property("imageReference", ":".join(names), reason)
    end = PAST if image.name in retired else image.end_of_life
    if end is not None and datetime.fromisoformat(end).timestamp() <= now:
        reason = f"The Batch service does not make pools of the image since {end}."
        raise invalid_property("imageReference", ":".join(names), reason)
    if image.agent != agent.lower():
        reason = f"The image goes with the node agent '{image.agent}'."
        raise invalid_property("nodeAgentSKUId", agent, reason)


def _task_slots(fields: Fields, vm_size: str) -> int:
    return fields.integer("taskSlotsPerNode", 1, low=1, high=min(4 * CORES[vm_size], MAX_TASK_SLOTS))


def _fill(fields: Fields) -> Literal["spread", "pack"]:
    policy = fields.fields("taskSchedulingPolicy")
    if policy is None:
        return "spread"
    policy.get("jobDefaultOrder")
    fill = policy.choice("nodeFillType", ("spread", "pack"), "spread")
    policy.finish()
    return "pack" if fill == "pack" else "spread"


def _formula(fields: Fields, timing: AutoscaleTiming) -> AutoscaleFormula | None:
    """Read a pool's formula. A pool has a formula or counts, never both."""
    formula, interval = fields.text("autoScaleFormula"), _formula_interval(fields, timing)
    if not fields.boolean("enableAutoScale", default=False):
        for name in ("autoScaleFormula", "autoScaleEvaluationInterval"):
            if fields.get(name) is not None:
                raise invalid_property(name, fields.get(name), "It goes with enableAutoScale alone.")
        return None
    if not formula:
        raise Refused("MissingRequiredProperty", PropertyName="autoScaleFormula")
    for name in ("targetDedicatedNodes", "targetLowPriorityNodes"):
        if fields.get(name) is not None:
            raise invalid_property(name, fields.get(name), "It does not go with enableAutoScale.")
    return AutoscaleFormula(formula, timing.interval if interval is None else interval)


def _formula_interval(fields: Fields, timing: AutoscaleTiming) -> float | None:
    name = "autoScaleEvaluationInterval"
    seconds = fields.seconds(name, None)
    if seconds is not None and not timing.min_interval <= seconds <= MAX_FORMULA_INTERVAL:
        allowed = f"Allowed: {timing.min_interval / 60:g} minutes to 168 hours."
        raise invalid_property(name, fields.get(name), allowed)
    return seconds


def _resize_timeout(fields: Fields) -> float | None:
    seconds = fields.seconds("resizeTimeout", None)
    if seconds is not None and seconds < MIN_RESIZE_TIMEOUT:
        raise invalid_property("resizeTimeout", fields.document["resizeTimeout"], "The minimum is 5 minutes.")
    return seconds


def _optional_count(fields: Fields, key: str) -> int | None:
    return fields.integer(key, 0, low=0) if fields.get(key) is not None else None


def _check_metadata(fields: Fields) -> None:
    fields.pairs("metadata")
