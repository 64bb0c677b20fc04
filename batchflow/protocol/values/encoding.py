"""How values travel that JSON cannot hold: a versioned encoding, the same for arguments and results.

A value that JSON holds exactly travels as JSON. Any other value travels in a container:

======================  ============================================================================
bytes                   content
======================  ============================================================================
5                       ``BF 42 46 56`` (no JSON text begins so), then the version, 1
3                       0
4                       length of the tree, little-endian as all numbers here
4                       number of buffers
8 for each buffer       its length
tree                    JSON: the value, with buffers in place of what is binary
buffers                 each begins at a multiple of 16, counted from the first byte
======================  ============================================================================

In the tree JSON's own types stand for themselves. An object with one key that begins with ``$`` stands for a
value of another type; `types` and `arrays` have the tables. A dictionary that could be mistaken
for one is written as ``{"$dict": [[key, value], ...]}``.

Rules:

- What is encoded is decoded to the same type, dtype and order. Instances of a subclass of a built-in
  container, text or number arrive as the base class, except for those that have a tag of their own.
- Decoding executes nothing that the data names. It imports no module but the standard library's, numpy,
  pandas, polars and pyarrow. Other classes come from `resolve`, and are filled without a call of their code.
- A pickle is opened only by the `unpickle` that the caller passes.
- Whatever bytes come in, `decode` returns a value or raises `Undecodable`.
- What cannot be encoded raises `Unencodable`, which names the place, the type, and what to do.
"""

from __future__ import annotations

from math import isfinite
from struct import Struct
from struct import error as StructError  # noqa: N812 - the standard library's own spelling

import orjson

from batchflow.protocol.values.misfits import Misfit, TooLarge, Undecodable, Unencodable, step
from batchflow.protocol.values.trees import special_atom

TYPE_CHECKING = False  # without `typing`, for the processes that run tasks hold little else
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final


MAGIC: Final = b"\xbfBFV\x01"
_HEADER: Final = Struct("<8sII")
_LENGTH: Final = Struct("<Q")
_ALIGNMENT: Final = 16
DEEPEST: Final = 250
"""Levels of a tree, in which a list takes one, a tuple two and an object three: what orjson writes."""

_EXACT: Final = frozenset((str, int, bool, type(None)))
"""Types whose values stand for themselves in JSON, large integers and lone surrogates apart."""
_ATOMS: Final = _EXACT | {float}


# ---- what JSON holds


def is_json(value: Any, deepest: int = DEEPEST) -> bool:
    """Return whether JSON holds a value exactly, NaN and the infinities in containers not counted.

    For these see `is_finite`, which is needed only when the JSON has a null.
    """
    kind = type(value)
    if kind is dict:
        if not _TEXT.issuperset(map(type, value)):
            return False
        value = value.values()
    elif kind is not list:
        return kind in _ATOMS
    if _ATOMS.issuperset(map(type, value)):
        return True
    if deepest == 0 or not _PLAIN.issuperset(map(type, value)):
        return False
    return all(is_json(item, deepest - 1) for item in value if type(item) in _NESTED)


_TEXT: Final = frozenset((str,))
_NESTED: Final = frozenset((list, dict))
_PLAIN: Final = _ATOMS | _NESTED


def is_finite(value: Any) -> bool:
    """Return whether a value for which `is_json` is true holds no NaN and no infinity."""
    kind = type(value)
    if kind is float:
        return isfinite(value)
    if kind is dict:
        value = value.values()
    elif kind is not list:
        return True
    return all(
        isfinite(item) if type(item) is float else is_finite(item)
        for item in value
        if type(item) not in _EXACT
    )


def to_json(value: Any) -> bytes | None:
    """Return the JSON of a value that JSON holds exactly, else None."""
    if value is None:
        return b"null"
    is_exact = type(value) in _EXACT
    if not is_exact and not is_json(value):
        return None
    try:
        data = orjson.dumps(value)
    except (TypeError, RecursionError):
        return None  # an integer of more than 64 bits, a lone surrogate
    # To look for a null in a long text takes several times as long as to encode it.
    return data if is_exact or b"null" not in data or is_finite(value) else None


