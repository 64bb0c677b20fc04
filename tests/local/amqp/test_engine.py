"""A connection, frame by frame, without a socket: what is answered, what waits, what ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchflow.local.amqp.codec import Symbol, UInt, encode, encode_described, encode_list
from batchflow.local.amqp.endpoints import (
    INCOMING_WINDOW,
    AmqpDelivery,
    Closed,
    Event,
    Link,
    LinkAttaching,
    LinkDetached,
    LinkFlow,
    Settling,
)
from batchflow.local.amqp.engine import (
    IDLE_TIMEOUT,
    MAX_HANDLE,
    MAX_STRANGER_LINKS,
    MAX_STRANGER_SESSIONS,
    Connection,
    ConnectionState,
)
from batchflow.local.amqp.performatives import (
    ACCEPTED,
    AMQP_HEADER,
    SASL_HEADER,
    AmqpError,
    frame,
    read_performative,
)
from tests.support.work import steps

OPEN, BEGIN, ATTACH, FLOW, TRANSFER, DISPOSITION, DETACH, END, CLOSE = range(0x10, 0x19)


class Bench:
    """A connection under test; links are accepted as they come."""

    def __init__(self, client: Callable[[Callable[[bytes], bytes]], Any]) -> None:
        self.connection = Connection("server", 0.0)
        self.now = 0.0
        self.events: list[Event] = []
        self.client = client(self.feed)

    def feed(self, data: bytes) -> bytes:
        events = self.connection.receive(data, self.now)
        for event in events:
            if isinstance(event, LinkAttaching):
                self.connection.accept(event.link, max_message_size=1_000)
                if not event.link.sends:
                    self.connection.grant(event.link, 2)
        self.events += events
        return self.connection.data_to_send(self.now)

    def links(self) -> list[Link]:
        return [event.link for event in self.events if isinstance(event, LinkAttaching)]

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def bench(amqp_client: Any) -> Bench:
    return Bench(amqp_client)


def codes(frames: list[Any]) -> list[int]:
    return [each.code for each in frames]


def error_of(each: Any) -> str:
    return str(each.fields[-1].value[0])


# -- opening and ending -----------------------------------------------------------------------------------


def test_sasl_comes_first_and_anonymous_is_welcome(bench: Bench) -> None:
    """The mechanisms are an array, also of one."""
    (offer,) = bench.client.send(SASL_HEADER)
    assert offer.fields == [["MSSBCBS", "PLAIN", "ANONYMOUS", "EXTERNAL"]]
    init = encode_described(0x41, encode_list([encode(Symbol("ANONYMOUS")), encode(b"")]))
    (outcome,) = bench.client.send(frame(0, init, 1))
    assert outcome.fields == [0]
    bench.client.open()
    assert bench.client.headers == [SASL_HEADER, AMQP_HEADER]
    assert bench.connection.state is ConnectionState.OPEN


def sasl(mechanism: str, response: bytes | None) -> bytes:
    return frame(0, encode_described(0x41, encode_list([encode(Symbol(mechanism)), encode(response)])), 1)


@pytest.mark.parametrize("mechanism", ["MSSBCBS", "EXTERNAL"])
def test_the_other_mechanisms_say_nothing_and_are_welcome(bench: Bench, mechanism: str) -> None:
    """Whom they bring is told by a token later."""
    bench.client.send(SASL_HEADER)
    (outcome,) = bench.client.send(sasl(mechanism, None))
    assert outcome.fields == [0]
    assert not bench.connection.known


@pytest.mark.parametrize(
    ("mechanism", "response"),
    [
        ("PLAIN", b"\0name\0key"),
        ("PLAIN", b"name"),
        ("PLAIN", b"\0\xff\0key"),
        ("PLAIN", b"\0a\0b\0c"),
        ("PLAIN", None),
        ("SCRAM-SHA-256", b""),
    ],
)
def test_a_mechanism_or_a_password_that_is_not_right_is_refused(
    bench: Bench, mechanism: str, response: bytes | None
) -> None:
    """With an outcome that says so, and the end."""
    bench.client.send(SASL_HEADER)
    (outcome,) = bench.client.send(sasl(mechanism, response))
    assert outcome.fields == [1]
    assert bench.connection.state is ConnectionState.CLOSED


def test_a_password_is_in_no_text() -> None:
    """Not even in the one that a debugger shows."""
    performative = read_performative(sasl("PLAIN", b"\0name\0secret")[8:])
    assert "secret" not in repr(performative)


def test_who_speaks_something_else_is_told_the_protocol(bench: Bench) -> None:
    """And hung up on."""
    bench.client.send(b"GET / HTTP/1.1\r\n\r\n")
    assert bench.client.headers == [AMQP_HEADER]
    assert bench.connection.state is ConnectionState.CLOSED


@pytest.mark.parametrize(
    ("data", "condition"),
    [
        (b"\xff\xff\xff\xff\x02\x00\x00\x00", "amqp:connection:framing-error"),
        (b"\x00\x00\x00\x07\x02\x00\x00\x00", "amqp:connection:framing-error"),
        (b"\x00\x00\x00\x09\x01\x00\x00\x00\x40", "amqp:connection:framing-error"),
        (b"\x00\x00\x00\x09\x02\x01\x00\x00\x40", "amqp:connection:framing-error"),
        (b"\x00\x00\x00\x09\x02\x00\x00\x00\x40", "amqp:decode-error"),
        (frame(1, encode_described(0x99, b"\x45")), "amqp:decode-error"),
        (frame(1, encode_described(FLOW, encode_list([encode("x")]))), "amqp:decode-error"),
        (frame(1, encode_described(BEGIN, b"\x45")), "amqp:decode-error"),
        (frame(1, encode_described(OPEN, encode_list([encode("again")]))), "amqp:illegal-state"),
        (frame(1, b"\xc0\x03\x01" * 40 + b"\x40"), "amqp:decode-error"),
    ],
)
def test_a_violation_closes_the_connection_with_its_name(bench: Bench, data: bytes, condition: str) -> None:
    """Whoever breaks the protocol is told how."""
    bench.client.open()
    last = bench.client.send(data)[-1]
    assert (last.code, error_of(last)) == (CLOSE, condition)
    assert isinstance(bench.events[-1], Closed)
    assert bench.client.send(b"more") == []


@given(st.lists(st.binary(max_size=60), max_size=5), st.booleans())
@settings(max_examples=100)
def test_no_bytes_do_more_than_end_the_connection(chunks: list[bytes], framed: bool) -> None:
    """Whatever comes after an open connection, and in whatever pieces."""
    connection = Connection("server", 0.0)
    connection.receive(AMQP_HEADER, 0.0)
    connection.receive(frame(0, encode_described(OPEN, encode_list([encode("c")]))), 0.0)
    for chunk in chunks:
        connection.receive(frame(0, chunk) if framed else chunk, 0.0)
        connection.data_to_send(0.0)


def test_bytes_may_come_one_by_one(bench: Bench) -> None:
    """Frames are put together again."""
    opening = encode_described(OPEN, encode_list([encode("c")]))
    for byte in AMQP_HEADER + frame(0, opening):
        bench.client.send(bytes((byte,)))
    assert bench.connection.state is ConnectionState.OPEN


def test_a_heartbeat_is_sent_as_often_as_the_peer_wants(bench: Bench) -> None:
    """Half-way to its limit, and only when nothing else was sent."""
    bench.client.open(idle_ms=60_000)
    assert bench.connection.next_deadline() == 30.0
    bench.connection.tick(29.0)
    assert bench.connection.data_to_send(29.0) == b""
    bench.connection.tick(30.0)
    assert bench.connection.data_to_send(30.0) == b"\x00\x00\x00\x08\x02\x00\x00\x00"
    assert bench.connection.next_deadline() == 60.0


def test_a_silent_peer_is_given_up(bench: Bench) -> None:
    """After twice the time that it was told."""
    bench.client.open()
    events = bench.connection.tick(2 * IDLE_TIMEOUT)
    assert isinstance(events[-1], Closed)
    assert bench.connection.tick(9_999.0) == []


def test_closing_ends_the_links(bench: Bench) -> None:
    """A close is answered, and every link is reported once."""
    bench.client.open()
    bench.client.attach(0, "q", "x", receives=True)
    assert codes(bench.client.perform(0, CLOSE)) == [CLOSE]
    assert len(bench.of(LinkDetached)) == 1
    assert bench.connection.lost() == []


# -- sessions and links -----------------------------------------------------------------------------------


def test_channels_and_handles_are_bounded_and_unique(bench: Bench) -> None:
    """One too many, or one twice, ends what it is in."""
    bench.client.open()
    bench.client.attach(0, "q", "x", receives=True)
    last = bench.client.attach(0, "q", "x", receives=True)[-1]
    assert (last.code, error_of(last)) == (END, "amqp:session:handle-in-use")
    bench.client.begin(1)
    assert bench.client.attach(MAX_HANDLE + 1, "q", "x", receives=True)[-1].code == END
    assert bench.client.begin(5_000)[-1].code == CLOSE


def test_frames_for_what_is_gone_are_ignored(bench: Bench) -> None:
    """The peer sent them before it knew: a detach after the end, a message after a detach."""
    bench.client.open()
    bench.client.attach(0, "x", "q", receives=False)
    bench.connection.detach(bench.links()[0], AmqpError("amqp:link:detach-forced", "enough"))
    assert codes(bench.client.transfer(0, 0, b"late")) == [DETACH]
    assert bench.of(AmqpDelivery) == []
    bench.client.perform(1, END)
    assert bench.client.perform(1, DETACH, 0) == []
    assert bench.connection.state is ConnectionState.OPEN


def test_a_message_on_no_link_ends_the_session(bench: Bench) -> None:
    """With the error for it."""
    bench.client.open()
    last = bench.client.transfer(7, 0, b"?")[-1]
    assert (last.code, error_of(last)) == (END, "amqp:session:unattached-handle")


def test_a_refused_link_is_attached_to_nothing_and_detached(amqp_client: Any) -> None:
    """SDKs take any other answer for a link that works."""
    connection = Connection("server", 0.0)

    def feed(data: bytes) -> bytes:
        for event in connection.receive(data, 0.0):
            if isinstance(event, LinkAttaching):
                connection.refuse(event.link, AmqpError("amqp:not-found", "nowhere"))
        return connection.data_to_send(0.0)

    client = amqp_client(feed)
    client.open()
    attached, detached = client.attach(0, "q", "x", receives=True)
    assert attached.fields[5:7] == [None, None]
    assert (detached.code, error_of(detached)) == (DETACH, "amqp:not-found")
    assert codes(client.attach(0, "q", "x", receives=True)) == [ATTACH, DETACH]


# -- messages ---------------------------------------------------------------------------------------------


def test_messages_in_parts_are_put_together(bench: Bench) -> None:
    """One delivery, however many frames; an aborted one never was."""
    bench.client.open()
    bench.client.attach(0, "x", "q", receives=False)
    bench.client.transfer(0, 0, b"one ", more=True)
    bench.client.transfer(0, 0, b"two")
    bench.client.transfer(0, 1, b"never", more=True)
    bench.client.perform(1, TRANSFER, 0, 1, b"tag", 0, False, False, None, None, None, True)
    (delivery,) = bench.of(AmqpDelivery)
    assert (delivery.delivery_id, delivery.payload) == (0, b"one two")
    bench.connection.settle(delivery.link, 0, ACCEPTED)
    (settled,) = bench.client.send(b"")
    assert settled.fields[:4] == [True, 0, None, True]


def test_a_message_far_over_the_limit_ends_its_link(bench: Bench) -> None:
    """Before it is held in memory whole."""
    bench.client.open()
    bench.client.attach(0, "x", "q", receives=False)
    frames = [bench.client.transfer(0, 0, b"x" * 1_500, more=True) for _ in range(3)]
    assert error_of(frames[-1][-1]) == "amqp:link:message-size-exceeded"
    assert len(bench.of(LinkDetached)) == 1


def test_credit_is_kept_to(bench: Bench) -> None:
    """A third message on a credit of two ends the link."""
    bench.client.open()
    bench.client.attach(0, "x", "q", receives=False)
    for delivery_id in range(2):
        bench.client.transfer(0, delivery_id, b"x", settled=True)
    last = bench.client.transfer(0, 2, b"x")[-1]
    assert error_of(last) == "amqp:link:transfer-limit-exceeded"


def test_the_session_s_window_is_opened_again(bench: Bench) -> None:
    """After half of it has been used."""
    bench.client.open()
    bench.client.attach(0, "x", "q", receives=False)
    flows = []
    for index in range(INCOMING_WINDOW // 2 + 1):
        flows += bench.client.transfer(0, index, b"", more=True)
    assert [each.fields[1] for each in flows] == [INCOMING_WINDOW]


def outlet(bench: Bench, *, window: int, credit: int, max_frame_size: int = 65_536) -> Link:
    bench.client.open(max_frame_size=max_frame_size)
    bench.client.attach(0, "q", "x", receives=True)
    bench.client.credit(0, credit, window=window)
    (link,) = bench.links()
    return link


def test_the_peer_s_window_and_credit_are_kept_to(bench: Bench) -> None:
    """What finds no room waits, part by part; ids count messages and frames apart."""
    link = outlet(bench, window=2, credit=2, max_frame_size=600)
    bench.connection.send(link, b"t1", b"x" * 900, settled=False)
    frames = bench.client.send(b"")
    room = len(frames[0].payload)
    assert [each.fields[1:6:4] for each in frames] == [[0, True], [0, True]]
    assert not link.sendable
    frames = bench.client.credit(0, 2, seen=0, window=100, next_id=2)
    assert [len(each.payload) for each in frames if each.code == TRANSFER] == [900 - 2 * room]
    assert link.sendable
    bench.connection.send(link, b"t2", b"y", settled=False)
    (second,) = bench.client.send(b"")
    assert second.fields[1] == 1
    assert link.credit == 0
    assert not link.sendable


def test_draining_uses_up_the_credit(bench: Bench) -> None:
    """The peer is told that no more will come."""
    link = outlet(bench, window=10, credit=5)
    bench.client.credit(0, 5, drain=True)
    assert bench.of(LinkFlow)[-1].link.drain
    bench.connection.drained(link)
    (flow,) = bench.client.send(b"")
    assert flow.fields[4:7] == [0, 5, 0]
    assert flow.fields[8] is True


def test_settling_names_a_range_without_walking_it(bench: Bench) -> None:
    """A peer that names four billion deliveries settles the two that there are."""
    link = outlet(bench, window=10, credit=5)
    for tag in (b"t1", b"t2"):
        bench.connection.send(link, tag, b"x", settled=False)
    bench.client.perform(1, DISPOSITION, True, 0, 0xFFFF_FFFF, True, None)
    assert [(event.tag, event.settled) for event in bench.of(Settling)] == [(b"t1", True), (b"t2", True)]
    bench.client.perform(1, DISPOSITION, True, 0, 0xFFFF_FFFF, True, None)
    assert len(bench.of(Settling)) == 2


# -- bounds -----------------------------------------------------------------------------------------------


def test_a_stranger_has_few_sessions(bench: Bench) -> None:
    """Until it is known who it is."""
    bench.client.open()
    for channel in range(2, MAX_STRANGER_SESSIONS + 1):
        assert codes(bench.client.begin(channel)) == [BEGIN]
    last = bench.client.begin(MAX_STRANGER_SESSIONS + 1)[-1]
    assert (last.code, error_of(last)) == (CLOSE, "amqp:resource-limit-exceeded")


def test_a_stranger_has_few_links_however_they_end(bench: Bench) -> None:
    """Those that were detached, or whose session ended, do not count."""
    bench.client.open()
    for _ in range(3):
        bench.client.begin(2)
        for handle in range(MAX_STRANGER_LINKS // 2):
            bench.client.attach(handle, "q", "x", receives=True)
            bench.client.attach(handle, "q", "x", receives=True, channel=2)
        for handle in range(MAX_STRANGER_LINKS // 2):
            bench.client.perform(1, DETACH, UInt(handle), True)
        bench.client.perform(2, END)
    for handle in range(MAX_STRANGER_LINKS):
        assert codes(bench.client.attach(handle, "q", "x", receives=True)) == [ATTACH]
    last = bench.client.attach(MAX_STRANGER_LINKS, "q", "x", receives=True)[-1]
    assert (last.code, error_of(last)) == (CLOSE, "amqp:resource-limit-exceeded")


def test_who_is_known_has_many_links_and_not_any_number(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum over all sessions is bounded as well as each."""
    monkeypatch.setattr("batchflow.local.amqp.engine.MAX_LINKS", 90)
    bench.client.open()
    bench.connection.known = True
    frames = []
    for number in range(91):
        channel, handle = 2 + number // 40, number % 40
        if not handle:
            bench.client.begin(channel)
        frames = bench.client.attach(handle, "q", "x", receives=True, channel=channel)
    assert error_of(frames[-1]) == "amqp:resource-limit-exceeded"


