"""What reads bytes from outside, each as a function that must return, whatever the bytes.

A refusal is an answer, so a function catches the error by which its parser refuses. Anything else that is
raised is a finding; so is an input that takes more time or memory than its size allows (`tests.fuzz.budget`).
"""

from __future__ import annotations

import base64
import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

import orjson

from batchflow.local.amqp.codec import DecodeError, decode, encode, skip
from batchflow.local.amqp.message import (
    Stamp,
    read_batch,
    read_message,
    read_request,
    with_application_properties,
    with_message_id,
    write_message,
)
from batchflow.local.amqp.performatives import AMQP_HEADER, SASL_HEADER, frame
from batchflow.local.batch.core.autoscale import evaluate
from batchflow.local.batch.core.errors import Refused
from batchflow.local.batch.core.formula_values import FormulaFacts
from batchflow.local.batch.core.samples import METRICS, MetricSample
from batchflow.local.batch.core.state import BatchState
from batchflow.local.batch.nodes.directories import NodeDirectories
from batchflow.local.batch.rest.auth import authenticate
from batchflow.local.batch.rest.odata import parse_filter, parse_max_results, select
from batchflow.local.batch.rest.values import parse_body
from batchflow.local.batch.routes import BatchRequest, DataPlane, split_path
from batchflow.local.blob.core import http, xml
from batchflow.local.blob.core.auth import Authenticator, SignedRequest
from batchflow.local.blob.core.errors import BlobRefused
from batchflow.local.blob.service import find_route
from batchflow.local.queues import counting_tokens
from batchflow.local.security.sas import TokenRefused, check_token
from batchflow.local.servicebus.core.atom import read_queue
from batchflow.local.servicebus.core.broker import BrokerCore
from batchflow.local.servicebus.core.namespace import AdministrationRefused, Namespace, QueueSettings

NOW = 1_700_000_000.0
_KEY = base64.b64encode(bytes(32)).decode()


class Target(NamedTuple):
    """A parser, and inputs from which others are made."""

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


# -- AMQP -------------------------------------------------------------------------------------------------


def amqp_values(data: bytes) -> None:
    """Decode a value, and write again what was read."""
    with contextlib.suppress(DecodeError):
        skip(data, 0)
    with contextlib.suppress(DecodeError):
        value = decode(data)[0]
        with contextlib.suppress(TypeError):  # not every type that is read is also written
            encode(value)


def amqp_messages(data: bytes) -> None:
    """Split a message, and put it together for a delivery."""
    with contextlib.suppress(DecodeError):
        incoming = read_message(data)
        named = with_message_id(incoming.bare, "id")
        added = with_application_properties(named, {"DeadLetterReason": "why", "count": 3})
        stamp = Stamp(3, 7, 1_000, 2_000, 1, incoming.scheduled_ms)
        read_message(write_message(incoming.envelope, added, stamp))
    for read in (read_batch, read_request):
        with contextlib.suppress(DecodeError):
            read(data)


class BrokerFailed(Exception):
    """The broker met an error of its own."""


def amqp_connections(data: bytes) -> None:
    """Give frames to a broker: first of a stranger, then of one that is known, to queues that are there."""
    namespace = Namespace("key", counting_tokens(), NOW)
    errors: list[str] = []
    broker = BrokerCore(namespace, link_idle_timeout=600.0, on_error=errors.append)
    broker.create_queue("q", QueueSettings(), NOW)
    broker.create_queue("s", QueueSettings(requires_session=True), NOW)
    init = bytes.fromhex("005341") + encode([_symbol("PLAIN"), b"\0RootManageSharedAccessKey\0key"])
    for head in (b"", AMQP_HEADER, SASL_HEADER + frame(0, init, 1) + AMQP_HEADER):
        peer = broker.connect(NOW)
        for part in (head, *_frames(data)):
            peer.receive(part, NOW)
            broker.take_touched(NOW)
            peer.connection.data_to_send(NOW)
    for later in (61.0, 700.0, 1e6):
        broker.tick(NOW + later)
        broker.take_touched(NOW + later)
    if errors:
        raise BrokerFailed(errors[0])


