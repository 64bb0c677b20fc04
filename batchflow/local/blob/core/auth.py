"""Core of the local Blob service: who a request comes from, and what they may do. No I/O, no clock.

Four ways in, each as Azure Storage documents it ("Authorize with Shared Key", "Create a service SAS",
"Create an account SAS", "Create a user delegation SAS", "Authorize with Microsoft Entra ID"):

- **Shared key**: an HMAC-SHA256 over the request; the holder may do everything. The request's date may be
  at most 15 minutes off.
- **Service SAS** for a container (`sr=c`) or one blob (`sr=b`), signed over its own fields. It never reaches
  a container's own operations except listing. With `si` the rest of its fields come from the container's
  stored access policy, looked up at each use: removing the policy revokes the SAS at once.
- **Account SAS**: services, resource types and permissions for the whole account.
- **Entra ID**: a token, which counts over TLS only, and the roles of its principal. They get keys for
  service SAS of their own, good for what the SAS says and the roles allow, for a week at most.

Fields that are signed but not understood (directory scopes, snapshots, delegation to another user) are
refused, never ignored. Signatures are compared in constant time; neither keys nor a SAS's signature enter a
message.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from enum import Enum, auto
from ipaddress import ip_address
from typing import NamedTuple

from batchflow.local.blob.core.errors import BlobErrorCode, BlobRefused
from batchflow.local.blob.core.model import StoredAccessPolicy
from batchflow.local.security.entra import BEARER, STORAGE, TENANT, Directory, Principal
from batchflow.local.security.sas import TokenRefused
from batchflow.local.security.sharedkey import MAX_SKEW, SIGNED_HEADERS, clock_skew
from batchflow.support.frozen import frozen

_ALL = frozenset("racwdxyltmeopif")
_OLDEST_SAS_VERSION = "2018-11-09"
_ENCRYPTION_SCOPE_VERSION = "2020-12-06"


MAX_DELEGATION = 7 * 86400.0
"""Seconds that a user delegation key lives at most."""
DELEGATION_VERSION = "2026-10-06"
_DELEGATION_STRING_VERSION = "2026-04-06"
"""From when on the string to sign has the fields of this module."""
_DELEGATED = ("skoid", "sktid", "skt", "ske", "sks", "skv")


class DelegatedKey(NamedTuple):
    """A user delegation key, with what it was made for."""

    object_id: str
    tenant: str
    start: str
    expiry: str
    service: str
    version: str
    value: str


class Level(Enum):
    """The level of an operation; an account SAS names these as its resource types."""

    SERVICE = auto()
    CONTAINER = auto()
    OBJECT = auto()


@frozen
class BlobGrant:
    """The permissions of a caller: letters per level. The account's own key may do everything."""

    permissions: Mapping[Level, frozenset[str]]
    owner: bool = False
    delegate: Principal | None = None
    """Who came with a token of Entra ID."""

    def allows(self, level: Level, any_of: str) -> bool:
        """Tell whether one of the permissions `any_of` is granted; none named means the owner alone."""
        return self.owner or any(letter in self.permissions.get(level, ()) for letter in any_of)

    def require(self, level: Level, any_of: str) -> None:
        """Raise a 403 unless `allows`."""
        if self.allows(level, any_of):
            return
        if level not in self.permissions:
            raise BlobRefused(BlobErrorCode.AUTHORIZATION_RESOURCE_TYPE_MISMATCH)
        raise BlobRefused(BlobErrorCode.AUTHORIZATION_PERMISSION_MISMATCH)


OWNER = BlobGrant(dict.fromkeys(Level, _ALL), owner=True)


