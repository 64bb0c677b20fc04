"""Bundles: named by their content, and unable to reach outside their folder."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchflow.errors import ConfigurationError, ProtocolError
from batchflow.protocol.bundle import Bundle, BundleFile, bundle_blob, check_name

DIGEST = "0123456789abcdef" * 4
PARTS = st.text("abcXYZ019._ äß", min_size=1, max_size=8).filter(lambda part: part.strip(". ") == part)
NAMES = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


def file(name: str, digest: str = DIGEST, size: int = 3, executable: bool = False) -> BundleFile:
    return BundleFile(name, digest, size, executable)


def read(rows: Any, version: Any = 1) -> Bundle:
    document = orjson.dumps({"v": version, "files": rows})
    return Bundle.read(document, hashlib.sha256(document).hexdigest())


BAD_NAMES = {
    "nothing": "",
    "absolute": "/etc/passwd",
    "up": "../x.py",
    "up in the middle": "a/../x.py",
    "up at the end": "a/..",
    "here": ".",
    "here in front": "./x.py",
    "here in the middle": "a/./b",
    "double slash": "a//b",
    "slash at the end": "a/",
    "two slashes in front": "//host/x",
    "backslash": "a\\b",
    "null": "a\0b",
    "newline": "a\nb",
    "delete": "a\x7f",
    "option": "-rf",
    "option in a folder": "a/-x",
    "surrogate": "caf\udce9.py",
    "too long": "a/" * 300 + "x",
    "a part that is too long for a file system": "x" * 256,
    "a part that is too long in bytes": "ä" * 128,
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES.keys())
def test_a_name_with_tricks_is_refused(name: str) -> None:
    """By whoever makes a bundle, as a `ConfigurationError`, and by whoever reads one."""
    with pytest.raises(ValueError, match=r"name|character"):
        check_name(name)
    with pytest.raises(ConfigurationError):
        Bundle.of([file(name)])


@pytest.mark.parametrize("name", [name for name in BAD_NAMES.values() if "\udce9" not in name])
def test_a_document_with_tricks_is_refused(name: str) -> None:
    """Whoever may write documents cannot write outside a task's directory."""
    with pytest.raises(ProtocolError):
        read([[name, DIGEST, 1, False]])


@given(NAMES)
def test_a_plain_name_is_taken_and_stays_inside(name: str) -> None:
    """Folders, spaces, dots and letters of other alphabets are names like any."""
    assert check_name(name) == name
    assert PurePosixPath("/base", name).is_relative_to("/base")


@given(st.text(max_size=30))
def test_whatever_is_taken_stays_inside(name: str) -> None:
    """No text leads outside of the folder: refused, or below it."""
    try:
        check_name(name)
    except ValueError:
        return
    path = PurePosixPath("/base", name)
    assert path.is_relative_to("/base")
    assert ".." not in path.parts
    name.encode()


@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=3), st.booleans()), max_size=6, unique_by=lambda row: row[0])
)
def test_a_bundle_is_its_content(rows: list[tuple[str, bytes, bool]]) -> None:
    """The order of the files does not matter, all else does; the document reads as the bundle."""
    files = [file(name, hashlib.sha256(data).hexdigest(), len(data), flag) for name, data, flag in rows]
    try:
        bundle = Bundle.of(files)
    except ConfigurationError:
        return
    assert bundle.hash == Bundle.of(reversed(files)).hash
    assert Bundle.read(bundle.document, bundle.hash) == bundle
    assert all(name in bundle for name, _, _ in rows)
    assert Bundle.of([*files, file("another")] if "another" not in bundle else files[1:]).hash != bundle.hash


def test_a_name_used_twice_is_refused() -> None:
    """Even for the same content: the user sees that two sources meet."""
    with pytest.raises(ConfigurationError, match=r"x\.py"):
        Bundle.of([file("x.py"), file("x.py")])


def test_a_file_that_is_also_a_folder_is_refused() -> None:
    """No directory could hold both."""
    with pytest.raises(ConfigurationError, match="'a/b'"):
        Bundle.of([file("a/b"), file("a/b/c/d")])


@pytest.mark.parametrize(
    "digest", ["", "x", DIGEST[:-1], DIGEST + "0", DIGEST.upper(), "../" * 21 + "x", "g" * 64, 5]
)
def test_a_hash_that_is_none_is_refused(digest: Any) -> None:
    """It names a blob, and a file in the agent's cache."""
    with pytest.raises(ProtocolError):
        read([["x.py", digest, 1, False]])


@pytest.mark.parametrize(
    "rows",
    [None, 5, "ab", [5], ["abcd"], [[]], [["x", DIGEST]], [["x", DIGEST, 1, False, 0]],
     [["x", DIGEST, "1", False]], [["x", DIGEST, -1, False]], [["x", DIGEST, 1.5, False]],
     [["x", DIGEST, 1, "yes"]], [[5, DIGEST, 1, False], ["x", DIGEST, 1, False]]],
)  # fmt: skip
def test_a_document_of_something_else_is_refused(rows: Any) -> None:
    """Rows that are no files, or files that are no files."""
    with pytest.raises(ProtocolError):
        read(rows)


@pytest.mark.parametrize("document", [b"", b"null", b"[]", b"{}", b"[1]", b"{", b"\xff"])
def test_a_document_that_is_none_is_refused(document: bytes) -> None:
    """Even when its name is right."""
    with pytest.raises(ProtocolError):
        Bundle.read(document, hashlib.sha256(document).hexdigest())


@pytest.mark.parametrize("version", [2, None, "1"])
def test_a_document_of_another_version_is_refused(version: Any) -> None:
    """A newer writer may have changed what the rows mean."""
    with pytest.raises(ProtocolError, match="version"):
        read([["x", DIGEST, 1, False]], version)


def test_a_document_under_another_name_is_refused() -> None:
    """The name is the hash: nobody can put another bundle in its place."""
    bundle = Bundle.of([file("x.py")])
    with pytest.raises(ProtocolError, match="not what its name says"):
        Bundle.read(bundle.document.replace(b"x.py", b"y.py"), bundle.hash)


def test_where_a_bundle_lies() -> None:
    """Blobs are named by hashes alone."""
    bundle = Bundle.of([file("x.py")])
    assert bundle.blob == bundle_blob(bundle.hash) == f"bundles/{bundle.hash}.json"
    assert bundle.files[0].blob == f"files/{DIGEST}"
