"""Decides whether a failed task is tried again. Pure.

Rules: `Permanent` and cancelled tasks never; a `Retry` raised by the task as long as attempts are left,
after the delay it asks for; any other failure when the policy's `on` names it. No policy means one attempt,
but `Retry` still counts against `DEFAULT_ATTEMPTS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, Self

from batchflow.errors import ConfigurationError

DEFAULT_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When and how often a failed task runs again."""

    max_attempts: int = DEFAULT_ATTEMPTS
    """Maximum number of attempts, the first included."""
    backoff: float = 1.0
    """Seconds before the second attempt; doubles with each further one."""
    max_backoff: float = 300.0
    """Maximum delay in seconds."""
    jitter: float = 0.5
    """The share of a delay that is left to chance, 0 to 1."""
    on: tuple[str | int, ...] = ("*",)
    """Failures that are tried again: names of exceptions (`ValueError`) or of outcomes (`TaskTimeout`),
    exit codes; "*" is everything."""

    def __post_init__(self) -> None:
        if type(self.max_attempts) is not int or self.max_attempts < 1:
            raise ConfigurationError(
                f"retry: max_attempts is {self.max_attempts!r}; a whole number, at least 1, is needed"
            )
        for name in ("backoff", "max_backoff", "jitter"):
            value = getattr(self, name)
            most = 1.0 if name == "jitter" else math.inf
            if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value <= most:
                raise ConfigurationError(
                    f"retry: {name} is {value!r}; seconds, 0 or more, are needed (jitter: 0 to 1)"
                )
        if not isinstance(self.on, tuple) or not all(isinstance(name, str | int) for name in self.on):
            raise ConfigurationError(f"retry: on is {self.on!r}; a tuple of names or exit codes is needed")

    def fields(self) -> dict[str, Any]:
        """Return the policy as it travels with a task."""
        return asdict(self)

    @classmethod
    def read(cls, table: Mapping[str, Any] | None) -> Self | None:
        """Read a policy that came with a task; unknown fields are ignored. Raises `ConfigurationError`."""
        if table is None:
            return None
        known = {item.name: table[item.name] for item in fields(cls) if item.name in table}
        if isinstance(known.get("on"), list):
            known["on"] = tuple(known["on"])
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt, as the decision needs it."""

    kind: str
    """The name of the outcome: `TaskFailed`, `WorkerDied`, ..."""
    exception: str | None = None
    """The name of the exception's type, if one was raised."""
    exit_code: int | None = None
    request: Literal["retry", "permanent"] | None = None
    """The request that the task's code made by its exception."""
    delay: float = 0.0
    """Delay in seconds, with `request="retry"`."""


@dataclass(frozen=True, slots=True)
class RetryAfter:
    delay: float
    """Delay in seconds."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    reason: str


_NEVER: Final = frozenset({"TaskCancelled", "TaskRejected"})


def decide(policy: RetryPolicy | None, failure: Failure, attempt: int, chance: float) -> RetryAfter | GiveUp:
    """Decide. `attempt`: the number of the failed one, from 1; `chance`: 0 to 1, drawn by the caller."""
    most = DEFAULT_ATTEMPTS if policy is None else policy.max_attempts
    if failure.request == "permanent":
        return GiveUp("the task said that its failure is permanent")
    if failure.kind in _NEVER:
        return GiveUp(f"{failure.kind} is final")
    if attempt >= most:
        return GiveUp(f"attempt {attempt} of {most}")
    if failure.request == "retry":
        return RetryAfter(max(0.0, failure.delay))
    if policy is None:
        return GiveUp("no retry policy")
    if not _named(policy.on, failure):
        return GiveUp("the policy does not name this failure")
    delay = min(policy.max_backoff, policy.backoff * 2.0 ** min(attempt - 1, 64))
    return RetryAfter(delay * (1 - policy.jitter * chance))


def _named(on: tuple[str | int, ...], failure: Failure) -> bool:
    names = {"*", failure.kind, failure.exception, failure.exit_code}
    return any(name in names for name in on)
