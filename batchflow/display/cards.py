"""How a client, a pool, a job, a session and a task look in a notebook.

A view shows what the object knows already: it asks no service, and it shows no secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchflow.display.html import FAINT, Html, card, element, fact_table, moment, table
from batchflow.display.views import MOST_ROWS, counts_view

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchflow.client import Client
    from batchflow.job import Job
    from batchflow.pool import Pool
    from batchflow.pools.open_sessions import OpenSession
    from batchflow.session import Session
    from batchflow.task import Task


def client_view(client: Client) -> Html:
    settings = client.settings
    where = "the local cloud" if settings.target == "local" else settings.batch.account or "Azure"
    sessions = sorted(client._sessions, key=lambda session: (session.pool_id, session.name))
    return card(
        "Client",
        where,
        fact_table([("state", "closed" if client.closed else "open"), ("target", settings.target)]),
        _sessions(sessions),
    )


def pool_view(pool: Pool) -> Html:
    return card(
        "Pool",
        pool.id,
        fact_table([("came here as", str(pool.origin))]),
        _sessions(pool.runtime.open_sessions),
    )


def job_view(job: Job) -> Html:
    made = moment(job.created_at)
    return card("Job", job.name, fact_table([("pool", job.pool_id), ("state", job.state), ("made", made)]))


def session_view(session: Session) -> Html:
    facts = [("pool", session.pool.id), ("state", "closed" if session.closed else "open")]
    return card(
        "Session", f"{session.job_name}/{session.name}", fact_table(facts), counts_view(session.counts)
    )


def task_view(task: Task) -> Html:
    facts = [("command", task._entry.command), ("number", task.index)]
    return card("Task", task.id, fact_table(facts), badge=task.status.value)


def _sessions(sessions: Sequence[OpenSession]) -> Html:
    if not sessions:
        return element("div", "no open session here", style=FAINT)
    rows = [
        (session.pool_id, f"{session.job}/{session.name}", counts_view(session.counts()))
        for session in sessions[:MOST_ROWS]
    ]
    return table(("pool", "session", "tasks"), rows)
