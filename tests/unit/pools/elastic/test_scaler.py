"""One client's part in the size of an elastic pool, on doubles: Batch says what it was asked for."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from batchflow.client import Client
from batchflow.errors import ConfigurationError, PoolError, StartTaskFailed
from batchflow.model import PoolSpec
from batchflow.pool import Pool
from batchflow.pools.reports.heartbeats import Sample
from batchflow.pools.scaling.formula import dates_of, is_ours
from batchflow.pools.scaling.wishes import Wish
from batchflow.ports.compute import NodeInfo, ReportedFault
from batchflow.protocol import layout
from batchflow.protocol.documents import AgentState, DrainOrder, Heartbeat, Running
from tests.support.services import Doubles
from tests.support.waiting import eventually

NOBODY = Sample([], 0)
SOMEBODY_ELSES = "$TargetDedicatedNodes = 3"


@pytest.fixture
async def pool(client: Client) -> Pool:
    """An elastic pool, which a client made."""
    return await client.create_pool(PoolSpec("grows", max_nodes=4, files=({"x.py": b""},)))


def agents(doubles: Doubles, pool: Pool) -> int:
    return len(doubles.compute.jobs.get(pool.runtime.manifest.agents_job, []))


def target(doubles: Doubles) -> int:
    return doubles.compute.known["grows"].wanted


async def wish_of_another(pool: Pool, agents: int, until: float = 60.0) -> None:
    """Let a client that may not act on Batch want agents."""
    now = time.time()
    wish = Wish("another", agents, now, now + until, agents)
    await pool.runtime.ctl.put(layout.wish_blob("another"), wish.encode())


async def test_created_pool_has_our_formula_and_no_nodes(pool: Pool, doubles: Doubles) -> None:
    """A session that has nothing to do asks for none."""
    assert is_ours(doubles.compute.known["grows"].formula)
    async with pool.session("c"):
        assert (agents(doubles, pool), target(doubles)) == (0, 0)


async def test_first_task_brings_an_agent_and_its_node(pool: Pool, doubles: Doubles) -> None:
    """The formula holds the wish with its end, and counts agents for longer."""
    async with pool.session("c") as session:
        task = await session.submit("x.py")
        await eventually(lambda: agents(doubles, pool) and target(doubles))
        dates = dates_of(doubles.compute.formulas[-1])
        assert time.time() < dates.until < dates.counted_until
        await task.cancel()
    assert len(doubles.storage.names(layout.WISHES)) == 1


async def test_wish_of_another_client_is_carried_out_within_the_limits(pool: Pool, doubles: Doubles) -> None:
    """By a client that wants nothing itself; a wish that has ended brings nothing."""
    await wish_of_another(pool, 3, until=0.0)
    await pool.scaler.serve()
    assert target(doubles) == 0
    await wish_of_another(pool, 30)
    await pool.scaler.serve()
    assert (agents(doubles, pool), target(doubles)) == (4, 4)


async def test_formula_is_not_set_again_without_need(pool: Pool, doubles: Doubles) -> None:
    """Its dates last for a while."""
    await pool.scaler.want(2)
    await pool.scaler.serve()
    assert len(doubles.compute.formulas) == 1


async def test_refused_formula_is_set_at_the_next_look(pool: Pool, doubles: Doubles) -> None:
    """Batch takes none while the pool resizes; the agents are asked for all the same."""
    doubles.compute.refuses_formulas = True
    await pool.scaler.want(2)
    assert (agents(doubles, pool), target(doubles)) == (2, 0)
    doubles.compute.refuses_formulas = False
    await pool.scaler.serve()
    assert (agents(doubles, pool), target(doubles)) == (2, 2)


def beating(*states: tuple[AgentState, int]) -> Sample:
    """The heartbeats of agents in these states, with so many running tasks each."""
    task = Running("a:1", "1", "c", "default", "x.py", 0.0)
    beats = [
        Heartbeat(f"a{i}", f"n{i}", "h", "b", 1, state, 1, 0.0, 0.0, 5.0, running=(task,) * tasks)
        for i, (state, tasks) in enumerate(states)
    ]
    return Sample(beats, len(beats))


async def drained(pool: Pool) -> tuple[str, ...]:
    return DrainOrder.decode((await pool.runtime.ctl.get(layout.DRAIN_BLOB)).data).agents


async def test_agents_that_are_too_many_drain_the_least_busy_first(pool: Pool, doubles: Doubles) -> None:
    """Here the pool's maximum was lowered. No other client needs them either."""
    await pool.resize(max_nodes=2)
    await pool.scaler.step(beating(("ready", 1), ("ready", 0), ("ready", 1)))
    assert await drained(pool) == ("a1",)