def _frames(data: bytes) -> list[bytes]:
    """Read frames without their headers: two bytes for the length, one for the channel, then the body."""
    frames, position = [data], 0
    while position + 3 <= len(data):
        end = position + 3 + int.from_bytes(data[position : position + 2], "big") % 2_048
        frames.append(frame(data[position + 2] % 4, data[position + 3 : end]))
        position = end
    return frames


def framed(*bodies: bytes) -> bytes:
    """Write frames as `amqp_connections` reads them, on channel 1 but for the first."""
    return b"".join(
        len(body).to_bytes(2, "big") + bytes((min(number, 1),)) + body for number, body in enumerate(bodies)
    )


def _symbol(text: str) -> object:
    from batchflow.local.amqp.codec import Symbol

    return Symbol(text)


# -- HTTP -------------------------------------------------------------------------------------------------


def servicebus_xml(data: bytes) -> None:
    """Read a description of a queue."""
    with contextlib.suppress(AdministrationRefused):
        read_queue(data, QueueSettings(), lambda: _KEY).check()


def servicebus_tokens(data: bytes) -> None:
    """Check a shared access signature."""
    text = data.decode(errors="surrogateescape")
    namespace = Namespace("key", counting_tokens(), NOW)
    with contextlib.suppress(TokenRefused):
        namespace.authenticate("SharedAccessSignature " + text, "q", NOW)
    with contextlib.suppress(TokenRefused):
        check_token(text, lambda path: (), NOW)
    namespace.log_in(text[:20], text[20:])


def blob_xml(data: bytes) -> None:
    """Read the bodies of the Blob service."""
    for parse in (xml.parse_policies, xml.parse_key_info, xml.parse_block_list):
        with contextlib.suppress(BlobRefused):
            parse(data)
    xml.error_document("Code", data.decode(errors="replace"))


_HEADERS = (
    "authorization", "content-length", "content-md5", "date", "if-match", "if-modified-since", "range",
    "x-ms-blob-content-md5", "x-ms-blob-type", "x-ms-date", "x-ms-meta-a", "x-ms-range", "x-ms-version",
)  # fmt: skip


def _request(data: bytes) -> tuple[str, str, dict[str, str], bytes]:
    """Read a request line, headers by the number of their name, an empty line, a body."""
    head, _, body = data.partition(b"\n\n")
    line, *rest = head.decode(errors="replace").split("\n")
    method, _, target = line.partition(" ")
    headers = {_HEADERS[ord(each[0]) % len(_HEADERS)]: each[1:] for each in rest if each}
    return method, target if target.startswith("/") else f"/{target}", headers, body


def blob_requests(data: bytes) -> None:
    """Read a request to the Blob service: its address, headers and signature."""
    method, raw, headers, _ = _request(data)
    authenticator = Authenticator("local", _KEY)
    with contextlib.suppress(BlobRefused):
        target, query = http.split_target(raw)
        for read in (
            lambda: http.check_supported(headers, query),
            lambda: http.parse_conditions(headers),
            lambda: http.parse_range(headers),
            lambda: http.parse_metadata(headers, {name: name for name in headers}),
            lambda: http.parse_settings(headers, plain=True),
            lambda: http.parse_kind(headers),
            lambda: http.parse_size(headers, "content-length"),
            lambda: http.parse_block_id(query),
            lambda: http.parse_list_options(query),
            lambda: find_route(method, target, query),
            lambda: authenticator.authenticate(
                SignedRequest(method, target.raw, query, headers, target.container, target.blob),
                lambda container, policy: None,
                NOW,
            ),
        ):
            with contextlib.suppress(BlobRefused):
                read()


