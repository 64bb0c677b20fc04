"""The semantics of queues, one rule at a time; time moves by hand."""

from __future__ import annotations

import pytest

from batchflow.local.queues import (
    Draft,
    LockLost,
    LostSession,
    Message,
    MessageNotFound,
    MessageSizeExceeded,
    NotAllowed,
    Place,
    Queue,
    QueueFull,
    QueueProperties,
    SessionCannotBeLocked,
    SessionLockLost,
)


def make(**settings: object) -> Queue:
    return Queue(QueueProperties(**settings))  # type: ignore[arg-type]


def draft(name: str = "m", **fields: object) -> Draft:
    return Draft(name.encode(), name, **fields)  # type: ignore[arg-type]


def bodies(messages: list[Message]) -> list[str]:
    return [message.body.decode() for message in messages]


def only(messages: list[Message]) -> Message:
    (message,) = messages
    return message


def test_messages_come_out_in_the_order_in_which_they_were_sent() -> None:
    """FIFO, with rising sequence numbers."""
    queue = make()
    assert queue.send([draft("a"), draft("b")], 0.0) == [1, 2]
    queue.send([draft("c")], 1.0)
    assert bodies(queue.receive(2, 2.0, "r")) == ["a", "b"]
    assert bodies(queue.receive(9, 2.0, "r")) == ["c"]
    assert queue.receive(1, 2.0, "r") == []


def test_an_abandoned_message_returns_to_its_place_and_counts() -> None:
    """Abandon re-inserts in order and raises the delivery count."""
    queue = make()
    queue.send([draft("a"), draft("b")], 0.0)
    first = only(queue.receive(1, 0.0, "r"))
    queue.abandon(first.lock_token, 1.0)
    again = queue.receive(2, 1.0, "r")
    assert bodies(again) == ["a", "b"]
    assert [message.delivery_count for message in again] == [1, 0]


def test_releasing_does_not_count() -> None:
    """Release gives back as if nothing had happened."""
    queue = make()
    queue.send([draft()], 0.0)
    queue.release(only(queue.receive(1, 0.0, "r")).lock_token, 0.0)
    assert only(queue.receive(1, 0.0, "r")).delivery_count == 0


def test_a_completed_message_is_gone() -> None:
    """Completing removes it and frees its bytes."""
    queue = make()
    queue.send([draft()], 0.0)
    queue.complete(only(queue.receive(1, 0.0, "r")).lock_token, 1.0)
    assert queue.size == 0
    assert queue.peek(9, 1.0) == []


def test_a_lock_expires_whether_or_not_time_was_advanced() -> None:
    """A stale token is refused at its very deadline, and the message is there again."""
    queue = make(lock_duration=30.0)
    queue.send([draft()], 0.0)
    message = only(queue.receive(1, 0.0, "r"))
    assert message.locked_until == 30.0
    with pytest.raises(LockLost):
        queue.complete(message.lock_token, 30.0)
    assert only(queue.receive(1, 30.0, "r")).delivery_count == 1


def test_a_renewed_lock_lasts_from_the_renewal() -> None:
    """Renewal moves the end of the lock, also the deadline."""
    queue = make(lock_duration=30.0)
    queue.send([draft()], 0.0)
    token = only(queue.receive(1, 0.0, "r")).lock_token
    assert queue.renew(token, 20.0) == 50.0
    assert queue.next_deadline() == 50.0
    queue.complete(token, 49.0)
    assert queue.next_deadline() is None


def test_a_token_is_good_for_one_settlement() -> None:
    """What was settled, renewed too late, or never existed is refused."""
    queue = make()
    queue.send([draft()], 0.0)
    token = only(queue.receive(1, 0.0, "r")).lock_token
    queue.complete(token, 0.0)
    for operation in (queue.complete, queue.abandon, queue.release, queue.defer, queue.renew):
        with pytest.raises(LockLost):
            operation(token, 1.0)


def test_receive_and_delete_leaves_nothing_behind() -> None:
    """Deleting receives take no lock."""
    queue = make()
    queue.send([draft()], 0.0)
    message = only(queue.receive(1, 0.0, "r", delete=True))
    assert message.place is Place.GONE
    assert message.lock_token == b""
    assert queue.counts == (0, 0, 0)


