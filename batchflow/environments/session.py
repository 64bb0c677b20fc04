"""The environment of one session: ready in the pool before its first task is sent."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from batchflow.environments.builder import EnvironmentBuilder, LockedEnvironment, pack, summary
from batchflow.environments.requirements import Requirements, read_requirements
from batchflow.environments.sources import SourceDistribution
from batchflow.environments.user_cache import user_cache
from batchflow.environments.uv import NoWheel, TargetPython
from batchflow.environments.wheels import WheelsUnknown
from batchflow.errors import BatchflowError, BlobNotFound, EnvironmentFailed
from batchflow.files import BundleSource, is_young, source_of, upload
from batchflow.protocol.bundle import BundleFile, bundle_blob
from batchflow.protocol.documents import DefaultPackages, PackageLock
from batchflow.protocol.environments import (
    ARCHIVE,
    EnvironmentDocument,
    environment_blob,
    is_wheel,
    target_name,
)
from batchflow.protocol.functions import PYTHON
from batchflow.support.event_log import event_logger
from batchflow.support.threads import in_thread

if TYPE_CHECKING:
    from batchflow.environments.requirements import RequirementSet
    from batchflow.ports.storage import Container
    from batchflow.settings import AgentSettings

NodeBuild = Callable[[SourceDistribution], Awaitable[tuple[str, bytes]]]
"""Builds a wheel on a node of the pool; returns its name and content. Raises `EnvironmentFailed`."""
AskAgents = Callable[[], Awaitable[bool | None]]

logger = event_logger(__name__)

_MB: Final = 1e6

_USUAL_PYTHON: Final = "3.12"
"""The version on nodes of which nothing is known: that of Ubuntu 24.04."""


async def _no_agents() -> None:
    return None


def environments_for(
    agent: AgentSettings,
    of_pool: str | None,
    agents_take_wheels: AskAgents = _no_agents,
    *,
    carried: bool = False,
) -> PoolEnvironments:
    """Return the environments of a pool, built with this user's cache.

    `of_pool`, `carried`: see `known_python`. `agents_take_wheels`: asks whether all living agents install
    wheels; None: no agent lives.
    """
    builder = EnvironmentBuilder(user_cache() / "environments")
    return PoolEnvironments(builder, target_of(agent, of_pool, carried=carried), agents_take_wheels)


def known_python(agent: AgentSettings, of_pool: str | None, *, carried: bool = False) -> str | None:
    """Return the minor version of Python on a pool's nodes; None when it is not known.

    `of_pool`: that of its manifest. It is our own where the settings name the agents' interpreter.
    `carried`: whether agents bring that of the manifest, whatever the settings say.
    """
    if carried:
        return of_pool
    return PYTHON if agent.python is not None else agent.node_python or of_pool


def target_of(agent: AgentSettings, of_pool: str | None, *, carried: bool = False) -> TargetPython:
    """Return what a pool's nodes run, as far as it is known. The arguments are those of `known_python`."""
    return TargetPython(known_python(agent, of_pool, carried=carried) or _USUAL_PYTHON, agent.node_platform)


