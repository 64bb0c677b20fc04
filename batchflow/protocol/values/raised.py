"""What a task raised, told as a class and values, so that the client can rebuild it without its code.

The task's process tells the class by its name, and of the exception its arguments and attributes, in the
encoding of `values`. The client makes an object of the class again where that executes nothing of a task's
or a user's code: builtin exceptions, and classes of the session's own files that are imported there already.
Of a class of the user's, neither `__new__` nor `__init__` is called, but those of its builtin base.
"""

from __future__ import annotations

import builtins
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64

from batchflow.protocol.values.encoding import Decoder, Encoded, Encoder, encode
from batchflow.protocol.values.misfits import Undecodable

TYPE_CHECKING = False  # without `typing`, for the processes that run tasks hold little else
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

_LIMIT: Final = 16 * 1024
"""Bytes of arguments and attributes: they travel in the result's message."""
_BUILTIN: Final = f"{builtins.__name__}:"


def tell(error: BaseException) -> dict[str, str]:
    """Return what travels of an exception: `raised`, its class; `raised_data`, if it can be encoded.

    Whatever the exception does when it is looked at, this returns.
    """
    kind = type(error)
    told = {"raised": _name(kind)}
    try:
        state = [_arguments(error), dict(vars(error))]
        data = encode(state, Encoder(limit=_LIMIT, class_name=_name))
    except Exception:
        return told  # a value that has no encoding, or what a class's own `args` and `__dict__` raise
    joined = data.join() if isinstance(data, Encoded) else data
    if len(joined) <= _LIMIT:
        told["raised_data"] = b2a_base64(joined, newline=False).decode()
    return told


def rebuild(name: str | None, data: str | None, find: Callable[[str], Any]) -> Exception | None:
    """Return the exception that `tell` told; None where it cannot be rebuilt safely.

    `find` returns the class of a name if the session may use it. Whatever comes in, this returns.
    """
    if name is None or data is None:
        return None
    kind = getattr(builtins, name.removeprefix(_BUILTIN), None) if name.startswith(_BUILTIN) else find(name)
    if not isinstance(kind, type) or not issubclass(kind, Exception):
        return None
    try:
        args, attributes = Decoder(resolve=find).decode(a2b_base64(data, strict_mode=True))
    except (Undecodable, Base64Error, TypeError, ValueError):
        return None
    if type(args) is not list or type(attributes) is not dict:
        return None
    return _made(kind, args, attributes)


def _made(kind: type[Exception], args: list[Any], attributes: dict[str, Any]) -> Exception | None:
    base = next(each for each in kind.__mro__ if each.__module__ == builtins.__name__)
    try:
        error: Exception = base.__new__(kind, *args)
        base.__init__(error, *args)  # type: ignore[misc]  # the builtin's own, on purpose
        object.__getattribute__(error, "__dict__").update(attributes)
    except Exception:
        return None  # arguments that no such exception has: a task can claim anything
    return error


def _arguments(error: BaseException) -> list[Any]:
    args = list(error.args)
    if isinstance(error, OSError) and error.filename is not None and len(args) == 2:
        args += [error.filename, None, error.filename2]  # which its `args` leave out
    return args


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"
