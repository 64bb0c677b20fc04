"""Any history of a queue keeps its promises: a state machine against a plain model; time moves by hand."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from batchflow.local.queues import (
    Draft,
    LockLost,
    Message,
    NotAllowed,
    Place,
    Queue,
    QueueProperties,
    SessionLockLost,
)

MAX_DELIVERIES = 3
LOCK = 10.0
WINDOW = 25.0


class Taken(NamedTuple):
    """A delivery."""

    body: str
    token: bytes


class QueueMachine(RuleBasedStateMachine):
    """What any client can do to a queue, with what must hold checked after each step."""

    tokens = Bundle("tokens")
    stale_tokens = Bundle("stale_tokens")
    REQUIRES_SESSION = False

    @initialize(dead_letter_on_expiration=st.booleans())
    def make(self, dead_letter_on_expiration: bool) -> None:
        self.now = 100.0
        self.queue = Queue(
            QueueProperties(
                lock_duration=LOCK,
                max_delivery_count=MAX_DELIVERIES,
                requires_session=self.REQUIRES_SESSION,
                dead_letter_on_expiration=dead_letter_on_expiration,
                duplicate_window=WINDOW,
            )
        )
        self.dead_letters = self.queue.dead_letters
        self.sent: dict[str, float] = {}
        self.finished: set[str] = set()
        self.expiring: dict[str, float] = {}
        self.remembered: dict[str, float] = {}
        self.locked_until: dict[bytes, float] = {}

    # -- what clients do ------------------------------------------------------------------------------

    @rule(
        name=st.integers(0, 30),
        ttl=st.sampled_from([None, None, 5.0, 30.0]),
        delay=st.sampled_from([None, None, 7.0]),
        session=st.sampled_from("ab"),
    )
    def send(self, name: int, ttl: float | None, delay: float | None, session: str) -> None:
        message_id = f"m{name}"
        known = self.remembered.get(message_id)
        duplicate = known is not None and self.now < known + WINDOW
        body = f"{message_id}@{self.now}/{len(self.sent)}"
        due = None if delay is None else self.now + delay
        self.queue.send([Draft(body.encode(), message_id, session, ttl, due)], self.now)
        if not duplicate:
            self.remembered[message_id] = self.now
            self.sent[body] = self.now
            if ttl is not None:
                self.expiring[body] = (due or self.now) + ttl

    def _session(self, session: str) -> str | None:
        return None

    @rule(target=tokens, n=st.integers(1, 3), session=st.sampled_from("ab"))
    def receive(self, n: int, session: str) -> MultipleResults[Taken]:
        key = self._session(session)
        expected = self._ready(key)
        try:
            messages = self.queue.receive(n, self.now, "client", session_id=key)
        except SessionLockLost:
            assert key is not None
            assert self.queue.session_holder(key, self.now) is None
            return multiple()
        assert [message.number for message in messages] == expected[:n], "first in, first out"
        assert all(message.locked_until > self.now for message in messages)
        self.locked_until |= {message.lock_token: self.now + LOCK for message in messages}
        return multiple(*[Taken(message.body.decode(), message.lock_token) for message in messages])

    def _ready(self, key: str | None) -> list[int]:
        self.queue.advance(self.now)
        return [
            message.number
            for message in self.queue.peek(1_000, self.now)
            if message.place is Place.READY and (key is None or message.session_id == key)
        ]

    def _live(self, token: bytes) -> Message | None:
        """The message that the token locks, if it still does: by the queue, and by what was promised."""
        self.queue.advance(self.now)
        locked = [message for message in self.queue.peek(1_000, self.now) if message.place is Place.LOCKED]
        found = [message for message in locked if message.lock_token == token]
        if not self.REQUIRES_SESSION:
            assert bool(found) == (self.now < self.locked_until[token]), "a lock lasts as long as promised"
        return found[0] if found else None

    @rule(
        target=stale_tokens,
        taken=consumes(tokens),
        how=st.sampled_from(["abandon", "abandon", "abandon", "complete", "release", "defer", "dead_letter"]),
    )
    def settle(self, taken: Taken, how: str) -> bytes:
        body, token = taken
        live = self._live(token)
        operation = getattr(self.queue, how)
        if live is None:
            with pytest.raises(LockLost):
                operation(token, self.now)
        else:
            operation(token, self.now)
            if how == "complete":
                self.finished.add(body)
        return token

    @rule(token=stale_tokens, how=st.sampled_from(["complete", "abandon", "release", "defer"]))
    def settle_again(self, token: bytes, how: str) -> None:
        with pytest.raises(LockLost):
            getattr(self.queue, how)(token, self.now)

    @rule(taken=tokens)
    def renew_message(self, taken: Taken) -> None:
        if self._live(taken.token) is None:
            with pytest.raises(NotAllowed if self.REQUIRES_SESSION else LockLost):
                self.queue.renew(taken.token, self.now)
        elif not self.REQUIRES_SESSION:
            assert self.queue.renew(taken.token, self.now) == self.now + LOCK
            self.locked_until[taken.token] = self.now + LOCK

    @rule(session=st.sampled_from("ab"))
    def take_deferred(self, session: str) -> None:
        key = self._session(session)
        deferred = [
            message.number
            for message in self.queue.peek(1_000, self.now)
            if message.place is Place.DEFERRED and (key is None or message.session_id == key)
        ]
        if deferred and (key is None or self.queue.session_holder(key, self.now) is not None):
            (message,) = self.queue.receive_deferred(deferred[:1], self.now, "client", session_id=key)
            self.queue.complete(message.lock_token, self.now)
            self.finished.add(message.body.decode())

    @rule()
    def cancel_scheduled(self) -> None:
        for message in self.queue.peek(1_000, self.now):
            if message.place is Place.SCHEDULED:
                self.queue.cancel_scheduled([message.number], self.now)
                self.finished.add(message.body.decode())
                return

    @rule()
    def take_dead_letter(self) -> None:
        assert self.dead_letters is not None
        for message in self.dead_letters.receive(1, self.now, "client", delete=True):
            self.finished.add(message.body.decode())

    @rule(seconds=st.sampled_from([0.5, 3.0, LOCK, 40.0]))
    def wait(self, seconds: float) -> None:
        deadline = self.queue.next_deadline()
        self.now += seconds
        if deadline is None or deadline > self.now:
            before = [(m.number, m.place, m.lock_token) for m in self.queue.peek(1_000, self.now - seconds)]
            self.queue.advance(self.now)
            after = [(m.number, m.place, m.lock_token) for m in self.queue.peek(1_000, self.now)]
            assert before == after, "nothing happens before the deadline that was told"

    # -- what must hold -------------------------------------------------------------------------------

    @invariant()
    def each_message_is_in_exactly_one_place(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert self.dead_letters is not None
        self.queue.advance(self.now)
        alive = self.queue.peek(1_000, self.now)
        dead = self.dead_letters.peek(1_000, self.now)
        held = [message.body.decode() for message in (*alive, *dead)]
        assert len(held) == len(set(held)), "no message is in two places"
        assert not set(held) & self.finished, "what is finished does not come back"
        for body in set(self.sent) - self.finished - set(held):
            assert self.expiring.get(body, self.now + 1) <= self.now, f"{body} was lost"
        assert self.queue.size == sum(message.size for message in (*alive, *dead))
        assert self.queue.counts.active + self.queue.counts.scheduled == len(alive)

    @invariant()
    def no_bound_is_exceeded(self) -> None:
        if not hasattr(self, "queue"):
            return
        arrived = 0.0
        for message in self.queue.peek(1_000, self.now):
            assert message.delivery_count < MAX_DELIVERIES
            if message.place is Place.LOCKED:
                assert message.locked_until > self.now
            else:
                assert message.expires_at is None or message.expires_at > self.now
            if message.place is not Place.SCHEDULED:
                assert message.enqueued_at >= arrived, "numbers are given on arrival"
                arrived = message.enqueued_at


class SessionQueueMachine(QueueMachine):
    """The same, with sessions that are accepted, renewed, released, and lost."""

    REQUIRES_SESSION = True

    def _session(self, session: str) -> str | None:
        return session

    @rule(session=st.sampled_from("ab"))
    def accept(self, session: str) -> None:
        if self.queue.session_holder(session, self.now) is None:
            lock = self.queue.accept_session(session, "client", self.now)
            assert lock == (session, self.now + LOCK)

    @rule()
    def accept_any(self) -> None:
        ready = {
            message.session_id
            for message in self.queue.peek(1_000, self.now)
            if message.place is Place.READY
            and self.queue.session_holder(str(message.session_id), self.now) is None
        }
        lock = self.queue.accept_session(None, "client", self.now)
        assert (lock.session_id in ready) if lock else not ready

    @rule(session=st.sampled_from("ab"))
    def renew(self, session: str) -> None:
        if self.queue.session_holder(session, self.now) is None:
            with pytest.raises(SessionLockLost):
                self.queue.renew_session(session, "client", self.now)
        else:
            assert self.queue.renew_session(session, "client", self.now) == self.now + LOCK

    @rule(session=st.sampled_from("ab"))
    def release(self, session: str) -> None:
        self.queue.release_session(session, "client", self.now)
        assert self.queue.session_holder(session, self.now) is None


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=75, stateful_step_count=50)
TestSessionQueue = SessionQueueMachine.TestCase
TestSessionQueue.settings = settings(max_examples=75, stateful_step_count=50)
