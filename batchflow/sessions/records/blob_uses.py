"""Until when the blobs of results are kept whose values tasks take from where they lie. Pure.

A blob is deleted when its message was completed and nothing needs it any more: no task that waits or runs
with its value, and no outcome whose value was not fetched. Rules:

- A blob that nothing needed when its message was completed is deleted at once.
- At the session's end the blobs stay that unfinished tasks need. A sweep deletes these.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

User = Hashable
"""What needs a blob."""


class BlobUses:
    """Counts who needs the blobs of one session's results."""

    def __init__(self, delete: Callable[[str], None]) -> None:
        """`delete`: called once with a blob that nothing needs any more."""
        self._delete = delete
        self._users: dict[str, set[User]] = {}
        self._blobs: dict[User, set[str]] = {}
        self._consumed: set[str] = set()
        """Blobs that are needed, and whose messages were completed."""

    def __len__(self) -> int:
        """Return how many blobs are needed."""
        return len(self._users)

    def need(self, blob: str, user: User) -> None:
        """Keep a blob until `free`. Idempotent."""
        self._users.setdefault(blob, set()).add(user)
        self._blobs.setdefault(user, set()).add(blob)

    def needs(self, blob: str, user: User) -> bool:
        """Return whether this user keeps the blob."""
        return user in self._users.get(blob, ())

    def free(self, user: User) -> None:
        """Let all blobs go that this user needed. Idempotent."""
        for blob in self._blobs.pop(user, ()):
            users = self._users[blob]
            users.discard(user)
            if not users:
                del self._users[blob]
                if blob in self._consumed:
                    self._consumed.discard(blob)
                    self._delete(blob)

    def free_each(self, kind: type) -> None:
        """Let all blobs go that users of a kind needed."""
        for user in [user for user in self._blobs if isinstance(user, kind)]:
            self.free(user)

    def consumed(self, blob: str) -> None:
        """Note that the message with this result was completed."""
        if blob in self._users:
            self._consumed.add(blob)
        else:
            self._delete(blob)
