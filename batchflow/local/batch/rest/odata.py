"""The OData of the Batch data plane: `$filter`, `$select`, and pages.

    filter     = conjunction *("or" conjunction)
    conjunction = term *("and" term)
    term       = "not" term / "(" filter ")" / startswith "(" path "," text ")" / path operator literal
    operator   = eq / ne / gt / ge / lt / le
    literal    = 'text' / number / true / false / datetime'...' / a bare ISO 8601 time

A path names a property of the document, nested ones with a slash; which of them a list can be filtered by,
and with which operators, is the caller's affair. What the service would not take is refused with
InvalidQueryParameterValue.
"""

from __future__ import annotations

import operator
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

from batchflow.local.batch.core.errors import Refused, invalid_query
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Document = Mapping[str, Any]
    Predicate = Callable[[Document], bool]

MAX_RESULTS = 1000
MAX_DEPTH = 64
"""Parentheses and negations of a filter inside one another."""

_MAX_DIGITS = 18

_TOKEN = re.compile(
    r"\s*(?:(?P<datetime>datetime'[^']*')|(?P<text>'(?:[^']|'')*')"
    r"|(?P<time>\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d)?)|(?P<number>-?\d+(?:\.\d+)?)"
    r"|(?P<name>[A-Za-z_][\w/.]*)|(?P<mark>[(),]))"
)
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
}


@frozen
class ODataPage:
    """One page of a list, and the token that asks for the next."""

    items: list[dict[str, Any]]
    next_token: str | None


def parse_filter(text: str, filterable: Mapping[str, frozenset[str]]) -> Predicate:
    """Return the predicate that a `$filter` expression stands for. Raises Refused.

    `filterable`: the paths that may be compared, each with its operators.
    """
    return _Parser(text, filterable).parse()


