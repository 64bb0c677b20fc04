"""What the local Batch service takes for granted of the real one, where the reference is silent or vague.

Each test says what it takes for granted; a real account (see `conftest.py`) confirms or refutes it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from azure.batch import models
from azure.batch.aio import BatchClient
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError

from batchflow.local.batch.server import BatchServer
from tests.conformance.conftest import REAL, new_key, setting
from tests.support.batch_sdk import code

FORMULA = "$TargetDedicatedNodes = 0;"
PATIENCE = 300.0


@pytest_asyncio.fixture(params=["local", REAL])
async def account(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[str, str, str]]:
    """Name, key and URL of an account."""
    async with AsyncExitStack() as stack:
        if request.param == "azure":
            names = ("BATCHFLOW_TEST_BATCH_ACCOUNT", "BATCHFLOW_TEST_BATCH_KEY", "BATCHFLOW_TEST_BATCH_URL")
            account, key, url = (setting(name) for name in names)
        else:
            account, key = "conformance", new_key()
            server = BatchServer(account=account, key=key, root=tmp_path)
            stack.push_async_callback(server.aclose)
            await server.start()
            url = server.url
        yield account, key, url


def client(account: tuple[str, str, str], **options: str) -> BatchClient:
    name, key, url = account
    return BatchClient(url.rstrip("/"), AzureNamedKeyCredential(name, key), **options)


@pytest_asyncio.fixture
async def sdk(account: tuple[str, str, str]) -> AsyncIterator[BatchClient]:
    async with client(account) as made:
        yield made


@pytest_asyncio.fixture
async def name(sdk: BatchClient) -> AsyncIterator[str]:
    """A name for a pool and a job that are removed after the test."""
    name = f"conformance-{secrets.token_hex(6)}"
    yield name
    for remove in (sdk.begin_delete_job, sdk.begin_delete_pool):
        try:
            await remove(name)
        except (ResourceNotFoundError, ResourceExistsError):
            continue


def pool(name: str, **options: Any) -> models.BatchPoolCreateOptions:
    image = models.BatchVmImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server")
    machine = models.VirtualMachineConfiguration(
        image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04"
    )
    return models.BatchPoolCreateOptions(
        id=name, vm_size="standard_d2s_v3", virtual_machine_configuration=machine, **options
    )


async def settled(sdk: BatchClient, name: str) -> models.BatchPool:
    """The pool when its resize is over."""
    async with asyncio.timeout(PATIENCE):
        while (found := await sdk.get_pool(name)).allocation_state != "steady":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return found


async def test_resizing_a_pool_with_a_formula_is_refused(sdk: BatchClient, name: str) -> None:
    """The code of the refusal is nowhere published."""
    await sdk.create_pool(pool(name, enable_auto_scale=True, auto_scale_formula=FORMULA))
    await settled(sdk, name)
    options = models.BatchPoolResizeOptions(target_dedicated_nodes=0)
    with pytest.raises(ResourceExistsError) as caught:
        await sdk.begin_resize_pool(name, options)
    assert code(caught) == "OperationNotValidOnPool"


async def test_results_of_a_formula_name_every_option(sdk: BatchClient, name: str) -> None:
    """The option for deallocation is there too, although the formula does not name it."""
    await sdk.create_pool(pool(name, enable_auto_scale=True, auto_scale_formula=FORMULA))
    await settled(sdk, name)
    options = models.BatchPoolEvaluateAutoScaleOptions(auto_scale_formula=FORMULA)
    told = set(((await sdk.evaluate_pool_auto_scale(name, options)).results or "").split(";"))
    assert {"$TargetDedicatedNodes=0", "$NodeDeallocationOption=requeue"} <= told


async def test_evaluating_a_formula_of_a_pool_without_one_is_refused(sdk: BatchClient, name: str) -> None:
    """The code of the refusal is nowhere published."""
    await sdk.create_pool(pool(name, target_dedicated_nodes=0))
    await settled(sdk, name)
    options = models.BatchPoolEvaluateAutoScaleOptions(auto_scale_formula=FORMULA)
    with pytest.raises(ResourceExistsError) as caught:
        await sdk.evaluate_pool_auto_scale(name, options)
    assert code(caught) == "OperationNotValidOnPool"


async def test_future_api_version_is_refused(account: tuple[str, str, str]) -> None:
    """The code is the published one for versions that are not supported."""
    async with client(account, api_version="2099-01-01") as sdk:
        with pytest.raises(HttpResponseError) as caught:
            [each async for each in sdk.list_jobs()]
    assert code(caught) == "UnsupportedRequestVersion"


@pytest.mark.parametrize("expression", ["priority eq 5", "state gt 'active'", "startswith(state, 'a')"])
async def test_filter_by_an_unknown_property_or_operator_is_refused(
    sdk: BatchClient, expression: str
) -> None:
    """None of these is published as one to filter by."""
    with pytest.raises(HttpResponseError) as caught:
        [each async for each in sdk.list_jobs(filter=expression)]
    assert code(caught) == "InvalidQueryParameterValue"


async def test_filters_can_be_negated(sdk: BatchClient) -> None:
    """`not` is OData's, and the reference of Batch names `and` and `or` alone."""
    assert isinstance([each async for each in sdk.list_jobs(filter="not (state eq 'active')")], list)


async def test_selecting_an_unknown_property_is_refused(sdk: BatchClient) -> None:
    """It is not left out in silence."""
    with pytest.raises(HttpResponseError) as caught:
        [each async for each in sdk.list_jobs(select=["id", "colour"])]
    assert code(caught) == "InvalidQueryParameterValue"


@pytest.mark.parametrize("field", ["result", "exitCode", "startTime"])
async def test_tasks_are_filtered_by_how_they_ended(sdk: BatchClient, name: str, field: str) -> None:
    """Which parts of executionInfo a list of tasks can be filtered by is published in part only."""
    await sdk.create_pool(pool(name, target_dedicated_nodes=0))
    await sdk.create_job(models.BatchJobCreateOptions(id=name, pool_info=models.BatchPoolInfo(pool_id=name)))
    literal = {"result": "'failure'", "exitCode": "0", "startTime": "2020-01-01T00:00:00Z"}[field]
    found = sdk.list_tasks(name, filter=f"executionInfo/{field} eq {literal}")
    assert [each async for each in found] == []


async def test_name_of_a_job_is_taken_until_the_job_is_gone(sdk: BatchClient, name: str) -> None:
    """A job that is on its way out refuses another one of its name as being deleted, or is gone."""
    assert await creation(sdk, name) is None
    assert await creation(sdk, name) == "JobExists"
    await sdk.begin_delete_job(name)
    assert await creation(sdk, name) in (None, "JobBeingDeleted")


async def creation(sdk: BatchClient, name: str) -> str | None:
    """The code with which a job is refused; None: it was made."""
    options = models.BatchJobCreateOptions(id=name, pool_info=models.BatchPoolInfo(pool_id=name))
    try:
        await sdk.create_job(options)
    except ResourceExistsError as error:
        return error.model.code if isinstance(error.model, models.BatchError) else "unknown"
    return None
