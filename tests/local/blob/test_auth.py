"""Who may do what: shared keys and shared access signatures, with the clock passed in."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

import pytest
from azure.storage.blob import generate_account_sas, generate_blob_sas, generate_container_sas

from batchflow.local.blob.core.auth import (
    OWNER,
    Authenticator,
    BlobGrant,
    Level,
    SignedRequest,
    parse_time,
    shared_key_strings,
)
from batchflow.local.blob.core.errors import BlobErrorCode, BlobRefused
from batchflow.local.blob.core.model import StoredAccessPolicy

KEY = base64.b64encode(b"secret").decode()
NOON = parse_time("2030-01-01T12:00:00Z")


def request(sas: str = "", **fields: Any) -> SignedRequest:
    """A request for blob `b` of container `c`, with a SAS if there is one."""
    defaults: dict[str, Any] = {
        "method": "GET",
        "path": "/acct/c/b",
        "query": tuple(parse_qsl(sas)),
        "headers": {},
        "container": "c",
        "blob": "b",
    }
    return SignedRequest(**(defaults | fields))


def grant(asked: SignedRequest, *policies: StoredAccessPolicy, now: float = NOON) -> BlobGrant:
    """What is granted at noon."""
    known = {policy.id: policy for policy in policies}
    return Authenticator("acct", KEY).authenticate(asked, lambda _container, name: known.get(name), now)


def refusal(asked: SignedRequest, *policies: StoredAccessPolicy, now: float = NOON) -> BlobErrorCode:
    """The fault with which a request is refused; its text never holds a signature."""
    with pytest.raises(BlobRefused) as caught:
        grant(asked, *policies, now=now)
    if signature := asked.parameter("sig"):
        assert signature not in str(caught.value)
    return caught.value.fault


def container_sas(**options: Any) -> str:
    """A SAS for container `c`, to read until one o'clock unless said otherwise."""
    terms = {"permission": "r", "expiry": "2030-01-01T13:00:00Z"} if "policy_id" not in options else {}
    return generate_container_sas("acct", "c", KEY, **(terms | options))


def signed(**fields: Any) -> SignedRequest:
    """A request that carries a shared key signature over what the service documents."""
    headers = {"x-ms-date": "Tue, 01 Jan 2030 12:00:00 GMT", "x-ms-version": "2026-10-06"}
    plain = request(**({"headers": headers} | fields))
    text = shared_key_strings("acct", plain)[0]
    signature = base64.b64encode(hmac.digest(b"secret", text.encode(), hashlib.sha256)).decode()
    return replace(plain, headers={**plain.headers, "authorization": f"SharedKey acct:{signature}"})


