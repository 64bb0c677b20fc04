"""Dataclasses with slots that are not changed, cheap to define and cheap to create.

`dataclass(frozen=True, slots=True)` compiles six methods for each class, which takes 0.4 to 0.8 ms: with a
hundred of them a quarter of what an agent or a local cloud took to start. And it makes an object field by
field through `object.__setattr__`, at two to three times the cost. `frozen` compiles only `__init__`; the
rest is the same for all. The type checker alone prevents assignments to fields. Values for users
(`batchflow.model`, `batchflow.settings`, ...) are ordinary frozen dataclasses. If one of these is created for
each task, `maker` creates it as cheaply.
"""

from __future__ import annotations

import dataclasses
from copy import copy
from operator import attrgetter
from typing import Any, TypeVar, cast, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def frozen(cls: type[T]) -> type[T]:
    """Make a dataclass with slots. Objects with equal fields are equal, and hashable if their fields are.

    `field(repr=False)` and `field(compare=False)` mean what they do in a dataclass; `replace`, `fields` and
    `asdict` of `dataclasses` work.
    """
    made: Any = dataclasses.dataclass(slots=True, eq=False, repr=False)(cls)
    for name, method in (("__eq__", _eq), ("__hash__", _hash), ("__repr__", _repr)):
        if name not in cls.__dict__:
            setattr(made, name, method)
    compared = [field.name for field in dataclasses.fields(made) if field.compare]
    made.__compared__ = staticmethod(attrgetter(*compared) if compared else _nothing)
    return made  # type: ignore[no-any-return]


def maker(cls: type[T]) -> type[T]:
    """Make a faster constructor for a frozen dataclass with slots: 0.9 instead of 3.5 µs for a `Result`.

    It is a class of the same layout that is not frozen. Its objects change to the other class once made.
    """

    def become(made: Any) -> None:
        made.__class__ = cls

    fields = [(each.name, Any, copy(each)) for each in dataclasses.fields(cast("Any", cls))]
    return cast(
        "type[T]",
        dataclasses.make_dataclass(
            cls.__name__,
            fields,
            bases=cls.__dict__.get("__orig_bases__", cls.__bases__),  # another base is another layout
            namespace={"__post_init__": become},
            slots=True,
            eq=False,
            repr=False,
        ),
    )


def _nothing(_: object) -> tuple[()]:
    return ()


def _eq(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return self.__compared__(self) == other.__compared__(other)


def _hash(self: Any) -> int:
    return hash(self.__compared__(self))


def _repr(self: Any) -> str:
    shown = (f"{each.name}={getattr(self, each.name)!r}" for each in dataclasses.fields(self) if each.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"