def select(document: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the document with only the named properties; all of it when none is named."""
    if not names:
        return document
    chosen: dict[str, Any] = {}
    for name in names:
        head, _, rest = name.strip().partition("/")
        if head not in document:
            continue
        if rest and isinstance(document[head], dict):
            chosen.setdefault(head, {}).update(select(document[head], [rest]))
        else:
            chosen[head] = document[head]
    return chosen


def parse_max_results(text: str | None) -> int:
    """Return the size of a page: `maxresults`, 1 to 1000. Raises Refused."""
    if text is None:
        return MAX_RESULTS
    if not _is_number(text) or not 1 <= int(text) <= MAX_RESULTS:
        raise Refused(
            "OutOfRangeQueryParameterValue",
            QueryParameterName="maxresults",
            QueryParameterValue=text,
            MinimumAllowed=1,
            MaximumAllowed=MAX_RESULTS,
        )
    return int(text)


def paginate(
    numbered: Iterable[tuple[int, dict[str, Any]]], *, after: str | None, limit: int, wanted: Predicate | None
) -> ODataPage:
    """Return the page of documents after the token `after`, from documents in the order of their numbers.

    A token is the number of the last document seen, so a page is stable while documents come and go.
    """
    start = _parse_token(after)
    items: list[dict[str, Any]] = []
    last = start
    for number, document in numbered:
        if number <= start or (wanted is not None and not wanted(document)):
            continue
        if len(items) == limit:
            return ODataPage(items, str(last))
        items.append(document)
        last = number
    return ODataPage(items, None)


def _parse_token(token: str | None) -> int:
    if token is None:
        return -1
    if not _is_number(token):
        raise invalid_query("$skiptoken", token, "The continuation token is not one that the service gave.")
    return int(token)


def _is_number(text: str) -> bool:
    """Tell whether `int` reads the text, in the digits of ASCII and not endless."""
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    position = 0
    end = len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            raise invalid_query("$filter", text, f"Unexpected character at position {position}.")
        kind = match.lastgroup or ""
        tokens.append((kind, match.group(kind)))
        position = match.end()
    return tokens


class _Parser:
    """Recursive descent over the grammar of the module's docstring."""

    def __init__(self, text: str, filterable: Mapping[str, frozenset[str]]) -> None:
        self._text = text
        self._filterable = filterable
        self._tokens = _tokens(text)
        self._position = 0
        self._depth = 0

    def parse(self) -> Predicate:
        predicate = self._alternatives()
        if self._position != len(self._tokens):
            raise self._unexpected()
        return predicate

    def _alternatives(self) -> Predicate:
        parts = [self._conjunction()]
        while self._accept("or"):
            parts.append(self._conjunction())
        return lambda document: any(part(document) for part in parts)

    def _conjunction(self) -> Predicate:
        parts = [self._term()]
        while self._accept("and"):
            parts.append(self._term())
        return lambda document: all(part(document) for part in parts)

    def _term(self) -> Predicate:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise invalid_query("$filter", self._text[:100], "The expression is nested too deeply.")
        term = self._nested()
        self._depth -= 1
        return term

    def _nested(self) -> Predicate:
        if self._accept("not"):
            negated = self._term()
            return lambda document: not negated(document)
        if self._accept("("):
            inside = self._alternatives()
            self._expect(")")
            return inside
        if self._accept("startswith"):
            return self._startswith()
        return self._comparison()

    def _startswith(self) -> Predicate:
        self._expect("(")
        path = self._take("name")
        self._expect(",")
        prefix = self._literal()
        self._expect(")")
        self._check(path, "startswith")
        return lambda document: str(_lookup(document, path) or "").startswith(str(prefix))

    def _comparison(self) -> Predicate:
        path = self._take("name")
        name = self._take("name")
        if name not in _COMPARISONS:
            raise self._unexpected(back=1)
        self._check(path, name)
        compare = _COMPARISONS[name]
        literal = self._literal()

        def predicate(document: Document) -> bool:
            value = _comparable(_lookup(document, path), literal)
            if value is None:
                return name == "ne"
            return type(value) is type(literal) and compare(value, literal)

        return predicate

    def _check(self, path: str, comparison: str) -> None:
        allowed = self._filterable.get(path, frozenset())
        if comparison not in allowed:
            known = ", ".join(sorted(allowed)) or f"none; what can be compared: {', '.join(self._filterable)}"
            reason = f"'{path}' cannot be compared with '{comparison}'. Allowed: {known}."
            raise invalid_query("$filter", self._text, reason)

    def _literal(self) -> object:
        kind, text = self._peek()
        self._position += 1
        match kind:
            case "text":
                return text[1:-1].replace("''", "'")
            case "datetime":
                return self._time(text[len("datetime'") : -1])
            case "time":
                return self._time(text)
            case "number":
                return float(text)
            case "name" if text in ("true", "false"):
                return text == "true"
        raise self._unexpected(back=1)

    def _time(self, text: str) -> datetime:
        parsed = _parse_time(text)
        if parsed is None:
            raise invalid_query("$filter", self._text, f"'{text}' is not a time.")
        return parsed

    def _peek(self) -> tuple[str, str]:
        if self._position >= len(self._tokens):
            raise invalid_query("$filter", self._text, "The expression ends too early.")
        return self._tokens[self._position]

    def _accept(self, token: str) -> bool:
        if self._position < len(self._tokens) and self._tokens[self._position] in (
            ("name", token),
            ("mark", token),
        ):
            self._position += 1
            return True
        return False

    def _expect(self, token: str) -> None:
        if not self._accept(token):
            raise self._unexpected()

    def _take(self, wanted: str) -> str:
        kind, text = self._peek()
        if kind != wanted:
            raise self._unexpected()
        self._position += 1
        return text

    def _unexpected(self, back: int = 0) -> Refused:
        rest = self._tokens[self._position - back :]
        found = f"'{rest[0][1]}' was not expected there." if rest else "The expression ends too early."
        return invalid_query("$filter", self._text, found)


def _lookup(document: Document, path: str) -> object:
    value: object = document
    for name in path.split("/"):
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def _comparable(value: object, literal: object) -> object:
    """`value` as the type that `literal` has, as far as JSON allows."""
    if isinstance(literal, datetime):
        return _parse_time(value) if isinstance(value, str) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _parse_time(text: str) -> datetime | None:
    fraction = re.sub(r"(\.\d{6})\d+", r"\1", text)
    try:
        parsed = datetime.fromisoformat(fraction)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else datetime.fromisoformat(fraction + "+00:00")
