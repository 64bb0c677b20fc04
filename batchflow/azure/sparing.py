"""Importing the SDKs without what only their blocking halves need.

The SDKs of Service Bus and of storage ask azure-core for its `RequestsTransport` as they are imported, for
clients that block, and so load requests, urllib3 and what these bring: 45 ms and 5 MB of every client and
every agent, and nothing of it is used here. azure-core itself loads it when it is first wanted. So it is done
for the SDKs too: within `sparing` they find something in its place that becomes it when it is used. A program
that blocks beside this one, or imports it itself, notices nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from azure.core.pipeline import transport

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME: Final = "RequestsTransport"


@contextmanager
def sparing() -> Iterator[None]:
    """For import statements. An azure-core that loads it at once is left as it is."""
    present = vars(transport)
    if NAME not in present and "__getattr__" in present:
        present[NAME] = _Late()
    try:
        yield
    finally:
        if isinstance(present.get(NAME), _Late):
            present.pop(NAME, None)  # another thread may have been quicker


class _Late:
    """Stands for the class: called, subclassed, or asked whether something is one of its."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return _real()(*arguments, **options)

    def __mro_entries__(self, _bases: tuple[Any, ...]) -> tuple[type[Any]]:
        return (_real(),)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, _real())


def _real() -> type[Any]:
    found: type[Any] = transport.__getattr__(NAME)
    return found
