"""What tasks read in the cache itself is checked before they do; what cannot be had is said."""

from __future__ import annotations

import errno
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from batchflow.errors import BlobNotFound, ProtocolError
from batchflow.model import Status
from batchflow.protocol.bundle import Bundle, BundleFile
from batchflow.protocol.functions import PYTHON, pickle_name
from batchflow.protocol.layout import outputs_prefix
from batchflow.protocol.passed import PassedFile, PassedValue, places_document
from batchflow.protocol.wire import TaskItem
from batchflow.testing.storage import MemoryStorage
from node_agent.bundles.task_files import FileCache
from node_agent.bundles.task_inputs import Unfit
from node_agent.execution.outcomes import Outcome
from node_agent.execution.resources import TaskResources
from tests.support.agent_world import NO_FOLDER, FakeEnvironments, FakeRunning
from tests.support.slot_bench import materialise

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NO_FILES = FileCache(NO_FOLDER)


async def test_values_of_other_tasks_are_fetched_by_their_signatures_once() -> None:
    """What is wrong with them is the task's outcome."""
    storage = MemoryStorage()
    await storage.create_container("out")
    out, nothing = storage.container("out"), cast("Any", None)
    await out.put("results/a", b"[1]")
    resources = TaskResources(
        "agent",
        nothing,
        FakeEnvironments(),
        nothing,
        out,
        FakeRunning(),
        inline_limit=1,
        result_limit=1,
        files=NO_FILES,
    )

    def taking(*inputs: Any) -> TaskItem:
        return TaskItem("c", "j", "t", "x.py", [], "i:1", "", inputs=list(inputs))

    place = PassedValue("results/a", 3, await storage.blob_signature("out", "results/a", 60.0)).fields()
    (value,) = await resources.inputs.values(taking(place).inputs)
    assert Path(value.path).read_bytes() == b"[1]"
    await out.delete("results/a")
    assert await resources.inputs.values(taking(place, place).inputs) == [value, value]
    assert await resources.inputs.values(None) == []
    gone = PassedValue("results/b", 3, await storage.blob_signature("out", "results/b", 60.0)).fields()
    for bad in (gone, {**gone, "sig": "forged"}, {"blob": "x"}, {**gone, "size": "3"}, "x"):
        with pytest.raises(Unfit) as caught:
            await resources.inputs.values(taking(bad).inputs)
        assert caught.value.kind == "TaskRejected"


async def test_files_of_other_tasks_are_fetched_once_and_those_that_tasks_left_here_never(
    tmp_path: Path,
) -> None:
    """A copy in the control container needs no signature. What is wrong with them is the task's outcome."""
    storage = MemoryStorage()
    for name in ("ctl", "out"):
        await storage.create_container(name)
    ctl, out, nothing = storage.container("ctl"), storage.container("out"), cast("Any", None)
    await out.put("outputs/far", b"far")
    await ctl.put("args/copy", b"copy")
    resources = TaskResources(
        "agent",
        nothing,
        FakeEnvironments(),
        ctl,
        out,
        FakeRunning(),
        inline_limit=1,
        result_limit=1,
        files=FileCache(tmp_path / "files"),
    )
    left = tmp_path / "left" / "deep" / "near.csv"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"near")
    producer = TaskItem("c", "j", "t", "x.py", [], "i:0", "", execution_folders=True)
    outcome = Outcome(Status.SUCCEEDED, outputs=(left,), output_folder=tmp_path / "left")
    stored = await resources.store(producer, outcome)
    assert stored.files == ("deep/near.csv",)
    near = outputs_prefix("j", "c", "i:0", stored.folder) + "deep/near.csv"
    assert (await out.get(near)).data == b"near"
    await out.delete(near)

    def taking(*files: Any) -> TaskItem:
        return TaskItem("c", "j", "t", "x.py", [], "i:1", "", files=list(files))

    far = PassedFile("far.csv", "outputs/far", await storage.blob_signature("out", "outputs/far", 60.0))
    wanted = [
        far.fields(),
        PassedFile("deep/near.csv", near, "any").fields(),
        PassedFile("copy.csv", "args/copy", None).fields(),
    ]
    empty = Bundle(())
    for _ in range(2):
        found = await resources.inputs.files(taking(*wanted).files, empty)
        for number, (path, file) in enumerate(found.items()):
            file.copy_to(str(tmp_path / f"{number}"))
            assert (tmp_path / f"{number}").read_text() in path
            (tmp_path / f"{number}").unlink()
        assert list(found) == ["inputs/0/far.csv", "inputs/1/deep/near.csv", "inputs/2/copy.csv"]
        await out.delete("outputs/far")
    assert await resources.inputs.files(None, empty) == {}
    assert list((tmp_path / "files").iterdir()) == []
    await ctl.put("args/places", places_document([], [PassedFile("copy.csv", "args/copy", None)]))
    many = replace(producer, places="args/places")
    located = await resources.inputs.located(many)
    assert list(await resources.inputs.files(located.files, empty)) == ["inputs/0/copy.csv"]
    for places in ("args/gone", "pool/manifest", "args/copy"):
        with pytest.raises(Unfit, match=r"what it takes (cannot be read|is gone)") as caught:
            await resources.inputs.located(replace(producer, places=places))
        assert caught.value.kind == "TaskRejected"
    gone = PassedFile("x", "outputs/gone", await storage.blob_signature("out", "outputs/gone", 60.0)).fields()
    hidden = PassedFile("x", "pool/manifest", None).fields()
    outside = {**far.fields(), "name": "../x"}
    for bad in (gone, {**gone, "sig": "forged"}, hidden, outside, {"name": "x"}, "x"):
        with pytest.raises(Unfit) as caught:
            await resources.inputs.files(taking(bad).files, empty)
        assert caught.value.kind == "TaskRejected"
    for name in ("inputs", "inputs/0", "inputs/0/far.csv", "inputs/0/far.csv/x"):
        in_the_way = Bundle((BundleFile(name, "0" * 64, 0),))
        with pytest.raises(Unfit, match=f"the bundle has '{name}' where a file"):
            await resources.inputs.files([PassedFile("far.csv", near, "any").fields()], in_the_way)


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
    resources = TaskResources(
        "agent", cache, FakeEnvironments(), nowhere, nowhere, FakeRunning(), 1, 1, NO_FILES
    )
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
        "agent", Cache(tmp_path), Unusable(error), nowhere, nowhere, FakeRunning(), 1, 1, NO_FILES
    )
    async with AsyncExitStack() as stack:
        with pytest.raises(Unfit, match=said) as raised:
            await resources.fetch_environment("e" * 64, stack)
    assert raised.value.kind == kind


async def test_another_fault_of_the_disk_is_the_nodes_own(tmp_path: Path) -> None:
    nowhere: Any = None
    broken = Unusable(OSError(errno.EIO, "Input/output error"))
    resources = TaskResources(
        "agent", Cache(tmp_path), broken, nowhere, nowhere, FakeRunning(), 1, 1, NO_FILES
    )
    async with AsyncExitStack() as stack:
        with pytest.raises(OSError, match="Input/output error"):
            await resources.fetch_environment("e" * 64, stack)
