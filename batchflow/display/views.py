"""How outcomes and counts look in a notebook. What is long is cut, and says so."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from batchflow.display.html import (
    FAINT,
    MOST_CELL,
    MOST_ROWS,
    Html,
    card,
    cut,
    element,
    fact_table,
    folded,
    mark,
    short,
    span,
    table,
    task_counts,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchflow.model import Counts, Explanation, Result


def counts_view(counts: Counts) -> Html:
    """A bar of all tasks by their state, and the numbers."""
    return task_counts(asdict(counts))


def result_view(result: Result) -> Html:
    facts = [
        ("command", result.command),
        ("node", result.node),
        ("attempt", result.attempt if result.attempt > 1 else None),
        ("took", span(result.started_at, result.finished_at)),
        ("tag", None if result.tag is None else short(result.tag)),
        ("files", ", ".join(result.files) or None),
        ("value", short(result.value) if result.ok or result.value is not None else None),
        ("error", None if result.error is None else f"{result.kind}: {cut(result.error)}"),
    ]
    texts = [("traceback", result.traceback), ("stdout", result.stdout), ("stderr", result.stderr)]
    return card(
        "Result",
        result.task_id,
        fact_table(facts),
        *(folded(name, text) for name, text in texts if text),
        badge=result.status.value,
    )


def results_view(results: Sequence[Result]) -> Html:
    rows = [
        (
            result.task_id,
            mark(result.status.value, result.status.value),
            short(result.value) if result.ok else cut(result.error or "", MOST_CELL),
            result.node or "",
            span(result.started_at, result.finished_at) or "",
        )
        for result in results[:MOST_ROWS]
    ]
    left = len(results) - MOST_ROWS
    return element(
        "div",
        table(("task", "status", "value or error", "node", "took"), rows),
        element("div", f"and {left:,} more", style=FAINT) if left > 0 else None,
    )


def explanation_view(explanation: Explanation) -> Html:
    causes = [
        element(
            "li",
            mark(cause.severity, cause.what),
            element("div", f"what to do: {cause.remedy}", style=FAINT),
        )
        for cause in explanation.causes
    ]
    return element("div", element("div", explanation.summary), element("ul", *causes) if causes else None)
