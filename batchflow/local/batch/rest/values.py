"""Reading a request's body: typed properties, refusals of what does not fit, ISO 8601 durations.

Numbers and booleans may come as strings: some of Azure's own clients send them so.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from batchflow.local.batch.core.errors import Refused, invalid_property, not_implemented
from batchflow.local.batch.rest.shapes import SHAPES, check

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_DEPTH = 64
"""Values of a body inside one another."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DURATION = re.compile(
    r"P(?:(?P<days>\d+(?:\.\d+)?)D)?"
    r"(?:T(?:(?P<hours>\d+(?:\.\d+)?)H)?(?:(?P<minutes>\d+(?:\.\d+)?)M)?(?:(?P<seconds>\d+(?:\.\d+)?)S)?)?"
)
_ENVIRONMENTS = ("environmentSettings", "commonEnvironmentSettings")
_LONGEST = 10_675_200 * 86_400.0
_SECONDS = {"days": 86400.0, "hours": 3600.0, "minutes": 60.0, "seconds": 1.0}


class Fields:
    """The properties of one JSON object of a request, read by name and type.

    `finish` refuses what was not read, so that a misspelt property is an error. A property whose value is
    null counts as absent.
    """

    def __init__(self, value: object, path: str = "") -> None:
        if not isinstance(value, dict):
            raise Refused("InvalidRequestBody", PropertyName=path or "(body)", Reason="an object is expected")
        self.document: dict[str, Any] = {key: item for key, item in value.items() if item is not None}
        self._path = path
        self._unread = set(self.document)

    def name(self, key: str) -> str:
        """Return the property's path from the body's root, for messages."""
        return f"{self._path}.{key}" if self._path else key

    def get(self, key: str) -> Any:
        """Return the raw value, None when absent."""
        self._unread.discard(key)
        return self.document.get(key)

    def identifier(self, key: str) -> str:
        """Return an id: 1 to 64 letters, digits, hyphens and underscores."""
        value = self.required_text(key)
        if _ID.fullmatch(value) is None:
            reason = "An id has 1 to 64 characters: letters, digits, hyphens and underscores."
            raise invalid_property(self.name(key), value, reason)
        return value

    def required_text(self, key: str) -> str:
        """Return a string that has to be there."""
        value = self.text(key)
        if not value:
            raise Refused("MissingRequiredProperty", PropertyName=self.name(key))
        return value

    def text(self, key: str, default: str | None = None) -> str | None:
        """Return a string."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise invalid_property(self.name(key), value, "A string is expected.")
        return value

    def choice(self, key: str, allowed: Iterable[str], default: str) -> str:
        """Read one of the words allowed, in any case."""
        value = (self.text(key, default) or default).lower()
        if value not in allowed:
            raise invalid_property(self.name(key), value, f"Allowed: {', '.join(allowed)}.")
        return value

    def integer(self, key: str, default: int, *, low: int, high: int = 2**31 - 1) -> int:
        """Return a whole number between two bounds."""
        value = self.get(key)
        if value is None:
            return default
        try:
            number = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else None
        except ValueError:
            number = None
        if number is None:
            raise invalid_property(self.name(key), value, "A whole number is expected.")
        if not low <= number <= high:
            raise invalid_property(self.name(key), value, f"Allowed: {low} to {high}.")
        return number

    def boolean(self, key: str, default: bool) -> bool:
        """Read true or false."""
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if not isinstance(value, bool):
            raise invalid_property(self.name(key), value, "true or false is expected.")
        return value

    def seconds(self, key: str, default: float | None) -> float | None:
        """Return an ISO 8601 duration, in seconds."""
        value = self.text(key)
        if value is None:
            return default
        seconds = parse_duration(value)
        if seconds is None:
            raise invalid_property(self.name(key), value, "An ISO 8601 duration is expected.")
        return seconds

    def fields(self, key: str) -> Fields | None:
        """Return an object within."""
        value = self.get(key)
        return None if value is None else Fields(value, self.name(key))

    def each(self, key: str) -> Iterator[Fields]:
        """Return the objects of a list within."""
        value = self.get(key)
        if value is None:
            return
        if not isinstance(value, list):
            raise invalid_property(self.name(key), value, "A list is expected.")
        for number, item in enumerate(value):
            yield Fields(item, f"{self.name(key)}[{number}]")

    def pairs(self, key: str) -> dict[str, str]:
        """Return a list of name and value, as environment settings and metadata are."""
        read: dict[str, str] = {}
        for item in self.each(key):
            name = item.required_text("name")
            read[name] = item.text("value", "") or ""
            if key in _ENVIRONMENTS and ("=" in name or "\0" in name + read[name]):
                reason = "No process has a variable with '=' in its name, or with the character NUL."
                raise invalid_property(item.name("name"), name, reason)
            item.finish()
        return read

    def keep(self, *keys: str) -> dict[str, Any]:
        """Return properties that the service only repeats, checked where their shape is known."""
        kept = {key: value for key in keys if (value := self.get(key)) is not None}
        for key in kept.keys() & SHAPES.keys():
            check(kept[key], SHAPES[key], self.name(key))
        return kept

    def refuse(self, *keys: str) -> None:
        """Refuse properties that ask for what the local service does not do."""
        for key in keys:
            if self.get(key) is not None:
                raise not_implemented(f"the property '{self.name(key)}'")

    def finish(self) -> None:
        """Refuse properties that were not read."""
        for key in sorted(self._unread):
            reason = "the property does not exist on this type"
            raise Refused("InvalidRequestBody", PropertyName=self.name(key), Reason=reason)


def parse_body(body: bytes) -> Any:
    """Return the JSON value of a request's body; None for an empty one. Raises Refused."""
    if not body:
        return None
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused("InvalidRequestBody", Reason=error) from None
    if _is_deeper(document, MAX_DEPTH):
        # It could be read, and not be written again with what is around it.
        raise Refused("InvalidRequestBody", Reason=f"values are nested more than {MAX_DEPTH} deep")
    return document


def _is_deeper(value: Any, depth: int) -> bool:
    """Tell whether values are inside one another more than so many times."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(item, depth - 1) for item in inner)


def parse_duration(text: str) -> float | None:
    """Return the seconds of an ISO 8601 duration of days and smaller; None when it is not one.

    The longest that there is takes 10,675,199 days.
    """
    match = _DURATION.fullmatch(text)
    if match is None or text.endswith(("P", "T")):
        return None
    duration = sum(float(match[unit] or 0) * seconds for unit, seconds in _SECONDS.items())
    return duration if duration <= _LONGEST else None


def iso_time(seconds: float) -> str:
    """Return a time as the service writes it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
