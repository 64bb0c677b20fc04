"""Entra ID of the local cloud: whose token, for what, until when; and what roles open, where."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchflow.local.security.entra import (
    AUDIENCES,
    BATCH,
    BATCH_CONTRIBUTOR,
    BLOB_CONTRIBUTOR,
    BLOB_DELEGATOR,
    BLOB_READER,
    BUS_OWNER,
    BUS_RECEIVER,
    BUS_SENDER,
    LIFETIME,
    SERVICE_BUS,
    STORAGE,
    Assignment,
    Directory,
    Principal,
)
from batchflow.local.security.sas import Rights, TokenRefused

NOW = 1_800_000_000.0
ME = Principal("me", "client", "object", (Assignment(BUS_OWNER),), secret="word")
DIRECTORY = Directory(b"key", [ME])


@pytest.mark.parametrize("audience", AUDIENCES)
def test_token_names_its_principal_and_audience(audience: str) -> None:
    """It counts for its service until it expires, with or without a slash at the end of the name."""
    for written in (audience, f"{audience}/"):
        known = DIRECTORY.check(DIRECTORY.issue(ME, written, NOW), audience, NOW + LIFETIME - 1)
        assert known == (ME, NOW + LIFETIME)


@pytest.mark.parametrize(
    ("directory", "audience", "at", "words"),
    [
        (DIRECTORY, STORAGE, NOW, "another service"),
        (DIRECTORY, SERVICE_BUS, NOW + LIFETIME, "expired"),
        (Directory(b"other", [ME]), SERVICE_BUS, NOW, "signature"),
        (Directory(b"key", []), SERVICE_BUS, NOW, "not known"),
    ],
)
def test_token_for_another_audience_or_time_is_refused(
    directory: Directory, audience: str, at: float, words: str
) -> None:
    """Another service's, an old one, another cloud's, and that of somebody who is gone."""
    token = DIRECTORY.issue(ME, SERVICE_BUS, NOW)
    with pytest.raises(TokenRefused, match=words) as caught:
        directory.check(token, audience, at)
    assert token not in str(caught.value)


@given(st.text() | st.binary().map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_malformed_token_is_refused(token: str) -> None:
    """Whatever comes as a token is refused, and nothing else happens."""
    for forged in (token, f"{token}.{token}", f"{token}.{token}.{token}"):
        with pytest.raises(TokenRefused):
            DIRECTORY.check(forged, BATCH, NOW)


def test_token_with_changed_claims_is_refused() -> None:
    """A token with other claims under its old signature is refused."""
    head, claims, signature = DIRECTORY.issue(ME, SERVICE_BUS, NOW).split(".")
    changed = json.loads(base64.urlsafe_b64decode(claims + "==")) | {"exp": 9e9}
    forged = base64.urlsafe_b64encode(json.dumps(changed).encode()).decode().rstrip("=")
    with pytest.raises(TokenRefused):
        DIRECTORY.check(f"{head}.{forged}.{signature}", SERVICE_BUS, NOW)


def test_secret_names_one_principal() -> None:
    """Nobody is found by a wrong word, nor by none."""
    assert DIRECTORY.by_secret("word") is ME
    for wrong in ("", "Word", "words"):
        assert DIRECTORY.by_secret(wrong) is None
    assert Directory(b"key", [Principal("x", "c", "o")]).by_secret("") is None


def principal(*assignments: Assignment) -> Principal:
    return Principal("p", "c", "o", assignments)


def test_roles_on_queues() -> None:
    """Owner, sender and receiver may what their names say, at their scope and below it."""
    both = principal(Assignment(BUS_SENDER, "q"), Assignment(BUS_RECEIVER))
    assert both.on_queue("q") == Rights.SEND | Rights.LISTEN
    assert both.on_queue("Q/$deadletterqueue") == Rights.SEND | Rights.LISTEN
    assert both.on_queue("quite") == both.on_queue("") == Rights.LISTEN
    assert principal(Assignment(BUS_OWNER)).on_queue("any") == Rights.MANAGE
    assert principal(Assignment(BLOB_CONTRIBUTOR)).on_queue("q") == Rights.NONE


def test_roles_on_blobs() -> None:
    """A reader reads and lists, a contributor does everything, a delegator gets keys and nothing else."""
    reader = principal(Assignment(BLOB_READER, "c"))
    assert reader.on_container("c") == frozenset("rl")
    assert reader.on_container("d") == frozenset()
    assert not reader.may_delegate
    assert principal(Assignment(BLOB_CONTRIBUTOR)).on_container("c") == frozenset("racwdl")
    delegator = principal(Assignment(BLOB_DELEGATOR))
    assert delegator.may_delegate
    assert delegator.on_container("c") == frozenset()


def test_the_role_on_batch() -> None:
    """It holds for the account."""
    assert principal(Assignment(BATCH_CONTRIBUTOR)).on_batch
    assert not principal(Assignment(BUS_OWNER)).on_batch
