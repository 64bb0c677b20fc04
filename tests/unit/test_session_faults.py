"""A session in any weather: whatever happens in whatever order, each task has one outcome, shown once.

The broker fails, messages come twice and by reference, the mailbox is lost, tasks are cancelled and read
from several sides. In the end everything is answered and read; then the books must balance.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from unittest.mock import patch

import hypothesis.strategies as st
from hypothesis import given, settings

from batchflow.client import Client
from batchflow.errors import BrokerError, StorageError
from batchflow.model import Status
from batchflow.protocol.wire import TaskItem
from batchflow.session import Session
from batchflow.task import Task
from tests.support.agent import Agent, failure_of, result_of
from tests.support.services import Doubles, until_empty
from tests.support.services import settings as client_settings
from tests.support.waiting import eventually, within

ACTIONS = ("submit", "answer", "answer twice", "by reference", "fail", "lose mailbox", "broker stumbles",
           "storage stumbles", "take", "read", "await", "cancel", "turn")  # fmt: skip


class Weather:
    """A session, an agent, and what was seen of both."""

    def __init__(self, doubles: Doubles, session: Session, agent: Agent) -> None:
        self.doubles = doubles
        self.session = session
        self.agent = agent
        self.tasks: list[Task] = []
        self.items: list[TaskItem] = []
        self.answered = Counter[str]()
        self.shown = Counter[int]()
        self.awaiting: list[asyncio.Task[object]] = []

    async def act(self, action: str, number: int) -> None:
        actions: dict[str, Callable[[int], Awaitable[None]]] = {
            "submit": self.submit,
            "answer": self.answer,
            "answer twice": self.answer_twice,
            "by reference": self.answer_by_reference,
            "fail": self.answer_by_failure,
            "lose mailbox": self.lose_mailbox,
            "broker stumbles": self.broker_stumbles,
            "storage stumbles": self.storage_stumbles,
            "take": self.take,
            "read": self.read,
            "await": self.await_one,
            "cancel": self.cancel,
            "turn": self.turn,
        }
        await actions[action](number)

    async def submit(self, number: int) -> None:
        arguments = "x" * 200_000 if number == 7 else number
        self.tasks.append(await self.session.submit("x.py", args=arguments))

    async def receive(self) -> None:
        self.items += await self.agent.take_message(0.005)

    async def some_item(self, number: int) -> TaskItem | None:
        await self.receive()
        return self.items[number % len(self.items)] if self.items else None

    async def answer(self, number: int) -> None:
        if (item := await self.some_item(number)) is not None:
            self.answered[item.uid] += 1
            await self.agent.post([result_of(item, f"{item.uid}")])

    async def answer_twice(self, number: int) -> None:
        for _ in range(2):
            await self.answer(number)

    async def answer_by_failure(self, number: int) -> None:
        if (item := await self.some_item(number)) is not None:
            self.answered[item.uid] += 1
            await self.agent.post([failure_of(item)])

    async def answer_by_reference(self, number: int) -> None:
        if (item := await self.some_item(number)) is not None:
            self.answered[item.uid] += 1
            name = f"results/{item.uid}-{self.answered[item.uid]}.json"
            reference = await self.agent.store(name, f'"{item.uid}"'.encode())
            await self.agent.post([result_of(item, reference)])

    async def lose_mailbox(self, _: int) -> None:
        self.doubles.broker.advance(60)

    async def broker_stumbles(self, number: int) -> None:
        self.doubles.broker.accepts_before_failing = bool(number % 2)
        self.doubles.broker.faults.append(BrokerError("stumbled", retryable=True))

    async def storage_stumbles(self, _: int) -> None:
        self.doubles.storage.faults["get", "results/"] = [StorageError("stumbled", retryable=True)]

    async def take(self, number: int) -> None:
        self.shown.update(result.index for result in self.session.take(number))

    async def read(self, _: int) -> None:
        try:
            async with asyncio.timeout(0.01):
                async for result in self.session.results():
                    self.shown[result.index] += 1
        except TimeoutError:
            pass

    async def await_one(self, number: int) -> None:
        if self.tasks:
            task = self.tasks[number % len(self.tasks)]
            self.awaiting.append(asyncio.create_task(task.outcome()))

    async def cancel(self, number: int) -> None:
        if self.tasks:
            await self.tasks[number % len(self.tasks)].cancel()

    async def turn(self, number: int) -> None:
        for _ in range(number):
            await asyncio.sleep(0)

    async def settle(self) -> None:
        """Answer what has no answer, read what nobody has read."""
        self.doubles.broker.faults.clear()
        self.doubles.storage.faults.clear()
        await within(self.session.flush())
        while message := await self.agent.take_message(0.05):
            self.items += message
        for item in self.items:
            if not self.answered[item.uid]:
                await self.agent.post([result_of(item, item.uid)])
        async with asyncio.timeout(20):
            async for result in self.session.results():
                self.shown[result.index] += 1
        await within(asyncio.gather(*self.awaiting))

    async def balance(self) -> None:
        """What must be true in the end."""
        counts = self.session.counts
        assert counts.done == counts.submitted == len(self.tasks)
        assert len(self.items) == len({item.uid for item in self.items})
        for task in self.tasks:
            outcome = await within(task.outcome())
            assert outcome.status is task.status
            if outcome.status is Status.SUCCEEDED:
                assert outcome.value == task._entry.uid
            assert self.shown[task.index] <= 1
            if not task._entry.claimed:
                assert self.shown[task.index] == 1
        await until_empty(self.session)
        await eventually(lambda: not self.doubles.storage.names("results/"))


@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 9)), max_size=25), st.integers(0, 3))
@settings(max_examples=40)
async def test_every_task_has_one_outcome_under_random_faults(
    steps: list[tuple[str, int]], unclaimed: int
) -> None:
    """Each task has one outcome, shown at most once; no message and no blob is left."""
    doubles = Doubles()

    async def to_the_doubles(*_: object) -> object:
        return doubles.services

    with (
        patch("batchflow.client.connect", to_the_doubles),
        patch("batchflow.support.backoff.LONGEST", 0.01),
    ):
        async with Client(client_settings(unclaimed=unclaimed * 2)) as client:
            pool = await client.ensure_pool("demo")
            agent = Agent(doubles, pool)
            await agent.beat(interval=1e6)
            async with pool.session("c") as session:
                weather = Weather(doubles, session, agent)
                for action, number in steps:
                    await weather.act(action, number)
                await weather.settle()
                await weather.balance()