class TestSharedKey:
    def test_the_documented_string(self) -> None:
        """The string to sign has the documented lines, in order, with the query sorted and decoded."""
        asked = request(
            method="PUT",
            query=(("timeout", "5"), ("comp", "block"), ("comp", "a b")),
            headers={
                "content-length": "3",
                "content-type": "text/plain",
                "date": "ignored beside x-ms-date",
                "if-none-match": "*",
                "x-ms-version": "v",
                "x-ms-date": "d",
            },
        )
        expected = (
            "PUT\n\n\n3\n\ntext/plain\n\n\n\n*\n\n\nx-ms-date:d\nx-ms-version:v\n"
            "/acct/acct/c/b\ncomp:a b,block\ntimeout:5"
        )
        assert shared_key_strings("acct", asked)[0] == expected

    def test_an_empty_body_signs_no_length(self) -> None:
        """A Content-Length of 0 counts as absent, as the service has done since 2015."""
        with_length = request(headers={"content-length": "0", "date": "d"})
        assert shared_key_strings("acct", with_length) == shared_key_strings(
            "acct", request(headers={"date": "d"})
        )

    def test_both_orders_of_headers(self) -> None:
        """Underscores sort before digits and letters for the service, after digits by code point."""
        asked = request(headers={"x-ms-meta-a_b": "1", "x-ms-meta-a1": "2"})
        by_word, by_code = shared_key_strings("acct", asked)
        assert by_word.index("a_b") < by_word.index("a1")
        assert by_code.index("a1") < by_code.index("a_b")

    def test_the_owner_may_do_everything(self) -> None:
        """A right signature grants all."""
        assert grant(signed()) is OWNER
        OWNER.require(Level.CONTAINER, "")

    @pytest.mark.parametrize("minutes", [-16, 16])
    def test_an_old_request_is_refused(self, minutes: int) -> None:
        """A recorded request cannot be sent again later."""
        assert refusal(signed(), now=NOON + 60 * minutes) is BlobErrorCode.AUTHENTICATION_FAILED

    @pytest.mark.parametrize(
        "change",
        [
            {"method": "DELETE"},
            {"path": "/acct/c/other"},
            {"query": (("comp", "metadata"),)},
            {"headers": {"authorization": "SharedKey acct:AAAA", "date": "Tue, 01 Jan 2030 12:00:00 GMT"}},
            {"headers": {"authorization": "SharedKey acct:ü", "date": "Tue, 01 Jan 2030 12:00:00 GMT"}},
            {"headers": {"authorization": "SharedKey other:AAAA"}},
            {"headers": {"authorization": "SharedKey acct:AAAA"}},
            {"headers": {"authorization": "Bearer token"}},
            {"headers": {"authorization": "nonsense"}},
        ],
    )
    def test_anything_changed_is_refused(self, change: dict[str, Any]) -> None:
        """Whatever of a signed request is changed, it is refused."""
        assert refusal(replace(signed(), **change)) is BlobErrorCode.AUTHENTICATION_FAILED

    def test_no_credential(self) -> None:
        """A request without any credential gets 401."""
        assert refusal(request()) is BlobErrorCode.NO_AUTHENTICATION_INFORMATION


class TestServiceSas:
    def test_permissions_by_level(self) -> None:
        """A container's SAS reaches its blobs, and of the container listing alone."""
        granted = grant(request(container_sas(permission="rwl")))
        assert granted.allows(Level.OBJECT, "r")
        assert granted.allows(Level.CONTAINER, "l")
        assert not granted.allows(Level.CONTAINER, "rw")
        assert not granted.allows(Level.OBJECT, "d")
        assert not granted.allows(Level.SERVICE, "l")
        assert not granted.allows(Level.CONTAINER, "")

    def test_one_blob(self) -> None:
        """A blob's SAS is for that blob alone."""
        sas = generate_blob_sas(
            "acct", "c", "b", account_key=KEY, permission="r", expiry="2030-01-01T13:00:00Z"
        )
        assert grant(request(sas)).allows(Level.OBJECT, "r")
        assert refusal(request(sas, blob="other")) is BlobErrorCode.AUTHENTICATION_FAILED
        assert not grant(request(sas)).allows(Level.CONTAINER, "l")

    @pytest.mark.parametrize(
        ("now", "good"),
        [
            ("10:59:59", False),
            ("11:00:00", True),
            ("12:59:59", True),
            ("13:00:00", False),
        ],
    )
    def test_period(self, now: str, good: bool) -> None:
        """A SAS is good from its start until just before its expiry."""
        asked = request(container_sas(start="2030-01-01T11:00Z"))
        moment = parse_time(f"2030-01-01T{now}Z")
        if good:
            grant(asked, now=moment)
        else:
            assert refusal(asked, now=moment) is BlobErrorCode.AUTHENTICATION_FAILED

    @pytest.mark.parametrize("version", ["2018-11-09", "2020-12-06", "2026-10-06"])
    def test_versions(self, version: str) -> None:
        """The encryption scope is signed from 2020-12-06 on; older forms are read as they were."""
        fields = ["r", "", "2030-01-01", "/blob/acct/c", "", "", "", version, "c", ""]
        fields += [""] if version >= "2020-12-06" else []
        text = "\n".join([*fields, "", "", "", "", ""])
        signature = base64.b64encode(hmac.digest(b"secret", text.encode(), hashlib.sha256)).decode()
        query = (("sp", "r"), ("se", "2030-01-01"), ("sv", version), ("sr", "c"), ("sig", signature))
        before = parse_time("2029-12-31")
        assert grant(request(query=query), now=before).allows(Level.OBJECT, "r")

    @pytest.mark.parametrize(
        ("old", "new"),
        [("sp=r", "sp=rw"), ("T13", "T14"), ("sr=c", "sr=b"), ("sv=2", "sv=3"), ("sr=c", "sr=c&spr=http")],
    )
    def test_any_change_breaks_it(self, old: str, new: str) -> None:
        """Each field is signed."""
        sas = container_sas().replace(old, new).replace("%3A", ":")
        assert refusal(request(sas)) is BlobErrorCode.AUTHENTICATION_FAILED

    @pytest.mark.parametrize("extra", ["skoid=x", "sdd=1", "snapshot=x"])
    def test_what_is_not_understood_is_refused(self, extra: str) -> None:
        """A SAS of a kind that is not implemented opens nothing."""
        assert refusal(request(f"{container_sas()}&{extra}")) is BlobErrorCode.AUTHENTICATION_FAILED

    def test_protocol_and_address(self) -> None:
        """A SAS may be bound to https and to addresses."""
        assert grant(request(container_sas(protocol="https"), scheme="https"))
        assert (
            refusal(request(container_sas(protocol="https"))) is BlobErrorCode.AUTHORIZATION_PROTOCOL_MISMATCH
        )
        near = container_sas(ip="127.0.0.0-127.0.0.9")
        assert grant(request(near))
        assert refusal(request(near, source_ip="10.0.0.1")) is BlobErrorCode.AUTHORIZATION_SOURCE_IP_MISMATCH


