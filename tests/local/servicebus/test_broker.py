"""The broker frame by frame, without sockets: rights, idleness, tokens and faults; time moves by hand."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote_plus
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchflow.local.amqp.codec import (
    Array,
    Described,
    Symbol,
    Timestamp,
    UInt,
    ULong,
    decode,
    encode,
    encode_described,
    encode_list,
)
from batchflow.local.amqp.performatives import EMPTY_FRAME, SASL_HEADER, frame
from batchflow.local.queues import counting_tokens
from batchflow.local.security.sas import Rights, SasRule, sign
from batchflow.local.servicebus.core.broker import BrokerCore, Peer
from batchflow.local.servicebus.core.namespace import Namespace, QueueSettings
from tests.support.work import steps

ATTACH, FLOW, TRANSFER, DISPOSITION, DETACH, END, CLOSE = range(0x12, 0x19)
ACCEPTED, REJECTED, RELEASED, MODIFIED = 0x24, 0x25, 0x26, 0x27
ROOT = "RootManageSharedAccessKey"
START = 1_000_000.0


def message(body: bytes = b"body", *, message_id: str = "id", session: str | None = None) -> bytes:
    properties = encode_described(0x73, encode([message_id, *[None] * 9, session]))
    return properties + encode_described(0x75, encode(body))


class World:
    """A broker with a queue and a clock."""

    def __init__(self, amqp_client: Any) -> None:
        self.now = START
        namespace = Namespace("root-key", counting_tokens(), START)
        self.errors: list[str] = []
        self.broker = BrokerCore(namespace, link_idle_timeout=600.0, on_error=self.errors.append)
        rules = (
            SasRule("send", Rights.SEND, "k1", "k2"),
            SasRule("listen", Rights.LISTEN, "k3", "k4"),
        )
        self.broker.create_queue("q", QueueSettings(rules=rules, lock_duration=60.0), START)
        self.broker.create_queue("s", QueueSettings(requires_session=True), START)
        self._client = amqp_client

    def connect(
        self,
        rule: str | None = ROOT,
        key: str = "root-key",
        *,
        until: float = 1e10,
        path: str = "q",
        idle_ms: int | None = None,
    ) -> Any:
        """Connect, open, and put a token for everything that the rule covers."""
        peer = self.broker.connect(self.now)
        client = self._client(lambda data: self.feed(peer, data))
        client.peer = peer
        client.open(idle_ms=idle_ms)
        if rule is not None:
            client.attach(200, "$cbs", "replies", receives=True)
            client.credit(200, 100)
            client.attach(201, "x", "$cbs", receives=False)
            client.token_reply = self.put_token(client, rule, key, until, path)
        return client

    def put_token(self, client: Any, rule: str, key: str, until: float, path: str = "q") -> int:
        resource = quote_plus("sb://host" if rule == ROOT else f"sb://host/{path}")
        expiry = str(int(until))
        signature = quote_plus(sign(key, resource, expiry).decode())
        token = f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn={rule}"
        properties = {"operation": "put-token", "name": f"sb://host/{path}", "type": "jwt"}
        reply = self.ask(client, 201, properties, token)
        return int(reply[0]["status-code"])

    def ask(self, client: Any, handle: int, properties: dict[str, Any], body: Any) -> tuple[Any, Any]:
        request = (
            encode_described(0x73, encode([ULong(7)]))
            + encode_described(0x74, encode(properties))
            + encode_described(0x77, encode(body))
        )
        frames = client.transfer(handle, 0, request)
        (payload,) = [each.payload for each in frames if each.code == TRANSFER]
        about, end = decode(payload)
        assert about.value[5] == 7, "the reply names the request, with its type"
        told, end = decode(payload, end)
        return told.value, decode(payload, end)[0].value

    def manage(self, client: Any, operation: str, **body: Any) -> tuple[int, Any, str | None]:
        """Send a request to $management: the status, the body and the error condition of the reply."""
        properties = {"operation": f"com.microsoft:{operation}"}
        named = {key.replace("_", "-"): value for key, value in body.items()}
        told, answer = self.ask(client, 211, properties, named)
        return told["statusCode"], answer, told.get("errorCondition")

    def management(self, client: Any, queue: str = "q") -> None:
        client.attach(210, f"{queue}/$management", "replies", receives=True)
        client.credit(210, 100)
        client.attach(211, "x", f"{queue}/$management", receives=False)

    def feed(self, peer: Peer, data: bytes) -> bytes:
        peer.receive(data, self.now)
        self.broker.take_touched(self.now)
        return peer.connection.data_to_send(self.now)

    def advance(self, to: float) -> None:
        """Move the clock from deadline to deadline."""
        while (deadline := self.broker.next_deadline()) is not None and deadline <= to:
            self.now = max(self.now, deadline)
            self.broker.tick(self.now)
            self.broker.take_touched(self.now)
        self.now = to


@pytest.fixture
def world(amqp_client: Any) -> World:
    return World(amqp_client)


def error_of(frames: list[Any]) -> str:
    return str(frames[-1].fields[-1].value[0])


def outcome_of(frames: list[Any]) -> tuple[int, str | None]:
    """The outcome of the one disposition among the frames, and the condition of its error."""
    (state,) = [each.fields[4] for each in frames if each.code == DISPOSITION]
    return state.descriptor, state.value[0].value[0] if state.value else None


# -- rights -----------------------------------------------------------------------------------------------


def test_without_a_token_nothing_but_cbs_can_be_attached(world: World) -> None:
    """Not even the management of a queue, and one cannot tell whether a queue exists."""
    client = world.connect(rule=None)
    for name in ("q", "missing", "q/$management", "q/$DeadLetterQueue"):
        assert error_of(client.attach(0, name, "x", receives=True)) == "amqp:unauthorized-access"


def test_a_token_counts_on_its_connection_alone(world: World) -> None:
    """Another connection has to put its own."""
    world.connect()
    stranger = world.connect(rule=None)
    assert error_of(stranger.attach(0, "x", "q", receives=False)) == "amqp:unauthorized-access"


@pytest.mark.parametrize(
    ("rule", "key", "status"), [("send", "k2", 202), ("send", "k3", 401), ("nobody", "k1", 401)]
)
def test_a_token_is_signed_by_a_key_of_its_rule(world: World, rule: str, key: str, status: int) -> None:
    """Either key of the rule, and no other."""
    assert world.connect(rule, key).token_reply == status


def test_a_rule_of_a_queue_covers_that_queue(world: World) -> None:
    """With its right, its dead letters included, and no other queue."""
    client = world.connect("listen", "k3")
    assert client.attach(0, "Q/$deadletterqueue", "x", receives=True)[-1].code == ATTACH
    assert error_of(client.attach(1, "s", "x", receives=True)) == "amqp:unauthorized-access"
    assert error_of(client.attach(2, "x", "q", receives=False)) == "amqp:unauthorized-access"


def test_each_request_needs_its_own_right(world: World) -> None:
    """A management link that may be opened does not permit all that can be asked there."""
    sender = world.connect("send", "k1")
    world.management(sender)
    status, _, condition = world.manage(sender, "peek-message", from_sequence_number=0, message_count=1)
    assert (status, condition) == (401, "amqp:unauthorized-access")
    listener = world.connect("listen", "k3")
    world.management(listener)
    assert world.manage(listener, "schedule-message", messages=[])[0] == 401
    assert world.manage(listener, "peek-message", from_sequence_number=0, message_count=1)[0] == 204


def test_links_end_with_the_token_that_permitted_them(world: World) -> None:
    """A new one in time keeps them."""
    keeps, loses = (world.connect(until=START + 100) for _ in range(2))
    for client in (keeps, loses):
        client.attach(0, "q", "x", receives=True)
    world.put_token(keeps, ROOT, "root-key", START + 1_000)
    world.advance(START + 101)
    assert keeps.send(b"") == []
    (detached,) = loses.send(b"")
    assert (detached.code, error_of([detached])) == (DETACH, "amqp:unauthorized-access")


def test_a_token_for_the_dead_letters_alone_keeps_their_link(world: World) -> None:
    """SDKs put one for the very address that they attach to."""
    client = world.connect("listen", "k3", path="q/$DeadLetterQueue")
    assert error_of(client.attach(1, "q", "x", receives=True)) == "amqp:unauthorized-access"
    client.attach(0, "q/$DeadLetterQueue", "x", receives=True)
    world.advance(START + 470)
    client.send(EMPTY_FRAME)
    world.advance(START + 500)
    assert client.send(b"") == []


# -- idleness ---------------------------------------------------------------------------------------------


def test_a_link_without_traffic_is_detached_and_then_its_connection_closed(world: World) -> None:
    """After the idle time, and after half of it more."""
    client = world.connect()
    client.attach(0, "q", "x", receives=True)
    world.advance(START + 300)
    client.credit(0, 1)
    for later in (600, 899):
        world.advance(START + later)
        client.send(EMPTY_FRAME)
    world.advance(START + 901)
    (detached,) = client.send(b"")
    assert (detached.code, error_of([detached])) == (DETACH, "amqp:link:detach-forced")
    world.advance(START + 1_202)
    assert client.peer.ended
    (closed,) = client.send(b"")
    assert (closed.code, error_of([closed])) == (CLOSE, "amqp:connection:forced")


def test_a_peer_that_wants_heartbeats_gets_them(world: World) -> None:
    """One for each half of its time, for as long as it is there."""
    client = world.connect(idle_ms=60_000)
    for _ in range(3):
        world.advance(world.now + 30.5)
        assert client.peer.connection.data_to_send(world.now) == EMPTY_FRAME


def test_an_idle_queue_deletes_itself(world: World) -> None:
    """Not while someone is attached to it."""
    world.broker.create_queue("brief", QueueSettings(auto_delete_on_idle=300.0), START)
    client = world.connect()
    client.attach(0, "brief", "x", receives=True)
    world.advance(START + 450)
    client.perform(1, DETACH, UInt(0), True)
    world.advance(START + 599)
    assert world.broker.namespace.find("brief") is not None
    world.advance(START + 601)
    assert world.broker.namespace.find("brief") is None
    assert error_of(client.attach(0, "brief", "x", receives=True)) == "amqp:not-found"


# -- messages ---------------------------------------------------------------------------------------------


def receiver(world: World, credit: int = 10, **more: Any) -> Any:
    client = world.connect()
    client.attach(0, "q", "x", receives=True, **more)
    client.credit(0, credit)
    return client


def put(world: World, *bodies: bytes) -> None:
    sender = world.connect()
    sender.attach(0, "x", "q", receives=False)
    for index, body in enumerate(bodies):
        assert outcome_of(sender.transfer(0, index, message(body)))[0] == ACCEPTED


def test_receivers_with_credit_take_turns(world: World) -> None:
    """Each gets one after the other, and no more than it asked for."""
    first, second = receiver(world, 2), receiver(world, 1)
    put(world, b"1", b"2", b"3", b"4")
    world.broker.take_touched(world.now)
    counts = [len([each for each in client.send(b"") if each.code == TRANSFER]) for client in (first, second)]
    assert counts == [2, 1]
    assert world.broker.namespace.entities["q"].queue.has_ready()


@pytest.mark.parametrize(
    ("state", "fields", "answer"),
    [
        (ACCEPTED, (), (ACCEPTED, None)),
        (RELEASED, (), (RELEASED, None)),
        (REJECTED, (), (REJECTED, None)),
        (MODIFIED, (True, False), (MODIFIED, True)),
        (MODIFIED, (True, True), (MODIFIED, True)),
        (MODIFIED, (None, False), (MODIFIED, False)),
        (MODIFIED, (True, False, {Symbol("a"): 1}), (MODIFIED, True)),
        (MODIFIED, (True, False, {Symbol("a"): [1]}), (REJECTED, "amqp:not-allowed")),
        (MODIFIED, (True, False, {1: 1}), (REJECTED, "amqp:not-allowed")),
        (MODIFIED, (True, False, "a"), (REJECTED, "amqp:not-allowed")),
        (0x99, (), (REJECTED, "amqp:not-implemented")),
    ],
)
def test_an_outcome_is_echoed(world: World, state: int, fields: Any, answer: Any) -> None:
    """Settled, with the same outcome, or rejected with the reason why not."""
    client = receiver(world, credit=1)
    put(world, b"x")
    client.send(b"")
    frames = client.settle(1, state, *fields)
    (settled,) = [each for each in frames if each.code == DISPOSITION]
    assert settled.fields[:4] == [False, 1, None, True]
    outcome = settled.fields[4]
    first = outcome.value[0] if outcome.value else None
    assert (outcome.descriptor, first.value[0] if isinstance(first, Described) else first) == answer


def test_a_settlement_after_the_lock_is_rejected_with_the_reason(world: World) -> None:
    """Even when the client never heard that the lock was lost."""
    client = receiver(world, credit=1)
    put(world, b"x")
    client.send(b"")
    world.advance(START + 60)
    assert outcome_of(client.settle(1, ACCEPTED)) == (REJECTED, "com.microsoft:message-lock-lost")


def test_what_is_not_a_message_is_rejected(world: World) -> None:
    """And the sender goes on."""
    client = world.connect()
    client.attach(0, "x", "q", receives=False)
    assert outcome_of(client.transfer(0, 0, b"garbage")) == (REJECTED, "amqp:decode-error")
    batch = encode_described(0x75, encode(b"garbage"))
    assert outcome_of(client.transfer(0, 1, batch, message_format=0x80013700))[0] == REJECTED
    assert outcome_of(client.transfer(0, 2, message()))[0] == ACCEPTED


def test_many_sessions_of_one_connection_work_side_by_side(world: World) -> None:
    """As the JavaScript SDK uses them: a channel for each link."""
    client = world.connect()
    for channel in range(2, 40):
        client.begin(channel)
        frames = client.attach(0, "x", "q", receives=False, channel=channel)
        assert frames[0].channel == channel
        assert outcome_of(client.transfer(0, 0, message(), channel=channel))[0] == ACCEPTED
    assert world.broker.namespace.entities["q"].queue.counts.active == 38


def test_nothing_is_sent_to_dead_letters_topics_or_transactions(world: World) -> None:
    """Each refusal says what it is."""
    client = world.connect()
    assert error_of(client.attach(0, "x", "q/$DeadLetterQueue", receives=False)) == "amqp:not-allowed"
    subscription = "topic/Subscriptions/one"
    assert error_of(client.attach(0, subscription, "x", receives=True)) == "amqp:not-implemented"
    coordinator = Described(ULong(0x30), [])
    source = Described(ULong(0x28), ["x"])
    frames = client.perform(1, ATTACH, "tx", UInt(3), False, None, None, source, coordinator)
    assert error_of(frames) == "amqp:not-implemented"
    assert error_of(client.attach(0, "x", None, receives=False)) == "amqp:invalid-field"


# -- sessions ---------------------------------------------------------------------------------------------

FILTER = Symbol("com.microsoft:session-filter")


def test_a_session_link_is_answered_with_the_session(world: World) -> None:
    """Its id in the filter, described or not, and the end of its lock in ticks."""
    client = world.connect()
    described = Described(Symbol("com.microsoft:session-filter"), "a")
    (attached,) = client.attach(0, "s", "x", receives=True, filters={FILTER: described})
    assert attached.fields[5].value[7] == {"com.microsoft:session-filter": "a"}
    ticks = attached.fields[13]["com.microsoft:locked-until-utc"]
    assert (ticks - 621_355_968_000_000_000) / 10_000_000 == START + 60
    refused = client.attach(1, "s", "x", receives=True, filters={FILTER: "a"})
    assert error_of(refused) == "com.microsoft:session-cannot-be-locked"
    assert error_of(client.attach(2, "s", "x", receives=True)) == "amqp:not-allowed"
    assert error_of(client.attach(3, "q", "x", receives=True, filters={FILTER: "a"})) == "amqp:not-allowed"
    assert error_of(client.attach(4, "s", "x", receives=True, filters={FILTER: 5})) == "amqp:invalid-field"


def test_an_attach_to_any_session_is_held_back(world: World) -> None:
    """Until there is one, until its time is up, or until the client has gone."""
    waits, impatient, gone = (world.connect() for _ in range(3))
    brief = {Symbol("com.microsoft:timeout"): UInt(500)}
    assert waits.attach(0, "s", "x", receives=True, filters={FILTER: None}) == []
    assert impatient.attach(0, "s", "x", receives=True, filters={FILTER: None}, properties=brief) == []
    assert gone.attach(0, "s", "x", receives=True, filters={FILTER: None}) == []
    gone.peer.lost(world.now)
    world.advance(START + 1)
    assert error_of(impatient.send(b"")) == "com.microsoft:timeout"
    sender = world.connect()
    sender.attach(0, "x", "s", receives=False)
    for index in range(2):
        sender.transfer(0, index, message(session=f"s{index}"))
    (attached,) = waits.send(b"")
    assert attached.fields[5].value[7] == {"com.microsoft:session-filter": "s0"}
    (attached,) = waits.attach(1, "s", "x", receives=True, filters={FILTER: None})
    assert attached.fields[5].value[7] == {"com.microsoft:session-filter": "s1"}


def test_a_session_lock_that_runs_out_ends_the_link(world: World) -> None:
    """With the error for it; and the session is free for another."""
    client = world.connect()
    client.attach(0, "s", "x", receives=True, filters={FILTER: "a"})
    world.advance(START + 61)
    assert error_of(client.send(b"")) == "com.microsoft:session-lock-lost"
    assert client.attach(1, "s", "x", receives=True, filters={FILTER: "a"})[-1].code == ATTACH


def test_a_session_s_requests_come_from_the_connection_that_holds_it(world: World) -> None:
    """Another one is told that it has lost the lock."""
    holder, other = world.connect(), world.connect()
    holder.attach(0, "s", "x", receives=True, filters={FILTER: "a"})
    for client in (holder, other):
        world.management(client, "s")
    assert world.manage(holder, "set-session-state", session_id="a", session_state=b"x")[0] == 200
    assert world.manage(holder, "get-session-state", session_id="a")[1] == {"session-state": b"x"}
    for operation in ("get-session-state", "renew-session-lock"):
        status, _, condition = world.manage(other, operation, session_id="a")
        assert (status, condition) == (410, "com.microsoft:session-lock-lost")
    never = Timestamp(253_402_300_800_000)
    listed = world.manage(other, "get-message-sessions", last_updated_time=never, skip=0, top=10)
    assert listed[1] == {"sessions-ids": ["a"], "skip": 1}


# -- requests and faults ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "body", "status"),
    [
        ("no-such-operation", {}, 501),
        ("renew-lock", {}, 400),
        ("renew-lock", {"lock_tokens": ["text"]}, 400),
        ("renew-lock", {"lock_tokens": Array(UUID, [UUID(int=1)])}, 410),
        ("update-disposition", {"lock_tokens": [], "disposition_status": "eaten"}, 400),
        ("cancel-scheduled-message", {"sequence_numbers": [5]}, 404),
        ("receive-by-sequence-number", {"sequence_numbers": ["x"], "receiver_settle_mode": UInt(0)}, 400),
        ("schedule-message", {"messages": [{"message": "text"}]}, 400),
        ("schedule-message", {"messages": [{"message": b"garbage"}]}, 400),
        ("get-session-state", {"session_id": "a"}, 410),
        ("get-message-sessions", {"last_updated_time": Timestamp(0), "skip": 0, "top": 1}, 400),
    ],
)
def test_bad_requests_are_told_so(world: World, operation: str, body: Any, status: int) -> None:
    """Each with its status, none with more."""
    client = world.connect()
    world.management(client)
    assert world.manage(client, operation, **body)[0] == status


def test_while_throttled_everything_is_refused_and_messages_wait(world: World) -> None:
    """With 50009; afterwards all goes on by itself."""
    client = receiver(world, credit=10)
    world.management(client)
    sender = world.connect()
    sender.attach(0, "x", "q", receives=False)
    world.broker.throttle(5.0, world.now)
    descriptor, condition = outcome_of(sender.transfer(0, 0, message()))
    assert (descriptor, condition) == (REJECTED, "com.microsoft:server-busy")
    assert world.manage(client, "renew-lock", lock_tokens=[])[0] == 503
    assert error_of(sender.attach(1, "x", "q", receives=False)) == "com.microsoft:server-busy"
    world.broker.namespace.entities["q"].queue.send([], world.now)
    world.advance(START + 5.1)
    assert outcome_of(sender.transfer(0, 1, message()))[0] == ACCEPTED
    assert [each.code for each in client.send(b"")] == [TRANSFER]


# -- strangers --------------------------------------------------------------------------------------------


def test_a_connection_without_a_token_is_closed(world: World) -> None:
    """After twenty seconds, as on Azure; what it sends meanwhile does not change that."""
    client = world.connect(rule=None)
    client.attach(0, "$cbs", "replies", receives=True)
    world.advance(START + 19.9)
    client.send(EMPTY_FRAME)
    assert not client.peer.ended
    world.advance(START + 20.0)
    assert client.peer.ended
    (closed,) = client.send(b"")
    assert (closed.code, error_of([closed])) == (CLOSE, "amqp:unauthorized-access")


def test_a_token_that_is_refused_makes_nobody_known(world: World) -> None:
    """A valid one does."""
    client = world.connect(key="wrong")
    assert client.token_reply == 401
    assert not client.peer.connection.known
    known = world.connect()
    world.advance(START + 25.0)
    assert (client.peer.ended, known.peer.ended) == (True, False)


def plain(name: str, key: str) -> bytes:
    response = encode(b"\0" + name.encode() + b"\0" + key.encode())
    init = encode_described(0x41, encode_list([encode(Symbol("PLAIN")), response]))
    return SASL_HEADER + frame(0, init, 1)


def login(world: World, name: str, key: str) -> Any:
    peer = world.broker.connect(world.now)
    client = world._client(lambda data: world.feed(peer, data))
    client.peer = peer
    client.send(plain(name, key))
    return client


def test_a_rule_s_name_and_key_are_a_password(world: World) -> None:
    """It lasts as long as the connection, and no token is needed."""
    client = login(world, ROOT, "root-key")
    client.open()
    world.advance(START + 100)
    client.attach(0, "x", "q", receives=False)
    assert outcome_of(client.transfer(0, 0, message()))[0] == ACCEPTED
    assert not client.peer.ended


def test_a_password_gives_the_rights_of_its_rule(world: World) -> None:
    """Those of a queue's own rule hold at that queue."""
    client = login(world, "send", "k2")
    client.open()
    assert error_of(client.attach(0, "q", "x", receives=True)) == "amqp:unauthorized-access"
    assert error_of(client.attach(1, "x", "s", receives=False)) == "amqp:unauthorized-access"
    client.attach(2, "x", "q", receives=False)
    assert outcome_of(client.transfer(2, 0, message()))[0] == ACCEPTED


