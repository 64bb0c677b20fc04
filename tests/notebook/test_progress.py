"""How far a stream is: what is counted, what is said, and where it is shown."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from typing import Any

import pytest

from batchflow import Client, Result, Status
from batchflow.display.meter import Meter, duration, rate_text
from batchflow.display.progress import Log, Terminal, choose_display
from batchflow.streams import ProgressStream, ResultStream
from tests.support.results import a_result


class Given(ResultStream):
    """A stream of so many results, which may know how many."""

    def __init__(self, count: int, *, knows: bool = True) -> None:
        self.count = count
        self.knows = knows
        self.closed = False

    async def __anext__(self) -> Result:
        if not self.count:
            raise StopAsyncIteration
        self.count -= 1
        return a_result()

    @property
    def left(self) -> int | None:
        return self.count if self.knows else None

    async def aclose(self) -> None:
        self.closed = True


class Shown:
    """A display that keeps what it is told."""

    pause = 0.0

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.finished = 0

    def show(self, meter: Meter, now: float) -> None:
        self.lines.append(meter.line(meter.started or 0.0))

    def finish(self, meter: Meter, now: float) -> None:
        self.show(meter, now)
        self.finished += 1


def test_a_meter_says_how_far_it_is() -> None:
    """Done of how many, what failed, how fast, and how long it will take."""
    meter = Meter("pi", 8)
    meter.start(100.0)
    for status in (Status.SUCCEEDED, Status.FAILED):
        meter.ended(a_result(status=status).status.value, 101.0)
    assert meter.line(101.0) == "pi  ██████░░░░░░░░░░░░░░░░░░  2 of 8  1 failed  3 s left  2/s  1 s"
    assert meter.line(101.0, 30) == "pi  2 of 8  1 failed  3 s left"
    assert meter.line(101.0, 26) == "2 of 8  1 failed  3 s left"
    assert meter.outcome == "1 succeeded, 1 failed"
    assert "2 of 8 · 1 failed" in meter.view(101.0)
    assert "width:12.50%" in meter.view(101.0)


def test_a_meter_that_knows_no_total_counts() -> None:
    """Without a total there is no bar and no forecast."""
    meter = Meter()
    assert meter.line(5.0) == "0 results  0 s"
    meter.ended(a_result().status.value, 5.0)
    assert meter.line(7.0) == "1 result  30/min  2 s"
    assert not meter.complete


def test_what_was_done_before_says_nothing_of_the_speed() -> None:
    """A run that goes on is as fast as what comes now."""
    meter = Meter(total=100)
    for _ in range(90):
        meter.count("succeeded")
    meter.start(0.0)
    assert meter.facts(2.0) == ["90 of 100", "2 s"]
    meter.ended(a_result().status.value, 2.0)
    assert meter.facts(2.0) == ["91 of 100", "18 s left", "30/min", "2 s"]


def test_the_last_result_ends_the_time() -> None:
    """What is shown after it is as fast and as long as it was."""
    meter = Meter(total=1)
    meter.start(0.0)
    meter.ended(a_result().status.value, 2.0)
    assert meter.facts(9.0) == ["1 of 1", "30/min", "2 s"]


@pytest.mark.parametrize(
    ("rate", "said"),
    [(12345.6, "12,346/s"), (42.26, "42.3/s"), (4.24, "4.2/s"), (0.5, "30/min"), (0.001, "3.6/h")],
)
def test_rates_are_written_as_people_do(rate: float, said: str) -> None:
    assert rate_text(rate) == said


def test_time_left_stays_at_80_columns() -> None:
    """The bar goes first, then the end of the label."""
    meter = Meter("a label that says more than it has to say, for a bar of progress", 2_000_000)
    meter.start(0.0)
    for status, number in (("succeeded", 1_000_000), ("failed", 1_234), ("cancelled", 99)):
        meter.counts[status] = number
    line = meter.line(5_000.0, 80)
    assert len(line) <= 80
    assert "1 h 23 min left" in line
    assert "1,001,333 of 2,000,000" in line


def test_a_label_is_text() -> None:
    """What a user calls a stream is no markup."""
    meter = Meter("<script>", 1)
    assert "<script>" not in meter.view(0.0)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (61, "1 min 01 s"), (3599, "59 min 59 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float, said: str) -> None:
    """Two units at most, the smaller one with its zero."""
    assert duration(seconds) == said


async def test_a_stream_passes_through() -> None:
    """Every result comes, the total is what the stream says, and the end is shown once."""
    shown = Shown()
    stream = ProgressStream(Given(3), None, "", shown)
    assert stream.left == 3
    assert len(await stream.collect()) == 3
    assert [line.split()[1] for line in shown.lines] == ["0", "1", "2", "3", "3"]
    assert all("of 3" in line for line in shown.lines)
    await stream.aclose()
    assert shown.finished == 1


async def test_what_is_left_early_is_closed_and_finished() -> None:
    """Closing it closes the stream under it, and leaves the last state on the screen."""
    shown, given = Shown(), Given(3, knows=False)
    async with ProgressStream(given, 5, "", shown) as stream:
        async for _ in stream:
            break
    assert given.closed
    assert shown.finished == 1
    assert "1 of 5" in shown.lines[-1]


def test_a_log_gets_a_line_for_each_tenth() -> None:
    """And one after half a minute in which little came."""
    written = io.StringIO()
    log, meter = Log(written), Meter(total=100)
    meter.start(0.0)
    for number in range(100):
        log.show(meter, number / 100)
        meter.ended(a_result().status.value, number / 100)
    log.finish(meter, 1.0)
    assert [line.split()[1] for line in written.getvalue().splitlines()] == [
        *(str(count) for count in range(10, 100, 10)),
        "100",
    ]
    written.truncate(0)
    log, meter = Log(written), Meter()
    for now in (0.0, 29.0, 30.0, 31.0):
        log.show(meter, now)
    assert written.getvalue().count("\n") == 1


def test_a_terminal_gets_one_line_within_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """However narrow it is, nothing wraps."""
    monkeypatch.setenv("COLUMNS", "40")
    written = io.StringIO()
    meter = Meter("a label that is long", 100)
    terminal = Terminal(written)
    terminal.show(meter, 0.0)
    terminal.finish(meter, 1.0)
    lines = re.split(r"\r\x1b\[K|\n", written.getvalue())
    assert max(map(len, lines)) <= 39
    assert "0 of 100" in lines[-2]
    assert written.getvalue().count("\n") == 1


def test_without_a_terminal_it_is_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """stderr that is a file gets lines."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(choose_display(), Log)


