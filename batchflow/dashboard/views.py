"""What the page shows of a pool, as plain values that become JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from batchflow.model import BROKEN

if TYPE_CHECKING:
    from batchflow.costs.cost import Cost
    from batchflow.dashboard.timeline import Timeline
    from batchflow.model import Explanation
    from batchflow.ports.compute import NodeInfo
    from batchflow.protocol.documents import Heartbeat

MOST_RUNNING: Final = 64
"""Running tasks of one node that are told."""
_MOST_TEXT: Final = 300


def node_rows(nodes: Sequence[NodeInfo], beats: Iterable[Heartbeat]) -> dict[str, dict[str, Any]]:
    """Return the nodes of Batch and those of agents that Batch does not name, by their ids.

    `busy` counts all tasks that run there; `running` names some of them.
    """
    rows: dict[str, dict[str, Any]] = {
        info.id: {
            "id": info.id,
            "host": None,
            "state": info.state,
            "agent": None,
            "dedicated": info.dedicated,
            "slots": 0,
            "busy": 0,
            "running": [],
            "done": 0,
            "failed": 0,
        }
        for info in nodes
    }
    for beat in beats:
        row = rows.setdefault(beat.node, {"id": beat.node, "state": "unknown", "dedicated": True})
        row |= {
            "host": beat.host,
            "agent": beat.state,
            "slots": beat.slots,
            "busy": len(beat.running),
            "running": [
                [each.uid, each.task_id, each.command, f"{each.job}/{each.client}", each.since]
                for each in beat.running[:MOST_RUNNING]
            ],
            "done": beat.completed,
            "failed": beat.failed - beat.cancelled,
            "load": beat.load,
            "memory": beat.memory_available,
            "disk": beat.disk_free,
            "trouble": None if beat.trouble is None else beat.trouble[:_MOST_TEXT],
        }
        if beat.usage is not None:
            row["dedicated"] = beat.usage.dedicated
    for row in rows.values():
        row["broken"] = row["state"] in BROKEN or bool(row.get("trouble"))
    return rows


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what is new or other than before, and the keys that are gone."""
    fresh = {key: value for key, value in after.items() if before.get(key) != value}
    return fresh, [key for key in before if key not in after]


def now_view(
    timeline: Timeline,
    rows: Mapping[str, Mapping[str, Any]],
    sessions: Iterable[Mapping[str, Any]],
    queues: Iterable[Mapping[str, Any]],
    at: float,
) -> dict[str, Any]:
    """Return the figures at the top of the page."""
    counts = [session["counts"] for session in sessions]
    queued = sum(queue["active"] for queue in queues if queue["kind"] == "tasks")
    running = sum(row["busy"] for row in rows.values())
    under_way = sum(each.get("queued", 0) + each.get("running", 0) for each in counts)
    return {
        "at": round(at, 3),
        "running": running,
        "waiting": max(0, under_way - running) + sum(each.get("sending", 0) for each in counts),
        "held": sum(each.get("waiting", 0) for each in counts),
        "messages": queued,
        "done": sum(row.get("done", 0) for row in rows.values()),
        "failed": sum(row.get("failed", 0) for row in rows.values()),
        "slots": sum(row.get("slots", 0) for row in rows.values()),
        "nodes": len(rows),
        "agents": sum(row.get("agent") is not None for row in rows.values()),
        "trouble": sum(row["broken"] for row in rows.values()),
        "rate": round(timeline.rate(at), 2),
        "p50": timeline.latency(at, 0.5),
        "p99": timeline.latency(at, 0.99),
        "dropped": timeline.dropped,
    }


def explanation_view(explanation: Explanation) -> dict[str, Any]:
    """Return why nothing happens, in words."""
    return {
        "summary": explanation.summary,
        "causes": [
            {"what": each.what, "remedy": each.remedy, "severity": each.severity}
            for each in explanation.causes
        ],
    }


def cost_view(cost: Cost) -> dict[str, Any]:
    """Return what the pool has cost, in words and numbers."""
    return {
        "short": cost.short,
        "node_hours": round(cost.node_hours, 4),
        "dedicated_hours": round(cost.dedicated_seconds / 3600, 4),
        "spot_hours": round(cost.spot_seconds / 3600, 4),
        "idle_share": None if cost.idle_share is None else round(cost.idle_share, 4),
        "amount": cost.amount,
        "currency": cost.currency,
        "tasks": cost.tasks,
        "per_task": cost.per_task,
        "remaining": cost.remaining,
        "to_finish": cost.to_finish,
        "budget": None if cost.budget is None else str(cost.budget),
        "spent": cost.spent,
    }