@frozen
class SignedRequest:
    """The parts of a request that enter a signature.

    `path` is as it stood on the wire; query values, container and blob are decoded; header names are lower
    case.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: Mapping[str, str]
    container: str
    blob: str
    scheme: str = "http"
    source_ip: str = "127.0.0.1"

    def parameter(self, name: str) -> str:
        """Return the first value of a query parameter, or the empty string."""
        return next((value for key, value in self.query if key == name), "")


PolicyLookup = Callable[[str, str], StoredAccessPolicy | None]


class Authenticator:
    """Checks requests against one account's key; `key` is base64, as Azure shows it.

    `directory`: who is known by tokens of Entra ID.
    """

    def __init__(self, account: str, key: str, directory: Directory | None = None) -> None:
        self._account = account
        self._directory = directory
        self._key = base64.b64decode(key, validate=True)

    def authenticate(self, request: SignedRequest, policies: PolicyLookup, now: float) -> BlobGrant:
        """Return what the request's sender may do, or raise a 401 or 403; `now` in epoch seconds."""
        if header := request.headers.get("authorization"):
            if self._directory is not None and header.startswith(BEARER):
                return self._by_token(request, header.removeprefix(BEARER), self._directory, now)
            return self._shared_key(request, header, now)
        if request.parameter("sig"):
            return self._shared_access(request, policies, now)
        raise BlobRefused(BlobErrorCode.NO_AUTHENTICATION_INFORMATION)

    def _shared_key(self, request: SignedRequest, header: str, now: float) -> BlobGrant:
        scheme, _, credential = header.partition(" ")
        account, _, signature = credential.partition(":")
        if scheme != "SharedKey":
            raise _unauthenticated(
                f"The authorization scheme {scheme!r} is not known here; use SharedKey or a SAS."
            )
        if account != self._account:
            raise _unauthenticated(f"The account {account!r} is not this one.")
        _check_date(request.headers, now)
        candidates = shared_key_strings(self._account, request)
        if not any(self._matches(text, signature) for text in candidates):
            raise _unauthenticated(f"The signature does not match. The string to sign was {candidates[0]!r}.")
        return OWNER

    def _by_token(self, request: SignedRequest, token: str, directory: Directory, now: float) -> BlobGrant:
        if request.scheme != "https":
            raise _unauthenticated("A token counts over https only.")
        try:
            known = directory.check(token, STORAGE, now)
        except TokenRefused as refused:
            raise _unauthenticated(f"{refused}.") from refused
        permissions = known.principal.on_container(request.container)
        return BlobGrant(dict.fromkeys(Level, permissions), delegate=known.principal)

    def delegated_key(self, grant: BlobGrant, start: str, expiry: str) -> DelegatedKey:
        """Return the key for a user delegation SAS. Raises a 403 when the caller may not have it."""
        if self._directory is None or grant.delegate is None or not grant.delegate.may_delegate:
            raise BlobRefused(BlobErrorCode.AUTHORIZATION_PERMISSION_MISMATCH)
        if parse_time(expiry) - parse_time(start) > MAX_DELEGATION:
            raise BlobRefused(BlobErrorCode.INVALID_INPUT, "The key may live for seven days at most.")
        fields = (grant.delegate.object_id, TENANT, start, expiry, "b", DELEGATION_VERSION)
        return DelegatedKey(*fields, self._directory.delegated_key(*fields))

    def _delegate(self, request: SignedRequest, now: float) -> tuple[bytes, frozenset[str]]:
        """Return the key that a user delegation SAS was signed with, and what its owner may do by now."""
        fields = tuple(request.parameter(name) for name in _DELEGATED)
        owner = self._directory.by_object(fields[0]) if self._directory is not None else None
        if self._directory is None or owner is None or not owner.may_delegate:
            raise _unauthenticated("The key that the SAS is signed with belongs to no user here.")
        if not parse_time(fields[2]) <= now < parse_time(fields[3]):
            raise _unauthenticated("The key that the SAS is signed with is not valid now.")
        return base64.b64decode(self._directory.delegated_key(*fields)), owner.on_container(request.container)

    def _shared_access(self, request: SignedRequest, policies: PolicyLookup, now: float) -> BlobGrant:
        version = request.parameter("sv")
        if version < _OLDEST_SAS_VERSION:
            raise _unauthenticated(f"The signed version {version!r} is older than {_OLDEST_SAS_VERSION}.")
        account_wide = bool(request.parameter("ss"))
        text = (account_sas_string if account_wide else service_sas_string)(self._account, request)
        key, limit = self._delegate(request, now) if request.parameter("skoid") else (self._key, _ALL)
        if not self._matches(text, request.parameter("sig"), key):
            raise _unauthenticated(f"Signature did not match. String to sign used was {text!r}.")
        terms = _terms(request, policies)
        terms = replace(terms, permissions=terms.permissions & limit)
        _check_period(terms, now)
        _check_transport(request)
        return _account_grant(request, terms) if account_wide else _service_grant(request, terms)

    def _matches(self, text: str, signature: str, key: bytes | None = None) -> bool:
        digest = hmac.digest(self._key if key is None else key, text.encode(), hashlib.sha256)
        try:
            given = base64.b64decode(signature, validate=True)
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(digest, given)


