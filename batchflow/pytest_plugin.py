"""Fixtures for the tests of tasks and of programs that use batchflow; pytest finds them by itself.

========================  =====================================================================
`batchflow_files`         the files of the tasks; override it, or set the option of that name
`batchflow_engine`        an engine to call a `do_action` with, in the test's own process
`batchflow_action`        a function that finds the `do_action` of a file by its name
`batchflow_cloud`         settings of a local cloud, one for the whole run, started when first used
`batchflow_client`        an open `Client` on it
`batchflow_pool`          a `Pool` with `batchflow_files`, its agents warm between tests
`batchflow_session`       an open `Session` in it, a mailbox of its own for each test
========================  =====================================================================

The last three are for async tests, with pytest-asyncio (in either mode) or with anyio's plugin on asyncio.

A run that uses none of this pays for importing this module, which imports nothing but pytest.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from batchflow.client import Client
    from batchflow.files import Files
    from batchflow.pool import Pool
    from batchflow.session import Session
    from batchflow.settings import Settings
    from node_agent.testing import RecordingEngine

POOL_ID: Final = "pytest"
"""The pool that all tests of a run share."""

_NO_ASYNC: Final = (
    "batchflow's client, pool and session are for async tests: mark the test with `pytest.mark.anyio`,"
    " or install pytest-asyncio"
)
_NOT_ASYNCIO: Final = (
    "batchflow runs on asyncio: let a fixture `anyio_backend` of yours return 'asyncio'; it is {!r} here"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the configuration file and of the command line."""
    group = parser.getgroup("batchflow")
    parser.addini(
        "batchflow_files", "what batchflow's tasks run with in tests: files and folders", "paths", []
    )
    parser.addini("batchflow_nodes", "nodes of batchflow's local cloud in tests", default="1")
    parser.addini("batchflow_slots", "tasks at once on a node of it", default="1")
    group.addoption(
        "--batchflow-config",
        metavar="FILE",
        help="test on what this configuration file describes instead of a local cloud",
    )
    group.addoption("--batchflow-profile", metavar="NAME", help="the profile in that file")


def pytest_configure(config: pytest.Config) -> None:
    """Register the async fixtures for pytest-asyncio too, if it is installed."""
    if config.pluginmanager.has_plugin("asyncio"):
        from pytest_asyncio import fixture

        config.pluginmanager.register(_async_fixtures(fixture, "asyncio"), "batchflow for asyncio")
    config.pluginmanager.register(_async_fixtures(pytest.fixture, "anyio"), "batchflow for anyio")


# ---- tasks, in the test's own process


@pytest.fixture(scope="session")
def batchflow_files(pytestconfig: pytest.Config) -> Files:
    """Return the files of the tasks: the option `batchflow_files`, relative to the configuration file.

    Override it with any value that `client.ensure_pool(files=...)` takes.
    """
    files: list[Path] = pytestconfig.getini("batchflow_files")
    return files


