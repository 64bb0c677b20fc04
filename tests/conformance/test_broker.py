"""The port to the queues keeps its promises, whoever implements it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from batchflow.errors import (
    BrokerError,
    LeaseLost,
    MailboxInUse,
    MailboxNotFound,
    MessageTooLarge,
    QueueNotFound,
)
from batchflow.ports.broker import AccessRule, OutgoingMessage, QueueRef, QueueSpec
from tests.support.broker import ENOUGH, message, next_of

if TYPE_CHECKING:
    from tests.conformance.conftest import Queues

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHORT = 0.3
"""Seconds after which something that shall not come has not come."""


async def test_message_arrives_whole(queues: Queues) -> None:
    """What is received is what was sent, with the broker's own facts about it."""
    queue = await queues.make()
    body = bytes(range(256)) * 4
    async with await queues.broker.sender(queue) as sender, await queues.broker.receiver(queue) as receiver:
        await sender.send(OutgoingMessage(body, "m1"))
        delivery = await next_of(receiver)
        assert (delivery.body, delivery.message_id, delivery.delivery_count) == (body, "m1", 0)
        assert delivery.sequence_number > 0
        assert abs(delivery.enqueued_at - time.time()) < 60
        assert delivery.session_id is None
        assert delivery.dead_letter_reason is None
        await receiver.complete(delivery)
    assert (await queues.admin.figures(queue.entity)).active == 0


async def test_receiving_from_an_empty_queue_returns_none(queues: Queues) -> None:
    """The receive ends at once when it is asked not to wait."""
    queue = await queues.make()
    async with await queues.broker.receiver(queue) as receiver:
        assert await receiver.receive(0.05) is None
        assert await receiver.receive(0) is None


async def test_waiting_receive_gets_the_message_that_comes(queues: Queues) -> None:
    """The message is sent while the receive waits."""
    queue = await queues.make()
    async with await queues.broker.sender(queue) as sender, await queues.broker.receiver(queue) as receiver:
        waiting = asyncio.create_task(next_of(receiver))
        await asyncio.sleep(0.1)
        await sender.send(message("late"))
        assert (await waiting).message_id == "late"


async def test_messages_of_one_sender_come_in_order(queues: Queues) -> None:
    """Each is sent by itself."""
    queue = await queues.make()
    names = [f"m{i}" for i in range(20)]
    async with await queues.broker.sender(queue) as sender, await queues.broker.receiver(queue) as receiver:
        for name in names:
            await sender.send(message(name))
        got = []
        for _ in names:
            delivery = await next_of(receiver)
            got.append(delivery.message_id)
            await receiver.complete(delivery)
    assert got == names


async def test_sender_serves_several_coroutines_at_once(queues: Queues) -> None:
    """Every message arrives."""
    queue = await queues.make()
    async with await queues.broker.sender(queue) as sender:
        await asyncio.gather(*(sender.send(message(f"m{i}")) for i in range(20)))
    assert (await queues.admin.figures(queue.entity)).active == 20


async def test_duplicate_is_dropped(queues: Queues) -> None:
    """The same message sent again is accepted and dropped."""
    queue = await queues.make()
    async with await queues.broker.sender(queue) as sender:
        await sender.send(message("once"))
        await sender.send(message("once"))
    assert (await queues.admin.figures(queue.entity)).active == 1


async def test_several_messages_share_a_send(queues: Queues) -> None:
    """All of them come, in order, each with an id of its own; sent again, all of them are dropped."""
    queue = await queues.make()
    names = [f"m{i}" for i in range(40)]
    async with await queues.broker.sender(queue) as sender, await queues.broker.receiver(queue) as receiver:
        for _ in range(2):
            await sender.send(*map(message, names))
        got = []
        for _ in names:
            delivery = await next_of(receiver)
            got.append((delivery.message_id, delivery.body))
            await receiver.complete(delivery)
    assert got == [(name, name.encode()) for name in names]
    assert (await queues.admin.figures(queue.entity)).active == 0


