"""The public list of Azure's retail prices: https://learn.microsoft.com/rest/api/cost-management/retail-prices.

It needs no login. A request has an OData filter, an answer has at most 1,000 items and the address of the
next page. Prices are those of pay-as-you-go for Linux; a contract of your own is not in them.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import aiohttp
import orjson

from batchflow.errors import ServiceError
from batchflow.pools.spending.prices import NodePrice, Prices

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

RETAIL_PRICES: Final = "https://prices.azure.com/api/retail/prices"
_TIMEOUT: Final = 60.0
_MOST_PAGES: Final = 50
_SIZE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_REGION: Final = re.compile(r"[a-z0-9]{1,40}")


def price_filter(region: str, size: str) -> str:
    """Return the OData filter for the virtual machines of one size.

    Batch takes a size in any case, the list by default as well. Newer versions of the list may not.
    """
    spellings = " or ".join(f"armSkuName eq '{each}'" for each in dict.fromkeys((size, azure_spelling(size))))
    return (
        f"serviceName eq 'Virtual Machines' and armRegionName eq '{region}' "
        f"and priceType eq 'Consumption' and ({spellings})"
    )


def azure_spelling(size: str) -> str:
    """Spell a size as Azure does: `Standard_D2s_v3` for `standard_d2s_v3`."""
    parts = size.split("_")
    if len(parts) < 2:
        return size
    series = re.sub(r"^[a-z]+(?=\d)", lambda found: found[0].upper(), parts[1])
    return "_".join((parts[0].capitalize(), series, *parts[2:]))


def price_of(items: Iterable[Mapping[str, Any]], currency: str) -> NodePrice:
    """Choose the prices of Linux nodes among the items of one size. Pure.

    A spot node's is that of "Spot", else of "Low Priority", as Batch called these nodes before.
    """
    found: dict[str, float] = {}
    for item in items:
        price = _number(item.get("retailPrice"))
        names = [item.get(key) for key in ("productName", "skuName")]
        product, sku = (name if isinstance(name, str) else "" for name in names)
        is_wanted = (
            item.get("currencyCode") == currency
            and item.get("type", "Consumption") == "Consumption"
            and item.get("unitOfMeasure", "1 Hour") == "1 Hour"
            and "Windows" not in product
            and "CloudServices" not in product.replace(" ", "")
        )
        if is_wanted and price is not None:
            kind = (
                "spot" if sku.endswith(" Spot") else "low" if sku.endswith(" Low Priority") else "dedicated"
            )
            found.setdefault(kind, price)
    return NodePrice(found.get("dedicated"), found.get("spot", found.get("low")))


def _number(value: Any) -> float | None:
    is_price = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    return float(value) if is_price else None


async def fetch_prices(
    region: str, sizes: Sequence[str], *, currency: str = "USD", url: str = RETAIL_PRICES
) -> Prices:
    """Read the prices of these sizes. A size that the list does not have has no price.

    Raises `ServiceError` when the list cannot be read, `ValueError` for a name that cannot be a region's or a
    size's. Safe to cancel.
    """
    if not _REGION.fullmatch(region):
        raise ValueError(f'{region!r} is not the name of a region, such as "westeurope"')
    for size in sizes:
        if not _SIZE.fullmatch(size):
            raise ValueError(f'{size!r} is not the name of a size, such as "standard_d2s_v3"')
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
    try:
        async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as http:
            found = {
                size.lower(): price_of(await _items(http, url, region, size, currency), currency)
                for size in sizes
            }
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ServiceError(
            f"the price list {url} cannot be read: {error or type(error).__name__}; write the file by hand, "
            "or try again where the internet is reached",
            retryable=True,
        ) from error
    return Prices(currency, region, {size: price for size, price in found.items() if price != NodePrice()})


async def _items(
    http: aiohttp.ClientSession, url: str, region: str, size: str, currency: str
) -> list[dict[str, Any]]:
    query = {"currencyCode": f"'{currency}'", "$filter": price_filter(region, size)}
    items: list[dict[str, Any]] = []
    address, parameters = url, query
    for _ in range(_MOST_PAGES):
        async with http.get(address, params=parameters) as answer:
            if answer.status != 200:
                raise ServiceError(
                    f"the price list {url} answers {answer.status} {answer.reason}",
                    retryable=answer.status == 429 or answer.status >= 500,
                )
            page, following = await _page(answer, url)
        items += page
        if not following:
            return items
        if urlsplit(following)[:2] != urlsplit(url)[:2]:
            raise ServiceError(f"the price list {url} goes on at another host, {following[:200]}")
        address, parameters = following, {}
    raise ServiceError(f"the price list {url} has more than {_MOST_PAGES} pages for {size} in {region}")


async def _page(answer: aiohttp.ClientResponse, url: str) -> tuple[list[dict[str, Any]], str | None]:
    """Return the items of an answer, and the address of the next page."""
    try:
        document = orjson.loads(await answer.read())
        items, following = document["Items"], document.get("NextPageLink")
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ValueError("its Items are no list of objects")
        if following is not None and not isinstance(following, str):
            raise ValueError("its NextPageLink is no text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServiceError(f"the price list {url} gave an answer that cannot be read: {error!r}") from error
    return items, following
