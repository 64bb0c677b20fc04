"""Wheels on a node: installed where their files belong, and as their hashes say, or not at all."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pytest

from batchflow.errors import ProtocolError
from node_agent.bundles import wheels
from node_agent.bundles.damage import ArchiveDamaged
from node_agent.bundles.wheels import install_wheels
from tests.support.wheels import zip_of

TEXT = b"x = 1\n" * 100


def _installed(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*.*")
        if path.is_file()
    }


def test_files_come_where_they_belong_and_cannot_be_written(tmp_path: Path) -> None:
    """Compressed and stored; headers are left out; a script gets the path of the interpreter."""
    path, sha256 = zip_of(
        tmp_path / "tiny-1.0-py3-none-any.whl",
        {
            "tiny/__init__.py": TEXT,
            "tiny/short.py": b"y = 2",
            "tiny-1.0.data/purelib/pure.py": TEXT,
            "tiny-1.0.data/platlib/plat.so": TEXT,
            "tiny-1.0.data/data/share/tiny.txt": TEXT,
            "tiny-1.0.data/headers/tiny.h": TEXT,
            "tiny-1.0.data/scripts/tiny.sh": b"#!python -E\npass\n",
            "tiny-1.0.data/scripts/tool.x": b"\x7fELF",
            "tiny-1.0.dist-info/RECORD.txt": b"",
        },
        {"tiny-1.0.data/scripts/tool.x": 0o100755},
    )
    folder = tmp_path / "site"
    sizes = install_wheels({path: sha256}, folder)
    assert _installed(folder) == {
        "tiny/__init__.py": TEXT,
        "tiny/short.py": b"y = 2",
        "pure.py": TEXT,
        "plat.so": TEXT,
        "share/tiny.txt": TEXT,
        "bin/tiny.sh": f"#!{sys.executable} -E\npass\n".encode(),
        "bin/tool.x": b"\x7fELF",
        "tiny-1.0.dist-info/RECORD.txt": b"",
    }
    assert set(sizes) == {f"{folder}/{name}" for name in _installed(folder)}
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*.*") if path.is_file()}
    assert (modes["pure.py"], modes["tiny.sh"], modes["tool.x"]) == (0o444, 0o555, 0o555)


def test_large_files_and_those_of_several_wheels_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces, by several threads, and where two wheels have the same file."""
    monkeypatch.setattr(wheels, "_WHOLE", 1000)
    monkeypatch.setattr(wheels, "_MOST_MEMBERS", 2)
    large = os.urandom(5000) + TEXT
    made = dict(
        zip_of(
            tmp_path / f"w{number}.whl",
            {"space/__init__.py": b"", **{f"space/m{number}_{n}.py": large for n in range(9)}},
        )
        for number in range(3)
    )
    install_wheels(made, tmp_path / "site")
    found = _installed(tmp_path / "site")
    assert len(found) == 28
    assert {content for name, content in found.items() if "__init__" not in name} == {large}


@pytest.mark.parametrize(
    ("files", "modes", "said"),
    [
        ({"../out.py": TEXT}, {}, "does not stay in its folder"),
        ({"a-1.data/scripts/../../../out.py": TEXT}, {}, "does not stay in its folder"),
        ({"link.py": b"/etc/passwd"}, {"link.py": 0o120777}, "holds 'link.py', no regular file"),
    ],
)
def test_a_wheel_that_leads_out_of_its_folder_is_refused_and_leaves_nothing(
    tmp_path: Path, files: dict[str, bytes], modes: dict[str, int], said: str
) -> None:
    path, sha256 = zip_of(tmp_path / "bad.whl", {"a.py": TEXT, **files}, modes)
    with pytest.raises(ProtocolError, match=said):
        install_wheels({path: sha256}, tmp_path / "site")
    assert [each.name for each in tmp_path.iterdir()] == ["bad.whl"]


@pytest.mark.parametrize("cut", ["directory", "content", "size"])
def test_a_wheel_that_cannot_be_read_is_refused_by_name(tmp_path: Path, cut: str) -> None:
    """Its hash is right: it was made so."""
    import hashlib

    path, _ = zip_of(tmp_path / "bad.whl", {"a.py": TEXT})
    data = bytearray(path.read_bytes())
    if cut == "directory":
        del data[-40:]
    elif cut == "content":
        data[34:44] = b"\xff" * 10
    else:
        at = data.rindex(b"PK\x01\x02") + 24
        data[at : at + 4] = (len(TEXT) + 1).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ProtocolError, match="cannot be read"):
        install_wheels({path: hashlib.sha256(data).hexdigest()}, tmp_path / "site")
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_wheel_that_was_changed_in_the_cache_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Also when it is changed after it was hashed, and its time of modification put back."""
    path, sha256 = zip_of(tmp_path / "tiny.whl", {"a.py": TEXT})
    content = path.read_bytes()
    os.utime(path, ns=(0, 0))

    def forge() -> None:
        path.write_bytes(content.replace(b"a.py", b"b.py"))
        os.utime(path, ns=(0, 0))

    if when == "before":
        forge()
    else:
        place_of = wheels.place_of

        def late(name: str) -> str | None:
            forge()
            return place_of(name)

        monkeypatch.setattr(wheels, "place_of", late)
    with pytest.raises(ArchiveDamaged, match=r"tiny.whl was changed on disk"):
        install_wheels({path: sha256}, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_a_full_disk_leaves_nothing_of_what_was_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sha256 = zip_of(tmp_path / "tiny.whl", {f"m{number}.py": TEXT for number in range(9)})
    fchmod, done = os.fchmod, list[int]()

    def full(descriptor: int, mode: int) -> None:
        done.append(descriptor)
        if len(done) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        fchmod(descriptor, mode)

    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(OSError, match="No space left on device"):
        install_wheels({path: sha256}, tmp_path / "site")
    assert [each.name for each in tmp_path.iterdir()] == ["tiny.whl"]
