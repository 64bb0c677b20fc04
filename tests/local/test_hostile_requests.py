"""Requests to Batch and Blob that are to do harm: each is refused, and no error of the cloud comes of it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path

import orjson
import pytest

from batchflow.local.batch.core.autoscale import Targets
from batchflow.local.batch.core.entities import PoolRecord
from batchflow.local.batch.rest.auth import signature, strings_to_sign
from batchflow.local.batch.server import BatchServer
from batchflow.local.blob.core.auth import SignedRequest, shared_key_strings
from batchflow.local.blob.server import BlobServer
from batchflow.local.http.http_server import HttpServer
from batchflow.local.http.internal_errors import InternalErrors
from tests.fuzz.targets import POOL
from tests.support.batch_plane import Plane

KEY = base64.b64encode(b"k" * 32).decode()
VERSION = "api-version=2024-07-01.20.0"
ENDLESS = "9" * 5_000


@pytest.fixture
def errors() -> InternalErrors:
    """What failed in the servers of a test."""
    return InternalErrors()


@pytest.fixture
async def batch(tmp_path: Path, errors: InternalErrors) -> AsyncIterator[BatchServer]:
    server = BatchServer(account="local", key=KEY, root=tmp_path, errors=errors)
    await server.start()
    yield server
    await server.aclose()


@pytest.fixture
async def blob(tmp_path: Path, errors: InternalErrors) -> AsyncIterator[BlobServer]:
    server = BlobServer(account="local", key=KEY, root=tmp_path / "blobs", errors=errors)
    await server.start()
    yield server
    await server.aclose()


async def exchange(port: int, request: bytes) -> tuple[int, bytes]:
    """Send bytes and read an answer: its status, and its body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        body = await reader.readexactly(int(length or 0))
    writer.close()
    return int(head.split()[1]), body


def batch_request(method: str, target: str, body: bytes = b"", **headers: str) -> bytes:
    """A request that is signed with the account's key."""
    fields = {"ocp-date": formatdate(usegmt=True), "host": "h", **headers}
    if body or method != "GET":
        fields.setdefault("content-length", str(len(body)))
    text = next(iter(strings_to_sign(method, target, fields, "local")))
    fields["authorization"] = f"SharedKey local:{signature(text, KEY)}"
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def blob_request(method: str, path: str, query: str = "", body: bytes = b"", **headers: str) -> bytes:
    """A request that is signed with the account's key. Underscores in names stand for hyphens."""
    fields = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2024-08-04", "host": "h"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    fields["content-length"] = str(len(body))
    pairs = tuple(
        (name, value) for name, _, value in (pair.partition("=") for pair in query.split("&")) if name
    )
    signed = SignedRequest(method, path, pairs, fields, "", "")
    mac = signature(shared_key_strings("local", signed)[0], KEY)
    fields["authorization"] = f"SharedKey local:{mac}"
    target = f"{path}?{query}" if query else path
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def pool(**changes: object) -> bytes:
    return orjson.dumps(POOL | {"id": "other"} | changes)


def variable(name: str, value: str) -> dict[str, object]:
    return {"commandLine": "true", "environmentSettings": [{"name": name, "value": value}]}