@pytest.mark.parametrize(("name", "key"), [(ROOT, "k1"), ("send", "root-key"), ("", ""), ("none", "k1")])
def test_a_wrong_password_is_refused(world: World, name: str, key: str) -> None:
    """The outcome says so; nothing else does."""
    assert login(world, name, key).peer.ended


def test_what_a_stranger_sends_is_bounded(world: World) -> None:
    """A request to $cbs that never ends is not kept."""
    client = world.connect(rule=None)
    client.attach(0, "x", "$cbs", receives=False)
    frames: list[Any] = []
    for _ in range(20):
        frames += client.transfer(0, 0, bytes(16_000), more=True)
    assert error_of(frames) == "amqp:link:message-size-exceeded"


def test_the_id_of_a_request_is_bounded(world: World) -> None:
    """For it is echoed, and replies wait for credit."""
    client = world.connect(rule=None)
    client.attach(0, "x", "$cbs", receives=False)
    request = encode_described(0x73, encode(["i" * 2_000])) + encode_described(0x77, encode("token"))
    assert outcome_of(client.transfer(0, 0, request)) == (REJECTED, "amqp:decode-error")


def test_a_path_of_many_parts_is_looked_up_with_work_in_proportion(world: World) -> None:
    """Whatever the length of an address."""

    def attached(length: int) -> int:
        client = world.connect()
        address = "a/" * length
        return steps(lambda: client.attach(0, address, "x", receives=True))

    assert attached(8_000) < 1.5 * attached(4_000)


