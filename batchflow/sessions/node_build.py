"""Builds a package from its source on a node, as an ordinary task in the pool's own queue."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, Protocol

from batchflow.errors import EnvironmentFailed, TaskError

if TYPE_CHECKING:
    from batchflow.environments.requirements import Requirements
    from batchflow.environments.sources import SourceDistribution
    from batchflow.files import Files

TASK: Final = "build_wheel.py"


class SessionMaker(Protocol):
    """Makes another session of the pool."""

    def __call__(
        self, *, job: str, files: Files, requirements: Requirements
    ) -> AbstractAsyncContextManager[Any]: ...


async def build_wheel(open_session: SessionMaker, job: str, source: SourceDistribution) -> tuple[str, bytes]:
    """Return the name and the content of a wheel that a node has built from a source.

    Raises `EnvironmentFailed`, which names a compiler that the nodes have not. Safe to cancel.
    """
    files = {TASK: resources.files("batchflow.environments").joinpath(TASK).read_bytes()}
    async with open_session(job=job, files=files, requirements=source.requires) as session:
        try:
            name, content = await session.run(TASK, args=[source.package, source.data])
        except TaskError as error:
            raise EnvironmentFailed(f"{source.package} cannot be built on a node: {error}") from error
    if not isinstance(name, str) or not isinstance(content, bytes):
        raise EnvironmentFailed(f"{source.package}: what the node has built is no wheel")
    return name, content
