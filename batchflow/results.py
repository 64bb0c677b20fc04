"""Results side by side: a list that a notebook shows as a table, and that becomes a DataFrame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic

from batchflow.errors import ConfigurationError
from batchflow.model import Result

if TYPE_CHECKING:
    import pandas
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")  # a default needs Python 3.13

_TIMES: Final = ("submitted_at", "started_at", "finished_at")
_COLUMNS: Final = (
    "task_id",
    "status",
    "args",
    "value",
    "error",
    "kind",
    "tag",
    "command",
    "node",
    "attempt",
    *_TIMES,
    "job_id",
    "client",
    "files",
)


class Results(list[Result[T]], Generic[T]):
    """What `session.take()` and `stream.collect()` return."""

    @property
    def failed(self) -> Results[T]:
        """Those that did not succeed."""
        return Results(result for result in self if not result.ok)

    @property
    def values(self) -> list[T]:
        """The values, in the order of the list. Raises the first `TaskError`, if any task failed."""
        return [result.unwrap() for result in self]

    def to_pandas(self, *, expand: bool = False) -> pandas.DataFrame:
        """Return a row for each result, by `index`; times are in UTC, `seconds` is how long the task ran.

        `args` is the list of what the task was asked. `expand`: a value that is a dict gets a column
        `value.KEY` for each of its keys instead of one; so does a lone argument that is a dict, `args.KEY`.
        Raises `ConfigurationError` where pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ConfigurationError("pandas is not installed: pip install pandas") from error
        index = pandas.Index([result.index for result in self], name="index")
        frame = pandas.DataFrame([_row(result) for result in self], index=index, columns=list(_COLUMNS))
        for name in _TIMES:
            frame[name] = pandas.to_datetime(frame[name].astype("float64"), unit="s", utc=True)
        frame["seconds"] = (frame["finished_at"] - frame["started_at"]).dt.total_seconds()
        if expand:
            from batchflow.display.result_text import asked_parts, value_parts

            frame = frame.drop(columns=["value", "args"])
            parts = [asked_parts(result.args) | value_parts(result.value) for result in self]
            for name in dict.fromkeys(name for part in parts for name in part):
                frame[name] = [part.get(name) for part in parts]
        return frame

    def __repr__(self) -> str:
        from batchflow.display.result_text import result_lines

        return result_lines(self)

    def _repr_html_(self) -> str:
        from batchflow.display.html import MOST_ROWS, result_table
        from batchflow.display.result_text import summary

        rows = [dict(zip(_COLUMNS, _row(result), strict=True)) for result in self[:MOST_ROWS]]
        return result_table(rows, len(self), summary(self))


def _row(result: Result) -> tuple[Any, ...]:
    return tuple(result.status.value if name == "status" else getattr(result, name) for name in _COLUMNS)
