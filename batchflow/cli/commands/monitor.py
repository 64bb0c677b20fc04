"""`batchflow monitor`: what Log Analytics needs to take what batchflow sends."""

from __future__ import annotations

import json

import click

from batchflow.cli import terminal
from batchflow.cli.command import Command, Group


@click.group(cls=Group)
def monitor() -> None:
    """Send outcomes of tasks, events of nodes and logs to Log Analytics."""


@monitor.command(cls=Command)
@click.option(
    "--retention",
    type=click.IntRange(4, 730),
    metavar="DAYS",
    default=30,
    show_default=True,
    help="Days that the tables keep rows.",
)
def setup(retention: int) -> int:
    """Print a template for `az deployment group create`: tables, a data collection rule, the right to send.

    Its outputs are the values of [monitor] endpoint, rule and streams.
    """
    from batchflow.pools.monitoring.tables import template

    terminal.write(json.dumps(template(retention), indent=2))
    terminal.note(
        "save it as monitor.json, then: az deployment group create --resource-group GROUP --template-file "
        "monitor.json --parameters workspace=WORKSPACE principal=OBJECT_ID --query properties.outputs"
    )
    return 0
