"""The pure parts of the Batch service: signatures, filters, selections, durations, ranges."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchflow.local.batch.core.entities import ResourceFileSpec
from batchflow.local.batch.core.errors import CODES, Refused
from batchflow.local.batch.nodes.files import slice_of
from batchflow.local.batch.rest.auth import authenticate, signature, strings_to_sign
from batchflow.local.batch.rest.odata import paginate, parse_filter, select
from batchflow.local.batch.rest.values import parse_duration

KEY = base64.b64encode(b"key").decode()
NOW = 1_700_000_000.0
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"
TASK = {
    "id": "it's",
    "state": "completed",
    "priority": 5,
    "creationTime": "2024-05-06T07:08:09.1234567Z",
    "executionInfo": {"exitCode": 3, "result": "failure"},
}


FILTERABLE = dict.fromkeys(
    ["id", "state", "priority", "creationTime", "missing", "executionInfo/exitCode", "executionInfo/nothing"],
    frozenset({"eq", "ne", "gt", "ge", "lt", "le", "startswith"}),
)


def signed(text: str, **headers: str) -> dict[str, str]:
    """Headers with the signature of a string to sign."""
    return {"ocp-date": DATE, "authorization": f"SharedKey acc:{signature(text, KEY)}", **headers}


def test_string_to_sign_is_the_documented_one() -> None:
    """Method, headers, ocp headers, account and raw path, and the query by name, blanks dropped."""
    headers = {"content-length": "7", "content-type": "application/json", "ocp-date": DATE, "ocp-range": ""}
    text = next(
        iter(strings_to_sign("POST", "/jobs/a%2Fb/tasks?timeOut=30&api-version=1&x=", headers, "acc"))
    )
    expected = f"POST\n\n\n7\n\napplication/json\n\n\n\n\n\n\nocp-date:{DATE}\n/acc/jobs/a%2Fb/tasks"
    assert text == f"{expected}\napi-version:1\ntimeOut:30"


@pytest.mark.parametrize("length", ["0", ""])
def test_both_lengths_of_an_empty_body_are_accepted(length: str) -> None:
    """Clients sign the length of a missing body as "0" or as nothing."""
    text = f"DELETE\n\n\n{length}\n\n\n\n\n\n\n\n\nocp-date:{DATE}\n/acc/jobs/j\napi-version:1"
    authenticate("DELETE", "/jobs/j?api-version=1", signed(text), account="acc", key=KEY, now=NOW)


def test_lower_case_header_names_are_accepted() -> None:
    """Clients sign the names of parameters as written or in lower case."""
    text = f"GET\n\n\n\n\n\n\n\n\n\n\n\nocp-date:{DATE}\n/acc/jobs\napi-version:1\ntimeout:30"
    authenticate("GET", "/jobs?timeOut=30&api-version=1", signed(text), account="acc", key=KEY, now=NOW)


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_header_breaks_authentication(authorization: str, date: str) -> None:
    """Whatever stands in the headers, an unauthentic request is refused as such."""
    headers = {"authorization": authorization, "ocp-date": date}
    with pytest.raises(Refused) as raised:
        authenticate("GET", "/pools", headers, account="acc", key=KEY, now=NOW)
    assert raised.value.status == 403


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("state eq 'completed'", True),
        ("state ne 'completed'", False),
        ("id eq 'it''s'", True),
        ("startswith(id, 'it') and state eq 'active'", False),
        ("startswith(id,'x') or (state eq 'completed' and executionInfo/exitCode ne 0)", True),
        ("not (state eq 'active')", True),
        ("executionInfo/exitCode ge 3", True),
        ("executionInfo/nothing eq 1", False),
        ("missing ne 'x'", True),
        ("priority lt 5", False),
        ("creationTime gt 2024-05-06T07:08:09Z", True),
        ("creationTime lt datetime'2024-05-06T07:08:09Z'", False),
        ("priority eq 'five'", False),
    ],
)
def test_filters(expression: str, expected: bool) -> None:
    """A filter means what OData says it means."""
    assert parse_filter(expression, FILTERABLE)(TASK) is expected


@pytest.mark.parametrize("text", ["not " * 5000 + "id eq 'a'", "(" * 5000])
def test_deep_filters_are_refused(text: str) -> None:
    """A filter that is nested without end is refused as a query parameter."""
    with pytest.raises(Refused, match="InvalidQueryParameterValue"):
        parse_filter(text, FILTERABLE)


@given(st.text(max_size=60))
def test_no_filter_breaks_the_parser(text: str) -> None:
    """Whatever comes as a filter is a predicate, or is refused as a query parameter."""
    try:
        parse_filter(text, FILTERABLE)(TASK)
    except Refused as refused:
        assert refused.status == 400  # noqa: PT017 - a filter may be well-formed by chance


def test_selections() -> None:
    """A selection keeps the named properties, also within others; unknown names are nothing."""
    assert select(TASK, ["id", "executionInfo/exitCode", "none"]) == {
        "id": "it's",
        "executionInfo": {"exitCode": 3},
    }


@given(st.lists(st.integers(0, 50), unique=True), st.integers(1, 7))
def test_pages_hold_every_item_once(numbers: list[int], limit: int) -> None:
    """Page by page, every item comes once, in order."""
    items: list[tuple[int, dict[str, Any]]] = [(number, {"n": number}) for number in sorted(numbers)]
    seen: list[int] = []
    token: str | None = None
    while True:
        page = paginate(items, after=token, limit=limit, wanted=lambda item: item["n"] % 3 != 0)
        seen += [item["n"] for item in page.items]
        token = page.next_token
        if token is None:
            break
    assert seen == [number for number in sorted(numbers) if number % 3 != 0]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("PT15M", 900.0), ("P1DT2H", 93600.0), ("PT0.5S", 0.5), ("P", None), ("PT", None), ("15 min", None)],
)
def test_durations(text: str, seconds: float | None) -> None:
    """ISO 8601 durations of days and smaller."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(("wanted", "part"), [(None, (0, 10)), ("bytes=2-4", (2, 3)), ("bytes=8-", (8, 2))])
def test_ranges(tmp_path: Path, wanted: str | None, part: tuple[int, int]) -> None:
    """A range of a file is inclusive, and ends with the file."""
    (tmp_path / "file").write_bytes(b"0123456789")
    found = slice_of(tmp_path / "file", wanted)
    assert (found.start, found.length) == part


@pytest.mark.parametrize("wanted", ["bytes=10-", "bytes=-5", "lines=1-2"])
def test_bad_ranges_are_refused(tmp_path: Path, wanted: str) -> None:
    """A range outside the file, or of another form, is refused."""
    (tmp_path / "file").write_bytes(b"0123456789")
    with pytest.raises(Refused) as raised:
        slice_of(tmp_path / "file", wanted)
    assert raised.value.code == "InvalidRange"


def test_secrets_are_not_shown() -> None:
    """A resource file's URL, which may carry a signature, is not in its repr."""
    assert "sig=" not in repr(ResourceFileSpec("http://host/c/b?sig=secret", "b"))


def test_every_code_has_a_status_and_words() -> None:
    """The table of refusals is complete, and their body has the service's shape."""
    for code, (status, words) in CODES.items():
        assert 300 < status < 600
        body = Refused(code, Name="value").body()
        assert body["code"] == code
        assert body["message"]["value"] == words
        assert body["values"] == [{"key": "Name", "value": "value"}]
