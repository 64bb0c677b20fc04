"""How a child finds the code of a task in the bundle that it runs with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest

from node_agent.child.modules import Modules


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Path]:
    """The working directory of a bundle; the path and the modules are as before when the test is over."""
    path, before = sys.path[:], set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def _modules(bundle: Path, **files: str) -> Modules:
    for name, text in files.items():
        (bundle / f"{name}.py").write_text(text)
    modules = Modules()
    modules.use(bundle.name, str(bundle))
    return modules


def test_a_function_is_found_by_its_name(bundle: Path) -> None:
    modules = _modules(bundle, pricing_n="class Model:\n    @staticmethod\n    def price(): return 7\n")

    assert modules.function("pricing_n:Model.price", None)() == 7


def test_a_function_by_value_is_opened_once(bundle: Path) -> None:
    file = bundle / "function.pickle"
    file.write_bytes(cloudpickle.dumps(lambda: 8))
    modules = _modules(bundle)

    assert modules.function("__main__:<lambda>", str(file))() == 8
    assert modules.function("__main__:<lambda>", str(file)) is modules.function(
        "__main__:<lambda>", str(file)
    )


def test_a_module_of_the_bundle_that_another_one_hides_is_named(bundle: Path) -> None:
    modules = _modules(bundle, orjson="def price(): ...")

    with pytest.raises(
        ImportError, match="module orjson of the bundle has the name of a module that is here"
    ):
        modules.function("orjson:price", None)


def test_a_function_is_forgotten_with_its_bundle(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    modules = _modules(bundle, pricing_o="def price(): return 1")
    assert modules.function("pricing_o:price", None)() == 1
    other = tmp_path_factory.mktemp("other")
    (other / "pricing_o.py").write_text("def price(): return 2")

    modules.use("other", str(other))

    assert modules.function("pricing_o:price", None)() == 2


@pytest.mark.parametrize("command", ["pricing_p:missing", "pricing_p:price.deeper", "absent_p:price"])
def test_a_name_that_leads_nowhere_raises_what_python_says(bundle: Path, command: str) -> None:
    modules = _modules(bundle, pricing_p="def price(): ...")

    with pytest.raises((AttributeError, ModuleNotFoundError), match=r"missing|deeper|absent_p"):
        modules.function(command, None)
