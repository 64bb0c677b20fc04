"""From what a user names as files to a bundle in a container."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from batchflow.errors import ConfigurationError
from batchflow.files import collect, upload
from batchflow.protocol.bundle import Bundle
from batchflow.testing import MemoryContainer, MemoryStorage


def tree(top: Path, *names: str) -> Path:
    for name in names:
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    return top


async def names(files: Any) -> list[str]:
    return [source.file.name for source in await collect(files)]


@pytest.fixture
async def container() -> MemoryContainer:
    storage = MemoryStorage()
    await storage.create_container("ctl")
    return storage.container("ctl")


async def test_a_directory_contributes_its_contents(tmp_path: Path) -> None:
    """Under their relative names, with or without a slash at the end, as a string or a path."""
    tree(tmp_path, "a.py", "b/c.py", "b/d/e.txt")
    for spec in (tmp_path, str(tmp_path), f"{tmp_path}/"):
        assert await names(spec) == ["a.py", "b/c.py", "b/d/e.txt"]
        assert await names([spec]) == ["a.py", "b/c.py", "b/d/e.txt"]


async def test_a_file_contributes_its_base_name(tmp_path: Path) -> None:
    """Wherever it lies."""
    tree(tmp_path, "deep/down/a.py")
    assert await names(tmp_path / "deep/down/a.py") == ["a.py"]


async def test_names_are_relative_to_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the ten lines: files=["tasks/"]."""
    tree(tmp_path, "tasks/a.py", "b.txt")
    monkeypatch.chdir(tmp_path)
    assert await names(["tasks/", "b.txt"]) == ["a.py", "b.txt"]


async def test_a_mapping_names_explicitly(tmp_path: Path) -> None:
    """Bytes as they are, or a path."""
    tree(tmp_path, "x.bin")
    sources = await collect({"in/data.bin": tmp_path / "x.bin", "run.sh": b"#!/bin/sh\n", "y.py": b"y = 1"})
    by_name = {source.file.name: source for source in sources}
    assert by_name.keys() == {"in/data.bin", "run.sh", "y.py"}
    assert by_name["y.py"].file.sha256 == hashlib.sha256(b"y = 1").hexdigest()
    assert by_name["y.py"].file.size == 5
    assert by_name["run.sh"].file.executable
    assert not by_name["y.py"].file.executable


async def test_specs_of_all_kinds_together(tmp_path: Path) -> None:
    """A list, a generator; directories, files and mappings in it."""
    tree(tmp_path, "tasks/a.py", "b.py")
    specs = [tmp_path / "tasks", str(tmp_path / "b.py"), {"c.py": b""}]
    assert await names(iter(specs)) == ["a.py", "b.py", "c.py"]
    assert await names([]) == []


async def test_the_executable_bit_travels(tmp_path: Path) -> None:
    """A program stays one."""
    tree(tmp_path, "run", "data")
    (tmp_path / "run").chmod(0o755)
    (tmp_path / "data").chmod(0o644)
    assert [(source.file.name, source.file.executable) for source in await collect(tmp_path)] == [
        ("data", False),
        ("run", True),
    ]


LEFT_OUT = [
    ".git/config", ".env", ".venv/pyvenv.cfg", "__pycache__/a.pyc", "b/__pycache__/c.pyc", "old.pyc",
    "credentials.json", "b/credentials.json", "batchflow.toml", "server.pem", "my.pfx", "my.key", "id_rsa",
    "id_rsa.pub", "id_ed25519", "env/pyvenv.cfg", "env/lib/x.py",
]  # fmt: skip


async def test_hidden_files_and_credentials_of_a_directory_are_left_out(tmp_path: Path) -> None:
    """Hidden files, caches, virtual environments, credential files, at any depth."""
    tree(tmp_path, "a.py", "b/c.py", *LEFT_OUT)
    assert await names(tmp_path) == ["a.py", "b/c.py"]


@pytest.mark.parametrize("name", [".env", "credentials.json", "my.key"])
async def test_explicitly_named_credentials_are_taken(tmp_path: Path, name: str) -> None:
    """Leaving out is for directories; who names a file means it."""
    tree(tmp_path, name)
    assert await names(tmp_path / name) == [name]
    assert await names({name: tmp_path / name}) == [name]


async def test_links_count_as_the_files_they_lead_to(tmp_path: Path) -> None:
    """A link to a folder is a folder, too, but hidden ones and those of credentials are left out."""
    tree(tmp_path, "in/a.py", "out/b.py", "out/deep/c.py", "out/.hidden", "out/my.key")
    (tmp_path / "in/link.py").symlink_to(tmp_path / "out/b.py")
    (tmp_path / "in/data").symlink_to("../out")
    assert await names(tmp_path / "in") == ["a.py", "link.py", "data/b.py", "data/deep/c.py"]


async def test_links_that_lead_nowhere_or_in_circles_are_left_out_with_a_warning(tmp_path: Path) -> None:
    """The warning names each. Two folders may link to each other."""
    tree(tmp_path, "in/a.py", "in/other/b.py")
    (tmp_path / "in/gone.py").symlink_to("nowhere")
    (tmp_path / "in/circle").symlink_to(tmp_path / "in")
    (tmp_path / "in/other/up").symlink_to("..")
    with pytest.warns(
        UserWarning, match=r"left out of .*gone.py \(a link to nowhere, which is not there\)"
    ) as told:
        assert await names(tmp_path / "in") == ["a.py", "other/b.py"]
    (text,) = [str(each.message) for each in told]
    assert "circle (a link to" in text
    assert "up (a link to" in text


