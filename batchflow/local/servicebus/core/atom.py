"""Queues as Atom entries in XML, as the administration of Service Bus reads and writes them (pure).

What is written has the service's own prefixes, not only its namespaces: there are clients that look for the
names as they stand in the text. What is read is told apart by its namespaces alone.

(https://learn.microsoft.com/rest/api/servicebus/queues)
"""

from __future__ import annotations

import base64
import math
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from batchflow.local.http.xml_reader import NotXml, read_xml
from batchflow.local.security.sas import Rights, SasRule
from batchflow.local.servicebus.core.namespace import AdministrationRefused, QueueSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from batchflow.local.servicebus.core.namespace import Entity, Namespace

ATOM = "http://www.w3.org/2005/Atom"
CONNECT = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"
COUNTS = "http://schemas.microsoft.com/netservices/2011/06/servicebus"
INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
FOREVER = "P10675199DT2H48M5.4775807S"
MESSAGE_SIZE_KB = 256
_FOREVER_DAYS = 10_675_199
_KEY_LENGTH = 44

_DURATION = re.compile(
    r"P(?:(?P<days>\d+)D)?(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+(?:\.\d+)?)S)?)?\Z"
)


# -- reading ----------------------------------------------------------------------------------------------


def read_queue(body: bytes, base: QueueSettings, new_key: Callable[[], str]) -> QueueSettings:
    """Return the settings that a request asks for; what it leaves out is as in ``base``.

    ``new_key`` makes the keys of rules that bring none. Raises
    :class:`~.namespace.AdministrationRefused`: 400, or 501 for what is not part of
    the local Service Bus.
    """
    try:
        root = read_xml(body)
    except NotXml as error:
        raise AdministrationRefused(400, f"The body is not XML: {error}.") from error
    description = root.find(f"{{{ATOM}}}content/{{{CONNECT}}}QueueDescription")
    if description is None:
        raise AdministrationRefused(501, "Only queues are part of the local Service Bus, topics are not.")
    _refuse_unsupported(description)
    changes: dict[str, Any] = {}
    for tag, (name, read) in _FIELDS.items():
        text = _text(description, tag)
        if text is not None:
            changes[name] = read(tag, text)
    rules = description.find(f"{{{CONNECT}}}AuthorizationRules")
    if rules is not None:
        changes["rules"] = tuple(_read_rule(rule, new_key) for rule in rules)
    return replace(base, **changes)


def _text(parent: ET.Element, tag: str) -> str | None:
    element = parent.find(f"{{{CONNECT}}}{tag}")
    return element.text.strip() if element is not None and element.text else None


def _refuse_unsupported(description: ET.Element) -> None:
    for tag, allowed in (
        ("ForwardTo", ()),
        ("ForwardDeadLetteredMessagesTo", ()),
        ("EnablePartitioning", ("false",)),
        ("EnableExpress", ("false",)),
        ("Status", ("active",)),
        ("MaxMessageSizeInKilobytes", (str(MESSAGE_SIZE_KB),)),
    ):
        text = _text(description, tag)
        if text is not None and text.lower() not in allowed:
            raise AdministrationRefused(501, f"{tag}={text} is not part of the local Service Bus.")


