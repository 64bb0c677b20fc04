"""What client and agent agree on about environments: the Python packages that tasks run with. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from batchflow.protocol.documents import Document
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable

ARCHIVE: Final = "environment.tar.gz"
"""The file of an environment's bundle with its packages: regular files, as they lie in `site-packages`.

The bundle has wheels in its place where all agents of the pool install these (`Heartbeat.takes_wheels`)."""
_WHEEL: Final = ".whl"

_TARGET: Final = "target-"


def is_wheel(name: str) -> bool:
    """Tell whether a file of an environment's bundle is a wheel, by its name."""
    return name.endswith(_WHEEL)


def target_name(python: str, platform: str) -> str:
    """Return the name of the empty file that says what an environment's bundle was built for.

    `python`: a minor version, `3.12`. `platform`: as wheels name it.
    """
    return f"{_TARGET}{python}-{platform}"


def misfit_of(names: Iterable[str], python: str, machine: str) -> str | None:
    """Return why an environment's bundle with these files is not for a node; None when it is.

    The bundles of earlier versions do not say what they are for.
    """
    for name in names:
        if not name.startswith(_TARGET):
            continue
        built_for, _, platform = name.removeprefix(_TARGET).partition("-")
        if built_for != python or not platform.endswith(f"_{machine}"):
            return (
                f"it was built for Python {built_for} on {platform}, and this node has Python {python} on "
                f"{machine}: the client's agent.node_python and agent.node_platform say what the nodes have"
            )
    return None


@frozen
class EnvironmentDocument(Document):
    """An environment that was built for a pool, found by what it was locked to."""

    VERSION: ClassVar[int] = 1

    bundle: str
    """The hash of the bundle that has the packages."""
    python: str
    """The minor version of Python that it was built for."""
    platform: str
    """The platform, as wheels name it."""
    packages: tuple[str, ...]
    """Each as `name==version`."""
    size: int
    """Bytes of the bundle's files."""
    wheels: bool = False
    """Whether the bundle has wheels, which agents of earlier versions do not install."""


def environment_blob(key: str) -> str:
    """Return the blob of an environment's document in the control container."""
    return f"environments/{key}.json"
