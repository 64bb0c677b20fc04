"""The service against the published contract: authentication, versions, shapes, and what is not served."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from azure.batch import models
from azure.core.exceptions import HttpResponseError

from batchflow.local.batch.rest.auth import signature, strings_to_sign
from batchflow.local.batch.rest.queries import SELECTABLE
from batchflow.local.batch.rest.shapes import ANY, SHAPES
from batchflow.local.batch.routes import REFUSED, ROUTES, route_of
from tests.support.contract import MODELS, SWAGGER, Contract, at_hand, specification

ACCOUNT = "local"
KEY = base64.b64encode(b"batch" * 8).decode()
VERSION = "api-version=2025-06-01"


async def send(
    batch: Any,
    method: str,
    target: str,
    body: Any = None,
    *,
    key: str = KEY,
    account: str = ACCOUNT,
    ahead: float = 0.0,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any, Any]:
    """A signed request as any HTTP client may send it; status, headers and parsed body of the answer.

    `ahead` is by how many seconds the client's clock is wrong.
    """
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    date = formatdate(time.time() + ahead, usegmt=True)
    sent = {"ocp-date": date, "content-length": str(len(content)), **(headers or {})}
    if content:
        sent["content-type"] = "application/json; odata=minimalmetadata"
    text = next(iter(strings_to_sign(method, target, sent, account)))
    sent["authorization"] = f"SharedKey {account}:{signature(text, key)}"
    async with (
        aiohttp.ClientSession(skip_auto_headers=["content-type"]) as session,
        session.request(
            method, batch.server.url + target, data=io.BytesIO(content) if content else None, headers=sent
        ) as got,
    ):
        raw = await got.read()
        if batch.contract is not None:
            batch.contract.exchange(method, target, content, got.status, got.headers, raw)
        return got.status, got.headers, json.loads(raw) if raw else None


async def test_contract_is_at_hand(batch: Any, contract: Any) -> None:
    """The bodies of these tests are checked against the published specifications."""
    if not at_hand():
        pytest.skip("the published specifications are not at hand")
    before = contract.checked
    await batch.pool(nodes=0)
    await batch.client.get_pool("pool")
    assert contract.checked >= before + 4


@pytest.mark.parametrize(
    ("exchange", "misfit"),
    [
        (("GET", "/pools?sort=up", b"", 200, {"request-id": "1"}, b""), "the query parameter sort"),
        (("POST", "/jobs", b'{"id": "job", "poolInfo": {}, "x": 1}', 201, {"request-id": "1"}, b""), "'x'"),
        (("POST", "/jobs", b"", 201, {"request-id": "1", "ETag": "1"}, b""), "the header Last-Modified"),
        (("GET", "/jobs", b"", 200, {}, b""), "no request-id"),
        (("GET", "/jobs/j", b"", 200, {"ETag": "1"}, b'{"eTag": "2"}'), "the eTag 2 is not the header's"),
        (("GET", "/jobs", b"", 206, {"request-id": "1"}, b""), "the status is not one of"),
        (("GET", "/jobs/j", b"", 404, {"request-id": "1"}, b'{"code": 7}'), "is not of type 'string'"),
        (("GET", "/jobs/j", b"", 404, {"request-id": "1"}, b'{"code": "x"}'), "a refusal without message"),
        (("GET", "/jobs/j?$select=id", b"", 200, {"request-id": "1"}, b'{"ID": "j"}'), "'ID'"),
    ],
)
def test_misfits_are_found(exchange: Any, misfit: str) -> None:
    """What does not fit the contract is told."""
    if not at_hand():
        pytest.skip("the published specifications are not at hand")
    contract = Contract()
    method, url, sent, status, headers, got = exchange
    is_json = {"Content-Type": "application/json"} if got else {}
    contract.exchange(method, url, sent, status, headers | is_json, got)
    assert any(misfit in told for told in contract.verdict())
    assert not contract.verdict()


@pytest.mark.parametrize(
    "options",
    [
        {"key": base64.b64encode(b"other").decode()},
        {"account": "other"},
        {"ahead": -16 * 60.0},
        {"ahead": 16 * 60.0},
    ],
)
async def test_unauthentic_requests_are_refused(batch: Any, options: dict[str, Any]) -> None:
    """A wrong key, another account, and a date that is off by more than a quarter of an hour get a 403."""
    status, headers, body = await send(batch, "GET", f"/pools?{VERSION}", **options)
    assert (status, body["code"]) == (403, "AuthenticationFailed")
    assert headers["Content-Type"].startswith("application/json")
    assert body["values"][0]["key"] == "AuthenticationErrorDetail"


async def test_missing_signature_is_refused(batch: Any) -> None:
    """A request without the Authorization header gets a 403."""
    async with aiohttp.ClientSession() as session, session.get(f"{batch.server.url}/pools?{VERSION}") as got:
        assert (got.status, (await got.json())["code"]) == (403, "AuthenticationFailed")


async def test_wrong_key_through_the_sdk(batch_with: Any) -> None:
    """The SDK reports the wrong key with the service's own words."""
    batch = await batch_with(key=base64.b64encode(b"other").decode())
    with pytest.raises(HttpResponseError) as raised:
        await batch.client.get_pool("pool")
    assert raised.value.status_code == 403
    assert "Server failed to authenticate the request" in str(raised.value)


