"""The routes of the Batch data plane: from a request to the state, and to the answer.

Everything that Azure Batch publishes is either served here or refused with 501 in the service's own shape;
the tables at the end are the whole truth about which.
"""

from __future__ import annotations

from dataclasses import field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from batchflow.local.batch.core.autoscale import check
from batchflow.local.batch.core.context import id_key
from batchflow.local.batch.core.entities import AutoscaleRun
from batchflow.local.batch.core.errors import Refused, not_implemented
from batchflow.local.batch.core.pools import failure_of
from batchflow.local.batch.nodes import files
from batchflow.local.batch.rest import conditions, documents, queries, requests
from batchflow.local.batch.rest.fault_requests import parse_account_faults, parse_fault
from batchflow.local.batch.rest.odata import paginate, parse_filter, parse_max_results, select
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from batchflow.local.batch.core.entities import (
        Document,
        JobRecord,
        NodeRecord,
        PoolRecord,
        TaskRecord,
        Versioned,
    )
    from batchflow.local.batch.core.state import BatchState
    from batchflow.local.batch.nodes.directories import NodeDirectories
    from batchflow.local.batch.nodes.files import FileSlice


@frozen
class BatchRequest:
    """One authenticated request. `names` are the path's decoded segments, `headers` case-insensitive."""

    method: str
    names: tuple[str, ...]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any
    now: float


@frozen
class BatchResponse:
    """What to answer: a document, a part of a file, or neither."""

    status: int = 200
    document: Document | None = None
    headers: dict[str, str] = field(default_factory=dict)
    content: FileSlice | None = None
    body: bytes = b""
    """The document as it is sent."""


