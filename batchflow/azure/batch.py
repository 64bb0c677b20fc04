"""The port to the machines, on the Batch SDK.

Long-running operations are only started; the pool itself shows their result. A node's errors and a pool's
resize errors are facts to report (`ReportedFault`), not exceptions.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from azure.batch import models
from azure.batch.aio import BatchClient
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError

from batchflow.azure.batch_models import pool_options, start_task, supported_image, task_options
from batchflow.azure.errors import code_of, pool_error
from batchflow.azure.identity import check_https
from batchflow.azure.translating import Translating
from batchflow.azure.transport import transport
from batchflow.errors import ConfigurationError, PoolError, PoolNotFound
from batchflow.model import Image, ManagedIdentity
from batchflow.ports.compute import BatchTaskInfo, NodeInfo, PoolInfo, ReportedFault, SupportedImage
from batchflow.support.closing import Closes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

    from batchflow.azure.identity import Credential
    from batchflow.ports.compute import BatchTask, PoolDocument

CONNECT_LIMIT = 4.0
"""Seconds for connecting, of which there are two attempts: an address where nothing answers becomes an error
in less than ten."""
READ_LIMIT = 30.0
"""Timeout in seconds for the next byte of an answer."""
TASKS_A_REQUEST = NODES_A_REQUEST = 100
"""Maximum number of tasks of one request: Azure's limit."""
GONE_LIMIT = 120.0
"""Maximum number of seconds until a deleted job is gone, so that its id is free."""

_ADDRESS = "batch.url"
"""The setting that an error names when nothing answers."""
_NO_FILE = {404, 409, 416}
"""Error codes for a file that is not there: its task has not run, its node is gone, or a new run has made it
shorter than it was when it was listed."""
_ENDED_JOB = {"JobCompleted", "JobTerminating", "JobBeingTerminated", "JobBeingDeleted"}
"""Error codes for a change to a job that no longer needs it."""
_NOT_NOW = {"PoolBeingResized", "TooManyEnableAutoScaleRequests"}
"""Error codes for a formula that may be set a little later."""
_USABLE_JOB = {"active", "disabled", "disabling", "enabling"}