class PoolEnvironments:
    """The environments of one pool: each is built and uploaded by whoever needs it first."""

    def __init__(
        self,
        builder: EnvironmentBuilder,
        target: TargetPython,
        agents_take_wheels: AskAgents,
    ) -> None:
        self._builder = builder
        self._target = target
        self._agents_take_wheels = agents_take_wheels
        self._present: dict[str, str] = {}
        """The bundles of environments that are known to be in the pool, by their keys."""
        self._arriving: dict[str, asyncio.Lock] = {}
        """Held while an environment is brought, by its key, so that none is uploaded twice."""

    async def bundle(
        self,
        requirements: Requirements,
        ctl: Container,
        report: Callable[[str], object],
        build: NodeBuild | None = None,
    ) -> str | None:
        """Return the hash of the bundle of an environment that is in the pool; None when nothing is required.

        `build`: builds what has no wheel, on a node; None: that is refused. Raises `ConfigurationError` for
        what is no requirement, `EnvironmentFailed`, `StorageError`. Safe to cancel.
        """
        wanted = await in_thread(read_requirements, requirements)
        if wanted is None:
            return None
        return await self._bundle_of(await self._lock(wanted, report), ctl, report, build)

    async def default_bundle(
        self,
        default: DefaultPackages,
        ctl: Container,
        report: Callable[[str], object],
        build: NodeBuild | None = None,
    ) -> str | None:
        """Do as `bundle` for the packages of a pool or a job."""
        if (lock := default.lock) is None:
            return await self.bundle(default.requirements, ctl, report, build)
        target = TargetPython(lock.python, lock.platform)
        return await self._bundle_of(LockedEnvironment(lock.text, target), ctl, report, build)

    async def defaults(self, requirements: Requirements) -> DefaultPackages:
        """Return the packages of a pool or a job, for clients that do not have its file: that is locked here.

        Raises `ConfigurationError` for what is no requirement, `EnvironmentFailed`. Safe to cancel.
        """
        wanted = await in_thread(read_requirements, requirements)
        if wanted is None:
            return DefaultPackages()
        if wanted.kind == "list" and not wanted.pinned:
            return DefaultPackages(tuple(wanted.text.splitlines()))
        locked = await self._lock(wanted, lambda line: None)
        lock = PackageLock(locked.public_text, locked.target.python, locked.target.platform)
        return DefaultPackages(lock=lock)

    async def _lock(self, wanted: RequirementSet, report: Callable[[str], object]) -> LockedEnvironment:
        try:
            return await self._builder.lock(wanted, self._target, report)
        except OSError as error:
            raise EnvironmentFailed(f"the required packages cannot be resolved here: {error}") from error

    async def _bundle_of(
        self,
        locked: LockedEnvironment,
        ctl: Container,
        report: Callable[[str], object],
        build: NodeBuild | None,
    ) -> str | None:
        if not locked.packages:
            return None
        async with self._arriving.setdefault(locked.key, asyncio.Lock()):
            if (known := self._present.get(locked.key)) is None:
                known = self._present[locked.key] = await self._bring(locked, ctl, report, build)
        return known

    async def _bring(
        self,
        locked: LockedEnvironment,
        ctl: Container,
        report: Callable[[str], object],
        build: NodeBuild | None,
    ) -> str:
        try:
            found = EnvironmentDocument.decode((await ctl.get(environment_blob(locked.key))).data)
            unfit = found.wheels and await self._agents_take_wheels() is False
            if not unfit and await is_young(ctl, bundle_blob(found.bundle)):
                return found.bundle
        except BlobNotFound:
            pass  # this is the first client that needs it
        try:
            if (wheels := await self._wheels(locked, report)) is not None:
                return await _upload(locked, wheels, ctl, report)
            return await _upload_archive(locked, await self._builder.build(locked, report), ctl, report)
        except NoWheel as error:
            if build is None:
                raise
            missing = error
        except OSError as error:
            raise EnvironmentFailed(f"the environment cannot be built here: {error}") from error
        with tempfile.TemporaryDirectory(prefix="batchflow-") as folder:
            archive = await self._build_on_node(locked, missing, Path(folder), ctl, report, build)
            return await _upload_archive(locked, archive, ctl, report)

    async def _wheels(
        self, locked: LockedEnvironment, report: Callable[[str], object]
    ) -> list[BundleSource] | None:
        """Return the wheels for nodes to install; None where an archive is to be made of them here.

        An archive is for agents of earlier versions, and for packages whose wheels only uv can fetch. While
        no agent lives, it is not known what they install, and there is time.
        """
        if not await self._agents_take_wheels():
            return None
        try:
            found = await self._builder.wheels(locked, report)
        except (WheelsUnknown, EnvironmentFailed) as error:
            logger.info("wheels_unknown", extra={"error": str(error)})
            return None
        return [
            BundleSource(BundleFile(wheel.name, wheel.sha256, (await anyio.Path(path).stat()).st_size), path)
            for wheel, path in found.items()
        ]

    async def _build_on_node(
        self,
        locked: LockedEnvironment,
        missing: NoWheel,
        folder: Path,
        ctl: Container,
        report: Callable[[str], object],
        build: NodeBuild,
    ) -> Path:
        """Return an archive with wheels that nodes built. It is of use in their pool alone.

        The user's cache never has it: code on a node can forge what it builds, within its pool.
        """
        wheels: dict[str, Path] = {}
        while True:
            for package in missing.packages:
                if package in wheels:
                    raise missing
                source = await self._builder.source_of(package, locked, folder)
                await self.bundle(source.requires, ctl, report)  # refused, if it has no wheel itself
                report(f"building {package} on a node, from its source")
                name, content = await build(source)
                wheels[package] = folder / Path(name).name
                await anyio.Path(wheels[package]).write_bytes(content)
            site = folder / f"environment-{len(wheels)}"
            site.mkdir()
            try:
                await self._builder.install(locked, site, report, wheels)
                break
            except NoWheel as error:
                missing = error
        await in_thread(pack, site, folder / ARCHIVE)
        return folder / ARCHIVE


