"""What tasks read in the cache itself is checked before they do; what cannot be had is said."""

from __future__ import annotations

import errno
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from batchflow.errors import BlobNotFound, ProtocolError
from batchflow.protocol.functions import PYTHON, pickle_name
from batchflow.protocol.passed import PassedValue
from batchflow.protocol.wire import TaskItem
from batchflow.testing.storage import MemoryStorage
from node_agent.execution.resources import TaskResources, Unfit
from tests.support.agent_world import FakeEnvironments, FakeRunning
from tests.support.slot_bench import materialise

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from batchflow.protocol.bundle import Bundle


async def test_values_of_other_tasks_are_fetched_by_their_signatures_once() -> None:
    """What is wrong with them is the task's outcome."""
    storage = MemoryStorage()
    await storage.create_container("out")
    out, nothing = storage.container("out"), cast("Any", None)
    await out.put("results/a", b"[1]")
    resources = TaskResources(
        "agent", nothing, FakeEnvironments(), nothing, out, FakeRunning(), inline_limit=1, result_limit=1
    )

    def taking(*inputs: Any) -> TaskItem:
        return TaskItem("c", "j", "t", "x.py", [], "i:1", "", inputs=list(inputs))

    place = PassedValue("results/a", 3, await storage.blob_signature("out", "results/a", 60.0)).fields()
    (value,) = await resources.fetch_inputs(taking(place))
    assert Path(value.path).read_bytes() == b"[1]"
    await out.delete("results/a")
    assert await resources.fetch_inputs(taking(place, place)) == [value, value]
    assert await resources.fetch_inputs(TaskItem("c", "j", "t", "x.py", [], "i:1", "")) == []
    gone = PassedValue("results/b", 3, await storage.blob_signature("out", "results/b", 60.0)).fields()
    for bad in (gone, {**gone, "sig": "forged"}, {"blob": "x"}, {**gone, "size": "3"}, "x"):
        with pytest.raises(Unfit) as caught:
            await resources.fetch_inputs(taking(bad))
        assert caught.value.kind == "TaskRejected"


class Cache:
    """A cache of one bundle, which is fetched again after it was distrusted."""

    def __init__(self, root: Path) -> None:
        self.bundle, self.folder = materialise(root, {pickle_name(PYTHON): "a pickle"})
        self.file = self.folder / self.bundle.files[0].name
        self.fetched = 0

    @asynccontextmanager
    async def use(self, bundle_hash: str) -> AsyncIterator[tuple[Bundle, Path]]:
        yield self.bundle, self.folder

    def distrust(self, bundle_hash: str) -> None:
        self.fetched += 1
        self.file.write_text("a pickle")


@pytest.mark.parametrize(("content", "fetched"), [("a pickle", 0), ("a forgery", 1)])
async def test_a_function_by_value_is_checked_before_a_task_opens_it(
    tmp_path: Path, content: str, fetched: int
) -> None:
    """One that was changed is fetched again: to open a pickle is to execute it."""
    cache = Cache(tmp_path)
    cache.file.chmod(0o644)
    cache.file.write_text(content)
    nowhere: Any = None
    resources = TaskResources("agent", cache, FakeEnvironments(), nowhere, nowhere, FakeRunning(), 1, 1)
    async with AsyncExitStack() as stack:
        assert await resources.fetch_function(cache.bundle.hash, stack) == cache.file
    assert (cache.file.read_text(), cache.fetched) == ("a pickle", fetched)


class Unusable:
    """Environments of which none can be had."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    @asynccontextmanager
    async def use(self, bundle_hash: str) -> AsyncIterator[Path]:
        raise self._error
        yield


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "TaskFailed", "does not fit on the node's disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "TaskFailed", "does not fit on the node's disk"),
        (ProtocolError("it was built for Python 3.7"), "TaskRejected", "cannot be used: it was built for"),
        (BlobNotFound("no such blob"), "TaskRejected", "its environment is not in the pool"),
    ],
)
async def test_an_environment_that_cannot_be_had_is_the_outcome_of_its_tasks_and_no_fault_of_the_node(
    tmp_path: Path, error: Exception, kind: str, said: str
) -> None:
    nowhere: Any = None
    resources = TaskResources(
        "agent", Cache(tmp_path), Unusable(error), nowhere, nowhere, FakeRunning(), 1, 1
    )
    async with AsyncExitStack() as stack:
        with pytest.raises(Unfit, match=said) as raised:
            await resources.fetch_environment("e" * 64, stack)
    assert raised.value.kind == kind


async def test_another_fault_of_the_disk_is_the_nodes_own(tmp_path: Path) -> None:
    nowhere: Any = None
    broken = Unusable(OSError(errno.EIO, "Input/output error"))
    resources = TaskResources("agent", Cache(tmp_path), broken, nowhere, nowhere, FakeRunning(), 1, 1)
    async with AsyncExitStack() as stack:
        with pytest.raises(OSError, match="Input/output error"):
            await resources.fetch_environment("e" * 64, stack)
