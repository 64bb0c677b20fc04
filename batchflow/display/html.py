"""HTML for notebooks: cards and tables of plain rows, put together safely.

Rules:

- Text becomes HTML in one place, `element`, which escapes every string and attribute. Only an `Html`, which
  `element` alone makes, goes in unescaped.
- No script, no style sheet, no external resource: the HTML works in a saved notebook, on any background.
- A text that is too long is cut, with a mark where it was cut.
"""

from __future__ import annotations

import html
import reprlib
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_MOST_TEXT: Final = 4_000
"""Characters of a text that is shown whole: a notebook is saved with what it shows."""
MOST_CELL: Final = 120
"""The same of a table's cell."""
MOST_ROWS: Final = 50
"""Rows that a table shows."""

STATE_COLOURS: Final = {
    "succeeded": "#2e9e5b",
    "failed": "#d64545",
    "cancelled": "#b08a2e",
    "queued": "#3b82c4",
    "sending": "#8a8f98",
    "waiting": "#b9bdc4",
    "running": "#7b5cc4",
    "blocking": "#d64545",
    "slow": "#b08a2e",
    "note": "#8a8f98",
}
_VOID: Final = frozenset({"meta", "link", "input", "br"})
"""Elements without an end and without children."""
_TASK_STATES: Final = ("succeeded", "failed", "cancelled", "running", "queued", "sending", "waiting")
_CELL: Final = "text-align:left;vertical-align:top;padding:2px 10px 2px 0"
_BAR: Final = (
    "display:flex;height:8px;max-width:480px;margin:4px 0;border-radius:4px;overflow:hidden;"
    "background:rgba(128,128,128,.25)"
)
FAINT: Final = "opacity:.65"


class Html(str):
    """Text that is HTML already. Made by `element` alone."""

    __slots__ = ()


def element(tag: str, *children: object, **attributes: object) -> Html:
    """Return an element. Children that are not `Html` are escaped; None is left out."""
    written = "".join(f' {name}="{html.escape(str(value))}"' for name, value in attributes.items())
    inside = "".join(
        each if isinstance(each, Html) else html.escape(str(each)) for each in children if each is not None
    )
    return Html(f"<{tag}{written}>" if tag in _VOID else f"<{tag}{written}>{inside}</{tag}>")


def bar(parts: Mapping[str, int], total: int) -> Html:
    """Return a bar of that many parts, of as much of it as they are of `total`."""
    pieces = [
        element("div", style=f"width:{100 * number / total:.2f}%;background:{STATE_COLOURS[state]}")
        for state, number in parts.items()
        if number and total
    ]
    return element("div", *pieces, style=_BAR)


def task_counts(counts: Mapping[str, int]) -> Html:
    """Return a bar of tasks by their state, and the numbers. `counts`: as `Counts` names them."""
    numbers = {state: counts[state] for state in _TASK_STATES}
    words = [mark(state, f"{number:,} {state}") for state, number in numbers.items() if number]
    nothing = element("span", "no tasks yet", style=FAINT)
    return element("div", bar(numbers, sum(numbers.values())), *(words or [nothing]))


def task_numbers(counts: Mapping[str, int]) -> str:
    """Return the numbers of tasks by their state in words: `2 succeeded, 1 failed`."""
    return ", ".join(f"{counts[state]:,} {state}" for state in _TASK_STATES if counts[state])


def result_card(result: Mapping[str, Any]) -> Html:
    """Return a card of one result. `result`: the fields of a `Result`, its status in words."""
    succeeded, attempt = result["status"] == "succeeded", result["attempt"]
    value, error, tag = result["value"], result["error"], result["tag"]
    facts = [
        ("command", result["command"]),
        ("arguments", inputs(result["args"])),
        ("node", result["node"]),
        ("attempt", attempt if attempt > 1 else None),
        ("took", span(result["started_at"], result["finished_at"])),
        ("tag", None if tag is None else short(tag)),
        ("files", ", ".join(result["files"]) or None),
        ("value", short(value) if succeeded or value is not None else None),
        ("error", None if error is None else f"{result['kind']}: {cut(error)}"),
    ]
    texts = [folded(name, result[name]) for name in ("traceback", "stdout", "stderr") if result[name]]
    return card("Result", result["task_id"], fact_table(facts), *texts, badge=result["status"])


def client_card(
    settings: Any,
    closed: bool,
    figures: Mapping[str, Any],
    sessions: Sequence[tuple[str, str, Mapping[str, int]]],
) -> Html:
    """Return a card of a client. `figures`: the `PoolFigures` of its pools."""
    where = "the local cloud" if settings.target == "local" else settings.batch.account or "Azure"
    facts = [("state", "closed" if closed else "open"), ("target", settings.target)]
    return card("Client", where, fact_table(facts), pool_table(figures), session_table(sessions))


def task_card(task: Any, node: str | None, started: float | None) -> Html:
    """Return a card of a task. `task`: its entry in the session; `started`: seconds since the epoch."""
    outcome = task.read() if task.done else None
    args = task.arguments if isinstance(task.arguments, list) else None
    facts = [
        ("command", task.command),
        ("number", task.index),
        ("arguments", inputs(args)),
        ("node", node),
        ("submitted", moment(task.submitted_at)),
        ("waited", None if started is None else seconds(max(0.0, started - task.submitted_at))),
        ("started", None if started is None else moment(started)),
        ("ran", None if outcome is None else span(started, outcome.finished_at)),
        ("error", None if outcome is None or outcome.error is None else cut(outcome.error)),
    ]
    return card("Task", task.task_id, fact_table(facts), badge=task.status.value)


