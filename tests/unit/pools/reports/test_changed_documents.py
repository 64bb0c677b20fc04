"""Documents that are looked at again and again: one that has not changed is not read."""

from __future__ import annotations

import pytest

from batchflow.errors import ProtocolError
from batchflow.pools.reports.changed_documents import ChangedDocuments
from batchflow.ports.storage import Container
from batchflow.testing import MemoryStorage


@pytest.fixture
async def container() -> Container:
    storage = MemoryStorage()
    await storage.create_container("c")
    return storage.container("c")


def decode(data: bytes) -> str:
    if data == b"bad":
        raise ProtocolError("bad")
    return data.decode()


async def texts(documents: ChangedDocuments[str], without: tuple[str, ...] = ()) -> list[str]:
    return [text for _, text in await documents.read(without)]


async def test_only_what_has_changed_is_read_again(container: Container) -> None:
    """What is gone, of a later version, or not wanted, is left out."""
    decoded: list[bytes] = []

    def noted(data: bytes) -> str:
        decoded.append(data)
        return decode(data)

    documents = ChangedDocuments(container, "d/", noted)
    for name in ("d/1", "d/2", "d/3", "other"):
        await container.put(name, name.encode())
    await container.put("d/4", b"bad")
    assert await texts(documents) == ["d/1", "d/2", "d/3"]
    assert len(decoded) == 4
    assert await texts(documents, ("d/1",)) == ["d/2", "d/3"]
    await container.put("d/2", b"new")
    await container.delete("d/3")
    assert await texts(documents, ("d/1",)) == ["new"]
    assert decoded[4:] == [b"new"]


async def test_of_many_documents_some_are_read_at_each_look(container: Container) -> None:
    """So that a look is short."""
    documents = ChangedDocuments(container, "d/", decode, most=2)
    for number in range(5):
        await container.put(f"d/{number}", str(number).encode())
    assert [len(await texts(documents)) for _ in range(3)] == [2, 4, 5]