# -- many links, and failures -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "filters"), [("q", None), ("s", {Symbol("com.microsoft:session-filter"): None})]
)
def test_many_links_come_and_go_with_work_in_proportion(
    world: World, address: str, filters: dict[Any, Any] | None
) -> None:
    """Attaching and detaching n links costs n times what one does."""

    def life(count: int) -> int:
        client = world.connect()
        client.begin(2)

        def come_and_go() -> None:
            for handle in range(count):
                client.attach(handle, address, "x", receives=True, channel=2, filters=filters)
            for handle in range(count):
                client.perform(2, DETACH, UInt(handle), True)

        return steps(come_and_go)

    life(1)
    assert life(80) < 2.4 * life(40)


def recorded(world: World) -> tuple[list[bytes], Any]:
    """A client whose bytes are kept instead of being sent."""
    sent: list[bytes] = []

    def keep(data: bytes) -> bytes:
        sent.append(data)
        return b""

    return sent, world._client(keep)


def test_a_link_detached_in_the_segment_of_its_attach_holds_nothing(world: World) -> None:
    """It is answered once."""
    client = world.connect()
    sent, recorder = recorded(world)
    recorder.attach(0, "q", "x", receives=True)
    recorder.perform(1, DETACH, UInt(0), True)
    assert [each.code for each in client.send(b"".join(sent))] == [ATTACH, DETACH]
    node = world.broker.node("q")
    assert node is not None
    assert node.idle