class BatchCompute(Closes):
    """A Batch account, by its name, URL and key; instead of the key, by a credential of Entra ID.

    `ca_file` holds certificates to trust besides the system's. `setting` is named by errors that these cause.
    """

    def __init__(
        self,
        account: str,
        key: str | Credential,
        url: str,
        *,
        ca_file: str | None = None,
        setting: str | None = None,
    ) -> None:
        self._setting = setting or ("batch.key" if isinstance(key, str) else "batch.entra")
        credential: AzureNamedKeyCredential | Credential
        if isinstance(key, str):
            credential = AzureNamedKeyCredential(account, _checked(key, self._setting))
        else:
            check_https(url, self._setting)
            credential = key
        self._client = BatchClient(
            url.rstrip("/"),
            credential,
            retry_total=2,
            retry_connect=1,
            retry_read=0,
            retry_backoff_factor=0.2,
            connection_timeout=CONNECT_LIMIT,
            read_timeout=READ_LIMIT,
            transport=transport(url, ca_file, connect=CONNECT_LIMIT, read=READ_LIMIT),
        )

    def _failing(self, doing: str) -> Translating:
        return Translating(partial(pool_error, doing=doing, setting=self._setting, address=_ADDRESS))

    async def create_pool(self, document: PoolDocument) -> None:
        with self._failing(f"cannot create pool {document.id}"):
            try:
                await self._client.create_pool(pool_options(document))
            except HttpResponseError as error:
                if error.status_code == 400:
                    text = f"Batch does not take pool {document.id}: {_reasons(error)}{_hint(error)}"
                    raise ConfigurationError(text) from error
                raise

    async def pool(self, pool_id: str) -> PoolInfo:
        with self._failing(f"cannot read pool {pool_id}"):
            return _pool_info(await self._client.get_pool(pool_id))

    async def pools(self) -> AsyncIterator[PoolInfo]:
        with self._failing("cannot list the pools"):
            async for pool in self._client.list_pools():
                yield _pool_info(pool)

    async def images(self) -> list[SupportedImage]:
        with self._failing("cannot list the supported images"):
            return [supported_image(image) async for image in self._client.list_supported_images()]

    async def enable_autoscale(self, pool_id: str, formula: str, interval: float) -> bool:
        options = models.BatchPoolEnableAutoScaleOptions(
            auto_scale_formula=formula, auto_scale_evaluation_interval=timedelta(seconds=interval)
        )
        with self._failing(f"cannot set the formula of pool {pool_id}"):
            try:
                await self._client.enable_pool_auto_scale(pool_id, options)
            except HttpResponseError as error:
                if code_of(error) not in _NOT_NOW:
                    raise
                return False
        return True

    async def disable_autoscale(self, pool_id: str) -> None:
        with self._failing(f"cannot take the formula from pool {pool_id}"):
            await self._client.disable_pool_auto_scale(pool_id)

    async def resize_pool(self, pool_id: str, nodes: int, spot: int) -> None:
        options = models.BatchPoolResizeOptions(target_dedicated_nodes=nodes, target_low_priority_nodes=spot)
        with self._failing(f"cannot resize pool {pool_id}"):
            await self._client.begin_resize_pool(pool_id, options)

    async def stop_resize(self, pool_id: str) -> None:
        with self._failing(f"cannot stop the resize of pool {pool_id}"):
            try:
                await self._client.begin_stop_pool_resize(pool_id)
            except ResourceExistsError as error:
                if code_of(error) != "OperationInvalidForCurrentState":  # else it has ended meanwhile
                    raise

    async def delete_pool(self, pool_id: str) -> bool:
        with self._failing(f"cannot delete pool {pool_id}"):
            try:
                await self._client.begin_delete_pool(pool_id)
            except ResourceNotFoundError:
                return False
            except ResourceExistsError as error:
                if code_of(error) != "PoolBeingDeleted":
                    raise
        return True

    async def nodes(self, pool_id: str) -> list[NodeInfo]:
        with self._failing(f"cannot list the nodes of pool {pool_id}"):
            try:
                return [_node_info(node) async for node in self._client.list_nodes(pool_id)]
            except ResourceNotFoundError as error:
                raise PoolNotFound(f"there is no pool {pool_id} in the Batch account") from error

    async def remove_nodes(self, pool_id: str, node_ids: Sequence[str]) -> None:
        with self._failing(f"cannot remove nodes of pool {pool_id}"):
            for start in range(0, len(node_ids), NODES_A_REQUEST):
                part = list(node_ids[start : start + NODES_A_REQUEST])
                await self._client.begin_remove_nodes(pool_id, models.BatchNodeRemoveOptions(node_ids=part))

    async def reboot_node(self, pool_id: str, node_id: str) -> None:
        with self._failing(f"cannot reboot node {node_id} of pool {pool_id}"):
            option = cast("Any", {"nodeRebootOption": "requeue"})
            await self._client.begin_reboot_node(pool_id, node_id, option)

    async def node_output(self, pool_id: str, node_id: str, path: str, tail: int = 4096) -> str:
        with self._failing(f"cannot read {path} of node {node_id} of pool {pool_id}"):
            try:
                top = path.partition("/")[0]
                files = self._client.list_node_files(
                    pool_id, node_id, recursive=True, filter=f"startswith(name,'{top}/')"
                )
                part = _last_part(path, [file async for file in files], tail)
                if part is None:
                    return ""
                chunks = await self._client.download_node_file(pool_id, node_id, path, ocp_range=part)
                return b"".join([chunk async for chunk in chunks]).decode(errors="replace")
            except HttpResponseError as error:
                if error.status_code not in _NO_FILE:
                    raise
                return ""

    async def change_start_task(self, document: PoolDocument) -> None:
        change = models.BatchPoolUpdateOptions(start_task=start_task(document))
        with self._failing(f"cannot change the start task of pool {document.id}"):
            await self._client.update_pool(document.id, change)

    async def create_job(self, job_id: str, pool_id: str) -> bool:
        options = models.BatchJobCreateOptions(id=job_id, pool_info=models.BatchPoolInfo(pool_id=pool_id))
        with self._failing(f"cannot create job {job_id} in pool {pool_id}"):
            while True:
                try:
                    await self._client.create_job(options)
                    return True
                except ResourceExistsError as error:
                    if code_of(error) not in ("JobExists", "JobBeingDeleted"):
                        raise
                if await self._job_state(job_id) in _USABLE_JOB:
                    return False
                await self._remove_job(job_id)

    async def _job_state(self, job_id: str) -> str | None:
        try:
            return _word((await self._client.get_job(job_id)).state)
        except ResourceNotFoundError:
            return None

    async def _remove_job(self, job_id: str) -> None:
        """Delete a job that has ended, and wait until its id is free."""
        await self.delete_job(job_id)
        pause = 0.05
        async with asyncio.timeout(GONE_LIMIT):
            while await self._job_state(job_id) is not None:
                await asyncio.sleep(pause)
                pause = min(2.0, pause * 2)

    async def add_tasks(self, job_id: str, tasks: Sequence[BatchTask]) -> None:
        with self._failing(f"cannot add tasks to job {job_id}"):
            for start in range(0, len(tasks), TASKS_A_REQUEST):
                part = [task_options(task) for task in tasks[start : start + TASKS_A_REQUEST]]
                group = models.BatchTaskGroup(task_values=part)
                answer = await self._client.create_task_collection(job_id, group)
                _check_added(job_id, answer)

    async def end_job_when_idle(self, job_id: str) -> None:
        change = models.BatchJobUpdateOptions(
            all_tasks_complete_mode=models.BatchAllTasksCompleteMode.TERMINATE_JOB
        )
        with self._failing(f"cannot change job {job_id}"):
            try:
                await self._client.update_job(job_id, change)
            except ResourceNotFoundError:
                return
            except ResourceExistsError as error:
                if code_of(error) not in _ENDED_JOB:
                    raise

    async def tasks(self, job_id: str) -> list[BatchTaskInfo]:
        with self._failing(f"cannot list the tasks of job {job_id}"):
            try:
                return [_task_info(task) async for task in self._client.list_tasks(job_id)]
            except ResourceNotFoundError:
                return []

    async def delete_task(self, job_id: str, task_id: str) -> bool:
        with self._failing(f"cannot delete task {task_id} of job {job_id}"):
            try:
                await self._client.delete_task(job_id, task_id)
            except ResourceNotFoundError:
                return False
        return True

    async def task_output(self, job_id: str, task_id: str, name: str, tail: int = 4096) -> str:
        with self._failing(f"cannot read {name} of task {task_id} of job {job_id}"):
            try:
                return await self._end_of_file(job_id, task_id, name, tail)
            except HttpResponseError as error:
                if error.status_code not in _NO_FILE:
                    raise
                return ""

    async def _end_of_file(self, job_id: str, task_id: str, name: str, tail: int) -> str:
        """Return the size from the listing, because the SDK logs a traceback for a HEAD that is refused."""
        part = _last_part(name, [file async for file in self._client.list_task_files(job_id, task_id)], tail)
        if part is None:
            return ""
        chunks = await self._client.download_task_file(job_id, task_id, name, ocp_range=part)
        return b"".join([chunk async for chunk in chunks]).decode(errors="replace")

    async def delete_job(self, job_id: str) -> bool:
        with self._failing(f"cannot delete job {job_id}"):
            try:
                await self._client.begin_delete_job(job_id)
            except ResourceNotFoundError:
                return False
            except ResourceExistsError as error:
                if code_of(error) != "JobBeingDeleted":
                    raise
        return True

    async def aclose(self) -> None:
        await self._client.close()