def batch_requests(data: bytes) -> None:
    """Carry out a request to Batch, show everything, let time pass: what was taken in does no harm."""
    method, raw, headers, body = _request(data)
    with contextlib.suppress(Refused):
        authenticate(method, raw, headers, account="local", key=_KEY, now=NOW)
    errors: list[str] = []
    state = BatchState("local", errors.append)
    with tempfile.TemporaryDirectory() as root:
        plane = DataPlane(state, NodeDirectories(Path(root)), lambda: "http://local")
        for line, text in (*_EXISTING, (f"{method} {raw}", body), *_SHOWN):
            _ask(plane, line, headers, text)
            state.take_actions(NOW)
        for later in (1.0, 1_000.0, 1e9):
            state.tick(NOW + later)
            state.next_deadline()
            state.take_actions(NOW + later)
        for line, text in _SHOWN:
            _ask(plane, line, {}, text)
    if errors:
        raise BrokerFailed(errors[0])


def _ask(plane: DataPlane, line: str, headers: dict[str, str], body: bytes) -> None:
    method, _, raw = line.partition(" ")
    path, _, query = raw.partition("?")
    try:
        request = BatchRequest(
            method=method,
            names=split_path(unquote(segment) for segment in path.strip("/").split("/")),
            query=dict(parse_qsl(query, keep_blank_values=True)),
            headers=headers,
            body=parse_body(body),
            now=NOW,
        )
        answer = plane.answer(request)
        if answer.document is not None:
            orjson.dumps(answer.document)
    except Refused as refused:
        orjson.dumps(refused.body())
    except FileNotFoundError:
        return


_VERSION = "api-version=2024-07-01.20.0"
_IMAGE = {"publisher": "canonical", "offer": "ubuntu-24_04-lts", "sku": "server"}
POOL = {
    "id": "p",
    "vmSize": "standard_d2s_v3",
    "virtualMachineConfiguration": {"imageReference": _IMAGE, "nodeAgentSKUId": "batch.node.ubuntu 24.04"},
    "targetDedicatedNodes": 1,
    "startTask": {"commandLine": "true", "environmentSettings": [{"name": "a", "value": "b"}]},
    "metadata": [{"name": "a", "value": "b"}],
    "resizeTimeout": "PT15M",
}
_JOB = {"id": "j", "poolInfo": {"poolId": "p"}, "constraints": {"maxWallClockTime": "P1D"}}
_TASK = {"id": "t", "commandLine": "true", "constraints": {"maxTaskRetryCount": 1, "retentionTime": "PT1H"}}
_SCALED = {key: value for key, value in POOL.items() if key != "targetDedicatedNodes"} | {
    "id": "f",
    "enableAutoScale": True,
    "autoScaleFormula": "$TargetDedicatedNodes=min(2,1+1);",
}
_EXISTING = tuple(
    (f"POST {path}?{_VERSION}", orjson.dumps(body))
    for path, body in (("/pools", POOL), ("/jobs", _JOB), ("/jobs/j/tasks", _TASK))
)
_SHOWN = tuple(
    (f"GET {path}?{_VERSION}", b"")
    for path in ("/pools", "/pools/p/nodes", "/jobs", "/jobs/j/tasks", "/nodecounts")
)


_SAMPLES = [
    MetricSample(NOW - 30.0 * number, tuple(float(number % 7) for _ in METRICS))
    for number in range(120, 1, -1)
]


def odata_filters(data: bytes) -> None:
    """Read a filter, a selection and a size of a page."""
    text = data.decode(errors="replace")
    allowed = frozenset({"eq", "ne", "gt", "ge", "lt", "le", "startswith"})
    document = {"id": "a", "executionInfo": {"exitCode": 3}, "creationTime": "2024-05-06T07:08:09.1234567Z"}
    with contextlib.suppress(Refused):
        parse_filter(text, dict.fromkeys(("id", "executionInfo/exitCode", "creationTime"), allowed))(document)
    select(document, text.split(","))
    with contextlib.suppress(Refused):
        parse_max_results(text)


def formulas(data: bytes) -> None:
    """Evaluate an autoscale formula."""
    with contextlib.suppress(Refused):
        evaluate(data.decode(errors="replace"), FormulaFacts(NOW, 3, 1, samples=_SAMPLES))


