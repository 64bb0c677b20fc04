"""Jobs, tasks and their files in the local Batch service, through the unmodified SDK."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.batch import models
from azure.core.exceptions import AzureError, HttpResponseError, ResourceExistsError, ResourceNotFoundError

from batchflow.local.batch.routes import BatchRequest, BatchResponse, DataPlane
from tests.support.batch_sdk import code

LISTED = {
    "AZ_BATCH_ACCOUNT_NAME",
    "AZ_BATCH_ACCOUNT_URL",
    "AZ_BATCH_JOB_ID",
    "AZ_BATCH_JOB_PREP_DIR",
    "AZ_BATCH_JOB_PREP_WORKING_DIR",
    "AZ_BATCH_NODE_ID",
    "AZ_BATCH_NODE_IS_DEDICATED",
    "AZ_BATCH_NODE_MOUNTS_DIR",
    "AZ_BATCH_NODE_ROOT_DIR",
    "AZ_BATCH_NODE_SHARED_DIR",
    "AZ_BATCH_NODE_STARTUP_DIR",
    "AZ_BATCH_POOL_ID",
    "AZ_BATCH_TASK_DIR",
    "AZ_BATCH_TASK_ID",
    "AZ_BATCH_TASK_WORKING_DIR",
}


@pytest.fixture
async def ready(batch: Any) -> Any:
    """A pool of one node, and a job."""
    await batch.pool()
    await batch.job()
    return batch


async def test_task_has_the_environment_of_azure(ready: Any) -> None:
    """A task sees the AZ_BATCH variables, its settings and those of its job, and nothing of the server's."""
    settings = [models.EnvironmentSetting(name="MINE", value="task"), models.EnvironmentSetting(name="EMPTY")]
    common = [
        models.EnvironmentSetting(name="MINE", value="job"),
        models.EnvironmentSetting(name="ALL", value="1"),
    ]
    await ready.job("other", common_environment_settings=common)
    task = models.BatchTaskCreateOptions(id="task", command_line="env -0", environment_settings=settings)
    await ready.client.create_task("other", task)
    await ready.until_task("task", "completed", job_id="other")
    output = await ready.output("task", job_id="other")
    seen = dict(line.split("=", 1) for line in output.strip("\0").split("\0"))
    assert {name for name in seen if name.startswith("AZ_BATCH")} == LISTED
    python = {"LC_CTYPE"}  # set by the interpreter itself where there is no locale
    events = {"BATCHFLOW_SCHEDULED_EVENTS"}  # the address that is 169.254.169.254 on Azure
    given = {"PATH", "LANG", "HOME", "HOSTNAME", "MINE", "ALL", "EMPTY"}
    assert seen.keys() - LISTED - python - events <= given
    assert (seen["MINE"], seen["ALL"], seen["EMPTY"]) == ("task", "1", "")
    assert seen["AZ_BATCH_ACCOUNT_URL"] == ready.server.url + "/"
    root = Path(seen["AZ_BATCH_NODE_ROOT_DIR"])
    assert Path(seen["AZ_BATCH_TASK_DIR"]) == root / "workitems" / "other" / "job-1" / "task"
    assert seen["HOME"] == seen["AZ_BATCH_TASK_WORKING_DIR"] == f"{seen['AZ_BATCH_TASK_DIR']}/wd"


async def test_tasks_run_in_their_directory_without_a_shell(ready: Any) -> None:
    """The working directory is wd, quotes are split as a shell would, and nothing else of a shell happens."""
    await ready.run("where", "pwd")
    assert (await ready.output("where")).strip().endswith("/workitems/job/job-1/where/wd")
    await ready.run("words", "printf '%s|' 'a b' $HOME * ;")
    assert await ready.output("words") == "a b|$HOME|*|;|"