class DataPlane:
    """The operations of one account. All of them decide at once; none waits."""

    def __init__(
        self,
        state: BatchState,
        disks: NodeDirectories,
        base: Callable[[], str],
        identity_of: Callable[[str], Document | None] = lambda _: None,
    ) -> None:
        self._timing = state.timing
        self._pools = state.pools
        self._nodes = state.nodes
        self._jobs = state.jobs
        self._faults = state.faults
        self._disks = disks
        self._base = base
        self._identity_of = identity_of

    def answer(self, request: BatchRequest) -> BatchResponse:
        """Carry a request out. Raises Refused."""
        pattern = route_of(request.names)
        route = f"{request.method} {pattern}"
        operation = ROUTES.get(route) or _CONTROL.get(route)
        if operation is None:
            raise _unserved(request.method, pattern)
        queries.check(request.query)
        return operation(self, request)

    # Faults, of which Azure knows nothing

    def inject_fault(self, request: BatchRequest) -> BatchResponse:
        self._pools.inject(request.names[1], parse_fault(request.body), request.now)
        return BatchResponse(204)

    def clear_faults(self, request: BatchRequest) -> BatchResponse:
        self._faults.clear(request.names[1])
        return BatchResponse(204)

    def set_account_faults(self, request: BatchRequest) -> BatchResponse:
        self._faults.account = parse_account_faults(request.body)
        return BatchResponse(204)

    # Pools

    def create_pool(self, request: BatchRequest) -> BatchResponse:
        self._faults.check_quota("pools", len(self._pools.by_id))
        spec, dedicated, spot = requests.parse_pool(
            request.body, request.now, self._faults.account.retired, self._timing
        )
        if (identity := self._identity_of(spec.id)) is not None:
            spec = replace(spec, document=spec.document | {"identity": identity})
        pool = self._pools.create_pool(spec, dedicated, spot, request.now)
        return self._created(pool.stamp, f"pools/{spec.id}")

    def list_pools(self, request: BatchRequest) -> BatchResponse:
        pools = (
            (pool.stamp.serial, documents.pool_document(pool, self._base())) for pool in self._all_pools()
        )
        return self._page(request, pools)

    def pool_exists(self, request: BatchRequest) -> BatchResponse:
        pool = self._pool(request)
        return BatchResponse(headers=conditions.stamp_headers(pool.stamp))

    def get_pool(self, request: BatchRequest) -> BatchResponse:
        pool = self._pool(request)
        return self._resource(request, documents.pool_document(pool, self._base()), pool.stamp)

    def patch_pool(self, request: BatchRequest) -> BatchResponse:
        pool = self._pool(request)
        spec = requests.patch_pool(pool.spec, request.body, request.now, current_nodes=len(pool.nodes))
        self._pools.change_pool(pool, spec, request.now)
        return self._changed(pool.stamp, f"pools/{pool.spec.id}")

    def update_pool_properties(self, request: BatchRequest) -> BatchResponse:
        pool = self._pool(request)
        spec = requests.replace_pool_properties(pool.spec, request.body)
        self._pools.change_pool(pool, spec, request.now)
        return self._changed(pool.stamp, f"pools/{pool.spec.id}/updateproperties", status=204)

    def delete_pool(self, request: BatchRequest) -> BatchResponse:
        self._pools.delete_pool(self._pool(request), request.now)
        return BatchResponse(202)

    def resize_pool(self, request: BatchRequest) -> BatchResponse:
        pool = self._pool(request)
        resize = requests.parse_resize(request.body)
        self._pools.resize_pool(
            pool, resize.dedicated, resize.spot, resize.option, resize.timeout, request.now
        )
        return self._changed(pool.stamp, f"pools/{pool.spec.id}/resize", status=202)

    def stop_resize(self, request: BatchRequest) -> BatchResponse:
        pool = self._pool(request)
        self._pools.stop_resize(pool, request.now)
        return self._changed(pool.stamp, f"pools/{pool.spec.id}/stopresize", status=202)

    def enable_autoscale(self, request: BatchRequest) -> BatchResponse:
        pool = self._pool(request)
        formula, interval = requests.parse_formula(request.body, self._timing)
        self._pools.enable_formula(pool, formula, interval, request.now)
        return self._changed(pool.stamp, f"pools/{pool.spec.id}/enableautoscale")

    def disable_autoscale(self, request: BatchRequest) -> BatchResponse:
        pool = self._pool(request)
        self._pools.disable_formula(pool, request.now)
        return self._changed(pool.stamp, f"pools/{pool.spec.id}/disableautoscale")

    def evaluate_autoscale(self, request: BatchRequest) -> BatchResponse:
        pool = self._pool(request)
        formula = requests.parse_evaluation(request.body)
        if pool.spec.formula is None:
            raise Refused("OperationNotValidOnPool", PoolId=pool.spec.id, Reason="it has no formula")
        check(formula)
        try:
            run = AutoscaleRun(request.now, self._pools.evaluate_formula(pool, formula, request.now).results)
        except Refused as refused:
            run = AutoscaleRun(request.now, failure=failure_of(refused))
        answer = self._changed(pool.stamp, f"pools/{pool.spec.id}/evaluateautoscale")
        return replace(answer, document=documents.formula_run_document(run))

    def remove_nodes(self, request: BatchRequest) -> BatchResponse:
        pool = self._pool(request)
        nodes, option, timeout = requests.parse_remove_nodes(request.body)
        self._pools.remove_nodes(pool, nodes, option, timeout, request.now)
        return self._changed(pool.stamp, f"pools/{pool.spec.id}/removenodes", status=202)

    def node_counts(self, request: BatchRequest) -> BatchResponse:
        pools = ((pool.stamp.serial, documents.node_counts_document(pool)) for pool in self._all_pools())
        return self._page(request, pools)

    def supported_images(self, request: BatchRequest) -> BatchResponse:
        return self._page(request, enumerate(documents.image_documents(self._faults.account.retired)))

    # Nodes

    def list_nodes(self, request: BatchRequest) -> BatchResponse:
        nodes = self._pool(request).nodes.values()
        listed = ((node.serial, documents.node_document(node, self._base())) for node in list(nodes))
        return self._page(request, listed)

    def get_node(self, request: BatchRequest) -> BatchResponse:
        document = documents.node_document(self._node(request), self._base())
        return BatchResponse(document=_selected(request, document))

    def reboot_node(self, request: BatchRequest) -> BatchResponse:
        option = requests.parse_node_option(request.body, "nodeRebootOption")
        self._nodes.reboot(self._node(request), option, request.now)
        return self._done(request, 202)

    def reimage_node(self, request: BatchRequest) -> BatchResponse:
        option = requests.parse_node_option(request.body, "nodeReimageOption")
        self._nodes.reimage(self._node(request), option, request.now)
        return self._done(request, 202)

    def deallocate_node(self, request: BatchRequest) -> BatchResponse:
        option = requests.parse_node_option(request.body, "nodeDeallocateOption")
        self._nodes.deallocate(self._node(request), option, request.now)
        return self._done(request, 202)

    def start_node(self, request: BatchRequest) -> BatchResponse:
        self._nodes.start(self._node(request), request.now)
        return self._done(request, 202)

    def disable_scheduling(self, request: BatchRequest) -> BatchResponse:
        option = requests.parse_node_option(request.body, "nodeDisableSchedulingOption")
        self._nodes.disable_scheduling(self._node(request), option, request.now)
        return self._done(request, 200)

    def enable_scheduling(self, request: BatchRequest) -> BatchResponse:
        self._nodes.enable_scheduling(self._node(request), request.now)
        return self._done(request, 200)

    def list_node_files(self, request: BatchRequest) -> BatchResponse:
        node = self._node(request)
        return self._list_files(request, self._disks.of(node), documents.node_url(node, self._base()))

    def get_node_file(self, request: BatchRequest) -> BatchResponse:
        node = self._node(request)
        return self._get_file(request, self._disks.of(node), documents.node_url(node, self._base()))

    def delete_node_file(self, request: BatchRequest) -> BatchResponse:
        return self._delete_file(request, self._disks.of(self._node(request)))

    # Jobs

    def create_job(self, request: BatchRequest) -> BatchResponse:
        self._faults.check_quota("jobs", self._jobs.active_jobs())
        job = self._jobs.create_job(requests.parse_job(request.body), request.now)
        return self._created(job.stamp, f"jobs/{job.spec.id}")

    def list_jobs(self, request: BatchRequest) -> BatchResponse:
        jobs = list(self._jobs.by_id.values())
        return self._page(
            request, ((job.stamp.serial, documents.job_document(job, self._base())) for job in jobs)
        )

    def get_job(self, request: BatchRequest) -> BatchResponse:
        job = self._job(request)
        return self._resource(request, documents.job_document(job, self._base()), job.stamp)

    def patch_job(self, request: BatchRequest) -> BatchResponse:
        return self._change_job(request, whole=False)

    def replace_job(self, request: BatchRequest) -> BatchResponse:
        return self._change_job(request, whole=True)

    def _change_job(self, request: BatchRequest, *, whole: bool) -> BatchResponse:
        job = self._job(request)
        self._jobs.change_job(job, requests.patch_job(job.spec, request.body, whole=whole), request.now)
        return self._changed(job.stamp, f"jobs/{job.spec.id}")

    def delete_job(self, request: BatchRequest) -> BatchResponse:
        self._jobs.delete_job(self._job(request), request.now)
        return BatchResponse(202)

    def terminate_job(self, request: BatchRequest) -> BatchResponse:
        job = self._job(request)
        self._jobs.terminate_job(job, requests.parse_terminate_job(request.body), request.now)
        return self._changed(job.stamp, f"jobs/{job.spec.id}/terminate", status=202)

    def disable_job(self, request: BatchRequest) -> BatchResponse:
        job = self._job(request)
        self._jobs.disable_job(job, requests.parse_disable_job(request.body), request.now)
        return self._changed(job.stamp, f"jobs/{job.spec.id}/disable", status=202)

    def enable_job(self, request: BatchRequest) -> BatchResponse:
        job = self._job(request)
        self._jobs.enable_job(job, request.now)
        return self._changed(job.stamp, f"jobs/{job.spec.id}/enable", status=202)

    def task_counts(self, request: BatchRequest) -> BatchResponse:
        return BatchResponse(document=documents.task_counts_document(self._job(request)))

    # Tasks

    def create_task(self, request: BatchRequest) -> BatchResponse:
        job = self._job(request)
        task = self._jobs.create_task(job, requests.parse_task(request.body, job.spec), request.now)
        return self._created(task.stamp, f"jobs/{job.spec.id}/tasks/{task.spec.id}")

    def create_tasks(self, request: BatchRequest) -> BatchResponse:
        job = self._job(request)
        results = [self._create_one_of(job, body, request.now) for body in requests.parse_tasks(request.body)]
        return BatchResponse(document={"value": results})

    def _create_one_of(self, job: JobRecord, body: Any, now: float) -> Document:
        try:
            task = self._jobs.create_task(job, requests.parse_task(body, job.spec), now)
        except Refused as refused:
            task_id = str(body.get("id", "")) if isinstance(body, dict) else ""
            status = "clienterror" if refused.status < 500 else "servererror"
            return {"status": status, "taskId": task_id, "error": refused.body()}
        document = documents.task_document(task, self._base())
        return {
            "status": "success",
            "taskId": task.spec.id,
            "eTag": document["eTag"],
            "lastModified": document["lastModified"],
            "location": document["url"],
        }

    def list_tasks(self, request: BatchRequest) -> BatchResponse:
        tasks = list(self._job(request).tasks.values())
        listed = ((task.stamp.serial, documents.task_document(task, self._base())) for task in tasks)
        return self._page(request, listed)

    def get_task(self, request: BatchRequest) -> BatchResponse:
        task = self._task(request)
        return self._resource(request, documents.task_document(task, self._base()), task.stamp)

    def replace_task(self, request: BatchRequest) -> BatchResponse:
        task = self._task(request)
        spec = requests.replace_task(task.spec, request.body, task.job.spec)
        self._jobs.change_task(task, spec, request.now)
        return self._changed(task.stamp, f"jobs/{task.job.spec.id}/tasks/{task.spec.id}")

    def delete_task(self, request: BatchRequest) -> BatchResponse:
        self._jobs.delete_task(self._task(request), request.now)
        return BatchResponse()

    def terminate_task(self, request: BatchRequest) -> BatchResponse:
        task = self._task(request)
        self._jobs.terminate_task(task, request.now)
        return self._changed(
            task.stamp, f"jobs/{task.job.spec.id}/tasks/{task.spec.id}/terminate", status=204
        )

    def reactivate_task(self, request: BatchRequest) -> BatchResponse:
        task = self._task(request)
        self._jobs.reactivate_task(task, request.now)
        return self._changed(
            task.stamp, f"jobs/{task.job.spec.id}/tasks/{task.spec.id}/reactivate", status=204
        )

    def list_task_files(self, request: BatchRequest) -> BatchResponse:
        task = self._task(request)
        return self._list_files(request, self._task_directory(task), documents.task_url(task, self._base()))

    def get_task_file(self, request: BatchRequest) -> BatchResponse:
        task = self._task(request)
        return self._get_file(request, self._task_directory(task), documents.task_url(task, self._base()))

    def delete_task_file(self, request: BatchRequest) -> BatchResponse:
        return self._delete_file(request, self._task_directory(self._task(request)))

    # What a request names

    def _all_pools(self) -> list[PoolRecord]:
        return list(self._pools.by_id.values())

    def _pool(self, request: BatchRequest) -> PoolRecord:
        pool = self._pools.pool(request.names[1])
        if len(request.names) <= 3:
            conditions.check(request.method, request.headers, pool.stamp)
        return pool

    def _node(self, request: BatchRequest) -> NodeRecord:
        return self._nodes.node(self._pools.pool(request.names[1]), request.names[3])

    def _job(self, request: BatchRequest) -> JobRecord:
        job = self._jobs.job(request.names[1])
        if len(request.names) <= 3 and request.names[-1] not in ("tasks", "addtaskcollection"):
            conditions.check(request.method, request.headers, job.stamp)
        return job

    def _task(self, request: BatchRequest) -> TaskRecord:
        task = self._jobs.task(self._jobs.job(request.names[1]), request.names[3])
        if "files" not in request.names[4:5]:
            conditions.check(request.method, request.headers, task.stamp)
        return task

    def _task_directory(self, task: TaskRecord) -> Path:
        if task.place is None:
            raise Refused("OperationInvalidForCurrentState", TaskId=task.spec.id, TaskState=task.state)
        if id_key(task.place.id) not in task.place.pool.nodes:
            raise Refused("TaskFilesUnavailable", TaskId=task.spec.id, Reason="the node has left its pool")
        return self._disks.task(task.place, task.job.spec.id, task.spec.id)

    # Answers

    def _created(self, stamp: Versioned, path: str) -> BatchResponse:
        url = f"{self._base()}/{path}"
        return BatchResponse(
            201, headers={**conditions.stamp_headers(stamp), "DataServiceId": url, "Location": url}
        )

    def _changed(self, stamp: Versioned, path: str, *, status: int = 200) -> BatchResponse:
        return BatchResponse(
            status, headers={**conditions.stamp_headers(stamp), "DataServiceId": f"{self._base()}/{path}"}
        )

    def _done(self, request: BatchRequest, status: int) -> BatchResponse:
        """Answer an action on what has no version."""
        return BatchResponse(status, headers={"DataServiceId": f"{self._base()}/{'/'.join(request.names)}"})

    def _resource(self, request: BatchRequest, document: Document, stamp: Versioned) -> BatchResponse:
        return BatchResponse(document=_selected(request, document), headers=conditions.stamp_headers(stamp))

    def _page(self, request: BatchRequest, numbered: Iterable[tuple[int, Document]]) -> BatchResponse:
        expression = request.query.get("$filter")
        page = paginate(
            numbered,
            after=request.query.get("$skiptoken"),
            limit=parse_max_results(request.query.get("maxresults")),
            wanted=parse_filter(expression, queries.FILTERS[route_of(request.names)]) if expression else None,
        )
        chosen = _selection(request)
        document: Document = {"value": [select(item, chosen) for item in page.items]}
        if page.next_token is not None:
            path = "/".join(quote(name, safe="") for name in request.names)
            query = urlencode({**request.query, "$skiptoken": page.next_token})
            document["odata.nextLink"] = f"{self._base()}/{path}?{query}"
        return BatchResponse(document=document)

    def _list_files(self, request: BatchRequest, root: Path, url: str) -> BatchResponse:
        return self._page(request, files.list_files(root, f"{url}/files", recursive=_recursive(request)))

    def _delete_file(self, request: BatchRequest, root: Path) -> BatchResponse:
        files.delete(files.locate(root, request.names[5]), recursive=_recursive(request))
        return BatchResponse()

    def _get_file(self, request: BatchRequest, root: Path, url: str) -> BatchResponse:
        name = request.names[5]
        path = files.locate(root, name)
        status = path.stat()
        conditions.check_dates(request.method, request.headers, status.st_mtime)
        headers = files.headers(path, f"{url}/files/{quote(name)}") | {
            "Last-Modified": conditions.http_date(status.st_mtime),
            "ocp-creation-time": conditions.http_date(status.st_ctime),
        }
        if request.method == "HEAD":
            length = 0 if path.is_dir() else status.st_size
            return BatchResponse(
                headers=headers | {"Content-Length": str(length), "Content-Type": files.CONTENT_TYPE}
            )
        return BatchResponse(headers=headers, content=files.slice_of(path, request.headers.get("ocp-range")))


