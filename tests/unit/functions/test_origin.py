"""Where functions come from, which decides how they travel."""

from __future__ import annotations

import base64
import functools
import json
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import orjson
import pytest

from batchflow.environments.installed_packages import pins
from batchflow.errors import ConfigurationError
from batchflow.functions import origin
from batchflow.functions.origin import Home, home_of, origin_of, unwrap
from batchflow.support.distributions import local_places

Make = Callable[[str, str], ModuleType]


@pytest.mark.parametrize("function", [json.dumps, math.sqrt, base64.b64encode, orjson.dumps, print, len])
def test_a_function_of_an_installed_module_travels_by_name(function: Callable[..., object]) -> None:
    assert origin_of(function).home is Home.INSTALLED


def test_a_function_of_the_users_project_travels_by_name_with_its_files(module: Make) -> None:
    pricing = module(
        "pricing_a",
        "def price(): ...\nclass Model:\n    def fit(self): ...\n    @staticmethod\n    def make(): ...\n",
    )

    assert origin_of(pricing.price).label == "pricing_a:price"
    assert origin_of(pricing.price).home is Home.OWN
    assert origin_of(pricing.Model.make).label == "pricing_a:Model.make"


@pytest.mark.parametrize(
    "text",
    [
        "price = lambda: 1",
        "def outer():\n    def price(): ...\n    return price\nprice = outer()",
        "import functools\ndef plain(): ...\nprice = functools.wraps(plain)(lambda: plain())",
        "class Model:\n    def fit(self): ...\nprice = Model().fit",
        "class Price:\n    def __call__(self): ...\nprice = Price()",
    ],
    ids=["lambda", "closure", "wrapped under another name", "bound method", "object with __call__"],
)
def test_a_callable_that_no_name_leads_to_travels_by_value(module: Make, text: str) -> None:
    assert not origin_of(module("pricing_b", text).price).by_name


def test_a_decorated_function_that_its_name_leads_to_travels_by_name(module: Make) -> None:
    text = "import functools\n@functools.lru_cache\ndef price(): ...\n"

    assert origin_of(module("pricing_c", text).price).home is Home.OWN


def test_a_function_of_main_travels_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    main = types.ModuleType("__main__")
    exec("def price(): ...", vars(main))
    monkeypatch.setitem(sys.modules, "__main__", main)

    assert not origin_of(main.price).by_name


def test_a_module_without_a_file_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    made = types.ModuleType("made_while_running")
    exec("def price(): ...", vars(made))
    monkeypatch.setitem(sys.modules, "made_while_running", made)

    assert home_of(made) is Home.NOWHERE
    assert not origin_of(made.price).by_name


def test_partials_are_taken_off_with_the_outer_ones_winning() -> None:
    call = unwrap(functools.partial(functools.partial(pow, 2, mod=5), 3, mod=7))

    assert call.function is pow
    assert call.args == (2, 3)
    assert call.keywords == {"mod": 7}


def test_what_cannot_be_called_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="17 cannot be called"):
        origin_of(17)  # type: ignore[arg-type]


def test_a_distribution_that_was_installed_from_a_folder_here_is_the_users_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No index has it, so an environment of what is installed cannot: its files travel."""
    monkeypatch.setattr(origin, "local_places", lambda: frozenset({"orjson"}))
    origin.is_installed.cache_clear()
    try:
        assert home_of(orjson) is Home.OWN
        assert home_of(json) is Home.INSTALLED
        assert home_of(pytest) is Home.INSTALLED
    finally:
        origin.is_installed.cache_clear()


def test_local_distributions_are_told_by_where_they_were_installed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, url in (
        ("mine", "file:///home/me/mine"),
        ("theirs", "https://x.test/theirs.whl"),
        ("plain", ""),
    ):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "RECORD").write_text(f"{name}/__init__.py,,\n{name}_extra.py,,\n../../bin/{name},,\n")
        if url:
            (info / "direct_url.json").write_text(json.dumps({"url": url, "dir_info": {}}))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    local_places.cache_clear()
    try:
        assert local_places() == {"mine", "mine_extra.py"}
        assert [pin for pin in pins(local=False) if pin.startswith(("mine", "plain"))] == ["plain==1.0"]
    finally:
        local_places.cache_clear()
