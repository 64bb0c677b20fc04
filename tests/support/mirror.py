"""A mirror of python-build-standalone on loopback, with one Python: a script that calls ours."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_RELEASE = "https://github.com/astral-sh/python-build-standalone/releases/download"
MACHINE = "x86_64"
_SYSCONFIG = "# system configuration generated and used by the sysconfig module\nbuild_time_vars = {}\n"


def python_of_mirror(folder: Path, python: str) -> Path:
    """Write the files of a mirror that has this minor version; return the list of downloads that names it.

    uv has such a list built in, with the hashes of the real releases. `UV_PYTHON_DOWNLOADS_JSON_URL` names
    another one.
    """
    patch, build = f"{python}.99", "20260101"
    name = f"cpython-{patch}+{build}-{MACHINE}-unknown-linux-gnu-install_only_stripped.tar.gz"
    major, minor = map(int, python.split("."))
    library = f"python/lib/python{python}"
    files = {
        f"python/bin/python{python}": f'#!/bin/sh\nCARRIED=yes exec {sys.executable} "$@"\n',
        f"{library}/os.py": "",
        f"{library}/_sysconfigdata__linux_{MACHINE}-linux-gnu.py": _SYSCONFIG,
        f"{library}/test/test_os.py": "",
        f"{library}/__pycache__/os.pyc": "",
    }
    (folder / build).mkdir(parents=True)
    with tarfile.open(folder / build / name, "w:gz") as out:
        for path, text in files.items():
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(text), 0o755 if "/bin/" in path else 0o644
            out.addfile(member, io.BytesIO(text.encode()))
        link = tarfile.TarInfo("python/bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, f"python{python}"
        out.addfile(link)
    listed = {
        f"cpython-{patch}-linux-{MACHINE}-gnu": {
            "name": "cpython",
            "arch": {"family": MACHINE, "variant": None},
            "os": "linux",
            "libc": "gnu",
            "major": major,
            "minor": minor,
            "patch": 99,
            "prerelease": "",
            "sha256": None,
            "variant": None,
            "build": build,
            "url": f"{_RELEASE}/{build}/{name.replace('+', '%2B')}",
        }
    }
    downloads = folder / "downloads.json"
    downloads.write_text(json.dumps(listed))
    return downloads


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder on loopback; return its URL."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class says so
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
