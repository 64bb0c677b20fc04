"""Pools whose size a formula decides, as far as the local Batch service evaluates formulas."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from azure.batch import models
from azure.core.exceptions import HttpResponseError, ResourceExistsError

from batchflow.local.batch.core.autoscale import MAX_LENGTH, Targets, evaluate
from batchflow.local.batch.core.entities import AutoscaleFormula, BatchPoolSpec
from batchflow.local.batch.core.errors import Refused
from batchflow.local.batch.core.state import BatchState

FORMULA = {"enable_auto_scale": True, "target_dedicated_nodes": None}


def enabling(
    formula: str | None = None, minutes: float | None = None
) -> models.BatchPoolEnableAutoScaleOptions:
    interval = None if minutes is None else timedelta(minutes=minutes)
    return models.BatchPoolEnableAutoScaleOptions(
        auto_scale_formula=formula, auto_scale_evaluation_interval=interval
    )


@pytest.mark.parametrize(
    ("formula", "dedicated", "spot", "option"),
    [
        ("$TargetDedicatedNodes=2", 2, None, "requeue"),
        ("$TargetDedicatedNodes=2;$TargetLowPriorityNodes = 3 ;", 2, 3, "requeue"),
        ("$TargetDedicated=0; $NodeDeallocationOption = taskcompletion;", 0, None, "taskcompletion"),
        (
            "wish = (1 + 2) * 3 / 2; // comment\n$TargetDedicatedNodes = min(wish, 4, 10 - -1)",
            4,
            None,
            "requeue",
        ),
        ("$TargetDedicatedNodes = max(0, $CurrentDedicatedNodes - 10)", 0, None, "requeue"),
        ("$TargetLowPriorityNodes = $CurrentLowPriorityNodes + 1", None, 8, "requeue"),
        ("$TargetDedicatedNodes = -3", 0, None, "requeue"),
    ],
)
def test_formulas(formula: str, dedicated: int | None, spot: int | None, option: str) -> None:
    """Constants, arithmetic, the least and the greatest, names, and the pool's own size."""
    targets = evaluate(formula, 5, 7)
    assert (targets.dedicated, targets.spot, targets.option) == (dedicated, spot, option)


def test_results_are_told_as_the_service_tells_them() -> None:
    """Each variable with its value, by name, the option too when the formula does not say it."""
    results = "$NodeDeallocationOption=requeue;$TargetDedicatedNodes=2;half=1.5"
    assert evaluate("half=3/2;$TargetDedicatedNodes=2", 0, 0) == Targets(2, None, "requeue", results)


@pytest.mark.parametrize(
    ("formula", "code"),
    [
        ("", "AutoScalingFormulaSyntaxError"),
        ("$TargetDedicatedNodes", "AutoScalingFormulaSyntaxError"),
        ("$TargetDedicatedNodes = ", "AutoScalingFormulaSyntaxError"),
        ("$TargetDedicatedNodes = 1 2", "AutoScalingFormulaSyntaxError"),
        ("$TargetDedicatedNodes = (1", "AutoScalingFormulaSyntaxError"),
        ("$TargetDedicatedNodes = 1 / 0", "AutoScalingFormulaSyntaxError"),
        ("$CurrentDedicatedNodes = 1", "AutoScalingFormulaSyntaxError"),
        ("$NodeDeallocationOption = never", "AutoScalingFormulaSyntaxError"),
        ("$TargetDedicatedNodes = " + "(" * 8000, "AutoScalingFormulaSyntaxError"),
        ("x" * (MAX_LENGTH + 1), "AutoScaleFormulaTooLong"),
        ("$TargetDedicatedNodes = $PendingTasks.GetSample(1)", "NotImplemented"),
        ("$TargetDedicatedNodes = $PendingTasks", "NotImplemented"),
        ("$TargetDedicatedNodes = avg(1, 2)", "NotImplemented"),
        ('$TargetDedicatedNodes = time("2020")', "NotImplemented"),
    ],
)
def test_formulas_that_are_refused(formula: str, code: str) -> None:
    """What is no formula has the service's code; what Azure alone evaluates is told as that."""
    with pytest.raises(Refused) as refused:
        evaluate(formula, 0, 0)
    assert refused.value.code == code


async def test_a_pool_with_a_formula(batch: Any) -> None:
    """The formula decides at once, the pool tells of it, and nobody else resizes it."""
    await batch.pool(nodes=0, ready=False, auto_scale_formula="$TargetDedicatedNodes=1", **FORMULA)
    await batch.until(batch.node_states, ["idle"])
    pool = await batch.client.get_pool("pool")
    assert (pool.enable_auto_scale, pool.auto_scale_formula) == (True, "$TargetDedicatedNodes=1")
    assert pool.auto_scale_evaluation_interval == timedelta(minutes=15)
    assert pool.auto_scale_run.results == "$NodeDeallocationOption=requeue;$TargetDedicatedNodes=1"
    options = models.BatchPoolResizeOptions(target_dedicated_nodes=2)
    with pytest.raises(ResourceExistsError, match="OperationNotValidOnPool"):
        await batch.client.begin_resize_pool("pool", options, polling_interval=0)