# Strings to sign


def shared_key_strings(account: str, request: SignedRequest) -> tuple[str, ...]:
    """Return the strings that a shared key request may have signed.

    Clients differ in how they sort the x-ms- headers: the service ranks underscores before digits before
    letters and skips hyphens, others sort by code point; the two agree for all names without underscores.
    """
    headers = dict(request.headers)
    if headers.get("content-length") == "0":
        del headers["content-length"]
    if "x-ms-date" in headers:
        headers.pop("date", None)
    standard = "\n".join(headers.get(name, "") for name in SIGNED_HEADERS)
    special = [(name, value) for name, value in headers.items() if name.startswith("x-ms-")]
    resource = _canonical_resource(account, request)
    orders = (sorted(special, key=lambda item: _word_rank(item[0])), sorted(special))
    return tuple(
        "\n".join([request.method, standard, *(f"{name}:{value}" for name, value in order), resource])
        for order in orders
    )


def service_sas_string(account: str, request: SignedRequest) -> str:
    """Return the string that a service SAS for the requested container or blob has signed."""
    get = request.parameter
    if (scope := get("sr")) not in ("c", "b"):
        raise _unauthenticated(f"The signed resource {scope!r} is not known here; use 'c' or 'b'.")
    if any(get(name) for name in ("saoid", "suoid", "scid", "skdutid", "sduoid", "sdd", "snapshot")):
        raise _unauthenticated("Directory and snapshot SAS, and those for another user, are not known here.")
    if get("skoid"):
        return _delegated_sas_string(account, request)
    resource = f"/blob/{account}/{request.container}" + (f"/{request.blob}" if scope == "b" else "")
    fields = [
        get("sp"),
        get("st"),
        get("se"),
        resource,
        get("si"),
        get("sip"),
        get("spr"),
        get("sv"),
        scope,
        "",
    ]
    if get("sv") >= _ENCRYPTION_SCOPE_VERSION:
        fields.append(get("ses"))
    return "\n".join([*fields, get("rscc"), get("rscd"), get("rsce"), get("rscl"), get("rsct")])


def _delegated_sas_string(account: str, request: SignedRequest) -> str:
    """Return the string that a SAS by a user delegation key has signed."""
    get = request.parameter
    if get("sv") < _DELEGATION_STRING_VERSION:
        raise _unauthenticated(f"User delegation SAS before {_DELEGATION_STRING_VERSION} are not known here.")
    scope = get("sr")
    resource = f"/blob/{account}/{request.container}" + (f"/{request.blob}" if scope == "b" else "")
    fields = [get("sp"), get("st"), get("se"), resource, *(get(name) for name in _DELEGATED)]
    fields += ["", "", "", "", ""]  # other users' and the correlation's ids, refused above
    fields += [get("sip"), get("spr"), get("sv"), scope, "", get("ses"), "", ""]
    return "\n".join([*fields, get("rscc"), get("rscd"), get("rsce"), get("rscl"), get("rsct")])


def account_sas_string(account: str, request: SignedRequest) -> str:
    """Return the string that an account SAS has signed."""
    names = ["sp", "ss", "srt", "st", "se", "sip", "spr", "sv"]
    if request.parameter("sv") >= _ENCRYPTION_SCOPE_VERSION:
        names.append("ses")
    return "\n".join([account, *(request.parameter(name) for name in names), ""])


def _canonical_resource(account: str, request: SignedRequest) -> str:
    values: dict[str, list[str]] = {}
    for name, value in request.query:
        values.setdefault(name.lower(), []).append(value)
    parameters = [f"{name}:{','.join(sorted(values[name]))}" for name in sorted(values)]
    return "\n".join([f"/{account}{request.path}", *parameters])


