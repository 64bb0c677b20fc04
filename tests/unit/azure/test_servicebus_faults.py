"""What the adaptor to Service Bus makes of keys, connections and clocks that are not what they should be."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from batchflow.azure import amqp_link, servicebus
from batchflow.azure.servicebus import ServiceBusAdmin, ServiceBusBroker, namespace_of
from batchflow.errors import Backpressure, BrokerError, ConfigurationError, LeaseLost
from batchflow.ports.broker import AccessRule, QueueRef
from tests.support.broker import ENOUGH, message, next_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batchflow.ports.broker import Delivery, Receiver
    from tests.unit.azure.conftest import Bus

SETTING = "servicebus.connection_string"


async def until_done(work: Callable[[], Awaitable[None]]) -> None:
    """Do it again while the adaptor says that this makes sense."""
    async with asyncio.timeout(ENOUGH):
        while True:
            try:
                return await work()
            except BrokerError as error:
                if not error.retryable:
                    raise


async def test_wrong_key(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong key is told at once, naming the setting and showing no key anywhere."""
    caplog.set_level(logging.INFO)
    queue = await bus.make()
    key = "d3Jvbmcta2V5LXdyb25nLWtleS13cm9uZy1rZXktMTI="
    parts = bus.server.connection_string.split(";")
    wrong = ";".join(f"SharedAccessKey={key}" if p.startswith("SharedAccessKey=") else p for p in parts)
    started = time.monotonic()
    async with ServiceBusBroker(wrong) as broker:
        for opening in (broker.sender(queue), broker.receiver(queue), broker.mailbox(queue, "s")):
            with pytest.raises(BrokerError) as caught:
                await opening
            assert caught.value.setting == SETTING
            assert not caught.value.retryable
            assert key not in str(caught.value)
    assert time.monotonic() - started < 30
    assert key not in caplog.text


async def test_wrong_key_of_admin(bus: Bus) -> None:
    """The administration tells of a wrong key by the setting's name, too."""
    parts = bus.server.connection_string.split(";")
    wrong = ";".join("SharedAccessKey=d3Jvbmc=" if p.startswith("SharedAccessKey=") else p for p in parts)
    async with ServiceBusAdmin(wrong, ca_file=bus.ca_file) as admin:
        with pytest.raises(BrokerError) as caught:
            await admin.queues()
    assert caught.value.setting == SETTING


async def test_untrusted_certificate(bus: Bus) -> None:
    """An endpoint whose certificate is not trusted is an error that names the setting."""
    async with ServiceBusAdmin(bus.server.connection_string) as admin:
        with pytest.raises(BrokerError) as caught:
            await admin.queues()
    assert caught.value.setting == SETTING


async def test_missing_right(bus: Bus) -> None:
    """A key opens what it has the right for, of its queue, and nothing else."""
    rules = (AccessRule("out", frozenset({"Send"})), AccessRule("in", frozenset({"Listen"})))
    queue, other = await bus.make(rules=rules), await bus.make()
    keys = {rule.name: await bus.admin.connection_string(queue.entity, rule.name) for rule in rules}
    async with ServiceBusBroker(None, by_queue={queue: keys["out"]}, setting="keys") as broker:
        async with await broker.sender(queue) as sender:
            await sender.send(message("m"))
        with pytest.raises(BrokerError) as caught:
            await broker.receiver(queue)
        assert caught.value.setting == "keys"
        with pytest.raises(ConfigurationError, match=other.entity):
            await broker.sender(other)
    async with ServiceBusBroker(bus.server.connection_string, by_queue={queue: keys["in"]}) as broker:
        async with await broker.receiver(queue) as receiver:
            await receiver.complete(await next_of(receiver))
        with pytest.raises(BrokerError):
            await broker.sender(queue)


