"""`batchflow runs`: the runs of this machine."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from batchflow.cli import terminal
from batchflow.cli.command import Command, Invocation
from batchflow.cli.exits import CommandError, Exit
from batchflow.cli.record import RunRecord, run_names

_HEADS = ("RUN", "STARTED", "POOL", "INPUTS", "SUCCEEDED", "FAILED", "CANCELLED", "TO COME", "COMMAND")


@click.command(cls=Command)
@click.pass_obj
def runs(invocation: Invocation) -> int:
    """The runs that this machine has begun, the latest first, with what is known here of their results.

    `batchflow results NAME` reads what has come since. Of the runs that are complete, the latest 20 are kept.
    """
    rows = []
    for name in run_names():
        try:
            rows.append(_row(RunRecord.open(name)))
        except CommandError as error:
            terminal.note(str(error))
    if invocation.as_json:
        terminal.write_json(rows)
    elif rows:
        terminal.write_table(_HEADS, [_cells(row) for row in rows])
    else:
        terminal.note("this machine has no run; begin one: batchflow run")
    return Exit.OK


def _row(record: RunRecord) -> dict[str, Any]:
    plan, meter = record.plan, record.meter()
    started = datetime.fromtimestamp(plan.started_at, UTC).isoformat(timespec="seconds")
    return {
        "run": plan.name,
        "started_at": started,
        "pool": None if plan.local else plan.pool,
        "job": plan.job,
        "local": plan.local,
        "inputs": plan.count,
        **meter.counts,
        "to_come": plan.count - meter.done,
        "commands": sorted({item.command for item in record.items()}),
    }


def _cells(row: dict[str, Any]) -> list[Any]:
    pool = "(local)" if row["local"] else row["pool"] or "-"
    counts = [row[name] for name in ("inputs", "succeeded", "failed", "cancelled", "to_come")]
    return [row["run"], row["started_at"], pool, *counts, ", ".join(row["commands"])]
