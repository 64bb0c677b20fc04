"""What can be an environment variable of a task, and what levels make together."""

from __future__ import annotations

from typing import Any

import pytest

from batchflow.errors import ConfigurationError
from batchflow.protocol.variables import LONGEST_VALUE, TaskVariables, task_variables

HIDDEN = "the-value-itself"


def test_what_is_no_variable_is_refused_by_name_and_never_with_its_value() -> None:
    cases: list[tuple[Any, Any, str]] = [
        ([HIDDEN], None, "session: env is of type list"),
        (None, HIDDEN, "session: secrets is of type str"),
        ({"1A": HIDDEN}, None, "session: env: '1A'"),
        ({"A=B": HIDDEN}, None, "session: env: 'A=B'"),
        ({"": HIDDEN}, None, "session: env: ''"),
        ({b"A": HIDDEN}, None, "session: env: a name of type bytes"),
        ({"BATCHFLOW_SLOT": HIDDEN}, None, "session: env: BATCHFLOW_SLOT belongs to the agent"),
        (None, {"A": 1}, "session: secrets: A is of type int"),
        (None, {"A": HIDDEN + "\0"}, "session: secrets: A holds NUL"),
        (None, {"A": HIDDEN + "\ud800"}, "session: secrets: A is no Unicode text"),
        (None, {"A": HIDDEN + "x" * LONGEST_VALUE}, "session: secrets: A has"),
        ({"A": HIDDEN}, {"A": HIDDEN}, "session: A is in env and in secrets"),
        ({f"A{number}": "x" * 100_000 for number in range(11)}, None, "session: env and secrets have"),
    ]
    for env, secrets, expected in cases:
        with pytest.raises(ConfigurationError) as caught:
            task_variables(env, secrets, "session")
        assert str(caught.value).startswith(expected)
        assert HIDDEN not in str(caught.value)


def test_the_nearer_level_wins_whichever_kind_a_name_is_of() -> None:
    pool = TaskVariables(env={"A": "pool", "B": "pool"}, secrets={"C": "pool", "D": "pool"})
    merged = TaskVariables(env={"A": "own", "C": "own"}, secrets={"B": "own"}).over(pool)
    assert merged == TaskVariables(env={"A": "own", "C": "own"}, secrets={"B": "own", "D": "pool"})
    assert merged.all == {"A": "own", "B": "own", "C": "own", "D": "pool"}


def test_no_value_is_in_the_repr_and_none_is_lost_in_the_blob() -> None:
    variables = TaskVariables(env={"A": HIDDEN}, secrets={"B": HIDDEN})
    assert HIDDEN not in repr(variables)
    assert TaskVariables.decode(variables.encode()) == variables
