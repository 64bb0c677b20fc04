"""Builds a wheel from a source distribution: the file of a task, which runs on a node, by itself."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

LONGEST = 4000
"""Characters of the end of what the build said that the error repeats."""
COMPILERS = r"(?:[\w.+-]*(?:gcc|g\+\+|clang(?:\+\+)?|gfortran)(?:-\d+)?|cc|c\+\+|cargo|rustc)"
NO_COMPILER = re.compile(
    rf"'({COMPILERS})'?[^\n]*No such file|\b({COMPILERS}): (?:command )?not found"
    rf"|(?:No such file or directory: )'({COMPILERS})'"
    r"|(Unknown compiler\(s\))|(can't find Rust compiler)"
)
CALL = """
import importlib, json, sys
backend, paths, out = json.loads(sys.argv[1])
sys.path[:0] = paths
module, _, path = backend.partition(":")
found = importlib.import_module(module)
for name in filter(None, path.split(".")):
    found = getattr(found, name)
found.build_wheel(out)
"""


def do_action(engine: Any, args: list[Any]) -> Any:
    """Return the name and the content of the wheel. `args`: the package, and the bytes of its source."""
    package, data = args
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "source"), Path(folder, "out")
        out.mkdir()
        unpack(data, source)
        (root,) = source.iterdir()
        project = root / "pyproject.toml"
        system = tomllib.loads(project.read_text("utf-8")).get("build-system", {}) if project.exists() else {}
        backend = system.get("build-backend", "setuptools.build_meta:__legacy__")
        call = json.dumps([backend, [str(root / path) for path in system.get("backend-path", ())], str(out)])
        finished = subprocess.run(
            [sys.executable, "-c", CALL, call],
            cwd=root,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if finished.returncode != 0:
            raise RuntimeError(reason(package, finished.stdout))
        (wheel,) = out.glob("*.whl")
        return [wheel.name, wheel.read_bytes()]


def unpack(data: bytes, folder: Path) -> None:
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archive.extractall(folder)
        return
    with tarfile.open(fileobj=io.BytesIO(data)) as members:
        if hasattr(tarfile, "data_filter"):
            members.extractall(folder, filter="data")
        else:
            members.extractall(folder)


def reason(package: str, said: str) -> str:
    """Say why a build failed: a compiler that is not there, by name, or the end of what the build said."""
    missing = NO_COMPILER.search(said)
    if missing is not None:
        name = next(filter(None, missing.groups()))
        return (
            f"{package} has no wheel for the nodes, and building it needs a compiler that they have not "
            f"({name}): PoolSpec(apt=['build-essential']) brings one"
        )
    return f"building {package} from its source failed: {said.strip()[-LONGEST:]}"
