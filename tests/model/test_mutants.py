"""The model finds what is broken on purpose: each mutant gives up one rule of the design."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from batchflow.errors import ServiceError
from batchflow.local import queues as core
from batchflow.local.queues import Draft
from batchflow.model import Status
from batchflow.protocol import wire
from batchflow.protocol.wire import Reference, ResultItem
from batchflow.sessions.receiving.mailbox_state import MailboxCommand, MailboxState, Resolved, ResultMessage
from batchflow.sessions.records.checkpoint import Checkpoint, DeliveryRecord, IncarnationProgress
from batchflow.sessions.records.tracker import Acknowledgement, Entry, Spilled, dependency_failed_result
from batchflow.sessions.workflows import dependents
from batchflow.sessions.workflows.graph import DependencyGraph, GraphCommand, Waiting
from batchflow.sessions.workflows.keeper import WorkflowKeeper
from batchflow.sessions.workflows.stored import StoredTask
from node_agent.scheduling.cancellation import CancellationCache
from node_agent.scheduling.settlement import Settlement
from node_agent.scheduling.state import Task
from tests.model import agents, sessions
from tests.model.agents import Work
from tests.model.choices import Chance, Scripted, explore
from tests.model.clients import Plan
from tests.model.mailbox import Holder, Mailbox
from tests.model.scenario import Scenario, play
from tests.model.scenarios import SMALL
from tests.model.world import Call, Steps, StepsTo

Mutate = Callable[[pytest.MonkeyPatch], None]


def sends_results_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent takes a result for accepted, whatever became of the request."""

    def hopeful(self: agents.Agent, draft: Draft) -> Steps:
        with suppress(ServiceError):
            yield Call(lambda: self.world.cloud.send_result(draft, self.now))

    monkeypatch.setattr(agents.Agent, "_deliver", hopeful)


def believes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session shows each outcome that comes, also one of a task that has one."""

    def deliver(
        self: MailboxState[Holder],
        item: ResultItem,
        message: ResultMessage[Holder],
        acknowledgement: Acknowledgement,
    ) -> list[MailboxCommand]:
        _, sequence = wire.split_uid(item.uid)
        entry = self._tracker.find(sequence)
        if entry is not None and self._tracker.resolve(entry, item, self._recorded(item, acknowledgement)):
            return [Resolved(entry, item)]
        self._adopt(item, sequence, message, acknowledgement, None)
        return []

    monkeypatch.setattr(MailboxState, "_accept_outcome", deliver)


def settles_mail_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message of results is completed when it comes, not when it was shown."""
    accept = MailboxState.accept

    def due_at_once(self: MailboxState[Holder], message: ResultMessage[Holder]) -> list[MailboxCommand]:
        commands = accept(self, message)
        self.completable.append(message)
        return commands

    monkeypatch.setattr(MailboxState, "accept", due_at_once)


def takes_spilling_for_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in a file counts as handed over, although the file dies with the process."""
    spill = MailboxState.spill

    def spill_and_hand_over(self: MailboxState[Holder], entry: Entry, place: Spilled) -> None:
        spill(self, entry, place)
        entry.deliver()

    monkeypatch.setattr(MailboxState, "spill", spill_and_hand_over)


def takes_duplicates_for_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A duplicate result is entered into the checkpoint, although no program has read it."""
    deliver = MailboxState._accept_outcome

    def consume_duplicates(
        self: MailboxState[Holder],
        item: ResultItem,
        message: ResultMessage[Holder],
        acknowledgement: Acknowledgement,
    ) -> list[MailboxCommand]:
        known = len(self.fresh)
        commands = deliver(self, item, message, acknowledgement)
        if len(self.fresh) == known and self._record is not None:
            self._record.consume(item.uid)
        return commands

    monkeypatch.setattr(MailboxState, "_accept_outcome", consume_duplicates)


def tells_itself_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancellation that no agent confirmed is entered into the checkpoint before it was read."""

    def expect_message(self: MailboxState[Holder], entry: Entry) -> None:
        assert self._record is not None
        self._record.consume(entry.uid)

    monkeypatch.setattr(MailboxState, "expect_message", expect_message)


def forgets_what_it_consumed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the checkpoint drops what the session consumed before."""
    opened = Checkpoint.open

    def forgetful(self: Checkpoint, incarnation: str, _: IncarnationProgress, *, lost_by: float) -> int:
        return opened(self, incarnation, lost_by=lost_by)

    monkeypatch.setattr(Checkpoint, "open", forgetful)


