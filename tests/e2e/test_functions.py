"""Functions as commands: by name, with the files of their project, and by value."""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from batchflow import ConfigurationError, Session, TaskError, current_engine

Write = Callable[[str, str], ModuleType]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write and import a module of a project that only this test has."""
    monkeypatch.syspath_prepend(str(tmp_path))
    written: list[str] = []

    def make(name: str, text: str) -> ModuleType:
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        importlib.invalidate_caches()
        written.append(name)
        return importlib.import_module(name)

    yield make
    for name in written:
        sys.modules.pop(name, None)


async def test_a_function_of_the_standard_library_runs_by_its_name(session: Session) -> None:
    assert await session.run(math.hypot, 3, 4) == 5
    assert (
        await session.run(functools.partial(json.dumps, sort_keys=True), {"b": 1, "a": 2})
        == '{"a": 2, "b": 1}'
    )


async def test_a_closure_runs_by_value_and_sees_its_variables_as_they_are_at_each_submit(
    session: Session,
) -> None:
    factor = 2

    def scaled(x: int) -> int:
        return x * factor

    assert await session.run(scaled, 21) == 42
    factor = 3
    assert await session.run(scaled, 21) == 63


async def test_a_function_of_a_project_brings_its_module_and_what_that_imports(
    session: Session, write: Write
) -> None:
    write("helper_k", "FACTOR = 2\n")
    module = write("pricing_k", "import helper_k\ndef price(x):\n    return x * helper_k.FACTOR\n")

    results = [result async for result in session.map(module.price, range(20), ordered=True)]

    assert [result.value for result in results] == [2 * x for x in range(20)]
    assert {result.command for result in results} == {"pricing_k:price"}


async def test_a_changed_function_is_live_at_the_next_submit(session: Session, write: Write) -> None:
    module = write("pricing_l", "def price(x):\n    return x + 1\n")
    assert await session.run(module.price, 1) == 2

    write("pricing_l", "def price(x):\n    return x + 1000\n")

    assert await session.run(module.price, 1) == 1001


async def test_a_text_reaches_a_function_unsplit(session: Session) -> None:
    assert await session.run(len, "two words") == 9


async def test_an_async_function_is_awaited_and_a_tuple_is_a_tuple(session: Session) -> None:
    async def advise() -> tuple[str, str]:
        await asyncio.sleep(0)
        return "AAPL", "buy"

    assert list(await session.run(advise)) == ["AAPL", "buy"]


async def test_a_function_asks_for_its_engine(session: Session) -> None:
    def about() -> str:
        return current_engine().task_id

    task = await session.submit(about, task_id="seven")

    assert await task == "seven"
    with pytest.raises(RuntimeError, match="no task runs in this process"):
        current_engine()


async def test_a_raised_exception_fails_the_task_with_its_traceback(session: Session) -> None:
    def price(x: float) -> float:
        raise ValueError(f"no price for {x}")

    with pytest.raises(TaskError, match=r"ValueError: no price for 1.5") as caught:
        await session.run(price, 1.5)
    assert ", in price\n" in (caught.value.result.traceback or "")
    assert repr(caught.value.original) == "ValueError('no price for 1.5')"
    assert caught.value.result.raised == "builtins:ValueError"


async def test_an_exception_of_the_sessions_files_is_rebuilt_and_others_are_not(
    session: Session, write: Write
) -> None:
    module = write(
        "errors_k",
        "class NoPrice(LookupError):\n"
        "    def __init__(self, symbol):\n"
        "        super().__init__('no price of ' + symbol)\n"
        "        self.symbol = symbol\n"
        "def price(symbol):\n    raise NoPrice(symbol)\n"
        "from dataclasses import dataclass\n@dataclass\nclass Quote:\n    symbol: str\n"
        "def quote(symbol):\n    return Quote(symbol)\n",
    )
    assert await session.run(module.quote, "AAPL") == module.Quote("AAPL")
    with pytest.raises(TaskError, match="NoPrice: no price of AAPL") as caught:
        await session.run(module.price, "AAPL")
    original: Any = caught.value.original
    assert (type(original), original.symbol) == (module.NoPrice, "AAPL")
    with pytest.raises(TaskError, match="JSONDecodeError") as caught:
        await session.run(json.loads, "{")
    assert (caught.value.original, caught.value.result.raised) == (None, "json.decoder:JSONDecodeError")


async def test_a_function_that_holds_what_cannot_travel_is_refused_before_anything_is_sent(
    session: Session,
) -> None:
    event = asyncio.get_running_loop()

    with pytest.raises(ConfigurationError, match="the variable event"):
        await session.submit(lambda: event)
    assert session.counts.submitted == 0
