"""Makes text of a task or a service safe to show: what a terminal would obey becomes visible instead.

A terminal takes control characters for commands: to move, to change its title, to answer as if typed. The
characters that turn the direction of writing hide what a line says.
"""

from __future__ import annotations

from typing import Final

_CONTROLS: Final = (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_KEPT: Final = "\n\t"


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


_TABLE: Final = {code: _escape(code) for code in _CONTROLS if chr(code) not in _KEPT}
_JSON_TABLE: Final = {code: f"\\u{code:04x}" for code in _CONTROLS if code >= 0x7F}


def printable(text: str) -> str:
    """Return the text with an escape like `\\x1b` for each control character but line ends and tabs."""
    return text.replace("\r\n", "\n").translate(_TABLE)


def printable_json(text: str) -> str:
    """Return a JSON document of the same value in which every control character is written as an escape."""
    return text.translate(_JSON_TABLE)
