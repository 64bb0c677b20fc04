"""`batchflow doctor`: whether everything is as it should be, and what to do where it is not."""

from __future__ import annotations

import platform
import shutil
import sys
from typing import TYPE_CHECKING

import click

from batchflow.cli import terminal
from batchflow.cli.command import Command, Invocation, asynchronous
from batchflow.cli.connecting import settings_of
from batchflow.cli.exits import Exit
from batchflow.cli.probes import Check, try_accounts
from batchflow.cli.remedies import as_commands
from batchflow.errors import BatchflowError, ConfigurationError

if TYPE_CHECKING:
    from batchflow.config.project_file import Configuration
    from batchflow.settings import Settings


@click.command(cls=Command)
@asynchronous
async def doctor(invocation: Invocation) -> int:
    """Check this machine, the configuration, the three accounts and the pools.

    Exit code 1 when something is not as it should be.
    """
    checks = _machine()
    try:
        configuration = invocation.configuration()
        settings = settings_of(configuration) if configuration.settings.connected else configuration.settings
        if not settings.connected:
            settings = _local_or_same(configuration)
    except ConfigurationError as error:
        checks.append(
            Check("configuration", False, str(error), "batchflow init writes one; batchflow up needs none")
        )
    else:
        checks.append(_found(configuration, settings))
        accounts = await try_accounts(settings)
        checks += accounts
        if all(check.ok for check in accounts):
            checks += await _pools(settings)
    if invocation.as_json:
        terminal.write_json([check.document() for check in checks])
    else:
        for check in checks:
            check.show()
    return Exit.OK if all(check.ok for check in checks) else Exit.FAILED


def _local_or_same(configuration: Configuration) -> Settings:
    """Return the local cloud that is up; for Azure the settings, however incomplete."""
    try:
        return settings_of(configuration)
    except ConfigurationError:
        if configuration.settings.target == "local" or configuration.path is None:
            raise
        return configuration.settings


def _machine() -> list[Check]:
    version = platform.python_version()
    linux = sys.platform == "linux"
    java = shutil.which("java")
    return [
        Check("Python", True, version),
        Check("system", linux, platform.platform(), "" if linux else "batchflow runs on Linux alone"),
        Check("Java", True, java or "none here: tasks that are jars need it on the nodes"),
    ]


def _found(configuration: Configuration, settings: Settings) -> Check:
    where = str(configuration.path) if configuration.path is not None else "no file"
    profile = f", profile {configuration.profile}" if configuration.profile else ""
    return Check("configuration", True, f"{where}{profile}; target {settings.target}")


async def _pools(settings: Settings) -> list[Check]:
    from batchflow.client import Client

    checks = []
    async with Client(settings) as client:
        async for pool in client.pools():
            try:
                explanation = await pool.explain()
            except BatchflowError as error:
                checks.append(Check(f"pool {pool.id}", False, str(error)))
                continue
            blocking = [cause for cause in explanation.causes if cause.severity == "blocking"]
            idle = explanation.facts.get("agents") == {}
            text = "; ".join(f"{cause.what}: {cause.remedy}" for cause in blocking)
            remedy = as_commands(text, pool.id)
            ok = not blocking or (idle and len(blocking) == 1)
            checks.append(Check(f"pool {pool.id}", ok, explanation.summary, "" if ok else remedy))
    return checks