# ---- containers


class Encoded:
    """An encoded value: the pieces of a container, not joined, so that large buffers are not copied."""

    __slots__ = ("pieces", "size")

    def __init__(self, tree: bytes, buffers: list[memoryview]) -> None:
        lengths = b"".join([_LENGTH.pack(buffer.nbytes) for buffer in buffers])
        head = _HEADER.pack(MAGIC, len(tree), len(buffers)) + lengths + tree
        self.pieces: list[bytes | memoryview] = [head]
        self.size = len(head)
        """Bytes of the container."""
        for buffer in buffers:
            padding = -self.size % _ALIGNMENT
            self.pieces += (b"\0" * padding, buffer)
            self.size += padding + buffer.nbytes

    def join(self) -> bytes:
        """Return the container."""
        return b"".join(self.pieces)


def is_container(data: bytes | bytearray | memoryview) -> bool:
    """Return whether bytes are a container of any version; else they are JSON."""
    return data[:4] == MAGIC[:4]


def container_size(data: bytes | memoryview) -> int:
    """Return the length of the container at the beginning of some bytes. Raises `Undecodable`."""
    try:
        (_, tree, count), end = _HEADER.unpack_from(data), _HEADER.size
        end += count * _LENGTH.size + tree
        for index in range(count):
            (length,) = _LENGTH.unpack_from(data, _HEADER.size + index * _LENGTH.size)
            end += -end % _ALIGNMENT + length
    except StructError as error:
        raise Undecodable(f"a container that is cut off: {error}") from error
    return int(end)


def _parts(data: bytes | bytearray) -> tuple[bytes, list[memoryview]]:
    """Return the tree and the buffers of a container."""
    version = data[4:5]
    if version != MAGIC[4:5]:
        raise Undecodable(f"a value of version {version.hex()}; this batchflow reads version 01")
    end = container_size(memoryview(data))
    if end != len(data):
        raise Undecodable(f"a container of {len(data)} bytes which says that it has {end}")
    view = memoryview(data)
    _, length, count = _HEADER.unpack_from(view)
    place = _HEADER.size + count * _LENGTH.size
    tree = bytes(view[place : place + length])
    place += length
    buffers = []
    for index in range(count):
        (size,) = _LENGTH.unpack_from(view, _HEADER.size + index * _LENGTH.size)
        place += -place % _ALIGNMENT
        buffers.append(view[place : place + size])
        place += size
    return tree, buffers


# ---- encoding


