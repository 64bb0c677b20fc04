"""The environment variables of tasks, as a client gives them and an agent gets them. Pure.

They lie in a blob of the pool's control container, and a task names that blob. So a message, a bundle and
Azure Batch hold none of them. The names of these blobs have a random part, and a blob is never changed: an
agent may keep what it has read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from batchflow.errors import ConfigurationError
from batchflow.protocol.documents import Document

MARK: Final = "BATCHFLOW_SLOT"
"""The variable by which an agent finds the processes of a task again: no task may have another value."""
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
LONGEST_VALUE: Final = 128 * 1024 - 512
"""Bytes of a value. Linux starts no program with a longer one (MAX_ARG_STRLEN, less the name)."""
MOST_BYTES: Final = 1024**2
"""Bytes of all of them. Linux has room for 2 MiB, with the arguments, where the stack may have 8 MiB."""


@dataclass(frozen=True, slots=True)
class TaskVariables(Document):
    """Environment variables of tasks. No value is in the `repr`."""

    VERSION: ClassVar[int] = 1

    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return bool(self.env or self.secrets)

    @property
    def all(self) -> dict[str, str]:
        """What a task finds in its environment: both kinds."""
        return {**self.env, **self.secrets}

    def over(self, base: TaskVariables) -> TaskVariables:
        """Return these together with those of the base that have other names."""
        own = self.env.keys() | self.secrets.keys()
        kept = [
            {name: value for name, value in each.items() if name not in own}
            for each in (base.env, base.secrets)
        ]
        return TaskVariables(env=kept[0] | dict(self.env), secrets=kept[1] | dict(self.secrets))


def task_variables(env: Any, secrets: Any, where: str) -> TaskVariables:
    """Check what a user gives as variables; None stands for none.

    `where`: what they belong to, such as `session`. Raises `ConfigurationError`, which names the variable
    and never its value.
    """
    checked = {}
    for kind, given in (("env", env), ("secrets", secrets)):
        if given is not None and not isinstance(given, Mapping):
            raise ConfigurationError(
                f"{where}: {kind} is of type {type(given).__name__}; a dict from names to texts is needed"
            )
        checked[kind] = {
            name: _checked(name, value, f"{where}: {kind}") for name, value in (given or {}).items()
        }
    if both := sorted(checked["env"].keys() & checked["secrets"].keys()):
        raise ConfigurationError(f"{where}: {both[0]} is in env and in secrets; one of them is needed")
    found = TaskVariables(env=checked["env"], secrets=checked["secrets"])
    size = sum(len(name) + len(value.encode()) + 2 for name, value in found.all.items())
    if size > MOST_BYTES:
        raise ConfigurationError(
            f"{where}: env and secrets have {size} bytes together, at most {MOST_BYTES} are possible; pass "
            "what is large as an argument or as a file of the bundle"
        )
    return found


def _checked(name: Any, value: Any, where: str) -> str:
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        shown = repr(name[:80]) if isinstance(name, str) else f"a name of type {type(name).__name__}"
        raise ConfigurationError(
            f"{where}: {shown} cannot be the name of a variable; letters, digits and '_' are needed, "
            "no digit first"
        )
    if name == MARK:
        raise ConfigurationError(f"{where}: {name} belongs to the agent; another name is needed")
    if not isinstance(value, str):
        raise ConfigurationError(f"{where}: {name} is of type {type(value).__name__}; a text is needed")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ConfigurationError(f"{where}: {name} is no Unicode text: it holds half of a pair") from None
    if "\0" in value:
        raise ConfigurationError(f"{where}: {name} holds NUL, which no environment variable can")
    if size > LONGEST_VALUE:
        raise ConfigurationError(
            f"{where}: {name} has {size} bytes, at most {LONGEST_VALUE} are possible; pass it as an argument"
        )
    return value
