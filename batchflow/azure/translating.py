"""A `with` block in which what an SDK raises becomes an error of batchflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from azure.core.exceptions import AzureError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from batchflow.errors import ServiceError


class Translating:
    """Translates what goes wrong inside: `with Translating(partial(pool_error, doing="cannot list")):`"""

    def __init__(self, translate: Callable[[BaseException], ServiceError]) -> None:
        self._translate = translate

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, AzureError | OSError | ValueError):
            raise self._translate(error) from error
