"""What the library tells to do, as a command instead of a call."""

from __future__ import annotations

import re
from typing import Final

_CALL: Final = re.compile(r"(?:await )?(?:pool|client)\.(\w+)\(([^()]*)\)")
_VERBS: Final = {
    "start": "start",
    "stop": "stop",
    "resize": "resize",
    "repurpose": "repurpose",
    "delete": "delete",
    "ensure_pool": "ensure",
}


def as_commands(text: str, pool: str = "POOL") -> str:
    """Replace calls of a pool by the command that does the same; the rest of the text stays."""
    return _CALL.sub(lambda call: _command(call, pool), text)


def _command(call: re.Match[str], pool: str) -> str:
    name, arguments = call.groups()
    if name not in _VERBS:
        return call[0]
    words = ["batchflow pool", _VERBS[name], pool]
    if name == "resize":
        words.append(arguments if arguments.isdecimal() else "N")
    if "reset=True" in arguments:
        words.append("--reset")
    return " ".join(words)
