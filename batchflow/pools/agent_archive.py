"""The agent as one archive that a node needs nothing but Python for.

It holds `batchflow`, `node_agent` and what they import there, in the versions that are installed here, as
built for the node's Python and platform. pip fetches them, or uv where an environment has no pip, once for
each combination; without either they are copied from here if the nodes are alike. The archive is kept in the
user's cache and is named by its content.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batchflow.environments import installed_packages
from batchflow.environments.commands import CommandFailed, run_command
from batchflow.environments.user_cache import user_cache
from batchflow.errors import ConfigurationError
from batchflow.support.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REQUIREMENTS: Final = ("anyio", "azure-servicebus", "azure-storage-blob[aio]", "cloudpickle", "orjson")
"""The packages that an agent imports besides itself."""
IDENTITY: Final = "azure-identity"
"""The package that an agent with a managed identity imports as well."""
OWN_PACKAGES: Final = ("batchflow", "node_agent")
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The time of every file in the archive, so that the same content has the same hash."""
_LOCAL_ONLY: Final = "local"
"""The part of batchflow that no node needs."""
_MACHINE: Final = "x86_64"
"""The processors of Azure Batch's nodes."""


async def build(python: str, platform: str, *, identity: bool = False) -> Path:
    """Make the archive for nodes with this Python (`3.12`) and platform (`manylinux_2_28_x86_64`).

    `identity`: whether agents use a managed identity instead of keys. Raises `ConfigurationError`, with the
    end of pip's output, when a package cannot be fetched. Safe to cancel.
    """
    constraints = "\n".join(sorted(installed_packages.pins())) + "\n"
    requirements = (*REQUIREMENTS, IDENTITY) if identity else REQUIREMENTS
    key = hashlib.sha256("\n".join([python, platform, *requirements, constraints]).encode())
    cache = user_cache()
    cache.mkdir(parents=True, exist_ok=True)
    dependencies = cache / f"dependencies-{key.hexdigest()[:16]}"
    if not dependencies.is_dir():
        await _fetch(python, platform, requirements, constraints, dependencies)
    return await in_thread(_pack, dependencies, cache)


def bootstrap() -> bytes:
    """Read the script that unpacks the archive on a node and becomes the agent."""
    return (_package("node_agent") / "bootstrap.py").read_bytes()


async def _fetch(
    python: str, platform: str, requirements: tuple[str, ...], constraints: str, target: Path
) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        pins = Path(scratch) / "constraints.txt"
        pins.write_text(constraints)
        site = Path(scratch) / "site"
        common = ("--target", str(site), "--constraint", str(pins), "--only-binary", ":all:")
        if find_spec("pip") is not None:
            command = _pip_command(python, platform)
        elif (uv := shutil.which("uv")) is not None:
            command = _uv_command(uv, python, platform)
        else:
            await in_thread(_copy_installed, python, platform, requirements, site)
            command = ()
        if command:
            await _run((*command, *common, *requirements), python, platform)
        if not target.is_dir():
            site.rename(target)


def _pip_command(python: str, platform: str) -> tuple[str, ...]:
    return (
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"),
        *("--python-version", python, "--implementation", "cp"),
        *("--platform", platform, "--platform", "manylinux2014_x86_64"),
    )


def _uv_command(uv: str, python: str, platform: str) -> tuple[str, ...]:
    """`uv` makes environments without pip. It names a platform machine first."""
    libc = platform.removesuffix(f"_{_MACHINE}")
    return (
        *(uv, "pip", "install", "--quiet", "--python", sys.executable),
        *("--python-version", python, "--python-platform", f"{_MACHINE}-{libc}"),
    )


async def _run(command: Sequence[str], python: str, platform: str) -> None:
    """Run the installer. Raises `ConfigurationError`, with the end of its output, when it fails."""
    try:
        await run_command(command)
    except CommandFailed as error:
        tool = "uv" if command[1] == "pip" else "pip"
        raise _unfetched(python, platform, f"{tool} said: {error}") from error


def _copy_installed(python: str, platform: str, requirements: tuple[str, ...], site: Path) -> None:
    """Copy the packages that are installed here, where no installer is and the nodes are alike.

    Raises `ConfigurationError`.
    """
    remedy = "install one: uv pip install pip, or python -m ensurepip"
    if not installed_packages.installed_for(python, platform):
        raise _unfetched(python, platform, f"this environment has neither pip nor uv: {remedy}")
    try:
        files = installed_packages.files_of(requirements)
    except installed_packages.NotPortable as error:
        raise _unfetched(python, platform, f"there is neither pip nor uv, and {error}: {remedy}") from error
    for place, path in files.items():
        copy = site / place
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _unfetched(python: str, platform: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"agent: its packages for Python {python} on {platform} cannot be fetched (settings "
        f"agent.node_python, agent.node_platform; or set agent.python to an interpreter on the nodes "
        f"that has batchflow installed). {reason}"
    )


def _pack(dependencies: Path, cache: Path) -> Path:
    files = {path.relative_to(dependencies).as_posix(): path for path in _files(dependencies)}
    for name in OWN_PACKAGES:
        package = _package(name)
        for path in _files(package):
            inside = path.relative_to(package)
            if inside.parts[0] != _LOCAL_ONLY:
                files[f"{name}/{inside.as_posix()}"] = path
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    archive = cache / f"agent-{digest.hexdigest()[:32]}.zip"
    if not archive.is_file():
        _write(archive, files)
    return archive


def _write(archive: Path, files: dict[str, Path]) -> None:
    with tempfile.NamedTemporaryFile(dir=archive.parent, delete=False) as scratch:
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as out:
            for name, path in sorted(files.items()):
                out.writestr(zipfile.ZipInfo(name, _EPOCH), path.read_bytes(), zipfile.ZIP_DEFLATED)
        Path(scratch.name).rename(archive)


def _files(top: Path) -> Iterator[Path]:
    for path in sorted(top.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ConfigurationError(f"agent: the package {name} is not installed beside batchflow")
    return Path(spec.origin).parent
