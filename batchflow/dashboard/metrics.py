"""The figures of a pool as Prometheus reads them (text format 0.0.4). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_FIGURES: Final = (
    ("batchflow_nodes", "gauge", "Nodes of the pool.", "nodes"),
    ("batchflow_agents", "gauge", "Nodes with a living agent.", "agents"),
    ("batchflow_nodes_in_trouble", "gauge", "Nodes that cannot work.", "trouble"),
    ("batchflow_slots", "gauge", "Places for running tasks.", "slots"),
    ("batchflow_tasks_running", "gauge", "Tasks that run, by the agents' heartbeats.", "running"),
    ("batchflow_tasks_waiting", "gauge", "Tasks of open sessions that wait for a slot.", "waiting"),
    ("batchflow_tasks_held", "gauge", "Tasks of open sessions that wait for other tasks.", "held"),
    ("batchflow_tasks_ended", "gauge", "Tasks that the living agents have ended.", "done"),
    ("batchflow_tasks_failed", "gauge", "Of these, those that failed.", "failed"),
    ("batchflow_tasks_per_second", "gauge", "Tasks ended a second, over 30 seconds.", "rate"),
    ("batchflow_task_seconds_p50", "gauge", "Median seconds from submit to end, over a minute.", "p50"),
    ("batchflow_task_seconds_p99", "gauge", "99th percentile of the same.", "p99"),
)


def exposition(pools: Iterable[tuple[str, Mapping[str, Any], Iterable[Mapping[str, Any]]]]) -> str:
    """Return the text for these pools: name, figures of now, queues."""
    told = list(pools)
    lines: list[str] = []
    for name, kind, words, key in _FIGURES:
        lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
        lines += [
            f'{name}{{pool="{_escaped(pool)}"}} {figures[key]}'
            for pool, figures, _ in told
            if figures.get(key) is not None
        ]
    for name, words, key in (
        ("batchflow_queue_messages", "Messages that wait in a queue.", "active"),
        ("batchflow_queue_dead_letters", "Messages that Service Bus has given up on.", "dead"),
    ):
        lines += [f"# HELP {name} {words}", f"# TYPE {name} gauge"]
        lines += [
            f'{name}{{pool="{_escaped(pool)}",queue="{_escaped(queue["name"])}"}} {queue[key]}'
            for pool, _, queues in told
            for queue in queues
        ]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
