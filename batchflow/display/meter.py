"""The progress of many tasks: counts, shown in words, as a line or as HTML.

A meter begins at the first `start`, and each `ended` counts a result. It never ends, because a total is a
guess that may be wrong or missing. What was counted before the beginning, when an earlier run goes on, is
done but does not enter the speed. Invariant: `done` is the sum of the counts. Times are in seconds, of any
one clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from batchflow.display.html import Html, bar, element

if TYPE_CHECKING:
    from collections.abc import Sequence

_BAR: Final = 24
"""Characters of the bar in a line."""


@dataclass(slots=True)
class Meter:
    """Counts of results by status, their total, and the times from which the speed follows."""

    label: str = ""
    total: int | None = None
    """None: unknown."""
    started: float | None = None
    last: float = 0.0
    """When the last result came."""
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("succeeded", "failed", "cancelled"), 0)
    )
    _before: int = 0
    """Results counted before `start`."""

    def start(self, now: float) -> None:
        """Begin to measure the speed. Idempotent."""
        if self.started is None:
            self.started = self.last = now
            self._before = self.done

    def ended(self, status: str, now: float) -> None:
        """Count a task that ended now."""
        self.start(now)
        self.count(status)
        self.last = now

    def count(self, status: str) -> None:
        """Count a task that ended before the measuring began."""
        self.counts[status] += 1

    @property
    def done(self) -> int:
        return sum(self.counts.values())

    @property
    def complete(self) -> bool:
        return self.total is not None and self.done >= self.total

    @property
    def unsuccessful(self) -> int:
        return self.done - self.counts["succeeded"]

    @property
    def outcome(self) -> str:
        """The counts in words, like "7 succeeded, 2 failed"."""
        names = [name for name in self.counts if name == "succeeded" or self.counts[name]]
        return ", ".join(f"{self.counts[name]:,} {name}" for name in names)

    def facts(self, now: float) -> list[str]:
        """Return the progress in short texts, the most important first."""
        known = self.total is not None
        said = [
            f"{self.done:,} of {self.total:,}"
            if known
            else f"{self.done} result{'' if self.done == 1 else 's'}"
        ]
        said += [f"{self.counts[name]:,} {name}" for name in ("failed", "cancelled") if self.counts[name]]
        until = self.last if self.complete else now
        elapsed = until - self.started if self.started is not None else 0.0
        if self.done > self._before and elapsed > 0:
            rate = (self.done - self._before) / elapsed
            if self.total is not None and not self.complete:
                said.append(f"{duration((self.total - self.done) / rate)} left")
            said.append(rate_text(rate))
        said.append(duration(elapsed))
        return said

    def line(self, now: float, width: int = 0) -> str:
        """Return one line of at most `width` characters, 0 for any.

        The bar is left out first, then the end of the label; what is left of the time stays.
        """
        label = [self.label] if self.label else []
        facts = self.facts(now)
        if self.total:
            full = min(_BAR, _BAR * self.done // self.total)
            whole = "  ".join((*label, "█" * full + "░" * (_BAR - full), *facts))
            if not width or len(whole) <= width:
                return whole
        left = next((place for place, fact in enumerate(facts) if fact.endswith(" left")), 0)
        needed = len("  ".join(facts[: left + 1]))
        if label and width and width - needed - 2 < len(self.label):
            room = width - needed - 2
            label = [f"{self.label[: room - 1]}…"] if room > 1 else []
        return fitting([*label, *facts], width)

    def view(self, now: float) -> Html:
        """Return the same as HTML."""
        said = element("span", " · ".join(self.facts(now)), style="font-variant-numeric:tabular-nums")
        head = element("b", f"{self.label} ") if self.label else None
        return element("div", head, bar(self.counts, self.total or self.done), said)


def fitting(parts: Sequence[str], width: int) -> str:
    """Join the first parts that fit into `width` characters, 0 for all; the very first part may be cut."""
    text = parts[0]
    for part in parts[1:]:
        if width and len(text) + 2 + len(part) > width:
            break
        text += f"  {part}"
    return text[:width] if width else text


def rate_text(rate: float) -> str:
    """Format tasks a second as people write them: "12,300/s", "4.2/s", "12/min", "3/h"."""
    if rate >= 0.95:
        return f"{rate:,.0f}/s" if rate >= 99.5 else f"{rate:.3g}/s" if rate >= 10 else f"{rate:.2g}/s"
    if rate * 60 >= 0.95:
        return f"{rate * 60:.2g}/min"
    return f"{rate * 3600:.2g}/h"


def duration(seconds: float) -> str:
    """Format seconds like "12 s", "3 min 05 s", "2 h 04 min"."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
