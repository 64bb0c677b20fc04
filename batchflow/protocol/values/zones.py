"""The trees of time zones; see `encoding`."""

from __future__ import annotations

from batchflow.protocol.values.misfits import Unencodable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from batchflow.protocol.values.trees import TreeReader, TreeWriter


def zone_of(encoder: TreeWriter, zone: Any) -> Any:
    """Return the tree of a time zone. Raises `Unencodable` for one of another library."""
    if zone is None:
        return None
    name = type(zone).__module__.partition(".")[0], type(zone).__name__
    if name == ("datetime", "timezone"):
        offset, label = zone.utcoffset(None), zone.tzname(None)
        if offset or label != "UTC":
            return [offset.days, offset.seconds, offset.microseconds, label]
        return "utc"
    if name == ("zoneinfo", "ZoneInfo") and zone.key is not None:
        return {"key": zone.key}
    raise Unencodable(
        f"has a time zone of type {'.'.join(name)}, which has no encoding", "use zoneinfo.ZoneInfo"
    )


def zone_from(decoder: TreeReader, content: Any) -> Any:
    """Return the time zone of a tree."""
    if content is None:
        return None
    from datetime import UTC, timedelta, timezone

    if content == "utc":
        return UTC
    if type(content) is dict:
        from zoneinfo import ZoneInfo

        return ZoneInfo(content["key"])
    days, seconds, microseconds, name = content
    offset = timedelta(days, seconds, microseconds)
    made = timezone(offset)
    return made if made.tzname(None) == name else timezone(offset, name)