async def test_nodes_have_host_names_of_their_own(batch: Any) -> None:
    """Every node has its own host name, in the kernel where it allows that, and in the environment."""
    await batch.pool(nodes=2)
    await batch.job()
    code = "import os, socket; print(socket.gethostname(), os.environ['HOSTNAME'])"
    tasks = [
        models.BatchTaskCreateOptions(id=f"task-{number}", command_line=f'{sys.executable} -c "{code}"')
        for number in range(2)
    ]
    await batch.client.create_task_collection("job", models.BatchTaskGroup(task_values=tasks))
    for number in range(2):
        await batch.until_task(f"task-{number}", "completed")
    pairs = [(await batch.output(f"task-{number}")).split() for number in range(2)]
    assert len({variable for _, variable in pairs}) == 2
    assert all(variable.endswith(("000000", "000001")) for _, variable in pairs)
    own = Path("/proc/sys/kernel/hostname").read_text().strip()
    if any(name == own for name, _ in pairs):
        pytest.skip("the kernel refuses host names of their own")
    assert all(name == variable for name, variable in pairs)


async def test_exit_codes_are_told(ready: Any) -> None:
    """A zero exit is a success, another one a failure with its code, a signal 128 and its number."""
    task = await ready.run("good", "/bin/true")
    assert (task.execution_info.result, task.execution_info.exit_code) == ("success", 0)
    task = await ready.run("bad", "/bin/sh -c 'echo oops >&2; exit 3'")
    assert (task.execution_info.result, task.execution_info.exit_code) == ("failure", 3)
    assert (task.execution_info.failure_info.category, task.execution_info.failure_info.code) == (
        "usererror",
        "FailureExitCode",
    )
    assert await ready.output("bad", "stderr.txt") == "oops\n"
    task = await ready.run("killed", "/bin/sh -c 'kill -9 $$'")
    assert task.execution_info.exit_code == 137


@pytest.mark.parametrize(
    ("command", "failure"),
    [
        ("no-such-program --flag", "CommandProgramNotFound"),
        ("/etc/hostname", "CommandLaunchFailed"),
        ("'unbalanced", "CommandLaunchFailed"),
        ("echo nul\0byte", "CommandLaunchFailed"),
    ],
)
async def test_commands_that_cannot_start(ready: Any, command: str, failure: str) -> None:
    """A command that cannot be started completes its task with the reason: no retry, no exit code."""
    constraints = models.BatchTaskConstraints(max_task_retry_count=3)
    task = await ready.run("task", command, constraints=constraints)
    info = task.execution_info
    assert (info.result, info.failure_info.code, info.exit_code, info.retry_count) == (
        "failure",
        failure,
        None,
        0,
    )
    assert await ready.node_states() == ["idle"]


async def test_tasks_are_retried_as_allowed(ready: Any) -> None:
    """A task whose command fails runs again, at most as often as allowed."""
    command = "/bin/sh -c 'echo x >> tries; test $(wc -l < tries) -eq 3'"
    constraints = models.BatchTaskConstraints(max_task_retry_count=5)
    task = await ready.run("task", command, constraints=constraints)
    assert (task.execution_info.exit_code, task.execution_info.retry_count) == (0, 2)
    constraints = models.BatchTaskConstraints(max_task_retry_count=1)
    task = await ready.run("other", "/bin/false", constraints=constraints)
    assert (task.execution_info.exit_code, task.execution_info.retry_count) == (1, 1)


async def test_tasks_run_out_of_time(ready: Any) -> None:
    """A task that exceeds its wall clock time is ended, and says so."""
    constraints = models.BatchTaskConstraints(max_wall_clock_time=timedelta(seconds=0.2))
    task = await ready.run("task", "sleep 60", constraints=constraints)
    assert task.execution_info.failure_info.code == "TaskEnded"
    assert "wall clock" in task.execution_info.failure_info.message


async def test_resource_files_are_downloaded(ready: Any, site: Any) -> None:
    """Files come with their path and mode before the command runs, whole containers by prefix."""
    site.files |= {
        "/c/tool": b"#!/bin/sh\ncat data/in.txt tree/sub/deep.txt\n",
        "/c/in put.txt": b"in\n",
        "/c/sub/deep.txt": b"deep\n",
    }
    files = [
        models.ResourceFile(http_url=f"{site.url}/c/tool?sig=good", file_path="tool", file_mode="0755"),
        models.ResourceFile(http_url=f"{site.url}/c/in%20put.txt?sig=good", file_path="data/in.txt"),
        models.ResourceFile(
            storage_container_url=f"{site.url}/c?sig=good", blob_prefix="sub/", file_path="tree"
        ),
    ]
    task = await ready.run("task", "./tool", resource_files=files)
    assert task.execution_info.exit_code == 0
    assert await ready.output("task") == "in\ndeep\n"
    properties = await ready.client.get_task_file_properties("job", "task", "wd/data/in.txt")
    assert stat.S_IMODE(int(properties.file_mode, 8)) == 0o770


