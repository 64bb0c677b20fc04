"""Makes rows for Log Analytics: of the outcomes of tasks, of heartbeats, and of log lines. Pure."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from batchflow.pools.monitoring.buffer import Row, cut
from batchflow.protocol.activity import LAST_TIME

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchflow.protocol.documents import Heartbeat
    from batchflow.protocol.wire import ResultItem


def task_row(pool: str, item: ResultItem, now: float, trace_id: str | None = None) -> Row:
    """Return the row of a task that has its outcome. `now`: seconds since the epoch."""
    started, finished = item.started_at, item.finished_at
    return {
        "TimeGenerated": moment(now),
        "Pool": pool,
        "Job": item.job,
        "Session": item.client,
        "TaskId": cut(item.task_id),
        "Uid": item.uid,
        "Command": cut(item.command),
        "Outcome": item.status.value,
        "Kind": item.kind,
        "Error": cut(item.error),
        "Node": item.host,
        "Attempt": item.attempt,
        "SubmittedAt": moment(item.submitted_at),
        "StartedAt": moment(started),
        "FinishedAt": moment(finished),
        "QueueSeconds": None if started is None else round(max(0.0, started - item.submitted_at), 6),
        "RunSeconds": None if started is None or finished is None else round(finished - started, 6),
        "TraceId": trace_id,
    }


class NodeEvents:
    """What changed on the nodes of a pool from one reading of heartbeats to the next."""

    def __init__(self) -> None:
        self._known: dict[str, Heartbeat] = {}

    def rows(self, pool: str, beats: Iterable[Heartbeat], now: float) -> list[Row]:
        """Return a row for each agent that came, went, changed its state, or is in trouble or out of it."""
        present = {beat.agent: beat for beat in beats}
        found = []
        for name, beat in present.items():
            before = self._known.get(name)
            if before is None:
                found.append(_node_row(pool, beat, "came", now))
            elif before.state != beat.state:
                found.append(_node_row(pool, beat, "changed", now))
            if beat.trouble != (None if before is None else before.trouble):
                found.append(_node_row(pool, beat, "recovered" if beat.trouble is None else "trouble", now))
        found += [
            _node_row(pool, beat, "gone", now) for name, beat in self._known.items() if name not in present
        ]
        self._known = present
        return found


def _node_row(pool: str, beat: Heartbeat, event: str, now: float) -> Row:
    return {
        "TimeGenerated": moment(now),
        "Pool": pool,
        "Node": beat.node,
        "Host": beat.host,
        "Agent": beat.agent,
        "Event": event,
        "State": beat.state,
        "Detail": cut(beat.trouble),
        "Slots": beat.slots,
        "Busy": len(beat.running),
        "Completed": beat.completed,
        "Failed": beat.failed,
    }


def agent_log_row(pool: str, node: str, line: str) -> Row | None:
    """Return the row of a line of an agent's log; None for what is none."""
    try:
        fields = json.loads(line)
        at, level, event = (str(fields.pop(name)) for name in ("at", "level", "event"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return {
        "TimeGenerated": at,
        "Pool": pool,
        "Source": "agent",
        "Node": node,
        "Level": level,
        "Event": cut(event),
        **_trace_and_fields(fields),
    }


def client_log_row(level: str, event: str, fields: dict[str, Any], at: float) -> Row:
    """Return the row of a line of this program's log."""
    return {
        "TimeGenerated": moment(at),
        "Pool": None,
        "Source": "client",
        "Node": None,
        "Level": level,
        "Event": cut(event),
        **_trace_and_fields(fields),
    }


def _trace_and_fields(fields: dict[str, Any]) -> Row:
    """Return the columns for the fields of a log line, of which the id of the task's trace has its own."""
    trace_id = fields.get("trace_id")
    return {
        "TraceId": None if trace_id is None else cut(str(trace_id)),
        "Fields": {name: _plain(value) for name, value in fields.items() if name != "trace_id"},
    }


def moment(at: float | None) -> str | None:
    """Return a time as the service reads it, the nearest that can be written of one that a node made up."""
    return None if at is None else datetime.fromtimestamp(min(max(at, 0.0), LAST_TIME), UTC).isoformat()


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | None) else cut(str(value))
