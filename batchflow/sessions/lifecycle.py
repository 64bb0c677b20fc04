"""What a session does from its opening to its closing, in the order in which its parts need each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

import anyio

from batchflow.errors import BrokerError, ServiceError, TasksLeftWaiting
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from batchflow.files import Files
    from batchflow.pools.open_sessions import OpenSession
    from batchflow.protocol.documents import JobDocument
    from batchflow.sessions.parts import SessionParts

_CLOSING_SHARE: Final = 0.625
"""Share of the time for closing that sending, saving and completing may take; the rest is for the links."""


class SessionLifecycle:
    """Opens the parts of a session, runs them until it closes, and closes them."""

    def __init__(self, parts: SessionParts, name: str, close_timeout: Callable[[], float]) -> None:
        """`name`: of the session, in errors. `close_timeout`: returns the seconds, as they are set then."""
        self._parts = parts
        self._context = parts.context
        self._name = name
        self._given_timeout = close_timeout
        self._holds = False
        """Whether the mailbox, and the documents that go with it, have been this session's."""

    @property
    def _close_timeout(self) -> float:
        return self._given_timeout()

    async def run(
        self,
        registration: OpenSession,
        files: Files | None,
        ensure_job: Callable[[str], Coroutine[Any, Any, JobDocument]],
        *,
        ready: Callable[[], None],
        closing: asyncio.Event,
    ) -> None:
        """Open the parts, run them until the session closes, and close them.

        `ensure_job`: makes the job of that name. `ready` is called once the parts run. Raises `ServiceError`,
        `JobClosed`, and what the closing could not do: `BrokerError`, `TasksLeftWaiting`.
        """
        parts, context = self._parts, self._context
        background, open_sessions = context.background, context.runtime.sessions
        open_sessions.add(registration)
        agents = background.start(parts.agents.start(), "start agents")
        background.start(parts.prepare_environment(), "prepare the environment")
        try:
            await self._acquire(files, ensure_job)
            await self._work(agents, ready, closing)
        except Exception as error:
            context.lifetime.reason = str(error)
            raise
        finally:
            closing.set()
            parts.outcomes.end()
            context.notices.end()
            background.cancel()
            with anyio.CancelScope(shield=True), anyio.move_on_after(self._close_timeout / 4):
                await self._finish()
            open_sessions.discard(registration)
            await background.aclose()
        if not parts.receiver.is_saved:
            raise BrokerError(
                f"{self._name} closed before its checkpoint was saved: the next session of this name may "
                "deliver results again, marked as `repeated`, and may not wait for the newest tasks"
            )

    async def _acquire(
        self, files: Files | None, ensure_job: Callable[[str], Coroutine[Any, Any, JobDocument]]
    ) -> None:
        parts = self._parts
        try:
            async with task_group() as group:
                group.start_soon(parts.submitter.use, files)
                group.start_soon(parts.join_job, ensure_job)
                group.start_soon(parts.sender.open)
                group.start_soon(parts.presence.open)
                group.start_soon(parts.receiver.open)
                group.start_soon(parts.cancellations.open)
        except ServiceError:
            await self._context.runtime.refresh()  # raises PoolNotFound when that is why
            raise
        self._holds = True
        parts.acquired.set()

    async def _work(
        self, agents: asyncio.Task[None], ready: Callable[[], None], closing: asyncio.Event
    ) -> None:
        parts, receiver = self._parts, self._parts.receiver
        async with task_group() as services:
            for service in (
                parts.sender.run,
                receiver.keep,
                parts.cancellations.run,
                parts.dead_letters.run,
                parts.submitter.dependents.run,
                parts.submitter.expiries.run,
            ):
                services.start_soon(service)
            if (keeper := parts.submitter.dependents.keeper) is not None:
                services.start_soon(keeper.run)
            services.start_soon(receiver.run)
            services.start_soon(receiver.settle, self._close_timeout)
            services.start_soon(parts.presence.run, lambda: receiver.held)
            services.start_soon(parts.agents.run, agents)
            ready()
            await closing.wait()
            with anyio.move_on_after(self._close_timeout * _CLOSING_SHARE):
                with anyio.move_on_after(self._close_timeout / 2):
                    await self._drain(agents)
                await receiver.conclude(self._close_timeout)
            services.cancel_scope.cancel()
        self._tell_unsent()

    async def _drain(self, agents: asyncio.Task[None]) -> None:
        parts, tracker = self._parts, self._context.tracker
        await parts.submitter.dependents.drain()
        parts.submitter.dependents.stop()
        await parts.sender.drain()
        if parts.submitter.dependents.keeper is not None:
            await parts.submitter.dependents.keeper.close()
        if parts.checkpoint is not None and parts.sender.passed:
            await parts.checkpoint.until_loaded()  # saved, it tells of these tasks
        if len(tracker) - tracker.waiting:
            await parts.agents.before_leaving(agents)

    def _tell_unsent(self) -> None:
        """Raise `BrokerError` or `TasksLeftWaiting` for tasks that the broker does not have."""
        tracker = self._context.tracker
        if left := tracker.sending:
            raise BrokerError(f"{self._name} closed before the broker had accepted {left} of its tasks")
        keeper = self._parts.submitter.dependents.keeper
        if left := tracker.waiting if keeper is None else keeper.unsaved:
            raise TasksLeftWaiting(
                f"{self._name} closed while {left} of its tasks waited for others: these never run. Await "
                "them, or cancel them, before the session closes"
            )

    async def _finish(self) -> None:
        """Complete what was delivered, end the background work, and close the links."""
        parts = self._parts
        await parts.receiver.flush_settlements(self._close_timeout, last=True)
        if parts.checkpoint is not None:
            parts.checkpoint.close()
        if parts.submitter.dependents.keeper is not None:
            parts.submitter.dependents.keeper.delete_documents()
        self._context.arguments.delete()
        parts.receiver.values.let_go()
        parts.forget_variables()
        await self._context.background.finish()
        async with task_group() as group:
            group.start_soon(parts.sender.aclose)
            group.start_soon(parts.receiver.aclose)
            if self._holds:
                group.start_soon(parts.presence.release)
                group.start_soon(parts.cancellations.release)