async def test_messages_that_are_too_large_together_are_all_refused(queues: Queues) -> None:
    """None of them is sent."""
    queue = await queues.make()
    half = [OutgoingMessage(bytes(140_000), name) for name in "ab"]
    async with await queues.broker.sender(queue) as sender:
        with pytest.raises(MessageTooLarge):
            await sender.send(*half)
    assert (await queues.admin.figures(queue.entity)).active == 0


async def test_queue_without_duplicate_detection_takes_a_message_twice(queues: Queues) -> None:
    """Both have the same id."""
    queue = await queues.make(duplicate_window=None)
    async with await queues.broker.sender(queue) as sender:
        await sender.send(message("twice"))
        await sender.send(message("twice"))
    assert (await queues.admin.figures(queue.entity)).active == 2


async def test_abandoned_message_comes_again_at_once(queues: Queues) -> None:
    """Its delivery is counted."""
    queue = await queues.make()
    async with await queues.broker.sender(queue) as sender, await queues.broker.receiver(queue) as receiver:
        await sender.send(message("again"))
        await receiver.abandon(await next_of(receiver))
        delivery = await next_of(receiver)
        assert delivery.delivery_count == 1
        await receiver.complete(delivery)


async def test_settled_message_cannot_be_settled_or_renewed_again(queues: Queues) -> None:
    """The lock is gone."""
    queue = await queues.make()
    async with await queues.broker.sender(queue) as sender, await queues.broker.receiver(queue) as receiver:
        await sender.send(message("done"))
        delivery = await next_of(receiver)
        await receiver.complete(delivery)
        for again in (receiver.complete, receiver.abandon, receiver.renew):
            with pytest.raises(LeaseLost):
                await again(delivery)


async def test_settling_works_while_a_receive_waits(queues: Queues) -> None:
    """Renewing works too, and the receive goes on waiting."""
    queue = await queues.make()
    async with await queues.broker.sender(queue) as sender, await queues.broker.receiver(queue) as receiver:
        for name in "abc":
            await sender.send(message(name))
        held = [await next_of(receiver) for _ in "abc"]
        waiting = asyncio.create_task(next_of(receiver))
        await asyncio.gather(receiver.renew(held[0]), receiver.complete(held[1]), receiver.complete(held[2]))
        await receiver.complete(held[0])
        assert not waiting.done()
        await sender.send(message("d"))
        assert (await waiting).message_id == "d"


async def test_message_whose_lock_expired_comes_again(queues: Queues) -> None:
    """Its delivery is counted, and its old lock settles nothing."""
    queue = await queues.make()
    async with await queues.broker.sender(queue) as sender, await queues.broker.receiver(queue) as receiver:
        await sender.send(message("slow"))
        first = await next_of(receiver)
        second = await next_of(receiver)
        assert (second.message_id, second.delivery_count) == ("slow", 1)
        with pytest.raises(LeaseLost):
            await receiver.complete(first)
        await receiver.complete(second)


async def test_renewed_message_stays_locked(queues: Queues) -> None:
    """It stays locked past its lock's first end, and can be completed then."""
    queue = await queues.make()
    async with await queues.broker.sender(queue) as sender, await queues.broker.receiver(queue) as receiver:
        await sender.send(message("long"))
        delivery = await next_of(receiver)
        await asyncio.sleep(queues.lock * 0.7)
        await receiver.renew(delivery)
        assert await receiver.receive(queues.lock * 0.6) is None
        await receiver.complete(delivery)
    assert (await queues.admin.figures(queue.entity)).active == 0


