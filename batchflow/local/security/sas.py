"""Shared access signatures of Service Bus, checked (pure).

A token is ``SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn={rule}``. The signature is
base64(HMAC-SHA256(key of the rule, ``sr`` as it stands + newline + ``se``)). A token covers its resource and
all that is below it. (https://learn.microsoft.com/azure/service-bus-messaging/service-bus-sas)
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import field
from enum import Flag, auto
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_plus

from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PREFIX = "SharedAccessSignature "
_LATEST = 1 << 53
"""Seconds since the epoch. A token may name an expiry that no float holds."""


class Rights(Flag):
    """The rights of a rule. Manage includes the other two."""

    NONE = 0
    SEND = auto()
    LISTEN = auto()
    MANAGE_ONLY = auto()
    MANAGE = MANAGE_ONLY | SEND | LISTEN


@frozen
class SasRule:
    """A named pair of keys, of a namespace or of one queue."""

    name: str
    rights: Rights
    primary_key: str = field(repr=False)
    secondary_key: str = field(repr=False)


class SasGrant(NamedTuple):
    """The rights of a valid token at a path and below, until an expiry in seconds since the epoch."""

    path: str
    rights: Rights
    expires_at: float

    def covers(self, path: str) -> bool:
        """Tell whether the path is the grant's own or below it."""
        return not self.path or path == self.path or path.startswith(self.path + "/")


class TokenRefused(Exception):
    """A token is malformed, expired or not signed by a key that counts here. The text holds no secret."""


def path_of(address: str) -> str:
    """Return the path of a resource, without scheme and host, in lower case, as entity names are compared."""
    _, scheme, rest = address.rpartition("://")
    if scheme:
        rest = rest.partition("/")[2]
    return rest.strip("/").lower()


def parts_of(path: str) -> Iterator[str]:
    """Return the paths at which something may stand that covers a path, beside the root: its own is the last.

    Takes quadratic time in the length of the path, which its caller bounds.
    """
    for index, char in enumerate(path):
        if char == "/":
            yield path[:index]
    yield path


def check_token(token: str, rules_for: Callable[[str], Iterable[SasRule]], now: float) -> SasGrant:
    """Verify a token against the rules that hold at its resource. Raises :class:`TokenRefused`."""
    if not token.startswith(PREFIX):
        raise TokenRefused("the token is not a shared access signature")
    parts = dict(part.partition("=")[::2] for part in token[len(PREFIX) :].split("&"))
    try:
        resource, signature, expiry, name = (parts[key] for key in ("sr", "sig", "se", "skn"))
        expires_at = int(expiry)
    except (KeyError, ValueError):
        raise TokenRefused("the token lacks sr, sig, se or skn, or its expiry is no number") from None
    if expires_at <= now:
        raise TokenRefused("the token has expired")
    # The JavaScript SDK's administration client signs the whole address, with its query.
    path = path_of(unquote_plus(resource).partition("?")[0])
    for rule in rules_for(path):
        if rule.name == unquote_plus(name) and _signed(rule, resource, expiry, unquote_plus(signature)):
            return SasGrant(path, rule.rights, float(min(expires_at, _LATEST)))
    raise TokenRefused("the token's rule does not exist here, or its signature is wrong")


def _signed(rule: SasRule, resource: str, expiry: str, signature: str) -> bool:
    return any(
        hmac.compare_digest(sign(key, resource, expiry), signature.encode(errors="replace"))
        for key in (rule.primary_key, rule.secondary_key)
    )


def sign(key: str, resource: str, expiry: str) -> bytes:
    """Return the signature over a resource, URL-encoded, and an expiry."""
    text = f"{resource}\n{expiry}".encode(errors="replace")
    return base64.b64encode(hmac.digest(key.encode(), text, hashlib.sha256))
