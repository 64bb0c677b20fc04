"""What a node asks of its own network: its scheduled events and its name, as of Azure's metadata service.

On Azure each machine has the service at one address. Here the nodes share a machine, so each has a path.
"""

from __future__ import annotations

from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final

from batchflow.local.batch.core.context import id_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from batchflow.local.batch.core.entities import NodeRecord

PREFIX: Final = "/metadata/"


def path_of(pool_id: str, node_id: str) -> str:
    """Return where a node finds its scheduled events."""
    return f"{PREFIX}{pool_id}/{node_id}/scheduledevents"


def metadata(
    path: str, headers: Mapping[str, str], query: Mapping[str, str], nodes: Iterable[NodeRecord]
) -> tuple[int, dict[str, Any] | str]:
    """Answer a request: the status, and a document or a text."""
    if headers.get("metadata", "").lower() != "true" or "x-forwarded-for" in headers:
        return 400, {"error": "Bad request. Required metadata header not specified"}
    if "api-version" not in query:
        return 400, {"error": "Bad request. api-version was not specified in the request"}
    pool_id, _, rest = path.removeprefix(PREFIX).partition("/")
    node_id, _, what = rest.partition("/")
    mine = [each for each in nodes if id_key(each.pool.spec.id) == id_key(pool_id)]
    own = [each for each in mine if each.id == node_id]
    if not own or what not in ("scheduledevents", "instance/compute/name"):
        return 404, {"error": "Not found"}
    if what == "instance/compute/name":
        return 200, own[0].id
    return 200, {
        "DocumentIncarnation": sum(each.notice is not None for each in mine),
        "Events": [
            {
                "EventId": each.notice.id,
                "EventType": "Preempt",
                "ResourceType": "VirtualMachine",
                "Resources": [each.id],
                "EventStatus": "Scheduled",
                "NotBefore": formatdate(each.notice.not_before, usegmt=True),
                "Description": "",
                "EventSource": "Platform",
                "DurationInSeconds": -1,
            }
            for each in mine
            if each.notice is not None
        ],
    }
