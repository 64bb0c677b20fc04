"""The budgets of a pool and its sessions, as clients make them and see them spent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchflow.errors import ConfigurationError
from batchflow.pools.spending.prices import NodePrice, Prices, read_prices
from batchflow.protocol.budgets import POOL_LEDGER, BudgetTerms, spent_text
from batchflow.support.event_log import event_logger

if TYPE_CHECKING:
    from batchflow.model import Budget, PoolSpec
    from batchflow.pools.spending.pool import SpendingPool
    from batchflow.settings import PoolSettings, Settings

logger = event_logger(__name__)


def configured_prices(settings: Settings) -> Prices | None:
    """Read the price file of the settings; None: there is none. Raises `ConfigurationError`."""
    path = settings.pool.prices
    return None if path is None else read_prices(path, settings.batch.url)


def pool_terms(spec: PoolSpec, defaults: PoolSettings) -> BudgetTerms | None:
    """Make the terms of a new pool's budget. Raises `ConfigurationError` when its price is not known."""
    if spec.budget is None:
        return None
    prices = None
    if spec.budget.amount is not None and defaults.prices is not None:
        prices = read_prices(defaults.prices)
    return _terms(spec.budget, POOL_LEDGER, prices, spec.vm_size or defaults.vm_size)


async def session_terms(runtime: SpendingPool, budget: Budget, ledger: str) -> BudgetTerms:
    """Make the terms of a session's budget.

    Raises `ConfigurationError` when its price is not known, `PoolError`.
    """
    if budget.amount is None:
        return _terms(budget, ledger, None, "")
    prices = configured_prices(runtime.settings)
    if prices is None or runtime.connections.restricted:
        return _terms(budget, ledger, prices, "of the pool")
    info = await runtime.connections.compute.pool(runtime.pool_id)
    return _terms(budget, ledger, prices, info.vm_size)


def _terms(budget: Budget, ledger: str, prices: Prices | None, vm_size: str) -> BudgetTerms:
    price = NodePrice()
    if budget.amount is not None:
        if prices is None:
            raise ConfigurationError(
                f"budget.amount is {budget.amount:g}, but no price is known: name a price file with the "
                "setting pool.prices (batchflow prices writes it), or give budget.node_hours"
            )
        if prices.currency != budget.currency:
            raise ConfigurationError(
                f"budget.currency is {budget.currency!r}, but the price file has {prices.currency}: "
                f"batchflow prices --currency {budget.currency}"
            )
        price = prices.of(vm_size)
        if not price.dedicated:
            raise ConfigurationError(
                f"budget.amount is {budget.amount:g}, but the price file has no price of a dedicated node "
                f"{vm_size}: batchflow prices --size {vm_size}, or give budget.node_hours"
            )
    return BudgetTerms.of(budget, ledger, price.dedicated, price.spot)


async def spent_of_pool(runtime: SpendingPool) -> float | None:
    """Return what the agents have reported of the pool's budget; None: it has none.

    Raises `StorageError`.
    """
    terms = runtime.manifest.budget
    if terms is None:
        return None
    sizes = [info.size async for info in runtime.out.list(terms.ledger) if info.name == terms.ledger]
    return terms.spent(max(sizes, default=0))


async def spent_reason(runtime: SpendingPool) -> str | None:
    """Return why no agent of the pool begins a task: its budget is spent; None: it is not.

    Raises `StorageError`.
    """
    terms, spent = runtime.manifest.budget, await spent_of_pool(runtime)
    if terms is None or spent is None or spent < terms.limit * (1 - 1e-9):
        return None
    return spent_text(terms.budget, "the pool's")


async def shrink_spent(runtime: SpendingPool) -> None:
    """Ask for no nodes in a pool of fixed size whose budget is spent, where this client may.

    Raises `PoolError`. A pool with a formula shrinks by itself, because its agents have left.
    """
    if runtime.connections.restricted:
        return
    compute = runtime.connections.compute
    info = await compute.pool(runtime.pool_id)
    if not info.autoscale and info.state == "active" and info.target:
        await compute.resize_pool(runtime.pool_id, 0, 0)
        logger.info("spent_pool_shrinks", extra={"pool": runtime.pool_id, "nodes": info.wanted})
