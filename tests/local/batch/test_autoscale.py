"""Pools whose size a formula decides, as far as the local Batch service evaluates formulas."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.batch import models
from azure.core.exceptions import HttpResponseError, ResourceExistsError
from hypothesis import given, settings
from hypothesis import strategies as st

from batchflow.local.batch.core.autoscale import Targets, evaluate
from batchflow.local.batch.core.entities import AutoscaleFormula, BatchPoolSpec
from batchflow.local.batch.core.errors import Refused
from batchflow.local.batch.core.formula import MAX_LENGTH
from batchflow.local.batch.core.formula_values import FormulaFacts
from batchflow.local.batch.core.samples import METRICS, AutoscaleTiming, MetricSample
from batchflow.local.batch.core.state import BatchState
from tests.fuzz.targets import POOL
from tests.support.batch_plane import Plane

NOON = 1_699_963_200.0
"""A Tuesday, the 14th of November 2023."""

FORMULA = {"enable_auto_scale": True, "target_dedicated_nodes": None}


def enabling(
    formula: str | None = None, minutes: float | None = None
) -> models.BatchPoolEnableAutoScaleOptions:
    interval = None if minutes is None else timedelta(minutes=minutes)
    return models.BatchPoolEnableAutoScaleOptions(
        auto_scale_formula=formula, auto_scale_evaluation_interval=interval
    )


def facts(now: float = NOON, **metrics: Any) -> FormulaFacts:
    """A pool of 5 dedicated and 7 spot nodes; metrics by name, each with its samples, the oldest first.

    The last of them is the last that is seen.
    """
    series = {name: metrics.pop(name.removeprefix("$"), None) for name in METRICS}
    length = max((len(samples) for samples in series.values() if samples), default=0)
    current = tuple(
        float({"$CurrentDedicatedNodes": 5, "$CurrentLowPriorityNodes": 7}.get(name, 0)) for name in METRICS
    )
    samples = [
        MetricSample(
            now - 60.0 - 30.0 * (length - 1 - index),
            tuple(float(series[name][index]) if series[name] else 0.0 for name in METRICS),
        )
        for index in range(length)
    ]
    return FormulaFacts(now, metrics.get("target", 5), metrics.get("spot", 7), current, samples)


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
        ("$TargetDedicatedNodes = $TargetDedicatedNodes + 1", 6, None, "requeue"),
        ("$TargetDedicatedNodes = 3; stop(); $TargetDedicatedNodes = 9", 3, None, "requeue"),
    ],
)
def test_formulas(formula: str, dedicated: int | None, spot: int | None, option: str) -> None:
    """Constants, arithmetic, the least and the greatest, names, and the pool's own size."""
    targets = evaluate(formula, facts())
    assert (targets.dedicated, targets.spot, targets.option) == (dedicated, spot, option)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("avg(1,2,[3,6])", "3"),
        ("len([1,2,3])", "3"),
        ("[1,2]*2+[1,1]", "[3,5]"),
        ("lg(8)+ln(1)+log(100)", "5"),
        ("norm([3,4])", "5"),
        ("percentile([1,2,3,4,5],50)", "3"),
        ("range(1,5)", "4"),
        ("round(1.6)+ceil(1.2)+floor(1.8)", "5"),
        ("std(1,2,3)", "1"),
        ("sum([1,2],3)", "6"),
        ("val([4,5,6],1)", "5"),
        ("1<2&&2<=2||0", "1"),
        ("!(1==2)!=0", "1"),
        ("-2*-3", "6"),
        ("1?2:3?4:5", "2"),
        ("0?2:0?4:5", "5"),
        ("time(\"2024-02-29\").month+time('2024').year", "2026"),
        ('time("Mon, 01 Jan 2024 06:07:08 GMT").hour', "6"),
        ("time().weekday", "2"),
        ('(time()-time("2023-11-14"))/2==TimeInterval_Hour*6', "1"),
        ("(time()+TimeInterval_Minute*90).minute", "30"),
        ("TimeInterval_Day+TimeInterval_Hour>TimeInterval_Day", "1"),
        ('"a"<"b"', "1"),
        ("$PendingTasks.GetSample(2)", "[3,4]"),
        ("$PendingTasks", "4"),
        ("$PendingTasks.Count()", "4"),
        ("$PendingTasks.GetSamplePeriod()", "30s"),
        ("(time()-$PendingTasks.HistoryBeginTime())", "150s"),
        ("$PendingTasks.GetSample(TimeInterval_Minute*2)", "[3,4]"),
        ("$PendingTasks.GetSample(60*TimeInterval_Second,120*TimeInterval_Second,50)", "[3,4]"),
        ("$PendingTasks.GetSamplePercent(TimeInterval_Minute*2)", "50"),
        ("$PendingTasks.GetSamplePercent(TimeInterval_Minute*1)", "0"),
        ("0?$PendingTasks.GetSample(TimeInterval_Minute,90):7", "7"),
    ],
)
def test_values(expression: str, value: str) -> None:
    """Operators, functions, times and samples, as Azure documents them."""
    results = evaluate(f"a={expression}", facts(PendingTasks=[1, 2, 3, 4])).results
    assert results.partition("a=")[2] == value