NESTED = b'{"metadata":' + b"[" * 300 + b"]" * 300 + b"}"


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("GET", f"/pools?{VERSION}&maxresults={ENDLESS}", b""),
        ("GET", f"/pools?{VERSION}&maxresults=%C2%B2", b""),
        ("GET", f"/pools?{VERSION}&$skiptoken={ENDLESS}", b""),
        ("GET", f"/pools?{VERSION}&$filter={'(' * 2_000}", b""),
        ("GET", f"/pools?{VERSION}&$filter={'not ' * 90}id eq 'a'".replace(" ", "%20"), b""),
        ("GET", f"/pools/a%00b?{VERSION}", b""),
        ("GET", f"/pools/%ED%A0%80?{VERSION}", b""),
        ("POST", f"/pools?{VERSION}", b'{"id": "\\ud800"}'),
        ("POST", f"/pools?{VERSION}", b"\xff\xfe"),
        ("POST", f"/pools?{VERSION}", pool(resizeTimeout=f"P{ENDLESS}D")),
        ("POST", f"/pools?{VERSION}", pool(targetDedicatedNodes=ENDLESS)),
        ("POST", f"/pools?{VERSION}", pool(targetDedicatedNodes=1e300)),
        ("POST", f"/pools?{VERSION}", pool(startTask=variable("a=b", "c"))),
        ("POST", f"/pools?{VERSION}", pool(startTask=variable("a", "b\0c"))),
        ("POST", f"/pools?{VERSION}", NESTED),
        ("POST", f"/pools/nowhere/evaluateautoscale?{VERSION}", NESTED),
    ],
)
async def test_batch_refuses_and_does_not_fail(
    batch: BatchServer, errors: InternalErrors, method: str, target: str, body: bytes
) -> None:
    """Numbers without end, text that is none, values nested for ever."""
    status, answer = await exchange(batch.port, batch_request(method, target, body))
    assert 400 <= status < 500, answer
    assert errors.count == 0
    status, _ = await exchange(batch.port, batch_request("GET", f"/pools?{VERSION}"))
    assert status == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /pools\xff HTTP/1.1\r\nhost: h\r\n\r\n",
        b"GET /pools HTTP/1.1\r\nhost: h\r\nauthorization: SharedKey local:\xc3\xa9\r\n\r\n",
        b"GET /pools HTTP/1.1\r\nhost: h\r\nauthorization: SharedKey local:\xff\r\n\r\n",
        b"GET /pools HTTP/1.1\r\nhost: h\r\nauthorization: SharedKey local:a\r\ndate: "
        + b"9" * 400
        + b"\r\n\r\n",
        b"POST /pools HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000\r\n\r\n",
    ],
)
async def test_batch_refuses_strangers(
    batch: BatchServer, errors: InternalErrors, request_bytes: bytes
) -> None:
    """At once: the body of who is not known is not waited for."""
    status, _ = await exchange(batch.port, request_bytes)
    assert 400 <= status < 500
    assert errors.count == 0


POLICIES = ("PUT", "/local/box", "restype=container&comp=acl")
FAR = "Mon, 14 Nov 99999 22:13:20 GMT"
BAD_MD5 = {"x_ms_blob_type": "BlockBlob", "x_ms_blob_content_md5": "\u00e9"}


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (blob_request("GET", "/local/box/a", x_ms_range=f"bytes={ENDLESS}-"), (404,)),
        (blob_request("GET", "/local/", f"comp=list&maxresults=1{ENDLESS}"), (400,)),
        (blob_request("GET", "/local/box/a", if_modified_since=f"Mon, {ENDLESS} Nov 2023"), (400, 404)),
        (blob_request("GET", "/local/box/a", if_modified_since=FAR), (400, 404)),
        (blob_request("PUT", "/local/box/a", "comp=block&blockid=%C3%A9"), (400, 403)),
        (blob_request("PUT", "/local/box/a", "", b"", **BAD_MD5), (400, 403)),
        (blob_request(*POLICIES, b'<?xml version="1.0" encoding="x"?><a/>'), (400,)),
        (blob_request(*POLICIES, b"<!DOCTYPE a><a/>"), (400,)),
        (b"GET /local/box\xff HTTP/1.1\r\nhost: h\r\n\r\n", (400,)),
        (b"GET /local/box HTTP/1.1\r\nhost: h\r\nx-ms-client-request-id: \xff\r\n\r\n", (400,)),
    ],
    ids=range(10),
)
async def test_blob_refuses_and_does_not_fail(
    blob: BlobServer, errors: InternalErrors, request_bytes: bytes, statuses: tuple[int, ...]
) -> None:
    """Numbers without end, text that is none, encodings that are unknown."""
    status, _ = await exchange(blob.port, request_bytes)
    assert status in statuses
    assert errors.count == 0


