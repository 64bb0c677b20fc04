"""A Service Bus namespace: its queues by name, their settings, and who may do what (pure).

Limits and defaults are those of the Standard tier; what is refused is refused as Azure does, with the HTTP
status that its administration answers. Names do not tell case apart.
"""

from __future__ import annotations

import hmac
import math
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from batchflow.local.queues import Queue, QueueProperties
from batchflow.local.security.entra import BEARER, SERVICE_BUS
from batchflow.local.security.sas import (
    PREFIX,
    Rights,
    SasGrant,
    SasRule,
    check_token,
    parts_of,
    path_of,
)
from batchflow.local.servicebus.core.operations import Operations
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchflow.local.security.entra import Directory

ROOT_RULE = "RootManageSharedAccessKey"
MAX_NAME_LENGTH = 260
MAX_LOCK_DURATION = 300.0
MAX_DELIVERY_COUNT = 2_000
MIN_IDLE = 300.0
MIN_WINDOW, MAX_WINDOW = 20.0, 7 * 86_400.0
MAX_RULES = 12
QUEUE_SIZES_MB = (1024, 2048, 3072, 4096, 5120)
DEAD_LETTER_SUFFIX = "/$deadletterqueue"

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?\Z")


class AdministrationRefused(Exception):
    """An administrative request was refused. ``status`` is the HTTP status that says so."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


@frozen
class QueueSettings:
    """The properties with which a queue is created. Durations are seconds; ``math.inf`` is unlimited."""

    lock_duration: float = 60.0
    max_size_in_megabytes: int = 1024
    requires_duplicate_detection: bool = False
    requires_session: bool = False
    default_ttl: float = math.inf
    dead_letter_on_expiration: bool = False
    duplicate_window: float = 600.0
    max_delivery_count: int = 10
    enable_batched_operations: bool = True
    auto_delete_on_idle: float = math.inf
    user_metadata: str | None = None
    rules: tuple[SasRule, ...] = ()

    def spec(self) -> QueueProperties:
        """Return the settings that the queue itself applies."""
        return QueueProperties(
            lock_duration=self.lock_duration,
            max_delivery_count=self.max_delivery_count,
            requires_session=self.requires_session,
            default_ttl=None if math.isinf(self.default_ttl) else self.default_ttl,
            dead_letter_on_expiration=self.dead_letter_on_expiration,
            duplicate_window=self.duplicate_window if self.requires_duplicate_detection else None,
            max_size=self.max_size_in_megabytes << 20,
        )

    def check(self) -> None:
        """Raise :class:`AdministrationRefused` for a setting that is out of its range."""
        for fault, detail in (
            (
                not 0 < self.lock_duration <= MAX_LOCK_DURATION,
                "LockDuration must be positive and at most 5 minutes.",
            ),
            (
                not 1 <= self.max_delivery_count <= MAX_DELIVERY_COUNT,
                f"MaxDeliveryCount must be between 1 and {MAX_DELIVERY_COUNT}.",
            ),
            (
                self.max_size_in_megabytes not in QUEUE_SIZES_MB,
                f"MaxSizeInMegabytes must be one of {', '.join(map(str, QUEUE_SIZES_MB))}.",
            ),
            (self.default_ttl < 1.0, "DefaultMessageTimeToLive must be at least one second."),
            (self.auto_delete_on_idle < MIN_IDLE, "AutoDeleteOnIdle must be at least 5 minutes."),
            (
                not MIN_WINDOW <= self.duplicate_window <= MAX_WINDOW,
                "DuplicateDetectionHistoryTimeWindow must be between 20 seconds and 7 days.",
            ),
            (len(self.user_metadata or "") > 1024, "UserMetadata must be at most 1024 characters."),
            (len(self.rules) > MAX_RULES, f"A queue has at most {MAX_RULES} authorization rules."),
            (
                len({rule.name for rule in self.rules}) != len(self.rules),
                "Authorization rules need names of their own.",
            ),
        ):
            if fault:
                raise AdministrationRefused(400, detail)


@dataclass(slots=True, eq=False)
class Entity:
    """A queue with its settings and its dates, in seconds since the epoch."""

    name: str
    settings: QueueSettings
    queue: Queue
    created_at: float
    updated_at: float
    accessed_at: float
    operations: Operations = field(default_factory=Operations)

    @property
    def idle_deadline(self) -> float:
        """When the queue deletes itself unless it is used before."""
        return self.accessed_at + self.settings.auto_delete_on_idle


@dataclass(slots=True, eq=False)
class Namespace:
    """The queues of a namespace and the root rule, which may do everything."""

    root_key: str = field(repr=False)
    new_token: Callable[[], bytes]
    created_at: float
    entities: dict[str, Entity] = field(default_factory=dict)
    directory: Directory | None = None
    """The principals of Entra ID; None: tokens are not accepted."""

    def __iter__(self) -> Iterator[Entity]:
        return iter(sorted(self.entities.values(), key=lambda entity: entity.name.lower()))

    def find(self, path: str) -> Entity | None:
        """Return the queue of that name, in any case."""
        return self.entities.get(path.lower())

    def create(self, name: str, settings: QueueSettings, now: float) -> Entity:
        """Create a queue. Raises :class:`AdministrationRefused`: 400, or 409 when it exists."""
        check_name(name)
        settings.check()
        if name.lower() in self.entities:
            raise AdministrationRefused(409, f"The queue '{name}' exists already.")
        queue = Queue(settings.spec(), new_token=self.new_token)
        entity = self.entities[name.lower()] = Entity(name, settings, queue, now, now, now)
        return entity

    def update(self, name: str, settings: QueueSettings, now: float) -> Entity:
        """Change a queue. Raises :class:`AdministrationRefused`: 400, or 404 when it does not exist."""
        entity = self._existing(name)
        settings.check()
        old = entity.settings
        fixed = replace(
            settings,
            requires_session=old.requires_session,
            requires_duplicate_detection=old.requires_duplicate_detection,
        )
        if fixed != settings:
            raise AdministrationRefused(
                400, "RequiresSession and RequiresDuplicateDetection cannot be changed after creation."
            )
        entity.queue.reconfigure(settings.spec())
        entity.settings = settings
        entity.updated_at = now
        return entity

    def delete(self, name: str) -> Entity:
        """Delete a queue with all that is in it. Raises :class:`AdministrationRefused`: 404."""
        entity = self._existing(name)
        del self.entities[name.lower()]
        return entity

    def authenticate(self, token: str, path: str, now: float) -> SasGrant:
        """Return what a token permits: at the path and below, for one of Entra ID.

        Raises :class:`~batchflow.local.security.sas.TokenRefused`.
        """
        if self.directory is None or token.startswith(PREFIX):
            return check_token(token, self._rules_for, now)
        known = self.directory.check(token.removeprefix(BEARER), SERVICE_BUS, now)
        return SasGrant(path, known.principal.on_queue(path), known.expires_at)

    def log_in(self, name: str, password: str) -> SasGrant | None:
        """Return what a rule of the namespace or of a queue permits; None unless the password is its key.

        Such a grant lives as long as its connection.
        """
        for path, rule in self._all_rules():
            if rule.name == name and any(
                hmac.compare_digest(key.encode(), password.encode())
                for key in (rule.primary_key, rule.secondary_key)
            ):
                return SasGrant(path, rule.rights, math.inf)
        return None

    def _all_rules(self) -> Iterator[tuple[str, SasRule]]:
        yield "", SasRule(ROOT_RULE, Rights.MANAGE, self.root_key, self.root_key)
        for path, entity in self.entities.items():
            for rule in entity.settings.rules:
                yield path, rule

    def _existing(self, name: str) -> Entity:
        entity = self.find(name)
        if entity is None:
            raise AdministrationRefused(404, f"The queue '{name}' does not exist.")
        return entity

    def _rules_for(self, path: str) -> Iterator[SasRule]:
        yield SasRule(ROOT_RULE, Rights.MANAGE, self.root_key, self.root_key)
        for part in parts_of(path[: MAX_NAME_LENGTH + 1]):
            entity = self.entities.get(part)
            if entity is not None:
                yield from entity.settings.rules


def check_name(name: str) -> None:
    """Raise :class:`AdministrationRefused` (400) for what cannot be the name of a queue."""
    if len(name) > MAX_NAME_LENGTH or not _NAME.match(name) or "//" in name:
        raise AdministrationRefused(400, f"'{name[:64]}' is not a valid name of a queue.")


def main_path(address: str) -> tuple[str, bool]:
    """Return the name of the queue that an address means, and whether its dead-letter queue is meant."""
    path = path_of(address)
    if path.endswith(DEAD_LETTER_SUFFIX):
        return path[: -len(DEAD_LETTER_SUFFIX)], True
    return path, False
