"""The parts of a session, made in the order in which they need each other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchflow.environments.session import SessionEnvironment
from batchflow.environments.variables import SessionVariables
from batchflow.functions.code import CodeStore
from batchflow.protocol.values.classes import BundleClasses
from batchflow.protocol.values.received import ValueReader
from batchflow.sessions.agents_watch import AgentSource, AgentsWatch
from batchflow.sessions.broadcast_sender import BroadcastSender
from batchflow.sessions.cancellation import Cancellations
from batchflow.sessions.needs_watch import NeedsWatch
from batchflow.sessions.node_build import SessionMaker, build_wheel
from batchflow.sessions.presence import PresenceKeeper
from batchflow.sessions.receiving.checkpoint_store import CheckpointStore
from batchflow.sessions.receiving.dead_letters import DeadLetterHandler
from batchflow.sessions.receiving.receiver import ResultReceiver
from batchflow.sessions.records.expiry import ExpiryWatch
from batchflow.sessions.records.outcomes import Outcomes
from batchflow.sessions.records.tracker import rejected_result
from batchflow.sessions.scaling_watch import ScalingWatch
from batchflow.sessions.sender import TaskSender
from batchflow.sessions.submitter import Submitter
from batchflow.sessions.task_encoder import TaskEncoder
from batchflow.sessions.workflows.keeper import WorkflowKeeper
from batchflow.sessions.workflows.task_files import FilePasser
from batchflow.sessions.workflows.values import ValuePasser

if TYPE_CHECKING:
    from batchflow.environments.requirements import Requirements
    from batchflow.environments.sources import SourceDistribution
    from batchflow.files import Files
    from batchflow.pools.elastic.scaler import PoolScaler
    from batchflow.protocol.documents import DefaultPackages, JobDocument
    from batchflow.sessions.options import SessionOptions
    from batchflow.sessions.records.context import SessionContext
    from batchflow.sessions.records.tracker import Entry
    from batchflow.sessions.workflows.graph import Waiting
    from batchflow.sessions.workflows.inputs import InputOf


def _keep_workflows(
    keeper: WorkflowKeeper, submitter: Submitter, outcomes: Outcomes, receiver: ResultReceiver
) -> None:
    """Let what waits in a session outlive it, and go on with what waits since earlier ones."""
    submitter.dependents.keeper = keeper
    outcomes.on_accepted = keeper.sent
    outcomes.is_restored = lambda: keeper.restored
    outcomes.outlives, outcomes.owe = keeper.keeps, keeper.owe

    def hold(waiting: Waiting) -> None:
        submitter.dependents.hold(waiting)
        submitter.needs.add(waiting.entry, waiting.submission.requires)

    receiver.before_receiving = lambda: keeper.restore(hold, outcomes.tell_ended)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SessionParts:
    """A session without its public methods and its supervisor."""

    context: SessionContext
    outcomes: Outcomes
    checkpoint: CheckpointStore | None
    """None in a session that cannot be found again."""
    sender: TaskSender
    submitter: Submitter
    presence: PresenceKeeper
    receiver: ResultReceiver
    cancellations: Cancellations
    agents: AgentsWatch
    environment: SessionEnvironment
    variables: SessionVariables
    dead_letters: DeadLetterHandler
    open_session: SessionMaker
    """Makes another session of the pool."""
    acquired: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the mailbox and the job are the session's, and the pool's manifest was read."""

    @classmethod
    def create(
        cls,
        context: SessionContext,
        *,
        found_again: bool,
        options: SessionOptions,
        input_of: InputOf,
        task_of: Callable[[Entry], Any],
        agent_source: AgentSource,
        open_session: SessionMaker,
        scaler: PoolScaler,
    ) -> SessionParts:
        """Make the parts. Raises `ConfigurationError` for a timeout, a journal or a budget that is none.

        `found_again`: the user gave the session's name, by which a later session finds its mailbox.
        `input_of`, `task_of`: see `Submitter`.
        """
        classes = BundleClasses()
        reader = ValueReader(classes, unpickle=options.unpickle)
        variables = SessionVariables(options.variables, context.runtime, context.job_name, context.name)
        encoder = TaskEncoder(context, options, classes, reader, variables)
        checkpoint = CheckpointStore(context, options.journal) if found_again else None
        outcomes = Outcomes(context, None if checkpoint is None else checkpoint.record, reader.raised)
        sender = (
            TaskSender(context, outcomes, options.priority)
            if options.broadcast is None
            else BroadcastSender(context, outcomes, options.broadcast)
        )
        presence = PresenceKeeper(context, found_again=found_again)
        receiver = ResultReceiver(
            context,
            outcomes,
            checkpoint,
            reader,
            living_holder=presence.living_holder,
            gone_by=presence.gone_by,
            confirmed=lambda sequence: cancellations.confirmed(sequence),
            was_cancelled=lambda incarnation, sequence: cancellations.was_cancelled(incarnation, sequence),
            passed=lambda: sender.passed,
        )
        scaling = ScalingWatch(context, scaler)
        needs = NeedsWatch(
            context,
            outcomes,
            lambda entries, reason: cancellations.refuse(entries, reason, rejected_result),
        )
        agents = AgentsWatch(
            context,
            agent_source,
            refuse=lambda reason: cancellations.refuse(list(context.tracker), reason),
            scaling=scaling,
            needs=needs,
        )
        environment = SessionEnvironment(options.requirements)

        def wake() -> None:
            sender.wake()
            scaling.wake()

        code = CodeStore(context.runtime, lambda: agents.pythons or context.runtime.expected_pythons)
        dead_letters = DeadLetterHandler(context)
        expiries = ExpiryWatch(context.tracker, outcomes, dead_letters.look_for_tasks)
        submitter = Submitter(
            context,
            outcomes,
            wake,
            encoder,
            classes,
            code,
            environment,
            expiries=expiries,
            needs=needs,
            priority_of=sender.aside_priority,
            input_of=input_of,
            task_of=task_of,
            values=ValuePasser(context, outcomes, receiver.values.uses, lambda: agents.take_values),
            files=FilePasser(context, outcomes, lambda: agents.refuse_files),
        )
        receiver.state.is_waited_for = submitter.dependents.graph.waits_for
        if checkpoint is not None:
            checkpoint.record.beyond = lambda: sender.beyond
            keeper = WorkflowKeeper(
                context,
                checkpoint.record,
                receiver.state,
                expiries,
                forget_blob=receiver.values.uses.consumed,
            )
            _keep_workflows(keeper, submitter, outcomes, receiver)
        cancellations = Cancellations(
            context,
            outcomes,
            receiver.expect_message,
            submitter.dependents.graph.needed_by_none_but,
        )
        return cls(
            context=context,
            outcomes=outcomes,
            checkpoint=checkpoint,
            sender=sender,
            submitter=submitter,
            presence=presence,
            receiver=receiver,
            cancellations=cancellations,
            agents=agents,
            environment=environment,
            open_session=open_session,
            variables=variables,
            dead_letters=dead_letters,
        )

    async def prepare_environment(self) -> None:
        """Have the packages in the pool that the session's tasks require. A failure is the tasks' outcome."""
        runtime, notices, environment = self.context.runtime, self.context.notices, self.environment

        async def default() -> DefaultPackages:
            await self.acquired.wait()
            packages = environment.job_default
            return runtime.manifest.packages if packages is None else packages

        await environment.prepare(
            default, lambda: runtime.environments, runtime.ctl, notices.progress, self._build_on_node
        )
        notices.end_progress()
        if environment.failure is not None:
            notices.warn(environment.failure)

    async def change(self, files: Files, requirements: Requirements | None) -> None:
        """Let tasks that are submitted from now on have other files, and other packages if they are given.

        Raises `ConfigurationError`, `EnvironmentFailed`, `StorageError`; then both stay as they are.
        """
        runtime, notices = self.context.runtime, self.context.notices
        if requirements is None:
            await self.submitter.use(files)
            return
        try:
            bundle = await self.environment.bring(
                requirements, runtime.environments, runtime.ctl, notices.progress, self._build_on_node
            )
        finally:
            notices.end_progress()
        await self.submitter.use(files)
        self.environment.use(bundle)

    async def join_job(self, ensure: Callable[[str], Awaitable[JobDocument]]) -> None:
        """Make the job if there is none of that name, and bring the variables of tasks into the pool."""
        job = await ensure(self.context.job_name)
        self.environment.job_default = job.packages
        await self.variables.prepare(job.variables)

    def forget_variables(self) -> None:
        """Delete the variables in the background, unless a task that was sent may need them: a sweep does
        it then."""
        context, blob = self.context, self.variables.blob
        waiting = any(not entry.done for entry in context.tracker)
        if blob is not None and (context.lifetime.job_deleted or not waiting):
            context.delete_later(context.runtime.ctl, blob, "delete variables")

    async def _build_on_node(self, source: SourceDistribution) -> tuple[str, bytes]:
        return await build_wheel(self.open_session, self.context.job_name, source)