async def test_a_failure_is_answered_to_its_client_alone(
    batch: BatchServer, errors: InternalErrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 500; it is counted, and the next request is served."""

    def fail(self: object) -> list[object]:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("batchflow.local.batch.routes.DataPlane._all_pools", fail)
        status, body = await exchange(batch.port, batch_request("GET", f"/pools?{VERSION}"))
    assert (status, orjson.loads(body)["code"]) == (500, "InternalError")
    assert (errors.count, "ZeroDivisionError" in errors.last) == (1, True)
    assert str(errors).startswith("1 internal error")
    status, _ = await exchange(batch.port, batch_request("GET", f"/pools?{VERSION}"))
    assert status == 200


async def test_a_stranger_to_http_is_cut_off() -> None:
    """One that says nothing, and one whose headers never end."""

    async def handle(request: object) -> None:
        raise AssertionError("no request is complete")

    server = HttpServer(handle, access_log=None, stranger_timeout=0.2)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        for said in (b"", b"GET / HTTP/1.1\r\nhost: h\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(said)
            async with asyncio.timeout(20):
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
            writer.close()
    await server.shutdown(1.0)


# -- clocks -----------------------------------------------------------------------------------------------

HUGE = "9" * 200


def scaled(pool_id: str, formula: str) -> dict[str, object]:
    fields = {key: value for key, value in POOL.items() if key != "targetDedicatedNodes"}
    return fields | {"id": pool_id, "enableAutoScale": True, "autoScaleFormula": formula}


@pytest.mark.parametrize(
    "formula",
    [
        f"$TargetDedicatedNodes=max(1,$CurrentDedicatedNodes*{HUGE}*{HUGE})",
        f"a=$CurrentDedicatedNodes*{HUGE}*{HUGE};$TargetDedicatedNodes=max(a-a,1)",
        f"$TargetDedicatedNodes=max(1,$CurrentDedicatedNodes*{HUGE})",
    ],
)
def test_a_formula_that_overflows_stops_no_clock(formula: str, tmp_path: Path) -> None:
    """Its own pool shows the error in autoScaleRun; another's formula is evaluated on time."""
    plane = Plane(tmp_path)
    for pool_id, text in (("bad", formula), ("good", "$TargetDedicatedNodes=$CurrentDedicatedNodes+1")):
        plane.ask("POST", "/pools", scaled(pool_id, text))
    for turn in range(1, 4):
        plane.advance(15 * 60 + 1)
        good = plane.ask("GET", "/pools/good").document
        assert good is not None
        assert good["targetDedicatedNodes"] == turn + 1
    bad = plane.ask("GET", "/pools/bad").document
    assert bad is not None
    assert bad["autoScaleRun"]["error"]["code"] == "AutoScalingFormulaEvaluationError"
    assert plane.errors == []


def test_a_clock_that_fails_is_counted_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails in one pool, others are looked at, and it is tried again without haste."""
    plane = Plane(tmp_path)
    for pool_id in ("bad", "good"):
        plane.ask("POST", "/pools", scaled(pool_id, "$TargetDedicatedNodes=$CurrentDedicatedNodes+1"))
    evaluate = plane.state.pools.evaluate_formula

    def fail(pool: PoolRecord, text: str, now: float) -> Targets:
        if pool.spec.id == "bad":
            raise ZeroDivisionError
        return evaluate(pool, text, now)

    monkeypatch.setattr(plane.state.pools, "evaluate_formula", fail)
    plane.advance(15 * 60 + 5)
    good = plane.ask("GET", "/pools/good").document
    assert good is not None
    assert good["targetDedicatedNodes"] == 2
    assert set(plane.errors) == {"the clock of the pool 'bad'"}
    assert 1 <= len(plane.errors) <= 6