@pytest.mark.parametrize("version", ["2024-02-01.19.0", "2022-10-01.16.0", "2025-06-01"])
async def test_older_versions_are_served(batch: Any, version: str) -> None:
    """Clients of older versions of the API are served."""
    status, _, body = await send(batch, "GET", f"/pools?api-version={version}")
    assert (status, body) == (200, {"value": []})


@pytest.mark.parametrize(
    ("query", "code"), [("", "MissingRequiredQueryParameter"), ("?api-version=1", "Inv")]
)
async def test_version_has_to_be_given(batch: Any, query: str, code: str) -> None:
    """A request without a version, or with one that is none, is refused."""
    status, _, body = await send(batch, "GET", f"/pools{query}")
    assert status == 400
    assert body["code"].startswith(code)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/applications"),
        ("GET", "/jobschedules/x"),
        ("GET", "/jobs/j/jobpreparationandreleasetaskstatus"),
        ("POST", "/pools/p/nodes/n/users"),
        ("GET", "/pools/p/nodes/n/extensions"),
        ("GET", "/jobs/j/tasks/t/subtasksinfo"),
        ("POST", "/pools/p/nodes/n/uploadbatchservicelogs"),
    ],
)
async def test_what_is_not_served_is_said(batch: Any, method: str, target: str) -> None:
    """Operations that the local service has not are refused with 501 in the service's shape."""
    status, _, body = await send(batch, method, f"{target}?{VERSION}")
    assert (status, body["code"]) == (501, "NotImplemented")
    assert body["message"]["lang"] == "en-US"


async def test_every_published_operation_is_served_or_refused(batch: Any) -> None:
    """No operation of the published contract is unknown to the service."""
    if not at_hand():
        pytest.skip("the published specifications are not at hand")
    for template, operations in specification(SWAGGER)["paths"].items():
        for method in operations.keys() - {"parameters"}:
            path = template.replace("{", "").replace("}", "")
            status, _, body = await send(batch, method.upper(), f"{path}?{VERSION}")
            assert (body or {}).get("code") not in ("InvalidUri", "UnsupportedHttpVerb"), (method, template)
            assert status != 500, (method, template)


def test_the_table_of_routes_is_the_code() -> None:
    """The documentation names each route of the service once, served or refused, and no other."""
    text = (Path(__file__).parents[3] / "docs" / "local-cloud.md").read_text()
    rows = re.findall(r"^\| `(/\S+)` \|([ A-Z,]*)\|([ A-Z,]*)\|$", text, re.MULTILINE)
    served, refused = (
        sorted(
            f"{verb} {route_of(tuple(row[0].strip('/').split('/')))}"
            for row in rows
            for verb in re.findall(r"[A-Z]+", row[column])
        )
        for column in (1, 2)
    )
    assert served == sorted(ROUTES)
    assert refused == sorted(REFUSED)


async def test_unknown_paths_and_verbs_are_refused(batch: Any) -> None:
    """A path that the contract has not is an invalid URI, a verb that a path has not is unsupported."""
    assert (await send(batch, "GET", f"/nonsense?{VERSION}"))[2]["code"] == "InvalidUri"
    assert (await send(batch, "GET", f"/pools/p/n/o/n/s/e?{VERSION}"))[2]["code"] == "InvalidUri"
    assert (await send(batch, "PUT", f"/pools?{VERSION}"))[0] == 405


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'"text"', b"null", b"\xff\xfe", b'{"id": 7}', b'{"unheard": 1}']
)
async def test_bodies_that_make_no_sense_are_refused(batch: Any, body: bytes) -> None:
    """Whatever comes as a body, the answer is a refusal of the service, and the service goes on."""
    status, _, answer = await send(batch, "POST", f"/jobs?{VERSION}", body)
    assert status == 400
    assert answer["code"] in ("InvalidRequestBody", "InvalidPropertyValue", "MissingRequiredProperty")
    assert (await send(batch, "GET", f"/jobs?{VERSION}"))[0] == 200


async def test_body_size_is_limited(batch: Any) -> None:
    """A body of more than a megabyte is refused."""
    status, _, body = await send(batch, "POST", f"/jobs?{VERSION}", b" " * (1 << 20) + b"{}")
    assert (status, body["code"]) == (413, "RequestBodyTooLarge")


