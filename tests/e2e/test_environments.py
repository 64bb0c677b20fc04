"""Packages that tasks require: locked and built by the client, unpacked by the agents."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from batchflow import Client, ConfigurationError, Pool, PoolSpec, Session, TaskError
from batchflow.environments.session import environments_for
from batchflow.errors import EnvironmentFailed
from batchflow.files import stored
from batchflow.protocol.environments import ARCHIVE, EnvironmentDocument
from tests.support.wheels import make_source, make_wheel, requirements_file


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, so that each test locks and builds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    make_wheel(folder, "depth_u", "1.0", "def twice(x):\n    return 2 * x\n")
    make_wheel(folder, "price_u", "1.0", "from depth_u import twice\nVERSION = 1\n", "depth_u")
    make_wheel(folder, "price_u", "2.0", "from depth_u import twice\nVERSION = 2\n", "depth_u")
    return folder


@asynccontextmanager
async def _session(pool: Pool, requirements: Any) -> AsyncIterator[Session]:
    async with pool.session(f"test-{uuid.uuid4().hex[:8]}", requirements=requirements) as session:
        yield session


def _by_value() -> Callable[[], list[Any]]:
    """Return a function that takes no files along: of one of this module, all tests would travel."""

    def versions() -> list[Any]:
        import os

        import price_u  # type: ignore[import-not-found]

        return [price_u.VERSION, price_u.twice(21), price_u.__file__, os.getpid()]

    return versions


_versions = _by_value()


async def test_tasks_find_what_their_session_requires_and_never_what_another_does(
    pool: Pool, wheels: Path
) -> None:
    async with (
        _session(pool, requirements_file(wheels, "price_u==1.0")) as same,
        _session(pool, None) as without,
    ):
        version, value, file, _ = await same.run(_versions)
        assert (version, value) == (1, 42)
        assert "environments" in file
        with pytest.raises(TaskError, match="No module named 'price_u'"):
            await without.run(_versions)
        async with _session(pool, requirements_file(wheels, "price_u==2.0")) as second:
            processes = set[int]()
            for _ in range(4):
                for session, expected in ((second, 2), (same, 1)):
                    version, _, _, process = await session.run(_versions)
                    assert version == expected
                    processes.add(process)
            assert len(processes) <= 4  # one for each environment and slot: none is started anew


async def test_agents_of_earlier_versions_get_an_archive_and_others_wheels(
    pool: Pool, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the pool for the ones is of use for the others, but not the other way round."""
    runtime = pool.runtime
    for version in ("1.0", "2.0"):
        make_wheel(wheels, "form_u", version, f"VERSION = {version}\n")

    def imported() -> float:
        import form_u  # type: ignore[import-not-found]

        return float(form_u.VERSION)

    async def _earlier() -> bool:
        return False

    async def run(version: int, *, earlier: bool) -> set[str]:
        with monkeypatch.context() as patched:
            if earlier:
                agent, python = runtime.settings.agent, runtime.manifest.python
                patched.setattr(runtime, "environments", environments_for(agent, python, _earlier))
            async with _session(pool, requirements_file(wheels, f"form_u=={version}.0")) as session:
                assert await session.run(imported) == version
        return await _files_of_environments(pool)

    first, second = (f"form_u-{version}.0-py3-none-any.whl" for version in (1, 2))
    found = await run(2, earlier=True)
    assert (ARCHIVE in found, second in found) == (True, False)
    assert second not in await run(2, earlier=False)
    assert first in await run(1, earlier=False)
    assert first not in await run(1, earlier=True)


async def _files_of_environments(pool: Pool) -> set[str]:
    ctl, found = pool.runtime.ctl, set[str]()
    async for info in ctl.list("environments/"):
        bundle = await stored(EnvironmentDocument.decode((await ctl.get(info.name)).data).bundle, ctl)
        found |= {file.name for file in bundle.files}
    return found


async def test_what_cannot_be_resolved_is_each_tasks_outcome_in_the_resolvers_words(
    pool: Pool, wheels: Path
) -> None:
    async with _session(pool, requirements_file(wheels, "price_u", "absent_u")) as session:
        task = await session.submit(_versions)
        outcome = await task.outcome()

    assert outcome.kind == "SubmitFailed"
    assert "absent-u" in (outcome.error or "") or "absent_u" in (outcome.error or "")


async def test_what_is_no_requirement_is_refused_at_once(pool: Pool) -> None:
    with pytest.raises(ConfigurationError, match="'--index-url=x' is an option"):
        pool.session(requirements=["--index-url=x"])
    with pytest.raises(ConfigurationError, match="a requirement such as"):
        pool.session(requirements=["numpy", ""])
    with pytest.raises(ConfigurationError, match=r'"current" is needed'):
        pool.session(requirements=3)  # type: ignore[arg-type]