async def test_cancelled_receive_loses_no_message(queues: Queues) -> None:
    """A later receive gets a message that arrives around the cancellation."""
    queue = await queues.make()
    async with await queues.broker.sender(queue) as sender, await queues.broker.receiver(queue) as receiver:
        for i in range(10):
            waiting = asyncio.create_task(receiver.receive(ENOUGH))
            sending = asyncio.create_task(sender.send(message(f"m{i}")))
            await asyncio.sleep(0.001 * i)
            waiting.cancel()
            await asyncio.wait({waiting})
            await sending
            delivery = await next_of(receiver) if waiting.cancelled() else waiting.result()
            assert delivery is not None
            assert delivery.message_id == f"m{i}"
            await receiver.complete(delivery)
    assert (await queues.admin.figures(queue.entity)).active == 0


async def test_closing_a_receiver_releases_its_messages(queues: Queues) -> None:
    """A message that came after its receive was cancelled is free for others."""
    queue = await queues.make()
    async with await queues.broker.sender(queue) as sender, await queues.broker.receiver(queue) as other:
        async with await queues.broker.receiver(queue) as receiver:
            waiting = asyncio.create_task(receiver.receive(ENOUGH))
            await asyncio.sleep(0.05)
            waiting.cancel()
            await asyncio.wait({waiting})
            await sender.send(message("kept"))
        async with asyncio.timeout(queues.lock * 0.8):
            assert (await next_of(other)).message_id == "kept"


async def test_closing_a_receiver_ends_its_waiting_receive(queues: Queues) -> None:
    """It ends by None or an error."""
    queue = await queues.make()
    receiver = await queues.broker.receiver(queue)
    waiting = asyncio.create_task(receiver.receive(60))
    await asyncio.sleep(0.05)
    await receiver.aclose()
    await receiver.aclose()
    done, _ = await asyncio.wait({waiting}, timeout=ENOUGH)
    assert done
    assert waiting.exception() is None or isinstance(waiting.exception(), BrokerError)
    with pytest.raises(BrokerError):
        await receiver.receive(0)


async def test_scheduled_message_comes_at_its_time(queues: Queues) -> None:
    """It is counted as scheduled until then."""
    queue = await queues.make()
    async with await queues.broker.sender(queue) as sender, await queues.broker.receiver(queue) as receiver:
        at = time.time() + 2.0
        await sender.schedule(message("later"), at)
        assert (await queues.admin.figures(queue.entity)).scheduled == 1
        assert await receiver.receive(SHORT) is None
        delivery = await next_of(receiver)
        assert delivery.message_id == "later"
        assert time.time() >= at - 0.5


async def test_dead_lettered_message_keeps_its_reasons(queues: Queues) -> None:
    """It is found in the dead-letter queue."""
    queue = await queues.make()
    async with await queues.broker.sender(queue) as sender, await queues.broker.receiver(queue) as receiver:
        await sender.send(message("bad"))
        await receiver.dead_letter(await next_of(receiver), "Poison", "it took its agent down")
    assert (await queues.admin.figures(queue.entity)).dead == 1
    async with await queues.broker.receiver(queue, dead_letters=True) as graveyard:
        dead = await next_of(graveyard)
        assert (dead.body, dead.dead_letter_reason) == (b"bad", "Poison")
        assert dead.dead_letter_description == "it took its agent down"
        await graveyard.renew(dead)
        await graveyard.complete(dead)


async def test_message_delivered_too_often_is_dead_lettered(queues: Queues) -> None:
    """The broker says why."""
    queue = await queues.make(max_delivery_count=2)
    async with await queues.broker.sender(queue) as sender, await queues.broker.receiver(queue) as receiver:
        await sender.send(message("poison"))
        for _ in range(2):
            await receiver.abandon(await next_of(receiver))
    async with await queues.broker.receiver(queue, dead_letters=True) as graveyard:
        dead = await next_of(graveyard)
        assert dead.dead_letter_reason == "MaxDeliveryCountExceeded"
        await graveyard.complete(dead)


