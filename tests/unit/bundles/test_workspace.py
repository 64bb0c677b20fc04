"""A slot's working directories: always clean, never a way to the cached files."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable
from mmap import mmap
from pathlib import Path

import pytest

from batchflow.errors import ConfigurationError, StorageError
from node_agent.bundles.workspace import Place, Workspace
from node_agent.system import file_stamps
from tests.support.slot_bench import materialise

CONTENTS = {"task.py": "code", "data/deep/a.txt": "a", "tool*": "#!/bin/sh\n"}


async def prepared(root: Path) -> tuple[Workspace, Place]:
    bundle, files = materialise(root, CONTENTS)
    workspace = Workspace(root / "slot")
    return workspace, await workspace.prepare(bundle, files)


def tree(folder: Path) -> dict[str, str | None]:
    """Files with their text, folders with None."""
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else None
        for path in folder.rglob("*")
    }


CLEAN = {
    "task.py": "code",
    "data": None,
    "data/deep": None,
    "data/deep/a.txt": "a",
    "tool": "#!/bin/sh\n",
    "outputs": None,
}


async def test_a_place_shows_the_bundle_by_name_and_an_empty_output_folder(tmp_path: Path) -> None:
    """Modes are kept, nothing counts as touched, and it is prepared once."""
    workspace, place = await prepared(tmp_path)
    assert tree(place.directory) == CLEAN
    assert not workspace.touched(place)
    assert os.access(place.directory / "tool", os.X_OK)
    assert (place.directory / "task.py").stat().st_mode & 0o777 == 0o444
    assert (place.directory / "task.py").samefile(place.files / "task.py") is False
    assert await workspace.prepare(place.bundle, place.files) is place


def _leave_file(place: Path) -> None:
    (place / "junk").write_text("x")


def _leave_deep(place: Path) -> None:
    (place / "data/deep/more").mkdir()
    (place / "data/deep/more/f").write_text("x")


def _remove(place: Path) -> None:
    (place / "task.py").unlink()


def _overwrite(place: Path) -> None:
    (place / "task.py").chmod(0o644)
    with (place / "task.py").open("r+") as file:
        file.write("CODE")


def _replace_by_link(place: Path) -> None:
    (place / "task.py").unlink()
    (place / "task.py").symlink_to("/etc/passwd")


def _folder_to_file(place: Path) -> None:
    shutil.rmtree(place / "data")
    (place / "data").write_text("x")


def _folder_to_link(place: Path) -> None:
    shutil.rmtree(place / "data")
    (place / "data").symlink_to("/tmp")


def _file_to_folder(place: Path) -> None:
    (place / "task.py").unlink()
    (place / "task.py").mkdir()
    (place / "task.py/x").touch()


def _no_outputs(place: Path) -> None:
    (place / "outputs").rmdir()


def _locked_folder(place: Path) -> None:
    (place / "locked").mkdir()
    (place / "locked/f").touch()
    (place / "locked").chmod(0)


def _everything_gone(place: Path) -> None:
    shutil.rmtree(place)


@pytest.mark.parametrize(
    "harm",
    [
        _leave_file,
        _leave_deep,
        _remove,
        _overwrite,
        _replace_by_link,
        _folder_to_file,
        _folder_to_link,
        _file_to_folder,
        _no_outputs,
        _locked_folder,
        _everything_gone,
    ],
)
async def test_whatever_a_task_did_the_next_one_finds_it_clean(tmp_path: Path, harm: object) -> None:
    """Seen by the stamps, also by who watches it, and put back; the cached files were never in reach."""
    workspace, place = await prepared(tmp_path)
    watch = file_stamps.Watch(str(place.directory), place.watched)
    assert not watch.touched()
    for _ in range(2):
        harm(place.directory)  # type: ignore[operator]
        assert workspace.touched(place)
        assert watch.touched()
        assert await workspace.collect(place) == (None, ())
        former, place = place, await workspace.prepare(place.bundle, place.files)
        assert place is not former
        assert tree(place.directory) == CLEAN
        assert not workspace.touched(place)
        assert not watch.touched()
    watch.close()
    assert (place.files / "task.py").read_text() == "code"


async def test_a_watch_sees_what_comes_through_a_file_that_is_open(tmp_path: Path) -> None:
    """Or mapped into memory, or has another name."""
    _, place = await prepared(tmp_path)
    target = place.directory / "task.py"
    for number in range(3):
        watch = file_stamps.Watch(str(place.directory), place.watched)
        target.chmod(0o644)
        with target.open("r+b") as file, mmap(file.fileno(), 0) as memory:
            assert not watch.touched()
            if number == 0:
                memory[0] = 0
            elif number == 1:
                file.write(b"x")
                file.flush()
            else:
                os.link(target, tmp_path / "other")
                (tmp_path / "other").write_text("other")
            assert watch.touched()
            file_stamps.stamp(str(target))
            assert not watch.touched()
        watch.close()


async def test_a_watch_has_a_bounded_number_of_descriptors(tmp_path: Path) -> None:
    """What goes beyond it is watched by its path; a watch that is closed, or saw something, holds none."""
    bundle, files = materialise(tmp_path, {f"f{number:03}": "" for number in range(200)})
    place = await Workspace(tmp_path / "slot").prepare(bundle, files)
    before = len(os.listdir("/proc/self/fd"))
    watch = file_stamps.Watch(str(place.directory), place.watched)
    assert not watch.touched()
    assert before < len(os.listdir("/proc/self/fd")) <= before + 64
    for name in ("f000", "f199"):
        os.utime(place.directory / name)
        assert watch.touched()
        assert len(os.listdir("/proc/self/fd")) == before
        file_stamps.stamp(str(place.directory / name))
        assert not watch.touched()
    watch.close()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_outputs_are_moved_out_and_links_are_not_followed(tmp_path: Path) -> None:
    """Regular files only, in any depth; two tasks' outputs never meet."""
    workspace, place = await prepared(tmp_path)
    for count in (1, 2):
        outputs = place.directory / "outputs"
        (outputs / "deep").mkdir()
        (outputs / "deep/x.csv").write_text(str(count))
        (outputs / "link").symlink_to("/etc/passwd")
        folder, files = await workspace.collect(place)
        assert folder is not None
        assert [path.relative_to(folder).as_posix() for path in files] == ["outputs/deep/x.csv"]
        assert files[0].read_text() == str(count)
        assert tree(place.directory) == CLEAN


