"""What pools, nodes and jobs of one account share: serial numbers, the runs, and the actions to be taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from batchflow.local.batch.core.actions import Action, Stop
from batchflow.local.batch.core.entities import Versioned
from batchflow.local.batch.core.samples import AutoscaleTiming

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchflow.local.batch.core.entities import FailureInfo, TaskRun


PAUSE = 1.0
"""Seconds for which all clocks rest after one has failed, so that one that fails always does not spin."""


@dataclass(slots=True)
class AccountContext:
    """One account's pending actions, its runs and its last serial number."""

    on_error: Callable[[str], None] = lambda where: None
    """Called while an exception is handled that nothing should bring about; says where."""
    timing: AutoscaleTiming = field(default_factory=AutoscaleTiming)
    not_before: float = 0.0
    """When clocks are looked at again, after one of them failed."""
    actions: list[Action] = field(default_factory=list)
    runs: dict[int, TaskRun] = field(default_factory=dict)
    serial: int = 0

    def next_serial(self) -> int:
        """Return a number that was not given before, and is greater than all that were."""
        self.serial += 1
        return self.serial

    def stamp(self, now: float) -> Versioned:
        """Return the stamp of a new resource."""
        serial = self.next_serial()
        return Versioned(serial, now, now, serial)

    def touch(self, stamp: Versioned, now: float) -> None:
        """Note that a resource was changed."""
        stamp.modified, stamp.version = now, self.next_serial()

    def tick(self, where: str, tick: Callable[[], None], now: float) -> None:
        """Do what is due in one place. What fails there stops no clock elsewhere."""
        try:
            tick()
        except Exception:
            self.on_error(f"the clock of {where}")
            self.not_before = now + PAUSE

    def stop(
        self, run: TaskRun, fate: Literal["complete", "requeue"], reason: FailureInfo, *, hard: bool = False
    ) -> None:
        """Ask for a run's end; that its task completes outweighs that it is requeued."""
        if run.stopped_for is None or hard:
            self.actions.append(Stop(run.id, hard))
        if run.stopped_for is None or fate == "complete":
            run.fate, run.stopped_for = fate, reason


def id_key(name: str) -> str:
    """Return the key of an id: ids keep their case and are compared without it."""
    return name.lower()