class TestStoredPolicies:
    policy = StoredAccessPolicy("p", "rw", None, "2030-01-01T13:00:00Z")

    def test_the_policy_says_the_rest(self) -> None:
        """Permissions and times come from the policy as it stands at the request."""
        asked = request(container_sas(policy_id="p"))
        assert grant(asked, self.policy).allows(Level.OBJECT, "w")
        assert not grant(asked, replace(self.policy, permissions="r")).allows(Level.OBJECT, "w")
        assert (
            refusal(asked, replace(self.policy, expiry="2030-01-01")) is BlobErrorCode.AUTHENTICATION_FAILED
        )

    def test_no_policy_no_access(self) -> None:
        """Removing the policy revokes the SAS."""
        assert refusal(request(container_sas(policy_id="p"))) is BlobErrorCode.AUTHENTICATION_FAILED

    def test_each_field_in_one_place(self) -> None:
        """A field that stands both in the SAS and in the policy, or in neither, is refused."""
        both = request(container_sas(policy_id="p", permission="r"))
        assert refusal(both, self.policy) is BlobErrorCode.AUTHENTICATION_FAILED
        neither = request(container_sas(policy_id="p"))
        assert refusal(neither, replace(self.policy, expiry=None)) is BlobErrorCode.AUTHENTICATION_FAILED


class TestAccountSas:
    def sas(self, types: str, permission: str = "rl") -> str:
        """An account SAS until one o'clock."""
        return generate_account_sas("acct", KEY, types, permission, "2030-01-01T13:00:00Z")

    def test_resource_types(self) -> None:
        """An account SAS reaches the levels that it names."""
        granted = grant(request(self.sas("so")))
        assert granted.allows(Level.SERVICE, "l")
        assert granted.allows(Level.OBJECT, "r")
        with pytest.raises(BlobRefused) as refused:
            granted.require(Level.CONTAINER, "l")
        assert refused.value.fault is BlobErrorCode.AUTHORIZATION_RESOURCE_TYPE_MISMATCH

    def test_another_service(self) -> None:
        """An account SAS for queues opens no blobs."""
        fields = ["acct", "r", "q", "sco", "", "2030-01-02", "", "", "2026-10-06", "", ""]
        signature = base64.b64encode(hmac.digest(b"secret", "\n".join(fields).encode(), hashlib.sha256))
        query = {"sp": "r", "ss": "q", "srt": "sco", "se": "2030-01-02", "sv": "2026-10-06"}
        asked = request(query=(*query.items(), ("sig", signature.decode())))
        assert refusal(asked) is BlobErrorCode.AUTHORIZATION_SERVICE_MISMATCH