async def test_misspelt_property_is_refused(batch: Any) -> None:
    """A property that the type has not is refused by its name."""
    job = {"id": "job", "poolInfo": {"poolId": "pool"}, "onAllTaskComplete": "terminatejob"}
    status, _, body = await send(batch, "POST", f"/jobs?{VERSION}", job)
    assert (status, body["code"]) == (400, "InvalidRequestBody")
    assert {"key": "PropertyName", "value": "onAllTaskComplete"} in body["values"]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"networkConfiguration": {"subnet": "x"}}, "networkConfiguration.subnet"),
        ({"networkConfiguration": {"endpointConfiguration": {"inboundNATPools": [{"port": 1}]}}},
         "networkConfiguration.endpointConfiguration.inboundNATPools[0].port"),
        ({"metadata": [{"name": "a", "value": "b", "colour": "c"}]}, "metadata[0].colour"),
        ({"userAccounts": [{"name": "a", "password": 7}]}, "userAccounts[0].password"),
        ({"userAccounts": {"name": "a"}}, "userAccounts"),
        ({"upgradePolicy": {"mode": "never"}}, "upgradePolicy.mode"),
        ({"virtualMachineConfiguration": {"osDisk": {"size": 1}}}, "virtualMachineConfiguration.osDisk.size"),
        ({"startTask": {"commandLine": "x", "userIdentity": {"user": "me"}}}, "startTask.userIdentity.user"),
        ({"startTask": {"commandLine": "x", "environmentSettings": [{"name": "a", "Value": "b"}]}},
         "startTask.environmentSettings[0].Value"),
        ({"displayName": 5}, "displayName"),
    ],
)  # fmt: skip
async def test_misspelt_properties_within_others_are_refused(
    batch: Any, change: dict[str, Any], path: str
) -> None:
    """However deep, also in what the service only repeats; a secret is not repeated by the refusal."""
    image = {"publisher": "canonical", "offer": "ubuntu-24_04-lts", "sku": "server"}
    machine = {"imageReference": image, "nodeAgentSKUId": "batch.node.ubuntu 24.04"}
    pool = {"id": "pool", "vmSize": "standard_d2s_v3", "virtualMachineConfiguration": machine}
    merged = pool | {
        key: machine | value if key == "virtualMachineConfiguration" else value
        for key, value in change.items()
    }
    status, _, body = await send(batch, "POST", f"/pools?{VERSION}", merged)
    assert (status, body["code"] in ("InvalidRequestBody", "InvalidPropertyValue")) == (400, True)
    assert {"key": "PropertyName", "value": path} in body["values"]
    assert {"key": "PropertyValue", "value": "7"} not in body["values"]


async def test_numbers_may_be_strings(batch: Any) -> None:
    """Numbers are taken as strings too: the command line client sends them so."""
    job = {"id": "job", "poolInfo": {"poolId": "pool"}, "priority": "5"}
    assert (await send(batch, "POST", f"/jobs?{VERSION}", job))[0] == 201
    assert (await batch.client.get_job("job")).priority == 5


@pytest.mark.parametrize(
    "expression", ["id eq", "state is 'x'", "id eq 'a' or", "(id eq 'a'", "é", "id eq b"]
)
async def test_bad_filters_are_refused(batch: Any, expression: str) -> None:
    """A filter that is none is refused with the parameter's name."""
    with pytest.raises(HttpResponseError) as raised:
        [job async for job in batch.client.list_jobs(filter=expression)]
    assert raised.value.model is not None
    assert raised.value.model.code == "InvalidQueryParameterValue"


@pytest.mark.parametrize(
    ("target", "expression", "taken"),
    [
        ("/jobs", "executionInfo/poolId eq 'pool' and state ne 'completed'", True),
        ("/jobs", "startswith(id, 'j') or creationTime gt 2020-01-01T00:00:00Z", True),
        ("/jobs", "priority eq 5", False),
        ("/jobs", "state gt 'active'", False),
        ("/jobs", "startswith(state, 'a')", False),
        ("/pools", "vmSize eq 'standard_d2s_v3' and allocationState eq 'steady'", True),
        ("/pools", "targetDedicatedNodes gt 1", False),
        ("/nodecounts", "poolId eq 'pool'", True),
        ("/nodecounts", "poolId ne 'pool'", False),
        ("/supportedimages", "osType eq 'linux' and verificationType ne 'unverified'", True),
        ("/supportedimages", "publisher eq 'canonical'", False),
    ],
)
async def test_lists_are_filtered_by_what_is_published(
    batch: Any, target: str, expression: str, taken: bool
) -> None:
    """A property that a list cannot be filtered by, or not so, is refused with what can be."""
    status, _, body = await send(batch, "GET", f"{target}?{VERSION}&$filter={quote(expression)}")
    assert status == (200 if taken else 400)
    assert taken or (
        body["code"] == "InvalidQueryParameterValue" and "Allowed: " in body["values"][2]["value"]
    )


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("api-version=2099-01-01", 400, "UnsupportedRequestVersion"),
        ("api-version=2099-01-01.99.0", 400, "UnsupportedRequestVersion"),
        (f"{VERSION}&color=red", 400, "UnsupportedQueryParameter"),
        (f"{VERSION}&$select=id,colour", 400, "InvalidQueryParameterValue"),
        (f"{VERSION}&$expand=nodes", 400, "InvalidQueryParameterValue"),
        (f"{VERSION}&$expand=stats", 501, "NotImplemented"),
    ],
)
async def test_queries_that_are_refused(batch: Any, query: str, status: int, code: str) -> None:
    """Versions and parameters that the service has not, and statistics, which are kept nowhere here."""
    got, _, body = await send(batch, "GET", f"/jobs?{query}")
    assert (got, body["code"]) == (status, code)


