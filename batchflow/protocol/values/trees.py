"""What the encodings of single types are given to work with: the writer and the reader of a tree."""

from __future__ import annotations

TYPE_CHECKING = False  # without `typing`, for the processes that run tasks hold little else
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from batchflow.protocol.values.misfits import Unencodable

    class TreeWriter(Protocol):
        """Makes the tree of one value, and gathers its buffers; see `encoding.Encoder`."""

        @property
        def pickles(self) -> bool: ...

        def tree(self, value: Any) -> Any: ...

        def items(self, values: list[Any], *, tags: int = 0) -> list[Any]: ...

        def mapping(self, values: dict[Any, Any]) -> Any: ...

        def pairs(self, values: dict[Any, Any]) -> list[Any]: ...

        def key(self, key: Any) -> Any: ...

        def below(self, name: str, value: Any) -> Any: ...

        def buffer(self, data: Any) -> int: ...

        def fits(self, size: int) -> None: ...

        def class_name(self, kind: type) -> str: ...

        def attempt(self, write: Callable[[], Any], value: Any) -> Any: ...

        def pickled(self, value: Any, why: Unencodable) -> Any: ...

        def deepen(self, levels: int) -> None: ...

    class TreeReader(Protocol):
        """Makes a value of a tree and its buffers; see `encoding.Decoder`."""

        @property
        def resolve(self) -> Callable[[str], Any]: ...

        def value(self, tree: Any) -> Any: ...

        def items(self, trees: list[Any]) -> list[Any]: ...

        def buffer(self, index: Any) -> memoryview: ...


def special_atom(value: Any) -> dict[str, Any] | None:
    """Return the tree of a text or a number that JSON does not hold; None for all others."""
    if type(value) is int and not -(2**63) <= value < 2**64:
        return {"$int": hex(value)}
    if type(value) is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            return {"$str": value.encode("utf-8", "surrogatepass").hex()}
    return None
