"""The semantics of Service Bus queues, without a wire, a clock or a task.

A :class:`Queue` holds messages and decides; its caller passes the time in (seconds since the Unix
epoch) and arranges to call :meth:`Queue.advance` at :meth:`Queue.next_deadline`. Bodies are opaque bytes.
The AMQP server and the in-memory broker are both thin shells over it.

States of a message, each message being in exactly one place::

    send ──────────────► READY ──receive──► LOCKED ──complete──► GONE
      └─(scheduled)─► SCHEDULED ─time─┘ ▲      │ ├─abandon, release, lock expired──► back where it came from
                           └─cancel► GONE │    │ ├─defer──► DEFERRED ──receive_deferred──► LOCKED
                                        └──────┘ └─dead_letter, too many deliveries──► dead-letter queue

Rules (source: the published Service Bus documentation):

* Sequence numbers are given on arrival and order the messages of a session. A message that is given back
  returns to its old place. A scheduled message gets a new number when its time comes.
* A lock token is good for one delivery. Once its lock has expired, been settled or been freed it is refused
  with :class:`LockLost`, whether or not ``advance`` has run in between.
* Abandon, defer and an expired lock count a delivery; release, and closing a session, do not. A message whose
  count reaches ``max_delivery_count`` goes to the dead-letter queue.
* Time to live is suspended while a message is locked and is not observed in the dead-letter queue.
* In a session queue, receiving needs the session's lock, message locks live exactly as long as it, and one
  holder has it at a time. A session exists while it has messages, state or a holder.
* A send is all or nothing. A duplicate, by message id within the window, is accepted and dropped.
* The quota counts the messages of the queue and of its dead-letter queue.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from batchflow.local.queues.model import (
    MAX_ID_LENGTH,
    MAX_STATE_SIZE,
    Draft,
    LockLost,
    LostSession,
    Message,
    MessageCounts,
    MessageNotFound,
    MessageSizeExceeded,
    NotAllowed,
    Place,
    QueueFull,
    QueueProperties,
    SessionCannotBeLocked,
    SessionLock,
    SessionLockLost,
)
from batchflow.local.queues.parts import DuplicateHistory, SessionQueue, TimerKind

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence


def counting_tokens() -> Callable[[], bytes]:
    """Return a source of 16-byte lock tokens that are unique within the queues that share it."""
    counter = itertools.count(1)
    return lambda: next(counter).to_bytes(16, "big")


class Queue:
    """A queue, and under :attr:`dead_letters` its dead-letter queue.

    All methods are synchronous and either do their whole work or raise a :class:`QueueRefusal`. ``now`` must
    never go back. ``receiver_id`` and ``holder`` are the values by which the shell tells receivers apart.
    """

    def __init__(
        self,
        spec: QueueProperties,
        *,
        new_token: Callable[[], bytes] | None = None,
        _is_dead_letters: bool = False,
    ) -> None:
        self._spec = spec
        self._new_token = new_token or counting_tokens()
        self._numbers = itertools.count(1)
        self._messages: dict[int, Message] = {}
        self._locks: dict[bytes, Message] = {}
        self._unsessioned = SessionQueue()
        self._sessions: dict[str, SessionQueue] = {}
        self._available: dict[str, SessionQueue] = {}
        self._timers: list[tuple[float, int, Any]] = []
        self._history = DuplicateHistory()
        self._lost: list[LostSession] = []
        self._scheduled = 0
        self._size = 0
        self.dead_letters: Queue | None = None
        if not _is_dead_letters:
            spec = replace(spec, requires_session=False)
            self.dead_letters = Queue(spec, new_token=self._new_token, _is_dead_letters=True)

    # -- looking ------------------------------------------------------------------------------------------

    @property
    def spec(self) -> QueueProperties:
        """The settings in force."""
        return self._spec

    @property
    def size(self) -> int:
        """Bytes held, those of the dead-letter queue included."""
        return self._size + (self.dead_letters.size if self.dead_letters else 0)

    @property
    def counts(self) -> MessageCounts:
        """The numbers of messages by kind."""
        dead = self.dead_letters.counts.active if self.dead_letters else 0
        return MessageCounts(len(self._messages) - self._scheduled, self._scheduled, dead)

    def has_ready(self, session_id: str | None = None) -> bool:
        """Tell whether a receive (of this session) would find a message."""
        session = self._sessions.get(session_id) if session_id is not None else self._unsessioned
        return session is not None and session.head() is not None

    def has_available_session(self) -> bool:
        """Tell whether a session has messages and no holder."""
        return self._first_available() is not None

    def peek(
        self, n: int, now: float, *, from_number: int = 0, session_id: str | None = None
    ) -> list[Message]:
        """Return up to ``n`` messages in any state, by sequence number, without touching them."""
        self._catch_up(now)
        candidates = (
            number
            for number, message in self._messages.items()
            if number >= from_number and (session_id is None or message.session_id == session_id)
        )
        return [self._messages[number] for number in heapq.nsmallest(n, candidates)]

    def session_ids(self, now: float, *, updated_after: float | None = None) -> list[str]:
        """List sessions with messages or state, sorted; with ``updated_after``, those with a newer state."""
        self._catch_up(now)
        self._need_sessions(wanted=True)
        if updated_after is None:
            return sorted(
                sid for sid, session in self._sessions.items() if session.count or session.state is not None
            )
        return sorted(
            sid
            for sid, session in self._sessions.items()
            if session.state is not None and session.state_updated_at > updated_after
        )

    # -- sending ------------------------------------------------------------------------------------------

    def send(self, drafts: Sequence[Draft], now: float) -> list[int]:
        """Accept the messages, all or none, and return their sequence numbers.

        A duplicate is dropped and answered with the number of the message that it repeats.

        Raises :class:`MessageSizeExceeded`, :class:`QueueFull`, or :class:`NotAllowed` for a missing session
        id or an id that is too long.
        """
        self._catch_up(now)
        total = 0
        for draft in drafts:
            total += self._admissible(draft)
        if self.size + total > self._spec.max_size:
            raise QueueFull(
                f"the queue holds {self.size} of {self._spec.max_size} bytes: no room for {total}"
            )
        return [self._enqueue(draft, now) for draft in drafts]

    def cancel_scheduled(self, numbers: Iterable[int], now: float) -> None:
        """Remove scheduled messages, all or none. Raises :class:`MessageNotFound`."""
        self._catch_up(now)
        for message in self._all_in(Place.SCHEDULED, numbers):
            self._scheduled -= 1
            self._discard(message)

    def _admissible(self, draft: Draft) -> int:
        size = len(draft.body) if draft.size is None else draft.size
        if size > self._spec.max_message_size:
            raise MessageSizeExceeded(
                f"a message of {size} bytes is over the {self._spec.max_message_size} allowed"
            )
        if self._spec.requires_session and draft.session_id is None:
            raise NotAllowed("a queue that requires sessions takes no message without a session id")
        for what in (draft.message_id, draft.session_id):
            if what is not None and len(what) > MAX_ID_LENGTH:
                raise NotAllowed(f"a message id or session id is over {MAX_ID_LENGTH} characters")
        return size

    def _enqueue(self, draft: Draft, now: float) -> int:
        number = next(self._numbers)
        if self._spec.duplicate_window is not None:
            known = self._history.remember(draft.message_id, number, now)
            if known is not None:
                return known
        size = len(draft.body) if draft.size is None else draft.size
        message = Message(
            number, draft.body, draft.message_id, draft.session_id, draft.headers, size, now, draft.ttl, None
        )
        self._size += size
        if draft.scheduled_for is not None and draft.scheduled_for > now:
            self._schedule(message, draft.scheduled_for)
        else:
            self._activate(message, now)
        return number

    def _schedule(self, message: Message, when: float) -> None:
        message.scheduled_for = when
        message.place = Place.SCHEDULED
        self._messages[message.number] = message
        self._scheduled += 1
        self._at(when, TimerKind.SCHEDULE, message.number)

    def _activate(self, message: Message, now: float) -> None:
        message.enqueued_at = now
        self._messages[message.number] = message
        self._start_ttl(message, now)
        session = self._session_of(message)
        session.count += 1
        self._make_ready(session, message)

    def _start_ttl(self, message: Message, now: float) -> None:
        limit = self._spec.default_ttl
        ttl = message.ttl if limit is None or message.ttl is None else min(message.ttl, limit)
        ttl = limit if ttl is None else ttl
        if ttl is not None and self.dead_letters is not None:
            message.expires_at = now + ttl
            self._at(message.expires_at, TimerKind.EXPIRY, message.number)

    # -- receiving ----------------------------------------------------------------------------------------

    def receive(
        self,
        n: int,
        now: float,
        receiver_id: Hashable,
        *,
        session_id: str | None = None,
        delete: bool = False,
    ) -> list[Message]:
        """Take up to ``n`` ready messages, locked for the receiver or, with ``delete``, for good.

        In a session queue ``session_id`` must be locked by ``receiver_id``: :class:`SessionLockLost` if not.
        """
        self._catch_up(now)
        session = self._session_to_receive(session_id, receiver_id)
        taken: list[Message] = []
        while len(taken) < n and (message := session.head()) is not None:
            heapq.heappop(session.heap)
            if delete:
                self._discard(message)
            else:
                self._lock(session, message, now, receiver_id)
            taken.append(message)
        return taken

    def receive_deferred(
        self,
        numbers: Iterable[int],
        now: float,
        receiver_id: Hashable,
        *,
        session_id: str | None = None,
        delete: bool = False,
    ) -> list[Message]:
        """Take deferred messages by number, all or none. Raises :class:`MessageNotFound`."""
        self._catch_up(now)
        session = self._session_to_receive(session_id, receiver_id)
        messages = self._all_in(Place.DEFERRED, numbers)
        if any(message.session_id != session_id for message in messages if self._spec.requires_session):
            raise MessageNotFound(f"not all of the messages belong to session {session_id!r}")
        for message in messages:
            if delete:
                self._discard(message)
            else:
                self._lock(session, message, now, receiver_id)
        return messages

    def renew(self, token: bytes, now: float) -> float:
        """Extend a message's lock to a full lock duration from now, and return its new end.

        Raises :class:`LockLost`, or :class:`NotAllowed` in a session queue, where the session is renewed.
        """
        self._need_sessions(wanted=False)
        message = self._locked(token, now)
        message.locked_until = now + self._spec.lock_duration
        self._at(message.locked_until, TimerKind.LOCK, token)
        return message.locked_until

    def complete(self, token: bytes, now: float) -> None:
        """Remove a locked message for good. Raises :class:`LockLost`."""
        self._discard(self._locked(token, now))

    def abandon(self, token: bytes, now: float) -> None:
        """Give a locked message back, counting the delivery. Raises :class:`LockLost`."""
        self._give_back(self._locked(token, now), now, failed=True)

    def release(self, token: bytes, now: float) -> None:
        """Give a locked message back without counting. Raises :class:`LockLost`."""
        self._give_back(self._locked(token, now), now, failed=False)

    def defer(self, token: bytes, now: float) -> None:
        """Set a locked message aside, to be received by its number only. Raises :class:`LockLost`."""
        message = self._locked(token, now)
        message.deferred = True
        self._give_back(message, now, failed=True)

    def dead_letter(
        self, token: bytes, now: float, reason: str | None = None, description: str | None = None
    ) -> None:
        """Move a locked message to the dead-letter queue. Raises :class:`LockLost`, or :class:`NotAllowed`
        for a message that is there already."""
        message = self._locked(token, now)
        if self.dead_letters is None:
            raise NotAllowed("a message of a dead-letter queue cannot be dead-lettered again")
        self._move_to_dead_letters(message, reason, description)

    def amend(self, token: bytes, now: float, change: Callable[[bytes], bytes]) -> None:
        """Give a locked message another body, made of the one that it has.

        Raises :class:`LockLost`, or :class:`MessageSizeExceeded` when it grows too large.
        """
        message = self._locked(token, now)
        body = change(message.body)
        size = message.size + len(body) - len(message.body)
        if size > self._spec.max_message_size:
            raise MessageSizeExceeded(
                f"a message of {size} bytes is over the {self._spec.max_message_size} allowed"
            )
        self._size += size - message.size
        message.body, message.size = body, size

    def _session_to_receive(self, session_id: str | None, receiver_id: Hashable) -> SessionQueue:
        if not self._spec.requires_session:
            return self._unsessioned
        if session_id is None:
            raise NotAllowed("a queue that requires sessions can only be received from in a session")
        return self._held(session_id, receiver_id)

    def _lock(self, session: SessionQueue, message: Message, now: float, receiver_id: Hashable) -> None:
        token = self._new_token()
        message.place = Place.LOCKED
        message.lock_token = token
        message.receiver_id = receiver_id
        self._locks[token] = message
        if session.holder is None:
            message.locked_until = now + self._spec.lock_duration
            self._at(message.locked_until, TimerKind.LOCK, token)
        else:
            message.locked_until = session.locked_until
            session.tokens.add(token)

    def _locked(self, token: bytes, now: float) -> Message:
        self._catch_up(now)
        message = self._locks.get(token)
        if message is None:
            raise LockLost("the lock is unknown, or has expired, or the message was settled already")
        return message

    def _unlock(self, message: Message) -> None:
        del self._locks[message.lock_token]
        self._session_of(message).tokens.discard(message.lock_token)
        message.lock_token = b""
        message.place = Place.GONE

    def _give_back(self, message: Message, now: float, *, failed: bool) -> None:
        self._unlock(message)
        message.delivery_count += failed
        if message.expires_at is not None and message.expires_at <= now:
            self._expire(message)
        elif self.dead_letters is not None and message.delivery_count >= self._spec.max_delivery_count:
            count = message.delivery_count
            self._move_to_dead_letters(
                message,
                "MaxDeliveryCountExceeded",
                f"Message could not be consumed after {count} delivery attempts.",
            )
        else:
            self._put_back(message)

    def _put_back(self, message: Message) -> None:
        if message.expires_at is not None:
            self._at(message.expires_at, TimerKind.EXPIRY, message.number)
        if message.deferred:
            message.place = Place.DEFERRED
        else:
            self._make_ready(self._session_of(message), message)

    # -- sessions -----------------------------------------------------------------------------------------

    def accept_session(self, session_id: str | None, holder: Hashable, now: float) -> SessionLock | None:
        """Lock a session for ``holder``: the one named, or any that has messages and no holder.

        Returns None when none was named and none is available. A named session need not exist before.
        Raises :class:`SessionCannotBeLocked` when another holder has it.
        """
        self._catch_up(now)
        self._need_sessions(wanted=True)
        if session_id is None:
            session_id = self._first_available()
            if session_id is None:
                return None
        elif len(session_id) > MAX_ID_LENGTH:
            raise NotAllowed(f"a session id is over {MAX_ID_LENGTH} characters")
        session = self._session(session_id)
        if session.holder is not None:
            raise SessionCannotBeLocked(f"session {session_id!r} is locked by another receiver")
        session.holder = holder
        self._available.pop(session_id, None)
        self._extend(session, session_id, now)
        return SessionLock(session_id, session.locked_until)

    def renew_session(self, session_id: str, holder: Hashable, now: float) -> float:
        """Extend the session's lock, and with it those of its messages; returns its new end.

        Raises :class:`SessionLockLost`.
        """
        self._catch_up(now)
        session = self._held(session_id, holder)
        self._extend(session, session_id, now)
        return session.locked_until

    def release_session(self, session_id: str, holder: Hashable, now: float) -> None:
        """Free a session; what is locked in it is given back without counting. No error if not held."""
        self._catch_up(now)
        session = self._sessions.get(session_id)
        if session is not None and session.holder == holder:
            self._free(session, session_id, now, failed=False)

    def session_state(self, session_id: str, holder: Hashable, now: float) -> bytes | None:
        """Return the session's state. Raises :class:`SessionLockLost`."""
        self._catch_up(now)
        return self._held(session_id, holder).state

    def set_session_state(self, session_id: str, holder: Hashable, state: bytes | None, now: float) -> None:
        """Set or, with None, clear the session's state. Raises :class:`SessionLockLost`,
        :class:`MessageSizeExceeded`."""
        self._catch_up(now)
        session = self._held(session_id, holder)
        if state is not None and len(state) > MAX_STATE_SIZE:
            raise MessageSizeExceeded(f"a session state of {len(state)} bytes is over {MAX_STATE_SIZE}")
        session.state = state
        session.state_updated_at = now

    def session_holder(self, session_id: str, now: float) -> Hashable:
        """Return the holder of the session; None when it has none."""
        self._catch_up(now)
        session = self._sessions.get(session_id)
        return session.holder if session is not None else None

    def _session(self, session_id: str) -> SessionQueue:
        session = self._sessions.get(session_id)
        if session is None:
            session = self._sessions[session_id] = SessionQueue(session_id)
        return session

    def _held(self, session_id: str, holder: Hashable) -> SessionQueue:
        session = self._sessions.get(session_id)
        if session is None or session.holder is None or session.holder != holder:
            raise SessionLockLost(f"the lock of session {session_id!r} is not held, or has expired")
        return session

    def _extend(self, session: SessionQueue, session_id: str, now: float) -> None:
        session.locked_until = now + self._spec.lock_duration
        for token in session.tokens:
            self._locks[token].locked_until = session.locked_until
        self._at(session.locked_until, TimerKind.SESSION_LOCK, session_id)

    def _free(self, session: SessionQueue, session_id: str, now: float, *, failed: bool) -> None:
        session.holder = None
        for token in list(session.tokens):
            self._give_back(self._locks[token], now, failed=failed)
        if session.head() is not None:
            self._available[session_id] = session
        self._drop_if_empty(session)

    def _first_available(self) -> str | None:
        for session_id in list(self._available):
            if self._available[session_id].head() is not None:
                return session_id
            del self._available[session_id]
        return None

    def _need_sessions(self, *, wanted: bool) -> None:
        if self._spec.requires_session != wanted:
            kind = "requires" if self._spec.requires_session else "does not have"
            raise NotAllowed(f"the operation does not fit a queue that {kind} sessions")

    # -- time ---------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Return the time at which :meth:`advance` is due, or a slightly earlier one."""
        if self._lost:
            return 0.0
        timers = self._timers
        while timers and not self._pending(*timers[0]):
            heapq.heappop(timers)
        mine = timers[0][0] if timers else None
        theirs = self.dead_letters.next_deadline() if self.dead_letters else None
        return mine if theirs is None else theirs if mine is None else min(mine, theirs)

    def advance(self, now: float) -> list[LostSession]:
        """Do what has come due, and tell whose session locks ran out since last asked."""
        self._catch_up(now)
        if self.dead_letters:
            self.dead_letters.advance(now)
        lost, self._lost = self._lost, []
        return lost

    def reconfigure(self, spec: QueueProperties) -> None:
        """Change the settings; locks and expiries that already run keep their ends.

        Raises :class:`NotAllowed` for a change of what is fixed at creation.
        """
        fixed = (self._spec.requires_session, self._spec.duplicate_window is None)
        if fixed != (spec.requires_session, spec.duplicate_window is None):
            raise NotAllowed("sessions and duplicate detection are fixed when a queue is created")
        self._spec = spec
        if self.dead_letters:
            self.dead_letters.reconfigure(replace(spec, requires_session=False))

    def _at(self, when: float, what: TimerKind, key: object) -> None:
        heapq.heappush(self._timers, (when, what, key))

    def _catch_up(self, now: float) -> None:
        timers = self._timers
        while timers and timers[0][0] <= now:
            timer = heapq.heappop(timers)
            if self._pending(*timer):
                self._fire(*timer)
        if self._spec.duplicate_window is not None:
            self._history.forget(now - self._spec.duplicate_window)

    def _pending(self, when: float, what: int, key: Any) -> bool:
        """Tell whether a timer still applies: locks are renewed and settled without touching the heap."""
        if what == TimerKind.LOCK:
            message = self._locks.get(key)
            return message is not None and message.locked_until == when
        if what == TimerKind.SESSION_LOCK:
            session = self._sessions.get(key)
            return session is not None and session.holder is not None and session.locked_until == when
        return self._pending_message(when, what, self._messages.get(key))

    @staticmethod
    def _pending_message(when: float, what: int, message: Message | None) -> bool:
        if message is None:
            return False
        if what == TimerKind.SCHEDULE:
            return message.place is Place.SCHEDULED
        return message.place is not Place.LOCKED and message.expires_at == when

    def _fire(self, when: float, what: int, key: Any) -> None:
        match what:
            case TimerKind.SCHEDULE:
                message = self._messages.pop(key)
                self._scheduled -= 1
                message.number = next(self._numbers)
                self._activate(message, when)
            case TimerKind.SESSION_LOCK:
                session = self._sessions[key]
                self._lost.append(LostSession(key, session.holder))
                self._free(session, key, when, failed=True)
            case TimerKind.LOCK:
                self._give_back(self._locks[key], when, failed=True)
            case TimerKind.EXPIRY:
                self._expire(self._messages[key])

    # -- moving -------------------------------------------------------------------------------------------

    def _session_of(self, message: Message) -> SessionQueue:
        if self._spec.requires_session and message.session_id is not None:
            return self._session(message.session_id)
        return self._unsessioned

    def _make_ready(self, session: SessionQueue, message: Message) -> None:
        session.push(message)
        if session.session_id is not None and session.holder is None:
            self._available[session.session_id] = session

    def _all_in(self, place: Place, numbers: Iterable[int]) -> list[Message]:
        found = [self._messages.get(number) for number in dict.fromkeys(numbers)]
        messages = [message for message in found if message is not None and message.place is place]
        if len(messages) != len(found):
            raise MessageNotFound(f"not all of the sequence numbers name a {place.value} message")
        return messages

    def _expire(self, message: Message) -> None:
        if self._spec.dead_letter_on_expiration:
            self._move_to_dead_letters(
                message, "TTLExpiredException", "The message expired and was dead lettered."
            )
        else:
            self._discard(message)

    def _move_to_dead_letters(self, message: Message, reason: str | None, description: str | None) -> None:
        assert self.dead_letters is not None, "the queue has a dead-letter queue"
        self._discard(message)
        self.dead_letters._admit(
            replace(
                message,
                place=Place.READY,
                expires_at=None,
                deferred=False,
                lock_token=b"",
                dead_letter_reason=reason,
                dead_letter_description=description,
            )
        )

    def _admit(self, message: Message) -> None:
        self._messages[message.number] = message
        self._size += message.size
        self._unsessioned.count += 1
        self._unsessioned.push(message)

    def _discard(self, message: Message) -> None:
        """Take a message out of the queue, from any place."""
        if message.place is Place.LOCKED:
            self._unlock(message)
        del self._messages[message.number]
        self._size -= message.size
        if message.place is not Place.SCHEDULED:
            session = self._session_of(message)
            session.count -= 1
            self._drop_if_empty(session)
        message.place = Place.GONE

    def _drop_if_empty(self, session: SessionQueue) -> None:
        if session.session_id is not None and session.empty:
            self._sessions.pop(session.session_id, None)
            self._available.pop(session.session_id, None)