@pytest.mark.parametrize(
    ("route", "model"),
    [
        ("pools", "BatchPool"),
        ("pools/*/nodes", "BatchNode"),
        ("jobs", "BatchJob"),
        ("jobs/*/tasks", "BatchTask"),
    ],
)
def test_what_is_published_can_be_selected(route: str, model: str) -> None:
    """Every property of the published types, of either version."""
    if not at_hand():
        pytest.skip("the published specifications are not at hand")
    newest = specification(MODELS)["$defs"][model]["properties"]
    older = specification(SWAGGER)["definitions"][model]["properties"]
    assert newest.keys() | older.keys() <= SELECTABLE[route]


@pytest.mark.parametrize(("name", "definitions"), [(MODELS, "$defs"), (SWAGGER, "definitions")])
def test_shapes_have_all_that_is_published(name: str, definitions: str) -> None:
    """What the service only repeats may have every property of the published types, however deep."""
    if not at_hand():
        pytest.skip("the published specifications are not at hand")
    defined = specification(name)[definitions]

    def missing(schema: Any, shape: Any, path: str) -> list[str]:
        reference = schema.get("$ref") or (schema.get("allOf") or [{}])[0].get("$ref")
        schema = defined[reference.rpartition("/")[2]] if reference else schema
        if shape is ANY or not isinstance(shape, dict | list):
            return []
        if isinstance(shape, list):
            return missing(schema["items"], shape[0], f"{path}[]")
        lost = [f"{path}.{each}" for each in schema["properties"].keys() - shape.keys()]
        inner = schema["properties"].items()
        return lost + [
            each for key, part in inner for each in missing(part, shape.get(key, ANY), f"{path}.{key}")
        ]

    for part in (defined["BatchPool"], defined["BatchTask"]):
        for key in part["properties"].keys() & SHAPES.keys():
            assert missing(part["properties"][key], SHAPES[key], key) == []


@pytest.mark.parametrize("limit", [0, 1001])
async def test_page_sizes_are_limited(batch: Any, limit: int) -> None:
    """A page has 1 to 1000 items."""
    with pytest.raises(HttpResponseError) as raised:
        [job async for job in batch.client.list_jobs(max_results=limit)]
    assert raised.value.model is not None
    assert raised.value.model.code == "OutOfRangeQueryParameterValue"


async def test_request_ids_are_returned(batch: Any) -> None:
    """Every answer has a request id, and the client's own when it asks for it."""
    headers = {"client-request-id": "mine", "return-client-request-id": "true"}
    _, got, _ = await send(batch, "GET", f"/pools?{VERSION}", headers=headers)
    assert got["request-id"]
    assert got["client-request-id"] == "mine"


async def test_answers_are_delayed_by_the_latency(batch_with: Any) -> None:
    """Every answer waits as long as the latency says."""
    batch = await batch_with(latency=0.05)
    started = time.monotonic()
    await asyncio.gather(*(send(batch, "GET", f"/pools?{VERSION}") for _ in range(4)))
    assert time.monotonic() - started >= 0.05


async def test_unsupported_features_are_refused_by_name(batch: Any) -> None:
    """A task that asks for what the local service does not do is refused, naming the property."""
    await batch.job()
    task = models.BatchTaskCreateOptions(
        id="task",
        command_line="hostname",
        container_settings=models.BatchTaskContainerSettings(image_name="image"),
    )
    with pytest.raises(HttpResponseError) as raised:
        await batch.client.create_task("job", task)
    assert raised.value.status_code == 501
    assert "containerSettings" in str(raised.value)


async def test_closing_twice_is_harmless(batch: Any) -> None:
    """A closed server can be closed again."""
    await batch.server.aclose()
    await batch.server.aclose()