def _boolean(tag: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise AdministrationRefused(400, f"{tag} is neither true nor false.")
    return text.lower() == "true"


def _integer(tag: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise AdministrationRefused(400, f"{tag} is not a number.") from None


def _seconds(tag: str, text: str) -> float:
    match = _DURATION.match(text)
    if match is None or text in ("P", "PT"):
        raise AdministrationRefused(400, f"{tag} is not an ISO 8601 duration of days and time.")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return math.inf if days >= _FOREVER_DAYS else days * 86_400 + hours * 3_600 + minutes * 60 + seconds


_FIELDS: dict[str, tuple[str, Callable[[str, str], object]]] = {
    "LockDuration": ("lock_duration", _seconds),
    "MaxSizeInMegabytes": ("max_size_in_megabytes", _integer),
    "RequiresDuplicateDetection": ("requires_duplicate_detection", _boolean),
    "RequiresSession": ("requires_session", _boolean),
    "DefaultMessageTimeToLive": ("default_ttl", _seconds),
    "DeadLetteringOnMessageExpiration": ("dead_letter_on_expiration", _boolean),
    "DuplicateDetectionHistoryTimeWindow": ("duplicate_window", _seconds),
    "MaxDeliveryCount": ("max_delivery_count", _integer),
    "EnableBatchedOperations": ("enable_batched_operations", _boolean),
    "AutoDeleteOnIdle": ("auto_delete_on_idle", _seconds),
    "UserMetadata": ("user_metadata", lambda _, text: text),
}
_RIGHTS = {"Send": Rights.SEND, "Listen": Rights.LISTEN, "Manage": Rights.MANAGE_ONLY}


def _read_rule(element: ET.Element, new_key: Callable[[], str]) -> SasRule:
    name = _text(element, "KeyName")
    if not name:
        raise AdministrationRefused(400, "An authorization rule needs a KeyName.")
    rights = Rights.NONE
    for right in element.iter(f"{{{CONNECT}}}AccessRights"):
        if right.text not in _RIGHTS:
            raise AdministrationRefused(400, f"The rule '{name}' has a right that does not exist.")
        rights |= _RIGHTS[right.text]
    if not rights:
        raise AdministrationRefused(400, f"The rule '{name}' grants no right.")
    if Rights.MANAGE_ONLY in rights and rights != Rights.MANAGE:
        raise AdministrationRefused(400, f"The rule '{name}' grants Manage, which needs Send and Listen too.")
    keys = [_key(name, _text(element, tag) or new_key()) for tag in ("PrimaryKey", "SecondaryKey")]
    return SasRule(name, rights, *keys)


def _key(rule: str, key: str) -> str:
    try:
        valid = len(key) == _KEY_LENGTH and bool(base64.b64decode(key, validate=True))
    except ValueError:
        valid = False
    if not valid:
        raise AdministrationRefused(400, f"A key of the rule '{rule}' is not 256 bits in base64.")
    return key


# -- writing ----------------------------------------------------------------------------------------------


def write_entry(entity: Entity, base_url: str) -> bytes:
    """Return a queue as an Atom entry."""
    return _document(_entry(entity, base_url))


def write_feed(entities: Iterable[Entity], base_url: str, next_url: str | None) -> bytes:
    """Return a page of queues; none at all is also how a queue that does not exist is answered."""
    feed = ET.Element("feed", xmlns=ATOM)
    _add(feed, "id", base_url)
    _add_title(feed, "Queues")
    ET.SubElement(feed, "link", rel="self", href=base_url)
    if next_url is not None:
        ET.SubElement(feed, "link", rel="next", href=next_url)
    for entity in entities:
        feed.append(_entry(entity, base_url))
    return _document(feed)


def write_namespace(namespace: Namespace, name: str) -> bytes:
    """Return the namespace's own properties."""
    entry = ET.Element("entry", xmlns=ATOM)
    _add(entry, "id", f"https://{name}/$namespaceinfo")
    _add_title(entry, name)
    info = _add_content(entry, "NamespaceInfo")
    for tag, text in (
        ("CreatedTime", _date(namespace.created_at)),
        ("MessagingSKU", "Standard"),
        ("ModifiedTime", _date(namespace.created_at)),
        ("Name", name),
        ("NamespaceType", "Messaging"),
    ):
        _add(info, tag, text)
    return _document(entry)


def write_error(status: int, detail: str) -> bytes:
    """Return an error, as the SDKs look for it."""
    error = ET.Element("Error")
    ET.SubElement(error, "Code").text = str(status)
    ET.SubElement(error, "Detail").text = detail
    return _document(error)


def _document(element: ET.Element) -> bytes:
    data: bytes = ET.tostring(element, encoding="utf-8", xml_declaration=True)
    return data


def _add(parent: ET.Element, tag: str, text: str) -> None:
    ET.SubElement(parent, tag).text = text


def _add_title(parent: ET.Element, title: str) -> None:
    ET.SubElement(parent, "title", type="text").text = title


def _add_content(entry: ET.Element, kind: str) -> ET.Element:
    content = ET.SubElement(entry, "content", type="application/xml")
    return ET.SubElement(content, kind, {"xmlns": CONNECT, "xmlns:i": INSTANCE})


def _date(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _duration(seconds: float) -> str:
    return FOREVER if math.isinf(seconds) else f"PT{seconds:.7f}".rstrip("0").rstrip(".") + "S"


def _entry(entity: Entity, base_url: str) -> ET.Element:
    entry = ET.Element("entry", xmlns=ATOM)
    _add(entry, "id", f"{base_url}/{entity.name}")
    _add_title(entry, entity.name)
    _add(entry, "published", _date(entity.created_at))
    _add(entry, "updated", _date(entity.updated_at))
    description = _add_content(entry, "QueueDescription")
    for tag, text in (*_settings(entity), *_figures(entity)):
        _add(description, tag, text)
    _add_rules(description, entity.settings.rules)
    _add_counts(description, entity)
    return entry


def _settings(entity: Entity) -> list[tuple[str, str]]:
    settings = entity.settings
    written = []
    for tag, (name, read) in _FIELDS.items():
        value = getattr(settings, name)
        if value is None:
            continue
        text = _duration(value) if read is _seconds else str(value)
        written.append((tag, text.lower() if read is _boolean else text))
    return written


def _figures(entity: Entity) -> list[tuple[str, str]]:
    counts = entity.queue.counts
    return [
        ("SizeInBytes", str(entity.queue.size)),
        ("MessageCount", str(sum(counts))),
        ("IsAnonymousAccessible", "false"),
        ("Status", "Active"),
        ("CreatedAt", _date(entity.created_at)),
        ("UpdatedAt", _date(entity.updated_at)),
        ("AccessedAt", _date(entity.accessed_at)),
        ("SupportOrdering", "true"),
        ("EnablePartitioning", "false"),
        ("EntityAvailabilityStatus", "Available"),
        ("EnableExpress", "false"),
        ("MaxMessageSizeInKilobytes", str(MESSAGE_SIZE_KB)),
    ]


def _add_rules(description: ET.Element, rules: Iterable[SasRule]) -> None:
    parent = ET.SubElement(description, "AuthorizationRules")
    for rule in rules:
        element = ET.SubElement(parent, "AuthorizationRule", {"i:type": "SharedAccessAuthorizationRule"})
        _add(element, "ClaimType", "SharedAccessKey")
        _add(element, "ClaimValue", "None")
        rights = ET.SubElement(element, "Rights")
        for name, right in _RIGHTS.items():
            if right in rule.rights:
                _add(rights, "AccessRights", name)
        _add(element, "KeyName", rule.name)
        _add(element, "PrimaryKey", rule.primary_key)
        _add(element, "SecondaryKey", rule.secondary_key)


def _add_counts(description: ET.Element, entity: Entity) -> None:
    counts = entity.queue.counts
    parent = ET.SubElement(description, "CountDetails", {"xmlns:d2p1": COUNTS})
    for tag, count in (
        ("ActiveMessageCount", counts.active),
        ("DeadLetterMessageCount", counts.dead_lettered),
        ("ScheduledMessageCount", counts.scheduled),
        ("TransferDeadLetterMessageCount", 0),
        ("TransferMessageCount", 0),
    ):
        _add(parent, f"d2p1:{tag}", str(count))
