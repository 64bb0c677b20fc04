"""What the end of an agent's stderr tells people. Pure.

An agent logs lines of JSON; before it runs, the interpreter, pip or a shell may have said anything. Lines are
told as they stand, those of JSON by their event and what explains it; what is only news is left out when
something went wrong.
"""

from __future__ import annotations

import json
from typing import Any, Final

from batchflow.support.frozen import frozen

MOST_LINES: Final = 16
_MOST_CHARACTERS: Final = 240
_WRONG: Final = frozenset({"WARNING", "ERROR", "CRITICAL"})
_DIED: Final = "agent_died"
_LAST_FRAMES: Final = 5
"""Lines of an exception's text that are told: its end names what happened and where."""
_PLAIN: Final = ("error", "exit_code", "lived", "path", "code")
"""Fields that explain an event."""


@frozen
class AgentLog:
    """How often the agent died, as far back as the text goes, and its last words."""

    crashes: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.words)


def read(text: str) -> AgentLog:
    """Read the end of a log, whose first line may be cut in its middle."""
    lines = [line for line in text.splitlines() if line.strip()]
    entries = [_parse(line) for line in lines]
    crashes = sum(entry is not None and entry.get("event") == _DIED for entry in entries)
    told = [(entry, _told(line, entry)) for line, entry in zip(lines, entries, strict=True)]
    wrong = [words for entry, words in told if entry is None or entry.get("level") in _WRONG]
    chosen = wrong or [words for _, words in told[-3:]]
    flat = [each[:_MOST_CHARACTERS] for words in chosen for each in words]
    return AgentLog(crashes, tuple(flat[-MOST_LINES:]))


def _parse(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "event" in entry else None


def _told(line: str, entry: dict[str, Any] | None) -> list[str]:
    if entry is None:
        return [line.rstrip()]
    details = ", ".join(f"{name} {entry[name]}" for name in _PLAIN if entry.get(name) is not None)
    exception = str(entry.get("exception") or "").strip().splitlines()
    return [": ".join(part for part in (str(entry["event"]), details) if part), *exception[-_LAST_FRAMES:]]