def filled(amqp_client: Any, links: int, deliveries: int) -> Bench:
    """A connection with so many links, each with so many unsettled deliveries."""
    bench = Bench(amqp_client)
    bench.client.open()
    bench.connection.known = True
    for handle in range(links):
        bench.client.attach(handle, "q", "x", receives=True)
        bench.client.credit(handle, deliveries + 1, window=1_000_000)
    for link in bench.links():
        for _ in range(deliveries):
            bench.connection.send(link, b"tag", b"x", settled=False)
    bench.connection.data_to_send(0.0)
    bench.events.clear()
    return bench


def disposed(first: int, last: int, settled: bool) -> bytes:
    fields = [encode(True), encode(UInt(first)), encode(UInt(last)), encode(settled), b"\x40"]
    return frame(1, encode_described(DISPOSITION, encode_list(fields)))


def echoed() -> bytes:
    """A flow of the session that changes nothing and wants an answer."""
    windows = [encode(UInt(value)) for value in (0, 1_000_000, 0, 1_000)]
    fields = [*windows, *[b"\x40"] * 5, encode(True)]
    return frame(1, encode_described(FLOW, encode_list(fields)))


@pytest.mark.parametrize(
    "data", [disposed(0, 0xFFFF_FFFF, False), echoed()], ids=["no outcome", "session flow"]
)
def test_a_frame_that_ends_nothing_does_not_walk_all_there_is(amqp_client: Any, data: bytes) -> None:
    """A frame of thirty bytes costs as much with four hundred deliveries as with ten."""
    few, many = filled(amqp_client, 2, 5), filled(amqp_client, 40, 10)
    small = steps(lambda: few.connection.receive(data, 0.0))
    assert steps(lambda: many.connection.receive(data, 0.0)) < 1.5 * small
    assert not many.connection.lost()[:-41], "no delivery was reported"