def test_results_are_told_as_the_service_tells_them() -> None:
    """Each variable with its value, by name, the option too when the formula does not say it."""
    results = "$NodeDeallocationOption=requeue;$TargetDedicatedNodes=2;half=1.5;now=2023-11-14T12:00:00.000Z"
    formula = "half=3/2;$TargetDedicatedNodes=2;now=time()"
    assert evaluate(formula, facts()) == Targets(2, None, "requeue", results)


PENDING = """
startingNumberOfVMs = 1;
maxNumberofVMs = 25;
pendingTaskSamplePercent = $PendingTasks.GetSamplePercent(180 * TimeInterval_Second);
pendingTaskSamples = pendingTaskSamplePercent < 70 ? startingNumberOfVMs :
    avg($PendingTasks.GetSample(180 * TimeInterval_Second));
$TargetDedicatedNodes=min(maxNumberofVMs, pendingTaskSamples);
$NodeDeallocationOption = taskcompletion;
"""
PREEMPTED = """
maxNumberofVMs = 25;
$TargetDedicatedNodes = min(maxNumberofVMs, $PreemptedNodeCount.GetSample(180 * TimeInterval_Second));
$TargetLowPriorityNodes = min(maxNumberofVMs , maxNumberofVMs - $TargetDedicatedNodes);
$NodeDeallocationOption = taskcompletion;
"""
WORKING_HOURS = """
$curTime = time();
$workHours = $curTime.hour >= 8 && $curTime.hour < 18;
$isWeekday = $curTime.weekday >= 1 && $curTime.weekday <= 5;
$isWorkingWeekdayHour = $workHours && $isWeekday;
$TargetDedicatedNodes = $isWorkingWeekdayHour ? 20:10;
$NodeDeallocationOption = taskcompletion;
"""
TASKS = """
// Get pending tasks for the past 15 minutes.
$samples = $PendingTasks.GetSamplePercent(TimeInterval_Minute * 15);
// If we have fewer than 70 percent data points, we use the last sample point, otherwise the maximum.
$tasks = $samples < 70 ? max(0, $PendingTasks.GetSample(1)) :
    max( $PendingTasks.GetSample(1), avg($PendingTasks.GetSample(TimeInterval_Minute * 15)));
// If number of pending tasks is not 0, set targetVM to pending tasks, otherwise half of current dedicated.
$targetVMs = $tasks > 0 ? $tasks : max(0, $TargetDedicatedNodes / 2);
cappedPoolSize = 20;
$TargetDedicatedNodes = max(0, min($targetVMs, cappedPoolSize));
$NodeDeallocationOption = taskcompletion;
"""
PARALLEL = """
$samples = $ActiveTasks.GetSamplePercent(TimeInterval_Minute * 15);
$tasks = $samples < 70 ? max(0,$ActiveTasks.GetSample(1)) :
    max( $ActiveTasks.GetSample(1),avg($ActiveTasks.GetSample(TimeInterval_Minute * 15)));
$cores = $TargetDedicatedNodes * 4;
$extraVMs = (($tasks - $cores) + 3) / 4;
$targetVMs = ($TargetDedicatedNodes + $extraVMs);
$TargetDedicatedNodes = max(0,min($targetVMs,3));
$NodeDeallocationOption = taskcompletion;
"""
INITIAL = """
$TargetDedicatedNodes = 4;
lifespan         = time() - time("2023-11-14T11:55:00Z");
span             = TimeInterval_Minute * 60;
startup          = TimeInterval_Minute * 10;
ratio            = 50;
$TargetDedicatedNodes = (lifespan > startup ? (max($RunningTasks.GetSample(span, ratio),
    $ActiveTasks.GetSample(span, ratio)) == 0 ? 0 : $TargetDedicatedNodes) : 4);
$NodeDeallocationOption = taskcompletion;
"""


