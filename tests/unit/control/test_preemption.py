"""Scheduled events: which of them tell an agent that its node ends, and when."""

from __future__ import annotations

from typing import Any

import pytest

from node_agent.control.preemption import address_of, seconds_left, stop_grace

NOW = 1474313387.0
"""Mon, 19 Sep 2016 19:29:47 GMT"""


def event(**fields: Any) -> dict[str, Any]:
    """An event as the documentation shows it."""
    return {
        "EventId": "f020ba2e-3bc0-4c40-a10b-86575a9eabd5",
        "EventType": "Preempt",
        "ResourceType": "VirtualMachine",
        "Resources": ["FrontEnd_IN_0", "BackEnd_IN_0"],
        "EventStatus": "Scheduled",
        "NotBefore": "Mon, 19 Sep 2016 19:30:17 GMT",
        "Description": "",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
        **fields,
    }


@pytest.mark.parametrize(
    ("events", "left"),
    [
        ([], None),
        ([event()], 30.0),
        ([event(Resources=["another"])], None),
        ([event(EventType="Freeze")], None),
        ([event(EventType="Terminate")], 30.0),
        ([event(NotBefore="", EventStatus="Started")], 0.0),
        ([event(NotBefore="Mon, 19 Sep 2016 18:00:00 GMT")], 0.0),
        ([event(NotBefore="Mon, 19 Sep 2016 19:39:47 GMT"), event()], 30.0),
        (["odd", event(Resources=None)], None),
    ],
)
def test_counts_the_seconds_to_an_event_that_ends_this_machine(events: list[Any], left: float | None) -> None:
    assert seconds_left({"DocumentIncarnation": 1, "Events": events}, "frontend_in_0", NOW) == left


@pytest.mark.parametrize("document", [None, [], {}, {"Events": 3}])
def test_refuses_what_is_no_document(document: object) -> None:
    with pytest.raises(ValueError, match="events"):
        seconds_left(document, "x", NOW)


def test_refuses_a_time_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"."):
        seconds_left({"Events": [event(NotBefore="soon")]}, "FrontEnd_IN_0", NOW)


def test_the_local_clouds_nodes_have_an_address_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert address_of("http://azure") == "http://azure"
    monkeypatch.setenv("BATCHFLOW_SCHEDULED_EVENTS", "http://local")
    assert address_of("http://azure") == "http://local"
    assert address_of("") == ""


def test_a_signal_on_a_spot_node_leaves_time_to_hand_tasks_back() -> None:
    assert stop_grace(30.0, dedicated=True) == 30.0
    assert stop_grace(30.0, dedicated=False) < 30.0
    assert stop_grace(5.0, dedicated=False) == 5.0
