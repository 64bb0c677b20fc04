"""How a session brings the code of functions into its pool."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from batchflow.errors import ConfigurationError
from batchflow.files import collect, upload
from batchflow.functions.calls import function_command
from batchflow.functions.code import CodePool, CodeStore
from batchflow.protocol.bundle import Bundle, bundle_blob
from batchflow.protocol.functions import PYTHON, pickle_name, python_of
from batchflow.testing import MemoryContainer, MemoryStorage

NO_PYTHONS = frozenset[str]
Make = Callable[[str, str], ModuleType]


@pytest.fixture
async def ctl() -> MemoryContainer:
    storage = MemoryStorage()
    await storage.create_container("ctl")
    return storage.container("ctl")


def _functions(ctl: MemoryContainer, pythons: Callable[[], frozenset[str]] = NO_PYTHONS) -> CodeStore:
    pool = SimpleNamespace(ctl=ctl, pool_id="demo")
    return CodeStore(cast("CodePool", pool), pythons)


async def _names(ctl: MemoryContainer, bundle: str) -> list[str]:
    listed = Bundle.read((await ctl.get(bundle_blob(bundle))).data, bundle)
    return [file.name for file in listed.files]


async def test_an_installed_function_needs_no_bundle_but_the_sessions(ctl: MemoryContainer) -> None:
    found = await _functions(ctl).bundles(function_command(math.sqrt), "base")

    assert (found.files, found.pickle) == ("base", None)
    assert [info async for info in ctl.list("")] == []


async def test_a_projects_files_join_those_of_the_session_and_replace_theirs(
    ctl: MemoryContainer, module: Make
) -> None:
    made = module("pricing_q", "def price(): ...")
    base = await upload(await collect({"data.csv": b"1", "pricing_q.py": b"old"}), ctl)

    found = await _functions(ctl).bundles(function_command(made.price), base.hash)

    assert await _names(ctl, found.files) == ["data.csv", "pricing_q.py"]
    listed = Bundle.read((await ctl.get(bundle_blob(found.files))).data, found.files)
    assert (await ctl.get(listed.files[1].blob)).data == b"def price(): ..."


async def test_two_modules_share_a_bundle_and_what_has_not_changed_is_not_uploaded_again(
    ctl: MemoryContainer, module: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = await upload([], ctl)
    functions = _functions(ctl)
    first, second = module("first_q", "def f(): ..."), module("second_q", "def f(): ...")
    before = await functions.bundles(function_command(first.f), base.hash)
    put = list[str]()
    original = ctl.upload

    async def note(name: str, *args: Any, **options: Any) -> None:
        put.append(name)
        await original(name, *args, **options)

    monkeypatch.setattr(ctl, "upload", note)
    after = await functions.bundles(function_command(second.f), base.hash)

    assert await _names(ctl, before.files) == ["first_q.py"]
    assert await _names(ctl, after.files) == ["first_q.py", "second_q.py"]
    assert len(put) <= 1


async def test_many_calls_at_once_make_one_bundle(ctl: MemoryContainer, module: Make) -> None:
    made = module("pricing_r", "def price(): ...")
    base = await upload([], ctl)
    functions, found = _functions(ctl), set[str]()

    async def ask() -> None:
        found.add((await functions.bundles(function_command(made.price), base.hash)).files)

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(ask)

    assert len(found) == 1


async def test_a_function_by_value_lies_in_a_bundle_that_names_its_python(ctl: MemoryContainer) -> None:
    functions = _functions(ctl)
    command = function_command(functools.partial(lambda x, y: x + y, 1, y=2))
    found = await functions.bundles(command, "base")

    assert found.files == "base"
    assert found.pickle is not None
    assert await _names(ctl, found.pickle) == [f"function-{PYTHON}.pickle"]
    assert command.arguments([]) == [1, {"y": 2}]
    assert (await functions.bundles(command, "base")).pickle == found.pickle


async def test_a_function_by_value_is_refused_where_nodes_have_another_python(ctl: MemoryContainer) -> None:
    functions = _functions(ctl, lambda: frozenset({PYTHON, "3.9"}))

    with pytest.raises(
        ConfigurationError, match=rf"Python {PYTHON}; the nodes have Python 3\.9.*into a module"
    ):
        await functions.bundles(function_command(lambda: 1), "base")
    assert (await functions.bundles(function_command(math.sqrt), "base")).pickle is None


async def test_a_sessions_files_that_are_gone_are_a_typed_error(ctl: MemoryContainer, module: Make) -> None:
    made = module("pricing_s", "def price(): ...")

    with pytest.raises(ConfigurationError, match=r"not in pool demo any more.*update_files"):
        await _functions(ctl).bundles(function_command(made.price), "0" * 64)


def test_the_name_of_a_pickle_tells_its_python() -> None:
    assert python_of(pickle_name("3.11")) == "3.11"
    assert python_of("function.pickle") is None
    assert python_of("task.py") is None
