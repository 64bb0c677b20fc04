"""The price file: what is read, and what is refused with the file and the key."""

from pathlib import Path

import pytest

from batchflow.errors import ConfigurationError
from batchflow.pools.spending.prices import (
    NodePrice,
    Prices,
    parse_prices,
    price_file,
    read_prices,
    region_of,
)

GOOD = 'currency = "EUR"\nregion = "westeurope"\n[sizes.Standard_D2s_v3]\ndedicated = 0.1\nspot = 0.02\n'


def test_reads_the_prices_of_a_size_in_any_case() -> None:
    prices = parse_prices(GOOD, "prices.toml")
    assert prices.of("standard_d2s_v3") == prices.of("STANDARD_D2S_V3") == NodePrice(0.1, 0.02)
    assert prices.of("standard_d4s_v3") == NodePrice(None, None)


def test_reads_what_it_writes() -> None:
    prices = Prices("USD", "eastus", {"standard_d2s_v3": NodePrice(0.096, None), "a1": NodePrice(1.0, 0.5)})
    assert parse_prices(price_file(prices, source="here", fetched="2026-11-30"), "x") == prices


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("{", "not a price file"),
        ("[sizes]", "currency"),
        ('currency = "euro"', "currency"),
        ('currency = "EUR"\nregion = 3', "region"),
        ('currency = "EUR"\ndedicated = 3', "dedicated"),
        ('currency = "EUR"\nsizes = 3', "sizes"),
        ('currency = "EUR"\n[sizes]\nd2 = 3', "sizes.d2"),
        ('currency = "EUR"\n[sizes.d2]\ndedicated = -1', "sizes.d2.dedicated"),
        ('currency = "EUR"\n[sizes.d2]\ndedicated = true', "sizes.d2.dedicated"),
        ('currency = "EUR"\n[sizes.d2]\nspot = inf', "sizes.d2.spot"),
        ('currency = "EUR"\n[sizes.d2]\nspots = 1', "sizes.d2.spots"),
    ],
)
def test_refuses_a_file_that_is_none_and_names_file_and_key(text: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        read_prices(path)
    assert str(path) in str(refused.value)
    assert key in str(refused.value)


def test_refuses_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"pool\.prices.*none\.toml"):
        read_prices(tmp_path / "none.toml")


def test_refuses_prices_of_another_region_than_the_accounts(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(GOOD)
    read_prices(path, "https://me.westeurope.batch.azure.com")
    read_prices(path, "http://127.0.0.1:1234")
    with pytest.raises(ConfigurationError, match="region is 'westeurope', but the Batch account is in"):
        read_prices(path, "https://me.eastus.batch.azure.com")


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://me.westeurope.batch.azure.com", "westeurope"),
        ("http://127.0.0.1:80", None),
        (None, None),
        ("https://batch.example", None),
    ],
)
def test_finds_the_region_in_the_accounts_url(url: str | None, region: str | None) -> None:
    assert region_of(url) == region
