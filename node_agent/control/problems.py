"""The problems that keep the agent from working, in words, by the part that noticed them."""

from __future__ import annotations

from collections.abc import Callable


class Problems:
    """The problems that parts of the agent report and its heartbeat tells; a change calls `changed`."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._texts: dict[str, str] = {}
        self._changed = changed

    def begin(self, where: str, text: str) -> bool:
        """Report a problem; return True when the part had none before."""
        new = where not in self._texts
        if self._texts.get(where) != text:
            self._texts[where] = text
            self._changed()
        return new

    def end(self, where: str) -> bool:
        """Clear a problem; return True when the part had one."""
        if self._texts.pop(where, None) is None:
            return False
        self._changed()
        return True

    @property
    def text(self) -> str | None:
        return "; ".join(self._texts.values()) or None