@pytest.mark.parametrize(
    ("target", "failure"),
    [
        ("/c/none?sig=good", "BlobNotFound"),
        ("/c/file?sig=bad", "BlobAccessDenied"),
        ("", "BlobDownloadMiscError"),
    ],
)
async def test_files_that_cannot_be_had(ready: Any, site: Any, target: str, failure: str) -> None:
    """A missing file completes its task with the reason; no signature appears; the node goes on."""
    site.files["/c/file"] = b""
    url = f"{site.url}{target}" if target else "http://127.0.0.1:9/c/file?sig=secret"
    task = await ready.run(
        "task", "hostname", resource_files=[models.ResourceFile(http_url=url, file_path="file")]
    )
    assert task.execution_info.failure_info.code == failure
    assert "sig" not in str(task.execution_info.failure_info.details)
    assert (await ready.run("next", "hostname")).execution_info.exit_code == 0


async def test_downloads_are_tried_again(ready: Any, site: Any) -> None:
    """A storage that is busy for a moment does not fail the task."""
    site.files["/c/file"] = b"content"
    site.failures["/c/file"] = [503, 500]
    file = models.ResourceFile(http_url=f"{site.url}/c/file?sig=good", file_path="file")
    await ready.run("task", "cat file", resource_files=[file])
    assert await ready.output("task") == "content"


@pytest.mark.parametrize("path", ["/etc/x", "../../x", ""])
async def test_resource_files_stay_in_their_directory(ready: Any, path: str) -> None:
    """A path that leads out of the task's directory is refused."""
    file = models.ResourceFile(http_url="http://127.0.0.1/x", file_path=path)
    with pytest.raises(HttpResponseError) as raised:
        await ready.task("task", "hostname", resource_files=[file])
    assert raised.value.status_code == 400


async def test_slots_limit_what_runs_at_once(batch: Any) -> None:
    """Tasks take the slots that they require, and wait when there are not enough."""
    await batch.pool(task_slots_per_node=3)
    await batch.job()
    for name, slots in (("two", 2), ("big", 2), ("one", 1)):
        await batch.task(name, "sleep 60", required_slots=slots)
    await batch.until_task("two", "running")
    await batch.until_task("one", "running")
    assert await batch.task_state("big") == "active"
    counts = await batch.client.get_job_task_counts("job")
    assert (counts.task_counts.running, counts.task_counts.active) == (2, 1)
    assert (counts.task_slot_counts.running, counts.task_slot_counts.active) == (3, 2)
    node = await anext(aiter(batch.client.list_nodes("pool")))
    assert (node.running_tasks_count, node.running_task_slots_count) == (2, 3)


async def test_collections_tell_of_each_task(ready: Any) -> None:
    """A collection of tasks is answered one by one; what is refused does not harm the others."""
    await ready.task("exists", "hostname")
    tasks = [
        models.BatchTaskCreateOptions(id=name, command_line="hostname")
        for name in ("exists", "bad id", "good")
    ]
    group = models.BatchTaskGroup(task_values=tasks)
    result = await ready.client.create_task_collection("job", group)
    told = {
        item.task_id: (item.status, item.error.code if item.error else None) for item in result.result_values
    }
    assert told == {
        "exists": ("clienterror", "TaskExists"),
        "bad id": ("clienterror", "InvalidPropertyValue"),
        "good": ("success", None),
    }


async def test_many_tasks_are_paged(batch: Any) -> None:
    """More tasks than one request takes arrive, and are listed page by page."""
    await batch.job()
    tasks = [models.BatchTaskCreateOptions(id=f"task-{n}", command_line="hostname") for n in range(250)]
    await batch.client.create_tasks("job", tasks)
    pages = batch.client.list_tasks("job", max_results=100).by_page()
    sizes = [len([task async for task in page]) async for page in pages]
    assert sizes == [100, 100, 50]


