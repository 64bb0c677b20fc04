"""Entra ID of the local cloud (pure): who there is, the tokens that say so, and the roles that open things.

- A token is a JWT for one audience (one of the services), signed by a key that the cloud alone has.
- A token names a principal and not its rights: roles are looked up at each use, so that a role that is
  taken away counts at once.
- A role holds for a scope and what is below it: the whole account or namespace (the empty path), one
  container, or one queue.

The roles are Azure's built-in ones, by name and with their data rights, as far as the local cloud has the
operations. (https://learn.microsoft.com/azure/role-based-access-control/built-in-roles)
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from dataclasses import field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from batchflow.local.security.sas import Rights, TokenRefused
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SERVICE_BUS: Final = "https://servicebus.azure.net"
STORAGE: Final = "https://storage.azure.com"
BATCH: Final = "https://batch.core.windows.net"
MONITOR: Final = "https://monitor.azure.com"
AUDIENCES: Final = (SERVICE_BUS, STORAGE, BATCH, MONITOR)

TENANT: Final = "00000000-0000-4000-8000-000000000001"
LIFETIME: Final = 3600.0
"""Seconds that a token is good for."""
BEARER: Final = "Bearer "
_HEADER: Final = {"alg": "HS256", "typ": "JWT"}

BATCH_CONTRIBUTOR: Final = "Azure Batch Data Contributor"
BUS_OWNER: Final = "Azure Service Bus Data Owner"
BUS_SENDER: Final = "Azure Service Bus Data Sender"
BUS_RECEIVER: Final = "Azure Service Bus Data Receiver"
BLOB_CONTRIBUTOR: Final = "Storage Blob Data Contributor"
BLOB_READER: Final = "Storage Blob Data Reader"
BLOB_DELEGATOR: Final = "Storage Blob Delegator"
METRICS_PUBLISHER: Final = "Monitoring Metrics Publisher"

CREATOR_ROLES: Final = (BATCH_CONTRIBUTOR, BUS_OWNER, BLOB_CONTRIBUTOR)
"""The role of a client that creates pools."""
NODE_ROLES: Final = (BUS_SENDER, BUS_RECEIVER, BLOB_CONTRIBUTOR)
"""Of the managed identity of a pool's nodes."""
ROLES: Final = (
    BATCH_CONTRIBUTOR,
    BUS_OWNER,
    BUS_SENDER,
    BUS_RECEIVER,
    BLOB_CONTRIBUTOR,
    BLOB_READER,
    BLOB_DELEGATOR,
    METRICS_PUBLISHER,
)

_ON_QUEUES: Final[Mapping[str, Rights]] = {
    BUS_OWNER: Rights.MANAGE,
    BUS_SENDER: Rights.SEND,
    BUS_RECEIVER: Rights.LISTEN,
}
_ON_BLOBS: Final[Mapping[str, str]] = {BLOB_CONTRIBUTOR: "racwdl", BLOB_READER: "rl"}
_DELEGATING: Final = (BLOB_CONTRIBUTOR, BLOB_READER, BLOB_DELEGATOR)


@frozen
class Assignment:
    """A role at a scope: the name of a container or a queue; empty, the whole account."""

    role: str
    scope: str = ""

    def covers(self, path: str) -> bool:
        """Tell whether the assignment holds at a path."""
        path, scope = path.lower(), self.scope.lower()
        return not scope or path == scope or path.startswith(f"{scope}/")