async def test_other_requirements_of_a_pool_are_those_of_new_sessions_and_reboot_nothing(
    client: Client, cloud_config: Path, name: str, wheels: Path
) -> None:
    """The file is locked by who names it: other clients do not have it."""
    file = requirements_file(wheels, "price_u==1.0")
    pool = await client.ensure_pool(name, nodes=1, spec=PoolSpec(name, requirements=file))
    async with _session(pool, None) as old:
        assert (await old.run(_versions))[0] == 1
        before = await client.connections.compute.nodes(name)

        file.write_text(file.read_text().replace("==1.0", "==2.0"))
        changed = await client.ensure_pool(name, spec=PoolSpec(name, requirements=str(file)))
        assert "other requirements than before" in changed.origin.why
        assert (await client.ensure_pool(name, spec=PoolSpec(name))).origin.choice == "reused"
        file.unlink()
        async with (
            Client.from_config(cloud_config) as other,
            _session(await other.pool(name), None) as new,
        ):
            assert (await new.run(_versions))[0] == 2
            assert (await old.run(_versions))[0] == 1
        assert await client.connections.compute.nodes(name) == before

    await client.ensure_pool(name, spec=PoolSpec(name, requirements=[]))
    async with _session(pool, None) as bare:
        with pytest.raises(TaskError, match="No module named 'price_u'"):
            await bare.run(_versions)


async def test_files_are_changed_together_with_their_requirements(pool: Pool, wheels: Path) -> None:
    files = {"version.py": b"import price_u\ndef do_action(engine, args): return price_u.VERSION\n"}
    async with _session(pool, None) as session:
        await session.update_files(files, requirements=requirements_file(wheels, "price_u==1.0"))
        assert await session.run("version.py") == 1
        with pytest.raises(EnvironmentFailed, match="price-u==7"):
            await session.update_files(files, requirements=requirements_file(wheels, "price_u==7"))
        assert await session.run("version.py") == 1
        with pytest.raises(ConfigurationError, match="a requirement such as"):
            await session.update_files(files, requirements=[""])


async def test_building_is_told_in_events_and_explained_where_it_fails(pool: Pool, wheels: Path) -> None:
    async with _session(pool, requirements_file(wheels, "price_u")) as session:
        events = session.events()
        await session.run(_versions)
        told = [await anext(events)]
        while not told[-1].message.startswith("the environment is in the pool: depth-u, price-u"):
            told.append(await anext(events))
        assert {event.kind for event in told} == {"progress"}
        assert "uploading an environment: depth-u, price-u, 0 MB" in [event.message for event in told]
    async with _session(pool, requirements_file(wheels, "absent_u")) as session:
        await (await session.submit(_versions)).outcome()
        explanation = str(await session.explain())
    assert "its environment failed" in explanation
    assert "absent-u" in explanation
    assert "update_files(files, requirements=...)" in explanation


async def test_what_has_no_wheel_is_built_on_a_node_from_the_source_that_the_client_fetched(
    pool: Pool, wheels: Path
) -> None:
    """As an ordinary task. Without a compiler it is refused by name."""
    wheel = make_wheel(wheels, "built_u", "1.0", "VERSION = 5\nfrom depth_u import twice\n")
    content = wheel.read_bytes()
    wheel.unlink()
    make_source(
        wheels,
        "built_u",
        "1.0",
        f"open(out + '/{wheel.name}', 'wb').write({content!r})\nreturn {wheel.name!r}",
    )
    make_source(wheels, "compiled_u", "1.0", "import subprocess\nsubprocess.run(['no-such-gcc'], check=True)")

    def built() -> list[Any]:
        import built_u  # type: ignore[import-not-found]

        return [built_u.VERSION, built_u.twice(4)]

    async with _session(pool, requirements_file(wheels, "built_u", "depth_u")) as session:
        events = session.events()
        assert await session.run(built) == [5, 8]
        while (await anext(events)).message != "building built-u==1.0 on a node, from its source":
            pass
    async with _session(pool, requirements_file(wheels, "compiled_u")) as session:
        outcome = await (await session.submit(built)).outcome()
    assert outcome.kind == "SubmitFailed"
    assert "compiled-u==1.0 has no wheel for the nodes" in (outcome.error or "")
    assert "a compiler that they have not (no-such-gcc)" in (outcome.error or "")


async def test_requirements_of_a_job_are_those_of_its_sessions_that_do_not_say(
    pool: Pool, wheels: Path
) -> None:
    """The file is needed no more when the job has been made."""
    file = requirements_file(wheels, "price_u==2.0")
    job = await pool.create_job(f"job-{uuid.uuid4().hex[:8]}", requirements=file)
    file.unlink()
    async with job.session() as session:
        assert (await session.run(_versions))[0] == 2
    async with job.session(requirements=[]) as session:
        with pytest.raises(TaskError, match="No module named 'price_u'"):
            await session.run(_versions)
    await job.delete()