async def test_pipes_of_a_directory_are_left_out(tmp_path: Path) -> None:
    """Reading a pipe would never end."""
    tree(tmp_path, "a.py")
    os.mkfifo(tmp_path / "pipe")
    assert await names(tmp_path) == ["a.py"]


@pytest.mark.parametrize("spec", ["nowhere.py", Path("nowhere.py"), {"x.py": "nowhere.py"}, ["nowhere.py"]])
async def test_missing_file_is_named(spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the directory that it was looked for in."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=r"nowhere\.py.*no such file.*" + tmp_path.name):
        await collect(spec)


async def test_a_directory_cannot_stand_for_a_file(tmp_path: Path) -> None:
    """In a mapping each name is one file."""
    with pytest.raises(ConfigurationError, match="a directory is named where a file is expected"):
        await collect({"x": tmp_path})


@pytest.mark.parametrize("spec", [b"x.py", 5, None, [None], [5], {"x.py": 5}, {"x.py": None}, {5: b""}])
async def test_spec_of_a_wrong_type_is_refused(spec: Any) -> None:
    """In words, not by a TypeError from within."""
    with pytest.raises(ConfigurationError, match="files"):
        await collect(spec)


async def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the system says about it."""
    tree(tmp_path, "secret.txt")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigurationError, match=r"secret\.txt.*Permission denied"):
        await collect(tmp_path)


async def test_two_files_of_one_name_are_refused(tmp_path: Path, container: MemoryContainer) -> None:
    """Nobody shall wonder which of them ran."""
    tree(tmp_path, "one/a.py", "two/a.py")
    with pytest.raises(ConfigurationError, match=r"a\.py"):
        await upload(await collect([tmp_path / "one", tmp_path / "two"]), container)


async def blobs(container: MemoryContainer) -> set[str]:
    return {info.name async for info in container.list()}


async def test_a_bundle_is_uploaded_whole(tmp_path: Path, container: MemoryContainer) -> None:
    """Contents under their hashes, the list of files under its own; all read back."""
    tree(tmp_path, "a.py", "b/c.py")
    sources = [*await collect(tmp_path), *await collect({"d.py": b"d"})]
    bundle = await upload(sources, container)
    assert await blobs(container) == {bundle.blob, *(file.blob for file in bundle.files)}
    assert Bundle.read((await container.get(bundle.blob)).data, bundle.hash) == bundle
    for file in bundle.files:
        assert hashlib.sha256((await container.get(file.blob)).data).hexdigest() == file.sha256


async def test_the_empty_bundle_is_one_too(container: MemoryContainer) -> None:
    """A pool without files has it."""
    bundle = await upload([], container)
    assert bundle.files == ()
    assert await blobs(container) == {bundle.blob}


class Counting(MemoryContainer):
    """Notes what is written."""

    def __init__(self, storage: MemoryStorage) -> None:
        super().__init__(storage, "ctl")
        self.written: list[str] = []

    async def put(self, name: str, data: bytes, *, if_match: str | None = None, create: bool = False) -> str:
        self.written.append(name)
        return await super().put(name, data, if_match=if_match, create=create)


@pytest.fixture
async def counting() -> Counting:
    storage = MemoryStorage()
    await storage.create_container("ctl")
    return Counting(storage)


async def test_an_unchanged_file_is_never_uploaded_twice(counting: Counting) -> None:
    """The same bundle costs nothing; another costs its new files and its list."""
    first = await upload(await collect({"a.py": b"a", "b.py": b"b"}), counting)
    counting.written.clear()
    assert await upload(await collect({"b.py": b"b", "a.py": b"a"}), counting) == first
    assert counting.written == []
    second = await upload(await collect({"a.py": b"a", "b.py": b"new", "also_a.py": b"a"}), counting)
    changed = next(file for file in second.files if file.name == "b.py")
    assert sorted(counting.written) == sorted([changed.blob, second.blob])


async def test_the_same_content_twice_is_uploaded_once(counting: Counting) -> None:
    """Within one bundle as well."""
    await upload(await collect({"a.py": b"same", "b.py": b"same"}), counting)
    assert len([name for name in counting.written if name.startswith("files/")]) == 1


async def test_concurrent_upload_of_the_same_content_succeeds(counting: Counting) -> None:
    """What is there already by then is right by its name."""
    sources = await collect({"a.py": b"a"})

    async def put(name: str, data: bytes, *, if_match: str | None = None, create: bool = False) -> str:
        if create:
            await MemoryContainer.put(counting, name, data)
        return await MemoryContainer.put(counting, name, data, if_match=if_match, create=create)

    counting.put = put  # type: ignore[method-assign]
    bundle = await upload(sources, counting)
    assert (await counting.get(bundle.files[0].blob)).data == b"a"


async def test_file_changed_during_its_upload_is_refused(tmp_path: Path, container: MemoryContainer) -> None:
    """A blob's content is what its name says, for it is never uploaded again."""
    tree(tmp_path, "a.py")
    sources = await collect(tmp_path)
    (tmp_path / "a.py").write_text("another content")
    with pytest.raises(ConfigurationError, match=r"a\.py.*changed"):
        await upload(sources, container)
    assert await blobs(container) == set()
    bundle = await upload(await collect(tmp_path), container)
    assert (await container.get(bundle.files[0].blob)).data == b"another content"
