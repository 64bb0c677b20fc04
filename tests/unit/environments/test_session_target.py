"""For which Python environments are built, and functions by value are sent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchflow.environments.session import known_python, target_of
from batchflow.protocol.functions import PYTHON
from batchflow.settings import AgentSettings

SETTINGS = AgentSettings()


@pytest.mark.parametrize(
    ("settings", "of_pool", "known"),
    [
        (SETTINGS, None, None),
        (SETTINGS, "3.13", "3.13"),
        (replace(SETTINGS, node_python="3.14"), "3.13", "3.14"),
        (replace(SETTINGS, python="/usr/bin/python3", node_python="3.14"), "3.13", PYTHON),
    ],
)
def test_the_settings_outweigh_the_pool_and_an_interpreter_that_is_named_is_ours(
    settings: AgentSettings, of_pool: str | None, known: str | None
) -> None:
    assert known_python(settings, of_pool) == known
    assert target_of(settings, of_pool).python == (known or "3.12")
    assert target_of(settings, "3.15", carried=True).python == "3.15"