async def test_terminated_task_is_complete_and_its_tree_dead(ready: Any) -> None:
    """Terminate completes the task at once; its processes end, also those in sessions of their own."""
    script = "setsid sleep 4321 & echo $!; (setsid sh -c 'sleep 4322 & wait' &) ; wait"
    await ready.task("task", f'/bin/sh -c "{script}"')
    await ready.until_task("task", "running")
    await ready.until(lambda: _living("sleep\x00432"), 2)
    await ready.client.terminate_task("job", "task")
    task = await ready.client.get_task("job", "task")
    assert (task.state, task.execution_info.failure_info.code) == ("completed", "TaskEnded")
    await ready.until(lambda: _living("sleep\x00432"), 0)
    with pytest.raises(ResourceExistsError) as raised:
        await ready.client.terminate_task("job", "task")
    assert code(raised) == "TaskCompleted"
    await ready.until(ready.node_states, ["idle"])


async def _living(marker: str) -> int:
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += path.read_text().startswith(marker)
        except OSError:
            continue
    return found


async def test_stubborn_task_is_killed_after_its_grace(ready: Any) -> None:
    """A task that ignores SIGTERM is killed when its grace is over; one that heeds it may end by itself."""
    await ready.task("deaf", "/bin/sh -c 'trap : TERM; echo up; while :; do sleep 0.05; done'")
    await ready.until(lambda: _has_output(ready, "deaf"), True)
    await ready.client.terminate_task("job", "deaf")
    await ready.task(
        "kind", "/bin/sh -c 'trap \"echo bye; exit 0\" TERM; echo up; while :; do sleep 0.05; done'"
    )
    await ready.until(lambda: _has_output(ready, "kind"), True)
    await ready.client.terminate_task("job", "kind")
    await ready.until(ready.node_states, ["idle"])
    assert await ready.output("kind") == "up\nbye\n"


async def _has_output(batch: Any, task_id: str) -> bool:
    try:
        return bool(await batch.output(task_id))
    except HttpResponseError:
        return False


async def test_daemons_do_not_outlive_their_task(ready: Any) -> None:
    """What a task leaves running in the background is killed when its command ends."""
    await ready.run("task", "/bin/sh -c 'setsid sleep 5321 & exit 0'")
    assert await _living("sleep\x005321") == 0


async def test_reactivated_task_runs_again(ready: Any) -> None:
    """A task that failed can run again; one that succeeded cannot."""
    await ready.run("task", "/bin/sh -c 'test -e $AZ_BATCH_NODE_SHARED_DIR/mark'")
    node = await anext(aiter(ready.client.list_nodes("pool")))
    directory = next(path for path in ready.root.iterdir() if (path / "shared").is_dir())
    (directory / "shared" / "mark").touch()
    await ready.client.reactivate_task("job", "task")
    await ready.until_task("task", "completed")
    with pytest.raises(ResourceExistsError) as raised:
        await ready.client.reactivate_task("job", "task")
    assert code(raised) == "TaskSucceeded"
    assert (await ready.client.get_node("pool", node.id)).total_tasks_run == 2


async def test_deleted_task_is_gone_with_its_files(ready: Any) -> None:
    """A deleted task is not found, nor are its processes and files; its id can be used again."""
    await ready.task("task", "sleep 6321")
    await ready.until_task("task", "running")
    await ready.client.delete_task("job", "task")
    with pytest.raises(ResourceNotFoundError) as raised:
        await ready.client.get_task("job", "task")
    assert code(raised) == "TaskNotFound"
    await ready.until(lambda: _living("sleep\x006321"), 0)
    task = await ready.run("task", "ls")
    assert (task.execution_info.exit_code, await ready.output("task")) == (0, "")


