"""The values of autoscale formulas, and what can be done with them: numbers, vectors, times, spans, metrics.

A vector of one number counts as that number where a number is due.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple

from batchflow.local.batch.core.errors import Refused
from batchflow.local.batch.core.samples import METRICS, AutoscaleTiming, MetricSample

MAX_NUMBERS: Final = 200_000
"""Numbers of all vectors of one evaluation together."""


class Stopped(Exception):
    """The formula called stop()."""


class Moment(NamedTuple):
    """A time, in seconds since the epoch."""

    at: float


class Span(NamedTuple):
    """A time interval."""

    seconds: float


class FormulaFacts:
    """What a formula is evaluated with: the time, the pool's nodes and samples, as far as they are seen."""

    def __init__(
        self,
        now: float,
        target_dedicated: int = 0,
        target_spot: int = 0,
        current: Sequence[float] = (0.0,) * len(METRICS),
        samples: Sequence[MetricSample] = (),
        timing: AutoscaleTiming | None = None,
    ) -> None:
        self.now = now
        self.target_dedicated = target_dedicated
        self.target_spot = target_spot
        self.current = current
        self.timing = timing or AutoscaleTiming()
        seen = now - self.timing.sample_delay
        self.samples = [sample for sample in samples if sample.at <= seen]
        self._numbers = 0
        self._randoms = 0

    def spend(self, numbers: int) -> None:
        """Count numbers of vectors. Raises Refused when there are too many."""
        self._numbers += numbers
        if self._numbers > MAX_NUMBERS:
            raise failed(f"its vectors hold more than {MAX_NUMBERS} numbers together")

    def random(self) -> float:
        """Return a number from 0 to 1 that is another each time."""
        self._randoms += 1
        return (self.now * 0.618033988749895 + self._randoms * 0.754877666246693) % 1.0


class Metric:
    """A service-defined variable that is sampled. As a number it is the present count of nodes, or the last
    sample that is seen."""

    def __init__(self, name: str, facts: FormulaFacts) -> None:
        self._name = name
        self._index = METRICS.index(name)
        self._facts = facts

    def number(self) -> float:
        """Return the value where a number is due."""
        if self._name.startswith("$Current"):
            return float(self._facts.current[self._index])
        return number(self.sample([1.0]))

    def sample(self, arguments: list[Any]) -> list[float]:
        """GetSample: by a count, or by a start and perhaps an end, with the percentage that is due."""
        if len(arguments) == 1 and not isinstance(arguments[0], Span | Moment):
            count = number(arguments[0])
            if not 0 < count <= MAX_NUMBERS:
                raise failed(f"{self._name} has no {count:g} samples")
            return self._values(self._facts.samples[-math.ceil(count) :])
        times = [argument for argument in arguments if isinstance(argument, Span | Moment)]
        wanted = [number(argument) for argument in arguments[len(times) :]]
        if not 1 <= len(times) <= 2 or len(wanted) > 1 or arguments[: len(times)] != times:
            raise failed("GetSample takes a count, or a start, an end and a percentage")
        there, percent = self._between(times)
        if wanted and percent < wanted[0]:
            raise failed(f"{percent:g} % of the samples of {self._name} are there, {wanted[0]:g} % are due")
        return self._values(there)

    def percent(self, arguments: list[Any]) -> float:
        """GetSamplePercent."""
        if not 1 <= len(arguments) <= 2 or not all(isinstance(each, Span | Moment) for each in arguments):
            raise failed("GetSamplePercent takes a start, and perhaps an end")
        return self._between(arguments)[1]

    def period(self, arguments: list[Any]) -> Span:
        """GetSamplePeriod."""
        _none(arguments)
        return Span(self._facts.timing.sample_period)

    def count(self, arguments: list[Any]) -> float:
        """Count."""
        _none(arguments)
        return float(len(self._facts.samples))

    def begin(self, arguments: list[Any]) -> Moment:
        """HistoryBeginTime."""
        _none(arguments)
        if not self._facts.samples:
            raise failed(f"{self._name} has no samples")
        return Moment(self._facts.samples[0].at)

    def _between(self, times: list[Any]) -> tuple[list[MetricSample], float]:
        now = self._facts.now
        ends = sorted(time.at if isinstance(time, Moment) else now - time.seconds for time in times)
        start, end = ends[0], ends[1] if len(ends) == 2 else now
        there = [sample for sample in self._facts.samples if start < sample.at <= end]
        possible = (end - start) / self._facts.timing.sample_period
        if not possible > 0 or math.isinf(possible):
            return there, 0.0
        return there, min(100.0, 100.0 * len(there) / max(1.0, math.floor(possible)))

    def _values(self, samples: Sequence[MetricSample]) -> list[float]:
        self._facts.spend(len(samples))
        return [sample.values[self._index] for sample in samples]


