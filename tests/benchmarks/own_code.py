"""Functions, arrays and packages: each beside what does the same without batchflow, in one run."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from uv import find_uv_bin

from batchflow import Client, Pool, Session
from tests.benchmarks.contest import ENTRANTS, OURS, Entrant
from tests.benchmarks.harness import SETTLED, Figure
from tests.benchmarks.process import CONTENDERS, OWN_PYTHON, ContenderProcess
from tests.benchmarks.servers import SERVERS

if TYPE_CHECKING:
    from tests.benchmarks.cases import Effort

sys.path.insert(0, str(CONTENDERS))
# By its own name it is a module of one file, which travels with its functions.
import work  # type: ignore[import-not-found]

FUNCTIONS: Final = Entrant(OURS, "on_functions.py", "batchflow", is_own=True)
PACKAGES: Final = ("numpy", "pandas")
WORKERS: Final = 2
SESSIONS: Final = 100
PATIENCE: Final = 120.0


async def functions(session: Session, effort: Effort) -> AsyncIterator[Figure]:
    """A no-op function beside a no-op file: in bulk and one at a time, in turns."""
    rates: dict[Any, list[float]] = {"noop.py": [], work.noop: []}
    trips: dict[Any, list[float]] = {"noop.py": [], work.noop: []}
    for command in rates:
        await session.map(command, range(effort.tasks // 10)).collect()
    for number in range(2 * effort.runs):
        for command in sorted(rates, key=str, reverse=bool(number % 2)):
            started = time.perf_counter()
            await session.map(command, range(effort.tasks)).collect()
            rates[command].append(effort.tasks / (time.perf_counter() - started))
            for _ in range(effort.round_trips // 5):
                started = time.perf_counter()
                await session.run(command, args=[0])
                trips[command].append((time.perf_counter() - started) * 1e3)
    for name, command in (("file", "noop.py"), ("function", work.noop)):
        yield Figure(f"no-op {name} through map, {effort.tasks:,}", rates[command], "tasks/s")
        yield Figure(f"no-op {name}: round trip", trips[command], "ms")
    pairs = zip(rates[work.noop], rates["noop.py"], strict=True)
    yield Figure("  function of the file's rate", [ours / file for ours, file in pairs], "", at_least=0.85)
    ratio = _median(trips[work.noop]) / _median(trips["noop.py"])
    yield Figure("  function of the file's round trip", [ratio], "", at_most=1.15)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def arrays(effort: Effort) -> Iterator[Figure]:
    """An array of 1 MB there and back beside Dask and Ray; one of 100 MB beside the Blob SDK alone."""
    rates: dict[str, list[float]] = {}
    names = (FUNCTIONS.name, "Dask", "Ray")
    entrants = [each for each in (FUNCTIONS, *ENTRANTS[1:]) if each.name in names and each.installed]
    for number in range(effort.runs):
        first = number % len(entrants)
        for entrant in entrants[first:] + entrants[:first]:
            with (
                SERVERS[entrant.server]() as server,
                ContenderProcess(entrant.program, entrant.python, server) as contender,
            ):
                contender.start(PATIENCE)
                contender.measure("array", max(2, effort.arrays // 10), PATIENCE)
                time.sleep(SETTLED)
                taken = contender.measure("array", effort.arrays, PATIENCE)
                rates.setdefault(entrant.name, []).append(effort.arrays / taken)
    for name, values in rates.items():
        yield Figure(f"arrays of 1 MB in and out: {name}", values, "/s")
    if "Dask" in rates:
        ratios = [ours / dask for ours, dask in zip(rates[names[0]], rates["Dask"], strict=True)]
        yield Figure("  of Dask's rate, in each round", ratios, "", at_least=1.0)
    yield from asyncio.run(_large_array(effort))


async def _large_array(effort: Effort) -> list[Figure]:
    import numpy as np

    array = np.random.default_rng(0).standard_normal(effort.large_array // 8)
    ours, alone = [], []
    async with _warm_pool(nodes=1) as pool, pool.session() as session:
        await session.run(work.echo, array[:10])
        for _ in range(effort.runs + 1):
            alone.append(await _blob_sdk_alone(pool, array))
            started = time.perf_counter()
            back = await session.run(work.echo, array)
            ours.append(time.perf_counter() - started)
            assert back.shape == array.shape
            assert back[-1] == array[-1]
    size = f"{array.nbytes / 1e6:.0f} MB"
    return [
        Figure(f"an array of {size} in and out", ours[1:], "s"),
        Figure(f"the Blob SDK alone: {size} up and down, twice", alone[1:], "s"),
        Figure(
            "  of its speed, in each round",
            [sdk / own for own, sdk in zip(ours[1:], alone[1:], strict=True)],
            "",
            at_least=0.7,
        ),
    ]


async def _blob_sdk_alone(pool: Pool, array: Any) -> float:
    """Seconds for what an array does: from the client to a node and back, each way through a blob."""
    from azure.storage.blob.aio import ContainerClient

    settings = pool.runtime.settings.storage
    assert settings.connection_string is not None
    options: dict[str, Any] = {} if settings.ca_file is None else {"connection_verify": settings.ca_file}
    made = ContainerClient.from_connection_string(
        settings.connection_string, pool.runtime.manifest.ctl, **options
    )
    async with made as container:
        data = array.tobytes()
        started = time.perf_counter()
        for name in ("bench-there", "bench-back"):
            await container.upload_blob(name, data, overwrite=True, max_concurrency=4)
            data = await (await container.download_blob(name, max_concurrency=4)).readall()
        taken = time.perf_counter() - started
        for name in ("bench-there", "bench-back"):
            await container.delete_blob(name)
    return taken


def packages(effort: Effort) -> Iterator[Figure]:
    """From `requirements` to the first result, beside `uv venv` and `uv pip install`; then more sessions."""
    plain, first = [], []
    for _ in range(effort.runs):
        with tempfile.TemporaryDirectory() as cold:
            plain.append(_plain_uv(Path(cold)))
        with tempfile.TemporaryDirectory() as cold, _caches(Path(cold)):
            first.append(asyncio.run(_first_with_packages()))
    yield Figure("uv venv, uv pip install numpy pandas, import: cold cache", plain, "s")
    yield Figure("requirements numpy, pandas until the first result: the same", first, "s")
    ratios = [ours / uv for ours, uv in zip(first, plain, strict=True)]
    yield Figure("  of uv's time, in each round", ratios, "", at_most=1.3)
    with tempfile.TemporaryDirectory() as cold, _caches(Path(cold)):
        yield from asyncio.run(_more_sessions(effort))


@contextmanager
def _caches(folder: Path) -> Iterator[None]:
    """Keep the caches of this process, and of what it starts, in an empty folder."""
    wanted = {"XDG_CACHE_HOME": str(folder), "UV_CACHE_DIR": str(folder / "uv")}
    before = {name: os.environ.pop(name, None) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _plain_uv(folder: Path) -> float:
    environment = {**os.environ, "UV_CACHE_DIR": str(folder / "cache")}
    python = str(folder / "venv" / "bin" / "python")
    started = time.perf_counter()
    for command in (
        [find_uv_bin(), "venv", "--quiet", "--python", sys.executable, str(folder / "venv")],
        [find_uv_bin(), "pip", "install", "--quiet", "--python", python, *PACKAGES],
        [python, "-c", "import numpy, pandas; print(pandas.Series(numpy.arange(3)).sum())"],
    ):
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


@asynccontextmanager
async def _warm_pool(nodes: int = WORKERS) -> AsyncIterator[Pool]:
    async with Client.local(nodes=nodes) as client:
        pool = await client.ensure_pool("bench", nodes=nodes)
        await pool.wait_ready(nodes)
        async with pool.session() as session:
            await session.map(work.noop, range(100)).collect()
        yield pool


async def _first_with_packages() -> float:
    async with _warm_pool() as pool:
        started = time.perf_counter()
        async with pool.session(requirements=PACKAGES) as session:
            assert await session.run(work.series_sum, 3) == 3
            return time.perf_counter() - started


async def _more_sessions(effort: Effort) -> list[Figure]:
    async with _warm_pool(nodes=1) as pool:
        built = 0

        async def use(requirements: tuple[str, ...] | None) -> float:
            nonlocal built
            started = time.perf_counter()
            async with pool.session(requirements=requirements) as session:
                events = session.events()
                await session.run(work.noop, 0)
                taken = time.perf_counter() - started
                while (event := await _next_if_there(events)) is not None:
                    built += event.message.startswith("uploading an environment")
            return taken

        await asyncio.gather(*(use(PACKAGES) for _ in range(min(SESSIONS, effort.tasks // 2))))
        builds = built
        without, same = [], []
        for _ in range(max(5, effort.round_trips // 50)):
            without.append(await use(None) * 1e3)
            same.append(await use(PACKAGES) * 1e3)
    added = [_median(same) - _median(without)]
    return [
        Figure("environments built for a hundred sessions at once", [float(builds)], "", at_most=1.0),
        Figure("a session until its first result, no packages", without, "ms"),
        Figure("  another session with the same packages", same, "ms"),
        Figure("  what these add", added, "ms", at_most=20.0),
    ]


async def _next_if_there(events: Any) -> Any:
    try:
        return await asyncio.wait_for(anext(events), 0.01)
    except (TimeoutError, StopAsyncIteration):
        return None


async def numpy_calls(session: Session, effort: Effort) -> AsyncIterator[Figure]:
    """Calls of 5 ms of numpy each, beside two plain processes that do nothing else."""
    ours, plain = [], []
    calls = effort.numpy_calls
    await session.map(work.compute, range(max(4, calls // 20))).collect()
    for _ in range(effort.runs):
        plain.append(await asyncio.to_thread(_plain_calls, calls))
        started = time.perf_counter()
        await session.map(work.compute, range(calls)).collect()
        ours.append(calls / (time.perf_counter() - started))
    yield Figure(f"{calls:,} calls of 5 ms numpy", ours, "tasks/s")
    yield Figure("  two plain processes", plain, "tasks/s")
    ratios = [own / other for own, other in zip(ours, plain, strict=True)]
    yield Figure("  efficiency, in each round", ratios, "", at_least=0.8)


def _plain_calls(calls: int) -> float:
    count = calls // WORKERS
    command = [str(OWN_PYTHON), str(CONTENDERS / "plain.py"), "compute", str(count)]
    loops = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(WORKERS)]
    return WORKERS * count / max(float(loop.communicate()[0]) for loop in loops)
