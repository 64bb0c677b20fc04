"""Why a value does not travel, or cannot be made of what came, and where in the value."""

from __future__ import annotations

import orjson

TYPE_CHECKING = False  # without `typing`, for the processes that run tasks hold little else
if TYPE_CHECKING:
    from typing import Any


class Misfit(Exception):
    """A value that does not travel. `place` is where in the value, without the name of the whole."""

    def __init__(self, what: str, advice: str = "", place: str = "") -> None:
        super().__init__(what, advice, place)
        self.what = what
        self.advice = advice
        self.place = place

    def below(self, step: str) -> Misfit:
        """Return the same error, seen from one level above."""
        return type(self)(self.what, self.advice, _joined(step, self.place))

    def text(self, root: str) -> str:
        """Return the error as a sentence. `root`: the name of the whole value."""
        advice = f": {self.advice}" if self.advice else ""
        return f"{root}{self.place} {self.what}{advice}"

    def __str__(self) -> str:
        return self.text("the value")


class Unencodable(Misfit):
    """The value has no encoding."""


class TooLarge(Misfit):
    """The value is above the limit."""


class Undecodable(Exception):
    """Bytes that are no value, or a value that cannot be made here."""


def _joined(step: str, place: str) -> str:
    joined = step + place
    return joined if len(joined) <= 120 else f"{joined[:117]}..."


def step(key: Any) -> str:
    """Return how a key is written in a place: `["surface"]`."""
    if type(key) is str:
        try:
            return f"[{orjson.dumps(key[:60]).decode()}]"
        except TypeError:
            return f"[{key[:60]!r}]"
    return f"[{shown(key)}]"


def shown(value: Any) -> str:
    """Return a short text of a value, even when its own `__repr__` fails."""
    try:
        text = repr(value)
    except Exception:
        return f"<{type(value).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."
