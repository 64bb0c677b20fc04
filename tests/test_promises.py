"""What the pages promise, and the test that holds each promise where its place is not obvious."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PROMISES = {
    "pools.md": {
        "A node that began the task never begins it again": (
            "tests/unit/control/test_broadcasts.py",
            "test_a_task_that_a_killed_agent_ran_is_reported_and_not_run_again",
        ),
        "A result that the killed agent could not send is sent by the next one": (
            "tests/unit/control/test_broadcasts.py",
            "test_a_result_that_did_not_leave_is_sent_by_the_next_agent",
        ),
        "**No node holds the others up.**": (
            "tests/unit/sessions/test_broadcast.py",
            "test_nodes_without_an_agent_are_named_and_not_waited_for",
        ),
        "a drain waits for it": (
            "tests/unit/control/test_broadcasts.py",
            "test_a_draining_agent_finishes_what_it_runs_and_begins_nothing",
        ),
    },
    "sharing.md": {
        "So others wait less than a second for it": (
            "tests/unit/scheduling/test_reservations.py",
            "test_a_task_that_does_not_fit_yet_holds_up_others_for_less_than_a_second_and_then_not_again",
        ),
        "twice as late each time, at most 2 s": (
            "tests/unit/scheduling/test_reservations.py",
            "test_a_task_that_never_fits_goes_back_at_once_and_later_each_time",
        ),
        "so this needs an agent on each node that the pool wants": (
            "tests/unit/sessions/test_needs_watch.py",
            "test_tags_are_known_when_each_node_has_an_agent",
        ),
        "It goes to a lane of that priority": (
            "tests/unit/sessions/test_lanes.py",
            "test_a_task_with_a_priority_of_its_own_goes_to_a_lane_of_that",
        ),
    },
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
        "They are made with the pool and deleted with it": (
            "tests/e2e/test_pools.py",
            "test_deleting_a_pool_leaves_nothing",
        ),
        "If its nodes have a managed identity, it gets no keys": (
            "tests/e2e/test_entra.py",
            "test_pool_with_a_managed_identity_runs_tasks_without_any_key",
        ),
        "No module, variable or environment of one reaches the other": (
            "tests/unit/execution/test_slot_sessions.py",
            "test_nothing_of_one_session_is_seen_by_another",
        ),
        "Such a client can open sessions, submit tasks": (
            "tests/e2e/test_rights.py",
            "test_guest_submits_tasks_and_gets_results",
        ),
        "it cannot start agents": (
            "tests/e2e/test_rights.py",
            "test_guest_without_agents_is_told_whom_to_ask",
        ),
        "a file of the agent on the node with mode 0600": (
            "tests/e2e/test_rights.py",
            "test_batch_shows_no_secret",
        ),
        "The blob of a session goes with the session": (
            "tests/e2e/test_variables.py",
            "test_a_secret_is_in_a_blob_alone_which_goes_with_the_session",
        ),
        "checks the type and size of everything that it reads": (
            "tests/fuzz/test_targets.py",
            "test_a_parser_answers_or_refuses_within_its_budget",
        ),
        "Agents unpickle nothing": ("tests/test_imports.py", "test_only_the_process_of_a_task_can_unpickle"),
        "checks bundles against their hash when it fetches them": (
            "tests/unit/bundles/test_cache.py",
            "test_wrong_content_and_wrong_lists_are_refused",
        ),
        "A message or document that cannot be read is dropped": (
            "tests/unit/test_session.py",
            "test_undecodable_message_is_dropped_and_reported",
        ),
        "batchflow sends a token over HTTPS only": (
            "tests/unit/azure/test_identity.py",
            "test_a_token_goes_over_https_only",
        ),
        "and only to the configured namespace": (
            "tests/unit/azure/test_identity.py",
            "test_a_token_goes_to_no_other_namespace",
        ),
        "exits an hour before its signatures expire": (
            "tests/e2e/test_entra.py",
            "test_agents_leave_before_their_lent_signatures_expire",
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
        "has exactly one outcome": (
            "tests/unit/test_session_faults.py",
            "test_every_task_has_one_outcome_under_random_faults",
        ),
        "completes it and runs nothing again": (
            "tests/unit/test_agent_hand_back.py",
            "test_an_agent_killed_before_it_completes_a_message_leaves_nothing_to_run_again",
        ),
        "With `journal=`, on the same host, it does not deliver them": (
            "tests/e2e/test_reattach.py",
            "test_session_with_a_journal_shows_no_outcome_twice_after_a_kill",
        ),
        "has not begun within that second is looked at again": (
            "tests/unit/scheduling/test_scheduler.py",
            "test_what_was_not_begun_in_time_is_looked_at_anew",
        ),
        "After three such runs in a row the agent steps back": (
            "tests/unit/scheduling/test_scheduler.py",
            "test_an_agent_that_fails_three_times_in_a_row_steps_back",
        ),
        "A task that nodes could not run 20 times ends as `WorkerDied`": (
            "tests/unit/scheduling/test_scheduler.py",
            "test_a_task_that_no_node_can_run_has_an_outcome_at_last",
        ),
        "unpacks itself again where its own files are gone": (
            "tests/unit/test_bootstrap.py",
            "test_an_agent_that_a_task_has_removed_is_unpacked_again",
        ),
        "A run is a sequence of decisions": (
            "tests/model/test_small.py",
            "test_the_same_decisions_give_the_same_history",
        ),
        "A history without an end proves nothing": (
            "tests/model/test_checker.py",
            "test_a_history_that_does_not_end_is_no_proof",
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
        "Opening and closing may happen in different asyncio tasks": (
            "tests/e2e/test_connecting.py",
            "test_session_opened_in_one_task_closes_in_another",
        ),
        "at most `session.outbox` tasks and `session.outbox_bytes` bytes": (
            "tests/unit/test_session.py",
            "test_an_outbox_is_full_of_few_large_tasks_too",
        ),
        "it ends as `SubmitFailed`": (
            "tests/unit/test_session.py",
            "test_a_send_that_fails_for_good_is_the_tasks_outcome",
        ),
        "A task is `RUNNING` when the agents' last heartbeats say so": (
            "tests/unit/sessions/test_agents_watch.py",
            "test_a_running_task_has_its_node_and_since_when",
        ),
        "any number of times": (
            "tests/unit/test_streams.py",
            "test_task_holder_reads_an_outcome_that_a_stream_yielded",
        ),
        "`session.results()` yields each result once": (
            "tests/unit/test_streams.py",
            "test_results_come_once_and_end",
        ),
        "It leaves out results of tasks that are awaited": (
            "tests/unit/test_streams.py",
            "test_a_claimed_result_does_not_come",
        ),
        "with `follow=True` it ends with the session": (
            "tests/unit/test_streams.py",
            "test_a_followed_stream_ends_with_the_session",
        ),
        "`session.take()` returns the results that have arrived": (
            "tests/unit/test_streams.py",
            "test_take_gives_what_has_come",
        ),
        "You can `break` out of a loop and read on later": (
            "tests/unit/sessions/test_map_run.py",
            "test_break_and_come_back",
        ),
        "closes the stream at the end of the block, and `aclose()` at once": (
            "tests/unit/sessions/test_map_run.py",
            "test_leaving_it_cancels_what_it_had_submitted",
        ),
        "A stream that no variable holds any more is closed": (
            "tests/unit/sessions/test_map_run.py",
            "test_a_dropped_stream_cancels_what_it_had_submitted",
        ),
        "unread results spill to a temporary file": (
            "tests/unit/test_streams.py",
            "test_unread_results_past_the_bound_go_to_disk",
        ),
        "raises `BrokerError` or `StorageError` in every wait": (
            "tests/unit/sessions/records/test_health.py",
            "test_failed_receives_fail_every_waiting_call",
        ),
        "raises `NoAgents` in every wait, until an agent is alive": (
            "tests/unit/test_session_lifetime.py",
            "test_missing_agents_fail_every_waiting_call",
        ),
        "gives one warning with both versions": (
            "tests/unit/test_session_lifetime.py",
            "test_agents_of_another_version_are_warned_of_once",
        ),
        "ends with `SessionClosed` and the reason": (
            "tests/unit/test_session_lifetime.py",
            "test_a_job_that_another_client_deletes_ends_its_sessions",
        ),
        "and which tasks run where": (
            "tests/unit/test_session_lifetime.py",
            "test_explain_says_where_ones_tasks_run",
        ),
        "returns when the request is stored where all agents read it": (
            "tests/unit/sessions/test_cancellation.py",
            "test_failed_write_of_a_cancellation_is_raised",
        ),
        "unless the task ended before": (
            "tests/unit/sessions/test_cancellation.py",
            "test_a_task_that_ends_by_itself_before_keeps_its_outcome",
        ),
        "Deleting the job cancels those of all clients": (
            "tests/unit/test_session_lifetime.py",
            "test_a_deleted_job_cancels_its_tasks",
        ),
        "Cancelling a coroutine that awaits a task does not cancel the task": (
            "tests/unit/sessions/test_cancellation.py",
            "test_cancelling_an_awaiting_coroutine_does_not_cancel_the_task",
        ),
        "after its client was closed or killed": (
            "tests/e2e/test_reattach.py",
            "test_killed_client_finds_all_outcomes_when_it_returns",
        ),
        "`results()` waits for tasks that are still under way": (
            "tests/unit/test_session_reattach.py",
            "test_results_end_when_all_owed_outcomes_came",
        ),
        "waits until the holder's lock has expired": (
            "tests/unit/test_session_lifetime.py",
            "test_lock_of_a_dead_client_is_waited_for",
        ),
        'ends with `SessionClosed`, "taken over"': (
            "tests/unit/test_session_reattach.py",
            "test_replaced_holder_ends_as_taken_over",
        ),
        "acknowledges the results that were read": (
            "tests/unit/test_session_lifetime.py",
            "test_delivered_messages_are_completed_before_the_end",
        ),
        "ends all other waits with `SessionClosed`": (
            "tests/unit/test_session_lifetime.py",
            "test_closing_resolves_everything_that_waits",
        ),
        "seconds what is left is dropped": (
            "tests/unit/test_session_lifetime.py",
            "test_closing_is_bounded_when_a_service_hangs",
        ),
    },
    "workflows.md": {
        "Each file has a folder of its own, so two of one name do not meet": (
            "tests/unit/sessions/workflows/test_task_files.py",
            "test_each_file_has_its_path_in_a_folder_of_its_own",
        ),
        "The task gets a copy, and the next task does not find it": (
            "tests/unit/execution/test_slot_python.py",
            "test_files_of_other_tasks_are_in_the_working_directory_of_one_task_alone",
        ),
        "It may take hundreds of files": (
            "tests/unit/sessions/workflows/test_task_files.py",
            "test_the_places_of_many_files_are_in_a_blob",
        ),
        "not at all if the task that left it ran on the same node": (
            "tests/unit/execution/test_resources.py",
            "test_files_of_other_tasks_are_fetched_once_and_those_that_tasks_left_here_never",
        ),
        "unless it cannot sign: then it copies the file": (
            "tests/unit/sessions/workflows/test_task_files.py",
            "test_a_client_that_cannot_sign_copies_files",
        ),
        "The error names the file, the task, and the files that there are": (
            "tests/unit/sessions/workflows/test_task_files.py",
            "test_a_file_that_is_missing_fails_what_takes_it",
        ),
        "A name that leaves the folder is an `InvalidDependency` at once": (
            "tests/unit/sessions/workflows/test_task_files.py",
            "test_a_name_that_leaves_the_folder_is_refused",
        ),
        "tasks that take files end as `SubmitFailed`": (
            "tests/unit/sessions/workflows/test_task_files.py",
            "test_agents_of_earlier_versions_get_no_task_that_takes_a_file",
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
        "`do_action` may be a coroutine function": (
            "tests/e2e/test_tasks.py",
            "test_async_do_action_is_awaited",
        ),
        "means success. Any other string makes the task fail with that error; the result is kept": (
            "tests/unit/execution/test_slot_python.py",
            "test_an_error_fails_the_task_and_keeps_the_result",
        ),
        "All are subclasses of `batchflow.TaskError`": (
            "tests/e2e/test_tasks.py",
            "test_each_fault_of_a_task_is_a_typed_outcome",
        ),
        "the task ran longer than its `timeout` and was killed": (
            "tests/unit/execution/test_slot_limits.py",
            "test_a_task_that_hangs_is_ended_at_its_limit",
        ),
        "the task exceeded its `memory_limit` and was killed": (
            "tests/unit/execution/test_slot_limits.py",
            "test_memory_above_the_limit_ends_the_task_as_out_of_memory",
        ),
        "the agent crashed each time it ran the task": (
            "tests/unit/scheduling/test_scheduler.py",
            "test_a_task_that_killed_three_agents_ends_as_poisoned",
        ),
        "`raise Permanent(...)` says that another attempt would not help": (
            "tests/unit/execution/test_slot_python.py",
            "test_retry_and_permanent_are_wishes",
        ),
        "Cancelling `session.run` does": (
            "tests/unit/sessions/test_cancellation.py",
            "test_cancelling_run_cancels_the_task",
        ),
        "the modules of the former files are dropped": (
            "tests/unit/execution/test_slot_python.py",
            "test_a_changed_bundle_never_meets_an_old_module",
        ),
        "All other files in it are removed after the task": (
            "tests/unit/execution/test_slot_python.py",
            "test_the_working_directory_is_clean_for_each_task",
        ),
        "Its files are kept and listed in `result.files`": (
            "tests/e2e/test_tasks.py",
            "test_files_that_a_task_leaves_are_named_in_its_result",
        ),
        "True when the task should end: it was cancelled, or its time is up": (
            "tests/unit/execution/test_slot_limits.py",
            "test_engine_cancelled_is_true_before_a_task_is_ended",
        ),
        "until the job or the pool is deleted": (
            "tests/e2e/test_jobs.py",
            "test_deleting_a_job_leaves_nothing_of_it",
        ),
        "each line that the task prints is an event too, while the task runs": (
            "tests/unit/test_agent.py",
            "test_events_of_a_task_arrive_while_it_runs",
        ),
        "It raises an error when the node has no Java": (
            "tests/unit/execution/test_slot_programs.py",
            "test_no_java_is_told",
        ),
        "With `check=False`, the exit code is ignored": (
            "tests/unit/execution/test_slot_programs.py",
            "test_java_that_fails_fails_the_task_unless_it_is_caught",
        ),
        "the last 64 KiB of each": (
            "tests/unit/execution/test_slot_faults.py",
            "test_gigabytes_on_stdout_are_drained_and_their_tail_is_kept",
        ),
        "known credential files": (
            "tests/unit/files/test_storing.py",
            "test_hidden_files_and_credentials_of_a_directory_are_left_out",
        ),
        "a warning names those that lead nowhere or back to a folder above them": (
            "tests/unit/files/test_storing.py",
            "test_links_that_lead_nowhere_or_in_circles_are_left_out_with_a_warning",
        ),
        "Two files with the same name raise a `ConfigurationError`": (
            "tests/unit/files/test_storing.py",
            "test_two_files_of_one_name_are_refused",
        ),
        "An unchanged file is not uploaded again": (
            "tests/unit/files/test_storing.py",
            "test_an_unchanged_file_is_never_uploaded_twice",
        ),
        "A task keeps the files that it was submitted with": (
            "tests/unit/test_session_lifetime.py",
            "test_a_task_keeps_the_bundle_that_it_was_submitted_with",
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