async def test_agents_that_another_client_needs_do_not_drain(pool: Pool, doubles: Doubles) -> None:
    """Its wish may be of a version that lets none drain."""
    await pool.resize(max_nodes=1)
    await wish_of_another(pool, 3)
    await pool.scaler.step(beating(("ready", 0), ("ready", 0), ("ready", 0)))
    assert not doubles.storage.names(layout.DRAIN_BLOB)


async def test_draining_agents_are_replaced_where_more_are_wanted(pool: Pool, doubles: Doubles) -> None:
    """They hold their nodes, and take no tasks."""
    await wish_of_another(pool, 2)
    await pool.scaler.step(beating(("draining", 1), ("ready", 0)))
    assert (agents(doubles, pool), target(doubles)) == (3, 3)


async def test_resize_that_waits_for_leaving_nodes_is_stopped_for_growth(
    pool: Pool, doubles: Doubles
) -> None:
    """Batch takes no formula meanwhile. One that grows goes on."""
    known = doubles.compute.known
    await pool.scaler.want(1)
    doubles.compute.refuses_formulas = True
    known["grows"] = replace(known["grows"], allocation="resizing", nodes=0)
    await pool.scaler.want(3)
    assert (known["grows"].allocation, target(doubles)) == ("resizing", 1)
    known["grows"] = replace(known["grows"], nodes=2)
    await pool.scaler.want(3)
    assert (known["grows"].allocation, target(doubles)) == ("steady", 3)


async def test_pool_without_agents_is_let_go(pool: Pool, doubles: Doubles) -> None:
    """Not while another client wants some."""
    await pool.scaler.want(2)
    assert await pool.scaler.let_go()
    assert target(doubles) == 2
    for name in doubles.storage.names(layout.WISHES):
        await pool.runtime.ctl.delete(name)
    assert await pool.scaler.let_go()
    assert target(doubles) == 0


async def test_formula_of_others_is_left_alone_and_said(pool: Pool, doubles: Doubles) -> None:
    """No resize takes it away either."""
    known = doubles.compute.known
    known["grows"] = replace(known["grows"], formula=SOMEBODY_ELSES, wanted=3, nodes=3)
    standing = await pool.scaler.want(2)
    assert "a formula that batchflow did not write" in standing.notes[0]
    assert (doubles.compute.formulas, agents(doubles, pool)) == ([], 3)  # one for each of its nodes
    assert "did not write" in str(await pool.explain())
    with pytest.raises(PoolError, match="take it off in the Azure portal"):
        await pool.resize(1)
    with pytest.raises(PoolError, match="take it off in the Azure portal"):
        await pool.resize(max_nodes=9)
    assert known["grows"].formula == SOMEBODY_ELSES


async def test_size_that_was_set_by_hand_stays_until_told_otherwise(pool: Pool, doubles: Doubles) -> None:
    """In the portal the formula goes with it."""
    known = doubles.compute.known
    known["grows"] = replace(known["grows"], autoscale=False, formula=None, wanted=1, nodes=1)
    standing = await pool.scaler.want(4)
    assert "the pool was resized by hand: it keeps its 1 nodes" in standing.notes[0]
    assert (doubles.compute.formulas, agents(doubles, pool)) == ([], 1)
    await pool.resize(max_nodes=4)
    await pool.scaler.want(4)
    assert target(doubles) == 4


