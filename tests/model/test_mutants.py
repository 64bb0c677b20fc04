"""The model finds what is broken on purpose: each mutant gives up one rule of the design."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from batchflow import wire
from batchflow.errors import BrokerError
from batchflow.local.queues import Draft
from batchflow.tracker import Receipt
from batchflow.wire import ResultItem
from tests.model import agents, clients
from tests.model.choices import Scripted, explore
from tests.model.scenario import play
from tests.model.scenarios import SMALL
from tests.model.world import Call, Steps, sleep

Mutate = Callable[[pytest.MonkeyPatch], None]


def sends_results_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent takes a result for accepted, whatever became of the request."""

    def hopeful(self: agents.Agent, draft: Draft) -> Steps:
        with suppress(BrokerError):
            yield Call(lambda: self.world.results.send([draft], self.now))

    monkeypatch.setattr(agents.Agent, "_deliver", hopeful)


def believes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session shows each outcome that comes, also one of a task that has one."""

    def deliver(self: clients.Session, item: ResultItem, receipt: Receipt) -> None:
        _, sequence = wire.split_uid(item.uid)
        entry = self.tracker.find(sequence)
        if entry is None or not self.tracker.resolve(entry, item, receipt):
            self._adopt(item, sequence, receipt)

    monkeypatch.setattr(clients.Session, "_deliver", deliver)


def settles_mail_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message of results is completed when it comes, not when it was shown."""

    def due_at_once(self: clients.Session, message: object) -> None:
        accept(self, message)  # type: ignore[arg-type]
        self._due.append(message)  # type: ignore[arg-type]

    accept = clients.Session._accept
    monkeypatch.setattr(clients.Session, "_accept", due_at_once)
    monkeypatch.setattr(clients.Session, "_read", _slowly(clients.Session._read))


def _slowly(read: Callable[[clients.Session], Steps]) -> Callable[[clients.Session], Steps]:
    def slow(self: clients.Session) -> Steps:
        yield sleep(self, 30.0)
        yield from read(self)

    return slow


MUTANTS = [
    (sends_results_once, "two messages", {"lost"}),
    (believes_everything, "two messages", {"twice"}),
    (settles_mail_unread, "two messages", {"lost"}),
]


@pytest.mark.parametrize(("mutate", "scenario", "rules"), MUTANTS)
def test_a_mutant_is_found(
    monkeypatch: pytest.MonkeyPatch, mutate: Mutate, scenario: str, rules: set[str]
) -> None:
    """One fault is enough to show it."""
    mutate(monkeypatch)
    broken: set[str] = set()

    def run(choices: Scripted) -> None:
        broken.update(play(SMALL[scenario], choices).checker.broken)

    for _ in explore(run, faults=1, departures=0):
        if rules <= broken:
            return
    pytest.fail(f"only {broken} was found")