def test_on_a_terminal_it_is_one_line() -> None:
    """stderr that is a terminal gets the line that changes."""
    ours, theirs = pty.openpty()
    program = "from batchflow.display.progress import choose_display as w; print(type(w()).__name__)"
    finished = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=theirs, text=True, check=True
    )
    os.close(ours)
    os.close(theirs)
    assert finished.stdout == "Terminal\n"


async def test_the_streams_of_a_session_know_what_is_left() -> None:
    """A map of a list knows it from the start; `results()` by what was submitted and not read."""
    async with Client.local(nodes=1) as client:
        pool = await client.ensure_pool("left", files={"x.py": b"def do_action(engine, args): return args"})
        async with pool.session() as session:
            mapped = session.map("x.py", [1, 2, 3])
            assert mapped.left == 3
            assert await first(mapped) is not None
            assert mapped.left == 2
            assert len(await mapped.collect()) == 2
            assert session.map("x.py", iter([1])).left is None
            for task in await session.submit_many("x.py", [1, 2, 3, 4]):
                await task.accepted()
            results = session.results()
            assert results.left == 4
            await first(results)
            assert results.left == 3
            assert session.results(follow=True).left is None
            collected = await results.progress(label="rest").collect()
            assert max(result.value[0] for result in collected) == 4
            assert session.take() == []


async def first(stream: ResultStream) -> Any:
    return await anext(stream)