_XML = (
    b'<entry xmlns="http://www.w3.org/2005/Atom"><content><QueueDescription '
    b'xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"><LockDuration>PT1M</LockDuration>'
    b"<MaxDeliveryCount>3</MaxDeliveryCount></QueueDescription></content></entry>"
)
_OPEN, _BEGIN, _ATTACH = (bytes((0x00, 0x53, code)) for code in (0x10, 0x11, 0x12))

TARGETS: dict[str, Target] = {
    "amqp-values": Target(
        amqp_values, (encode([1, "a", {"b": b"c"}]), bytes.fromhex("e00403a3016101620163"))
    ),
    "amqp-messages": Target(
        amqp_messages,
        (bytes.fromhex("005370c0040341404000537345005377a10461626364"), bytes.fromhex("005375a003616263")),
    ),
    "amqp-connections": Target(
        amqp_connections,
        (
            framed(
                _OPEN + encode(["c"]),
                _BEGIN + bytes.fromhex("c00d044043700000271070000003e8"),
                _ATTACH + bytes.fromhex("c01c07a1016143424040005328c0060140a101714000532945"),
            ),
        ),
    ),
    "servicebus-xml": Target(servicebus_xml, (_XML,)),
    "servicebus-tokens": Target(servicebus_tokens, (b"sr=sb%3a%2f%2fh%2fq&sig=abc&se=1900000000&skn=rule",)),
    "blob-xml": Target(
        blob_xml,
        (
            b"<BlockList><Latest>YQ==</Latest></BlockList>",
            b"<SignedIdentifiers><SignedIdentifier><Id>a</Id></SignedIdentifier></SignedIdentifiers>",
            b"<KeyInfo><Start>2024-01-01</Start><Expiry>2024-01-02</Expiry></KeyInfo>",
        ),
    ),
    "blob-requests": Target(
        blob_requests,
        (
            b"GET /local/box/a%20b?comp=list&restype=container&maxresults=5\n\x00SharedKey local:YQ==\n",
            b"PUT /local/box/a?sv=2024-01-01&sr=b&sp=r&se=2030-01-01&sig=YQ%3D%3D\n\x06bytes=0-9\n",
        ),
    ),
    "batch-requests": Target(
        batch_requests,
        tuple(
            f"{line}?{_VERSION}\n\n".encode() + orjson.dumps(body)
            for line, body in (
                ("POST /pools", POOL | {"id": "other"}),
                ("POST /pools", _SCALED),
                ("PATCH /pools/p", {"metadata": [{"name": "a", "value": "b"}]}),
                ("POST /pools/p/resize", {"targetDedicatedNodes": 2, "resizeTimeout": "PT10M"}),
                ("POST /pools/p/enableautoscale", {"autoScaleFormula": "$TargetDedicatedNodes=1;"}),
                ("POST /jobs", _JOB | {"id": "k"}),
                ("PUT /jobs/j", {"poolInfo": {"poolId": "p"}, "priority": 3}),
                ("POST /jobs/j/tasks", _TASK | {"id": "u"}),
                ("POST /jobs/j/addtaskcollection", {"value": [_TASK | {"id": "v"}]}),
                ("GET /jobs/j/tasks", {}),
            )
        ),
    ),
    "odata": Target(
        odata_filters,
        (b"(id eq 'a' and not executionInfo/exitCode gt 2) or startswith(id,'b')", b"id,creationTime"),
    ),
    "formulas": Target(
        formulas,
        (
            b"$TargetDedicatedNodes=max(1,min(4,$CurrentDedicatedNodes*2-1));a=(1+2)/3;",
            b"p=$PendingTasks.GetSamplePercent(180*TimeInterval_Second);v=[1,2]*2;t=time('2020-01-01')+v;"
            b"s=p<70&&!0?1:avg($PendingTasks.GetSample(180*TimeInterval_Second,50));$TargetDedicatedNodes=s;",
        ),
    ),
}
