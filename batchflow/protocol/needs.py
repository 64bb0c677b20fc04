"""What a task requires of its node, and what a node has. Pure.

A task says so in its field `requires`: ``{"slots": 2 | "all", "memory": bytes, "gpus": 1, "tags": ["ssd"]}``,
each optional. An agent of an earlier version does not know the field.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, Protocol

from batchflow.support.frozen import frozen

NEEDS: Final = "requires"
"""What an agent's heartbeat has among `accepts` when the agent looks at what tasks require."""
ALL: Final = 0
"""What stands for all slots of a node."""
_KEYS: Final = ("slots", "memory", "gpus", "tags")
_MOST_TAGS: Final = 32
_LONGEST_TAG: Final = 64


class NodeKind(Protocol):
    """What counts of a node. An agent's heartbeat has it."""

    @property
    def slots(self) -> int: ...

    @property
    def memory(self) -> int | None:
        """Bytes of the machine; None where it is not known."""

    @property
    def gpus(self) -> int: ...

    @property
    def tags(self) -> Collection[str]: ...


@frozen
class KnownNode:
    """A node as its own agent knows it."""

    slots: int
    memory: int | None = None
    gpus: int = 0
    tags: frozenset[str] = frozenset()


@frozen
class Needs:
    """What a task requires."""

    slots: int = 1
    """That it occupies; `ALL`: each slot of its node."""
    memory: int = 0
    """Bytes of its node that are its own among the tasks that require memory."""
    gpus: int = 0
    """Of its node, that are its own."""
    tags: tuple[str, ...] = ()
    """That its node has, each of them."""

    @classmethod
    def read(cls, value: Any) -> Needs:
        """Read what the user or a message has. Raises ValueError, which says what is wrong with which key."""
        if not isinstance(value, Mapping):
            raise ValueError(f"it is {value!r}; a table with some of {', '.join(_KEYS)} is needed")
        if unknown := [key for key in value if key not in _KEYS]:
            raise ValueError(f"unknown key {unknown[0]!r}; there are {', '.join(_KEYS)}")
        slots = value.get("slots", 1)
        if slots != "all" and not _is_count(slots, 1):
            raise ValueError(f'slots is {slots!r}; a whole number above 0, or "all", is needed')
        for key, what in (("memory", "bytes"), ("gpus", "GPUs")):
            if not _is_count(value.get(key, 0), 0):
                raise ValueError(f"{key} is {value[key]!r}; a whole number of {what} is needed")
        tags = value.get("tags", ())
        if not are_tags(tags):
            raise ValueError(f"tags is {tags!r}; a list of words is needed")
        return cls(
            slots=ALL if slots == "all" else slots,
            memory=value.get("memory", 0),
            gpus=value.get("gpus", 0),
            tags=tuple(dict.fromkeys(tags)),
        )

    def fields(self) -> dict[str, Any]:
        """Return it as it travels."""
        found: dict[str, Any] = {}
        if self.slots != 1:
            found["slots"] = "all" if self.slots == ALL else self.slots
        if self.memory:
            found["memory"] = self.memory
        if self.gpus:
            found["gpus"] = self.gpus
        if self.tags:
            found["tags"] = list(self.tags)
        return found

    def lacking(self, node: NodeKind) -> str | None:
        """Return what a node of this kind lacks, however idle it is, in words; None: nothing."""
        if self.slots > node.slots:
            return f"{self.slots} slots, it has {node.slots}"
        if node.memory is not None and self.memory > node.memory:
            return f"{self.memory} bytes of memory, it has {node.memory}"
        if self.gpus > node.gpus:
            return f"{self.gpus} GPUs, it has {node.gpus}"
        missing = [tag for tag in self.tags if tag not in node.tags]
        return f"the tag {missing[0]!r}, it has {', '.join(sorted(node.tags)) or 'none'}" if missing else None

    def __str__(self) -> str:
        slots = "all its slots" if self.slots == ALL else f"{self.slots} slots"
        parts = [slots] if self.slots != 1 or not (self.memory or self.gpus) else []
        parts += [f"{self.memory} bytes of memory"] if self.memory else []
        parts += [f"{self.gpus} GPUs"] if self.gpus else []
        return " and ".join(parts)

    @property
    def reserves(self) -> bool:
        """Whether it takes something that other tasks cannot have meanwhile, beside one slot."""
        return self.slots != 1 or self.memory > 0 or self.gpus > 0


def are_tags(value: Any) -> bool:
    """Return whether a value is a list of tags: words of at most 64 characters, 32 of them at most."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return False
    tags = list(value)
    return len(tags) <= _MOST_TAGS and all(map(_is_tag, tags))


def _is_tag(tag: Any) -> bool:
    return isinstance(tag, str) and 0 < len(tag) <= _LONGEST_TAG and not any(map(str.isspace, tag))


def unmet(needs: Needs, nodes: Iterable[NodeKind]) -> str | None:
    """Return what the nodes lack, in words, when none of them can ever run the task; None: one can.

    None as well when there are no nodes.
    """
    said: str | None = None
    for node in nodes:
        lack = needs.lacking(node)
        if lack is None:
            return None
        said = said or lack
    return said


def _is_count(value: Any, least: int) -> bool:
    return type(value) is int and least <= value < 1 << 62