def forgets_settled_incarnations(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the next holder what was settled is no longer known."""
    opened = Checkpoint.open

    def forgetful(
        self: Checkpoint, incarnation: str, progress: IncarnationProgress, *, lost_by: float
    ) -> int:
        self.incarnations = {name: progress for name, progress in self.incarnations.items() if progress.owed}
        return opened(self, incarnation, progress, lost_by=lost_by)

    monkeypatch.setattr(Checkpoint, "open", forgetful)


def overwrites_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A paused holder takes the mailbox back without looking who had it meanwhile."""

    monkeypatch.setattr(DeliveryRecord, "was_replaced", lambda self, found: False)


def enters_without_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint does not say that its holder may deliver more than it counts."""
    opened = Checkpoint.open

    def nameless(self: Checkpoint, incarnation: str, progress: IncarnationProgress, *, lost_by: float) -> int:
        owed = opened(self, incarnation, progress, lost_by=lost_by)
        self.holder = None
        return owed

    monkeypatch.setattr(Checkpoint, "open", nameless)


def prunes_cancellations(monkeypatch: pytest.MonkeyPatch) -> None:
    """A confirmed cancellation is no longer written, although its message may come again."""
    monkeypatch.setattr(sessions, "KEPT", 1)


def deletes_results_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blob of a result goes when it was fetched, not after its message."""
    fetched = Mailbox._fetched

    def fetch_and_delete(self: Mailbox, item: ResultItem, reference: Reference) -> StepsTo[ResultItem]:
        item = yield from fetched(self, item, reference)
        yield from self._session.drop_blob(reference.blob)
        return item

    monkeypatch.setattr(Mailbox, "_fetched", fetch_and_delete)


def forgets_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was handed over is not written down on the host."""

    def consume(self: DeliveryRecord, uid: str) -> None:
        self._dirty |= self.checkpoint.consume(*wire.split_uid(uid))

    monkeypatch.setattr(DeliveryRecord, "consume", consume)


def loses_dead_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent removes a dead letter and sends no result."""

    def remove(self: agents.Agent, message: core.Message, _: object) -> Steps:
        yield Call(lambda: self.world.cloud.dead_tasks.complete(message.lock_token, self.now))

    monkeypatch.setattr(agents.Agent, "_fail_dead_letter", remove)
    monkeypatch.setattr(sessions.Session, "_failure_results", lambda self, message: ())


def leaves_dead_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """No session looks into the dead letters of the results queue."""
    monkeypatch.setattr(sessions.Session, "_handle_dead_letters", _nothing)


def _nothing(_: sessions.Session) -> Steps:
    return
    yield


def completes_before_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent completes a message when its task has ended, not when the broker has the result."""
    over = agents.Agent._over

    def complete_first(self: agents.Agent, number: int, *rest: object) -> None:
        delivery = self.scheduler.tasks[number].message.delivery
        token = self._held[delivery]
        with suppress(core.LockLost):
            self.world.cloud.tasks.complete(token, self.now)
        over(self, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(agents.Agent, "_over", complete_first)


def remembers_no_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node does not know what ran when its agent died."""
    monkeypatch.setattr(agents, "after_crash", lambda known, uids, at: {})


def reads_no_cancellations(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent starts a task without looking whether it was cancelled."""

    def go(_: CancellationCache, task: Task, now: float) -> str:
        task.start_by = math.inf
        return "go"

    monkeypatch.setattr(CancellationCache, "clearance", go)


def begins_what_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot that stood still goes on with what it was told before."""
    monkeypatch.setattr(Settlement, "start_by", lambda *_: math.inf)


def sends_before_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that waits for others is sent when the first of them has ended."""
    ended = DependencyGraph.ended

    def impatient(self: DependencyGraph, entry: Entry) -> list[GraphCommand]:
        for waiting in self.consumers(entry):
            waiting.missing = 1
        return ended(self, entry)

    monkeypatch.setattr(DependencyGraph, "ended", impatient)


def mixes_up_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task gets the values of its inputs in another order."""
    read = StoredTask.waiting

    def reversed_inputs(self: StoredTask, entry: Entry, find: Callable[[str], Entry]) -> Waiting:
        waiting = read(self, entry, find)
        waiting.submission.inputs = waiting.submission.inputs[::-1]
        return waiting

    monkeypatch.setattr(StoredTask, "waiting", reversed_inputs)


def blames_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task names the one that it waited for, and not the first that failed."""

    def last(entry: Entry, failed: Entry) -> ResultItem:
        item = dependency_failed_result(entry, failed)
        return replace(item, error=f"it waited for task {failed.task_id} (work.py), which failed")

    monkeypatch.setattr(dependents, "dependency_failed_result", last)


def keeps_no_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message of a result goes when that was shown, although a task waits for it."""
    monkeypatch.setattr(MailboxState, "retain", lambda self, entry: None)


def reads_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later session does not read what waits since an earlier one."""

    async def nothing(_: WorkflowKeeper) -> list[tuple[str, list[StoredTask]]]:
        return []

    monkeypatch.setattr(WorkflowKeeper, "_read_all", nothing)


def forgets_what_was_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that waits is sent again, although its outcome was shown."""
    monkeypatch.setattr(WorkflowKeeper, "_was_delivered", lambda self, uid: False)


def counts_what_was_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint says of a task that the session itself has ended that its message will come."""
    monkeypatch.setattr(Entry, "is_unsent", property(lambda self: self.status is Status.WAITING))


def withdraws_what_was_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome that a session gives a task which waits counts as delivered before it was shown."""
    monkeypatch.setattr(WorkflowKeeper, "keeps", lambda self, entry: False)


def gives_up_what_was_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that an earlier session has shown is taken for lost before its message can come again."""
    restore = WorkflowKeeper.restore

    async def hasty(
        self: WorkflowKeeper, hold: Callable[[Waiting], None], ended: Callable[[Entry], None]
    ) -> None:
        await restore(self, hold, ended)
        self._patience = 0.0
        self.give_up_lost()

    monkeypatch.setattr(WorkflowKeeper, "restore", hasty)


def forgets_what_it_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint does not say that a task of an earlier session, which waited, is with the broker."""
    monkeypatch.setattr(DeliveryRecord, "note_sent", lambda self, uid: None)


ONE_FAULT = [
    (sends_results_once, "two messages", "lost"),
    (completes_before_the_result, "two messages", "lost"),
    (believes_everything, "two messages", "twice"),
    (settles_mail_unread, "a reader who is late", "lost"),
    (takes_spilling_for_reading, "a reader who is late", "lost"),
    (tells_itself_too_early, "an unconfirmed cancellation", "lost"),
    (forgets_what_it_consumed_early, "a cancellation", "left"),
    (forgets_settled_incarnations, "a close", "twice"),
    (enters_without_its_name, "two messages", "unmarked"),
    (prunes_cancellations, "cancellations one after another", "started"),
    (deletes_results_at_once, "payloads by reference", "outcome"),
    (forgets_the_journal, "a journal", "twice"),
    (loses_dead_letters, "few deliveries", "lost"),
    (leaves_dead_results, "results that the broker gives up", "lost"),
    (remembers_no_crashes, "a deadly task", "stuck"),
    (reads_no_cancellations, "an unconfirmed cancellation", "started"),
    (begins_what_is_late, "a cancellation behind what runs", "started"),
    (sends_before_the_inputs, "a join", "early"),
    (mixes_up_values, "a close in a graph", "values"),
    (blames_the_last, "failures in a row", "followed"),
    (keeps_no_messages, "a close in a graph", "followed"),
    (gives_up_what_was_delivered, "a close in a graph", "followed"),
    (reads_nothing_back, "a close in a graph", "lost"),
    (counts_what_was_not_sent, "a cancellation in a graph", "stuck"),
    (withdraws_what_was_written_down, "a late cancellation in a graph", "lost"),
    (forgets_what_it_sent, "a long task in a graph", "followed"),
    (forgets_what_was_delivered, "a close in a graph", "twice"),
]


@pytest.mark.parametrize(("mutate", "scenario", "rule"), ONE_FAULT)
def test_a_mutant_is_found(monkeypatch: pytest.MonkeyPatch, mutate: Mutate, scenario: str, rule: str) -> None:
    """One fault, or none, is enough to show it."""
    mutate(monkeypatch)
    broken: set[str] = set()

    def run(choices: Scripted) -> None:
        broken.update(play(SMALL[scenario], choices).checker.broken)

    for _ in explore(run, faults=1, departures=0):
        if rule in broken:
            return
    pytest.fail(f"only {broken} was found")


ALTERNATING = Scenario(
    (Plan("client", (Work(1.0),) * 12, rivals=(0.0, 60.0, 120.0, 180.0, 240.0), pause=2.0),)
)
MORE_FAULTS = [
    (takes_duplicates_for_reading, SMALL["a reader who is late"], "lost"),
    (overwrites_a_checkpoint, ALTERNATING, "stuck"),
]


@pytest.mark.parametrize(("mutate", "scenario", "rule"), MORE_FAULTS)
def test_a_mutant_is_found_by_chance(
    monkeypatch: pytest.MonkeyPatch, mutate: Mutate, scenario: Scenario, rule: str
) -> None:
    """Several faults have to meet."""
    mutate(monkeypatch)
    for seed in range(500):
        if rule in play(scenario, Chance(seed, rate=0.02, most=8)).checker.broken:
            return
    pytest.fail("it was not found")