def test_links_are_detached_with_work_in_proportion(amqp_client: Any) -> None:
    """Each forgets its own deliveries, not those of all."""

    def ended(links: int) -> int:
        bench = filled(amqp_client, links, 4)

        def detach_all() -> None:
            for link in bench.connection.sessions[1].links.values():
                bench.connection.detach(link, AmqpError("a:b", "c"))

        return steps(detach_all)

    assert ended(80) < 2.5 * ended(40)


def test_deliveries_are_forgotten_when_they_are_settled(amqp_client: Any) -> None:
    """By either side."""
    bench = filled(amqp_client, 1, 3)
    (link,) = bench.connection.sessions[1].links.values()
    bench.client.send(disposed(0, 1, True))
    bench.connection.settle(link, 2, ACCEPTED)
    assert not link.unsettled
    assert not bench.connection.sessions[1].unsettled


def test_credit_that_comes_with_its_attach_counts(amqp_client: Any) -> None:
    """A client may send open, begin, attach and flow in one segment, and wait for its message."""
    sent: list[bytes] = []

    def keep(data: bytes) -> bytes:
        sent.append(data)
        return b""

    recorder = amqp_client(keep)
    recorder.open()
    recorder.attach(0, "q", "x", receives=True)
    recorder.credit(0, 3)
    bench = Bench(amqp_client)
    bench.client.send(b"".join(sent))
    (link,) = bench.links()
    assert link.credit == 3
    assert [event.link for event in bench.of(LinkFlow)] == [link]
    assert link.sendable