async def test_job_ends_when_all_its_tasks_have(ready: Any) -> None:
    """A job told to terminate with its tasks does so, says why, and takes no more tasks."""
    await ready.task("task", "hostname")
    pool_info = models.BatchPoolInfo(pool_id="pool")
    update = models.BatchJobUpdateOptions(pool_info=pool_info, all_tasks_complete_mode="terminatejob")
    await ready.client.update_job("job", update)
    await ready.until(lambda: _job_state(ready), "completed")
    job = await ready.client.get_job("job")
    assert job.execution_info.termination_reason == "AllTasksCompleted"
    with pytest.raises(ResourceExistsError) as raised:
        await ready.task("late", "hostname")
    assert code(raised) == "JobCompleted"


async def _job_state(batch: Any) -> str:
    return str((await batch.client.get_job("job")).state.value)


async def test_empty_job_counts_as_complete(ready: Any) -> None:
    """A job made to end with its tasks, without any, ends at once: as the service documents it."""
    await ready.job("empty", all_tasks_complete_mode="terminatejob")
    assert (await ready.client.get_job("empty")).state == "completed"


async def test_terminated_job_ends_its_tasks(ready: Any) -> None:
    """Terminating a job ends what runs, leaves what waits, and keeps the reason."""
    await ready.task("runs", "sleep 60")
    await ready.until_task("runs", "running")
    await ready.task("waits", "hostname")
    poller = await ready.client.begin_terminate_job("job", {"terminateReason": "enough"}, polling_interval=0)
    assert (await ready.client.get_job("job")).state in ("terminating", "completed")
    await poller.wait()
    await ready.until(lambda: _job_state(ready), "completed")
    assert (await ready.client.get_job("job")).execution_info.termination_reason == "enough"
    task = await ready.client.get_task("job", "runs")
    assert (task.state, task.execution_info.failure_info.code) == ("completed", "TaskEnded")
    assert await ready.task_state("waits") == "active"


async def test_disabled_job_runs_nothing(ready: Any) -> None:
    """A disabled job hands its running task back and starts none until it is enabled."""
    await ready.task("task", "sleep 60")
    await ready.until_task("task", "running")
    disable = models.BatchJobDisableOptions(disable_tasks="requeue")
    await ready.client.begin_disable_job("job", disable)
    await ready.until(lambda: _job_state(ready), "disabled")
    assert await ready.task_state("task") == "active"
    await ready.client.begin_enable_job("job")
    await ready.until_task("task", "running")


async def test_deleted_job_is_gone_with_its_tasks(ready: Any) -> None:
    """A deleted job is not found any more, nor its tasks, processes and files; its id can be used again."""
    await ready.task("task", "sleep 7321")
    await ready.until_task("task", "running")
    poller = await ready.client.begin_delete_job("job", polling_interval=0)
    await poller.wait()
    await ready.until(lambda: _missing_job(ready), True)
    assert await _living("sleep\x007321") == 0
    await ready.job()
    assert [task async for task in ready.client.list_tasks("job")] == []


async def _missing_job(batch: Any) -> bool:
    try:
        await batch.client.get_job("job")
    except ResourceNotFoundError:
        return True
    return False


async def test_job_may_wait_for_its_pool(batch: Any) -> None:
    """A job whose pool does not exist is taken, and runs when the pool comes."""
    await batch.job(pool_id="later")
    await batch.task("task", "hostname")
    await batch.pool("later")
    await batch.until_task("task", "completed")


async def test_job_updates_leave_what_they_omit(ready: Any) -> None:
    """PATCH changes only what is given; PUT puts what is omitted back to its default."""
    await ready.client.update_job("job", models.BatchJobUpdateOptions(priority=7, max_parallel_tasks=2))
    await ready.client.update_job("job", models.BatchJobUpdateOptions(max_parallel_tasks=3))
    job = await ready.client.get_job("job")
    assert (job.priority, job.max_parallel_tasks) == (7, 3)


async def test_priorities_come_first(ready: Any) -> None:
    """The tasks of a job with a higher priority run before those that waited longer."""
    await ready.job("urgent", priority=100)
    await ready.task("first", "sleep 0.2")
    await ready.task("later", "hostname")
    await ready.client.create_task(
        "urgent", models.BatchTaskCreateOptions(id="urgent", command_line="hostname")
    )
    later = await ready.until_task("later", "completed")
    urgent = await ready.client.get_task("urgent", "urgent")
    assert urgent.execution_info.start_time < later.execution_info.start_time


