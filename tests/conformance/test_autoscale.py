"""What elastic pools need of Batch's formulas, against the local cloud and a real account."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from batchflow.model import Image
from batchflow.pools.scaling.formula import FormulaWish, is_ours, scaling_formula
from batchflow.ports.compute import BatchTask, PoolDocument
from batchflow.protocol.documents import ScalingLimits
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batchflow.ports.compute import Compute, PoolInfo

SIZE = "standard_d2s_v3"
IMAGE = Image(node_agent="batch.node.ubuntu 24.04")
INTERVAL = 300.0
"""Seconds between two evaluations: Azure's least."""
LONG = 900.0
"""Seconds in which a real pool has another size."""


def formula(wanted: int, seconds: float = 3600.0) -> str:
    """The formula of an elastic pool in which so many nodes are wanted for a time."""
    until = time.time() + seconds
    return scaling_formula(ScalingLimits(max_nodes=2), FormulaWish(wanted, 0, until, until))


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    await eventually(holds, LONG, pause=0.1)


async def steady(compute: Compute, name: str) -> PoolInfo:
    """What Batch says of the pool once it has its size."""

    async def is_steady() -> bool:
        return (await compute.pool(name)).allocation == "steady"

    await until(is_steady)
    return await compute.pool(name)


async def enable(compute: Compute, name: str, text: str) -> None:
    """Set a formula, again while Batch does not take it."""
    await until(lambda: compute.enable_autoscale(name, text, INTERVAL))


async def test_our_formula_is_taken_once_in_thirty_seconds_and_told(compute: Compute, name: str) -> None:
    """Batch knows all that it is made of, though no sample is there."""
    text = formula(0)
    await compute.create_pool(PoolDocument(name, SIZE, IMAGE, 0, formula=text, formula_interval=INTERVAL))
    try:
        await steady(compute, name)
        await enable(compute, name, text)
        assert not await compute.enable_autoscale(name, text, INTERVAL)
        info = await steady(compute, name)
        assert info.autoscale
        assert is_ours(info.formula)
        assert (info.formula_error, info.target) == (None, 0)
        ended = scaling_formula(ScalingLimits(max_nodes=2), FormulaWish(2, 0, 0.0, 0.0))
        await enable(compute, name, ended)
        assert (await steady(compute, name)).formula_error is None
        await compute.stop_resize(name)  # none is under way
        await compute.disable_autoscale(name)
        assert not (await compute.pool(name)).autoscale
    finally:
        await compute.delete_pool(name)


@pytest.mark.timeout(3600)
async def test_node_waits_for_its_task_and_stays_when_the_resize_is_stopped(
    compute: Compute, name: str
) -> None:
    """The pool takes a formula again at once, and the task has run all the time. Nodes can be removed by name
    although a formula decides."""
    text = formula(1)
    await compute.create_pool(PoolDocument(name, SIZE, IMAGE, 0, formula=text, formula_interval=INTERVAL))
    try:
        assert await compute.create_job(name, name)
        await compute.add_tasks(name, [BatchTask("works", "/bin/sh -c 'sleep 3000'")])

        async def runs() -> bool:
            return (await compute.tasks(name))[0].state == "running"

        await until(runs)
        await enable(compute, name, formula(0))
        info = await compute.pool(name)
        assert info.allocation == "resizing"
        assert (info.target, info.size) == (0, 1)
        assert not await compute.enable_autoscale(name, formula(2), INTERVAL)
        await compute.stop_resize(name)
        await enable(compute, name, formula(2))
        assert (await steady(compute, name)).size == 2
        (task,) = await compute.tasks(name)
        assert (task.state, task.retries) == ("running", 0)
        (other,) = [node.id for node in await compute.nodes(name) if node.id != task.node]
        await compute.remove_nodes(name, [other])
        assert (await steady(compute, name)).size == 1
    finally:
        await compute.delete_job(name)
        await compute.delete_pool(name)