@frozen
class Principal:
    """A person, a program, or a managed identity."""

    name: str
    client_id: str
    object_id: str
    assignments: tuple[Assignment, ...] = ()
    secret: str = field(default="", repr=False)
    """What the identity endpoint knows it by."""

    @property
    def resource_id(self) -> str:
        """Of the managed identity, in Azure's resource management."""
        return (
            f"/subscriptions/{TENANT}/resourceGroups/local/providers/Microsoft.ManagedIdentity/"
            f"userAssignedIdentities/{self.name}"
        )

    def roles(self, path: str) -> set[str]:
        """Return the roles that the principal has at a path."""
        return {each.role for each in self.assignments if each.covers(path)}

    def on_queue(self, path: str) -> Rights:
        """Return the rights on a queue, or on the namespace."""
        rights = Rights.NONE
        for role in self.roles(path):
            rights |= _ON_QUEUES.get(role, Rights.NONE)
        return rights

    def on_container(self, name: str) -> frozenset[str]:
        """Return the rights on a container's blobs, in the letters of a SAS."""
        return frozenset("".join(_ON_BLOBS.get(role, "") for role in self.roles(name)))

    @property
    def may_delegate(self) -> bool:
        """Whether it gets keys for signatures."""
        return any(role in _DELEGATING for role in self.roles(""))

    @property
    def on_batch(self) -> bool:
        """Whether it may use the Batch account."""
        return BATCH_CONTRIBUTOR in self.roles("")

    def may_send_to(self, rule: str) -> bool:
        """Tell whether it may send logs to a data collection rule."""
        return METRICS_PUBLISHER in self.roles(rule)


class Known(NamedTuple):
    """The principal of a token, and its expiry in seconds since the epoch."""

    principal: Principal
    expires_at: float


class Directory:
    """All principals of one cloud. `key`: what tokens are signed with."""

    def __init__(self, key: bytes, principals: Iterable[Principal]) -> None:
        self._key = key
        self._by_object = {each.object_id: each for each in principals}

    def by_secret(self, secret: str) -> Principal | None:
        """Return the principal with this secret, if any."""
        for each in self._by_object.values():
            if each.secret and hmac.compare_digest(each.secret.encode(), secret.encode()):
                return each
        return None

    def by_object(self, object_id: str) -> Principal | None:
        """Return the principal with this object id, if any."""
        return self._by_object.get(object_id)

    def issue(self, principal: Principal, audience: str, now: float) -> str:
        """Return a token. Raises KeyError for an audience that is none of the services."""
        if audience.rstrip("/") not in AUDIENCES:
            raise KeyError(audience)
        claims = {
            "aud": audience,
            "iss": f"https://sts.windows.net/{TENANT}/",
            "tid": TENANT,
            "oid": principal.object_id,
            "appid": principal.client_id,
            "nbf": int(now),
            "exp": int(now + LIFETIME),
        }
        text = f"{_write(_HEADER)}.{_write(claims)}"
        return f"{text}.{self._sign(text)}"

    def check(self, token: str, audience: str, now: float) -> Known:
        """Return the principal of a token. Raises `TokenRefused`, without the token."""
        text, _, signature = token.rpartition(".")
        if not hmac.compare_digest(self._sign(text).encode(), signature.encode(errors="replace")):
            raise TokenRefused("the token is not one of this cloud's, or its signature is wrong")
        claims = _read(text.partition(".")[2])
        if str(claims["aud"]).rstrip("/") != audience:
            raise TokenRefused("the token is for another service")
        if claims["exp"] <= now:
            raise TokenRefused("the token has expired")
        principal = self.by_object(claims["oid"])
        if principal is None:
            raise TokenRefused("the token's owner is not known here")
        return Known(principal, float(claims["exp"]))

    def delegated_key(self, *fields: str) -> str:
        """Return the key for signatures that belongs to these of its fields, as base64."""
        return base64.b64encode(hmac.digest(self._key, "\n".join(fields).encode(), hashlib.sha256)).decode()

    def _sign(self, text: str) -> str:
        return _encode(hmac.digest(self._key, text.encode(errors="replace"), hashlib.sha256))


def _write(document: Mapping[str, object]) -> str:
    return _encode(json.dumps(document, separators=(",", ":")).encode())


def _read(text: str) -> dict[str, Any]:
    """Read a part that this cloud has signed."""
    try:
        document: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, binascii.Error):
        raise TokenRefused("the token is malformed") from None
    return document


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
