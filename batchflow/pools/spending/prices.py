"""The price file: what a node of each size costs for an hour, in one region and currency.

::

    currency = "USD"
    region = "westeurope"        # may be left out: then of any region

    [sizes.standard_d2s_v3]
    dedicated = 0.115            # for a node and an hour
    spot = 0.023

`batchflow prices` writes it, and a user may. A price that it does not have is not known.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from batchflow.errors import ConfigurationError
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from os import PathLike

_CURRENCY: Final = re.compile(r"[A-Z]{3}")
_KINDS: Final = ("dedicated", "spot")


@frozen
class NodePrice:
    """The price of a node for an hour; None: not known."""

    dedicated: float | None = None
    spot: float | None = None


UNKNOWN: Final = NodePrice()


@frozen
class Prices:
    """A price file, read."""

    currency: str
    region: str | None = None
    """The region as Azure names it; None: any."""
    sizes: Mapping[str, NodePrice] = field(default_factory=dict)
    """By the size of the nodes, in small letters."""

    def of(self, vm_size: str) -> NodePrice:
        """Return the price of a node of this size."""
        return self.sizes.get(vm_size.lower(), UNKNOWN)


def read_prices(path: str | PathLike[str], account_url: str | None = None) -> Prices:
    """Read a price file. Raises `ConfigurationError` naming the file and the key.

    `account_url`: of the Batch account. Where it has a region, prices of another region are refused.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"pool.prices: the price file {path} cannot be read: {error}") from error
    prices = parse_prices(text, str(path))
    region = region_of(account_url)
    if prices.region is not None and region is not None and prices.region != region:
        raise ConfigurationError(
            f"{path}: region is {prices.region!r}, but the Batch account is in {region!r}; "
            f"write the prices of that region: batchflow prices --region {region}"
        )
    return prices


def parse_prices(text: str, where: str) -> Prices:
    """Read the text of a price file. `where` names it in a `ConfigurationError`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{where}: not a price file: {error}") from error
    known = {"currency", "region", "sizes", "source", "fetched"}
    if unknown := sorted(document.keys() - known):
        raise ConfigurationError(
            f"{where}: unknown key {unknown[0]}; a price file has {', '.join(sorted(known))}"
        )
    currency, region = document.get("currency"), document.get("region")
    if not isinstance(currency, str) or not _CURRENCY.fullmatch(currency):
        raise ConfigurationError(
            f'{where}: currency must be three capital letters, such as "EUR", not {currency!r}'
        )
    if region is not None and (not isinstance(region, str) or not region):
        raise ConfigurationError(f'{where}: region must be a name such as "westeurope", not {region!r}')
    sizes = document.get("sizes", {})
    if not isinstance(sizes, dict):
        raise ConfigurationError(f"{where}: sizes must be tables, [sizes.standard_d2s_v3]")
    read = {name.lower(): _price(value, f"{where}: sizes.{name}") for name, value in sizes.items()}
    return Prices(currency, None if region is None else region.lower(), read)


def _price(value: Any, where: str) -> NodePrice:
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where} must be a table with the keys {' and '.join(_KINDS)}")
    if unknown := sorted(value.keys() - set(_KINDS)):
        raise ConfigurationError(f"{where}.{unknown[0]} is unknown; the keys are {' and '.join(_KINDS)}")
    for kind, price in value.items():
        is_number = isinstance(price, int | float) and not isinstance(price, bool)
        if not is_number or not 0 <= price < math.inf:
            raise ConfigurationError(f"{where}.{kind} must be a number of 0 or more, not {price!r}")
    return NodePrice(**{kind: float(price) for kind, price in value.items()})


def price_file(prices: Prices, *, source: str, fetched: str) -> str:
    """Return the text of a price file. `source`, `fetched`: where and when the prices were read."""
    lines = [
        "# What a node costs for an hour. Written by `batchflow prices`; you may change it.",
        f'currency = "{prices.currency}"',
        *([] if prices.region is None else [f'region = "{prices.region}"']),
        f'source = "{source}"',
        f'fetched = "{fetched}"',
    ]
    for size, price in sorted(prices.sizes.items()):
        lines += ["", f"[sizes.{size}]"]
        lines += [f"{kind} = {told!r}" for kind in _KINDS if (told := getattr(price, kind)) is not None]
    return "\n".join(lines) + "\n"


def region_of(account_url: str | None) -> str | None:
    """Return the region in the URL of a Batch account; None where it has none, as the local cloud's."""
    host = (urlsplit(account_url).hostname or "") if account_url else ""
    parts = host.split(".")
    return parts[1] if len(parts) > 3 and parts[2] == "batch" else None
