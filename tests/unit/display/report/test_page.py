"""The page of a report: whole without anything else, and no text of a task is read as HTML."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import asdict
from html.parser import HTMLParser

from batchflow.display.report.analysis import EndedTask
from batchflow.display.report.page import ReportFacts, page
from batchflow.model import Counts

COUNTS = asdict(Counts(succeeded=1, failed=1))
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def _facts(*, ended: int = 2, title: str = "Session c-1") -> ReportFacts:
    return ReportFacts(title, "pool demo, job main", COUNTS, ended, slots=2, made_at=1.79e9)


def _runs(number: int, nodes: int = 2) -> list[EndedTask]:
    return [
        EndedTask(
            task_id=str(n),
            command="price.py",
            node=f"node{n % nodes}",
            status="failed" if n % 10 == 9 else "succeeded",
            kind="ValueError" if n % 10 == 9 else None,
            error="no" if n % 10 == 9 else None,
            submitted_at=0.0,
            started_at=1.0 + n // nodes,
            finished_at=1.9 + n // nodes,
        )
        for n in range(number)
    ]


class _Elements(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_texts_of_tasks_are_never_read_as_html() -> None:
    hostile = EndedTask(HOSTILE, HOSTILE, HOSTILE, "failed", HOSTILE, HOSTILE, 0.0, 1.0, 2.0)
    found = _Elements(page(_facts(title=HOSTILE), [hostile, *_runs(30)]))
    assert not found.tags & {"script", "img", "iframe", "link", "a"}
    assert not any(name.startswith("on") or name in ("src", "href", "style") for name in found.attributes)


def test_the_policy_of_the_page_allows_its_own_style_sheet_alone() -> None:
    text = page(_facts(), _runs(2))
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src &#x27;none&#x27;; style-src &#x27;sha256-{digest}&#x27;" in text


def test_a_task_is_a_bar_with_its_id_and_time() -> None:
    text = page(_facts(), _runs(20))
    assert "<title>9, price.py, 0.9 s, failed: no</title>" in text
    assert "ValueError: no" in text
    assert "20 tasks ran on 2 nodes" in text


def test_many_tasks_are_drawn_as_shares_of_busy_time() -> None:
    """The page stays small, whatever the number of tasks and nodes."""
    text = page(_facts(ended=25_000), _runs(20_000, nodes=1000))
    assert len(text) < 4_000_000
    assert "of the last 20,000 of 25,000 tasks" in text


def test_a_session_without_tasks_has_a_report() -> None:
    text = page(ReportFacts("Session x", "pool p, job j", dict.fromkeys(COUNTS, 0), 0, None, 0.0), [])
    assert "no tasks yet" in text
