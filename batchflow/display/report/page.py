"""The page of a report: one file that needs nothing from elsewhere, and in which nothing is executed."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from batchflow.display.html import Html, cut, element, moment, task_numbers
from batchflow.display.meter import duration
from batchflow.display.report import figures
from batchflow.display.report.analysis import (
    CommandFigures,
    EndedTask,
    FailureGroup,
    by_command,
    failure_groups,
    lanes,
    limits,
    period,
)

_MOST_ROWS: Final = 30
_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1d2733;--faint:#5d6b7a;--line:#d5dbe1;--page:#fff;--bad:#c8362f}
@media(prefers-color-scheme:dark){
:root{--ink:#e4e9ee;--faint:#9aa7b4;--line:#38434e;--page:#14191f;--bad:#f0776f}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:1000px;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem;margin:0}h2{font-size:1.05rem;margin:2rem 0 .5rem}p,ul{margin:.3rem 0}
.faint{color:var(--faint)}.numbers{font-size:1.05rem}
table{border-collapse:collapse;width:100%}th{text-align:left;font-weight:600}
th,td{padding:.25rem .75rem .25rem 0;border-bottom:1px solid var(--line);vertical-align:top;
overflow-wrap:anywhere}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
svg{width:100%;height:auto;display:block}text{font-size:11px;fill:var(--faint)}
.tick{stroke:var(--line)}.limit{stroke:var(--bad);stroke-dasharray:4 3}.area{fill:#4477aa;fill-opacity:.55}
.c0{fill:#4477aa}.c1{fill:#ccbb44}.c2{fill:#228833}.c3{fill:#66ccee}.c4{fill:#aa3377}.c5{fill:#ee8866}
.c6{fill:#77aadd}.c7{fill:#999}.bad{fill:var(--bad)}.key{width:.8em;height:.8em;display:inline-block}
"""
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY: Final = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'"


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """What a report says besides the tasks that ran."""

    title: str
    place: str
    """Which pool and job."""
    counts: dict[str, int]
    """As `Counts` names them."""
    ended: int
    """Tasks that ended, also those that are not remembered."""
    slots: int | None
    made_at: float


def page(facts: ReportFacts, runs: Sequence[EndedTask]) -> str:
    """Return the report as HTML."""
    commands = by_command(runs)
    palette = figures.colours([each.command for each in commands])
    span = period(runs)
    drawn = () if span is None else _drawings(facts, runs, span, palette)
    body = element(
        "body",
        element("h1", cut(facts.title, 120)),
        element("p", f"{facts.place} · {moment(facts.made_at)}", **{"class": "faint"}),
        element("p", task_numbers(facts.counts) or "no tasks yet", **{"class": "numbers"}),
        None if span is None else element("p", _rate(runs, span), **{"class": "faint"}),
        _forgotten(facts, runs),
        element("h2", "What limited it"),
        element("ul", *(element("li", sentence) for sentence in limits(runs, facts.slots))),
        *drawn,
        element("h2", "Commands"),
        _command_table(commands, palette),
        *_failures(failure_groups(runs)),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", content=_POLICY, **{"http-equiv": "Content-Security-Policy"}),
        element("meta", name="viewport", content="width=device-width"),
        element("title", cut(facts.title, 120)),
        Html(f"<style>{_STYLE}</style>"),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _drawings(
    facts: ReportFacts, runs: Sequence[EndedTask], span: tuple[float, float], palette: dict[str, str]
) -> tuple[Html, ...]:
    return (
        element("h2", "Tasks at once"),
        figures.concurrency(runs, *span, facts.slots),
        element("h2", "Nodes"),
        figures.timeline(lanes(runs), *span, palette),
    )


def _rate(runs: Sequence[EndedTask], span: tuple[float, float]) -> str:
    seconds = span[1] - span[0]
    ran = sum(run.ran for run in runs)
    nodes = len({run.node for run in runs if run.node is not None})
    rate = f", {_per_second(ran / seconds)} a second" if seconds > 0 else ""
    return f"{ran:,} tasks ran on {nodes:,} nodes in {duration(seconds)}{rate}"


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _forgotten(facts: ReportFacts, runs: Sequence[EndedTask]) -> Html | None:
    if facts.ended <= len(runs):
        return None
    return element("p", f"What follows is of the last {len(runs):,} of {facts.ended:,} tasks that ended.")


def _command_table(commands: Sequence[CommandFigures], palette: dict[str, str]) -> Html:
    heads = ("command", "tasks", "failed", "median", "p99", "longest", "in all", "waited")
    rows = [
        (
            f"{each.tasks:,}",
            f"{each.failed:,}",
            _time(each.median),
            _time(each.p99),
            _time(each.longest),
            _time(each.total),
            _time(each.waited),
        )
        for each in commands[:_MOST_ROWS]
    ]
    lines = [
        element(
            "tr", element("td", _key(palette[each.command]), f" {cut(each.command, 120)}"), *map(_number, row)
        )
        for each, row in zip(commands, rows, strict=False)
    ]
    head = element(
        "tr", element("th", heads[0]), *(element("th", name, **{"class": "n"}) for name in heads[1:])
    )
    left = len(commands) - _MOST_ROWS
    return element(
        "div",
        element("table", element("thead", head), element("tbody", *lines)),
        element("p", f"and {left:,} more commands", **{"class": "faint"}) if left > 0 else None,
    )


def _failures(groups: Sequence[FailureGroup]) -> tuple[Html, ...]:
    if not groups:
        return ()
    lines = [
        element(
            "tr",
            element("td", f"{group.count:,}", **{"class": "n"}),
            element("td", f"{group.kind}: {group.text}"),
            element("td", cut(", ".join(group.task_ids), 120)),
            element("td", cut(", ".join(group.commands), 120)),
            element("td", cut(", ".join(group.nodes), 120)),
        )
        for group in groups[:_MOST_ROWS]
    ]
    heads = ("tasks", "what they say", "the first", "commands", "nodes")
    head = element("tr", *(element("th", name) for name in heads))
    left = len(groups) - _MOST_ROWS
    return (
        element("h2", "Failures"),
        element("table", element("thead", head), element("tbody", *lines)),
        *((element("p", f"and {left:,} more kinds", **{"class": "faint"}),) if left > 0 else ()),
    )


def _key(colour: str) -> Html:
    square = element("rect", width=10, height=10, **{"class": colour})
    return element("svg", square, viewBox="0 0 10 10", **{"class": "key", "aria-hidden": "true"})


def _number(text: str) -> Html:
    return element("td", text, **{"class": "n"})


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 60 else duration(seconds)
