"""What notebooks show: whoever names a task, a tag or a pool cannot put anything into somebody's notebook."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchflow import Client, Counts, Explanation, Result, Status
from batchflow.diagnosis.figures import look
from batchflow.display.html import MOST_CELL, MOST_ROWS, element
from batchflow.model import Attempt, Cause
from batchflow.results import Results
from tests.support.results import a_result

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</td></table><h1>",
    "<!-- ",
    "]]><svg/onload=alert(1)>",
    "&lt;b&gt;",
    "\x00\x1b[31m",
    "{{ x }} %s {0}",
]
hostile = st.sampled_from(HOSTILE) | st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | hostile,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(hostile, inner, max_size=3),
    max_leaves=6,
)
results = st.builds(
    Result,
    task_id=hostile,
    job_id=hostile,
    client=hostile,
    command=hostile,
    status=st.sampled_from([Status.SUCCEEDED, Status.FAILED, Status.CANCELLED]),
    index=st.integers(0, 9),
    value=json_values,
    error=st.none() | hostile,
    kind=st.none() | hostile,
    traceback=st.none() | hostile,
    tag=json_values,
    node=st.none() | hostile,
    attempt=st.integers(1, 3),
    attempts=st.just((Attempt(1, HOSTILE[0], HOSTILE[1], 0.0),)),
    stdout=hostile,
    stderr=hostile,
    started_at=st.none() | st.floats(0, 1e9),
    finished_at=st.none() | st.floats(0, 1e9),
    files=st.lists(hostile, max_size=2).map(tuple),
)

OURS = {"div", "span", "b", "details", "summary", "pre", "ul", "li"}
OURS |= {"table", "thead", "tbody", "tr", "td", "th"}


class Seen(HTMLParser):
    """What a browser would make of a view. Refuses whatever is not of our making."""

    def __init__(self, view: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(view)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in OURS
        assert {name for name, _ in attrs} <= {"style"}
        assert all("url" not in (value or "") for _, value in attrs)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data!r}")

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(f"a declaration: {decl!r}")

    def handle_pi(self, data: str) -> None:
        raise AssertionError(f"an instruction: {data!r}")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"an unknown declaration: {data!r}")


@given(results)
def test_a_result_is_shown_and_nothing_of_it_is_markup(result: Result) -> None:
    """Whatever a task returns, prints, or is called ends as text."""
    seen = Seen(result._repr_html_())
    assert result.status.value in seen.text


@given(st.lists(results, max_size=4))
def test_results_are_shown_in_a_table(some: list[Result]) -> None:
    """A row each, whatever stands in it."""
    assert Seen(Results(some)._repr_html_()).text.count("task") >= 1


@given(hostile, hostile, hostile)
def test_an_explanation_is_shown(summary: str, what: str, remedy: str) -> None:
    """The state, the causes and their remedies."""
    explanation = Explanation(summary, (Cause(what, remedy, "slow"),))
    assert "what to do: " in Seen(explanation._repr_html_()).text


@given(hostile, hostile)
def test_an_element_escapes_all_but_elements(text: str, attribute: str) -> None:
    """Children and attributes are text; what an element is made of by `element` stays."""
    made = element("div", element("b", text), text, None, style=attribute)
    assert made.count("<") == made.count(">") == 4
    seen = Seen(made.replace("\x00", ""))
    assert seen.open == []


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_long_is_cut(text: str) -> None:
    """A notebook is saved with its views, so they are small whatever they show."""
    result = a_result(value=text * 1_000_000, stdout=text * 10_000)
    assert len(Seen(result._repr_html_()).text) < 10_000
    assert len(Results([result])._repr_html_()) < 4_000
    assert MOST_CELL < 1_000


def test_a_table_says_how_many_are_left() -> None:
    """Beyond fifty rows there is a line that counts the others."""
    text = Seen(Results([a_result()] * (MOST_ROWS + 1_234))._repr_html_()).text
    assert "and 1,234 more" in text


def test_counts_are_a_bar() -> None:
    """Each state has a piece as wide as its share; no tasks are said to be none."""
    shown = Counts(succeeded=3, failed=1)._repr_html_()
    assert "width:75.00%" in shown
    assert "width:25.00%" in shown
    assert "3 succeeded" in Seen(shown).text
    assert "no tasks yet" in Seen(Counts()._repr_html_()).text


async def test_what_is_open_is_shown_without_its_secrets() -> None:
    """Client, pool, job, session and task say what they are; no key is among it."""
    async with Client.local(nodes=1) as client:
        settings = client.settings
        pool = await client.ensure_pool("views", files={"x.py": b"def do_action(engine, args): return 1"})
        job = await pool.create_job("report")
        async with pool.session("reader", job=job) as session:
            task = await session.submit("x.py", task_id=HOSTILE[0], tag=HOSTILE[1])
            assert await task == 1
            views = [repr_html(each) for each in (client, pool, job, session, task)]
            texts = [Seen(view).text for view in views]
        assert "report/reader" in texts[0]
        assert "created: there was none of that name" in texts[1]
        assert "1 succeeded" in texts[3]
        assert HOSTILE[0] in texts[4]
        assert "submitted" in texts[4]
        await pool.wait_ready(1)  # the first heartbeat may come after the first result
        figures = await look(pool.runtime, pool.cost)
        assert figures.facts()[2] == ("slots", f"0 of {figures.slots} busy")
        assert "1 ready" in Seen(repr_html(pool)).text
        assert " message" in Seen(repr_html(client)).text
        assert (await job.counts()).succeeded == 1
        assert "1 succeeded" in Seen(repr_html(job)).text
        assert "closed" in Seen(repr_html(session)).text
        assert repr(session) == "<Session 'reader' in job 'report' of pool 'views', closed>"
        assert "no open session" in Seen(repr_html(client)).text
        for secret in secrets(settings):
            assert not any(secret in view for view in views)
    assert repr(client) == "<Client on local, closed>"


def repr_html(shown: Any) -> str:
    view = shown._repr_html_()
    assert isinstance(view, str)
    return view


def secrets(settings: Any) -> Iterator[str]:
    yield settings.batch.key
    for text in (settings.storage.connection_string, settings.servicebus.connection_string):
        yield next(part.partition("=")[2] for part in text.split(";") if "Key=" in part)