@pytest.mark.parametrize(
    ("formula", "known", "dedicated", "spot"),
    [
        (PENDING, {}, 1, None),
        (PENDING, {"PendingTasks": [8] * 10}, 1, None),
        (PENDING, {"PendingTasks": [8] * 10, "now": NOON + 30}, 1, None),
        (PREEMPTED, {"PreemptedNodeCount": [3, 4, 4, 4]}, 3, 22),
        (WORKING_HOURS, {}, 20, None),
        (WORKING_HOURS, {"now": NOON + 7 * 3_600}, 10, None),
        (WORKING_HOURS, {"now": NOON + 4 * 86_400}, 10, None),
        (TASKS, {"PendingTasks": [9]}, 9, None),
        (TASKS, {"PendingTasks": [30] * 29 + [2]}, 20, None),
        (TASKS, {"PendingTasks": [10] * 29 + [2]}, 9, None),
        (TASKS, {"PendingTasks": [0] * 30}, 2, None),
        (TASKS, {}, 2, None),
        (PARALLEL, {"ActiveTasks": [40] * 30, "target": 1}, 3, None),
        (PARALLEL, {"ActiveTasks": [5], "target": 1}, 2, None),
        (INITIAL, {}, 4, None),
        (INITIAL, {"now": NOON + 3_600, "RunningTasks": [0] * 119, "ActiveTasks": [0] * 119}, 0, None),
        (INITIAL, {"now": NOON + 3_600, "RunningTasks": [1] * 119, "ActiveTasks": [0] * 119}, 4, None),
    ],
)
def test_formulas_of_azure_s_own_documentation(
    formula: str, known: dict[str, Any], dedicated: int, spot: int | None
) -> None:
    """Each gives the size that the page says it gives."""
    targets = evaluate(formula, facts(**known))
    assert (targets.dedicated, targets.spot, targets.option) == (dedicated, spot, "taskcompletion")


def test_samples_that_are_due_and_not_there_end_the_evaluation() -> None:
    """The pending tasks of three minutes are four samples of six: fewer than 70 percent."""
    known = facts(PendingTasks=[8] * 10)
    assert evaluate("a=$PendingTasks.GetSamplePercent(180*TimeInterval_Second)", known).results.endswith(
        "a=66.6667"
    )
    with pytest.raises(Refused, match="AutoScalingFormulaEvaluationError"):
        evaluate("$TargetDedicatedNodes=avg($PendingTasks.GetSample(180*TimeInterval_Second,70))", known)


@pytest.mark.parametrize(
    ("formula", "code"),
    [
        ("", "AutoScalingFormulaSyntaxError"),
        ("$TargetDedicatedNodes", "AutoScalingFormulaSyntaxError"),
        ("$TargetDedicatedNodes = ", "AutoScalingFormulaSyntaxError"),
        ("$TargetDedicatedNodes = 1 2", "AutoScalingFormulaSyntaxError"),
        ("$TargetDedicatedNodes = (1", "AutoScalingFormulaSyntaxError"),
        ("$TargetDedicatedNodes = other", "AutoScalingFormulaSyntaxError"),
        ("$TargetDedicatedNodes = 1 ? 2", "AutoScalingFormulaSyntaxError"),
        ("$TargetDedicatedNodes = later; later = 1", "AutoScalingFormulaSyntaxError"),
        ("$TargetDedicatedNodes = nothing(1)", "AutoScalingFormulaSyntaxError"),
        ("$TargetDedicatedNodes = $PendingTasks.GetSample", "AutoScalingFormulaSyntaxError"),
        ("$TargetDedicatedNodes = $PendingTasks.hour()", "AutoScalingFormulaSyntaxError"),
        ("$TargetDedicatedNodes = 1 @ 2", "AutoScalingFormulaSyntaxError"),
        ("$CurrentDedicatedNodes = 1", "AutoScalingFormulaSyntaxError"),
        ("$NodeDeallocationOption = never", "AutoScalingFormulaSyntaxError"),
        ("$TargetDedicatedNodes = " + "(" * 8000, "AutoScalingFormulaSyntaxError"),
        ("$TargetDedicatedNodes = " + "-" * 8000 + "1", "AutoScalingFormulaSyntaxError"),
        ("a=1;" * 101, "AutoScalingFormulaSyntaxError"),
        ("x" * (MAX_LENGTH + 1), "AutoScaleFormulaTooLong"),
        ("$TargetDedicatedNodes = 1 / 0", "AutoScalingFormulaEvaluationError"),
        ("$TargetDedicatedNodes = 1e200 * 1e200", "AutoScalingFormulaEvaluationError"),
        ("$TargetDedicatedNodes = ln(-1)", "AutoScalingFormulaEvaluationError"),
        ("$TargetDedicatedNodes = time()", "AutoScalingFormulaEvaluationError"),
        ("$TargetDedicatedNodes = [1,2]", "AutoScalingFormulaEvaluationError"),
        ("$TargetDedicatedNodes = $PendingTasks", "AutoScalingFormulaEvaluationError"),
        ("$TargetDedicatedNodes = avg($PendingTasks.GetSample(1))", "AutoScalingFormulaEvaluationError"),
        ("$TargetDedicatedNodes = (time() + 1).hour", "AutoScalingFormulaEvaluationError"),
        ("a = time('then')", "AutoScalingFormulaEvaluationError"),
        ("a = (time() + TimeInterval_Year * 1e9).year", "AutoScalingFormulaEvaluationError"),
        ("$TargetDedicatedNodes = $CPUPercent.GetSample(1)", "NotImplemented"),
    ],
)
def test_formulas_that_are_refused(formula: str, code: str) -> None:
    """What is no formula, what has no result now, and what the local nodes do not measure."""
    with pytest.raises(Refused) as refused:
        evaluate(formula, facts())
    assert refused.value.code == code