def failed(reason: str) -> Refused:
    """Make the error of a formula that is well-formed and has no result now."""
    return Refused("AutoScalingFormulaEvaluationError", Reason=reason)


def number(value: Any) -> float:
    """Return a value as a number. Raises Refused."""
    if isinstance(value, Metric):
        return value.number()
    if isinstance(value, list) and len(value) == 1:
        return float(value[0])
    if not isinstance(value, float):
        raise failed(f"{_kind(value)} stands where a number is due")
    return value


def vector(values: list[Any], facts: FormulaFacts) -> list[float]:
    """Return numbers and vectors as one vector. Raises Refused."""
    found: list[float] = []
    for value in values:
        found += value if isinstance(value, list) else [number(value)]
    facts.spend(len(found))
    return found


def told(value: Any) -> str:
    """Return a value as the results of an evaluation show it."""
    if isinstance(value, Metric):
        return told(value.number())
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "[" + ",".join(f"{each:g}" for each in value) + "]"
    if isinstance(value, Moment):
        return _calendar(value).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    return f"{value.seconds:g}s" if isinstance(value, Span) else str(value)


def negative(value: Any) -> Any:
    """Return the value with the other sign."""
    if isinstance(value, Span):
        return Span(-value.seconds)
    return [-each for each in value] if isinstance(value, list) else -number(value)


def combine(mark: str, work: Callable[[Any, Any], Any], left: Any, right: Any, facts: FormulaFacts) -> Any:
    """Add, subtract, multiply or divide. Raises Refused for types that do not go together."""
    left, right = _plain(left), _plain(right)
    if isinstance(left, list) or isinstance(right, list):
        return _combine_vectors(work, left, right, facts)
    match left, right:
        case (float(), float()):
            return _divided(left, right) if mark == "/" else work(left, right)
        case (Span(), float()) if mark in "*/":
            return Span(_divided(left.seconds, right) if mark == "/" else left.seconds * right)
        case (float(), Span()) if mark == "*":
            return Span(left * right.seconds)
        case (Span(), Span()) if mark in "+-":
            return Span(work(left.seconds, right.seconds))
        case (Span(), Moment()) if mark == "+":
            return Moment(left.seconds + right.at)
        case (Moment(), Span()) if mark in "+-":
            return Moment(work(left.at, right.seconds))
        case (Moment(), Moment()) if mark == "-":
            return Span(left.at - right.at)
    raise failed(f"{_kind(left)} {mark} {_kind(right)} has no meaning")


def _combine_vectors(
    work: Callable[[Any, Any], Any], left: Any, right: Any, facts: FormulaFacts
) -> list[float]:
    size = max(len(each) for each in (left, right) if isinstance(each, list))
    sides = [each if isinstance(each, list) else [number(each)] * size for each in (left, right)]
    if len(sides[0]) != len(sides[1]):
        raise failed(f"vectors of {len(sides[0])} and of {len(sides[1])} numbers do not go together")
    facts.spend(size)
    try:
        return [work(*pair) for pair in zip(*sides, strict=True)]
    except ZeroDivisionError:
        raise failed("it divides by zero") from None


def compare(mark: str, work: Callable[[Any, Any], Any], left: Any, right: Any, facts: FormulaFacts) -> float:
    """Compare two values of one type: 1 or 0. Raises Refused."""
    left, right = _plain(left), _plain(right)
    if type(left) is not type(right) or isinstance(left, list):
        left, right = number(left), number(right)
    return float(work(left, right))


def _plain(value: Any) -> Any:
    return value.number() if isinstance(value, Metric) else value


def _divided(left: float, right: float) -> float:
    if right == 0:
        raise failed("it divides by zero")
    return left / right


def _kind(value: Any) -> str:
    kinds = {float: "a number", list: "a vector", Moment: "a time", Span: "an interval", str: "a text"}
    return kinds.get(type(value), "a metric")


def _none(arguments: list[Any]) -> None:
    if arguments:
        raise failed("the method takes no arguments")


# -- functions --------------------------------------------------------------------------------------------


Function = Callable[[list[Any], FormulaFacts], Any]


def _of_vector(work: Callable[[list[float]], float], least: int = 1) -> Function:
    def function(arguments: list[Any], facts: FormulaFacts) -> float:
        values = vector(arguments, facts)
        if len(values) < least:
            raise failed("a function has too few numbers: samples are missing")
        return float(work(values))

    return function


def _by_component(work: Callable[[float], float]) -> Function:
    def function(arguments: list[Any], facts: FormulaFacts) -> Any:
        if len(arguments) == 1 and not isinstance(arguments[0], list):
            return float(work(number(arguments[0])))
        return [float(work(each)) for each in vector(arguments, facts)]

    return function