async def _upload_archive(
    locked: LockedEnvironment, archive: Path, ctl: Container, report: Callable[[str], object]
) -> str:
    return await _upload(locked, [await in_thread(source_of, ARCHIVE, archive)], ctl, report)


async def _upload(
    locked: LockedEnvironment, sources: list[BundleSource], ctl: Container, report: Callable[[str], object]
) -> str:
    """Bring packages into the pool, and the document that names them; return the hash of their bundle."""
    size = sum(source.file.size for source in sources)
    report(f"uploading an environment: {summary(locked.packages)}, {size / _MB:.0f} MB")
    target = target_name(locked.target.python, locked.target.platform)
    bundle = await upload([*sources, source_of(target, b"")], ctl)
    document = EnvironmentDocument(
        bundle.hash,
        locked.target.python,
        locked.target.platform,
        locked.packages,
        size,
        wheels=any(is_wheel(source.file.name) for source in sources),
    )
    await ctl.put(environment_blob(locked.key), document.encode())
    report(f"the environment is in the pool: {summary(locked.packages)}")
    return bundle.hash


class SessionEnvironment:
    """What the tasks of one session require, and whether it is in the pool."""

    def __init__(self, requirements: Requirements | None) -> None:
        """Raises `ConfigurationError` for a list that holds what is no requirement."""
        self._requirements = None if requirements is None else checked(requirements)
        self._settled = asyncio.Event()
        self.bundle: str | None = None
        """The hash of the environment's bundle; None: tasks run with what the nodes have."""
        self.failure: str | None = None
        """Why no task can be sent."""
        self.job_default: DefaultPackages | None = None
        """The packages of the job; None: the job does not say."""
        self.progress: str | None = None
        """What is done at this moment, until it is settled."""

    @property
    def settled(self) -> bool:
        """Whether `bundle` or `failure` is known."""
        return self._settled.is_set()

    async def wait(self) -> None:
        """Return when it is settled. Safe to cancel."""
        await self._settled.wait()

    async def prepare(
        self,
        default: Callable[[], Awaitable[DefaultPackages]],
        environments: Callable[[], PoolEnvironments],
        ctl: Container,
        report: Callable[[str], object],
        build: NodeBuild,
    ) -> None:
        """Have the environment in the pool. A failure is kept, because it is the tasks' outcome.

        `default`: the packages of the job or the pool, for a session that has none of its own. `report` gets
        a line for each step that takes long. `build`: builds on a node what has no wheel.
        """

        def tell(line: str) -> None:
            self.progress = line
            report(line)

        try:
            if self._requirements is not None:
                if self._requirements != ():
                    self.bundle = await environments().bundle(self._requirements, ctl, tell, build)
            elif (packages := await default()) != DefaultPackages():
                self.bundle = await environments().default_bundle(packages, ctl, tell, build)
        except BatchflowError as error:
            self.failure = f"its environment failed: {error}"
        except BaseException:
            self.failure = "its environment was not ready when the session ended"
            raise
        finally:
            self.progress = None
            self._settled.set()

    async def bring(
        self,
        requirements: Requirements,
        environments: PoolEnvironments,
        ctl: Container,
        report: Callable[[str], object],
        build: NodeBuild,
    ) -> str | None:
        """Have other packages in the pool; return their bundle for `use`. Tasks run with those until now.

        Raises `ConfigurationError`, `EnvironmentFailed`, `StorageError`. Safe to cancel.
        """
        wanted = checked(requirements)
        await self.wait()
        return None if wanted == () else await environments.bundle(wanted, ctl, report, build)

    def use(self, bundle: str | None) -> None:
        """Let the tasks that are submitted from now on run with what `bring` returned."""
        self.bundle, self.failure = bundle, None


def checked(requirements: Requirements) -> Requirements:
    """Return requirements that can be read more than once.

    Raises `ConfigurationError` for a list that holds what is no requirement. Files are not read.
    """
    if isinstance(requirements, str | os.PathLike):
        return requirements
    requirements = tuple(requirements) if isinstance(requirements, Iterable) else requirements
    read_requirements(requirements)
    return requirements
