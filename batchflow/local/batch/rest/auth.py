"""Who a request to the Batch data plane comes from: by the shared key, as its REST reference describes it, or
by a token of Entra ID.

The string to sign is the method, eleven headers, the `ocp-*` headers sorted by name, the account and path as
they stand in the request line (still percent-encoded), and the query's parameters sorted by name. Clients
differ in two corners, and the service takes both: a missing body's length is signed as "0" or as "", and a
parameter's name as written or in lower case.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from itertools import product
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from batchflow.local.batch.core.errors import Refused
from batchflow.local.security.entra import BATCH, BEARER
from batchflow.local.security.sas import TokenRefused
from batchflow.local.security.sharedkey import MAX_SKEW, SIGNED_HEADERS, clock_skew

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from batchflow.local.security.entra import Directory


def authenticate(
    method: str, target: str, headers: Mapping[str, str], *, account: str, key: str, now: float
) -> None:
    """Refuse a request that `account`'s key did not sign within the last quarter of an hour.

    `target` is the raw request target, path and query; `headers` are case-insensitive or lower-case; `now` is
    in seconds since the epoch. Raises Refused.
    """
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    name, _, signature = credentials.partition(":")
    if scheme.lower() != "sharedkey" or not signature:
        raise _failed(
            "The Authorization header is missing or is not of the form 'SharedKey account:signature'."
        )
    if name != account:
        raise _failed(f"The account '{name}' is not served here.")
    _check_date(headers, now)
    if not any(
        hmac.compare_digest(_sign(text, key).encode(), signature.encode())
        for text in strings_to_sign(method, target, headers, account)
    ):
        raise _failed(
            "The MAC signature found in the HTTP request is not the same as any computed signature."
        )


def authenticate_token(header: str, directory: Directory, now: float) -> None:
    """Refuse a caller without a token of Entra ID for Batch, or without the role. Raises Refused."""
    try:
        known = directory.check(header.removeprefix(BEARER), BATCH, now)
    except TokenRefused as refused:
        raise _failed(f"{refused}.") from refused
    if not known.principal.on_batch:
        raise Refused("PermissionDenied")


def strings_to_sign(method: str, target: str, headers: Mapping[str, str], account: str) -> Iterator[str]:
    """Return every string that a client may have signed for this request."""
    path, _, query = target.partition("?")
    signed = {name: headers.get(name, "") for name in SIGNED_HEADERS}
    lengths = [signed["content-length"]]
    if lengths[0] in ("", "0") and method not in ("GET", "HEAD"):
        lengths = ["0", ""]
    ocp = sorted((name.lower(), value) for name, value in headers.items() if name.lower().startswith("ocp-"))
    for length, lower in product(lengths, (False, True)):
        signed["content-length"] = length
        yield (
            "\n".join([method, *signed.values(), ""])
            + "".join(f"{name}:{value}\n" for name, value in ocp if value)
            + f"/{account}{path}"
            + "".join(f"\n{name}:{value}" for name, value in _parameters(query, lower=lower))
        )


def signature(text: str, key: str) -> str:
    """Return the signature of a string to sign under a base64 account key."""
    return _sign(text, key)


def _parameters(query: str, *, lower: bool) -> list[tuple[str, str]]:
    first: dict[str, str] = {}
    for name, value in parse_qsl(query):
        first.setdefault(name.lower() if lower else name, value)
    return sorted(first.items())


def _check_date(headers: Mapping[str, str], now: float) -> None:
    text = headers.get("ocp-date") or headers.get("date")
    if not text:
        raise _failed("The Date or ocp-date header is missing.")
    try:
        skew = clock_skew(text, now)
    except ValueError:
        raise _failed(f"The date header '{text}' is not an RFC 1123 date.") from None
    if skew > MAX_SKEW:
        raise _failed(f"The date header '{text}' differs from the server's time by more than 15 minutes.")


def _sign(text: str, key: str) -> str:
    try:
        secret = base64.b64decode(key, validate=True)
    except binascii.Error:
        raise ValueError("the Batch account key is not base64") from None
    return base64.b64encode(hmac.new(secret, text.encode(), hashlib.sha256).digest()).decode()


def _failed(detail: str) -> Refused:
    return Refused("AuthenticationFailed", AuthenticationErrorDetail=detail)
