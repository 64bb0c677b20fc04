"""Formulas that decide the size of a pool, as far as the local Batch service evaluates them.

    formula    = statement *(";" statement)
    statement  = name "=" expression
    expression = term *(("+" / "-") term)
    term       = factor *(("*" / "/") factor)
    factor     = number / name / "-" factor / "(" expression ")" / function
    function   = ("min" / "max") "(" expression *("," expression) ")"

A name that is assigned can be read afterwards; `$CurrentDedicatedNodes` and `$CurrentLowPriorityNodes` can be
read from the beginning. `$TargetDedicatedNodes` and `$TargetLowPriorityNodes` are the size that the pool is
to have, `$NodeDeallocationOption` is one of four words. What Azure has beyond that (samples of metrics,
times, vectors, conditions) is refused with 501. An invalid formula is refused with the code of Azure Batch.

(https://learn.microsoft.com/azure/batch/batch-automatic-scaling)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, cast

from batchflow.local.batch.core.errors import Refused, not_implemented
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batchflow.local.batch.core.entities import Deallocation

MAX_LENGTH: Final = 8192
"""Characters of a formula."""

MAX_TARGET: Final = 2**31 - 1

_TOKEN = re.compile(r"\s*(?:(?P<number>\d+(?:\.\d+)?)|(?P<name>\$?[A-Za-z_]\w*)|(?P<mark>\S))")
_COMMENT = re.compile(r"//[^\n]*")
_BEYOND = frozenset(".?:<>!&|%[]\"'")
"""Marks of what Azure evaluates and the local service does not."""
_OPTIONS: Final = ("requeue", "terminate", "taskcompletion", "retaineddata")
_FUNCTIONS: dict[str, Callable[[list[float]], float]] = {"min": min, "max": max}
_DEDICATED = "$TargetDedicatedNodes"
_SPOT = "$TargetLowPriorityNodes"
_OPTION = "$NodeDeallocationOption"
_ALIASES = {"$TargetDedicated": _DEDICATED, "$CurrentDedicated": "$CurrentDedicatedNodes"}
_WRITABLE = frozenset({_DEDICATED, _SPOT, _OPTION})


@frozen
class Targets:
    """The result of a formula; None leaves a count as it is."""

    dedicated: int | None
    spot: int | None
    option: Deallocation
    results: str
    """As the service tells it: each variable with its value."""


def evaluate(formula: str, current_dedicated: int, current_spot: int) -> Targets:
    """Evaluate a formula for a pool of that size. Raises Refused."""
    if len(formula) > MAX_LENGTH:
        raise Refused("AutoScaleFormulaTooLong", MaxLimit=MAX_LENGTH)
    current = {"$CurrentDedicatedNodes": current_dedicated, "$CurrentLowPriorityNodes": current_spot}
    known = {name: float(count) for name, count in current.items()}
    try:
        assigned = _Evaluation(_tokens(formula), known).run()
    except RecursionError:
        raise _broken("it is nested too deeply") from None
    option = str(assigned.get(_OPTION, "requeue"))
    told = {_OPTION: option} | assigned
    return Targets(
        _count(assigned, _DEDICATED),
        _count(assigned, _SPOT),
        cast("Deallocation", option),
        ";".join(f"{name}={_told(told[name])}" for name in sorted(told)),
    )


def _count(assigned: Mapping[str, float | str], name: str) -> int | None:
    value = cast("float | None", assigned.get(name))
    if value is None:
        return None
    if not -MAX_TARGET <= value <= MAX_TARGET:  # nor is what is not a number
        raise _broken(f"{name} is {value:g}, which is no number of nodes")
    return max(0, int(value))


def _told(value: float | str) -> str:
    return f"{value:g}" if isinstance(value, float) else value


def _tokens(formula: str) -> list[str]:
    tokens = [match.group(match.lastgroup or 0) for match in _TOKEN.finditer(_COMMENT.sub("", formula))]
    for token in tokens:
        if token in _BEYOND:
            raise not_implemented(f"an autoscale formula with '{token}'")
    return tokens


class _Evaluation:
    """Recursive descent over the grammar of the module's docstring."""

    def __init__(self, tokens: list[str], known: dict[str, float]) -> None:
        self._tokens = tokens
        self._position = 0
        self._known: dict[str, float | str] = dict(known)
        self._assigned: dict[str, float | str] = {}

    def run(self) -> dict[str, float | str]:
        """Return the values of what was assigned."""
        while self._peek() is not None:
            if not self._accept(";"):
                self._statement()
        if not self._assigned:
            raise _broken("it assigns nothing")
        return self._assigned

    def _statement(self) -> None:
        name = self._name(self._next())
        if name.startswith("$") and name not in _WRITABLE:
            raise _broken(f"'{name}' cannot be assigned")
        self._expect("=")
        value = self._option() if name == _OPTION else self._expression()
        self._known[name] = self._assigned[name] = value
        if self._peek() is not None:
            self._expect(";")

    def _option(self) -> str:
        word = self._next()
        if word.lower() not in _OPTIONS:
            raise _broken(f"'{word}' is no option of {_OPTION}")
        return word.lower()

    def _expression(self) -> float:
        value = self._term()
        while (mark := self._accept("+", "-")) is not None:
            other = self._term()
            value = value + other if mark == "+" else value - other
        return value

    def _term(self) -> float:
        value = self._factor()
        while (mark := self._accept("*", "/")) is not None:
            other = self._factor()
            if mark == "/" and other == 0:
                raise _broken("it divides by zero")
            value = value * other if mark == "*" else value / other
        return value

    def _factor(self) -> float:
        token = self._next()
        if token == "-":
            return -self._factor()
        if token == "(":
            value = self._expression()
            self._expect(")")
            return value
        if token[0].isdigit():
            return float(token)
        name = self._name(token)
        if self._accept("(") is not None:
            return self._call(name)
        if name not in self._known:
            raise not_implemented(f"an autoscale formula that reads '{name}'")
        value_of = self._known[name]
        if isinstance(value_of, str):
            raise _broken(f"'{name}' is no number")
        return value_of

    def _call(self, name: str) -> float:
        if name not in _FUNCTIONS:
            raise not_implemented(f"an autoscale formula with the function '{name}'")
        arguments = [self._expression()]
        while self._accept(",") is not None:
            arguments.append(self._expression())
        self._expect(")")
        return _FUNCTIONS[name](arguments)

    def _name(self, token: str) -> str:
        if not (token[0].isalpha() or token[0] in "$_"):
            raise _broken(f"'{token}' was not expected there")
        return _ALIASES.get(token, token)

    def _peek(self) -> str | None:
        return self._tokens[self._position] if self._position < len(self._tokens) else None

    def _next(self) -> str:
        token = self._peek()
        if token is None:
            raise _broken("it ends too early")
        self._position += 1
        return token

    def _accept(self, *marks: str) -> str | None:
        token = self._peek()
        if token not in marks:
            return None
        self._position += 1
        return token

    def _expect(self, mark: str) -> None:
        if self._accept(mark) is None:
            found = self._peek()
            raise _broken(f"'{mark}' was expected" + (f", not '{found}'" if found else " at its end"))


def _broken(reason: str) -> Refused:
    return Refused("AutoScalingFormulaSyntaxError", Reason=reason)
