"""How a session and a task look in a notebook.

A view shows what the object knows already: it asks no service, and it shows no secret.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from batchflow.display.html import Html, card, fact_table, task_counts

if TYPE_CHECKING:
    from batchflow.session import Session
    from batchflow.task import Task


def session_view(session: Session) -> Html:
    facts = [("pool", session.pool.id), ("state", "closed" if session.closed else "open")]
    return card(
        "Session",
        f"{session.job_name}/{session.name}",
        fact_table(facts),
        task_counts(asdict(session.counts)),
    )


def task_view(task: Task) -> Html:
    facts = [("command", task._entry.command), ("number", task.index)]
    return card("Task", task.id, fact_table(facts), badge=task.status.value)
