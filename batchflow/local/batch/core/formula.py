"""The language of autoscale formulas: text in, a program out, which is carried out with the facts of a pool.

    formula    = statement *(";" statement)
    statement  = name "=" expression / "stop" "(" ")"
    expression = any ["?" expression ":" expression]
    any        = all *("||" all)
    all        = equality *("&&" equality)
    equality   = order *(("==" / "!=") order)
    order      = sum *(("<" / "<=" / ">" / ">=") sum)
    sum        = product *(("+" / "-") product)
    product    = unary *(("*" / "/") unary)
    unary      = ("-" / "!") unary / primary *("." name ["(" arguments ")"])
    primary    = number / text / name ["(" arguments ")"] / "(" expression ")" / "[" arguments "]"

Both a formula and its evaluation are bounded: characters, statements, depth, and the numbers that vectors
hold together. A name must have been assigned before it is read. Of the two branches of a condition one is
evaluated, so a formula can ask for the percentage of samples before it asks for the samples.

(https://learn.microsoft.com/azure/batch/batch-automatic-scaling)
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias, get_args

from batchflow.local.batch.core.entities import Deallocation
from batchflow.local.batch.core.errors import Refused, not_implemented
from batchflow.local.batch.core.formula_values import (
    CONSTANTS,
    FUNCTIONS,
    MEMBERS,
    METHODS,
    FormulaFacts,
    Metric,
    Stopped,
    combine,
    compare,
    failed,
    negative,
    number,
    vector,
)
from batchflow.local.batch.core.samples import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_LENGTH: Final = 8192
"""Characters of a formula."""

MAX_STATEMENTS: Final = 100
MAX_DEPTH: Final = 24
"""Parentheses, conditions and signs inside one another."""

DEDICATED: Final = "$TargetDedicatedNodes"
SPOT: Final = "$TargetLowPriorityNodes"
OPTION: Final = "$NodeDeallocationOption"
OPTIONS: Final = get_args(Deallocation)
_ALIASES: Final = {
    "$TargetDedicated": DEDICATED,
    "$TargetLowPriority": SPOT,
    "$CurrentDedicated": "$CurrentDedicatedNodes",
    "$CurrentLowPriority": "$CurrentLowPriorityNodes",
}
_UNKNOWN_HERE: Final = frozenset(
    {
        "$CPUPercent", "$WallClockSeconds", "$MemoryBytes", "$DiskBytes", "$DiskReadBytes", "$DiskWriteBytes",
        "$DiskReadOps", "$DiskWriteOps", "$NetworkInBytes", "$NetworkOutBytes",
    }
)  # fmt: skip
"""Metrics of machines, which the local nodes do not have."""

_TOKEN = re.compile(
    r"\s+|//[^\n]*|(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>\$?[A-Za-z_]\w*)"
    r"|(?P<text>\"[^\"]*\"|'[^']*')|(?P<mark>&&|\|\||[=!<>]=|[-+*/()\[\]<>=!?:;,.])|(?P<other>.)",
    re.ASCII | re.DOTALL,
)

Scope: TypeAlias = "Evaluation"
Expression: TypeAlias = "Callable[[Scope], Any]"


class Evaluation:
    """One evaluation: the facts, the values that names have, and which of them were assigned, in order."""

    def __init__(self, facts: FormulaFacts) -> None:
        self.facts = facts
        self.values: dict[str, Any] = {
            DEDICATED: float(facts.target_dedicated),
            SPOT: float(facts.target_spot),
            **{name: Metric(name, facts) for name in METRICS},
            **CONSTANTS,
        }
        self.assigned: dict[str, Any] = {}


class Program:
    """A formula that is well-formed. Raises Refused for one that is not."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise Refused("AutoScaleFormulaTooLong", MaxLimit=MAX_LENGTH)
        self._statements = _Parser(text).statements()

    def run(self, facts: FormulaFacts) -> dict[str, Any]:
        """Return the values of what was assigned. Raises Refused: AutoScalingFormulaEvaluationError."""
        evaluation = Evaluation(facts)
        try:
            for name, expression in self._statements:
                value = expression(evaluation)
                evaluation.values[name] = evaluation.assigned[name] = value
        except Stopped:
            pass
        except (ArithmeticError, ValueError) as error:
            raise failed(f"a function has no value there: {error}") from None
        return evaluation.assigned