def route_of(names: tuple[str, ...]) -> str:
    """Return the pattern of a path: names of collections and actions stay, what identifies becomes `*`."""
    return "/".join("*" if number % 2 else name for number, name in enumerate(names))


def split_path(segments: Iterable[str]) -> tuple[str, ...]:
    """Return the decoded segments, those of a file's path as one."""
    names = tuple(segments)
    return (*names[:5], "/".join(names[5:])) if len(names) > 5 else names


def _recursive(request: BatchRequest) -> bool:
    return request.query.get("recursive", "false").lower() == "true"


def _selected(request: BatchRequest, document: Document) -> Document:
    return select(document, _selection(request))


def _selection(request: BatchRequest) -> list[str]:
    """Return the names of `$select`; none means all properties. Raises Refused."""
    names = [name for name in request.query.get("$select", "").split(",") if name.strip()]
    queries.check_selection(names, route_of(request.names).removesuffix("/*"))
    return names


def _unserved(method: str, pattern: str) -> Refused:
    if f"{method} {pattern}" in REFUSED:
        return not_implemented(f"{method} /{pattern}")
    paths = {route.partition(" ")[2] for route in (*ROUTES, *REFUSED)}
    return (
        Refused("UnsupportedHttpVerb", Verb=method)
        if pattern in paths
        else Refused("InvalidUri", Path=pattern)
    )


