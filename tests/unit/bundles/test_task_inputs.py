"""What a task takes from other tasks is fetched side by side."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from batchflow.protocol.bundle import Bundle
from batchflow.protocol.passed import PassedFile, PassedValue
from batchflow.testing.storage import MemoryContainer, MemoryStorage
from node_agent.bundles.task_files import FileCache
from node_agent.bundles.task_inputs import FETCHES, TaskInputs, Unfit
from node_agent.bundles.values import ValueCache
from tests.support.waiting import eventually, within

if TYPE_CHECKING:
    from os import PathLike


class Slow(MemoryContainer):
    """A container that answers when it is told to, and counts what it is asked at once."""

    def __init__(self, storage: MemoryStorage, name: str) -> None:
        super().__init__(storage, name)
        self.asked = self.most = 0
        self.answering = asyncio.Event()

    async def _wait(self) -> None:
        self.asked += 1
        self.most = max(self.most, self.asked)
        await self.answering.wait()
        self.asked -= 1

    async def get_signed(self, name: str, signature: str) -> bytes:
        await self._wait()
        return await super().get_signed(name, signature)

    async def download(self, name: str, path: str | PathLike[str], *, signature: str | None = None) -> None:
        await self._wait()
        await super().download(name, path, signature=signature)


@pytest.mark.parametrize("kind", ["values", "files"])
async def test_inputs_are_fetched_side_by_side_a_few_at_once(tmp_path: Path, kind: str) -> None:
    """They come in their order; one that a task takes twice is fetched once."""
    storage = MemoryStorage()
    await storage.create_container("out")
    out = Slow(storage, "out")
    inputs = TaskInputs(out, out, ValueCache(), FileCache(tmp_path / "files"))
    blobs = [f"outputs/{number}" for number in range(10)]
    for blob in blobs:
        await out.put(blob, blob.encode())
    signed = {blob: await storage.blob_signature("out", blob, 60.0) for blob in blobs}
    names = [*blobs, blobs[0]]

    async def fetch() -> list[bytes]:
        if kind == "values":
            values = await inputs.values([PassedValue(name, 9, signed[name]).fields() for name in names])
            return [Path(value.path).read_bytes() for value in values]
        files = await inputs.files(
            [PassedFile("x", name, signed[name]).fields() for name in names], Bundle(())
        )
        for number, file in enumerate(files.values()):
            file.copy_to(str(tmp_path / f"{number}"))
        return [(tmp_path / f"{number}").read_bytes() for number in range(len(files))]

    fetching = asyncio.create_task(fetch())
    await eventually(lambda: out.asked == FETCHES)
    out.answering.set()
    assert await within(fetching) == [name.encode() for name in names]
    assert out.most == FETCHES


async def test_one_input_that_is_gone_is_the_outcome_of_its_task(tmp_path: Path) -> None:
    """Whatever else is being fetched."""
    storage = MemoryStorage()
    await storage.create_container("out")
    out = Slow(storage, "out")
    out.answering.set()
    await out.put("outputs/a", b"a")
    signed = {name: await storage.blob_signature("out", name, 60.0) for name in ("outputs/a", "outputs/b")}
    inputs = TaskInputs(out, out, ValueCache(), FileCache(tmp_path / "files"))
    with pytest.raises(Unfit, match="a value that it takes is gone"):
        await inputs.values([PassedValue(name, 1, each).fields() for name, each in signed.items()])
    with pytest.raises(Unfit, match="a file that it takes is gone"):
        await inputs.files(
            [PassedFile("x", name, each).fields() for name, each in signed.items()], Bundle(())
        )