def test_too_many_deliveries_lead_to_the_dead_letter_queue() -> None:
    """The count is bounded by max_delivery_count, and the reason says so."""
    queue = make(max_delivery_count=2)
    queue.send([draft()], 0.0)
    for _ in range(2):
        queue.abandon(only(queue.receive(1, 0.0, "r")).lock_token, 0.0)
    assert queue.counts == (0, 0, 1)
    assert queue.dead_letters is not None
    dead = only(queue.dead_letters.receive(1, 0.0, "r"))
    assert dead.dead_letter_reason == "MaxDeliveryCountExceeded"
    assert dead.delivery_count == 2


def test_dead_lettering_keeps_the_reasons() -> None:
    """Reason and description travel with the message, which cannot be dead-lettered twice."""
    queue = make()
    queue.send([draft()], 0.0)
    queue.dead_letter(only(queue.receive(1, 0.0, "r")).lock_token, 0.0, "why", "because")
    assert queue.dead_letters is not None
    dead = only(queue.dead_letters.receive(1, 0.0, "r"))
    assert (dead.dead_letter_reason, dead.dead_letter_description) == ("why", "because")
    with pytest.raises(NotAllowed):
        queue.dead_letters.dead_letter(dead.lock_token, 0.0)
    queue.dead_letters.complete(dead.lock_token, 0.0)
    assert queue.size == 0


def test_a_deferred_message_is_received_by_its_number_alone() -> None:
    """Deferred messages leave the queue of ready ones; given back, they stay deferred."""
    queue = make()
    queue.send([draft()], 0.0)
    message = only(queue.receive(1, 0.0, "r"))
    queue.defer(message.lock_token, 0.0)
    assert queue.receive(1, 0.0, "r") == []
    again = only(queue.receive_deferred([message.number], 0.0, "r"))
    queue.abandon(again.lock_token, 0.0)
    assert queue.receive(1, 0.0, "r") == []
    queue.complete(only(queue.receive_deferred([message.number], 0.0, "r")).lock_token, 0.0)
    with pytest.raises(MessageNotFound):
        queue.receive_deferred([message.number], 0.0, "r")


@pytest.mark.parametrize("dead_letter", [False, True])
def test_a_message_expires_where_it_waits(dead_letter: bool) -> None:
    """After its time to live it is gone, or dead-lettered where the queue says so."""
    queue = make(dead_letter_on_expiration=dead_letter)
    queue.send([draft(ttl=10.0), draft("stays")], 0.0)
    queue.advance(10.0)
    assert bodies(queue.receive(9, 10.0, "r")) == ["stays"]
    assert queue.counts.dead_lettered == dead_letter
    if dead_letter:
        assert queue.dead_letters is not None
        assert only(queue.dead_letters.peek(9, 10.0)).dead_letter_reason == "TTLExpiredException"


def test_a_locked_message_expires_only_when_it_is_given_back() -> None:
    """The time to live is suspended by the lock."""
    queue = make(lock_duration=30.0)
    queue.send([draft(ttl=10.0)], 0.0)
    token = only(queue.receive(1, 5.0, "r")).lock_token
    assert queue.next_deadline() == 35.0
    queue.advance(20.0)
    queue.renew(token, 20.0)
    queue.abandon(token, 21.0)
    assert queue.counts.active == 0


def test_a_message_given_back_in_time_still_expires() -> None:
    """Its deadline counts again after it was locked."""
    queue = make()
    queue.send([draft(ttl=10.0)], 0.0)
    queue.next_deadline()
    token = only(queue.receive(1, 1.0, "r")).lock_token
    queue.next_deadline()
    queue.abandon(token, 2.0)
    assert queue.next_deadline() == 10.0
    queue.advance(10.0)
    assert queue.counts.active == 0


def test_the_queue_s_time_to_live_bounds_the_message_s() -> None:
    """The shorter of the two holds."""
    queue = make(default_ttl=5.0)
    queue.send([draft("a"), draft("b", ttl=9.0), draft("c", ttl=2.0)], 0.0)
    assert [message.expires_at for message in queue.peek(9, 0.0)] == [5.0, 5.0, 2.0]


def test_a_scheduled_message_arrives_in_its_time_with_a_new_number() -> None:
    """Until then it can be peeked and cancelled, not received."""
    queue = make()
    (number,) = queue.send([draft("later", scheduled_for=10.0)], 0.0)
    queue.send([draft("now")], 0.0)
    assert queue.counts == (1, 1, 0)
    assert [message.place for message in queue.peek(9, 0.0)] == [Place.SCHEDULED, Place.READY]
    assert bodies(queue.receive(9, 9.0, "r")) == ["now"]
    assert queue.next_deadline() == 10.0
    late = only(queue.receive(9, 10.0, "r"))
    assert (late.body, late.number, late.enqueued_at) == (b"later", 3, 10.0)
    with pytest.raises(MessageNotFound):
        queue.cancel_scheduled([number], 10.0)