async def test_expired_message_is_dead_lettered(queues: Queues) -> None:
    """A message whose time to live is over does not vanish."""
    queue = await queues.make()
    async with await queues.broker.sender(queue) as sender:
        await sender.send(message("stale", time_to_live=1.0))
    async with await queues.broker.receiver(queue, dead_letters=True) as graveyard:
        dead = await next_of(graveyard)
        assert dead.dead_letter_reason == "TTLExpiredException"
        await graveyard.complete(dead)


async def test_message_over_the_limit_is_refused_for_good(queues: Queues) -> None:
    """The sender works on."""
    queue = await queues.make()
    async with await queues.broker.sender(queue) as sender:
        with pytest.raises(MessageTooLarge) as caught:
            await sender.send(OutgoingMessage(bytes(300_000), "huge"))
        assert not caught.value.retryable
        await sender.send(message("small"))
    assert (await queues.admin.figures(queue.entity)).active == 1


async def test_message_near_the_limit_arrives_whole(queues: Queues) -> None:
    """It takes many frames."""
    queue = await queues.make()
    body = bytes(range(256)) * 900
    async with await queues.broker.sender(queue) as sender, await queues.broker.receiver(queue) as receiver:
        await sender.send(OutgoingMessage(body, "large"))
        delivery = await next_of(receiver)
        assert delivery.body == body
        await receiver.complete(delivery)


async def test_prefetched_messages_are_delivered_once(queues: Queues) -> None:
    """What is left when the receiver closes is free for others."""
    queue = await queues.make()
    async with await queues.broker.sender(queue) as sender:
        for i in range(30):
            await sender.send(message(f"m{i}"))
        seen = []
        async with await queues.broker.receiver(queue, prefetch=20) as receiver:
            for _ in range(5):
                delivery = await next_of(receiver)
                seen.append(delivery.message_id)
                await receiver.complete(delivery)
        async with await queues.broker.receiver(queue) as other, asyncio.timeout(queues.lock * 0.8):
            for _ in range(25):
                delivery = await next_of(other)
                seen.append(delivery.message_id)
                await other.complete(delivery)
    assert sorted(seen) == sorted(f"m{i}" for i in range(30))


async def test_opening_a_link_to_a_missing_queue_is_refused(queues: Queues) -> None:
    """The refusal comes at once."""
    nowhere = QueueRef(queues.admin.namespace, "conformance-no-such-queue")
    with pytest.raises(QueueNotFound):
        await queues.broker.sender(nowhere)
    with pytest.raises(QueueNotFound):
        await queues.broker.receiver(nowhere)
    with pytest.raises(MailboxNotFound):
        await queues.broker.mailbox(nowhere, "s")


async def test_sending_to_a_deleted_queue_says_so(queues: Queues) -> None:
    """The queue was deleted while the link was open."""
    queue = await queues.make()
    async with await queues.broker.sender(queue) as sender:
        assert await queues.admin.delete_queue(queue.entity)
        with pytest.raises(QueueNotFound):
            await sender.send(message("lost"))


async def test_mailbox_gets_the_messages_of_its_session_in_order(queues: Queues) -> None:
    """It gets no others."""
    queue = await queues.make(sessions=True)
    async with (
        await queues.broker.sender(queue) as sender,
        await queues.broker.mailbox(queue, "job/alice") as alice,
        await queues.broker.mailbox(queue, "job/bob") as bob,
    ):
        assert alice.session_id == "job/alice"
        for i in range(5):
            await sender.send(message(f"a{i}", session_id="job/alice"))
        await sender.send(message("b", session_id="job/bob"))
        for i in range(5):
            delivery = await next_of(alice)
            assert (delivery.message_id, delivery.session_id) == (f"a{i}", "job/alice")
            await alice.complete(delivery)
        assert (await next_of(bob)).message_id == "b"
        assert await alice.receive(SHORT) is None


