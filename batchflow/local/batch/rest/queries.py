"""What may stand in a request's query: versions, parameters, and what each list can be filtered by.

(https://learn.microsoft.com/rest/api/batchservice/odata-filters-in-batch)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from batchflow.local.batch.core.errors import Refused, invalid_query, not_implemented

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_VERSION: Final = re.compile(r"\d{4}-\d\d-\d\d(\.\d+\.\d+)?")
VERSIONS: Final = frozenset(
    {
        "2015-06-01.2.0", "2015-11-01.2.1", "2015-12-01.2.2", "2016-02-01.3.0", "2016-07-01.3.1",
        "2017-01-01.4.0", "2017-05-01.5.0", "2017-06-01.5.1", "2017-09-01.6.0", "2018-03-01.6.1",
        "2018-08-01.7.0", "2018-12-01.8.0", "2019-06-01.9.0", "2019-08-01.10.0", "2020-03-01.11.0",
        "2020-09-01.12.0", "2021-06-01.14.0", "2022-01-01.15.0", "2022-10-01.16.0", "2023-05-01.17.0",
        "2023-11-01.18.0", "2024-02-01.19.0", "2024-07-01.20.0", "2025-06-01",
    }
)  # fmt: skip
"""Those that the service published, up to the newest that is known here."""

_PARAMETERS: Final = frozenset(
    {
        "api-version", "timeout", "$filter", "$select", "$expand", "$skiptoken", "maxresults", "recursive",
        "force", "starttime", "endtime",
    }
)  # fmt: skip

Filters = dict[str, frozenset[str]]
"""By the property's path, the operators that it can be compared with."""

_ORDER: Final = frozenset({"eq", "ne", "ge", "gt", "le", "lt"})
_NAME: Final = _ORDER | {"startswith"}
_WORD: Final = frozenset({"eq", "ne"})
_RESOURCE: Final[Filters] = {
    "id": _NAME,
    "state": _WORD,
    "stateTransitionTime": _ORDER,
    "creationTime": _ORDER,
    "lastModified": _ORDER,
}
_SPAN: Final[Filters] = {"executionInfo/startTime": _ORDER, "executionInfo/endTime": _ORDER}
_FILES: Final[Filters] = {"name": frozenset({"startswith"})}
FILTERS: Final[Mapping[str, Filters]] = {
    "supportedimages": {"osType": _WORD, "verificationType": _WORD, "nodeAgentSKUId": _WORD},
    "nodecounts": {"poolId": frozenset({"eq"})},
    "pools": {
        **_RESOURCE,
        "allocationState": _WORD,
        "allocationStateTransitionTime": _ORDER,
        "enableAutoScale": _WORD,
        "enableInterNodeCommunication": _WORD,
        "vmSize": _NAME,
    },
    "pools/*/nodes": {
        "state": _WORD,
        "stateTransitionTime": _ORDER,
        "lastBootTime": _ORDER,
        "allocationTime": _ORDER,
        "startTaskInfo/state": frozenset({"eq"}),
        "startTaskInfo/result": _WORD,
        "startTaskInfo/exitCode": _ORDER,
        "startTaskInfo/startTime": _ORDER,
        "startTaskInfo/endTime": _ORDER,
    },
    "pools/*/nodes/*/files": _FILES,
    "jobs": {**_RESOURCE, **_SPAN, "executionInfo/poolId": _NAME},
    "jobs/*/tasks": {
        **_RESOURCE,
        **_SPAN,
        "executionInfo/exitCode": _ORDER,
        "executionInfo/result": _WORD,
    },
    "jobs/*/tasks/*/files": _FILES,
}
"""By the list's route."""


