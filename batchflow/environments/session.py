"""The environment of one session: ready in the pool before its first task is sent."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from batchflow.environments.builder import EnvironmentBuilder, LockedEnvironment, summary
from batchflow.environments.requirements import Requirements, read_requirements
from batchflow.environments.uv import TargetPython
from batchflow.errors import BatchflowError, BlobNotFound, EnvironmentFailed
from batchflow.files import is_young, source_of, upload
from batchflow.protocol.bundle import bundle_blob
from batchflow.protocol.environments import ARCHIVE, EnvironmentDocument, environment_blob
from batchflow.protocol.functions import PYTHON
from batchflow.support.threads import in_thread

if TYPE_CHECKING:
    from batchflow.ports.storage import Container
    from batchflow.settings import AgentSettings

_MB: Final = 1e6


def target_of(agent: AgentSettings) -> TargetPython:
    """Return what the nodes run: our own Python where it is the agents', else what the settings say."""
    if agent.python is not None:
        return TargetPython(PYTHON, agent.node_platform)
    return TargetPython(agent.node_python, agent.node_platform)


class PoolEnvironments:
    """The environments of one pool: each is built and uploaded by whoever needs it first."""

    def __init__(self, builder: EnvironmentBuilder, target: TargetPython) -> None:
        self._builder = builder
        self._target = target
        self._present: dict[str, str] = {}
        """The bundles of environments that are known to be in the pool, by their keys."""

    async def bundle(
        self, requirements: Requirements, ctl: Container, report: Callable[[str], object]
    ) -> str | None:
        """Return the hash of the bundle of an environment that is in the pool; None when nothing is required.

        Raises `ConfigurationError` for what is no requirement, `EnvironmentFailed`, `StorageError`. Safe to
        cancel.
        """
        wanted = await in_thread(read_requirements, requirements)
        if wanted is None:
            return None
        locked = await self._builder.lock(wanted, self._target)
        if not locked.packages:
            return None
        if (known := self._present.get(locked.key)) is None:
            known = self._present[locked.key] = await self._bring(locked, ctl, report)
        return known

    async def _bring(self, locked: LockedEnvironment, ctl: Container, report: Callable[[str], object]) -> str:
        blob = environment_blob(locked.key)
        try:
            found = EnvironmentDocument.decode((await ctl.get(blob)).data).bundle
            if await is_young(ctl, bundle_blob(found)):
                return found
        except BlobNotFound:
            pass  # this is the first client that needs it
        try:
            archive = await self._builder.build(locked, report)
            source = await in_thread(source_of, ARCHIVE, archive)
        except OSError as error:
            raise EnvironmentFailed(f"the environment cannot be built here: {error}") from error
        size = source.file.size
        report(f"uploading an environment: {summary(locked.packages)}, {size / _MB:.0f} MB")
        bundle = await upload([source], ctl)
        document = EnvironmentDocument(
            bundle.hash, locked.target.python, locked.target.platform, locked.packages, size
        )
        await ctl.put(blob, document.encode())
        report(f"the environment is in the pool: {summary(locked.packages)}")
        return bundle.hash


class SessionEnvironment:
    """What the tasks of one session require, and whether it is in the pool."""

    def __init__(self, requirements: Requirements | None) -> None:
        """Raises `ConfigurationError` for a list that holds what is no requirement."""
        if requirements is not None and not isinstance(requirements, str | os.PathLike):
            requirements = tuple(requirements) if isinstance(requirements, Iterable) else requirements
            read_requirements(requirements)
        self._requirements = requirements
        self._settled = asyncio.Event()
        self.bundle: str | None = None
        """The hash of the environment's bundle; None: tasks run with what the nodes have."""
        self.failure: str | None = None
        """Why no task can be sent."""

    @property
    def settled(self) -> bool:
        """Whether `bundle` or `failure` is known."""
        return self._settled.is_set()

    async def wait(self) -> None:
        """Return when it is settled. Safe to cancel."""
        await self._settled.wait()

    async def prepare(
        self,
        default: Requirements | None,
        environments: Callable[[], PoolEnvironments],
        ctl: Container,
        report: Callable[[str], object],
    ) -> None:
        """Have the environment in the pool. A failure is kept, because it is the tasks' outcome.

        `default`: the pool's requirements, for a session that has none of its own. `report` gets a line for
        each step that takes long.
        """
        requirements = default if self._requirements is None else self._requirements
        try:
            if requirements is not None and requirements != ():
                self.bundle = await environments().bundle(requirements, ctl, report)
        except BatchflowError as error:
            self.failure = f"its environment failed: {error}"
            report(self.failure)
        except BaseException:
            self.failure = "its environment was not ready when the session ended"
            raise
        finally:
            self._settled.set()
