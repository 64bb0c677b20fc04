"""The pytest plugin, from the side of somebody who tests tasks of their own: each test is a run of pytest."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cloud import running_cloud

pytest_plugins = ["pytester"]

TASKS = {
    "tasks/square.py": """
        import asyncio
        from helpers import times

        def do_action(engine, args):
            engine.log("squaring")
            engine.progress(1, 2)
            (engine.outputs / "report.txt").write_text("done")
            return times(args[0], args[0]), "no error"
        """,
    "tasks/helpers.py": "def times(a, b): return a * b",
    "tasks/read.py": """
        from pathlib import Path

        def do_action(engine, args):
            return Path("numbers.txt").read_text()
        """,
    "tasks/numbers.txt": "1 2 3",
    "tasks/none.py": "x = 1",
}

ASYNC_TEST = """
    import pytest
    {mark}
    async def test_it(batchflow_client, batchflow_pool, batchflow_session):
        assert batchflow_session.pool_id == batchflow_pool.id
        assert batchflow_pool.runtime.connections is batchflow_client.connections
        assert await batchflow_session.run("square.py", 12) == 144

    {mark}
    async def test_again(batchflow_client, batchflow_session, batchflow_cloud):
        assert batchflow_client.settings.batch == batchflow_cloud.batch
        assert batchflow_session.counts.submitted == 0
        assert await batchflow_session.run("square.py", 3) == 9
    """


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project with a folder of tasks, the settings of which name it."""
    for name, text in TASKS.items():
        path = pytester.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(line[8:] if line[:8].isspace() else line for line in text.splitlines()))
    configure(pytester, "auto")
    return pytester


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A local cloud that several runs share: the configuration file that names it."""
    config = tmp_path_factory.mktemp("cloud") / "cloud.toml"
    with running_cloud(config, "--nodes", "1") as written:
        yield written


def configure(pytester: pytest.Pytester, asyncio_mode: str | None) -> None:
    """Settings with warnings as errors; without a mode the run is one without pytest-asyncio."""
    lines = ["[pytest]", "batchflow_files = tasks", "filterwarnings = error"]
    if asyncio_mode is None:
        lines += ["addopts = -p no:asyncio"]
    else:
        lines += [f"asyncio_mode = {asyncio_mode}", "asyncio_default_fixture_loop_scope = function"]
    pytester.makeini("\n".join(lines))


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments, timeout=250)


def test_engine_fixture_calls_a_task_in_the_test_process(project: pytest.Pytester) -> None:
    """The action finds its modules and files by name, and the test reads what it said to the engine."""
    project.makepyfile(
        """
        import sys

        import pytest

        def test_square(batchflow_action, batchflow_engine):
            assert batchflow_action("square.py")(batchflow_engine, [12]) == (144, "no error")
            assert batchflow_engine.logs == ["squaring"]
            assert batchflow_engine.steps == [(1, 2)]
            assert batchflow_engine.uploaded == ["report.txt"]

        def test_files_lie_in_the_current_directory(batchflow_action, batchflow_engine):
            assert batchflow_action("read.py")(batchflow_engine, []) == "1 2 3"

        def test_no_action(batchflow_action):
            with pytest.raises(Exception, match="has no do_action"):
                batchflow_action("none.py")

        def test_nothing_is_left(request):
            assert "helpers" not in sys.modules
            assert not any("batchflow" in entry and "tmp" in entry for entry in sys.path)
        """
    )
    run(project).assert_outcomes(passed=4)


@pytest.mark.parametrize(
    ("mode", "mark"),
    [
        pytest.param("auto", "", id="pytest-asyncio, auto"),
        pytest.param("strict", "@pytest.mark.asyncio", id="pytest-asyncio, strict"),
        pytest.param("strict", "@pytest.mark.anyio", id="anyio beside pytest-asyncio"),
        pytest.param(None, "@pytest.mark.anyio", id="anyio"),
    ],
)
def test_fixtures_open_client_pool_and_session_for_async_tests(
    project: pytest.Pytester, cloud: Path, mode: str | None, mark: str
) -> None:
    """They work with either plugin for async tests, in each of its modes."""
    configure(project, mode)
    project.makepyfile(ASYNC_TEST.format(mark=mark))
    project.makeconftest("import pytest\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'\n")
    run(project, f"--batchflow-config={cloud}").assert_outcomes(passed=2)


def test_overridden_files_run_on_a_cloud_that_the_run_starts(project: pytest.Pytester) -> None:
    """`batchflow_files` can be overridden; the run starts a local cloud of its own, and ends it."""
    project.makepyfile(
        """
        import pytest

        @pytest.fixture
        def batchflow_files():
            return {"own.py": b"def do_action(engine, args): return 'own'"}

        async def test_own(batchflow_session, batchflow_action, batchflow_engine):
            assert await batchflow_session.run("own.py") == "own"
            assert batchflow_action("own.py")(batchflow_engine, []) == "own"
        """
    )
    run(project).assert_outcomes(passed=1)


def test_config_option_uses_another_deployment(project: pytest.Pytester) -> None:
    """With `--batchflow-config` no cloud is started: the settings are those of the file."""
    (project.path / "other.toml").write_text('target = "azure"\n[batch]\naccount = "elsewhere"\n')
    project.makepyfile(
        """
        def test_elsewhere(batchflow_cloud):
            assert batchflow_cloud.batch.account == "elsewhere"
        """
    )
    run(project, "--batchflow-config", "other.toml").assert_outcomes(passed=1)


def test_wrong_configuration_is_named_without_a_traceback(project: pytest.Pytester) -> None:
    """An option in the file is no number."""
    project.makepyfile("def test_it(batchflow_cloud): pass")
    result = run(project, "-o", "batchflow_nodes=two")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["batchflow_nodes is 'two'; a whole number, at least 1, is needed"])


def test_missing_async_plugin_is_named(project: pytest.Pytester) -> None:
    """The test with a session is a plain one."""
    configure(project, None)
    project.makepyfile("def test_it(batchflow_session): pass")
    result = run(project)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*are for async tests*pytest.mark.anyio*"])


def test_run_on_trio_is_refused(project: pytest.Pytester) -> None:
    """batchflow runs on asyncio alone."""
    configure(project, None)
    project.makepyfile(ASYNC_TEST.format(mark="@pytest.mark.anyio"))
    project.makeconftest("import pytest\n@pytest.fixture\ndef anyio_backend(): return 'trio'\n")
    result = run(project)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*let a fixture `anyio_backend` of yours return 'asyncio'*"])


def test_fixtures_of_a_project_keep_their_names(project: pytest.Pytester) -> None:
    """A project's own `client`, `pool`, `session` and `engine` stay what they are."""
    project.makepyfile(
        """
        import pytest

        @pytest.fixture(params=["client", "pool", "session", "engine"])
        def name(request): return request.param

        def test_none(name, request):
            with pytest.raises(pytest.FixtureLookupError):
                request.getfixturevalue(name)
        """
    )
    run(project).assert_outcomes(passed=4)


def test_unused_plugin_loads_next_to_nothing() -> None:
    """It imports no loop, no HTTP, no SDK and no agent."""
    program = "import json, sys, pytest; known = set(sys.modules); import batchflow.pytest_plugin;"
    program += " print(json.dumps(sorted(set(sys.modules) - known)))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(printed.stdout) == ["batchflow", "batchflow.pytest_plugin"]
