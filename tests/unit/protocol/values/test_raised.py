"""Exceptions that travel as a class's name and values: what is rebuilt, and what is not."""

from __future__ import annotations

import json
import subprocess
from binascii import b2a_base64
from datetime import date
from typing import Any

import pytest

from batchflow.protocol.values.raised import rebuild, tell

RAN: list[str] = []


class Bad(ValueError):
    """Of the user's: neither of these runs when it is rebuilt."""

    def __new__(cls, *args: Any) -> Bad:
        RAN.append("new")
        return super().__new__(cls, *args)

    def __init__(self, code: int, at: date) -> None:
        RAN.append("init")
        super().__init__(f"code {code}")
        self.code, self.at = code, at


class Lost(OSError):
    def __init__(self, number: int) -> None:
        super().__init__(number, "is lost")


class Hostile(Exception):
    @property
    def args(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no")


def found(name: str) -> Any:
    return {f"{__name__}:{kind.__qualname__}": kind for kind in (Bad, Lost, Hostile)}.get(name)


def travelled(error: BaseException) -> Exception | None:
    told = tell(error)
    return rebuild(told["raised"], told.get("raised_data"), found)


def test_builtin_exceptions_come_back_with_their_arguments() -> None:
    for error in (
        ValueError("bad", 3, (1, float("inf"))),
        KeyError("name"),
        FileNotFoundError(2, "No such file", "a.txt"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        ZeroDivisionError(),
    ):
        back = travelled(error)
        assert type(back) is type(error)
        assert str(back) == str(error)
        assert back.args == error.args


def test_a_class_of_the_sessions_files_comes_back_without_its_own_code() -> None:
    error = Bad(7, date(2024, 2, 29))
    error.add_note("seen")
    RAN.clear()
    back = travelled(error)
    assert type(back) is Bad
    assert (str(back), back.code, back.at, back.__notes__) == ("code 7", 7, date(2024, 2, 29), ["seen"])
    lost = travelled(Lost(5))
    assert (type(lost), lost.args) == (Lost, (5, "is lost"))  # type: ignore[union-attr]
    assert RAN == []


@pytest.mark.parametrize(
    "error",
    [
        ValueError(object()),
        ValueError("x" * 20_000),
        ExceptionGroup("several", [ValueError("one")]),
        KeyboardInterrupt(),
        Hostile(),
        json.JSONDecodeError("no", "", 0),
        subprocess.CalledProcessError(1, "false"),
        type("Local", (Exception,), {})("of no module"),
    ],
)
def test_what_cannot_be_rebuilt_safely_is_told_by_its_name_alone(error: BaseException) -> None:
    assert travelled(error) is None
    assert tell(error)["raised"].endswith(f":{type(error).__qualname__}")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("builtins:print", b"[[], {}]"),
        ("builtins:SystemExit", b"[[], {}]"),
        ("builtins:ValueError.mro", b"[[], {}]"),
        ("builtins:", b"[[], {}]"),
        ("builtins:UnicodeDecodeError", b"[[], {}]"),
        ("builtins:ValueError", b"{"),
        ("builtins:ValueError", b"7"),
        ("builtins:ValueError", b"[7, {}]"),
        ("builtins:ValueError", b'[[], {"a": 1}, 3]'),
        ("os:error", b"[[], {}]"),
        ("builtins:OSError", b'[[], {"__class__": 1}]'),
    ],
)
def test_whatever_a_task_claims_the_client_gets_an_exception_or_none(name: str, data: bytes) -> None:
    made = rebuild(name, b2a_base64(data, newline=False).decode(), found)
    assert made is None or isinstance(made, Exception)
    assert rebuild(name, "not base64!", found) is None