async def test_nothing_listens(bus: Bus) -> None:
    """A port where nothing listens is told at once, as something that may pass."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    nowhere = bus.server.connection_string.replace(f":{bus.server.port};", f":{port};")
    queue = QueueRef(f"127.0.0.1:{port}", "q")
    async with ServiceBusBroker(nowhere) as broker, ServiceBusAdmin(nowhere) as admin:
        for attempt in (broker.sender(queue), broker.receiver(queue), admin.queues()):
            with pytest.raises(BrokerError) as caught:
                await attempt
            assert caught.value.setting == SETTING
            assert caught.value.retryable


async def test_silent_endpoint(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that accepts and never answers becomes an error when the time for opening is over."""
    assert servicebus.ATTEMPT_LIMIT < amqp_link.OPEN_LIMIT < 10
    monkeypatch.setattr(servicebus, "ATTEMPT_LIMIT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        there = bus.server.connection_string.replace(f":{bus.server.port};", f":{port};")
        async with ServiceBusBroker(there) as broker, asyncio.timeout(ENOUGH):
            with pytest.raises(BrokerError) as caught:
                await broker.sender(QueueRef(f"127.0.0.1:{port}", "q"))
    assert caught.value.setting == SETTING
    assert caught.value.retryable


async def test_silent_endpoint_that_the_sdk_waits_for(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the SDK itself would wait on, the adaptor does not."""
    monkeypatch.setattr(amqp_link, "OPEN_LIMIT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        there = bus.server.connection_string.replace(f":{bus.server.port};", f":{port};")
        async with ServiceBusBroker(there) as broker, asyncio.timeout(ENOUGH):
            with pytest.raises(BrokerError, match="no answer") as caught:
                await broker.sender(QueueRef(f"127.0.0.1:{port}", "q"))
    assert caught.value.setting == SETTING


@pytest.mark.parametrize(
    "text", ["", "nonsense", "Endpoint=;SharedAccessKey=secret", "SharedAccessKey=secret"]
)
def test_not_a_connection_string(text: str) -> None:
    """What is no connection string is told without being quoted."""
    with pytest.raises(ConfigurationError) as caught:
        namespace_of(text)
    assert "secret" not in str(caught.value)


async def test_half_a_connection_string() -> None:
    """A connection string without a key is told by its setting's name, without being quoted."""
    half = "Endpoint=sb://127.0.0.1:1/;SharedAccessKeyName=secret;UseDevelopmentEmulator=true"
    async with ServiceBusBroker(half, setting="S") as broker, ServiceBusAdmin(half, setting="S") as admin:
        for attempt in (broker.sender(QueueRef("127.0.0.1:1", "q")), admin.queues()):
            with pytest.raises(ConfigurationError, match=r"^S is no connection string") as caught:
                await attempt
            assert "secret" not in str(caught.value)


def test_namespace_of() -> None:
    """The namespace is the endpoint's host, with the port where there is one."""
    rest = "SharedAccessKeyName=x;SharedAccessKey=abc="
    assert namespace_of(f"Endpoint=sb://a.servicebus.windows.net/;{rest}") == "a.servicebus.windows.net"
    assert namespace_of(f"{rest};endpoint=sb://127.0.0.1:5672") == "127.0.0.1:5672"


async def test_sender_after_a_lost_connection(bus: Bus) -> None:
    """A sender whose connection was cut, even while nothing was sent, sends on without anybody noticing."""
    queue = await bus.make()
    async with await bus.broker.sender(queue) as sender:
        await sender.send(message("a"))
        bus.server.drop_connections()
        await sender.send(message("b"))
    assert await bus.active(queue) == 2


async def test_receiver_after_a_lost_connection(bus: Bus) -> None:
    """A receive that waits while the connection is cut goes on, and gets what comes afterwards."""
    queue = await bus.make()
    async with await bus.broker.sender(queue) as sender, await bus.broker.receiver(queue) as receiver:
        waiting = asyncio.create_task(next_of(receiver))
        await asyncio.sleep(0.1)
        bus.server.drop_connections()
        await sender.send(message("after"))
        delivery = await waiting
        assert delivery.message_id == "after"
        await receiver.complete(delivery)
    assert await bus.active(queue) == 0


async def test_settling_after_a_lost_connection(bus: Bus) -> None:
    """What was received before the connection was cut can be renewed and settled after it."""
    queue = await bus.make()
    async with await bus.broker.sender(queue) as sender, await bus.broker.receiver(queue) as receiver:
        for name in "abc":
            await sender.send(message(name))
        held = [await next_of(receiver) for _ in "abc"]
        bus.server.drop_connections()
        await until_done(lambda: receiver.renew(held[0]))
        await until_done(lambda: receiver.complete(held[0]))
        await receiver.abandon(held[1])
        await receiver.dead_letter(held[2], "Reason", "description")
        figures = await bus.admin.figures(queue.entity)
        assert (figures.active, figures.dead) == (1, 1)


@pytest.mark.parametrize("moment", [0.0, 0.001, 0.005, 0.02])
async def test_connection_lost_under_many_calls(bus: Bus, moment: float) -> None:
    """With a receive and many settlements under way, a cut leaves nothing behind and loses nothing."""
    queue = await bus.make()
    async with await bus.broker.sender(queue) as sender, await bus.broker.receiver(queue) as receiver:
        for i in range(12):
            await sender.send(message(f"m{i}"))
        held = [await next_of(receiver) for _ in range(12)]
        waiting = asyncio.create_task(next_of(receiver))
        settling = [asyncio.create_task(until_done(partial(finish, receiver, d))) for d in held]
        await asyncio.sleep(moment)
        bus.server.drop_connections()
        await asyncio.gather(*settling)
        await sender.send(message("last"))
        delivery = await waiting
        assert delivery.message_id == "last"
        await until_done(lambda: finish(receiver, delivery))
    assert await bus.active(queue) == 0


async def finish(receiver: Receiver, delivery: Delivery) -> None:
    """Complete it; a completion whose answer was lost may have worked."""
    try:
        await receiver.complete(delivery)
    except LeaseLost:
        return


async def test_mailbox_after_a_lost_connection(bus: Bus) -> None:
    """A mailbox is lost with its connection: every method says so, and another can be opened."""
    queue = await bus.make(sessions=True)
    mailbox = await bus.broker.mailbox(queue, "s")
    waiting = asyncio.create_task(mailbox.receive(ENOUGH))
    await asyncio.sleep(0.05)
    bus.server.drop_connections()
    with pytest.raises(LeaseLost):
        await waiting
    with pytest.raises(LeaseLost):
        await mailbox.renew()
    with pytest.raises(LeaseLost):
        await mailbox.receive(0)
    await mailbox.aclose()
    async with await bus.broker.mailbox(queue, "s"):
        pass


@pytest.mark.parametrize("bus", [1.5], indirect=True)
async def test_idle_links(bus: Bus) -> None:
    """Links that the broker detaches because they are idle work on.

    Mostly nobody notices; who calls before the news of the detaching was read is told to try again.
    """
    queue = await bus.make()
    async with await bus.broker.sender(queue) as sender, await bus.broker.receiver(queue) as receiver:
        assert await receiver.receive(4.0) is None
        await until_done(lambda: sender.send(message("m")))
        delivery = await next_of(receiver)
        await asyncio.sleep(2.0)
        await until_done(lambda: finish(receiver, delivery))
        await until_done(lambda: sender.send(message("n")))
        another = await next_of(receiver)
        await until_done(lambda: finish(receiver, another))
    assert await bus.active(queue) == 0


async def test_server_gone_and_back(bus: Bus) -> None:
    """While the broker is away the errors say "try again", and when it is back the links work on."""
    queue = await bus.make()
    port = bus.server.port
    async with await bus.broker.sender(queue) as sender, await bus.broker.receiver(queue) as receiver:
        await sender.send(message("before"))
        await receiver.complete(await next_of(receiver))
        await bus.server.aclose()
        for work in (sender.send(message("away")), receive_on(receiver)):
            with pytest.raises(BrokerError) as caught:
                await work
            assert caught.value.retryable
        await bus.server.start(port=port)
        await until_done(lambda: sender.send(message("back")))
        await until_done(lambda: finish_one(receiver))


async def receive_on(receiver: Receiver) -> None:
    """Until an error ends it: a short receive may be over before the loss is heard of."""
    async with asyncio.timeout(ENOUGH):
        while await receiver.receive(0.5) is None:
            pass


async def finish_one(receiver: Receiver) -> None:
    await receiver.complete(await next_of(receiver))


async def test_throttled(bus: Bus) -> None:
    """A throttled send is told as backpressure, which passes; the link is the same afterwards."""
    queue = await bus.make()
    async with await bus.broker.sender(queue) as sender:
        bus.server.throttle(0.5)
        with pytest.raises(Backpressure) as caught:
            await sender.send(message("m"))
        assert caught.value.retryable
        await until_done(lambda: sender.send(message("m")))
    assert await bus.active(queue) == 1


async def test_local_clock_ahead(bus: Bus) -> None:
    """A node whose clock is far ahead of the broker's settles and renews all the same."""
    bus.server._epoch -= 3600
    queue = await bus.make()
    async with await bus.broker.sender(queue) as sender, await bus.broker.receiver(queue) as receiver:
        for name in "abc":
            await sender.send(message(name))
        held = [await next_of(receiver) for _ in "abc"]
        assert held[0].enqueued_at < time.time() - 3000
        for delivery in held:
            await receiver.renew(delivery)
            await receiver.renew(delivery)
        await receiver.complete(held[0])
        await receiver.abandon(held[1])
        await receiver.dead_letter(held[2], "r", "d")
        assert await bus.active(queue) == 1


async def test_mailbox_with_the_clock_ahead(bus: Bus) -> None:
    """Where the SDK would take a mailbox's lock for expired, opening it says that the clock is wrong."""
    bus.server._epoch -= 3600
    queue = await bus.make(sessions=True)
    with pytest.raises(BrokerError, match="clock"):
        await bus.broker.mailbox(queue, "s")


async def test_mailbox_whose_lock_runs_out_while_it_is_opened(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that stood still meanwhile has lost it, and its clock is not to blame."""
    queue, began = await bus.make(sessions=True), time.time()
    times = iter([began, began + 3600.0])
    with monkeypatch.context() as patch:
        clock = SimpleNamespace(time=lambda: next(times), monotonic=time.monotonic)
        patch.setattr("batchflow.azure.servicebus.time", clock)
        with pytest.raises(LeaseLost, match="ran out while it was opened"):
            await bus.broker.mailbox(queue, "s")
    async with await bus.broker.mailbox(queue, "s") as mailbox:
        assert mailbox.session_id == "s"


async def test_cancelled_send_arrives_or_can_be_repeated(bus: Bus) -> None:
    """Cancelling sends breaks nothing: sent again, each message is there once."""
    queue = await bus.make()
    async with await bus.broker.sender(queue) as sender:
        for i in range(20):
            sending = asyncio.create_task(sender.send(message(f"m{i}")))
            await asyncio.sleep(0.0001 * i)
            sending.cancel()
        for i in range(20):
            await sender.send(message(f"m{i}"))
    assert await bus.active(queue) == 20


async def test_cancelled_opening(bus: Bus) -> None:
    """Cancelling the opening of links at any moment leaves nothing open."""
    queue = await bus.make()

    async def give_up(moment: float) -> None:
        opening = asyncio.create_task(bus.broker.receiver(queue))
        await asyncio.sleep(moment)
        opening.cancel()
        await asyncio.wait({opening})
        if not opening.cancelled():
            await opening.result().aclose()

    await asyncio.gather(*(give_up(0.002 * i * i) for i in range(24)))
    async with asyncio.timeout(ENOUGH):
        await bus.server._vacant.wait()


async def test_closing_under_way(bus: Bus) -> None:
    """Closing a broker whose links are busy is bounded, idempotent, and ends what waits."""
    queue = await bus.make()
    sender, receiver = await bus.broker.sender(queue), await bus.broker.receiver(queue)
    await sender.send(message("m"))
    delivery = await next_of(receiver)
    waiting = asyncio.create_task(receiver.receive(60))
    completing = asyncio.create_task(receiver.complete(delivery))
    await asyncio.sleep(0)
    async with asyncio.timeout(ENOUGH):
        await asyncio.gather(bus.broker.aclose(), bus.broker.aclose())
        await asyncio.wait({waiting, completing})
    assert completing.exception() is None
    assert isinstance(waiting.exception(), BrokerError)
    assert await bus.active(queue) == 0
    with pytest.raises(BrokerError):
        await sender.send(message("n"))
