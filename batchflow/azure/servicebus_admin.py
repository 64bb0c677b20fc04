"""The port that creates and deletes queues, on the administration client of the Service Bus SDK.

The client is loaded and created at its first use, because most programs never need it.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from batchflow.azure.errors import broker_error
from batchflow.azure.namespaces import fields_of, malformed, namespace_of
from batchflow.azure.transport import transport, trusting
from batchflow.errors import BrokerError, ConfigurationError, QueueNotFound
from batchflow.ports.broker import QueueFigures
from batchflow.support.closing import Closes
from batchflow.support.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from azure.servicebus.aio.management import ServiceBusAdministrationClient
    from azure.servicebus.management import AuthorizationRule

    from batchflow.azure.identity import Credential
    from batchflow.ports.broker import AccessRule, QueueSpec

T = TypeVar("T")

CONNECT_LIMIT = 3.0
"""Seconds for connecting to the administration endpoint, of which there are two attempts."""


class ServiceBusAdmin(Closes):
    """What needs the right Manage on a namespace: by its connection string, or by its name and Entra ID."""

    def __init__(
        self,
        namespace: str,
        identity: Credential | None = None,
        *,
        ca_file: str | None = None,
        setting: str | None = None,
    ) -> None:
        self.namespace = namespace_of(namespace) if identity is None else namespace
        self._connection_string = namespace if identity is None else ""
        self._identity = identity
        self._ca_file = ca_file
        self._setting = setting or f"servicebus.{'connection_string' if identity is None else 'namespace'}"
        self._sdk: ServiceBusAdministrationClient | None = None
        self._connecting = asyncio.Lock()

    async def create_queue(self, spec: QueueSpec) -> bool:
        from azure.core.exceptions import ResourceExistsError

        doing = f"cannot create queue {spec.name}"
        try:
            await self._do(lambda sdk: sdk.create_queue(spec.name, **_queue_options(spec)), doing)
        except BrokerError as error:
            if isinstance(error.__cause__, ResourceExistsError):
                return False
            raise
        return True

    async def delete_queue(self, name: str) -> bool:
        try:
            await self._do(lambda sdk: sdk.delete_queue(name), f"cannot delete queue {name}")
        except QueueNotFound:
            return False
        return True

    async def connection_string(self, queue: str, rule: str) -> str:
        properties = await self._do(lambda sdk: sdk.get_queue(queue), f"cannot read queue {queue}")
        for each in properties.authorization_rules or ():
            if each.key_name == rule and each.primary_key:
                return self._string_of(queue, rule, each.primary_key)
        raise BrokerError(f"queue {queue} has no access rule named {rule}")

    def _string_of(self, queue: str, rule: str, key: str) -> str:
        parts = [
            f"Endpoint=sb://{self.namespace}/",
            f"SharedAccessKeyName={rule}",
            f"SharedAccessKey={key}",
            f"EntityPath={queue}",
        ]
        if emulator := fields_of(self._connection_string).get("usedevelopmentemulator"):
            parts.append(f"UseDevelopmentEmulator={emulator}")
        return ";".join(parts)

    async def figures(self, queue: str) -> QueueFigures:
        found = await self._do(
            lambda sdk: sdk.get_queue_runtime_properties(queue), f"cannot read queue {queue}"
        )
        return QueueFigures(
            active=found.active_message_count or 0,
            scheduled=found.scheduled_message_count or 0,
            dead=found.dead_letter_message_count or 0,
        )

    async def queues(self) -> list[str]:
        async def names(sdk: ServiceBusAdministrationClient) -> list[str]:
            return [queue.name async for queue in sdk.list_queues()]

        return await self._do(names, "cannot list the queues")

    async def _do(self, work: Callable[[ServiceBusAdministrationClient], Awaitable[T]], doing: str) -> T:
        from azure.core.exceptions import AzureError, ResourceNotFoundError

        try:
            return await work(await self._client())
        except ResourceNotFoundError as error:
            text = f"{doing}: there is none in {self.namespace}"
            raise QueueNotFound(text, setting=self._setting) from error
        except (AzureError, OSError, ValueError) as error:
            raise broker_error(error, doing, self._setting) from error

    async def _client(self) -> ServiceBusAdministrationClient:
        async with self._connecting:
            if self._sdk is None:
                self._sdk = await self._connect()
            return self._sdk

    async def _connect(self) -> ServiceBusAdministrationClient:
        from azure.servicebus.aio.management import ServiceBusAdministrationClient

        # Certificates are read in a thread, for what else a pool is made of is made at the same time.
        trust = None if self._ca_file is None else await in_thread(trusting, self._ca_file)
        options: dict[str, Any] = {
            "transport": transport(self.namespace, trust, connect=CONNECT_LIMIT),
            "connection_timeout": CONNECT_LIMIT,
            "retry_total": 2,
            "retry_connect": 1,
            "retry_backoff_factor": 0.2,
        }
        if self._identity is not None:
            return ServiceBusAdministrationClient(self.namespace, self._identity, **options)
        try:
            return ServiceBusAdministrationClient.from_connection_string(self._connection_string, **options)
        except ValueError:
            raise ConfigurationError(malformed(self._setting)) from None

    async def aclose(self) -> None:
        async with self._connecting:
            sdk, self._sdk = self._sdk, None
        if sdk is not None:
            await sdk.__aexit__()


def _queue_options(spec: QueueSpec) -> dict[str, Any]:
    """Return the options of a new queue. Expired messages are dead-lettered, so that none is lost."""
    window, limit = spec.duplicate_window, spec.time_to_live
    options = {
        "requires_session": spec.sessions,
        "lock_duration": timedelta(seconds=spec.lock_duration),
        "max_delivery_count": spec.max_delivery_count,
        "dead_lettering_on_message_expiration": True,
        "requires_duplicate_detection": window is not None,
        "duplicate_detection_history_time_window": None if window is None else timedelta(seconds=window),
        "default_message_time_to_live": None if limit is None else timedelta(seconds=limit),
        "auto_delete_on_idle": None if spec.idle is None else timedelta(seconds=spec.idle),
        "authorization_rules": [_rule(rule) for rule in spec.rules] or None,
    }
    return {name: value for name, value in options.items() if value is not None}


def _rule(rule: AccessRule) -> AuthorizationRule:
    from azure.servicebus.management import AccessRights, AuthorizationRule

    return AuthorizationRule(
        type="SharedAccessAuthorizationRule",
        claim_type="SharedAccessKey",
        claim_value="None",
        rights=[AccessRights(right) for right in sorted(rule.rights)],
        key_name=rule.name,
        primary_key=_new_key(),
        secondary_key=_new_key(),
    )


def _new_key() -> str:
    """Generate a key as Azure does: 256 random bits."""
    return base64.b64encode(secrets.token_bytes(32)).decode()