async def test_second_holder_of_a_mailbox_is_refused(queues: Queues) -> None:
    """The refusal comes at once, and the mailbox is free as soon as it is closed."""
    queue = await queues.make(sessions=True)
    async with await queues.broker.mailbox(queue, "s"):
        with pytest.raises(MailboxInUse):
            await queues.broker.mailbox(queue, "s")
    async with asyncio.timeout(queues.lock * 0.8), await queues.broker.mailbox(queue, "s"):
        pass


async def test_next_holder_of_a_mailbox_gets_what_was_not_completed(queues: Queues) -> None:
    """The first holder has closed it."""
    queue = await queues.make(sessions=True)
    async with await queues.broker.sender(queue) as sender:
        for name in "abc":
            await sender.send(message(name, session_id="s"))
        async with await queues.broker.mailbox(queue, "s") as first:
            await first.complete(await next_of(first))
            await next_of(first)
        async with await queues.broker.mailbox(queue, "s") as second:
            assert [(await next_of(second)).message_id for _ in "bc"] == ["b", "c"]


async def test_state_of_a_mailbox_outlives_its_holder(queues: Queues) -> None:
    """The next holder reads it."""
    queue = await queues.make(sessions=True)
    async with await queues.broker.mailbox(queue, "s") as mailbox:
        assert await mailbox.get_state() is None
        await mailbox.set_state(b"\x00\xff state")
    async with await queues.broker.mailbox(queue, "s") as mailbox:
        assert await mailbox.get_state() == b"\x00\xff state"


async def test_renewed_mailbox_is_still_held_with_its_messages(queues: Queues) -> None:
    """The lock's first end has passed."""
    queue = await queues.make(sessions=True)
    async with (
        await queues.broker.sender(queue) as sender,
        await queues.broker.mailbox(queue, "s") as mailbox,
    ):
        await sender.send(message("m", session_id="s"))
        delivery = await next_of(mailbox)
        waiting = asyncio.create_task(next_of(mailbox))
        for _ in range(3):
            await asyncio.sleep(queues.lock * 0.5)
            await mailbox.renew()
        await mailbox.complete(delivery)
        await sender.send(message("n", session_id="s"))
        assert (await waiting).message_id == "n"


async def test_mailbox_that_was_not_renewed_is_lost(queues: Queues) -> None:
    """Every method says so, and another can be opened."""
    queue = await queues.make(sessions=True)
    async with (
        await queues.broker.sender(queue) as sender,
        await queues.broker.mailbox(queue, "s") as mailbox,
    ):
        await sender.send(message("m", session_id="s"))
        delivery = await next_of(mailbox)
        with pytest.raises(LeaseLost):
            await next_of(mailbox)
        async with await queues.broker.mailbox(queue, "s") as again:
            assert (await next_of(again)).message_id == "m"
        for work in (mailbox.renew, mailbox.get_state, lambda: mailbox.set_state(b"")):
            with pytest.raises(LeaseLost):
                await work()
        with pytest.raises(LeaseLost):
            await mailbox.complete(delivery)


async def test_queues_are_made_listed_counted_and_deleted_once(queues: Queues) -> None:
    """Access rules yield connection strings."""
    admin = queues.admin
    queue = await queues.make(rules=(AccessRule("agents", frozenset({"Listen", "Send"})),))
    assert not await admin.create_queue(QueueSpec(queue.entity))
    assert queue.entity in await admin.queues()
    string = await admin.connection_string(queue.entity, "agents")
    assert "SharedAccessKeyName=agents" in string
    assert f"EntityPath={queue.entity}" in string
    with pytest.raises(BrokerError):
        await admin.connection_string(queue.entity, "nobody")
    assert await admin.delete_queue(queue.entity)
    assert not await admin.delete_queue(queue.entity)
    assert queue.entity not in await admin.queues()
    with pytest.raises(QueueNotFound):
        await admin.figures(queue.entity)
    with pytest.raises(QueueNotFound):
        await admin.connection_string(queue.entity, "agents")