def test_credit_that_came_before_a_session_was_free_counts(world: World) -> None:
    """The attach is held back, the credit is not lost."""
    client = world.connect()
    sent, recorder = recorded(world)
    recorder.attach(0, "s", "x", receives=True, filters={Symbol("com.microsoft:session-filter"): None})
    recorder.credit(0, 1)
    assert client.send(b"".join(sent)) == []
    sender = world.connect()
    sender.attach(0, "x", "s", receives=False)
    sender.transfer(0, 0, message(session="one"))
    assert [each.code for each in client.send(b"")] == [ATTACH, TRANSFER]


@pytest.mark.parametrize("through", ["link", "management"])
def test_what_is_said_at_a_dead_letter_is_kept(world: World, through: str) -> None:
    """Reason, description, and properties of the client's own, whichever way they come."""
    client = receiver(world, credit=1)
    sender = world.connect()
    sender.attach(0, "x", "q", receives=False)
    properties = encode_described(0x74, encode({"kept": "yes", "old": "no"}))
    sender.transfer(0, 0, properties + encode_described(0x75, encode(b"body")))
    (delivery,) = client.send(b"")
    mine = {"old": "new", "count": 3, "id": UUID(int=5)}
    if through == "link":
        info = {Symbol("DeadLetterReason"): "why", Symbol("DeadLetterErrorDescription"): "how"}
        named = {Symbol(name): value for name, value in mine.items()}
        error = Described(ULong(0x1D), [Symbol("com.microsoft:dead-letter"), None, info | named])
        assert outcome_of(client.settle(1, REJECTED, error)) == (REJECTED, None)
    else:
        world.management(client)
        token = UUID(bytes_le=delivery.fields[2])
        status, _, _ = world.manage(
            client,
            "update-disposition",
            disposition_status="suspended",
            lock_tokens=Array(UUID, [token]),
            deadletter_reason="why",
            deadletter_description="how",
            properties_to_modify=mine,
        )
        assert status == 200
    dead = world.connect()
    dead.attach(0, "q/$DeadLetterQueue", "x", receives=True)
    (found,) = [each for each in dead.credit(0, 1) if each.code == TRANSFER]
    assert application_properties(found.payload) == {
        "kept": "yes",
        "DeadLetterReason": "why",
        "DeadLetterErrorDescription": "how",
        **mine,
    }


