"""Turns on a link: who receives, who settles, and in which order."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from batchflow.azure.amqp_link import SdkLink
from batchflow.errors import BrokerError
from batchflow.ports.broker import OutgoingMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.unit.azure.conftest import Bus


class Recorder:
    """Stands for an SDK handler; every call on it is over when the test says so."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._changed = asyncio.Condition()
        self._allowed = 0

    async def __aenter__(self) -> Recorder:
        return self

    async def close(self) -> None:
        pass

    async def work(self, name: str) -> str:
        async with self._changed:
            self.begun.append(name)
            self._changed.notify_all()
            turn = len(self.begun)
            await self._changed.wait_for(lambda: self._allowed >= turn)
        return name

    async def allow(self, turns: int) -> None:
        async with self._changed:
            self._allowed += turns
            self._changed.notify_all()

    async def until_begun(self, count: int) -> list[str]:
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: len(self.begun) >= count)
        return self.begun


async def test_a_receive_comes_after_one_of_many_calls_not_after_all() -> None:
    """Else a result would wait for the settlements of all those before it."""
    recorder = Recorder()
    link = SdkLink(lambda: recorder, "results", None)

    def settle(number: int) -> Callable[[Recorder], Coroutine[Any, Any, str]]:
        return lambda sdk: sdk.work(f"settle {number}")

    calls = [asyncio.create_task(link.call(settle(n), "cannot settle")) for n in range(4)]
    assert await recorder.until_begun(1) == ["settle 0"]
    receive = await link.wait_for(lambda sdk, wanted: sdk.work(f"receive, {wanted}"), "cannot receive")
    await recorder.allow(1)
    await recorder.until_begun(2)
    await recorder.allow(10)
    assert await asyncio.gather(*calls) == [f"settle {n}" for n in range(4)]
    assert await receive.wait(10)
    assert recorder.begun[:3] == ["settle 0", "receive, True", "settle 1"]
    await link.aclose()


async def test_a_receive_that_nobody_disturbs_may_wait() -> None:
    """It is told that nobody else wants the link."""
    recorder = Recorder()
    link = SdkLink(lambda: recorder, "results", None)
    await recorder.allow(1)
    receive = await link.wait_for(lambda sdk, wanted: sdk.work(f"wanted: {wanted}"), "cannot receive")
    assert await receive.wait(10)
    assert link.finish(receive) == "wanted: False"
    await link.aclose()


async def test_what_follows_from_a_message_is_begun_before_the_link_is_used_again() -> None:
    """Whoever waited for the message has it and acts on it while a settlement in line waits a little more."""
    recorder = Recorder()
    link = SdkLink(lambda: recorder, "results", None)
    receive = await link.wait_for(lambda sdk, _: sdk.work("receive"), "cannot receive")
    assert await recorder.until_begun(1) == ["receive"]
    settling = asyncio.create_task(link.call(lambda sdk: sdk.work("settle"), "cannot settle"))

    async def reader() -> None:
        assert await receive.wait(10)
        recorder.begun.append("read")

    async def followed(by: asyncio.Task[None], step: str) -> None:
        await by
        recorder.begun.append(step)

    read = asyncio.create_task(reader())
    given = asyncio.create_task(followed(read, "given to a slot"))
    sent = asyncio.create_task(followed(given, "sent"))
    await recorder.allow(10)
    await asyncio.gather(settling, sent)
    assert recorder.begun == ["receive", "read", "given to a slot", "sent", "settle"]
    await link.aclose()


async def test_a_call_goes_on_when_whoever_asked_for_it_is_cancelled() -> None:
    """The SDK is not safe to cancel; the next call has its turn when this one is over."""
    recorder = Recorder()
    link = SdkLink(lambda: recorder, "tasks", None)
    first = asyncio.create_task(link.call(lambda sdk: sdk.work("first"), "cannot send"))
    await recorder.until_begun(1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(link.call(lambda sdk: sdk.work("second"), "cannot send"))
    await recorder.allow(2)
    assert await second == "second"
    assert recorder.begun == ["first", "second"]
    await link.aclose()


async def test_a_message_that_came_after_its_wait_was_cancelled_is_kept() -> None:
    """The call has it, and a later wait for the same call gives it."""
    recorder = Recorder()
    link = SdkLink(lambda: recorder, "tasks", None)
    receive = await link.wait_for(lambda sdk, _: sdk.work("message"), "cannot receive")
    await recorder.until_begun(1)
    waiting = asyncio.create_task(receive.wait(10))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert not receive.over
    await recorder.allow(1)
    assert await receive.wait(10)
    assert link.finish(receive) == "message"
    await link.aclose()


async def test_closing_does_what_is_in_line_and_ends_a_wait_for_mail() -> None:
    """A settlement that was asked for is made; a receive that nobody will read is not waited for."""
    recorder = Recorder()
    link = SdkLink(lambda: recorder, "results", None)
    first = asyncio.create_task(link.call(lambda sdk: sdk.work("first"), "cannot settle"))
    second = asyncio.create_task(link.call(lambda sdk: sdk.work("second"), "cannot settle"))
    await recorder.until_begun(1)
    receive = await link.wait_for(lambda sdk, _: sdk.work("receive"), "cannot receive")
    closing = asyncio.create_task(link.aclose())
    await asyncio.sleep(0)  # it has begun
    await recorder.allow(2)
    await asyncio.wait_for(closing, 10)
    assert [await first, await second] == ["first", "second"]
    assert recorder.begun == ["first", "second"]
    assert receive.cancelled
    with pytest.raises(BrokerError, match="was closed"):
        link.finish(receive)


class Breaks(Recorder):
    """A handler that breaks at the first call."""

    async def work(self, name: str) -> str:
        await super().work(name)
        raise ConnectionResetError


async def test_what_is_in_line_on_a_handler_that_breaks_is_done_with_the_next_one() -> None:
    """Only the call that was under way is told."""
    broken, good = Breaks(), Recorder()
    handlers: list[Recorder] = [broken, good]
    link = SdkLink(lambda: handlers.pop(0), "tasks", None)
    first = asyncio.create_task(link.call(lambda sdk: sdk.work("first"), "cannot send"))
    second = asyncio.create_task(link.call(lambda sdk: sdk.work("second"), "cannot send"))
    await broken.until_begun(1)
    await broken.allow(1)
    await good.allow(1)
    with pytest.raises(BrokerError):
        await first
    assert await second == "second"
    assert (broken.begun, good.begun) == (["first"], ["second"])
    await link.aclose()


async def test_a_link_without_tls_reads_no_certificates(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK would read all of certifi's, for each link, in the event loop."""
    queue = await bus.make()

    def read(*_: object, **__: object) -> None:
        raise AssertionError("certificates are read for a link that has no use for them")

    for name in ("load_verify_locations", "load_default_certs"):
        monkeypatch.setattr(ssl.SSLContext, name, read)
    sender, receiver = await asyncio.gather(bus.broker.sender(queue), bus.broker.receiver(queue))
    await sender.send(OutgoingMessage(b"hello", "1"))
    delivery = await receiver.receive(10)
    assert delivery is not None
    assert delivery.body == b"hello"