async def test_a_formula_is_set_changed_and_taken_away(batch: Any) -> None:
    """It comes and goes with a pool that is at rest; the size stays when it goes."""
    await batch.pool(nodes=1)
    with pytest.raises(ResourceExistsError, match="OperationNotValidOnPool"):
        await batch.client.evaluate_pool_auto_scale(
            "pool", models.BatchPoolEvaluateAutoScaleOptions(auto_scale_formula="$TargetDedicatedNodes=3")
        )
    await batch.client.enable_pool_auto_scale("pool", enabling("$TargetDedicatedNodes=2", minutes=5))
    await batch.until(batch.node_states, ["idle", "idle"])
    run = await batch.client.evaluate_pool_auto_scale(
        "pool", models.BatchPoolEvaluateAutoScaleOptions(auto_scale_formula="$TargetDedicatedNodes=3")
    )
    assert "$TargetDedicatedNodes=3" in run.results
    with pytest.raises(HttpResponseError, match="TooManyEnableAutoScaleRequests"):
        await batch.client.enable_pool_auto_scale("pool", enabling("$TargetDedicatedNodes=0"))
    await batch.client.disable_pool_auto_scale("pool")
    pool = await batch.client.get_pool("pool")
    assert (pool.enable_auto_scale, pool.auto_scale_formula, pool.auto_scale_run) == (False, None, None)
    assert (pool.target_dedicated_nodes, await batch.node_states()) == (2, ["idle", "idle"])


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"enable_auto_scale": True}, "MissingRequiredProperty"),
        ({"auto_scale_formula": "$TargetDedicatedNodes=1"}, "InvalidPropertyValue"),
        ({**FORMULA, "auto_scale_formula": "x", "target_low_priority_nodes": 1}, "InvalidPropertyValue"),
        ({**FORMULA, "auto_scale_formula": "nonsense"}, "AutoScalingFormulaSyntaxError"),
        (
            {**FORMULA, "auto_scale_formula": "x", "auto_scale_evaluation_interval": timedelta(minutes=1)},
            "InvalidPropertyValue",
        ),
    ],
)
async def test_pools_that_are_refused(batch: Any, options: dict[str, Any], code: str) -> None:
    """A formula goes without counts, and is checked before the pool is made."""
    with pytest.raises(HttpResponseError, match=code):
        await batch.pool(ready=False, **options)
    assert [pool.id async for pool in batch.client.list_pools()] == []


async def test_settings_that_are_refused(batch: Any) -> None:
    """Nothing to set, no formula to keep, a pool that resizes."""
    await batch.pool(nodes=0)
    with pytest.raises(HttpResponseError, match="MissingRequiredProperty"):
        await batch.client.enable_pool_auto_scale("pool", enabling(minutes=10))
    with pytest.raises(HttpResponseError, match="InvalidPropertyValue"):
        await batch.client.enable_pool_auto_scale("pool", enabling("$TargetDedicatedNodes=1", minutes=1))


def test_a_formula_is_evaluated_at_its_interval() -> None:
    """And left out while the pool resizes; what it came to, or why to nothing, is told."""
    state = BatchState("account")
    growing = AutoscaleFormula("$TargetDedicatedNodes = 6 / (3 - $CurrentDedicatedNodes)", 300.0)
    spec = BatchPoolSpec("pool", "standard_d2s_v3", 1, "spread", None, 900.0, {}, growing)
    pool = state.pools.create_pool(spec, 0, 0, 1000.0)
    assert (pool.wanted, pool.allocation, state.next_deadline()) == (2, "resizing", 1300.0)
    state.tick(1300.0)
    assert (pool.wanted, pool.formula_run.at if pool.formula_run else None) == (2, 1300.0)
    for node in list(pool.nodes.values()):
        state.pools.node_allocated(node, 1400.0)
    state.tick(1600.0)
    assert (pool.wanted, len(pool.nodes)) == (6, 6)
    with pytest.raises(Refused, match="PoolBeingResized"):
        state.pools.enable_formula(pool, "$TargetDedicatedNodes=1", None, 1700.0)
    state.pools.stop_resize(pool, 1700.0)
    for node in list(pool.nodes.values()):
        state.pools.node_allocated(node, 1700.0)
    for node in list(pool.nodes.values())[3:]:
        del pool.nodes[node.id]
    state.tick(1900.0)
    assert pool.formula_run is not None
    assert pool.formula_run.failure is not None
    assert pool.formula_run.failure.message == "it divides by zero"
    state.pools.disable_formula(pool, 2000.0)
    assert state.next_deadline() is None