def test_cancelling_scheduled_messages_is_all_or_nothing() -> None:
    """One unknown number leaves the others scheduled."""
    queue = make()
    (number,) = queue.send([draft(scheduled_for=10.0)], 0.0)
    with pytest.raises(MessageNotFound):
        queue.cancel_scheduled([number, 99], 0.0)
    queue.cancel_scheduled([number], 0.0)
    assert queue.counts == (0, 0, 0)
    assert queue.next_deadline() is None


def test_a_duplicate_is_accepted_and_dropped_within_the_window() -> None:
    """By message id alone; after the window the id is new again."""
    queue = make(duplicate_window=60.0)
    first = queue.send([draft("a")], 0.0)
    assert queue.send([draft("a")], 59.0) == first
    queue.complete(only(queue.receive(9, 59.0, "r")).lock_token, 59.0)
    assert queue.send([draft("a")], 59.5) == first
    assert queue.receive(9, 59.5, "r") == []
    queue.send([draft("a")], 60.0)
    assert bodies(queue.receive(9, 60.0, "r")) == ["a"]


def test_sends_are_refused_whole() -> None:
    """Too large, or too much, or an id too long: nothing of the batch arrives."""
    queue = make(max_size=10, max_message_size=8)
    with pytest.raises(MessageSizeExceeded):
        queue.send([draft("a"), draft("x" * 9)], 0.0)
    with pytest.raises(QueueFull):
        queue.send([draft("x" * 6), draft("y" * 6)], 0.0)
    with pytest.raises(NotAllowed):
        queue.send([Draft(b"", "i" * 129)], 0.0)
    assert queue.counts == (0, 0, 0)
    queue.send([draft("x" * 8)], 0.0)
    queue.dead_letter(only(queue.receive(1, 0.0, "r")).lock_token, 0.0)
    with pytest.raises(QueueFull):
        queue.send([draft("abc")], 0.0)


def test_the_settings_can_be_changed_but_for_what_is_fixed() -> None:
    """New settings hold for what comes; sessions and duplicate detection are fixed."""
    queue = make()
    queue.reconfigure(QueueProperties(lock_duration=5.0))
    queue.send([draft()], 0.0)
    assert only(queue.receive(1, 0.0, "r")).locked_until == 5.0
    with pytest.raises(NotAllowed):
        queue.reconfigure(QueueProperties(requires_session=True))


# -- sessions ---------------------------------------------------------------------------------------------


def session_queue(*ids: str, **settings: object) -> Queue:
    queue = make(requires_session=True, **settings)
    queue.send([draft(f"{sid}{i}", session_id=sid) for i, sid in enumerate(ids)], 0.0)
    return queue


def test_a_session_has_one_holder_and_its_own_order() -> None:
    """Another is refused; the holder receives the session's messages alone."""
    queue = session_queue("a", "b", "a")
    assert queue.accept_session("a", "h", 0.0) == ("a", 60.0)
    with pytest.raises(SessionCannotBeLocked):
        queue.accept_session("a", "other", 0.0)
    assert bodies(queue.receive(9, 0.0, "h", session_id="a")) == ["a0", "a2"]
    with pytest.raises(SessionLockLost):
        queue.receive(1, 0.0, "other", session_id="a")
    with pytest.raises(NotAllowed):
        queue.receive(1, 0.0, "h")


def test_a_message_needs_a_session_where_sessions_are_required() -> None:
    """And a session queue's operations are refused elsewhere."""
    with pytest.raises(NotAllowed):
        session_queue().send([draft()], 0.0)
    with pytest.raises(NotAllowed):
        make().accept_session("a", "h", 0.0)
    queue = session_queue("a")
    queue.accept_session("a", "h", 0.0)
    with pytest.raises(NotAllowed):
        queue.renew(only(queue.receive(1, 0.0, "h", session_id="a")).lock_token, 0.0)


def test_the_next_available_session_is_one_with_messages_and_no_holder() -> None:
    """None when there is none."""
    queue = session_queue("a", "b")
    assert queue.has_available_session()
    locks = [queue.accept_session(None, "h", 0.0) for _ in range(2)]
    assert [lock.session_id for lock in locks if lock] == ["a", "b"]
    assert queue.accept_session(None, "h", 0.0) is None
    queue.release_session("b", "h", 0.0)
    lock = queue.accept_session(None, "h2", 0.0)
    assert lock is not None
    assert lock.session_id == "b"


