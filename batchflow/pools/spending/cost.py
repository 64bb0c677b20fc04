"""What a pool has cost: what its agents have used, at the prices of the price file."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from batchflow.costs.cost import HOUR, Cost
from batchflow.pools.reports.usage import total, unfinished_tasks
from batchflow.pools.spending.budgets import configured_prices, spent_of_pool
from batchflow.pools.spending.prices import UNKNOWN, NodePrice
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from batchflow.pools.spending.pool import SpendingPool
    from batchflow.protocol.documents import Usage


async def measure_cost(runtime: SpendingPool) -> Cost:
    """Return what the pool has cost. Raises `ConfigurationError` for a price file that is none,
    `PoolNotFound`, `StorageError`. Safe to cancel."""
    prices = configured_prices(runtime.settings)
    used: list[Usage] = []
    remaining, vm_size = 0, None

    async def count() -> None:
        nonlocal remaining
        remaining = await unfinished_tasks(runtime.ctl)

    async def find_size() -> None:
        nonlocal vm_size
        if prices is not None and not runtime.connections.restricted:
            vm_size = (await runtime.connections.compute.pool(runtime.pool_id)).vm_size

    async with task_group() as group:
        group.start_soon(count)
        group.start_soon(find_size)
        used += await runtime.usage.read()
    price = UNKNOWN if prices is None or vm_size is None else prices.of(vm_size)
    cost = cost_of(total(used), price, None if prices is None else prices.currency, remaining)
    terms = runtime.manifest.budget
    return cost if terms is None else replace(cost, budget=terms.budget, spent=await spent_of_pool(runtime))


def cost_of(used: tuple[Usage, Usage], price: NodePrice, currency: str | None, remaining: int = 0) -> Cost:
    """Return the cost of what was used, on dedicated nodes and on spot nodes. Pure."""
    dedicated, spot = used
    parts = [
        None if rate is None else usage.seconds / HOUR * rate
        for usage, rate in ((dedicated, price.dedicated), (spot, price.spot))
        if usage.seconds
    ]
    is_known = currency is not None and price != UNKNOWN and None not in parts
    return Cost(
        dedicated_seconds=dedicated.seconds,
        spot_seconds=spot.seconds,
        busy_seconds=dedicated.busy + spot.busy,
        tasks=dedicated.tasks + spot.tasks,
        remaining=remaining,
        amount=sum(part for part in parts if part is not None) if is_known else None,
        currency=currency if is_known else None,
        dedicated_price=price.dedicated,
        spot_price=price.spot,
    )