def application_properties(payload: bytes) -> Any:
    position = 0
    while position < len(payload):
        section, position = decode(payload, position)
        if section.descriptor == 0x74:
            return section.value
    return None


def test_a_message_given_back_has_the_properties_that_were_asked_for(world: World) -> None:
    """Abandoned, it comes again with them."""
    client = receiver(world, credit=2)
    put(world, b"x")
    client.send(b"")
    frames = client.settle(1, MODIFIED, True, False, {Symbol("seen"): True})
    (again,) = [each for each in frames if each.code == TRANSFER]
    assert application_properties(again.payload) == {"seen": True}


def test_a_message_without_a_body_goes_through(world: World) -> None:
    """As on Azure."""
    client = receiver(world, credit=2)
    sender = world.connect()
    sender.attach(0, "x", "q", receives=False)
    for number, payload in enumerate((b"", encode_described(0x73, encode(["named"])))):
        assert outcome_of(sender.transfer(0, number, payload))[0] == ACCEPTED
    frames = client.send(b"")
    assert [each.code for each in frames] == [TRANSFER, TRANSFER]


class Broken(Exception):
    """A failure of the broker itself."""


def test_a_failure_in_the_broker_ends_the_connection_that_met_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted, what the connection held is free again, and all others go on."""
    client, other = world.connect(), receiver(world, credit=1)
    client.attach(1, "q", "x", receives=True)
    client.attach(0, "x", "q", receives=False)

    def fail(payload: bytes) -> None:
        raise Broken

    with monkeypatch.context() as patch:
        patch.setattr("batchflow.local.servicebus.core.links.read_message", fail)
        frames = client.transfer(0, 0, message())
    assert (frames[-1].code, error_of(frames)) == (CLOSE, "amqp:internal-error")
    assert world.errors == ["the AMQP connection of a client"]
    put(world, b"still")
    assert [each.code for each in other.send(b"")] == [TRANSFER]


def test_a_queue_whose_clock_fails_stops_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks elsewhere end when they are due, and the queue itself is looked at again."""
    world.broker.create_queue("bad", QueueSettings(lock_duration=60.0), START)
    client = receiver(world, credit=1)
    put(world, b"x")
    client.send(b"")
    taker = world.connect()
    taker.attach(0, "bad", "x", receives=True)
    taker.credit(0, 1)
    taker.attach(1, "x", "bad", receives=False)
    taker.transfer(1, 0, message())
    bad = world.broker.node("bad")
    assert bad is not None

    def fail(now: float) -> None:
        raise Broken

    monkeypatch.setattr(bad.queue, "advance", fail)
    world.advance(START + 65)
    assert outcome_of(client.settle(1, ACCEPTED)) == (REJECTED, "com.microsoft:message-lock-lost")
    assert 1 < len(world.errors) < 10