@pytest.fixture
def batchflow_engine(
    batchflow_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RecordingEngine:
    """Return an engine for a `do_action`. Its working directory has the files, and is the current directory.

    The reports of the task are in `logs`, `steps` and `uploaded`; `cancel()` makes `cancelled` true.
    """
    from batchflow.files import write_files
    from node_agent.testing import engine

    folder = tmp_path / "batchflow"
    write_files(batchflow_files, folder)
    monkeypatch.chdir(folder)
    return engine(folder)


@pytest.fixture
def batchflow_action(batchflow_engine: RecordingEngine) -> Iterator[Callable[[str], Any]]:
    """Return a function: `batchflow_action("square.py")` is the `do_action` of that file, as on a node.

    Raises `node_agent.child.modules.NoAction` when it has none, and any error of its import.
    """
    from node_agent.child.modules import Modules

    with _path_restored():
        modules = Modules()
        modules.use("batchflow test", str(batchflow_engine.working_dir))
        yield modules.action
        modules.use("none", str(batchflow_engine.outputs))


@contextmanager
def _path_restored() -> Iterator[None]:
    path = sys.path[:]
    try:
        yield
    finally:
        sys.path[:] = path


# ---- a local cloud


@pytest.fixture(scope="session")
def batchflow_cloud(pytestconfig: pytest.Config) -> Iterator[Settings]:
    """Return settings for a `Client`: of a local cloud for this run, or of the file `--batchflow-config`."""
    from batchflow.config.loader import load_settings

    config = pytestconfig.getoption("--batchflow-config")
    if config is not None:
        yield load_settings(config, profile=pytestconfig.getoption("--batchflow-profile"))
        return

    import asyncio

    from batchflow.local.launch import LocalCloudProcess

    nodes, slots = (_count(pytestconfig, f"batchflow_{name}") for name in ("nodes", "slots"))
    # With a factory of its own the runner leaves alone what other plugins have set as the current loop.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        cloud = LocalCloudProcess(nodes=nodes, slots=slots)
        try:
            yield load_settings(runner.run(cloud.start()), environment={})
        finally:
            runner.run(cloud.aclose())


def _count(config: pytest.Config, option: str) -> int:
    text = config.getini(option)
    if not text.isdecimal() or not int(text):
        pytest.fail(f"{option} is {text!r}; a whole number, at least 1, is needed", pytrace=False)
    return int(text)


@pytest.fixture
def batchflow_client(request: pytest.FixtureRequest) -> Client:
    """Open a client on `batchflow_cloud`; close it after the test."""
    client: Client = _async_value(request, "client")
    return client


@pytest.fixture
def batchflow_pool(request: pytest.FixtureRequest) -> Pool:
    """Return the pool that all tests share, with this test's `batchflow_files`. Does not wait for nodes."""
    pool: Pool = _async_value(request, "pool")
    return pool


@pytest.fixture
def batchflow_session(request: pytest.FixtureRequest) -> Session:
    """Open a session in `batchflow_pool`; close it after the test."""
    session: Session = _async_value(request, "session")
    return session


def _async_value(request: pytest.FixtureRequest, what: str) -> Any:
    """Return the value that the test's own async plugin opens for it."""
    if "anyio_backend" in request.fixturenames:
        backend = request.getfixturevalue("anyio_backend")
        if (backend if isinstance(backend, str) else backend[0]) != "asyncio":
            pytest.fail(_NOT_ASYNCIO.format(backend), pytrace=False)
        return request.getfixturevalue(f"_batchflow_{what}_anyio")
    if request.config.pluginmanager.has_plugin("asyncio"):
        return request.getfixturevalue(f"_batchflow_{what}_asyncio")
    return pytest.fail(_NO_ASYNC, pytrace=False)


def _async_fixtures(fixture: Callable[..., Any], plugin: str) -> ModuleType:
    """Make fixtures of the client, the pool and the session for one async plugin."""

    @fixture(name=f"_batchflow_client_{plugin}")  # type: ignore[untyped-decorator]
    async def client(batchflow_cloud: Settings) -> AsyncIterator[Client]:
        from batchflow.client import Client

        async with Client(batchflow_cloud) as client:
            yield client

    @fixture(name=f"_batchflow_pool_{plugin}")  # type: ignore[untyped-decorator]
    async def pool(batchflow_client: Client, batchflow_files: Files) -> Pool:
        return await batchflow_client.ensure_pool(POOL_ID, files=batchflow_files)

    @fixture(name=f"_batchflow_session_{plugin}")  # type: ignore[untyped-decorator]
    async def session(batchflow_pool: Pool, batchflow_files: Files) -> AsyncIterator[Session]:
        async with batchflow_pool.session(files=batchflow_files) as session:
            yield session

    module = ModuleType(f"batchflow_for_{plugin}")
    vars(module).update(client=client, pool=pool, session=session)
    return module