ROUTES: dict[str, Callable[[DataPlane, BatchRequest], BatchResponse]] = {
    "POST pools": DataPlane.create_pool,
    "GET pools": DataPlane.list_pools,
    "HEAD pools/*": DataPlane.pool_exists,
    "GET pools/*": DataPlane.get_pool,
    "PATCH pools/*": DataPlane.patch_pool,
    "DELETE pools/*": DataPlane.delete_pool,
    "POST pools/*/resize": DataPlane.resize_pool,
    "POST pools/*/stopresize": DataPlane.stop_resize,
    "POST pools/*/removenodes": DataPlane.remove_nodes,
    "POST pools/*/enableautoscale": DataPlane.enable_autoscale,
    "POST pools/*/disableautoscale": DataPlane.disable_autoscale,
    "POST pools/*/evaluateautoscale": DataPlane.evaluate_autoscale,
    "POST pools/*/updateproperties": DataPlane.update_pool_properties,
    "GET nodecounts": DataPlane.node_counts,
    "GET supportedimages": DataPlane.supported_images,
    "GET pools/*/nodes": DataPlane.list_nodes,
    "GET pools/*/nodes/*": DataPlane.get_node,
    "POST pools/*/nodes/*/reboot": DataPlane.reboot_node,
    "POST pools/*/nodes/*/reimage": DataPlane.reimage_node,
    "POST pools/*/nodes/*/deallocate": DataPlane.deallocate_node,
    "POST pools/*/nodes/*/start": DataPlane.start_node,
    "POST pools/*/nodes/*/disablescheduling": DataPlane.disable_scheduling,
    "POST pools/*/nodes/*/enablescheduling": DataPlane.enable_scheduling,
    "DELETE pools/*/nodes/*/files/*": DataPlane.delete_node_file,
    "GET pools/*/nodes/*/files": DataPlane.list_node_files,
    "GET pools/*/nodes/*/files/*": DataPlane.get_node_file,
    "HEAD pools/*/nodes/*/files/*": DataPlane.get_node_file,
    "POST jobs": DataPlane.create_job,
    "GET jobs": DataPlane.list_jobs,
    "GET jobs/*": DataPlane.get_job,
    "PATCH jobs/*": DataPlane.patch_job,
    "PUT jobs/*": DataPlane.replace_job,
    "DELETE jobs/*": DataPlane.delete_job,
    "POST jobs/*/terminate": DataPlane.terminate_job,
    "POST jobs/*/disable": DataPlane.disable_job,
    "POST jobs/*/enable": DataPlane.enable_job,
    "GET jobs/*/taskcounts": DataPlane.task_counts,
    "POST jobs/*/tasks": DataPlane.create_task,
    "POST jobs/*/addtaskcollection": DataPlane.create_tasks,
    "GET jobs/*/tasks": DataPlane.list_tasks,
    "GET jobs/*/tasks/*": DataPlane.get_task,
    "PUT jobs/*/tasks/*": DataPlane.replace_task,
    "DELETE jobs/*/tasks/*": DataPlane.delete_task,
    "POST jobs/*/tasks/*/terminate": DataPlane.terminate_task,
    "POST jobs/*/tasks/*/reactivate": DataPlane.reactivate_task,
    "DELETE jobs/*/tasks/*/files/*": DataPlane.delete_task_file,
    "GET jobs/*/tasks/*/files": DataPlane.list_task_files,
    "GET jobs/*/tasks/*/files/*": DataPlane.get_task_file,
    "HEAD jobs/*/tasks/*/files/*": DataPlane.get_task_file,
}