def _checked(key: str, setting: str) -> str:
    try:
        base64.b64decode(key, validate=True)
    except binascii.Error:
        raise ConfigurationError(f"{setting} is not the key of a Batch account: it is no base64") from None
    return key


def _last_part(name: str, files: list[models.BatchNodeFile], tail: int) -> str | None:
    """Return the range of a file's last bytes; None when it has none or is not there."""
    found = [file.properties for file in files if file.name == name]
    size = found[0].content_length if found and found[0] is not None else 0
    return f"bytes={max(0, size - tail)}-{size - 1}" if size else None


def _reasons(error: HttpResponseError) -> str:
    """Return what Batch says is wrong with a request: the property, the value, the reason."""
    model = error.model if isinstance(error.model, models.BatchError) else None
    values = model.error_values if model is not None and model.error_values else ()
    return "; ".join(f"{each.key}: {each.value}" for each in values) or code_of(error) or "bad request"


def _hint(error: HttpResponseError) -> str:
    """Return a hint for a refused VM size, because Batch does not list the sizes."""
    if "vmSize" not in _reasons(error):
        return ""
    return (
        ". PoolSpec.vm_size, or else the setting pool.vm_size, is a size that the account's region has: "
        "az batch location list-skus --location REGION"
    )


def _check_added(job_id: str, answer: models.BatchCreateTaskCollectionResult) -> None:
    for result in answer.result_values or ():
        code = result.error.code if result.error is not None else None
        if code not in (None, "TaskExists"):
            raise PoolError(
                f"Batch does not take task {result.task_id} of job {job_id}: {code}",
                retryable=_word(result.status) == "servererror",
            )


