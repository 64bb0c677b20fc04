"""Draws the pictures of the pages: `python docs/assets/draw.py` writes each NAME.svg beside this file.

Plain SVG: no script, no font from elsewhere, light and dark by the reader's preference. A test compares the
files with what this draws.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent

_STYLE: Final = """
text { font: 13px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; fill: #1f2430; }
.small { font-size: 11.5px; fill: #5b6475; }
.head { font-weight: 600; }
.box { fill: #ffffff; stroke: #9aa4b5; }
.mine { fill: #e8f1fc; stroke: #3b82c4; }
.node { fill: #e9f7ef; stroke: #2e9e5b; }
.queue { fill: #fdf3e1; stroke: #c98a1b; }
.bad { fill: #fdeaea; stroke: #d64545; }
.frame { fill: none; stroke: #9aa4b5; stroke-dasharray: 5 4; }
.line { stroke: #5b6475; stroke-width: 1.5; fill: none; }
.tip { fill: #5b6475; }
.ground { fill: #f7f8fa; }
@media (prefers-color-scheme: dark) {
text { fill: #e6e9ef; }
.small { fill: #a3adbd; }
.box { fill: #262b35; stroke: #6b7688; }
.mine { fill: #1d3450; stroke: #5b9fe0; }
.node { fill: #1b3a2a; stroke: #4cc07f; }
.queue { fill: #40321a; stroke: #e0aa4a; }
.bad { fill: #452224; stroke: #ec7a7a; }
.frame { stroke: #6b7688; }
.line { stroke: #a3adbd; }
.tip { fill: #a3adbd; }
.ground { fill: #181b21; }
}
"""


class Drawing:
    """A picture in the making. Coordinates are pixels from the upper left corner."""

    def __init__(self, width: int, height: int, says: str) -> None:
        self._size = (width, height)
        self._says = says
        self._parts = [f'<rect class="ground" width="{width}" height="{height}" rx="10"/>']

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> None:
        escaped = html.escape(text, quote=False)
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escaped}</text>'
        )

    def box(self, x: float, y: float, w: float, h: float, *lines: str, kind: str = "box") -> None:
        """A box with a head and smaller lines under it, in its middle."""
        self._parts.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="7"/>')
        top = y + h / 2 - (len(lines) - 1) * 8.5 + 4.5
        for number, line in enumerate(lines):
            self.text(x + w / 2, top + number * 17, line, "small" if number else "head")

    def frame(self, x: float, y: float, w: float, h: float, name: str) -> None:
        """What belongs together."""
        self._parts.append(f'<rect class="frame" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="9"/>')
        self.text(x + 10, y + 18, name, "small", "start")

    def arrow(
        self,
        x1: float,
        y1: float,
        x2: float,
        y2: float,
        label: str = "",
        *,
        above: float = 7,
        bend: float = 0,
    ) -> None:
        """From one point to another; `bend` lifts its middle, `above` its label."""
        mx, my = (x1 + x2) / 2, (y1 + y2) / 2 - bend
        way = f"Q{mx:g},{my:g} {x2:g},{y2:g}" if bend else f"L{x2:g},{y2:g}"
        self._parts.append(f'<path class="line" marker-end="url(#tip)" d="M{x1:g},{y1:g} {way}"/>')
        if label:
            self.text(mx, (y1 + y2) / 2 - bend / 2 - above, label, "small")

    def svg(self) -> str:
        width, height = self._size
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
            f' role="img" aria-label="{html.escape(self._says)}">\n<style>{_STYLE}</style>\n'
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7"'
            ' orient="auto"><path class="tip" d="M0,0 L10,5 L0,10 z"/></marker></defs>\n'
            + "\n".join(self._parts)
            + "\n</svg>\n"
        )


def overview() -> Drawing:
    d = Drawing(860, 250, "A program submits tasks to a queue; agents on nodes run them; results come back")
    d.box(20, 85, 130, 80, "your program", "Client, Session", kind="mine")
    d.box(260, 50, 200, 52, "task queue", "Service Bus", kind="queue")
    d.box(260, 150, 200, 52, "results queue", "a mailbox for each session", kind="queue")
    d.arrow(150, 110, 258, 78, "submit", above=12)
    d.arrow(258, 174, 152, 142, "results", above=-20)
    d.frame(570, 20, 270, 210, "pool: machines of Azure Batch")
    for number, y in enumerate((48, 138), 1):
        d.box(590, y, 90, 76, f"agent {number}", "node", kind="node")
        for slot, top in enumerate((y + 2, y + 41)):
            d.box(725, top, 100, 33, f"slot {slot + 1}", kind="node")
            d.arrow(680, y + 38, 723, top + 16)
    d.arrow(460, 68, 588, 78)
    d.arrow(460, 86, 588, 160)
    d.arrow(588, 100, 462, 168)
    d.arrow(588, 190, 462, 184)
    return d


def client() -> Drawing:
    d = Drawing(760, 230, "One client, three services, in Azure or on this machine")
    d.box(20, 85, 140, 60, "Client", "one configuration", kind="mine")
    d.box(250, 85, 140, 60, "Azure SDKs", "unmodified")
    d.arrow(160, 115, 248, 115)
    d.frame(480, 15, 260, 95, "target = “azure”")
    d.frame(480, 120, 260, 95, "target = “local”: on loopback")
    for y in (45, 150):
        for x, width, name in ((492, 66, "Batch"), (566, 60, "Blob"), (634, 96, "Service Bus")):
            d.box(x, y, width, 48, name, kind="queue")
    d.arrow(390, 105, 478, 62)
    d.arrow(390, 125, 478, 168)
    return d


def pool() -> Drawing:
    d = Drawing(760, 270, "A pool: two queues, two containers, and machines with one agent each")
    d.frame(15, 15, 730, 240, "pool “work”: the boundary of trust")
    d.box(40, 60, 190, 50, "task queue", "shared by all jobs and clients", kind="queue")
    d.box(40, 130, 190, 50, "results queue", "one mailbox for each session", kind="queue")
    d.box(40, 195, 90, 44, "ctl", "agents read")
    d.box(140, 195, 90, 44, "out", "agents write")
    for number, x in enumerate((330, 540), 1):
        d.frame(x, 50, 180, 180, f"node {number}")
        d.box(x + 15, 80, 150, 45, "agent", "one for each node", kind="node")
        d.box(x + 15, 150, 70, 60, "slot", "Python", kind="node")
        d.box(x + 95, 150, 70, 60, "slot", "Java", kind="node")
        d.arrow(x + 50, 125, x + 50, 148)
        d.arrow(x + 130, 125, x + 130, 148)
    d.arrow(230, 85, 328, 95)
    d.arrow(328, 130, 232, 152)
    return d


def session() -> Drawing:
    d = Drawing(760, 230, "Two clients share a job; each has a mailbox of its own")
    d.box(20, 40, 150, 56, "client_1", "program A", kind="mine")
    d.box(20, 135, 150, 56, "client_2", "program B", kind="mine")
    d.frame(278, 20, 292, 190, "job “report”")
    d.box(290, 50, 120, 52, "session", "report/client_1", kind="queue")
    d.box(290, 140, 120, 52, "session", "report/client_2", kind="queue")
    d.box(440, 95, 110, 52, "its tasks", "in one task queue", kind="queue")
    d.box(640, 85, 100, 70, "agents", "run the tasks", kind="node")
    d.arrow(170, 62, 288, 70, "tasks, results")
    d.arrow(170, 165, 288, 165, "tasks, results")
    d.arrow(410, 76, 445, 93)
    d.arrow(410, 166, 445, 149)
    d.arrow(550, 120, 638, 120)
    return d


def task() -> Drawing:
    d = Drawing(860, 250, "The states of a task")
    d.box(20, 90, 110, 56, "sending", "in the outbox", kind="mine")
    d.box(200, 90, 125, 56, "queued", "the broker has it", kind="queue")
    d.box(455, 90, 115, 56, "(running)", "in a slot", kind="node")
    d.box(680, 20, 150, 48, "succeeded", "value", kind="node")
    d.box(680, 94, 150, 48, "failed", "error, traceback", kind="bad")
    d.box(680, 168, 150, 48, "cancelled", "by you", kind="bad")
    d.arrow(130, 118, 198, 118, "accepted")
    d.arrow(325, 108, 453, 108, "an agent takes it")
    d.arrow(455, 140, 327, 140, "Retry, drain, lost", above=-16, bend=-16)
    d.arrow(570, 108, 678, 48)
    d.arrow(570, 118, 678, 118)
    d.arrow(570, 130, 678, 188)
    d.arrow(75, 146, 678, 205, "cancel() works at any time", bend=-70, above=-26)
    return d


def bundle() -> Drawing:
    d = Drawing(760, 210, "Files become a bundle named by its hash, fetched and kept by the nodes")
    for number, name in enumerate(("hello.py", "model.bin", "pi.jar")):
        d.box(20, 30 + 54 * number, 110, 42, name, kind="mine")
        d.arrow(130, 51 + 54 * number, 208, 105)
    d.box(210, 70, 150, 70, "bundle 3f9a…", "names and hashes")
    d.arrow(360, 105, 448, 105, "new files", above=9)
    d.box(450, 70, 120, 70, "container ctl", "each file once", kind="queue")
    d.box(640, 35, 100, 56, "node 1", "has 3f9a…", kind="node")
    d.box(640, 120, 100, 56, "node 2", "fetches 3f9a…", kind="node")
    d.arrow(570, 95, 638, 65)
    d.arrow(570, 115, 638, 146)
    return d


def engine() -> Drawing:
    d = Drawing(760, 190, "The engine stands between a task and its node")
    d.box(20, 60, 150, 66, "do_action", "your function", kind="mine")
    d.arrow(170, 93, 248, 93, "asks")
    d.box(250, 50, 130, 86, "engine", "of this one task", kind="node")
    services = (
        ("java_runner", "runs a Java program"),
        ("log, progress", "sent to the session"),
        ("outputs, upload", "files of the result"),
        ("cancelled", "whether to end"),
    )
    for number, (name, what) in enumerate(services):
        y = 14 + 42 * number
        d.box(500, y, 240, 36, name, what)
        d.arrow(380, 93, 498, y + 18)
    return d


def pack() -> Drawing:
    d = Drawing(760, 190, "Tasks submitted while a send is under way share a message")
    d.text(90, 30, "submitted", "small")
    d.text(640, 30, "messages of Service Bus", "small")
    d.box(30, 45, 120, 34, "one small task", kind="mine")
    d.arrow(150, 62, 558, 62, "is sent at once", above=8)
    d.box(560, 45, 160, 34, "a pack of 1", kind="queue")
    for number in range(6):
        d.box(30 + 24 * number, 95, 18, 30, "", kind="mine")
    d.arrow(180, 110, 558, 110, "submitted while the first is under way", above=8)
    d.box(560, 93, 160, 34, "a pack of 6", kind="queue")
    d.box(30, 140, 120, 34, "a long task", kind="mine")
    d.arrow(150, 157, 558, 157, "has its own message: no task waits behind it", above=8)
    d.box(560, 140, 160, 34, "a pack of 1", kind="queue")
    return d


def once() -> Drawing:
    d = Drawing(860, 260, "An agent dies; its tasks run again on another node; the client shows one outcome")
    for y, name in ((60, "agent A"), (125, "broker"), (190, "agent B"), (240, "client")):
        d.text(70, y + 4, name, "head", "end")
        d.arrow(85, y, 840, y)
    d.box(120, 110, 90, 30, "task 7", kind="queue")
    d.arrow(180, 110, 225, 76, "lock", above=4)
    d.box(225, 45, 130, 30, "runs task 7", kind="node")
    d.box(362, 45, 90, 30, "kill -9", kind="bad")
    d.arrow(452, 75, 500, 110)
    d.box(430, 110, 170, 30, "the lock expires", kind="queue")
    d.arrow(560, 140, 600, 174)
    d.box(600, 175, 130, 30, "runs task 7", kind="node")
    d.arrow(730, 205, 768, 228, "result", above=-2)
    d.box(740, 228, 100, 24, "shown once", kind="mine")
    return d


def local() -> Drawing:
    d = Drawing(860, 270, "The local cloud is processes on this machine")
    d.frame(15, 15, 190, 240, "your program")
    d.box(35, 60, 150, 60, "Client", "Azure SDKs", kind="mine")
    d.frame(260, 15, 250, 240, "the local cloud: one process")
    for number, (name, what) in enumerate((("Service Bus", "AMQP 1.0"), ("Batch", "REST"), ("Blob", "REST"))):
        d.box(285, 45 + 68 * number, 200, 54, name, what, kind="queue")
        d.arrow(185, 90, 283, 72 + 68 * number)
    d.frame(570, 15, 275, 240, "nodes: also processes")
    for number in range(2):
        y = 45 + 105 * number
        d.box(590, y, 100, 85, f"node {number + 1}", "agent", kind="node")
        d.box(730, y + 20, 95, 45, "task", "a child", kind="node")
        d.arrow(690, y + 42, 728, y + 42)
        d.arrow(588, y + 42, 487, 72, "AMQP" if number == 0 else "")
    d.arrow(485, 150, 588, 120, "starts", above=4)
    d.text(110, 180, "ends with the program,", "small")
    d.text(110, 197, "also with kill -9", "small")
    return d


def workflow() -> Drawing:
    d = Drawing(760, 250, "A task waits for those that are its arguments; what waits for a failed one fails")
    for number, y in enumerate((28, 86, 144, 202)):
        failed = number == 3
        d.box(
            20,
            y - 18,
            150,
            40,
            f"count {number + 1}",
            "failed" if failed else "succeeded",
            kind="bad" if failed else "node",
        )
    for number, y in enumerate((57, 173)):
        failed = number == 1
        d.box(
            290,
            y - 18,
            170,
            40,
            f"merge {number + 1}",
            "DependencyFailed" if failed else "running",
            kind="bad" if failed else "mine",
        )
        d.arrow(170, y - 28, 288, y - 4, "value" if not number else "", above=6)
        d.arrow(170, y + 32, 288, y + 6)
    d.box(570, 95, 170, 42, "total", "DependencyFailed", kind="bad")
    d.arrow(460, 59, 568, 106)
    d.arrow(460, 174, 568, 126)
    d.text(655, 160, "names count 4, and what it said", "small")
    return d


PICTURES: Final[tuple[Callable[[], Drawing], ...]] = (
    overview,
    client,
    pool,
    session,
    task,
    bundle,
    engine,
    pack,
    once,
    local,
    workflow,
)


def main() -> None:
    for picture in PICTURES:
        (HERE / f"{picture.__name__}.svg").write_text(picture().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
