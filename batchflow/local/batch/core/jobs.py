"""Jobs and their tasks: a core without clock, socket or process.

Users' requests come in as method calls with the time. What must be done is added to the context's actions. A
request that the service would refuse raises `Refused` and changes nothing.

Jobs    active -> terminating -> completed; active -> disabling -> disabled -> active; any -> deleting ->
        (gone). The states in between last while the job has runs.
Tasks   active -> preparing -> running -> completed; back to active by retry, requeue and reactivation.

Invariants: a task is active if and only if it waits in its job's queue; it has at most one run, and a task
that is preparing or running has exactly one; a task that its user ended or deleted may still have the run
that ends.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from batchflow.local.batch.core.actions import Discard, RunTask
from batchflow.local.batch.core.context import AccountContext, id_key
from batchflow.local.batch.core.entities import (
    ENDED_BY_USER,
    OUT_OF_TIME,
    BatchJobSpec,
    BatchTaskSpec,
    Execution,
    JobRecord,
    JobState,
    NodeRecord,
    Outcome,
    TaskRecord,
    TaskRun,
    TaskState,
)
from batchflow.local.batch.core.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENDING: frozenset[JobState] = frozenset({"terminating", "completed", "deleting"})
_REFUSALS: dict[JobState, str] = {
    "terminating": "JobBeingTerminated",
    "completed": "JobCompleted",
    "deleting": "JobBeingDeleted",
    "disabled": "JobDisabled",
    "disabling": "JobDisabled",
}


class Jobs:
    """The jobs of one account."""

    def __init__(self, context: AccountContext) -> None:
        self.by_id: dict[str, JobRecord] = {}
        self._context = context

    def deadlines(self) -> Iterator[float]:
        """Return the times at which a run or a job runs out of time."""
        for run in self._context.runs.values():
            if run.deadline is not None:
                yield run.deadline
        for job in self.by_id.values():
            if job.spec.max_seconds is not None and job.state not in _ENDING:
                yield job.stamp.created + job.spec.max_seconds

    def tick(self, now: float) -> None:
        """End the runs and jobs that ran out of time."""
        for run in self._context.runs.values():
            if run.deadline is not None and run.deadline <= now:
                run.deadline = None
                self._context.stop(run, "complete", OUT_OF_TIME)
        for job in list(self.by_id.values()):
            self._context.tick(f"the job {job.spec.id!r}", partial(self._tick, job, now), now)

    def _tick(self, job: JobRecord, now: float) -> None:
        limit = job.spec.max_seconds
        if limit is not None and job.state not in _ENDING and job.stamp.created + limit <= now:
            self._terminate(job, "MaxWallClockTimeExpiry", now)

    def active_jobs(self) -> int:
        """Count the jobs that enter the account's quota: all that are not completed."""
        return sum(job.state != "completed" for job in self.by_id.values())

    def counts_of_pool(self, pool_key: str) -> dict[str, int]:
        """Count the tasks of all jobs of a pool, by state."""
        totals = dict.fromkeys(("active", "running", "completed", "succeeded", "failed"), 0)
        for job in self.by_id.values():
            if id_key(job.spec.pool_id) == pool_key:
                for state, count in counts(job, slots=False).items():
                    totals[state] += count
        return totals

    # What users ask of jobs

    def job(self, job_id: str) -> JobRecord:
        """Return a job. Raises Refused: JobNotFound."""
        job = self.by_id.get(id_key(job_id))
        if job is None:
            raise Refused("JobNotFound", JobId=job_id)
        return job

    def create_job(self, spec: BatchJobSpec, now: float) -> JobRecord:
        """Make a job; its pool need not exist yet."""
        if (there := self.by_id.get(id_key(spec.id))) is not None:
            raise _refusal(there) if there.state == "deleting" else Refused("JobExists", JobId=spec.id)
        job = JobRecord(spec, self._context.stamp(now), state_since=now)
        self.by_id[id_key(spec.id)] = job
        self._end_when_done(job, now)
        return job

    def change_job(self, job: JobRecord, spec: BatchJobSpec, now: float) -> None:
        """Give a job another specification."""
        _check_not_ending(job)
        if id_key(spec.pool_id) != id_key(job.spec.pool_id) and job.state != "disabled":
            reason = "the pool can be changed only while the job is disabled"
            raise Refused("OperationInvalidForCurrentState", JobId=job.spec.id, Reason=reason)
        job.spec = spec
        self._context.touch(job.stamp, now)
        self._end_when_done(job, now)

    def terminate_job(self, job: JobRecord, reason: str, now: float) -> None:
        """End the job's running tasks, then the job; tasks that wait stay as they are."""
        _check_not_ending(job)
        self._terminate(job, reason, now)

    def disable_job(
        self, job: JobRecord, option: Literal["requeue", "terminate", "wait"], now: float
    ) -> None:
        """Start none of the job's tasks, and deal with the running ones as `option` says."""
        if job.state != "active":
            raise _refusal(job)
        self._change_state(job, "disabling", now)
        for run in self._runs_of(job):
            if option != "wait":
                fate: Literal["requeue", "complete"] = "requeue" if option == "requeue" else "complete"
                self._context.stop(run, fate, ENDED_BY_USER)
        self._settle(job, now)

    def enable_job(self, job: JobRecord, now: float) -> None:
        """Start tasks of a disabled job again."""
        if job.state not in ("disabled", "disabling"):
            raise _refusal(job)
        self._change_state(job, "active", now)
        self._end_when_done(job, now)

    def delete_job(self, job: JobRecord, now: float) -> None:
        """End the job's running tasks, then remove the job, its tasks and its files."""
        if job.state == "deleting":
            raise _refusal(job)
        self._change_state(job, "deleting", now)
        self._stop_all(job)
        self._settle(job, now)

    # What users ask of tasks

    def task(self, job: JobRecord, task_id: str) -> TaskRecord:
        """Return a task. Raises Refused: TaskNotFound."""
        task = job.tasks.get(id_key(task_id))
        if task is None:
            raise Refused("TaskNotFound", JobId=job.spec.id, TaskId=task_id)
        return task

    def create_task(self, job: JobRecord, spec: BatchTaskSpec, now: float) -> TaskRecord:
        """Add a task to the end of the job's queue."""
        _check_not_ending(job)
        if id_key(spec.id) in job.tasks:
            raise Refused("TaskExists", JobId=job.spec.id, TaskId=spec.id)
        task = TaskRecord(spec, job, self._context.stamp(now), state_since=now)
        job.tasks[id_key(spec.id)] = job.waiting[id_key(spec.id)] = task
        return task

    def change_task(self, task: TaskRecord, spec: BatchTaskSpec, now: float) -> None:
        """Give a task other constraints."""
        if task.state == "completed":
            raise Refused("TaskCompleted", TaskId=task.spec.id)
        task.spec = spec
        self._context.touch(task.stamp, now)

    def delete_task(self, task: TaskRecord, now: float) -> None:
        """Remove a task, its processes and its files."""
        job = task.job
        del job.tasks[id_key(task.spec.id)]
        job.waiting.pop(id_key(task.spec.id), None)
        if task.run is not None:
            self._context.stop(self._context.runs[task.run], "complete", ENDED_BY_USER)
        self._context.actions.append(Discard(job.spec.id, task.spec.id))
        self._end_when_done(job, now)

    def terminate_task(self, task: TaskRecord, now: float) -> None:
        """Complete a task as ended by its user, at once; its processes end soon after."""
        if task.state == "completed":
            raise Refused("TaskCompleted", TaskId=task.spec.id)
        task.job.waiting.pop(id_key(task.spec.id), None)
        if task.run is not None:
            self._context.stop(self._context.runs[task.run], "complete", ENDED_BY_USER)
        self._context.touch(task.stamp, now)
        self._complete(task, Outcome(None, ENDED_BY_USER), now)

    def reactivate_task(self, task: TaskRecord, now: float) -> None:
        """Let a task that completed without success run again, its retries counted anew."""
        if task.state != "completed":
            raise Refused("TaskNotCompleted", TaskId=task.spec.id)
        outcome = task.execution.outcome
        if outcome is not None and outcome.succeeded:
            raise Refused("TaskSucceeded", TaskId=task.spec.id)
        _check_not_ending(task.job)
        if task.run is not None:
            reason = "the task's processes are still ending"
            raise Refused("OperationInvalidForCurrentState", TaskId=task.spec.id, Reason=reason)
        past = task.execution
        task.execution = Execution(requeues=past.requeues, last_requeue=past.last_requeue)
        self._context.touch(task.stamp, now)
        self._wait(task, now)

    # Runs

    def assign(self, task: TaskRecord, node: NodeRecord, now: float) -> None:
        """Give a waiting task a node to run on."""
        del task.job.waiting[id_key(task.spec.id)]
        run = TaskRun(self._context.next_serial(), task, node)
        if task.spec.command.max_seconds is not None:
            run.deadline = now + task.spec.command.max_seconds
        self._context.runs[run.id] = node.runs[run.id] = run
        task.job.runs.add(run.id)
        task.run, task.place = run.id, node
        task.execution.started = now
        _set_task_state(task, "preparing", now)
        node.note(task)
        self._context.actions.append(RunTask(run))

    def launched(self, run: TaskRun, now: float) -> None:
        """Record that a task's command has been started."""
        if run.task.state == "preparing":
            _set_task_state(run.task, "running", now)

    def ended(self, run: TaskRun, outcome: Outcome, now: float) -> None:
        """Record that all processes of a run are gone."""
        task, node, job = run.task, run.node, run.task.job
        del self._context.runs[run.id], node.runs[run.id]
        job.runs.discard(run.id)
        task.run = None
        node.tasks_run += 1
        if task.state != "completed" and job.tasks.get(id_key(task.spec.id)) is task:
            self._conclude(run, outcome, now)
        final = task.execution.outcome
        node.tasks_succeeded += task.state == "completed" and final is not None and final.succeeded
        self._settle(job, now)

    def _conclude(self, run: TaskRun, outcome: Outcome, now: float) -> None:
        task, execution = run.task, run.task.execution
        if run.stopped_for is not None and run.fate == "requeue":
            execution.requeues, execution.last_requeue = execution.requeues + 1, now
            self._wait(task, now)
        elif run.stopped_for is not None:
            self._complete(task, replace(outcome, failure=run.stopped_for), now)
        elif outcome.is_retriable(task.spec.command.max_retries, execution.retries):
            execution.retries, execution.last_retry = execution.retries + 1, now
            self._wait(task, now, first=True)
        else:
            self._complete(task, outcome.judged(), now)

    def _complete(self, task: TaskRecord, outcome: Outcome, now: float) -> None:
        task.execution.ended, task.execution.outcome = now, outcome
        _set_task_state(task, "completed", now)
        self._end_when_done(task.job, now)

    def _wait(self, task: TaskRecord, now: float, *, first: bool = False) -> None:
        job, key = task.job, id_key(task.spec.id)
        _set_task_state(task, "active", now)
        task.execution.started = None
        job.waiting = {key: task} | job.waiting if first else job.waiting | {key: task}

    # Decisions about jobs

    def _terminate(self, job: JobRecord, reason: str, now: float) -> None:
        job.reason = reason
        self._change_state(job, "terminating", now)
        self._stop_all(job)
        self._settle(job, now)

    def _end_when_done(self, job: JobRecord, now: float) -> None:
        """End a job whose tasks are done. An empty job counts as done, as the service documents it."""
        if job.state != "active" or not job.spec.ends_with_tasks:
            return
        if all(task.state == "completed" for task in job.tasks.values()):
            self._terminate(job, "AllTasksCompleted", now)

    def _settle(self, job: JobRecord, now: float) -> None:
        """Come to the end of what had to wait for the job's runs."""
        if job.runs:
            return
        match job.state:
            case "terminating":
                job.ended = now
                _set_job_state(job, "completed", now)
            case "disabling":
                _set_job_state(job, "disabled", now)
            case "deleting":
                self.by_id.pop(id_key(job.spec.id), None)
                self._context.actions.append(Discard(job.spec.id, None))

    def _change_state(self, job: JobRecord, state: JobState, now: float) -> None:
        _set_job_state(job, state, now)
        self._context.touch(job.stamp, now)

    def _stop_all(self, job: JobRecord) -> None:
        for run in self._runs_of(job):
            self._context.stop(run, "complete", ENDED_BY_USER)

    def _runs_of(self, job: JobRecord) -> list[TaskRun]:
        return [self._context.runs[run_id] for run_id in sorted(job.runs)]


def counts(job: JobRecord, *, slots: bool) -> dict[str, int]:
    """Count a job's tasks, or their slots, by state."""
    totals = dict.fromkeys(("active", "running", "completed", "succeeded", "failed"), 0)
    for task in job.tasks.values():
        weight = task.spec.slots if slots else 1
        totals["running" if task.state == "preparing" else task.state] += weight
        if task.state == "completed":
            outcome = task.execution.outcome
            totals["succeeded" if outcome is not None and outcome.succeeded else "failed"] += weight
    return totals


def _check_not_ending(job: JobRecord) -> None:
    if job.state in _ENDING:
        raise _refusal(job)


def _refusal(job: JobRecord) -> Refused:
    return Refused(_REFUSALS.get(job.state, "JobNotActive"), JobId=job.spec.id, JobState=job.state)


def _set_job_state(job: JobRecord, state: JobState, now: float) -> None:
    job.previous = (job.state, job.state_since)
    job.state, job.state_since = state, now


def _set_task_state(task: TaskRecord, state: TaskState, now: float) -> None:
    task.previous = (task.state, task.state_since)
    task.state, task.state_since = state, now
