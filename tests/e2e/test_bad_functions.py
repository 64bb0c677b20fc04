"""Functions and data that cannot travel: each is a typed error that names it, and the session goes on."""

from __future__ import annotations

import importlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from batchflow import Client, ConfigurationError, PoolSpec, Session
from batchflow.protocol.functions import PYTHON


@dataclass
class Here:
    """Of a module that no file of the sessions here has."""

    x: int


def _default() -> Callable[..., Any]:
    def locked(guard: Any = threading.Lock()) -> bool:  # noqa: B008
        return bool(guard.locked())

    return locked


def _socket() -> socket.socket:
    with socket.socket() as opened:
        return opened  # closed, so that nothing is left open: its type is what counts


def _closure(holding: Any) -> Callable[..., Any]:
    return lambda: holding


@pytest.fixture
def shadow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Import a module of a project in place of another of that name, as long as the test lasts."""
    monkeypatch.syspath_prepend(str(tmp_path))
    former: dict[str, Any] = {}

    def make(name: str) -> Callable[..., Any]:
        (tmp_path / f"{name}.py").write_text("def price():\n    return 'of the project'\n")
        former[name] = sys.modules.pop(name, None)
        importlib.invalidate_caches()
        price: Callable[..., Any] = importlib.import_module(name).price
        return price

    yield make
    for name, module in former.items():
        del sys.modules[name]
        if module is not None:
            sys.modules[name] = module


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda client, shadow: _default(), r"the default of guard is of type _thread.lock"),
        (lambda client, shadow: _closure(threading.Lock()), r"the variable holding is of type _thread.lock"),
        (lambda client, shadow: _closure(_socket()), r"the variable holding is of type socket.socket"),
        (lambda client, shadow: _closure(client), r"the variable holding is of type batchflow.client.Client"),
        (lambda client, shadow: _closure([{"a": client}]), r"the variable holding\[0\]\['a'\]"),
        (lambda client, shadow: _closure(x for x in "ab"), r"the variable holding is of type generator"),
        (lambda client, shadow: shadow("colorsys"), r"the module colorsys .* standard library.*: rename it"),
        (lambda client, shadow: shadow("node_agent"), r"the module node_agent .*: rename it"),
    ],
    ids=["default", "lock", "socket", "client", "nested", "generator", "stdlib", "agent"],
)
async def test_a_function_that_cannot_travel_is_refused_and_nothing_is_sent(
    session: Session, client: Any, shadow: Callable[[str], Any], make: Any, said: str
) -> None:
    function = make(client, shadow)
    with pytest.raises(ConfigurationError, match=said):
        await session.submit(function)
    assert session.counts.submitted == 0
    assert await session.run(len, "goes on") == 7


async def test_a_pool_whose_nodes_cannot_have_that_python_is_refused_and_nothing_is_made(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a mirror, and with one that is not there."""
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    other = "3.12" if PYTHON != "3.12" else "3.11"
    with pytest.raises(ConfigurationError, match=f"python is '{other}'; allowed: {PYTHON}, because"):
        await client.create_pool(PoolSpec("never", python=other))
    agent = replace(client.settings.agent, python_mirror="http://127.0.0.1:1")
    async with Client(replace(client.settings, agent=agent)) as asking:
        with pytest.raises(
            ConfigurationError, match=rf"(?s)python is '{other}'.*\(http://127\.0\.0\.1:1\) does"
        ):
            await asking.create_pool(PoolSpec("never", python=other))
        assert "never" not in [pool.id async for pool in asking.pools()]


async def test_a_module_that_shadows_an_installed_package_runs_as_it_does_here(
    session: Session, shadow: Callable[[str], Any]
) -> None:
    assert await session.run(shadow("xdist")) == "of the project"


def _results() -> dict[str, Callable[[], Any]]:
    """Return what tasks return: each function travels by value."""

    def generator() -> Any:
        return {"rows": [(x for x in "ab")]}

    def objects() -> Any:
        import numpy

        return {"grid": numpy.array([{}, None], dtype=object)}

    def frame() -> Any:
        import numpy
        import pandas

        return pandas.DataFrame({"a": numpy.zeros(300 * 1024**2 // 8)})

    def many() -> Any:
        import numpy

        return {"a": [numpy.lib.stride_tricks.as_strided(numpy.zeros(1), (10**11,), (0,))]}

    def long_list() -> Any:
        class Long(list[int]):
            def __len__(self) -> int:
                return 10**15

        return {"rows": Long([1, 2])}

    def short_array() -> Any:
        import numpy

        class Short(numpy.ndarray):
            nbytes = 0
            size = 0

        return {"grid": numpy.zeros(300 * 1024**2 // 8).view(Short)}

    def bytes_that_lie() -> Any:
        class Lying(bytes):
            def __len__(self) -> int:
                return 0

        return {"data": Lying(b"abc")}

    return {each.__name__: each for each in locals().values() if callable(each)}


@pytest.mark.parametrize(
    ("returns", "kind", "said"),
    [
        ("generator", "ResultNotSerializable", 'result["rows"][0] is of type generator'),
        ("objects", "ResultNotSerializable", 'result["grid"]'),
        ("frame", "ResultTooLarge", f"the limit is {256 * 1024**2}"),
        ("many", "ResultTooLarge", 'result["a"][0]'),
        ("short_array", "ResultTooLarge", 'result["grid"]'),
        ("long_list", None, {"rows": [1, 2]}),
        ("bytes_that_lie", None, {"data": b"abc"}),
    ],
)
async def test_a_result_that_cannot_travel_fails_its_task_by_name_and_one_that_lies_does_not_matter(
    session: Session, returns: str, kind: str | None, said: Any
) -> None:
    result = await (await session.submit(_results()[returns])).outcome()
    if kind is None:
        assert result.value == said
    else:
        assert result.kind == kind
        assert said in (result.error or "")
    assert await session.run(len, "goes on") == 7


async def test_a_dataclass_that_is_not_in_the_bundle_is_refused_as_argument_and_a_mapping_as_result(
    session: Session,
) -> None:
    with pytest.raises(ConfigurationError, match=r"args\[0\]\[\"at\"\] is of the class Here of"):
        await session.submit("echo.py", {"at": Here(1)})

    def made() -> Any:
        from dataclasses import make_dataclass

        return make_dataclass("There", ["x"])(1)

    value = await session.run(made)
    assert (value["x"], value.class_name.rpartition(":")[2]) == (1, "There")
