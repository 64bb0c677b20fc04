"""What messages cost with the Service Bus SDK and nothing else: no batchflow, no child, no task.

Usage: python sdk_echo.py worker              sends back what comes, into a mailbox, and completes it
       python sdk_echo.py client NUMBER       prints as JSON how many seconds each of so many messages took,
                                              and all of them together of this process's CPU time
       python sdk_echo.py flood NUMBER SIZE   the same of so many messages of so many bytes all together

The connection string is in `SDK_ECHO_CONNECTION`; the queues are `there` and `back`.
"""

import asyncio
import json
import os
import sys
import time
import uuid
from contextlib import AsyncExitStack

from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver

WAIT = 5.0
"""Seconds of one receive."""


async def worker(client: ServiceBusClient) -> None:
    async with AsyncExitStack() as stack:
        receiver, sender = await asyncio.gather(
            stack.enter_async_context(client.get_queue_receiver("there")),
            stack.enter_async_context(client.get_queue_sender("back")),
        )
        print("ready", flush=True)
        while True:
            for message in await receiver.receive_messages(max_message_count=1, max_wait_time=WAIT):
                body, name = b"".join(message.body), uuid.uuid4().hex
                await sender.send_messages(ServiceBusMessage(body, message_id=name, session_id="mailbox"))
                await receiver.complete_message(message)


async def client(client: ServiceBusClient, number: int, size: int = 0) -> None:
    """One after another; `size`: all at once, of so many bytes."""
    waiting: dict[bytes, asyncio.Future[None]] = {}
    taken = []
    async with (
        client.get_queue_sender("there") as sender,
        client.get_queue_receiver("back", session_id="mailbox", prefetch_count=50) as mailbox,
    ):
        reading = asyncio.create_task(_read(mailbox, waiting))
        reading.add_done_callback(lambda _: os._exit(1))  # it never ends by itself
        begun, used = time.perf_counter(), time.process_time()
        for count in range(number):
            body = b"%06d" % count + b"x" * (size or 400)
            echoed = waiting[body] = asyncio.get_running_loop().create_future()
            started = time.perf_counter()
            await sender.send_messages(ServiceBusMessage(body, message_id=uuid.uuid4().hex))
            if not size:
                await echoed
                taken.append(time.perf_counter() - started)
        if size:
            await asyncio.gather(*waiting.values())
            taken.append(time.perf_counter() - begun)
        print(json.dumps({"taken": taken, "cpu": time.process_time() - used}), flush=True)
        os._exit(0)


async def _read(mailbox: ServiceBusReceiver, waiting: dict[bytes, asyncio.Future[None]]) -> None:
    while True:
        for message in await mailbox.receive_messages(max_message_count=1, max_wait_time=WAIT):
            waiting[b"".join(message.body)].set_result(None)
            await mailbox.complete_message(message)


async def main() -> None:
    connection = os.environ["SDK_ECHO_CONNECTION"]
    async with ServiceBusClient.from_connection_string(connection, retry_total=0) as service:
        await (worker(service) if sys.argv[1] == "worker" else client(service, *map(int, sys.argv[2:])))


if sys.argv[1] != "worker":
    import uvloop

    uvloop.run(main())
else:
    asyncio.run(main())
