"""The public price list: a loopback server answers as its documentation says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from batchflow.errors import ServiceError
from batchflow.pools.spending.prices import NodePrice
from batchflow.pools.spending.retail import azure_spelling, fetch_prices, price_filter, price_of


def item(**fields: Any) -> dict[str, Any]:
    """An item as the documentation of the list shows it."""
    return {
        "currencyCode": "USD",
        "tierMinimumUnits": 0.0,
        "retailPrice": 0.12,
        "unitPrice": 0.12,
        "armRegionName": "westeurope",
        "location": "EU West",
        "effectiveStartDate": "2020-08-01T00:00:00Z",
        "meterId": "000a794b-bdb0-58be-a0cd-0c3a0f222923",
        "meterName": "D2s v3",
        "productId": "DZH318Z0BQPS",
        "skuId": "DZH318Z0BQPS/00TG",
        "productName": "Virtual Machines DSv3 Series",
        "skuName": "D2s v3",
        "serviceName": "Virtual Machines",
        "serviceId": "DZH313Z7MMC8",
        "serviceFamily": "Compute",
        "unitOfMeasure": "1 Hour",
        "type": "Consumption",
        "isPrimaryMeterRegion": True,
        "armSkuName": "Standard_D2s_v3",
        **fields,
    }


WINDOWS = item(productName="Virtual Machines DSv3 Series Windows", retailPrice=0.2)
LOW = item(skuName="D2s v3 Low Priority", retailPrice=0.024)
SPOT = item(skuName="D2s v3 Spot", retailPrice=0.018)


class PriceList:
    """The list on loopback: pages as they were told, and the queries that came."""

    def __init__(self) -> None:
        self.pages: list[Any] = []
        self.queries: list[dict[str, str]] = []
        self.url = ""
        self.status = 200

    async def answer(self, request: web.Request) -> web.Response:
        page = int(request.query.get("$skip", "0"))
        self.queries.append(dict(request.query))
        more = page + 1 < len(self.pages)
        return web.json_response(
            {
                "BillingCurrency": "USD",
                "CustomerEntityId": "Default",
                "CustomerEntityType": "Retail",
                "Items": self.pages[page],
                "NextPageLink": f"{self.url}?$skip={page + 1}" if more else None,
                "Count": len(self.pages[page] or ()),
            },
            status=self.status,
        )


@pytest.fixture
async def price_list() -> AsyncIterator[PriceList]:
    served = PriceList()
    app = web.Application()
    app.router.add_get("/api/retail/prices", served.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    served.url = f"http://{host}:{port}/api/retail/prices"
    yield served
    await runner.cleanup()


async def test_reads_all_pages_and_asks_by_the_documented_filter(price_list: PriceList) -> None:
    price_list.pages = [[WINDOWS, LOW], [item(), SPOT]]
    prices = await fetch_prices("westeurope", ["standard_d2s_v3"], url=price_list.url)
    assert prices.of("standard_d2s_v3") == NodePrice(0.12, 0.018)
    assert (prices.currency, prices.region) == ("USD", "westeurope")
    assert price_list.queries[0] == {
        "currencyCode": "'USD'",
        "$filter": price_filter("westeurope", "standard_d2s_v3"),
    }
    assert "armSkuName eq 'Standard_D2s_v3'" in price_list.queries[0]["$filter"]


async def test_leaves_out_a_size_that_the_list_does_not_have(price_list: PriceList) -> None:
    price_list.pages = [[]]
    prices = await fetch_prices("westeurope", ["standard_x"], url=price_list.url)
    assert prices.sizes == {}


@pytest.mark.parametrize(("pages", "status"), [([[item()]], 429), ([3], 200), ([[3]], 200)])
async def test_raises_service_error_for_an_answer_that_is_none(
    price_list: PriceList, pages: list[Any], status: int
) -> None:
    price_list.pages, price_list.status = pages, status
    with pytest.raises(ServiceError, match="price list"):
        await fetch_prices("westeurope", ["standard_d2s_v3"], url=price_list.url)


async def test_raises_service_error_where_the_list_cannot_be_reached() -> None:
    with pytest.raises(ServiceError, match="by hand"):
        await fetch_prices("westeurope", ["standard_d2s_v3"], url="http://127.0.0.1:9/api")


@pytest.mark.parametrize(("region", "size"), [("west' or '1", "standard_d2"), ("westeurope", "d2' or 'x")])
async def test_refuses_names_that_would_change_the_filter(region: str, size: str) -> None:
    with pytest.raises(ValueError, match="is not the name"):
        await fetch_prices(region, [size], url="http://127.0.0.1:9/api")


def test_takes_low_priority_where_there_is_no_spot_price() -> None:
    assert price_of([WINDOWS, LOW], "USD") == NodePrice(None, 0.024)


def test_takes_no_price_of_another_currency_unit_or_type() -> None:
    others = [
        item(currencyCode="EUR"),
        item(unitOfMeasure="1 Month"),
        item(type="Reservation"),
        item(retailPrice="1"),
    ]
    assert price_of(others, "USD") == NodePrice(None, None)


@pytest.mark.parametrize(
    ("size", "spelled"),
    [
        ("standard_d2s_v3", "Standard_D2s_v3"),
        ("standard_nc24ads_v4", "Standard_NC24ads_v4"),
        ("Standard_D2s_v3", "Standard_D2s_v3"),
        ("odd", "odd"),
    ],
)
def test_spells_sizes_as_azure_does(size: str, spelled: str) -> None:
    assert azure_spelling(size) == spelled
