"""A session whose process is killed, in a test's own process."""

from __future__ import annotations

from contextlib import suppress

import pytest

from batchflow.errors import BatchflowError, LeaseLost
from batchflow.session import Session
from tests.support.services import Doubles
from tests.support.session_parts import parts_of


async def nothing_at_all() -> None:
    """What a killed process does."""


async def die(session: Session, doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the process had been killed: nothing is saved or completed any more, the lock runs out."""
    mailbox = parts_of(session).receiver.mailbox

    async def nothing(*_: object) -> None:
        raise LeaseLost("the process was killed")

    for name in ("complete", "renew", "get_state", "set_state"):
        monkeypatch.setattr(mailbox, name, nothing)
    monkeypatch.setattr(parts_of(session).receiver, "_reopen", nothing)
    monkeypatch.setattr(parts_of(session).presence, "release", nothing_at_all)
    if (keeper := parts_of(session).submitter.dependents.keeper) is not None:
        monkeypatch.setattr(keeper, "close", nothing_at_all)
        monkeypatch.setattr(keeper, "delete_documents", lambda: None)
    session.close_timeout = 0.5
    with suppress(BatchflowError):  # its checkpoint was not saved
        await session.aclose()
    doubles.broker.advance(60)