def test_vectors_are_bounded() -> None:
    """However often a formula asks for all samples."""
    known = facts(PendingTasks=[1] * 2_000)
    with pytest.raises(Refused, match="numbers together"):
        evaluate("a=$PendingTasks.GetSample(2000);b=" + "+".join(["a"] * 1_000), known)


@given(st.text("$TargetDedicatedNodes=1+-*/()[]<>!?:;.,&|'\"avg maxTimeInterval_Day GetSample", max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_text_is_a_formula_or_refused(text: str) -> None:
    """With no other error."""
    with contextlib.suppress(Refused):
        evaluate(text, facts(PendingTasks=[1, 2]))


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


def scaled(formula: str, interval: str = "PT5M") -> dict[str, Any]:
    """A pool with a formula, as a request makes it."""
    fields = {key: value for key, value in POOL.items() if key not in ("targetDedicatedNodes", "startTask")}
    autoscale = {
        "enableAutoScale": True,
        "autoScaleFormula": formula,
        "autoScaleEvaluationInterval": interval,
    }
    return fields | autoscale


def shown(plane: Plane) -> dict[str, Any]:
    document = plane.ask("GET", "/pools/p").document
    assert document is not None
    return document


def test_a_formula_is_evaluated_at_its_interval(tmp_path: Path) -> None:
    """What it came to, or why to nothing, is told."""
    plane = Plane(tmp_path)
    plane.ask("POST", "/pools", scaled("$TargetDedicatedNodes = 6 / (3 - $CurrentDedicatedNodes)"))
    assert shown(plane)["targetDedicatedNodes"] == 2
    plane.advance(299)
    assert shown(plane)["targetDedicatedNodes"] == 2
    plane.advance(2)
    assert shown(plane)["targetDedicatedNodes"] == 6
    plane.advance(300)
    assert shown(plane)["targetDedicatedNodes"] == 0, "6 / (3 - 6)"
    plane.ask("POST", "/pools/p/enableautoscale", {"autoScaleFormula": "$TargetDedicatedNodes=1/0"})
    error = shown(plane)["autoScaleRun"]["error"]
    assert (error["code"], error["message"]) == ("AutoScalingFormulaEvaluationError", "it divides by zero")
    plane.ask("POST", "/pools/p/disableautoscale")
    assert "autoScaleRun" not in shown(plane)
    plane.advance(600)
    assert shown(plane)["targetDedicatedNodes"] == 0


def test_a_formula_is_left_out_while_the_pool_resizes() -> None:
    """Nor can one be set then."""
    state = BatchState("account")
    growing = AutoscaleFormula("$TargetDedicatedNodes = $CurrentDedicatedNodes + 1", 300.0)
    spec = BatchPoolSpec("pool", "standard_d2s_v3", 1, "spread", None, 900.0, {}, growing)
    pool = state.pools.create_pool(spec, 0, 0, 1000.0)
    assert (pool.wanted, pool.allocation) == (1, "resizing")
    state.tick(1300.0)
    assert pool.wanted == 1
    with pytest.raises(Refused, match="PoolBeingResized"):
        state.pools.enable_formula(pool, "$TargetDedicatedNodes=4", None, 1310.0)
    for node in list(pool.nodes.values()):
        state.pools.node_allocated(node, 1400.0)
    state.tick(1600.0)
    assert pool.wanted == 2


def test_a_formula_that_is_set_anew_is_evaluated_at_once(tmp_path: Path) -> None:
    """At most every thirty seconds, and with the samples that are seen, which lag a minute behind."""
    plane = Plane(tmp_path)
    plane.ask("POST", "/pools", scaled("$TargetDedicatedNodes=1"))
    plane.ask("POST", "/jobs", {"id": "j", "poolInfo": {"poolId": "p"}})
    for number in range(4):
        plane.ask("POST", "/jobs/j/tasks", {"id": f"t{number}", "commandLine": "true"})
    plane.advance(31)
    wish = '$TargetDedicatedNodes=time() < time("2023-11-14T22:20:00Z") ? 3 : $PendingTasks.GetSample(1)'
    plane.ask("POST", "/pools/p/enableautoscale", {"autoScaleFormula": wish})
    assert shown(plane)["targetDedicatedNodes"] == 3
    with pytest.raises(Refused, match="TooManyEnableAutoScaleRequests"):
        plane.ask("POST", "/pools/p/enableautoscale", {"autoScaleFormula": "$TargetDedicatedNodes=2"})
    plane.advance(30)
    plane.ask("POST", "/pools/p/enableautoscale", {"autoScaleFormula": "$TargetDedicatedNodes=2"})
    assert shown(plane)["targetDedicatedNodes"] == 2


def test_samples_follow_the_tasks_of_the_pool_and_come_late(tmp_path: Path) -> None:
    """A pool grows for the tasks that wait in any of its jobs, and shrinks when they are gone."""
    plane = Plane(tmp_path)
    formula = "$TargetDedicatedNodes=max(0,$PendingTasks.GetSample(1));$NodeDeallocationOption=taskcompletion"
    plane.ask("POST", "/pools", scaled(formula))
    assert shown(plane)["targetDedicatedNodes"] == 0
    for job in ("a", "b"):
        plane.ask("POST", "/jobs", {"id": job, "poolInfo": {"poolId": "p"}})
        plane.ask("POST", f"/jobs/{job}/tasks", {"id": "t", "commandLine": "true"})

    def seen() -> str:
        document = plane.ask("POST", "/pools/p/evaluateautoscale", {"autoScaleFormula": formula}).document
        assert document is not None
        return str(document["results"])

    plane.advance(89)
    assert "$TargetDedicatedNodes=0" in seen()
    plane.advance(2)
    assert "$TargetDedicatedNodes=2" in seen()
    plane.advance(210)
    assert shown(plane)["targetDedicatedNodes"] == 2
    for job in ("a", "b"):
        plane.ask("DELETE", f"/jobs/{job}")
    plane.end_runs()
    plane.advance(600)
    assert (shown(plane)["targetDedicatedNodes"], shown(plane)["currentDedicatedNodes"]) == (0, 0)


def test_the_local_cloud_can_evaluate_every_second(tmp_path: Path) -> None:
    """For trying a formula that would take minutes."""
    plane = Plane(tmp_path, AutoscaleTiming(sample_period=0.5, sample_delay=1.0, min_interval=1.0))
    plane.ask("POST", "/pools", scaled("$TargetDedicatedNodes=$CurrentDedicatedNodes+1", "PT1S"))
    plane.advance(3.5)
    assert shown(plane)["targetDedicatedNodes"] == 4


def test_a_clock_that_jumps_leaves_samples_out(tmp_path: Path) -> None:
    """As Azure does when something is in its way; none is made up."""
    plane = Plane(tmp_path)
    plane.ask("POST", "/pools", scaled("$TargetDedicatedNodes=0"))
    plane.advance(300)
    plane.now += 3_000
    plane.state.tick(plane.now)
    formula = {"autoScaleFormula": "a=$PendingTasks.GetSamplePercent(TimeInterval_Minute*50)"}
    document = plane.ask("POST", "/pools/p/evaluateautoscale", formula).document
    assert document is not None
    assert document["results"].endswith("a=0")