# -- any frames -------------------------------------------------------------------------------------------

_NUMBERS = st.sampled_from([0, 1, 2, 200, 201, 210, 211, 0xFFFF_FFFF])
_SIMPLE = (
    st.none()
    | st.booleans()
    | _NUMBERS.map(UInt)
    | st.sampled_from([-1, 1 << 62, Timestamp(1 << 62), Timestamp(-5)])
    | st.sampled_from(["q", "s", "$cbs", "q/$management", "q/$DeadLetterQueue", "", "\U0001f600"])
    | st.binary(max_size=20)
    | st.sampled_from([Symbol("com.microsoft:dead-letter"), UUID(int=1), 1.5, float("nan")])
)
_KEYS = st.sampled_from(
    [
        "sequence-numbers", "lock-tokens", "session-id", "session-state", "from-sequence-number",
        "message-count", "messages", "message", "skip", "top", "last-updated-time", "disposition-status",
        "deadletter-reason", "properties-to-modify", "receiver-settle-mode", "name", "operation",
        "DeadLetterReason",
    ]
)  # fmt: skip
_VALUE = st.recursive(
    _SIMPLE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(_KEYS, inner, max_size=3)
        | st.dictionaries(_KEYS.map(Symbol), inner, max_size=3)
        | st.builds(Described, st.sampled_from([ULong(code) for code in range(0x1D, 0x30)]), inner)
        | st.lists(_NUMBERS, max_size=3).map(lambda numbers: Array(int, numbers))
        | st.binary(min_size=16, max_size=16).map(lambda raw: Array(UUID, [UUID(bytes=raw)]))
    ),
    max_leaves=8,
)
_SECTION = st.builds(encode_described, st.sampled_from(range(0x70, 0x79)), _VALUE.map(encode))
_FRAME = st.builds(
    lambda channel, code, fields, sections: frame(
        channel, encode_described(code, encode_list([encode(field) for field in fields])) + b"".join(sections)
    ),
    st.sampled_from([1, 1, 1, 2]),
    st.sampled_from([*range(0x11, 0x18), TRANSFER, DISPOSITION]),
    st.lists(_VALUE, max_size=14),
    st.lists(_SECTION, max_size=3),
)
_TRANSFER = st.builds(
    lambda handle, number, sections, batch: frame(
        1,
        encode_described(
            TRANSFER,
            encode_list(
                [
                    encode(field)
                    for field in (UInt(handle), UInt(number), b"t", UInt(0x80013700 if batch else 0))
                ]
            ),
        )
        + b"".join(sections),
    ),
    st.sampled_from([1, 201, 211]),
    st.integers(0, 5),
    st.lists(_SECTION, max_size=4),
    st.booleans(),
)
_OPERATIONS = st.sampled_from(
    [
        "renew-lock", "renew-session-lock", "get-session-state", "set-session-state", "get-message-sessions",
        "peek-message", "schedule-message", "cancel-scheduled-message", "receive-by-sequence-number",
        "update-disposition",
    ]
)  # fmt: skip


@given(
    st.lists(
        _FRAME | _TRANSFER | st.tuples(_OPERATIONS, st.dictionaries(_KEYS, _VALUE, max_size=4)), max_size=6
    ),
    st.sampled_from(["q", "s"]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_frames_bring_about_an_error_of_the_broker(
    amqp_client: Any, frames: list[Any], queue: str
) -> None:
    """From a client that is known and has links of every kind: it is refused, or served."""
    world = World(amqp_client)
    client = world.connect()
    filters = {Symbol("com.microsoft:session-filter"): "one"} if queue == "s" else None
    client.attach(0, queue, "x", receives=True, filters=filters)
    client.attach(1, "x", queue, receives=False)
    world.management(client, queue)
    client.credit(0, 5)
    for number in range(3):
        client.transfer(1, number, message(message_id=str(number), session="one"))
    for each in frames:
        if isinstance(each, bytes):
            client.send(each)
            continue
        operation, body = each
        properties = {"operation": f"com.microsoft:{operation}"}
        request = encode_described(0x74, encode(properties)) + encode_described(0x77, encode(body))
        client.transfer(211, 9, request)
    for later in (61, 700, 90_000):
        world.advance(START + later)
    assert world.errors == []
