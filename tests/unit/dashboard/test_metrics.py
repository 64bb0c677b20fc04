"""The figures for Prometheus."""

from __future__ import annotations

from batchflow.dashboard.metrics import exposition


def test_each_pool_is_a_label_and_what_is_not_known_is_left_out() -> None:
    """Names are escaped as the format asks."""
    queue = {"name": 'q"1', "active": 3, "dead": 1}
    text = exposition([("a", {"nodes": 2, "p50": None}, [queue]), ("b\\", {"nodes": 4}, [])])
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines == [
        'batchflow_nodes{pool="a"} 2',
        'batchflow_nodes{pool="b\\\\"} 4',
        'batchflow_queue_messages{pool="a",queue="q\\"1"} 3',
        'batchflow_queue_dead_letters{pool="a",queue="q\\"1"} 1',
    ]
    assert text.count("# TYPE batchflow_nodes gauge") == 1
