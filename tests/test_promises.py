"""What the pages promise, and the test that holds each promise where its place is not obvious."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PROMISES = {
    "security.md": {
        "Tests check each right there over sockets": (
            "tests/e2e/test_rights.py",
            "test_agent_may_use_its_containers_and_no_more",
        ),
        "It cannot read the results queue or the container `out`": (
            "tests/e2e/test_rights.py",
            "test_agent_may_use_its_queues_and_no_more",
        ),
        "An agent overwrites no file of another execution": (
            "tests/unit/test_agent.py",
            "test_no_execution_overwrites_the_files_of_another",
        ),
        "Tasks of different sessions never share a Python process": (
            "tests/unit/execution/test_slot_sessions.py",
            "test_sessions_never_share_a_process_and_each_finds_its_own_again",
        ),
        "also when the task has put times and modes back": (
            "tests/unit/bundles/test_workspace.py",
            "test_a_file_whose_times_were_put_back_is_restored",
        ),
        "A changed file of the cache is fetched again": (
            "tests/unit/bundles/test_cache.py",
            "test_files_on_disk_that_were_changed_are_fetched_again",
        ),
        "what a task writes or appends reaches no other slot": (
            "tests/unit/bundles/test_workspace.py",
            "test_what_a_task_writes_into_its_files_reaches_no_other_slot",
        ),
        "hashes the archive of an environment while it unpacks it": (
            "tests/unit/bundles/test_environments.py",
            "test_an_archive_that_was_changed_in_the_cache_is_fetched_again",
        ),
        "unpacks a changed environment again": (
            "tests/unit/bundles/test_environments.py",
            "test_an_environment_that_a_task_changed_is_unpacked_again",
        ),
        "It cannot make, resize, repurpose, stop or delete pools": (
            "tests/e2e/test_rights.py",
            "test_guest_can_make_and_remove_no_pool",
        ),
        "The rights end when the pool is deleted": (
            "tests/e2e/test_rights.py",
            "test_guest_settings_open_nothing_after_the_pool_is_deleted",
        ),
        "runs the nodes as another user, who cannot read that file": (
            "tests/local/batch/test_node_user.py",
            "test_a_command_cannot_read_the_settings_of_its_cloud",
        ),
        "No secret is in a command line": ("tests/e2e/test_rights.py", "test_batch_shows_no_secret"),
        "A client unpickles results only where its session was asked to": (
            "tests/unit/child/test_task_values.py",
            "test_a_pickle_is_written_only_for_a_session_that_opens_it",
        ),
        "no earlier file of `client_settings()` can send tasks or read results": (
            "tests/e2e/test_rights.py",
            "test_renewing_the_keys_of_guests_shuts_out_the_old_ones",
        ),
    },
    "reliability.md": {
        "Only one outcome is delivered": (
            "tests/unit/test_agent_hand_back.py",
            "test_a_crash_while_a_result_is_sent_loses_nothing",
        ),
        "these results are marked as `repeated`": (
            "tests/unit/test_session_clocks.py",
            "test_only_results_from_before_a_crash_are_marked_repeated",
        ),
        "before its `aclose()` returned without an error are not delivered again": (
            "tests/unit/test_session_promises.py",
            "test_results_that_were_read_before_closing_are_not_delivered_again",
        ),
        "do not start more than a second after `cancel()` returned": (
            "tests/e2e/test_agent_cloud.py",
            "test_tasks_of_a_pack_never_start_a_second_after_they_were_cancelled",
        ),
        "the agent hands the task back": (
            "tests/unit/execution/test_slot_loop.py",
            "test_tasks_that_the_node_cannot_run_are_given_back",
        ),
        "Blob Storage is out of its reach": (
            "tests/unit/execution/test_slot_loop.py",
            "test_blob_storage_that_a_node_does_not_reach_makes_no_outcome",
        ),
        "or the node does not reach Blob Storage, it waits and takes no task": (
            "tests/unit/startup/test_node_check.py",
            "test_after_a_step_back_an_agent_waits_until_its_node_reaches_blob_storage",
        ),
        "While the disk is full": (
            "tests/unit/startup/test_node_check.py",
            "test_a_full_disk_is_told_until_there_is_room",
        ),
        "`HOME` lead a task to an empty folder of its slot": (
            "tests/unit/execution/test_slot_faults.py",
            "test_a_task_may_empty_its_home",
        ),
        "its tasks go to another agent when their locks expire": (
            "tests/e2e/test_agent_cloud.py",
            "test_killed_agent_loses_no_task",
        ),
    },
    "sessions.md": {
        "their methods raise `WrongEventLoop`": (
            "tests/unit/test_session_promises.py",
            "test_each_method_names_the_wrong_event_loop",
        ),
        "closing the parent's client in the child does nothing": (
            "tests/e2e/test_forked_client.py",
            "test_exit_of_a_forked_child_closes_nothing_of_its_parent",
        ),
        "`submit` waits only for space in the outbox": (
            "tests/unit/test_session.py",
            "test_a_full_outbox_waits_for_room_and_for_nothing_else",
        ),
        "in a session with a name it also saves the [checkpoint]": (
            "tests/unit/test_session_promises.py",
            "test_flush_returns_when_the_checkpoint_is_saved",
        ),
        "both raise `BrokerError`": (
            "tests/unit/test_session_promises.py",
            "test_flush_raises_when_nothing_can_be_saved",
        ),
        "no result is lost": ("tests/unit/sessions/test_map_run.py", "test_a_cancelled_wait_loses_nothing"),
        "the stream is closed when that task ends": (
            "tests/unit/test_session_promises.py",
            "test_cancelled_reader_of_a_map_cancels_the_rest",
        ),
        "they stay in memory, and the session gives a warning": (
            "tests/unit/test_session_promises.py",
            "test_full_temporary_folder_keeps_results_in_memory",
        ),
        "a connection is lost, a lock or a token expires": (
            "tests/e2e/test_service_faults.py",
            "test_session_and_agent_work_on_after_their_tokens_expire",
        ),
        "an idle link is closed": (
            "tests/e2e/test_service_faults.py",
            "test_session_works_on_after_its_idle_links_were_closed",
        ),
        "Agents and waiting sessions read the dead letters": (
            "tests/e2e/test_service_faults.py",
            "test_dead_letters_become_outcomes_without_an_agent",
        ),
        "The clock of your machine may be wrong": (
            "tests/unit/test_session_clocks.py",
            "test_agents_live_whatever_the_clock_says",
        ),
        "Cancelling `session.run(...)` does": (
            "tests/unit/sessions/test_cancellation.py",
            "test_cancelling_run_cancels_the_task",
        ),
        "Such a result has `repeated` set, also when other sessions of this name were open": (
            "tests/unit/test_session_promises.py",
            "test_mark_survives_holders_that_close_in_order",
        ),
        "writes and syncs before it delivers each result": (
            "tests/unit/test_session_reattach.py",
            "test_journal_is_synced_before_delivery",
        ),
        "the call that reads the result raises `JournalError`": (
            "tests/unit/test_session_promises.py",
            "test_full_disk_under_a_journal_delays_the_delivery",
        ),
        "which names the holder": (
            "tests/unit/test_session_lifetime.py",
            "test_a_mailbox_in_use_names_its_holder",
        ),
        "It delivers no results that are no longer its own": (
            "tests/unit/test_session_lifetime.py",
            "test_paused_process_reopens_the_mailbox_before_it_delivers",
        ),
        "`aclose()` raises `BrokerError` when tasks were not accepted": (
            "tests/unit/test_session_lifetime.py",
            "test_closing_reports_what_was_not_accepted",
        ),
        "`client.aclose()` closes the client's sessions first": (
            "tests/unit/test_session_promises.py",
            "test_closing_a_client_sends_what_its_sessions_still_hold",
        ),
    },
    "tasks.md": {
        "A failing task does not end its agent, nor other tasks": (
            "tests/unit/execution/test_slot_faults.py",
            "test_a_task_that_is_killed_leaves_other_slots_alone",
        ),
        "asks for another attempt after `delay` seconds": (
            "tests/unit/test_agent.py",
            "test_a_retry_is_a_scheduled_copy",
        ),
        "The agent detects a fork bomb": (
            "tests/unit/execution/test_slot_faults.py",
            "test_a_fork_bomb_is_ended_and_siblings_go_on",
        ),
        "kills the task's process and all processes that it started": (
            "tests/e2e/test_agent_cloud.py",
            "test_cancelling_a_task_ends_its_process_tree",
        ),
        "A slot keeps the processes of the sessions that it served last": (
            "tests/unit/execution/test_slot_sessions.py",
            "test_the_least_recently_used_process_ends_when_memory_is_short",
        ),
        "is put back, or the process is replaced": (
            "tests/unit/execution/test_slot_process_state.py",
            "test_what_a_task_changes_in_its_process_is_put_back",
        ),
        "What a file changes while it is imported stays as long as its module does": (
            "tests/unit/execution/test_slot_process_state.py",
            "test_what_an_import_changes_stays_as_long_as_its_module",
        ),
        "Processes that a task started end with it": (
            "tests/unit/execution/test_slot_faults.py",
            "test_processes_that_a_task_leaves_behind_are_killed",
        ),
        "the helpers of `multiprocessing`": (
            "tests/unit/execution/test_slot_process_state.py",
            "test_helpers_of_multiprocessing_end_with_their_task",
        ),
        "Sessions that trust each other may share processes": (
            "tests/unit/execution/test_slot_sessions.py",
            "test_sessions_that_say_so_share_a_process",
        ),
    },
}
"""By page: some words of each promise, and its test."""


@pytest.mark.parametrize("page", PROMISES)
def test_what_a_page_promises_is_held_by_a_test(page: str) -> None:
    """The words are in the page, and the test is there: who changes a sentence looks at its test."""
    text = " ".join((ROOT / "docs" / page).read_text(encoding="utf-8").split())
    assert [words for words in PROMISES[page] if words not in text] == []
    assert [test for test in PROMISES[page].values() if not _exists(*test)] == []


def _exists(path: str, name: str) -> bool:
    text = (ROOT / path).read_text(encoding="utf-8")
    return re.search(rf"^(async )?def {name}\(", text, re.MULTILINE) is not None