def result_table(results: Sequence[Mapping[str, Any]], total: int, summary: str) -> Html:
    """Return a summary of the results and a table of the first ones, as for `result_card`.

    `summary`: in words, of all of them; `total` is how many there are.
    """
    rows = [
        (
            result["task_id"],
            mark(result["status"], result["status"]),
            inputs(result["args"]) or "",
            short(result["value"])
            if result["status"] == "succeeded"
            else cut(result["error"] or "", MOST_CELL),
            result["node"] or "",
            unwrapped(span(result["started_at"], result["finished_at"]) or ""),
        )
        for result in results[:MOST_ROWS]
    ]
    left = total - MOST_ROWS
    return element(
        "div",
        element("div", summary),
        table(("task", "status", "input", "value or error", "node", "took"), rows),
        element("div", f"and {left:,} more", style=FAINT) if left > 0 else None,
    )


def cause_list(summary: str, causes: Iterable[tuple[str, str, str]]) -> Html:
    """Return a summary and its causes: the severity, the text and the remedy of each."""
    items = [
        element("li", mark(severity, what), element("div", f"what to do: {remedy}", style=FAINT))
        for severity, what, remedy in causes
    ]
    return element("div", element("div", summary), element("ul", *items) if items else None)


def session_table(sessions: Sequence[tuple[str, str, Mapping[str, int]]]) -> Html:
    """Return a table of open sessions: the pool, the name and the counts of each."""
    if not sessions:
        return element("div", "no open session here", style=FAINT)
    rows = [(pool, name, task_counts(counts)) for pool, name, counts in sessions[:MOST_ROWS]]
    return table(("pool", "session", "tasks"), rows)


def card(kind: str, name: str, *parts: Html | None, badge: str | None = None) -> Html:
    head = element(
        "div",
        element("span", f"{kind} ", style=FAINT),
        element("b", cut(name, MOST_CELL)),
        None if badge is None else element("span", " "),
        None if badge is None else mark(badge, badge),
    )
    return element("div", head, *parts, style="margin:4px 0")


def fact_table(facts: Iterable[tuple[str, object]]) -> Html:
    rows = [
        element("tr", element("td", name, style=f"{_CELL};{FAINT}"), element("td", value, style=_CELL))
        for name, value in facts
        if value is not None
    ]
    return element("table", *rows)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    head = element("tr", *(element("th", name, style=_CELL) for name in heads))
    lines = (element("tr", *(element("td", cell, style=_CELL) for cell in row)) for row in rows)
    return element("table", element("thead", head), element("tbody", *lines))


def pool_table(figures: Mapping[str, Any]) -> Html | None:
    """Return a table of pools: their `PoolFigures`."""
    pools = [(name, dict(seen.facts())) for name, seen in sorted(figures.items())]
    if not pools:
        return None
    rows = [(name, *("" if value is None else value for value in facts.values())) for name, facts in pools]
    return table(("pool", *pools[0][1]), rows)


def job_card(job: Any, counts: Any, sessions: Sequence[tuple[str, str, Mapping[str, int]]]) -> Html:
    """Return a card of a job. `counts`: its `JobCounts`; None: they are not known."""
    facts = fact_table([("pool", job.pool_id), ("state", job.state), ("made", moment(job.created_at))])
    numbers = None if counts is None else task_counts({"queued": 0, "sending": 0, **asdict(counts)})
    return card("Job", job.name, facts, numbers, session_table(sessions))


def unwrapped(text: str) -> Html:
    """Return a text that stays on one line: a number and its unit."""
    return element("span", text, style="white-space:nowrap")


def folded(name: str, text: str) -> Html:
    return element("details", element("summary", name), element("pre", cut(text)))


def mark(state: str, text: str) -> Html:
    return element("span", text, style=f"color:{STATE_COLOURS[state]};margin-right:10px")


def short(value: Any) -> str:
    """Return a value in a line, numbers with five significant digits."""
    return cut(_shorten.repr(value), MOST_CELL)


def inputs(args: list[Any] | None) -> str | None:
    """Return what a task was asked in a line: a lone argument without its list."""
    if not args:
        return None
    return short(args[0]) if len(args) == 1 else cut(", ".join(map(short, args[:8])), MOST_CELL)


class _Shortened(reprlib.Repr):
    """Representations of a bounded length, in which a number has five significant digits."""

    def repr1(self, value: Any, level: int) -> str:
        if isinstance(value, float):
            return format(value, ".5g")
        return super().repr1(value, level)


def cut(text: str, most: int = _MOST_TEXT) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def span(start: float | None, end: float | None) -> str | None:
    if start is None or end is None:
        return None
    return seconds(end - start)


def seconds(value: float) -> str:
    """Return a time as people write it: `3.2 ms`, `1.25 s`, `4 min 05 s`."""
    if value < 0.9995:
        return f"{value * 1000:.3g} ms"
    if value < 100:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


_shorten: Final = _Shortened()
_shorten.maxstring = _shorten.maxother = MOST_CELL
_shorten.maxlist = _shorten.maxtuple = _shorten.maxdict = 8
_shorten.maxlevel = 4