class Encoder:
    """Makes the tree of one value, and gathers its buffers."""

    def __init__(
        self,
        *,
        limit: int | None = None,
        class_name: Callable[[type], str] | None = None,
        pickle: Callable[[Any, Callable[[Any], object]], bytes] | None = None,
        mark: Callable[[Any], int | None] | None = None,
    ) -> None:
        """`limit`: bytes. `class_name` names a class as the reader knows it, and may raise `Unencodable`.

        `pickle` writes what has no encoding of its own: it gets the value, and what takes its buffers. It
        raises `Unencodable`. `mark` numbers what the reader fills in, and returns None for anything else.
        """
        self._mark = mark
        self.buffers: list[memoryview] = []
        self._depth = 0
        """Levels of the tree."""
        self._limit = limit
        self._size = 0
        self._class_name = class_name
        self._pickle = pickle
        self._careful = False

    def encode(self, value: Any) -> Encoded:
        """Encode a value. Raises `Unencodable` or `TooLarge`."""
        try:
            try:
                tree = orjson.dumps(self.tree(value))
            except (TypeError, orjson.JSONEncodeError):
                # A large integer, or a lone surrogate, among many values that were not looked at singly.
                self._careful = True
                self.buffers.clear()
                self._size = self._depth = 0
                tree = orjson.dumps(self.tree(value))
        except RecursionError:
            raise Unencodable("is nested too deep, or holds itself") from None
        except MemoryError:
            raise TooLarge("does not fit into memory") from None
        encoded = Encoded(tree, self.buffers)
        if self._limit is not None and encoded.size > self._limit:
            raise TooLarge(f"has {encoded.size} bytes, the limit is {self._limit}")
        return encoded

    def tree(self, value: Any) -> Any:
        """Return what stands for a value in the tree. Raises `Unencodable` or `TooLarge`."""
        kind = type(value)
        if kind is str or kind is int or kind is bool or value is None:
            if self._careful and (tag := special_atom(value)) is not None:
                return tag
            return value
        if kind is float:
            return value if isfinite(value) else {"$float": repr(value)}
        if kind is list:
            return self.items(value)
        if kind is dict:
            return self.mapping(value)
        if self._mark is not None and (number := self._mark(value)) is not None:
            return {"$input": number}
        from batchflow.protocol.values.types import encode_other

        return encode_other(self, value)

    def items(self, values: list[Any], *, tags: int = 0) -> list[Any]:
        """Return the trees of several values, in their order. `tags`: levels of the tag around them."""
        if not self._careful:
            kinds = set(map(type, values))
            if kinds <= _EXACT or (kinds == _FLOAT and all(map(isfinite, values))):
                return values
        made: list[Any] = []
        self.deepen(1 + tags)
        try:
            for value in values:
                made.append(self.tree(value))  # noqa: PERF401 - its length is the place of a fault
        except Misfit as error:
            raise error.below(f"[{len(made)}]") from None
        self._depth -= 1 + tags
        return made

    def mapping(self, values: dict[Any, Any]) -> Any:
        """Return the tree of a dictionary."""
        if self._careful or not _TEXT.issuperset(map(type, values)) or any(key[:1] == "$" for key in values):
            return {"$dict": self.pairs(values)}
        self.deepen(1)
        made: dict[str, Any] = {}
        key = ""
        try:
            for key, value in values.items():
                made[key] = self.tree(value)
        except Misfit as error:
            raise error.below(step(key)) from None
        self._depth -= 1
        return made

    def pairs(self, values: dict[Any, Any]) -> list[Any]:
        """Return the trees of keys and values, for keys of any type."""
        self.deepen(3)
        pairs = [[self.key(key), self.below(step(key), value)] for key, value in dict.items(values)]
        self.deepen(-3)
        return pairs

    def key(self, key: Any) -> Any:
        """Return the tree of a key. Raises `Unencodable`, which says that it is one."""
        try:
            return self.tree(key)
        except Unencodable as error:
            raise Unencodable(f"has a key that {error.what}", error.advice) from None

    def below(self, name: str, value: Any) -> Any:
        """Return the tree of a named part; a fault names it."""
        try:
            return self.tree(value)
        except Misfit as error:
            raise error.below(name) from None

    def buffer(self, data: Any) -> int:
        """Add a buffer, which is not copied, and return its number."""
        view = memoryview(data)
        self.fits(view.nbytes)
        self._size += view.nbytes
        self.buffers.append(view.cast("B") if view.nbytes else memoryview(b""))
        return len(self.buffers) - 1

    def fits(self, size: int) -> None:
        """Check whether so many bytes fit, before they are made. Raises `TooLarge`."""
        if self._limit is not None and self._size + size > self._limit:
            raise TooLarge(f"has {self._size + size} bytes, the limit is {self._limit}")

    @property
    def pickles(self) -> bool:
        """Whether what has no encoding of its own is pickled."""
        return self._pickle is not None

    def class_name(self, kind: type) -> str:
        """Return a class's name for the reader."""
        if self._class_name is not None:
            return self._class_name(kind)
        return f"{kind.__module__}:{kind.__qualname__}"

    def attempt(self, write: Callable[[], Any], value: Any) -> Any:
        """Return what `write` returns, or the pickle of the value that it cannot encode."""
        depth, size, count = self._depth, self._size, len(self.buffers)
        try:
            return write()
        except Unencodable as error:
            self._depth, self._size = depth, size
            del self.buffers[count:]
            return self.pickled(value, error)

    def pickled(self, value: Any, why: Unencodable) -> Any:
        """Return a value that has no encoding of its own as a pickle. Raises `why` where none is wanted."""
        if self._pickle is None:
            raise why
        buffers: list[Any] = []
        data = self._pickle(value, buffers.append)
        return {"$pickle": [self.buffer(data), *(self.buffer(buffer.raw()) for buffer in buffers)]}

    def deepen(self, levels: int) -> None:
        """Count levels of the tree; below 0 on the way back. Raises `Unencodable` when there are too many."""
        self._depth += levels
        if self._depth > DEEPEST:
            raise Unencodable("is nested too deep, or holds itself")


