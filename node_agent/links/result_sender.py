"""Results and events on their way to the mailboxes: one owner for each results queue's link.

A lone result leaves at once. While tasks of a pack go on that are known to be short, results wait for theirs,
for as long as the scheduler says; what gathers then, and while a send is under way, rides together, by
mailbox, results before events. The messages of all mailboxes leave after one such wait.

A message is made once: when the broker does not answer, the same bytes under
the same id are sent again, so that duplicate detection can tell. As long as the broker takes nothing,
everything is kept, and the agent is told not to pull.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from batchflow.errors import BrokerError, MessageTooLarge
from batchflow.ports.broker import OutgoingMessage
from batchflow.protocol import wire
from batchflow.protocol.packing import MOST_BYTES
from batchflow.support.backoff import until_accepted
from batchflow.support.closing import close_shielded
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.ports.broker import Broker, QueueRef, Sender
    from node_agent.links.problem_report import ProblemReport

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_ITEMS: Final = 1000
"""Maximum number of items of a message."""


@dataclass(slots=True)
class _MailboxQueue:
    """The results and events that wait for one mailbox."""

    results: deque[tuple[int, bytes]] = field(default_factory=deque)
    events: deque[bytes] = field(default_factory=deque)


@frozen
class _ResultMessage:
    """A message and the tasks whose results are in it."""

    message: OutgoingMessage
    tasks: tuple[int, ...]


class ResultSender:
    """All results of an agent for the mailboxes of one results queue."""

    def __init__(
        self,
        broker: Broker,
        queue: QueueRef,
        agent: str,
        problems: ProblemReport,
        *,
        accepted: Callable[[Sequence[int]], None],
        too_large: Callable[[int, str], None],
        blocked: Callable[[bool], None],
        opened: Callable[[], None],
        hold: Callable[[], float],
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._agent = agent
        self._problems = problems
        self._accepted = accepted
        self._too_large = too_large
        self._blocked = blocked
        self._opened = opened
        self._hold = hold
        self._problem = f"results {queue.entity}"
        self._waiting: dict[str, _MailboxQueue] = {}
        self._filled = asyncio.Event()
        self._last = asyncio.Event()
        """No more results are a matter of milliseconds."""
        self._sent = 0

    def put(self, task: int, mailbox: str, item: bytes) -> None:
        """Queue a result. `accepted` is called with its task when the broker has it.

        `reconsider` is due after one or several of these."""
        self._queue_of(mailbox).results.append((task, item))
        self._filled.set()

    def reconsider(self) -> None:
        """Check again whether the waiting results have to wait for more."""
        if self._waiting and not self._last.is_set() and not self._hold():
            self._last.set()

    def put_events(self, mailbox: str, items: Sequence[bytes]) -> None:
        """Queue events. They never hold up results."""
        self._queue_of(mailbox).events.extend(items)
        self._filled.set()

    def _queue_of(self, mailbox: str) -> _MailboxQueue:
        queue = self._waiting.get(mailbox)
        if queue is None:
            queue = self._waiting[mailbox] = _MailboxQueue()
        return queue

    async def run(self) -> None:
        """Send what is queued until cancelled."""
        sender = await self._open()
        try:
            while True:
                if not self._waiting:
                    self._filled.clear()
                    await self._filled.wait()
                await self._gather()
                for mailbox in list(self._waiting):  # all have waited: none waits for the others' companions
                    await self._deliver(sender, self._pack(mailbox, self._waiting.pop(mailbox)))
        finally:
            await close_shielded(sender)

    async def _gather(self) -> None:
        """Wait for more results where they are about to come."""
        self._last.clear()
        if (seconds := self._hold()) > 0:
            timer = asyncio.get_running_loop().call_later(seconds, self._last.set)
            try:
                await self._last.wait()
            finally:
                timer.cancel()

    async def _open(self) -> Sender:
        sender = await until_accepted(lambda: self._broker.sender(self._queue), self._sending_failed)
        self._sending_works()
        self._opened()
        return sender

    def _pack(self, mailbox: str, queue: _MailboxQueue) -> _ResultMessage:
        """Make the next message for a mailbox. Items that do not fit go to the end of the queue."""
        if queue.results:
            taken = _take(queue.results, lambda entry: entry[1])
            made = self._make_message(
                mailbox, "results", [item for _, item in taken], [task for task, _ in taken]
            )
        else:
            made = self._make_message(mailbox, "events", _take(queue.events, lambda item: item), [])
        if queue.results or queue.events:
            self._waiting[mailbox] = queue
        return made

    def _make_message(
        self, mailbox: str, kind: wire.PackType, items: list[bytes], tasks: list[int]
    ) -> _ResultMessage:
        self._sent += 1
        body = wire.join(kind, items)
        message = OutgoingMessage(body, f"{self._agent}-{self._sent}", session_id=mailbox)
        return _ResultMessage(message, tuple(tasks))

    async def _deliver(self, sender: Sender, made: _ResultMessage) -> None:
        """Send a message until the broker accepts it or says that it is too large."""
        try:
            await until_accepted(lambda: sender.send(made.message), self._sending_failed)
        except MessageTooLarge as error:
            self._refused(made, error)
        else:
            self._sending_works()
            self._accepted(made.tasks)

    def _refused(self, made: _ResultMessage, error: MessageTooLarge) -> None:
        logger.error("result_too_large", extra={"message_id": made.message.message_id, "error": str(error)})
        for task in made.tasks:
            self._too_large(task, str(error))

    def _sending_failed(self, error: BrokerError) -> None:
        """Report that the broker takes nothing. Raises `MessageTooLarge`, which no further try changes."""
        if isinstance(error, MessageTooLarge):
            raise error
        if self._problems.begin(self._problem, f"results cannot be sent: {error}"):
            logger.warning("results_blocked", extra={"queue": self._queue.entity, "error": str(error)})
            self._blocked(True)

    def _sending_works(self) -> None:
        if self._problems.end(self._problem):
            logger.info("results_flow", extra={"queue": self._queue.entity})
            self._blocked(False)


def _take(line: deque[T], body: Callable[[T], bytes]) -> list[T]:
    """Take as many items as fit into a message from the front of the queue, at least one."""
    taken = [line.popleft()]
    size = wire.PACK_OVERHEAD + len(body(taken[0])) + 1
    while line and len(taken) < MOST_ITEMS:
        size += len(body(line[0])) + 1
        if size > MOST_BYTES:
            break
        taken.append(line.popleft())
    return taken
