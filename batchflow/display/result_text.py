"""Results in words: a line about many, and at most ten lines that show the first of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from batchflow.display.html import cut, inputs, seconds, short

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_LINES: Final = 8
"""Results that the plain representation of a list shows."""
_LONGEST_LINE: Final = 100


def summary(results: Sequence[Any]) -> str:
    """Return how many there are, how many failed, their durations (the median and p99), and their nodes."""
    times = sorted(
        result.finished_at - result.started_at
        for result in results
        if result.started_at is not None and result.finished_at is not None
    )
    failed = sum(not result.ok for result in results)
    words = [f"{len(results):,} result{'' if len(results) == 1 else 's'}", f"{failed:,} failed"]
    if times:
        words += [f"p50 {seconds(_quantile(times, 0.5))}", f"p99 {seconds(_quantile(times, 0.99))}"]
    nodes = len({result.node for result in results if result.node is not None})
    return ", ".join([*words, f"{nodes:,} node{'' if nodes == 1 else 's'}"])


def result_lines(results: Sequence[Any]) -> str:
    """Return the summary and the first results, each on a line."""
    lines = [f"<Results: {summary(results)}>"]
    for result in results[:_MOST_LINES]:
        shown = short(result.value) if result.ok else f"{result.status.value}: {result.error}"
        asked = inputs(result.args)
        lines.append(f"  {result.task_id}: {'' if asked is None else f'{asked} -> '}{shown}")
    left = len(results) - _MOST_LINES
    lines += [f"  and {left:,} more"] if left > 0 else []
    return "\n".join(cut(line.replace("\n", " "), _LONGEST_LINE) for line in lines)


def result_line(result: Any) -> str:
    """Return one result on a line."""
    words = [f"Result {result.task_id!r} {result.command!r} {result.status.value}"]
    words.append(short(result.value) if result.ok else cut(f"{result.kind}: {result.error}", 200))
    if result.started_at is not None and result.finished_at is not None:
        words.append(f"{seconds(result.finished_at - result.started_at)} on {result.node}")
    return cut(f"<{', '.join(words)}>".replace("\n", " "), 400)


def _quantile(ordered: list[float], share: float) -> float:
    """Return the value below which that share of them is."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def asked_parts(args: list[Any] | None) -> dict[str, Any]:
    """Return the columns of what a task was asked: a lone argument that is a dict has one for each key."""
    if args is not None and len(args) == 1 and isinstance(args[0], dict):
        return {f"args.{key}": part for key, part in args[0].items()}
    return {} if args is None else {"args": args}


def value_parts(value: Any) -> dict[str, Any]:
    """Return the columns of a value: a dict has one for each key."""
    if isinstance(value, dict):
        return {f"value.{key}": part for key, part in value.items()}
    return {} if value is None else {"value": value}