_CONTROL: dict[str, Callable[[DataPlane, BatchRequest], BatchResponse]] = {
    "POST pools/*/faults": DataPlane.inject_fault,
    "DELETE pools/*/faults": DataPlane.clear_faults,
    "POST faults": DataPlane.set_account_faults,
}
"""What the local service has and Azure Batch has not: see `batchflow.local.faults`."""

REFUSED = frozenset(
    {
        "GET applications", "GET applications/*", "GET poolusagemetrics",
        "POST pools/*/nodes/*/users", "PUT pools/*/nodes/*/users/*", "DELETE pools/*/nodes/*/users/*",
        "GET pools/*/nodes/*/remoteloginsettings", "POST pools/*/nodes/*/uploadbatchservicelogs",
        "GET pools/*/nodes/*/extensions", "GET pools/*/nodes/*/extensions/*",
        "GET jobs/*/jobpreparationandreleasetaskstatus", "GET jobs/*/tasks/*/subtasksinfo",
        "GET jobschedules", "POST jobschedules", "GET jobschedules/*", "HEAD jobschedules/*",
        "PUT jobschedules/*", "PATCH jobschedules/*", "DELETE jobschedules/*", "GET jobschedules/*/jobs",
        "POST jobschedules/*/disable", "POST jobschedules/*/enable", "POST jobschedules/*/terminate",
    }
)  # fmt: skip
"""What Azure Batch has and the local service has not."""
