"""What has no wheel: its source and what building it requires, fetched by the client."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

from batchflow.environments import uv
from batchflow.environments.uv import TargetPython
from batchflow.errors import EnvironmentFailed
from batchflow.support.frozen import frozen
from batchflow.support.threads import in_thread

_LEGACY: Final = ("setuptools", "wheel")
"""What building requires where a source does not say (PEP 518)."""
_FETCH: Final = 60.0
"""Seconds without a byte after which fetching a source fails."""


@frozen
class SourceDistribution:
    """The source of one package, and what building it requires."""

    package: str
    """`name==version`."""
    file: str
    data: bytes
    requires: tuple[str, ...]


async def fetch_source(package: str, lock: str, target: TargetPython, scratch: Path) -> SourceDistribution:
    """Fetch the source of a locked package, and check its hash.

    `lock`: the lock that names the package and the indexes. Raises `EnvironmentFailed`. Safe to cancel.
    """
    options = [line for line in lock.splitlines() if line.startswith("-")]
    text = await uv.lock_file("\n".join([*options, package]), target, scratch)
    found = [each["sdist"] for each in tomllib.loads(text).get("packages", ()) if "sdist" in each]
    if not found:
        raise EnvironmentFailed(f"{package} has neither a wheel for the nodes nor a source")
    data = await in_thread(_fetch, package, found[0])
    requires = await in_thread(_requires, package, data)
    return SourceDistribution(package, str(found[0]["url"]).rpartition("/")[2], data, requires)


def _fetch(package: str, sdist: dict[str, Any]) -> bytes:
    try:
        with urlopen(sdist["url"], timeout=_FETCH) as answer:
            data: bytes = answer.read()
    except OSError as error:
        raise EnvironmentFailed(f"the source of {package} cannot be fetched: {error}") from error
    for algorithm, digest in sdist.get("hashes", {}).items():
        if hashlib.new(algorithm, data).hexdigest() != digest:
            raise EnvironmentFailed(
                f"the source of {package} is not what was locked: its {algorithm} differs"
            )
    return data


def _requires(package: str, data: bytes) -> tuple[str, ...]:
    """Return what the source's pyproject.toml says that building requires."""
    try:
        text = _pyproject(data)
        system = {} if text is None else tomllib.loads(text).get("build-system", {})
        return tuple(map(str, system.get("requires", _LEGACY)))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise EnvironmentFailed(f"the source of {package} cannot be read: {error}") from error


def _pyproject(data: bytes) -> str | None:
    name = re.compile(r"[^/]+/pyproject\.toml")
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = [each for each in archive.namelist() if name.fullmatch(each)]
            return archive.read(found[0]).decode() if found else None
    with tarfile.open(fileobj=io.BytesIO(data)) as members:
        for member in members:
            if name.fullmatch(member.name) and (content := members.extractfile(member)) is not None:
                return content.read().decode()
    return None