async def test_names_that_are_no_text_become_text(tmp_path: Path) -> None:
    """Nothing that travels as JSON may hold bytes that are no UTF-8."""
    workspace, place = await prepared(tmp_path)
    (place.directory / "outputs" / os.fsdecode(b"a\xff")).write_text("x")
    _, (found,) = await workspace.collect(place)
    assert (found.name, found.read_text()) == ("a\ufffd", "x")


async def test_an_output_folder_that_is_a_link_is_not_collected(tmp_path: Path) -> None:
    """A task cannot make the agent upload another folder."""
    workspace, place = await prepared(tmp_path)
    (place.directory / "outputs").rmdir()
    (place.directory / "outputs").symlink_to("/etc")
    assert await workspace.collect(place) == (None, ())
    assert tree(place.directory) == CLEAN


def _rewrite(path: Path) -> None:
    """Change a file of the same size, and put its mode and times back."""
    before = path.stat()
    path.chmod(0o644)
    path.write_text("EVIL")
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("quick", [0, file_stamps.QUICK], ids=["in a thread", "at once"])
async def test_a_file_whose_times_were_put_back_is_restored(
    tmp_path: Path, quick: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stamp says nothing, but the signature does. What was only read stays."""
    monkeypatch.setattr(file_stamps, "QUICK", quick)
    workspace, place = await prepared(tmp_path)
    assert not await workspace.check(place)
    _rewrite(place.directory / "task.py")
    assert not workspace.touched(Place(place.bundle, place.files, place.directory, []))
    assert await workspace.check(place)
    assert tree(place.directory) == CLEAN
    assert not await workspace.check(place)


async def test_a_mode_that_was_changed_is_restored(tmp_path: Path) -> None:
    """A file that became writable could be changed by a program that means no harm."""
    workspace, place = await prepared(tmp_path)
    (place.directory / "task.py").chmod(0o666)
    assert await workspace.check(place)
    assert (place.directory / "task.py").stat().st_mode & 0o777 == 0o444


async def test_a_cached_file_whose_times_were_put_back_is_not_used(tmp_path: Path) -> None:
    """Neither for a new place, nor to restore one."""
    workspace, place = await prepared(tmp_path)
    _rewrite(place.files / "task.py")
    with pytest.raises(StorageError, match=r"task.py was changed on disk"):
        await Workspace(tmp_path / "other").prepare(place.bundle, place.files)
    _rewrite(place.directory / "task.py")
    assert await workspace.check(place)
    with pytest.raises(StorageError, match=r"task.py was changed on disk"):
        await workspace.prepare(place.bundle, place.files)


@pytest.mark.parametrize("user", [0, 65534], ids=["root", "another user"])
def test_what_a_task_writes_into_its_files_reaches_no_other_slot(user: int) -> None:
    """Neither what it appends to its own copies, nor, with the agent's rights, to the cached files."""
    if os.geteuid():
        pytest.skip("needs root to become another user")
    folder = Path(tempfile.mkdtemp())
    try:
        os.chown(folder, user, user)
        _run_as(user, lambda: asyncio.run(_append_everywhere(folder)))
    finally:
        shutil.rmtree(folder)


def _run_as(user: int, work: Callable[[], None]) -> None:
    """Run it in a forked child, as that user. Its error is shown on stderr."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


async def _append_everywhere(root: Path) -> None:
    workspace, place = await prepared(root)
    other = Workspace(root / "other")
    _append(place.directory / "task.py")
    second = await other.prepare(place.bundle, place.files)
    assert tree(second.directory) == CLEAN
    assert tree(place.files)["task.py"] == "code"
    _append(place.files / "task.py")
    assert tree(second.directory) == CLEAN
    assert await workspace.check(place)
    with pytest.raises(StorageError, match=r"task.py was changed on disk"):
        await Workspace(root / "third").prepare(place.bundle, place.files)


def _append(path: Path) -> None:
    path.chmod(0o644)
    with path.open("a") as file:
        file.write("evil")


async def test_a_cached_file_that_was_changed_is_not_used(tmp_path: Path) -> None:
    """Better an error than a wrong file."""
    bundle, files = materialise(tmp_path, CONTENTS)
    (files / "task.py").chmod(0o644)
    (files / "task.py").write_text("evil")
    with pytest.raises(StorageError, match=r"task.py was changed on disk"):
        await Workspace(tmp_path / "slot").prepare(bundle, files)


async def test_a_bundle_with_a_file_named_outputs_cannot_be_laid_out(tmp_path: Path) -> None:
    """The name is taken; files inside such a folder are fine, and are not listed as outputs."""
    bundle, files = materialise(tmp_path, {"outputs": "x"})
    workspace = Workspace(tmp_path / "slot")
    with pytest.raises(ConfigurationError, match="'outputs' is the name of the output folder"):
        await workspace.prepare(bundle, files)
    bundle, files = materialise(tmp_path, {"outputs/model.bin": "x"})
    place = await workspace.prepare(bundle, files)
    (place.directory / "outputs/new").write_text("y")
    _, found = await workspace.collect(place)
    assert [path.name for path in found] == ["new"]
    assert (place.directory / "outputs/model.bin").read_text() == "x"


async def test_a_few_bundles_stay_prepared_and_older_ones_go(tmp_path: Path) -> None:
    """Two sessions that take turns do not copy their files each time; the disk does not fill up."""
    workspace = Workspace(tmp_path / "slot")
    places = []
    for number in range(6):
        bundle, files = materialise(tmp_path, {"task.py": str(number)})
        places.append(await workspace.prepare(bundle, files))
    assert [place.directory.exists() for place in places] == [False, False, True, True, True, True]
    assert await workspace.prepare(places[3].bundle, places[3].files) is places[3]
    again = await workspace.prepare(places[0].bundle, places[0].files)
    assert (again.directory / "task.py").read_text() == "0"
    workspace.close()
    assert not (tmp_path / "slot").exists()
