"""The deadlines of the locks that are held: renewal and expiry.

Rules:

- A lock is renewed when a third of its duration has passed since it was last known to be ours: two further
  tries fit in before it runs out.
- What is known of a lock counts from when it was asked for, not from when the answer came.
- A renewal that failed is tried again after a twelfth of the duration; a lock that ran out by our own clock
  is lost, even if the broker still grants a renewal later.

States of a lock: held -> renewing (handed out by `due`) -> held again (`renewed`, `failed`), or gone
(`remove`, `lapsed`).

Invariants: `due` hands a token out once until its renewal is answered; `lapsed` tells each lost token once;
`next_deadline` is never later than the first moment at which one of the two has something to report.

Times are seconds of any monotonic clock, passed in.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

RENEW_AFTER: Final = 1 / 3
"""Share of the lock's duration after which the lock is renewed."""
RETRY_AFTER: Final = 1 / 12
"""Share of the lock's duration after which a failed renewal is tried again."""

Token = TypeVar("Token", bound=Hashable)


@dataclass(slots=True)
class _Lock:
    duration: float
    due_at: float
    ends_at: float
    renewing: bool = False

    @property
    def deadline(self) -> float:
        return self.ends_at if self.renewing else min(self.due_at, self.ends_at)


@dataclass(slots=True)
class LockDeadlines(Generic[Token]):
    """The locks that are held, by a token of the caller's choice."""

    _locks: dict[Token, _Lock] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._locks)

    def __contains__(self, token: Token) -> bool:
        return token in self._locks

    def add(self, token: Token, lock_duration: float, now: float) -> None:
        """Record a lock of `lock_duration` seconds that is ours since `now`."""
        self._locks[token] = _Lock(lock_duration, now + lock_duration * RENEW_AFTER, now + lock_duration)

    def remove(self, token: Token) -> None:
        """Forget a lock that was given up or lost. Idempotent."""
        self._locks.pop(token, None)

    def due(self, now: float) -> list[Token]:
        """Return what to renew now. Each token must be answered by `renewed`, `failed` or `remove`."""
        tokens = []
        for token, lock in self._locks.items():
            if not lock.renewing and lock.due_at <= now < lock.ends_at:
                lock.renewing = True
                tokens.append(token)
        return tokens

    def renewed(self, token: Token, asked_at: float) -> None:
        """Record that the renewal requested at `asked_at` was granted."""
        if (lock := self._locks.get(token)) is not None:
            lock.renewing = False
            lock.due_at = asked_at + lock.duration * RENEW_AFTER
            lock.ends_at = asked_at + lock.duration

    def failed(self, token: Token, now: float) -> None:
        """Record that a renewal failed. The lock may still be ours."""
        if (lock := self._locks.get(token)) is not None:
            lock.renewing = False
            lock.due_at = now + lock.duration * RETRY_AFTER

    def lapsed(self, now: float) -> list[Token]:
        """Return and remove the locks that expired by our own clock."""
        tokens = [token for token, lock in self._locks.items() if lock.ends_at <= now]
        for token in tokens:
            del self._locks[token]
        return tokens

    def next_deadline(self) -> float | None:
        """Return the time at which `due` or `lapsed` has something to report, if nothing happens before."""
        return min((lock.deadline for lock in self._locks.values()), default=None)