_FLOAT: Final = {float}


def encode(value: Any, encoder: Encoder) -> bytes | Encoded:
    """Encode a value: JSON where JSON holds it, else a container. Raises `Unencodable` or `TooLarge`."""
    data = to_json(value)
    return encoder.encode(value) if data is None else data


# ---- decoding


class Decoder:
    """Makes a value of a tree and its buffers."""

    def __init__(
        self,
        *,
        resolve: Callable[[str], Any] | None = None,
        unpickle: Callable[[bytes, list[memoryview]], Any] | None = None,
        fill: Callable[[int], Any] | None = None,
    ) -> None:
        """`resolve` returns the class of a name, or None for one that is not to be used here.

        `unpickle` opens pickles; without it they are refused. `fill` returns what has a number instead of an
        encoding; without it such a place is refused.
        """
        self._fill = fill
        self.buffers: list[memoryview] = []
        self.resolve = resolve or _no_class
        self._unpickle = unpickle

    def decode(self, data: bytes | bytearray) -> Any:
        """Decode JSON or a container. Raises `Undecodable`, never anything else."""
        try:
            if not is_container(data):
                return orjson.loads(data)
            tree, self.buffers = _parts(data)
            return self.value(orjson.loads(tree))
        except Undecodable:
            raise
        except RecursionError as error:
            raise Undecodable("it is nested too deep") from error
        except Exception as error:
            raise Undecodable(f"{type(error).__name__}: {error}"[:500]) from error
        finally:
            self.buffers = []

    def value(self, tree: Any) -> Any:
        """Return the value that a tree stands for."""
        kind = type(tree)
        if kind is list:
            return self.items(tree)
        if kind is not dict:
            return tree
        if len(tree) == 1:
            (name,) = tree
            if name[:1] == "$":
                return self._tagged(name, tree[name])
        return {key: part if type(part) in _ATOMS else self.value(part) for key, part in tree.items()}

    def items(self, trees: list[Any]) -> list[Any]:
        """Return the values of several trees."""
        if set(map(type, trees)) <= _ATOMS:
            return trees
        return [tree if type(tree) in _ATOMS else self.value(tree) for tree in trees]

    def _tagged(self, name: str, content: Any) -> Any:
        if name == "$float":
            return float(content)
        if name == "$dict":
            return {self.value(key): self.value(part) for key, part in content}
        if name == "$pickle":
            return self._unpickled(content)
        if name == "$input" and self._fill is not None:
            return self._fill(content)
        from batchflow.protocol.values.types import decode_other

        return decode_other(self, name, content)

    def buffer(self, index: Any) -> memoryview:
        """Return a buffer by its number."""
        if type(index) is not int or not 0 <= index < len(self.buffers):
            raise Undecodable(f"there is no buffer {index!r}")
        return self.buffers[index]

    def _unpickled(self, content: list[int]) -> Any:
        if self._unpickle is None:
            raise Undecodable("it holds a pickle, which can execute code, so it is not opened here")
        data, *buffers = [self.buffer(index) for index in content]
        return self._unpickle(bytes(data), buffers)


def _no_class(name: str) -> None:
    return None
