"""A workflow as a picture: plain SVG, each task in the column after those that it waits for. Pure."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from batchflow.display.html import STATE_COLOURS, cut

_WIDTH, _HEIGHT, _ACROSS, _DOWN, _EDGE = 150, 34, 60, 12, 16
"""Pixels: of a task, between columns, between rows, around all."""
_MOST_TEXT: Final = 20
"""Characters of a label that are shown."""
_STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#1f2430}.small{font-size:10.5px;fill:#5b6475}"
    "path{stroke:#9aa4b5;fill:none;stroke-width:1.2}"
    "@media (prefers-color-scheme:dark){text{fill:#e6e9ef}.small{fill:#a3adbd}}"
)


@dataclass(frozen=True, slots=True)
class WorkflowNode:
    """A task in the picture."""

    task_id: str
    command: str
    status: str
    inputs: tuple[int, ...]
    """The places of the tasks that it waits for, in the list of all. They stand before it."""


class WorkflowGraph:
    """A session's tasks that wait for others, and these, as they were when it was made.

    A notebook shows it as a picture. `svg` is the same as text, and `save` writes it to a file.
    """

    def __init__(self, nodes: Sequence[WorkflowNode], forgotten: int = 0) -> None:
        """`forgotten`: tasks that the session does not remember any more."""
        self.nodes: tuple[WorkflowNode, ...] = tuple(nodes)
        self.forgotten = forgotten

    def __repr__(self) -> str:
        edges = sum(len(node.inputs) for node in self.nodes)
        return f"<WorkflowGraph of {len(self.nodes)} tasks and {edges} dependencies>"

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> None:
        """Write the picture to a file. Raises OSError."""
        Path(path).write_text(self.svg, encoding="utf-8")

    @property
    def svg(self) -> str:
        """The picture as text."""
        places, width, height = self._layout()
        pairs = [(of, number) for number, node in enumerate(self.nodes) for of in node.inputs]
        lines = [self._edge(places[start], places[end]) for start, end in pairs]
        boxes = [self._box(node, *place) for node, place in zip(self.nodes, places, strict=True)]
        note = f"{self.forgotten:,} earlier tasks are not shown" if self.forgotten else ""
        note = note or ("" if self.nodes else "no task waits for another one")
        foot = f'<text class="small" x="{_EDGE}" y="{height - 6}">{note}</text>' if note else ""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
            f' role="img" aria-label="{html.escape(repr(self))}"><style>{_STYLE}</style>'
            f"{''.join(lines)}{''.join(boxes)}{foot}</svg>"
        )

    def _layout(self) -> tuple[list[tuple[int, int]], int, int]:
        """Return the upper left corner of each task, and the size of the picture."""
        columns: list[int] = []
        filled: list[int] = []
        places: list[tuple[int, int]] = []
        for node in self.nodes:
            column = max((columns[of] + 1 for of in node.inputs), default=0)
            columns.append(column)
            filled += [0] * (column + 1 - len(filled))
            places.append((_EDGE + column * (_WIDTH + _ACROSS), _EDGE + filled[column] * (_HEIGHT + _DOWN)))
            filled[column] += 1
        width = 2 * _EDGE + max(1, len(filled)) * (_WIDTH + _ACROSS) - _ACROSS
        return places, width, 2 * _EDGE + max((1, *filled)) * (_HEIGHT + _DOWN)

    def _edge(self, start: tuple[int, int], end: tuple[int, int]) -> str:
        x1, y1 = start[0] + _WIDTH, start[1] + _HEIGHT // 2
        x2, y2 = end[0], end[1] + _HEIGHT // 2
        middle = (x1 + x2) // 2
        return f'<path d="M{x1},{y1} C{middle},{y1} {middle},{y2} {x2},{y2}"/>'

    def _box(self, node: WorkflowNode, x: int, y: int) -> str:
        colour = STATE_COLOURS[node.status]
        label = html.escape(cut(node.task_id, _MOST_TEXT))
        small = html.escape(cut(f"{node.command} {node.status}", _MOST_TEXT + 6))
        return (
            f"<g><title>{html.escape(f'{node.task_id}: {node.command}, {node.status}')}</title>"
            f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="5" stroke="{colour}"'
            f' fill="{colour}" fill-opacity=".18"/><text x="{x + 8}" y="{y + 15}">{label}</text>'
            f'<text class="small" x="{x + 8}" y="{y + 28}">{small}</text></g>'
        )
