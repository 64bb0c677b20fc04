"""The published contract of the Batch data plane, held against what crosses the wire in the tests.

Two documents: the Swagger of the REST API, and the models of the version that the SDK speaks. Of a request
that the service took, the parameters and the body have to fit; of an answer, refusals too, the status, the
headers and the body. Where the documents are not at hand nothing is checked, and the tests' header says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from azure.core.pipeline import PipelineRequest, PipelineResponse
from azure.core.pipeline.policies import AsyncHTTPPolicy
from jsonschema import Draft4Validator, Draft202012Validator

SPECS = Path(__file__).parents[3] / "shared" / "specs"
SWAGGER = "batch-2024-07-01.20.0.json"
MODELS = "batch-2025-06-01.models.schema.json"
EXAMPLES = SPECS / "batch-examples"

REQUEST_MODELS = {
    "POST pools": "BatchPoolCreateOptions",
    "PATCH pools/*": "BatchPoolUpdateOptions",
    "POST pools/*/resize": "BatchPoolResizeOptions",
    "POST pools/*/removenodes": "BatchNodeRemoveOptions",
    "POST pools/*/updateproperties": "BatchPoolReplaceOptions",
    "POST pools/*/enableautoscale": "BatchPoolEnableAutoScaleOptions",
    "POST pools/*/evaluateautoscale": "BatchPoolEvaluateAutoScaleOptions",
    "POST pools/*/nodes/*/reboot": "BatchNodeRebootOptions",
    "POST pools/*/nodes/*/reimage": "BatchNodeReimageOptions",
    "POST pools/*/nodes/*/deallocate": "BatchNodeDeallocateOptions",
    "POST pools/*/nodes/*/disablescheduling": "BatchNodeDisableSchedulingOptions",
    "POST jobs": "BatchJobCreateOptions",
    "PATCH jobs/*": "BatchJobUpdateOptions",
    "PUT jobs/*": "BatchJob",
    "POST jobs/*/terminate": "BatchJobTerminateOptions",
    "POST jobs/*/disable": "BatchJobDisableOptions",
    "POST jobs/*/tasks": "BatchTaskCreateOptions",
    "POST jobs/*/addtaskcollection": "BatchTaskGroup",
    "PUT jobs/*/tasks/*": "BatchTask",
}
RESPONSE_MODELS = {
    "GET pools": "BatchPool",
    "GET pools/*": "BatchPool",
    "POST pools/*/evaluateautoscale": "AutoScaleRun",
    "GET nodecounts": "BatchPoolNodeCounts",
    "GET supportedimages": "BatchSupportedImage",
    "GET pools/*/nodes": "BatchNode",
    "GET pools/*/nodes/*": "BatchNode",
    "GET pools/*/nodes/*/files": "BatchNodeFile",
    "GET jobs": "BatchJob",
    "GET jobs/*": "BatchJob",
    "GET jobs/*/taskcounts": "BatchTaskCountsResult",
    "POST jobs/*/addtaskcollection": "BatchTaskCreateResult",
    "GET jobs/*/tasks": "BatchTask",
    "GET jobs/*/tasks/*": "BatchTask",
    "GET jobs/*/tasks/*/files": "BatchNodeFile",
}
UPDATED_BY_PUT = {"PUT jobs/*", "PUT jobs/*/tasks/*"}
"""Their models are those of the whole resource, of which a request has a part."""


@cache
def specification(name: str) -> Any:
    """Return a published document; None where it is not at hand."""
    path = SPECS / name
    return json.loads(path.read_text()) if path.exists() else None


def at_hand() -> bool:
    """Tell whether both documents are there."""
    return specification(SWAGGER) is not None and specification(MODELS) is not None


class Contract:
    """Collects what does not fit; `verdict` tells it."""

    def __init__(self) -> None:
        self.checked = 0
        self._misfits: list[str] = []
        self._where = ""

    def verdict(self) -> list[str]:
        """Return what did not fit since this was last asked."""
        misfits, self._misfits = self._misfits, []
        return misfits

    def exchange(
        self, method: str, url: str, sent: bytes | None, status: int, headers: Mapping[str, str], got: bytes
    ) -> None:
        """Check one request with its answer. Misfits are collected, because a client may swallow an error."""
        split = urlsplit(url)
        self._where = f"{method} {split.path}: {status}"
        found = self._operation(method, split.path)
        if found is None:
            return
        route, operation = found
        query = dict(parse_qsl(split.query))
        if status < 400:
            self._parameters(operation, query)
            if sent:
                self._request(route, operation, json.loads(sent))
        self._answer(route, operation, status, _Headers(headers), got, selected="$select" in query)

    def sent(self, method: str, path: str, body: Any) -> None:
        """Check a request's body that got no answer."""
        found = self._operation(method, path)
        assert found is not None, path
        self._where = f"{method} {path}"
        self._request(*found, body)

    def _operation(self, method: str, path: str) -> tuple[str, Any] | None:
        """Find the operation; None for a path or a verb that the contract does not have."""
        names = path.strip("/").split("/")
        if len(names) > 6:
            names = [*names[:5], "/".join(names[5:])]
        pattern = "/".join("*" if number % 2 else name for number, name in enumerate(names))
        for template, operations in specification(SWAGGER)["paths"].items():
            if re.sub(r"\{\w+\}", "*", template).strip("/") == pattern:
                operation = operations.get(method.lower())
                return None if operation is None else (f"{method} {pattern}", operation)
        return None

    def _parameters(self, operation: Any, query: Mapping[str, str]) -> None:
        known = {each.get("name") for each in operation["parameters"]} | {"api-version", "$skiptoken"}
        self._note(f"the query parameter {name} is not known" for name in query.keys() - known)

    def _request(self, route: str, operation: Any, body: Any) -> None:
        for parameter in operation["parameters"]:
            if parameter.get("in") == "body":
                self._swagger(parameter["schema"], body)
        if route in REQUEST_MODELS:
            self._model(REQUEST_MODELS[route], body, part=route in UPDATED_BY_PUT)

    def _answer(
        self, route: str, operation: Any, status: int, headers: _Headers, body: bytes, *, selected: bool
    ) -> None:
        self._note(() if headers.get("request-id") else ["no request-id"])
        if status == 304 or route.startswith("HEAD") or not body:
            self._note([f"{status} with a body"] if body else ())
        elif not headers.get("content-type", "").startswith("application/json"):
            self._note([f"a refusal of {headers.get('content-type')}"] if status >= 400 else ())
        elif status >= 400:
            self._refusal(json.loads(body))
        if status >= 300:
            return
        declared = operation["responses"].get(str(status))
        if declared is None:
            self._note([f"the status is not one of {list(operation['responses'])}"])
            return
        self._headers(route.partition(" ")[0], operation, status, headers)
        if body and "schema" in declared and declared["schema"].get("type") != "file":
            document = json.loads(body)
            self._document(route, declared["schema"], document, selected=selected)
            told = document.get("eTag", headers.get("ETag"))
            self._note([f"the eTag {told} is not the header's"] if told != headers.get("ETag") else ())

    def _refusal(self, body: Any) -> None:
        self._swagger({"$ref": "#/definitions/BatchError"}, body)
        self._model("BatchError", body)
        missing = [key for key in ("code", "message") if not body.get(key)]
        self._note(f"a refusal without {key}" for key in missing)

    def _headers(self, method: str, operation: Any, status: int, headers: _Headers) -> None:
        """What changes a resource, or shows one that has versions, tells of its version and its address."""
        names = {each.get("name") for each in operation["parameters"]}
        versioned = status == 201 or ("If-Match" in names and method != "DELETE")
        needed = {"ETag", "Last-Modified"} if versioned else set()
        needed |= {"DataServiceId"} if method in ("POST", "PUT", "PATCH") else set()
        for name, schema in operation["responses"][str(status)].get("headers", {}).items():
            value = headers.get(name)
            if value is None:
                self._note([f"the header {name} is missing"] if name in needed else ())
            elif schema.get("format") == "date-time-rfc7231" and not _is_http_date(value):
                self._note([f"the header {name} is no date: {value}"])
            elif schema["type"] == "boolean" and value not in ("true", "false"):
                self._note([f"the header {name} is neither true nor false: {value}"])

    def _document(self, route: str, schema: Any, body: Any, *, selected: bool) -> None:
        if not selected:
            self._swagger(schema, body)
        if route in RESPONSE_MODELS:
            for item in body["value"] if set(body) <= {"value", "odata.nextLink"} else [body]:
                self._model(RESPONSE_MODELS[route], item, part=selected)

    def _swagger(self, schema: Any, body: Any) -> None:
        definitions = specification(SWAGGER)["definitions"]
        self._validate(Draft4Validator(schema | {"definitions": definitions}), body)

    def _model(self, name: str, body: Any, *, part: bool = False) -> None:
        """`part`: properties that the model requires may be missing."""
        models = specification(MODELS)["$defs"]
        if part:
            models = models | {name: {**models[name], "required": []}}
        self._validate(Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": models}), body)

    def _validate(self, validator: Any, body: Any) -> None:
        self.checked += 1
        errors = (error for error in validator.iter_errors(body) if not _is_lenient(error))
        self._note(f"{error.json_path}: {error.message}" for error in errors)

    def _note(self, misfits: Iterable[str]) -> None:
        self._misfits += [f"{self._where}: {misfit}" for misfit in misfits]


class _Headers:
    """Headers by their names in any case."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = {name.lower(): value for name, value in headers.items()}

    def get(self, name: str, default: Any = None) -> Any:
        return self._headers.get(name.lower(), default)


def _is_lenient(error: Any) -> bool:
    """Tell whether the service takes a number as a string, as one of Azure's own clients sends it."""
    return error.validator == "type" and error.validator_value == "integer" and str(error.instance).isdigit()


def _is_http_date(text: str) -> bool:
    try:
        parsedate_to_datetime(text)
    except ValueError:
        return False
    return text.endswith(" GMT")


class ContractPolicy(AsyncHTTPPolicy):  # type: ignore[type-arg]
    """Lets the contract see what the SDK sends and gets."""

    def __init__(self, contract: Contract) -> None:
        super().__init__()
        self.contract = contract

    async def send(self, request: PipelineRequest) -> PipelineResponse:  # type: ignore[type-arg]
        """Pass the request on; note it with its answer, of which a file's content is not read here."""
        sent = request.http_request
        answer = await self.next.send(request)
        got = answer.http_response
        is_json = sent.method != "HEAD" and got.headers.get("Content-Type", "").startswith("application/json")
        if is_json:
            await got.load_body()
        self.contract.exchange(
            sent.method, sent.url, sent.content, got.status_code, got.headers, got.body() if is_json else b""
        )
        return answer
