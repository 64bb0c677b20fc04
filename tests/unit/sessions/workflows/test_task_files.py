"""A file of a task is an argument of another one: it gets a path, and its agent brings the file."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from batchflow.errors import DependencyFailed, InvalidDependency, StorageError, SubmitFailed
from batchflow.model import Result, Status
from batchflow.pool import Pool
from batchflow.protocol.layout import outputs_prefix, waiting_prefix
from batchflow.protocol.passed import FILES, VALUES, read_places
from batchflow.protocol.wire import Reference, TaskItem
from batchflow.session import Session
from batchflow.sessions.workflows import stored
from batchflow.task import TaskFile
from node_agent.child.task_values import open_arguments
from tests.support.agent import Agent, failure_of, result_of
from tests.support.services import Doubles
from tests.support.session_parts import parts_of
from tests.support.waiting import within


def arguments_of(item: TaskItem) -> Any:
    if isinstance(item.params, Reference):
        assert item.params.data is not None
        return open_arguments(item.params.data)
    return item.params


async def leave(agent: Agent, item: TaskItem, *names: str, folder: str = "1-agent") -> None:
    """Answer a task as one that left files."""
    await agent.post([result_of(item, "value", files=names, folder=folder)])


async def test_each_file_has_its_path_in_a_folder_of_its_own(
    session: Session, agent: Agent, doubles: Doubles
) -> None:
    """Nested, twice, of two tasks under one name, for files, functions and programs, and beside values."""
    first, second = await session.submit("x.py", task_id="1"), await session.submit("x.py", task_id="2")
    one, two = first.file("out.csv"), second.file("out.csv")
    await session.submit("x.py", {"k": [one, two, one]}, first, second.file("deep/b"), task_id="python")
    await session.submit("run.sh", "-v", [two, 1], one, task_id="program")
    items = {item.task_id: item for item in await agent.take(2)}
    for item in items.values():
        await leave(agent, item, "out.csv", "deep/b")
    taken = {item.task_id: item for item in await agent.take(2)}
    python, program = taken["python"], taken["program"]
    paths = ["inputs/0/out.csv", "inputs/1/out.csv", "inputs/2/deep/b"]
    assert arguments_of(python) == [{"k": [paths[0], paths[1], paths[0]]}, "value", paths[2]]
    assert program.params == ["-v", [paths[0], 1], paths[1]]
    assert python.files is not None
    out = parts_of(session).context.runtime.out
    for place, (uid, name) in zip(
        python.files, [("1", "out.csv"), ("2", "out.csv"), ("2", "deep/b")], strict=True
    ):
        blob = outputs_prefix(session.job_name, session.name, items[uid].uid, "1-agent") + name
        await out.put(blob, f"{uid} {name}".encode())
        assert place["name"] == name
        assert (await out.get_signed(place["blob"], place["sig"])).decode() == f"{uid} {name}"
    await agent.answer(python, program, value="done")
    shown = {}
    async for result in session.results():
        shown[result.task_id] = result.args
    assert shown["program"] == ["-v", [paths[0], 1], paths[1]]


async def test_files_stand_in_the_inputs_of_a_map_and_of_functions(session: Session, agent: Agent) -> None:
    """Each call gets its own."""
    first = await session.submit("x.py", task_id="first")
    many = await session.submit_many("x.py", [first.file("a"), [1, first.file("b")]])
    function = await session.submit(len, first.file("b"))
    (item,) = await agent.take()
    await leave(agent, item, "a", "b")
    items = await agent.take(3)
    assert [arguments_of(item) for item in items] == [["inputs/0/a"], [1, "inputs/0/b"], ["inputs/0/b"]]
    assert [item.function for item in items] == [False, False, True]
    await agent.answer(*items, value="done")
    assert [await within(task) for task in (*many, function)] == ["done"] * 3


async def test_a_value_that_is_not_taken_is_not_kept_for_who_takes_a_file(
    session: Session, agent: Agent
) -> None:
    """A task of which only a file is taken passes no value on."""
    await agent.beat(accepts=(VALUES, FILES))
    await parts_of(session).agents.meet()
    first = await session.submit("x.py")
    use = await session.submit("x.py", first.file("a"))
    (item,) = await agent.take()
    reference = await agent.store("results/a", b'"large"')
    await agent.post([result_of(item, reference, files=("a",), folder="f")])
    (item,) = await agent.take()
    assert (item.inputs, item.params) == (None, ["inputs/0/a"])
    await agent.answer(item, value="done")
    assert await within(use) == "done"
    assert await within(first) == "large"
    assert len(parts_of(session).receiver.values.uses) == 0


async def test_a_file_that_is_missing_fails_what_takes_it(session: Session, agent: Agent) -> None:
    """The error says which of which task, and what there is. With `on_failure="pass"` it is a `Result`."""
    first = await session.submit("x.py", task_id="first")
    lacking = await session.submit("x.py", [first.file("b")])
    after_it = await session.submit("x.py", lacking)
    passing = await session.submit("x.py", first.file("b"), first.file("a"), on_failure="pass")
    (item,) = await agent.take()
    await leave(agent, item, "a", "c/d")
    for task in (lacking, after_it):
        with pytest.raises(DependencyFailed, match=r"first \(x.py\) left no file 'b' .*; it left: a, c/d"):
            await within(task)
    ((shown,),) = (await lacking.outcome()).args or [[None]]
    assert isinstance(shown, TaskFile)
    assert (shown.task.index, shown.name) == (first.index, "b")
    (item,) = await agent.take()
    missing, path = arguments_of(item)
    assert isinstance(missing, Result)
    assert (missing.ok, missing.kind, missing.files) == (False, "DependencyFailed", ("a", "c/d"))
    assert path == "inputs/0/a"
    await agent.answer(item, value="done")
    assert await within(passing) == "done"
    assert (await within(first.outcome())).status is Status.SUCCEEDED


async def test_a_task_that_failed_leaves_no_file_for_others(session: Session, agent: Agent) -> None:
    """What takes one fails with it, or gets the failed `Result`."""
    first = await session.submit("x.py", task_id="first")
    use = await session.submit("x.py", first.file("a"))
    await session.submit("x.py", first.file("a"), on_failure="pass")
    (item,) = await agent.take()
    await agent.post([failure_of(item)])
    with pytest.raises(DependencyFailed, match=r"first .*it broke"):
        await within(use)
    (item,) = await agent.take()
    (passed,) = arguments_of(item)
    assert (passed.kind, passed.error) == ("TaskFailed", "it broke")


async def test_the_places_of_many_files_are_in_a_blob(session: Session, agent: Agent) -> None:
    """It is deleted when the task that takes them has succeeded, and left to a sweep when it has failed."""
    names = tuple(f"{number}.csv" for number in range(400))
    first = await session.submit("x.py")
    takers = [await session.submit("x.py", [first.file(name) for name in names]) for _ in range(2)]
    (item,) = await agent.take()
    await leave(agent, item, *names)
    good, bad = await agent.take(2)
    ctl = parts_of(session).context.runtime.ctl
    for item in (good, bad):
        assert (item.inputs, item.files, item.carries_arguments) == (None, None, False)
        assert arguments_of(item) == [[f"inputs/{number}/{number}.csv" for number in range(400)]]
        assert item.places is not None
        inputs, files = read_places((await ctl.get(item.places)).data)
        assert (inputs, tuple(each["name"] for each in files)) == ([], names)
    await agent.answer(good, value="done")
    await agent.post([failure_of(bad)])
    assert await within(takers[0]) == "done"
    await within(takers[1].outcome())
    await session.aclose()
    assert [info.name async for info in ctl.list("args/")] == [bad.places]


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "/etc/passwd", "a/../../b", "a//b", "a\0b", 5, None])
async def test_a_name_that_leaves_the_folder_is_refused(session: Session, name: Any) -> None:
    task = await session.submit("x.py")
    with pytest.raises(InvalidDependency, match="can have no file"):
        task.file(name)


async def test_a_file_of_another_session_is_refused(pool: Pool, session: Session) -> None:
    """As its task is; and a file is nothing to wait for without its data."""
    task = await session.submit("x.py", task_id="strange")
    with pytest.raises(InvalidDependency, match="a task or a list of tasks is needed"):
        await session.submit("x.py", after=task.file("a"))
    async with pool.session() as other:
        with pytest.raises(InvalidDependency, match="task strange"):
            await other.submit("x.py", task.file("a"))


async def test_agents_of_earlier_versions_get_no_task_that_takes_a_file(
    session: Session, agent: Agent
) -> None:
    await agent.beat(accepts=(VALUES,))
    await parts_of(session).agents.meet()
    first = await session.submit("x.py")
    use = await session.submit("x.py", first.file("a"))
    (item,) = await agent.take()
    await leave(agent, item, "a")
    with pytest.raises(SubmitFailed, match="agents of an earlier batchflow bring no files"):
        await within(use)


async def test_a_client_that_cannot_sign_copies_files(
    session: Session, agent: Agent, doubles: Doubles
) -> None:
    """The copy is deleted when the task that takes it has succeeded."""

    async def refuse(container: str, name: str, valid: float) -> str:
        raise StorageError("no right to sign")

    doubles.storage.blob_signature = refuse  # type: ignore[method-assign]
    runtime = parts_of(session).context.runtime
    first = await session.submit("x.py")
    use = await session.submit("x.py", first.file("a"))
    (item,) = await agent.take()
    await runtime.out.put(outputs_prefix(item.job, item.client, item.uid, "f") + "a", b"content")
    await leave(agent, item, "a", folder="f")
    (item,) = await agent.take()
    assert item.files is not None
    (place,) = item.files
    assert (place["sig"], (await runtime.ctl.get(place["blob"])).data) == (None, b"content")
    await agent.answer(item, value="done")
    assert await within(use) == "done"
    await session.aclose()
    assert [info.name async for info in runtime.ctl.list("args/")] == []


async def test_a_later_session_of_the_name_goes_on_with_files(pool: Pool, agent: Agent) -> None:
    """Of tasks that ended before, in the session before, and in the later one; a missing one as well."""
    named = await pool.session("nightly")
    ended = await named.submit("x.py", task_id="ended")
    await leave(agent, (await agent.take())[0], "a", folder="f")
    assert await within(ended) == "value"
    first, gate = await named.submit("x.py", task_id="first"), await named.submit("x.py", task_id="gate")
    files = [ended.file("a"), first.file("b"), gate.file("c")]
    await named.submit("x.py", files, gate, task_id="use")
    await named.submit("x.py", gate.file("none"), task_id="lacks")
    items = {item.task_id: item for item in await agent.take(2)}
    await leave(agent, items["first"], "b")
    await within(first)
    await within(named.aclose())
    documents = pool.runtime.ctl.list(waiting_prefix("default", "nightly"))
    names = [info.name async for info in documents]
    assert [orjson.loads((await pool.runtime.ctl.get(name)).data)["v"] for name in names] == [2]
    assert orjson.loads(stored.encode([]))["v"] == 1  # as clients of earlier versions read it
    async with pool.session("nightly") as later:
        await leave(agent, items["gate"], "c")
        (use,) = await agent.take()
        paths = ["inputs/0/a", "inputs/1/b", "inputs/2/c"]
        assert arguments_of(use) == [paths, "value"]
        assert use.files is not None
        assert [place["name"] for place in use.files] == ["a", "b", "c"]
        await agent.answer(use, value=3)
        found = {result.task_id: result.kind async for result in later.results()}
    assert found == {"gate": None, "use": None, "lacks": "DependencyFailed"}
