"""The documentation builds without a warning, its links lead somewhere, its pictures are as drawn."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

import batchflow

DOCS = Path(__file__).parents[1] / "docs"
ASSETS = DOCS / "assets"

pytestmark = pytest.mark.timeout(300)

needs_sphinx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sphinx", "myst_parser", "furo")),
    reason="Sphinx is not installed: pip install -e '.[docs]'",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as HTML, as `make docs` builds them, elsewhere."""
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    command += ["-d", str(folder / "doctrees"), str(DOCS), str(folder / "html")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert finished.returncode == 0, finished.stderr
    return folder / "html"


class Links(HTMLParser):
    """Where a page leads, what it loads, and what can be led to in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.to: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.ids.add(known.get("id") or "")
        if tag == "a" and known.get("href"):
            self.to.append(known["href"] or "")
        if tag in ("script", "img", "iframe") and known.get("src"):
            self.loads.append(known["src"] or "")
        if tag == "link" and known.get("rel") in ("stylesheet", "preload", "icon"):
            self.loads.append(known["href"] or "")


@needs_sphinx
def test_every_link_of_the_built_pages_leads_somewhere(built: Path) -> None:
    """Also those to a heading of another page, and to files of the examples."""
    pages = {page.resolve(): Links(page) for page in built.rglob("*.html")}
    lost = []
    for page, links in pages.items():
        for link in links.to:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            known = pages.get(target)
            if not target.exists() or (known and parts.fragment and parts.fragment not in known.ids):
                lost.append(f"{page.name}: {link}")
    assert lost == []


@needs_sphinx
def test_a_page_loads_nothing_from_elsewhere(built: Path) -> None:
    """Readers without a network see all of it."""
    for page in built.rglob("*.html"):
        assert [each for each in Links(page).loads if urlsplit(each).netloc] == []
    for picture in built.rglob("*.svg"):
        assert not re.search(r"""(?:href|src)=["']http|url\(["']?http|@import""", picture.read_text())


@needs_sphinx
def test_every_public_name_is_in_the_reference(built: Path) -> None:
    """Each name of `batchflow.__all__`, and each error."""
    from batchflow import errors

    ids = Links(built / "reference.html").ids
    names = {f"{getattr(batchflow, name).__module__}.{name}" for name in batchflow.__all__}
    names |= {f"batchflow.errors.{name}" for name, value in vars(errors).items() if is_error(value)}
    assert {
        name for name in names if name not in ids and f"batchflow.{name.split('.')[-1]}" not in ids
    } == set()


def is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def test_the_pictures_are_as_they_are_drawn() -> None:
    """Each SVG is what docs/assets/draw.py draws."""
    draw = load(ASSETS / "draw.py")
    for picture in draw.PICTURES:
        drawn = (ASSETS / f"{picture.__name__}.svg").read_text(encoding="utf-8")
        assert drawn == picture().svg(), f"run python {ASSETS / 'draw.py'}"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
