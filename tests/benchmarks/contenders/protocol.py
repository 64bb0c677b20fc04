"""What every contender answers to, and the loop that times it.

A contender is a program: it brings up its workers, runs one task, says so, and then runs the workloads that
it is told to on its standard input, a line of JSON each, until that ends. What it measured goes to the
descriptor that was its standard output; whatever libraries print there goes to standard error. Only the
standard library is needed, for the peers live in an environment without batchflow.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TextIO

WORKERS = 2
"""Each with one slot."""
ARRAY_BYTES = 1_000_000
WIDTH = 100
"""Values that one task of a tree takes."""


class Contender(Protocol):
    """Two workers of one slot each, and one client: this process.

    `task` is the name of a function of `work`: `noop`, `spin`, `nap` or `echo`.
    """

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def submit(self, task: str, argument: Any) -> Any:
        """Hand over one task the way a program does that has just this one; returns what `gather` takes."""

    async def gather(self, handles: Sequence[Any]) -> list[Any]:
        """Their values, in any order."""

    async def map(self, task: str, arguments: Sequence[Any]) -> list[Any]:
        """Hand over all of them the way that is fastest, and return their values, in any order."""

    async def run(self, task: str, argument: Any) -> Any:
        """One task, and its value."""


class Composer(Contender, Protocol):
    """One whose tasks can be arguments of others: `submit` takes a handle, too."""

    async def join(self, parts: Sequence[Any]) -> Any:
        """Hand over one task that counts these values, or those of these handles. Returns a handle."""


async def bulk(contender: Contender, count: int) -> float:
    """So many no-ops handed over at once."""
    started = time.perf_counter()
    values = await contender.map("noop", range(count))
    taken = time.perf_counter() - started
    return _checked(values, count, taken)


async def one_by_one(contender: Contender, count: int) -> float:
    """One submit awaited after another, then all results."""
    started = time.perf_counter()
    handles = [await contender.submit("noop", n) for n in range(count)]
    values = await contender.gather(handles)
    taken = time.perf_counter() - started
    return _checked(values, count, taken)


async def round_trip(contender: Contender, count: int) -> list[float]:
    """Seconds of each of so many tasks that are alone."""
    taken = []
    for n in range(count):
        started = time.perf_counter()
        await contender.run("noop", n)
        taken.append(time.perf_counter() - started)
    return taken


async def spin(contender: Contender, count: int) -> float:
    """Tasks of 1 ms of CPU."""
    started = time.perf_counter()
    values = await contender.map("spin", range(count))
    return _checked(values, count, time.perf_counter() - started)


async def nap(contender: Contender, count: int) -> float:
    """Tasks that last 1 ms on the clock."""
    started = time.perf_counter()
    values = await contender.map("nap", range(count))
    return _checked(values, count, time.perf_counter() - started)


async def echo(contender: Contender, count: int) -> float:
    """100 KB in, the same 100 KB out."""
    texts = [os.urandom(50_000).hex() for _ in range(count)]
    started = time.perf_counter()
    values = await contender.map("echo", texts)
    taken = time.perf_counter() - started
    if sorted(values) != sorted(texts):
        raise AssertionError("what came back is not what was sent")
    return taken


async def array(contender: Contender, count: int) -> float:
    """An array of 1 MB in, the same one out. Those of the contenders that take arrays have it."""
    import numpy as np

    generator = np.random.default_rng(0)
    arrays = [generator.standard_normal(ARRAY_BYTES // 8) for _ in range(count)]
    started = time.perf_counter()
    values = await contender.map("echo", arrays)
    taken = time.perf_counter() - started
    if sorted(float(value[-1]) for value in values) != sorted(float(value[-1]) for value in arrays):
        raise AssertionError("what came back is not what was sent")
    return taken


async def chain(contender: Composer, count: int) -> float:
    """Each task takes the value of the one before it."""
    started = time.perf_counter()
    last = await contender.submit("echo", 0)
    for _ in range(count - 1):
        last = await contender.submit("echo", last)
    values = await contender.gather([last])
    return _checked(values, 1, time.perf_counter() - started)


async def tree(contender: Composer, count: int) -> float:
    """So many tasks, one for each hundred of them that takes their values, and one that takes theirs."""
    started = time.perf_counter()
    leaves = [await contender.submit("echo", n) for n in range(count)]
    joins = [await contender.join(leaves[at : at + WIDTH]) for at in range(0, count, WIDTH)]
    values = await contender.gather([await contender.join(joins)])
    taken = time.perf_counter() - started
    if values != [len(joins)]:
        raise AssertionError(f"the last task counted {values} of {len(joins)}")
    return taken


async def forest(contender: Composer, count: int) -> float:
    """The tasks of `tree`, of which none waits for another."""
    started = time.perf_counter()
    handles = [await contender.submit("echo", n) for n in range(count)]
    numbers = [*range(count)]
    handles += [await contender.join(numbers[at : at + WIDTH]) for at in range(0, count, WIDTH)]
    handles.append(await contender.join(numbers[: len(handles) - count]))
    values = await contender.gather(handles)
    return _checked(values, len(handles), time.perf_counter() - started)


WORKLOADS: dict[str, Callable[[Any, int], Awaitable[float | list[float]]]] = {
    workload.__name__: workload
    for workload in (bulk, one_by_one, round_trip, spin, nap, echo, array, chain, tree, forest)
}


def _checked(values: Sequence[Any], count: int, taken: float) -> float:
    if len(values) != count:
        raise AssertionError(f"{len(values)} results of {count} tasks")
    return taken


def serve(contender: Contender) -> None:
    """Be that contender until standard input ends."""
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(contender, told))


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(contender: Contender, told: TextIO) -> None:
    await contender.open()
    try:
        await contender.run("noop", 0)
        _tell(told, {"ready": True})
        while line := await asyncio.to_thread(sys.stdin.readline):
            _tell(told, await _answer(contender, json.loads(line)))
    finally:
        await contender.close()


async def _answer(contender: Contender, order: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"value": await WORKLOADS[order["workload"]](contender, order["count"])}
    except Exception:
        return {"error": traceback.format_exc()}


def _tell(told: TextIO, message: dict[str, Any]) -> None:
    told.write(json.dumps(message) + "\n")