async def test_files_are_listed_and_read_in_parts(ready: Any) -> None:
    """The files of a task are listed, filtered, and read whole or in part; what is not there is not found."""
    await ready.run("task", "/bin/sh -c 'printf 0123456789; mkdir sub; echo x > sub/file'")
    files = {item.name: item async for item in ready.client.list_task_files("job", "task", recursive=True)}
    assert {"stdout.txt", "stderr.txt", "wd", "wd/sub", "wd/sub/file"} <= set(files)
    assert files["wd"].is_directory
    assert files["stdout.txt"].properties.content_length == 10
    top = [
        item.name
        async for item in ready.client.list_task_files("job", "task", filter="startswith(name,'std')")
    ]
    assert top == ["stderr.txt", "stdout.txt"]
    part = await ready.client.download_task_file("job", "task", "stdout.txt", ocp_range="bytes=6-100")
    assert b"".join([chunk async for chunk in part]) == b"6789"
    with pytest.raises(ResourceNotFoundError) as raised:
        await ready.client.download_task_file("job", "task", "../../../../../etc/passwd")
    assert raised.value.status_code == 404


@pytest.mark.parametrize(("left", "told"), [("0123", b"0123"), ("", b""), (None, None)])
async def test_files_that_change_while_they_are_sent(
    ready: Any, monkeypatch: pytest.MonkeyPatch, left: str | None, told: bytes | None
) -> None:
    """A file that shrinks, as that of a task which is tried again, keeps nobody waiting for its rest."""
    await ready.run("task", "/bin/sh -c 'printf 0123456789'")
    answer = DataPlane.answer

    def answer_too_soon(plane: DataPlane, request: BatchRequest) -> BatchResponse:
        given = answer(plane, request)
        if given.content is not None and left is None:
            given.content.path.unlink()
        elif given.content is not None and left is not None:
            given.content.path.write_text(left)
        return given

    monkeypatch.setattr(DataPlane, "answer", answer_too_soon)
    async with asyncio.timeout(20):
        if told is not None:
            assert (await ready.output("task")).encode() == told
        else:
            with pytest.raises(ResourceNotFoundError):
                await ready.output("task")


async def test_a_file_that_shrinks_under_its_reader(ready: Any) -> None:
    """The rest cannot come: the reader is told by a connection that breaks."""
    await ready.run("task", "/bin/sh -c 'truncate -s 256M large'")
    chunks = await ready.client.download_task_file("job", "task", "wd/large")
    await anext(chunks)
    (path,) = ready.root.rglob("wd/large")
    os.truncate(path, 0)
    async with asyncio.timeout(20):
        with pytest.raises(AzureError):
            _ = [chunk async for chunk in chunks]


async def test_files_can_be_deleted(ready: Any) -> None:
    """A file is deleted alone, a directory that is not empty only recursively."""
    await ready.run("task", "/bin/sh -c 'mkdir sub; touch sub/file'")
    with pytest.raises(ResourceExistsError):
        await ready.client.delete_task_file("job", "task", "wd/sub")
    await ready.client.delete_task_file("job", "task", "stdout.txt")
    await ready.client.delete_task_file("job", "task", "wd/sub", recursive=True)
    names = [item.name async for item in ready.client.list_task_files("job", "task", recursive=True)]
    assert names == ["stderr.txt", "wd"]


async def test_files_of_a_task_that_has_not_run(batch: Any) -> None:
    """A task that has not run has no files to ask for."""
    await batch.job()
    await batch.task("task", "hostname")
    with pytest.raises(ResourceExistsError):
        await batch.output("task")


async def test_closing_the_server_leaves_no_process(batch: Any) -> None:
    """Closing kills the tree of every task, and of a start task, at once."""
    start_task = models.BatchStartTask(command_line="sleep 8321")
    await batch.pool("starting", start_task=start_task, ready=False)
    await batch.pool()
    await batch.job()
    await batch.task("task", "/bin/sh -c 'trap : TERM; setsid sleep 8322 & while :; do sleep 8323; done'")
    await batch.until(lambda: _living("sleep\x00832"), 3)
    async with asyncio.timeout(20):
        await batch.server.aclose()
    assert await _living("sleep\x00832") == 0