async def test_broken_nodes_go_while_others_work(pool: Pool, doubles: Doubles) -> None:
    """Where all are broken no more are asked for, and they stay for the explanation."""
    await pool.scaler.want(2)
    fault = ReportedFault("x", "exit 3")
    broken = NodeInfo("broken", "starttaskfailed", dedicated=True, start_task_error=fault)
    doubles.compute.node_infos = [broken]
    standing = await pool.scaler.want(2)
    assert isinstance(standing.problem, StartTaskFailed)
    assert doubles.compute.node_infos == [broken]
    formulas = len(doubles.compute.formulas)
    await pool.scaler.serve()
    assert len(doubles.compute.formulas) == formulas
    works = NodeInfo("works", "running", dedicated=True)
    doubles.compute.node_infos = [broken, works]
    assert (await pool.scaler.want(2)).problem is None
    assert doubles.compute.node_infos == [works]


async def test_quota_is_told_and_kept_for_pools_to_come(client: Client, pool: Pool, doubles: Doubles) -> None:
    """The pool grows as far as it goes; where a later one may want more, its creation says so."""
    await pool.scaler.want(3)
    known, fault = doubles.compute.known, ReportedFault("AccountCoreQuotaReached", "no more cores")
    known["grows"] = replace(known["grows"], nodes=2, resize_errors=(fault,))
    (note,) = (await pool.scaler.want(3)).notes
    assert "quota allows 2 nodes, and the pool may grow to 4" in note
    assert "quota allows 2 nodes" in str(await pool.explain())
    later = await client.create_pool(PoolSpec("later", max_nodes=9))
    assert "quota allows 2 nodes, and the pool may grow to 9" in str(later.origin)
    small = await client.ensure_pool("small", spec=PoolSpec("small", max_nodes=2))
    assert "quota" not in str(small.origin)


async def test_pool_changes_between_the_two_kinds(pool: Pool, doubles: Doubles) -> None:
    """Another client's object sees it when it is used."""
    await pool.resize(2)
    info = doubles.compute.known["grows"]
    assert (info.formula, info.wanted, pool.runtime.manifest.elastic) == (None, 2, None)
    await pool.resize(min_nodes=1, max_nodes=3, spot=(0, 2))
    limits = pool.runtime.manifest.elastic
    assert str(limits) == "1 to 3 nodes and 0 to 2 spot nodes"
    assert is_ours(doubles.compute.known["grows"].formula)
    with pytest.raises(ConfigurationError, match="nodes is 1; allowed: None beside max_nodes"):
        await pool.resize(1, max_nodes=3)
    with pytest.raises(ConfigurationError, match="resize takes nodes, or max_nodes"):
        await pool.resize()


async def test_attaching_changes_nothing_of_a_pool(client: Client, pool: Pool, doubles: Doubles) -> None:
    """Its description may say something else: that is told."""
    before = doubles.compute.known["grows"]
    found = await client.ensure_pool("grows", spec=PoolSpec("grows", max_nodes=9))
    assert "its size is 0 to 4 nodes, not 0 to 9 nodes: pool.resize() changes it" in str(found.origin)
    found = await client.ensure_pool("grows", nodes=2)
    assert "its size is 0 to 4 nodes, not 2 nodes" in str(found.origin)
    assert doubles.compute.known["grows"] == before


async def test_waiting_for_nodes_asks_for_them(pool: Pool, doubles: Doubles) -> None:
    """Whatever work there is."""
    with pytest.raises(TimeoutError):
        await pool.wait_ready(2, timeout=0.3)
    assert (agents(doubles, pool), target(doubles)) == (2, 2)
    await pool.wait_ready()  # its least size is there