def test_releasing_a_session_gives_its_messages_back_uncounted() -> None:
    """Closing a session is not a delivery that failed."""
    queue = session_queue("a")
    queue.accept_session("a", "h", 0.0)
    token = only(queue.receive(1, 0.0, "h", session_id="a")).lock_token
    queue.release_session("a", "h", 1.0)
    with pytest.raises(LockLost):
        queue.complete(token, 1.0)
    queue.accept_session("a", "h2", 1.0)
    assert only(queue.receive(1, 1.0, "h2", session_id="a")).delivery_count == 0


def test_an_expired_session_lock_takes_the_messages_along_and_is_told() -> None:
    """The holder is named by advance; what was locked is counted and free."""
    queue = session_queue("a", lock_duration=30.0)
    queue.accept_session("a", "h", 0.0)
    token = only(queue.receive(1, 0.0, "h", session_id="a")).lock_token
    assert queue.next_deadline() == 30.0
    with pytest.raises(SessionLockLost):
        queue.renew_session("a", "h", 30.0)
    with pytest.raises(LockLost):
        queue.complete(token, 30.0)
    assert queue.next_deadline() == 0.0
    assert queue.advance(30.0) == [LostSession("a", "h")]
    assert queue.advance(30.0) == []
    queue.accept_session("a", "h2", 30.0)
    assert only(queue.receive(1, 30.0, "h2", session_id="a")).delivery_count == 1


def test_renewing_a_session_renews_its_messages() -> None:
    """Their locks end with it."""
    queue = session_queue("a", lock_duration=30.0)
    queue.accept_session("a", "h", 0.0)
    message = only(queue.receive(1, 0.0, "h", session_id="a"))
    assert queue.renew_session("a", "h", 20.0) == 50.0
    assert message.locked_until == 50.0
    queue.complete(message.lock_token, 49.0)


def test_a_session_s_state_outlives_its_messages_and_holders() -> None:
    """Only the holder reads and writes it; clearing it lets the session go."""
    queue = session_queue()
    queue.accept_session("a", "h", 0.0)
    queue.set_session_state("a", "h", b"state", 1.0)
    with pytest.raises(SessionLockLost):
        queue.session_state("a", "other", 1.0)
    with pytest.raises(MessageSizeExceeded):
        queue.set_session_state("a", "h", b"x" * 262_145, 1.0)
    queue.release_session("a", "h", 1.0)
    assert queue.session_ids(1.0) == ["a"]
    assert queue.session_ids(1.0, updated_after=1.0) == []
    assert queue.session_ids(1.0, updated_after=0.5) == ["a"]
    queue.accept_session("a", "h2", 2.0)
    assert queue.session_state("a", "h2", 2.0) == b"state"
    queue.set_session_state("a", "h2", None, 2.0)
    queue.release_session("a", "h2", 2.0)
    assert queue.session_ids(2.0) == []


def test_a_deferred_message_of_a_session_needs_the_session() -> None:
    """Its lock lives with the session's."""
    queue = session_queue("a", "b")
    queue.accept_session("a", "h", 0.0)
    message = only(queue.receive(1, 0.0, "h", session_id="a"))
    queue.defer(message.lock_token, 0.0)
    queue.accept_session("b", "h", 0.0)
    with pytest.raises(MessageNotFound):
        queue.receive_deferred([message.number], 0.0, "h", session_id="b")
    again = only(queue.receive_deferred([message.number], 0.0, "h", session_id="a"))
    assert again.locked_until == 60.0
    queue.complete(again.lock_token, 0.0)


def test_dead_letters_of_a_session_queue_are_received_without_sessions() -> None:
    """The dead-letter queue is a plain one."""
    queue = session_queue("a")
    queue.accept_session("a", "h", 0.0)
    queue.dead_letter(only(queue.receive(1, 0.0, "h", session_id="a")).lock_token, 0.0)
    assert queue.dead_letters is not None
    assert only(queue.dead_letters.receive(1, 0.0, "r")).session_id == "a"


def test_peeking_can_be_limited_to_a_session_and_begin_at_a_number() -> None:
    """And touches nothing."""
    queue = session_queue("a", "b", "a")
    assert bodies(queue.peek(9, 0.0, session_id="a")) == ["a0", "a2"]
    assert bodies(queue.peek(1, 0.0, from_number=2)) == ["b1"]
    assert queue.session_holder("a", 0.0) is None
