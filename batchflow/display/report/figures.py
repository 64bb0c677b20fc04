"""Drawings of a report: SVG without scripts, styled by the page, with words for screen readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from batchflow.display.html import Html, cut, element
from batchflow.display.meter import duration
from batchflow.display.report.analysis import EndedTask, TimelineBar, parallelism

WIDTH: Final = 1000
"""Units of a drawing, which is as wide as the page."""
_LABEL: Final = 130
"""Units that the names of nodes take."""
_PLOT: Final = WIDTH - _LABEL
_LANE: Final = 12
_GAP: Final = 8
_AXIS: Final = 26
_CURVE: Final = 120
_BINS: Final = 200
_MOST_BARS: Final = 5000
_MOST_LANES: Final = 100
_COLOURS: Final = 8
"""Colours of commands in the page's style sheet, `c0` to `c7`; the last one is for all others."""
_LONGEST_LABEL: Final = 18


def colours(commands: Sequence[str]) -> dict[str, str]:
    """Return the class of the colour of each command."""
    return {command: f"c{min(index, _COLOURS - 1)}" for index, command in enumerate(commands)}


def timeline(
    nodes: Mapping[str, Sequence[TimelineBar]], start: float, end: float, palette: Mapping[str, str]
) -> Html:
    """Draw what each node ran: a bar for each task, or the share of busy time where there are too many."""
    depths = {node: 1 + max(bar.lane for bar in bars) for node, bars in nodes.items()}
    tasks = sum(map(len, nodes.values()))
    if tasks <= _MOST_BARS and sum(depths.values()) <= _MOST_LANES:
        rows = _bar_rows(nodes, depths, start, end, palette)
        height = sum(depth * _LANE + _GAP for depth in depths.values())
    else:
        groups = _grouped(nodes)
        rows, height = _share_rows(groups, start, end), len(groups) * (_LANE + _GAP)
    label = f"{tasks} tasks on {len(nodes)} nodes over {duration(end - start)}"
    return _drawing(label, height, rows, start, end)


def _bar_rows(
    nodes: Mapping[str, Sequence[TimelineBar]],
    depths: Mapping[str, int],
    start: float,
    end: float,
    palette: Mapping[str, str],
) -> list[Html]:
    drawn, top = [], 0
    for node, bars in nodes.items():
        drawn.append(_node_label(node, top))
        for bar in bars:
            run = bar.run
            left, right = _x(run.started_at or start, start, end), _x(run.finished_at or end, start, end)
            colour = palette.get(run.command, f"c{_COLOURS - 1}")
            drawn.append(
                element(
                    "rect",
                    element("title", _told(run)),
                    x=f"{left:.1f}",
                    y=top + bar.lane * _LANE,
                    width=f"{max(1.0, right - left):.1f}",
                    height=_LANE - 2,
                    **{"class": "bad" if run.status == "failed" else colour},
                )
            )
        top += depths[node] * _LANE + _GAP
    return drawn


def _grouped(nodes: Mapping[str, Sequence[TimelineBar]]) -> dict[str, tuple[list[TimelineBar], int]]:
    """Return the tasks and the lanes of rows of as many nodes as keep the drawing short."""
    names = list(nodes)
    size = -(-len(names) // _MOST_LANES)
    groups = {}
    for first in range(0, len(names), size):
        members = names[first : first + size]
        label = members[0] if len(members) == 1 else f"{cut(members[0], 10)} +{len(members) - 1}"
        bars = [bar for name in members for bar in nodes[name]]
        groups[label] = bars, sum(1 + max(bar.lane for bar in nodes[name]) for name in members)
    return groups


def _share_rows(groups: Mapping[str, tuple[list[TimelineBar], int]], start: float, end: float) -> list[Html]:
    drawn, top = [], 0
    for label, (bars, depth) in groups.items():
        drawn.append(_node_label(label, top))
        busy = parallelism((bar.run for bar in bars), start, end, _BINS)
        failed = parallelism((bar.run for bar in bars if bar.run.status == "failed"), start, end, _BINS)
        for index, number in enumerate(busy):
            if number:
                drawn.append(_cell(index, top, _LANE, "c0", number / depth))
            if failed[index]:  # a strip as high as the share of the tasks that failed
                drawn.append(_cell(index, top, max(2, round(_LANE * failed[index] / number)), "bad", 1.0))
        top += _LANE + _GAP
    return drawn


def _cell(index: int, top: int, height: int, colour: str, opacity: float) -> Html:
    return element(
        "rect",
        x=f"{_LABEL + index * _PLOT / _BINS:.1f}",
        y=top,
        width=f"{_PLOT / _BINS:.1f}",
        height=height,
        **{"class": colour, "fill-opacity": f"{opacity:.2f}"},
    )


def concurrency(runs: Sequence[EndedTask], start: float, end: float, slots: int | None) -> Html:
    """Draw how many tasks ran at once, and a line at the number of slots if it is known."""
    busy = parallelism(runs, start, end, _BINS)
    most = max(*busy, float(slots or 1))
    step = _PLOT / _BINS
    curve = [(_LABEL + (index + 0.5) * step, _CURVE * (1 - n / most)) for index, n in enumerate(busy)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in [(_LABEL, _CURVE), *curve, (WIDTH, _CURVE)])
    drawn = [element("polygon", points=line, **{"class": "area"})]
    if slots:
        y = _CURVE * (1 - slots / most)
        drawn.append(element("line", x1=_LABEL, x2=WIDTH, y1=f"{y:.1f}", y2=f"{y:.1f}", **{"class": "limit"}))
        drawn.append(_text(f"{slots} slots", _LABEL - 8, y + 10, "end"))
    drawn.append(_text("0", _LABEL - 8, _CURVE, "end"))
    return _drawing(f"at most {max(busy):.3g} tasks ran at once", _CURVE + _GAP, drawn, start, end)


def _drawing(label: str, height: float, inside: Sequence[Html], start: float, end: float) -> Html:
    span = end - start
    ticks = []
    for quarter in range(5):
        x = _LABEL + quarter * _PLOT / 4
        anchor = "start" if quarter == 0 else "end" if quarter == 4 else "middle"
        ticks.append(element("line", x1=x, x2=x, y1=0, y2=height, **{"class": "tick"}))
        ticks.append(_text(_seconds(quarter * span / 4), x, height + _AXIS - 10, anchor))
    return element(
        "svg",
        *ticks,
        *inside,
        viewBox=f"0 0 {WIDTH} {height + _AXIS}",
        role="img",
        **{"aria-label": label},
    )


def _node_label(node: str, top: int) -> Html:
    return element(
        "text",
        element("title", node),
        cut(node, _LONGEST_LABEL),
        x=_LABEL - 8,
        y=top + _LANE - 2,
        **{"text-anchor": "end"},
    )


def _text(text: str, x: float, y: float, anchor: str) -> Html:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", **{"text-anchor": anchor})


def _x(at: float, start: float, end: float) -> float:
    return _LABEL + _PLOT * (at - start) / ((end - start) or 1.0)


def _told(run: EndedTask) -> str:
    error = "" if run.error is None else f": {cut(run.error, 120)}"
    return f"{cut(run.task_id, 60)}, {cut(run.command, 60)}, {_seconds(run.seconds)}, {run.status}{error}"


def _seconds(seconds: float) -> str:
    return duration(seconds) if seconds >= 60 else f"{seconds:.3g} s"