def _word_rank(name: str) -> list[tuple[int, str]]:
    def rank(letter: str) -> int:
        return 2 if letter.isalpha() else int(letter.isdigit())

    return [(rank(letter), letter) for letter in name if letter != "-"]


# The terms of a SAS


@frozen
class _Terms:
    permissions: frozenset[str]
    start: float | None
    expiry: float


def _terms(request: SignedRequest, policies: PolicyLookup) -> _Terms:
    """Join the SAS's own fields with those of its stored access policy; a field may stand in one only."""
    get = request.parameter
    policy = StoredAccessPolicy("")
    if identifier := get("si"):
        found = policies(request.container, identifier)
        if found is None:
            raise _unauthenticated("The stored access policy that the SAS names does not exist.")
        policy = found
    permissions = _either("sp", get("sp"), policy.permissions)
    start = _either("st", get("st"), policy.start)
    expiry = _either("se", get("se"), policy.expiry)
    if not permissions or not expiry:
        raise _unauthenticated(
            "Neither the SAS nor its policy says the permissions (sp) and the expiry (se)."
        )
    return _Terms(frozenset(permissions), parse_time(start) if start else None, parse_time(expiry))


def _either(name: str, signed: str, stored: str | None) -> str:
    if signed and stored:
        raise _unauthenticated(f"{name} stands both in the SAS and in its stored access policy.")
    return signed or stored or ""


def _check_period(terms: _Terms, now: float) -> None:
    if (terms.start is not None and now < terms.start) or now >= terms.expiry:
        raise _unauthenticated("Signature not valid in the specified time frame.")


def _check_transport(request: SignedRequest) -> None:
    protocols = request.parameter("spr")
    if protocols and request.scheme not in protocols.split(","):
        raise BlobRefused(BlobErrorCode.AUTHORIZATION_PROTOCOL_MISMATCH)
    if (addresses := request.parameter("sip")) and not _within(request.source_ip, addresses):
        raise BlobRefused(BlobErrorCode.AUTHORIZATION_SOURCE_IP_MISMATCH)


def _within(address: str, addresses: str) -> bool:
    first, _, last = addresses.partition("-")
    try:
        low, high, asked = ip_address(first), ip_address(last or first), ip_address(address)
    except ValueError:
        raise _unauthenticated("sip is not an address or a range of addresses.") from None
    return low.version == high.version == asked.version and int(low) <= int(asked) <= int(high)


def _service_grant(request: SignedRequest, terms: _Terms) -> BlobGrant:
    if request.parameter("sr") == "b":
        return BlobGrant({Level.OBJECT: terms.permissions})
    return BlobGrant({Level.CONTAINER: terms.permissions & {"l"}, Level.OBJECT: terms.permissions})


def _account_grant(request: SignedRequest, terms: _Terms) -> BlobGrant:
    if "b" not in request.parameter("ss"):
        raise BlobRefused(BlobErrorCode.AUTHORIZATION_SERVICE_MISMATCH)
    letters = {"s": Level.SERVICE, "c": Level.CONTAINER, "o": Level.OBJECT}
    types = request.parameter("srt")
    return BlobGrant({level: terms.permissions for letter, level in letters.items() if letter in types})


def _check_date(headers: Mapping[str, str], now: float) -> None:
    given = headers.get("x-ms-date") or headers.get("date") or ""
    try:
        skew = clock_skew(given, now)
    except ValueError:
        raise _unauthenticated("The request has no valid x-ms-date or Date header.") from None
    if skew > MAX_SKEW:
        raise _unauthenticated("Request date header too old or too far ahead: check the clocks.")


def parse_time(text: str) -> float:
    """Return the seconds since the epoch of a SAS's time: ISO 8601, UTC unless it says otherwise."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _unauthenticated(f"{text!r} is not an ISO 8601 time.") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _unauthenticated(detail: str) -> BlobRefused:
    return BlobRefused(BlobErrorCode.AUTHENTICATION_FAILED, detail)
