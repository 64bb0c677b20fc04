"""What a session keeps of its last tasks while a live view watches."""

from __future__ import annotations

from typing import Any

import pytest

from batchflow.errors import ConfigurationError
from batchflow.protocol.values import arguments
from batchflow.protocol.values.classes import BundleClasses
from batchflow.protocol.values.kept import KeptArguments
from batchflow.session import Session
from batchflow.sessions.records.recent import MOST_ARGUMENTS, LargeArguments, RecentTasks
from tests.support.agent import Agent
from tests.support.session_parts import parts_of
from tests.support.waiting import within
from tests.unit.sessions.records.test_tracker import make_entry, outcome


def kept(given: list[Any]) -> KeptArguments:
    classes = BundleClasses()
    return KeptArguments(arguments.in_blob(given, arguments.encode(given, "x.py", classes)), classes, {})


@pytest.mark.parametrize("form", [list, kept])
def test_large_arguments_are_not_kept(form: Any) -> None:
    """Their size is told in their place; those that are as large as allowed are kept."""
    recent = RecentTasks(lambda: 1.0)
    given = {0: form(["a" * (MOST_ARGUMENTS - 4)]), 1: form(["b" * MOST_ARGUMENTS])}
    uids = []
    for number, each in given.items():
        entry = make_entry(number)
        entry.arguments = each
        recent.add(entry, outcome(entry))
        uids.append(entry.uid)
    small, large = (recent.find_arguments(uid) for uid in uids)
    assert small is not None
    assert small[1] is given[0]
    assert large is not None
    assert large[1] == LargeArguments(MOST_ARGUMENTS + 4)
    known = recent.find(uids[1])
    assert known is not None
    assert known["args"] == "65,540 bytes"


async def test_a_task_whose_arguments_are_not_kept_is_not_submitted_again(
    session: Session, agent: Agent
) -> None:
    (view,) = (each.tasks for each in parts_of(session).context.runtime.open_sessions)
    view.ended_since(0)
    tasks = [await session.submit("x.py", args=["a" * size]) for size in (MOST_ARGUMENTS, 10)]
    large, small = await agent.take(2)
    for item in (large, small):
        await agent.answer(item)
    for task in tasks:
        await within(task)
    with pytest.raises(ConfigurationError, match="65,540 bytes"):
        await view.retry(large.uid)
    await view.retry(small.uid)
    (again,) = await agent.take()
    assert again.params == ["a" * 10]
