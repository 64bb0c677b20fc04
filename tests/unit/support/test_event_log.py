"""Log lines that carry what they are about."""

from __future__ import annotations

import logging

import pytest

from batchflow.support.event_log import event_logger


def test_message_carries_the_fields(caplog: pytest.LogCaptureFixture) -> None:
    """They are in the record as well, by their names."""
    event_logger("batchflow.test").warning("mailbox_lost", extra={"mailbox": "a/b", "error": "100 % gone"})
    (record,) = caplog.records
    assert record.getMessage() == "mailbox_lost: mailbox=a/b, error=100 % gone"
    assert vars(record)["mailbox"] == "a/b"


def test_control_characters_are_escaped(caplog: pytest.LogCaptureFixture) -> None:
    event_logger("batchflow.test").warning("x", extra={"reason": "\x1b[2Jgone"})
    assert "\x1b" not in caplog.text


def test_event_without_fields_is_its_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    event_logger("batchflow.test").debug("done")
    assert caplog.messages == ["done"]
