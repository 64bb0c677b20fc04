"""What the end of an agent's stderr tells."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from batchflow.diagnosis.agent_log import MOST_LINES, read


def line(event: str, level: str = "INFO", **fields: object) -> str:
    return json.dumps({"at": "now", "level": level, "event": event, **fields})


def test_deaths_are_counted_and_their_reasons_kept() -> None:
    """News is left out when something went wrong; of an exception the end is told."""
    frames = "\n".join(f"  frame {number}" for number in range(20))
    crash = line("agent_crashed", "ERROR", exception=f"Traceback:\n{frames}\nImportError: no such module")
    died = line("agent_died", "ERROR", exit_code=1, lived=0.25)
    log = read("\n".join(['cut": "off"}', *[line("agent_started"), crash, died] * 3]))
    assert log.crashes == 3
    assert len(log.words) == MOST_LINES
    assert log.words[-7:] == (
        "agent_crashed",
        "  frame 16",
        "  frame 17",
        "  frame 18",
        "  frame 19",
        "ImportError: no such module",
        "agent_died: exit_code 1, lived 0.25",
    )


def test_lines_that_are_not_json_are_kept_as_they_are() -> None:
    """An interpreter or a shell writes no JSON."""
    log = read("/bin/python3: No module named node_agent\n\n")
    assert (log.crashes, log.words) == (0, ("/bin/python3: No module named node_agent",))


def test_last_events_are_kept_when_nothing_went_wrong() -> None:
    """The last three lines of it."""
    log = read("\n".join(line(f"event_{number}", path="x") for number in range(5)))
    assert str(log) == "event_2: path x\nevent_3: path x\nevent_4: path x"


@given(st.text(max_size=200))
def test_any_text_can_be_read(text: str) -> None:
    """Whatever a log ends with, its words are few and short."""
    log = read(text)
    assert len(log.words) <= MOST_LINES
    assert all(len(word) <= 240 for word in log.words)