def _deviation(values: list[float]) -> float:
    """Return the standard deviation of a sample."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((each - mean) ** 2 for each in values) / (len(values) - 1))


def _percentile(arguments: list[Any], facts: FormulaFacts) -> float:
    values, share = _two(arguments, facts)
    if not values or not 0 <= share <= 100:
        raise failed("percentile takes a vector that is not empty, and a number from 0 to 100")
    position = (len(values) - 1) * share / 100
    below, ordered = math.floor(position), sorted(values)
    return ordered[below] + (ordered[math.ceil(position)] - ordered[below]) * (position - below)


def _val(arguments: list[Any], facts: FormulaFacts) -> float:
    values, index = _two(arguments, facts)
    if not 0 <= index < len(values):
        raise failed(f"a vector of {len(values)} numbers has none at {index:g}")
    return values[int(index)]


def _two(arguments: list[Any], facts: FormulaFacts) -> tuple[list[float], float]:
    if len(arguments) != 2:
        raise failed("the function takes a vector and a number")
    return vector(arguments[:1], facts), number(arguments[1])


def _time(arguments: list[Any], facts: FormulaFacts) -> Moment:
    if not arguments or arguments == [""]:
        return Moment(facts.now)
    if len(arguments) != 1 or not isinstance(arguments[0], str):
        raise failed("time takes a text, or nothing")
    return Moment(_parse_time(arguments[0].strip()))


def _parse_time(text: str) -> float:
    """Read W3C-DTF, of which the year is enough, or RFC 1123."""
    parts = text.split("-")
    padded = text + "-01" * (3 - len(parts)) if len(parts) < 3 and "T" not in text else text
    for read, given in ((datetime.fromisoformat, padded), (parsedate_to_datetime, text)):
        try:
            found = read(given)
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError, TypeError, IndexError):
            continue
    raise failed(f"'{text[:64]}' is no time")


def _stop(arguments: list[Any], facts: FormulaFacts) -> float:
    raise Stopped


def _rand(arguments: list[Any], facts: FormulaFacts) -> float:
    _none(arguments)
    return facts.random()


FUNCTIONS: Final[dict[str, Function]] = {
    "avg": _of_vector(lambda values: math.fsum(values) / len(values)),
    "ceil": _by_component(math.ceil),
    "floor": _by_component(math.floor),
    "len": _of_vector(len, least=0),
    "lg": _by_component(math.log2),
    "ln": _by_component(math.log),
    "log": _by_component(math.log10),
    "max": _of_vector(max),
    "min": _of_vector(min),
    "norm": _of_vector(lambda values: math.hypot(*values), least=0),
    "percentile": _percentile,
    "rand": _rand,
    "range": _of_vector(lambda values: max(values) - min(values)),
    "round": _by_component(round),
    "std": _of_vector(_deviation, least=2),
    "stop": _stop,
    "sum": _of_vector(math.fsum, least=0),
    "time": _time,
    "val": _val,
}


def _calendar(moment: Any) -> datetime:
    if not isinstance(moment, Moment):
        raise failed("only a time has a year, a month, a day, a weekday, an hour, a minute and a second")
    try:
        return datetime.fromtimestamp(moment.at, UTC)
    except (ValueError, OverflowError, OSError):
        raise failed("a time is beyond the calendar") from None


MEMBERS: Final[dict[str, Callable[[Any], float]]] = {
    "year": lambda moment: float(_calendar(moment).year),
    "month": lambda moment: float(_calendar(moment).month),
    "day": lambda moment: float(_calendar(moment).day),
    "weekday": lambda moment: float(_calendar(moment).isoweekday() % 7),
    "hour": lambda moment: float(_calendar(moment).hour),
    "minute": lambda moment: float(_calendar(moment).minute),
    "second": lambda moment: float(_calendar(moment).second),
}


def _method(work: Callable[[Metric, list[Any]], Any]) -> Callable[[Any, list[Any]], Any]:
    def method(metric: Any, arguments: list[Any]) -> Any:
        if not isinstance(metric, Metric):
            raise failed(f"{_kind(metric)} has no samples")
        return work(metric, arguments)

    return method


METHODS: Final[dict[str, Callable[[Any, list[Any]], Any]]] = {
    "GetSample": _method(Metric.sample),
    "GetSamplePercent": _method(Metric.percent),
    "GetSamplePeriod": _method(Metric.period),
    "Count": _method(Metric.count),
    "HistoryBeginTime": _method(Metric.begin),
}

_LENGTHS: Final = {
    "Zero": 0.0,
    "100ns": 1e-7,
    "Microsecond": 1e-6,
    "Millisecond": 1e-3,
    "Second": 1.0,
    "Minute": 60.0,
    "Hour": 3_600.0,
    "Day": 86_400.0,
    "Week": 7 * 86_400.0,
    "Year": 365 * 86_400.0,
}
CONSTANTS: Final[dict[str, Any]] = {
    f"TimeInterval_{name}": Span(seconds) for name, seconds in _LENGTHS.items()
}
