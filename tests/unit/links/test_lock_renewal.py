"""The shell that keeps locks."""

from __future__ import annotations

import asyncio

import anyio

from node_agent.links.lock_renewal import LockRenewal


async def test_what_was_settled_meanwhile_is_not_renewed() -> None:
    """Two locks are due at once; while the first is renewed, the second one's message is completed.

    Its agent has forgotten the message by then: asking for the renewal all the same ended the agent.
    """
    asked: list[int] = []
    done = asyncio.Event()

    async def renew(delivery: int) -> None:
        asked.append(delivery)
        if delivery == 1:
            renewals.remove(2)
        await anyio.lowlevel.checkpoint()
        done.set()

    renewals = LockRenewal(0.3, renew=renew, lost=lambda delivery: None, clock=lambda: now)
    now = 0.0
    renewals.add(1)
    renewals.add(2)
    now = 0.1
    async with anyio.create_task_group() as group:
        group.start_soon(renewals.run)
        await done.wait()
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert asked == [1]
