"""Whether a failed task runs again, and when."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchflow.errors import ConfigurationError
from batchflow.retry import DEFAULT_ATTEMPTS, Failure, GiveUp, RetryAfter, RetryPolicy, decide

FAILED = Failure("TaskFailed", "ValueError")
EXITED = Failure("TaskFailed", exit_code=3)
DIED = Failure("WorkerDied")
ASKED = Failure("TaskFailed", "Retry", request="retry", delay=7.0)
PERMANENT = Failure("TaskFailed", "Permanent", request="permanent")

EVERYTHING = RetryPolicy(jitter=0)


@pytest.mark.parametrize(
    ("policy", "failure", "attempt", "delay"),
    [
        # No policy: one attempt, unless the task asks for more.
        (None, FAILED, 1, None),
        (None, DIED, 1, None),
        (None, ASKED, 1, 7.0),
        (None, ASKED, DEFAULT_ATTEMPTS - 1, 7.0),
        (None, ASKED, DEFAULT_ATTEMPTS, None),
        (None, PERMANENT, 1, None),
        # A policy for everything, and its doubling delays.
        (EVERYTHING, FAILED, 1, 1.0),
        (EVERYTHING, FAILED, 2, 2.0),
        (EVERYTHING, FAILED, 3, None),
        (EVERYTHING, DIED, 1, 1.0),
        (RetryPolicy(max_attempts=1), FAILED, 1, None),
        (RetryPolicy(max_attempts=1), ASKED, 1, None),
        (RetryPolicy(max_attempts=20, max_backoff=5, jitter=0), FAILED, 10, 5.0),
        (RetryPolicy(max_attempts=10**6, max_backoff=5, jitter=0), FAILED, 10**5, 5.0),
        # What is final stays final.
        (EVERYTHING, PERMANENT, 1, None),
        (EVERYTHING, Failure("TaskCancelled"), 1, None),
        (EVERYTHING, Failure("TaskRejected"), 1, None),
        (EVERYTHING, Failure("TaskCancelled", request="retry"), 1, None),
        # Named failures only.
        (RetryPolicy(on=("ValueError",), jitter=0), FAILED, 1, 1.0),
        (RetryPolicy(on=("KeyError",), jitter=0), FAILED, 1, None),
        (RetryPolicy(on=("TaskFailed",), jitter=0), FAILED, 1, 1.0),
        (RetryPolicy(on=("WorkerDied", "TaskTimeout"), jitter=0), DIED, 1, 1.0),
        (RetryPolicy(on=(3,), jitter=0), EXITED, 1, 1.0),
        (RetryPolicy(on=(4,), jitter=0), EXITED, 1, None),
        (RetryPolicy(on=(), jitter=0), FAILED, 1, None),
        # What the task asks for needs no name in the policy.
        (RetryPolicy(on=()), ASKED, 1, 7.0),
        (None, Failure("TaskFailed", request="retry", delay=-1.0), 1, 0.0),
    ],
)
def test_decision(policy: RetryPolicy | None, failure: Failure, attempt: int, delay: float | None) -> None:
    """The table of decisions: the delay in seconds, or None for giving up."""
    decision = decide(policy, failure, attempt, chance=0.5)
    if delay is None:
        assert isinstance(decision, GiveUp)
        assert decision.reason
    else:
        assert decision == RetryAfter(delay)


@given(st.integers(1, 30), st.floats(0, 1), st.floats(0, 1), st.floats(0, 100), st.floats(0, 1000))
def test_jitter_only_shortens(attempt: int, chance: float, jitter: float, first: float, most: float) -> None:
    """A delay is within its bound, and never below the share that is not left to chance."""
    policy = RetryPolicy(max_attempts=31, backoff=first, max_backoff=most, jitter=jitter)
    decision = decide(policy, FAILED, attempt, chance)
    assert isinstance(decision, RetryAfter)
    full = min(most, first * 2.0 ** (attempt - 1))
    assert full * (1 - jitter) - 1e-9 <= decision.delay <= full


@pytest.mark.parametrize(
    "wrong",
    [{"max_attempts": 0}, {"backoff": -1.0}, {"max_backoff": -0.1}, {"jitter": 1.1}, {"jitter": -0.1},
     {"backoff": float("nan")}, {"backoff": float("inf")}, {"max_backoff": float("nan")}],
)  # fmt: skip
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    """Where it is written, not on the node; what JSON cannot carry included."""
    with pytest.raises(ConfigurationError, match="retry"):
        RetryPolicy(**wrong)


def test_a_policy_travels() -> None:
    """What goes onto the wire is read as the same policy."""
    policy = RetryPolicy(5, 0.5, 10.0, 0.1, ("ValueError", 3))
    assert RetryPolicy.read(policy.fields()) == policy
    assert RetryPolicy.read(None) is None


def test_a_newer_policy_is_read_as_far_as_it_is_known() -> None:
    """Newer writers may add fields."""
    assert RetryPolicy.read({"max_attempts": 2, "a_new_field": 1}) == RetryPolicy(2)


@pytest.mark.parametrize(
    "fields",
    [{"max_attempts": 0}, {"max_attempts": "many"}, {"max_attempts": 1.5}, {"max_attempts": True},
     {"on": 3}, {"on": [[]]}, {"on": "x"}, {"jitter": None}, {"backoff": [1]}, {"backoff": True}],
)  # fmt: skip
def test_a_policy_that_came_wrong_is_refused(fields: dict[str, Any]) -> None:
    """With one error for all that can be wrong with it."""
    with pytest.raises(ConfigurationError, match="retry"):
        RetryPolicy.read(fields)