def _pool_info(pool: models.BatchPool) -> PoolInfo:
    return PoolInfo(
        id=pool.id,
        state=cast("Literal['active', 'deleting']", _word(pool.state)),
        allocation=cast("Literal['steady', 'resizing', 'stopping']", _word(pool.allocation_state)),
        vm_size=pool.vm_size,
        nodes=pool.current_dedicated_nodes or 0,
        wanted=pool.target_dedicated_nodes or 0,
        spot=pool.current_low_priority_nodes or 0,
        spot_wanted=pool.target_low_priority_nodes or 0,
        task_slots=pool.task_slots_per_node or 1,
        metadata={item.name: item.value for item in pool.metadata or ()},
        resize_errors=tuple(_fault(error) for error in pool.resize_errors or ()),
        image=_image(pool.virtual_machine_configuration),
        start_command=None if pool.start_task is None else pool.start_task.command_line,
        autoscale=bool(pool.enable_auto_scale),
        formula=pool.auto_scale_formula if pool.enable_auto_scale else None,
        formula_error=_formula_error(pool.auto_scale_run),
        identities=_identities(pool.identity),
    )


def _formula_error(run: models.AutoScaleRun | None) -> ReportedFault | None:
    return None if run is None or run.error is None else _fault(run.error)


def _identities(identity: models.BatchPoolIdentity | None) -> tuple[ManagedIdentity, ...]:
    assigned = (identity.user_assigned_identities or ()) if identity is not None else ()
    return tuple(ManagedIdentity(each.resource_id, each.client_id or "") for each in assigned)


def _image(machine: models.VirtualMachineConfiguration | None) -> Image | None:
    if machine is None or not machine.image_reference.publisher:
        return None
    image = machine.image_reference
    names = (image.publisher or "", image.offer or "", image.sku or "", image.version or "latest")
    return Image(*names, node_agent=machine.node_agent_sku_id)


def _node_info(node: models.BatchNode) -> NodeInfo:
    failure = node.start_task_info.failure_info if node.start_task_info is not None else None
    return NodeInfo(
        id=node.id,
        state=_word(node.state),
        dedicated=node.is_dedicated is not False,
        allocated_at=_seconds(node.allocation_time),
        errors=tuple(_fault(error) for error in node.errors or ()),
        start_task_error=None if failure is None else _fault(failure),
    )


def _task_info(task: models.BatchTask) -> BatchTaskInfo:
    run = task.execution_info
    failure = run.failure_info if run is not None else None
    return BatchTaskInfo(
        id=task.id,
        state=cast("Literal['active', 'preparing', 'running', 'completed']", _word(task.state)),
        node=task.node_info.node_id if task.node_info is not None else None,
        exit_code=run.exit_code if run is not None else None,
        failure=None if failure is None else _fault(failure),
        retries=(run.retry_count or 0) if run is not None else 0,
        created_at=_seconds(task.creation_time),
        started_at=_seconds(run.start_time) if run is not None else None,
    )


def _fault(error: Any) -> ReportedFault:
    """Make a fault from any of the SDK's three classes that have a code and a message."""
    return ReportedFault(error.code or "Unknown", error.message or "")


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()


def _word(value: Any) -> str:
    """Return an enumeration's value, also one that this SDK does not know."""
    return str(getattr(value, "value", value)).lower()
