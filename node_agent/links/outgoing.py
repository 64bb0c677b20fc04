"""The results of an agent, on their way to the queues of their mailboxes.

The results of tasks have the scheduler's numbers. Those of dead letters and of broadcasts have negative ones,
for the scheduler does not know these tasks.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from batchflow.model import Status
from batchflow.protocol import layout, wire
from batchflow.protocol.failed_tasks import FailedTask
from node_agent.execution import results
from node_agent.execution.outcomes import Outcome
from node_agent.links.dead_letters import DeadLetterHandler
from node_agent.links.result_sender import ResultSender
from node_agent.scheduling.events import Blocked, Feed, ResultsAccepted, Verdict

if TYPE_CHECKING:
    from batchflow.ports.broker import Broker, QueueRef
    from node_agent.links.problem_report import ProblemReport


class OutgoingResults:
    """The agent's results queues, and the dead letters of its task queues."""

    def __init__(
        self,
        broker: Broker,
        queues: Sequence[QueueRef],
        dead_letters_of: Sequence[QueueRef],
        *,
        agent: str,
        host: str,
        problems: ProblemReport,
        feed: Feed,
        item: Callable[[int], wire.TaskItem],
        hold: Callable[[], float],
        opened: Callable[[], None],
        keep: Callable[[FailedTask], None],
        ended: Callable[[wire.TaskItem, Status, str | None, float | None, float], None],
    ) -> None:
        """`item` gives the task of a number; `hold` the seconds that a result waits for others; `opened` is
        called when a link is open; `keep` gets each task that fails; `ended` gets each task with its status,
        error, start and end."""
        self.failed = 0
        """Results that are no success."""
        self.cancelled = 0
        """Of these, those of cancelled tasks."""
        self._host = host
        self._feed = feed
        self._item = item
        self._keep = keep
        self._ended = ended
        self._blocked: set[QueueRef] = set()
        self._numbers = count(-1, -1)
        self._beside: dict[int, tuple[wire.TaskItem, Callable[[], None]]] = {}
        """The tasks of broadcasts whose results are on their way, and what is to be called then."""
        self._handlers = [
            DeadLetterHandler(broker, queue, self._fail_task, self._numbers) for queue in dead_letters_of
        ]
        self._senders = [
            ResultSender(
                broker,
                queue,
                agent,
                problems,
                accepted=self._accepted,
                too_large=self._too_large,
                blocked=partial(self._set_blocked, queue),
                opened=opened,
                hold=hold,
            )
            for queue in queues
        ]

    def services(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Return the services of this part, by name. They run as long as the agent."""
        services: dict[str, Callable[[], Awaitable[None]]] = {}
        for index, sender in enumerate(self._senders):
            services[f"results {index}"] = sender.run
        for index, handler in enumerate(self._handlers):
            services[f"dead letters {index}"] = handler.run
        return services

    def send(self, task: int, verdict: Verdict | None, outcome: object) -> None:
        """Send the result of a task: the verdict, or else the outcome."""
        item = self._item(task)
        self._sender_for(item.mailbox).put(task, item.mailbox, self.encode(item, verdict, outcome))

    def encode(self, item: wire.TaskItem, verdict: Verdict | None, outcome: object) -> bytes:
        """Encode the result of a task that has ended, and count it."""
        ended: Verdict | Outcome
        if verdict is not None:
            ended, status, now = verdict, verdict.status, time.time()
            encoded = results.encode_verdict(item, verdict, self._host, now)
            self._ended(item, status, verdict.error, None, now)
        else:
            assert isinstance(outcome, Outcome)
            ended, status = outcome, outcome.status
            encoded = results.encode_outcome(item, outcome, self._host)
            finished = time.time() if outcome.finished_at is None else outcome.finished_at
            self._ended(item, status, outcome.error, outcome.started_at, finished)
        if status is not Status.SUCCEEDED:
            self._count_failure(item, ended, status)
        return encoded

    def send_beside(self, item: wire.TaskItem, encoded: bytes, accepted: Callable[[], None]) -> None:
        """Send the result of a task that the scheduler does not know; `accepted`: called when it is there."""
        number = next(self._numbers)
        self._beside[number] = (item, accepted)
        sender = self._sender_for(item.mailbox)
        sender.put(number, item.mailbox, encoded)
        sender.reconsider()

    def _count_failure(self, item: wire.TaskItem, ended: Verdict | Outcome, status: Status) -> None:
        self.failed += 1
        if status is Status.CANCELLED:
            self.cancelled += 1
        else:
            self._keep_failed(item, ended)

    def _keep_failed(self, item: wire.TaskItem, ended: Verdict | Outcome) -> None:
        kind, error = ended.kind or "TaskFailed", ended.error or ""
        self._keep(FailedTask(item, kind, error, self._host, time.time()))

    def send_events(self, mailbox: str, items: Sequence[bytes]) -> None:
        """Send what tasks report, which nothing waits for."""
        self._sender_for(mailbox).put_events(mailbox, items)

    def reconsider(self) -> None:
        """Look again whether results that wait still have to."""
        for sender in self._senders:
            sender.reconsider()

    def _sender_for(self, mailbox: str) -> ResultSender:
        return layout.queue_for(self._senders, mailbox)

    def _fail_task(self, number: int, item: wire.TaskItem, verdict: Verdict) -> None:
        """Send the result of a dead letter's task."""
        encoded = results.encode_verdict(item, verdict, self._host, time.time())
        self._keep_failed(item, verdict)
        mailbox = item.mailbox
        sender = self._sender_for(mailbox)
        sender.put(number, mailbox, encoded)
        sender.reconsider()

    def _accepted(self, tasks: Sequence[int]) -> None:
        own = [task for task in tasks if task >= 0]
        for number in set(tasks).difference(own):
            if (beside := self._beside.pop(number, None)) is not None:
                beside[1]()
                continue
            for handler in self._handlers:
                handler.accepted(number)
        if own:
            self._feed(ResultsAccepted(own))

    def _too_large(self, task: int, error: str) -> None:
        verdict = Verdict(Status.FAILED, "ResultTooLarge", f"the broker does not take the result: {error}")
        if (beside := self._beside.pop(task, None)) is not None:
            item, accepted = beside
            self.send_beside(item, self.encode(item, verdict, None), accepted)
        if task < 0:
            return
        self.send(task, verdict, None)
        self._sender_for(self._item(task).mailbox).reconsider()

    def _set_blocked(self, queue: QueueRef, blocked: bool) -> None:
        """Pull nothing while one results queue takes nothing: any task's result may be for it."""
        if blocked:
            self._blocked.add(queue)
        else:
            self._blocked.discard(queue)
        self._feed(Blocked(bool(self._blocked)))