_POOL: Final = frozenset(
    {
        "allocationState", "allocationStateTransitionTime", "applicationPackageReferences",
        "autoScaleEvaluationInterval", "autoScaleFormula", "autoScaleRun", "certificateReferences",
        "creationTime", "currentDedicatedNodes", "currentLowPriorityNodes", "currentNodeCommunicationMode",
        "displayName", "eTag", "enableAutoScale", "enableInterNodeCommunication", "id", "identity",
        "lastModified", "metadata", "mountConfiguration", "networkConfiguration", "resizeErrors",
        "resizeTimeout", "resourceTags", "startTask", "state", "stateTransitionTime", "stats",
        "targetDedicatedNodes", "targetLowPriorityNodes", "targetNodeCommunicationMode",
        "taskSchedulingPolicy", "taskSlotsPerNode", "upgradePolicy", "url", "userAccounts",
        "virtualMachineConfiguration", "vmSize",
    }
)  # fmt: skip
_NODE: Final = frozenset(
    {
        "affinityId", "allocationTime", "certificateReferences", "endpointConfiguration", "errors", "id",
        "ipAddress", "ipv6Address", "isDedicated", "lastBootTime", "nodeAgentInfo", "recentTasks",
        "runningTaskSlotsCount", "runningTasksCount", "schedulingState", "startTask", "startTaskInfo",
        "state", "stateTransitionTime", "totalTasksRun", "totalTasksSucceeded", "url", "virtualMachineInfo",
        "vmSize",
    }
)  # fmt: skip
_JOB: Final = frozenset(
    {
        "allowTaskPreemption", "commonEnvironmentSettings", "constraints", "creationTime", "displayName",
        "eTag", "executionInfo", "id", "jobManagerTask", "jobPreparationTask", "jobReleaseTask",
        "lastModified", "maxParallelTasks", "metadata", "networkConfiguration", "onAllTasksComplete",
        "onTaskFailure", "poolInfo", "previousState", "previousStateTransitionTime", "priority", "state",
        "stateTransitionTime", "stats", "url", "usesTaskDependencies",
    }
)  # fmt: skip
_TASK: Final = frozenset(
    {
        "affinityInfo", "applicationPackageReferences", "authenticationTokenSettings", "commandLine",
        "constraints", "containerSettings", "creationTime", "dependsOn", "displayName", "eTag",
        "environmentSettings", "executionInfo", "exitConditions", "id", "lastModified",
        "multiInstanceSettings", "nodeInfo", "outputFiles", "previousState", "previousStateTransitionTime",
        "requiredSlots", "resourceFiles", "state", "stateTransitionTime", "stats", "url", "userIdentity",
    }
)  # fmt: skip
SELECTABLE: Final[Mapping[str, frozenset[str]]] = {
    "pools": _POOL,
    "pools/*/nodes": _NODE,
    "jobs": _JOB,
    "jobs/*/tasks": _TASK,
}
"""By the list's route, the properties that `$select` can name, those of older versions too."""


def check_selection(names: Iterable[str], route: str) -> None:
    """Refuse the name of a property that the list's items, or the one resource of it, have not."""
    known = SELECTABLE.get(route)
    for name in names:
        if known is not None and name.strip().partition("/")[0] not in known:
            raise invalid_query("$select", name, "The property does not exist on this type.")


def check(query: Mapping[str, str]) -> None:
    """Refuse a query that the service would not take, or that asks for what the local one has not."""
    version = query.get("api-version")
    if version is None:
        raise Refused("MissingRequiredQueryParameter", QueryParameterName="api-version")
    if _VERSION.fullmatch(version) is None:
        raise invalid_query("api-version", version, "A version of the Batch REST API is expected.")
    if version not in VERSIONS:
        raise Refused("UnsupportedRequestVersion", Version=version, Newest=max(VERSIONS))
    for name in query:
        if name.lower() not in _PARAMETERS:
            raise Refused("UnsupportedQueryParameter", QueryParameterName=name)
    if (expanded := query.get("$expand")) is not None:
        if expanded != "stats":
            raise invalid_query("$expand", expanded, "Allowed: stats.")
        raise not_implemented("$expand=stats")