class _Parser:
    """Recursive descent over the grammar of the module's docstring."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._position = 0
        self._depth = 0
        self._names = {DEDICATED, SPOT, *METRICS, *CONSTANTS}

    def statements(self) -> list[tuple[str, Expression]]:
        found: list[tuple[str, Expression]] = []
        while self._peek() is not None:
            if self._accept(";") is None:
                found.append(self._statement())
                if len(found) > MAX_STATEMENTS:
                    raise _broken(f"it has more than {MAX_STATEMENTS} statements")
        if not found:
            raise _broken("it assigns nothing")
        return found

    def _statement(self) -> tuple[str, Expression]:
        kind, name = self._next()
        if kind != "name":
            raise _broken(f"'{name}' was not expected there")
        if name == "stop":
            self._position -= 1
            return "", self._expression()
        name = _ALIASES.get(name, name)
        if name in METRICS or name in CONSTANTS or name in _UNKNOWN_HERE:
            raise _broken(f"'{name}' cannot be assigned")
        self._expect("=")
        expression = self._option() if name == OPTION else self._expression()
        if name in (DEDICATED, SPOT):
            expression = _as_number(expression)
        self._names.add(name)
        if self._peek() is not None:
            self._expect(";")
        return name, expression

    def _option(self) -> Expression:
        _, word = self._next()
        chosen = word.strip("\"'").lower()
        if chosen not in OPTIONS:
            raise _broken(f"'{word}' is no option of {OPTION}")
        return lambda scope: chosen

    def _expression(self) -> Expression:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _broken("it is nested too deeply")
        test = self._any()
        if self._accept("?") is not None:
            yes = self._expression()
            self._expect(":")
            no = self._expression()
            condition = test

            def chosen(scope: Scope) -> Any:
                return yes(scope) if number(condition(scope)) else no(scope)

            test = chosen
        self._depth -= 1
        return test

    def _any(self) -> Expression:
        parts = self._parts(self._all, "||")
        return (
            parts[0] if len(parts) == 1 else lambda scope: float(any(number(part(scope)) for part in parts))
        )

    def _all(self) -> Expression:
        parts = self._parts(self._equality, "&&")
        return (
            parts[0] if len(parts) == 1 else lambda scope: float(all(number(part(scope)) for part in parts))
        )

    def _parts(self, part: Callable[[], Expression], mark: str) -> list[Expression]:
        parts = [part()]
        while self._accept(mark) is not None:
            parts.append(part())
        return parts

    def _equality(self) -> Expression:
        return self._chain(self._order, _EQUALITY, compare)

    def _order(self) -> Expression:
        return self._chain(self._sum, _ORDER, compare)

    def _sum(self) -> Expression:
        return self._chain(self._product, _SUM, combine)

    def _product(self) -> Expression:
        return self._chain(self._unary, _PRODUCT, combine)

    def _chain(
        self,
        part: Callable[[], Expression],
        marks: dict[str, Callable[[Any, Any], Any]],
        apply: Callable[[str, Callable[[Any, Any], Any], Any, Any, FormulaFacts], Any],
    ) -> Expression:
        first = part()
        rest: list[tuple[str, Callable[[Any, Any], Any], Expression]] = []
        while (mark := self._accept(*marks)) is not None:
            rest.append((mark, marks[mark], part()))
        if not rest:
            return first

        def value(scope: Scope) -> Any:
            found = first(scope)
            for mark, work, other in rest:
                found = apply(mark, work, found, other(scope), scope.facts)
            return found

        return value

    def _unary(self) -> Expression:
        mark = self._accept("-", "!")
        if mark is None:
            return self._postfix(self._primary())
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _broken("it is nested too deeply")
        inner = self._unary()
        self._depth -= 1
        if mark == "-":
            return lambda scope: negative(inner(scope))
        return lambda scope: float(not number(inner(scope)))

    def _postfix(self, expression: Expression) -> Expression:
        steps: list[tuple[str, list[Expression] | None]] = []
        while self._accept(".") is not None:
            kind, name = self._next()
            if kind != "name" or (name not in MEMBERS and name not in METHODS):
                raise _broken(f"'{name}' is no member or method")
            if (self._accept("(") is not None) != (name in METHODS):
                raise _broken(f"'{name}' is {'a method' if name in METHODS else 'no method'}")
            steps.append((name, self._arguments(")") if name in METHODS else None))
        if not steps:
            return expression

        def value(scope: Scope) -> Any:
            found = expression(scope)
            for name, arguments in steps:
                if arguments is None:
                    found = MEMBERS[name](found)
                else:
                    found = METHODS[name](found, [argument(scope) for argument in arguments])
            return found

        return value

    def _primary(self) -> Expression:
        kind, token = self._next()
        if kind == "number":
            value = float(token)
            return lambda scope: value
        if kind == "text":
            return lambda scope: token[1:-1]
        if token == "(":
            inside = self._expression()
            self._expect(")")
            return inside
        if token == "[":
            items = self._arguments("]")
            return lambda scope: vector([item(scope) for item in items], scope.facts)
        if kind != "name":
            raise _broken(f"'{token}' was not expected there")
        if self._accept("(") is not None:
            return self._call(token)
        return self._read(_ALIASES.get(token, token))

    def _call(self, name: str) -> Expression:
        function = FUNCTIONS.get(name)
        if function is None:
            raise _broken(f"there is no function '{name}'")
        arguments = self._arguments(")")
        return lambda scope: function([argument(scope) for argument in arguments], scope.facts)

    def _read(self, name: str) -> Expression:
        if name in _UNKNOWN_HERE:
            raise not_implemented(f"an autoscale formula that reads '{name}'")
        if name not in self._names:
            raise _broken(f"'{name}' has no value there")
        return lambda scope: scope.values[name]

    def _arguments(self, end: str) -> list[Expression]:
        if self._accept(end) is not None:
            return []
        arguments = [self._expression()]
        while self._accept(",") is not None:
            arguments.append(self._expression())
        self._expect(end)
        return arguments

    def _peek(self) -> str | None:
        return self._tokens[self._position][1] if self._position < len(self._tokens) else None

    def _next(self) -> tuple[str, str]:
        if self._position >= len(self._tokens):
            raise _broken("it ends too early")
        self._position += 1
        return self._tokens[self._position - 1]

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


_EQUALITY: Final = {"==": operator.eq, "!=": operator.ne}
_ORDER: Final = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_SUM: Final = {"+": operator.add, "-": operator.sub}
_PRODUCT: Final = {"*": operator.mul, "/": operator.truediv}


def _tokens(text: str) -> list[tuple[str, str]]:
    found = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind == "other":
            raise _broken(f"'{match.group()}' was not expected there")
        if kind is not None:
            found.append((kind, match.group()))
    return found


def _as_number(expression: Expression) -> Expression:
    return lambda scope: number(expression(scope))


def _broken(reason: str) -> Refused:
    return Refused("AutoScalingFormulaSyntaxError", Reason=reason)
