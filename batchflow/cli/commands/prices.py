"""`batchflow prices`: write the price file from Azure's public price list."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from batchflow.cli import terminal
from batchflow.cli.command import Command, Invocation, asynchronous
from batchflow.cli.exits import CommandError, Exit
from batchflow.errors import ConfigurationError

if TYPE_CHECKING:
    from batchflow.config.project_file import Configuration

DEFAULT_FILE: Final = "prices.toml"


@click.command(cls=Command)
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--region", metavar="NAME", help="As Azure names it. [default: the Batch account's]")
@click.option("--currency", metavar="CODE", default="USD", show_default=True, help="Its three letters.")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="SIZE",
    help="A node's size; repeat. [default: the configured ones]",
)
@click.option("--url", metavar="URL", help="Where the list is read. [default: prices.azure.com]")
@asynchronous
async def prices(
    invocation: Invocation,
    file: Path | None,
    region: str | None,
    currency: str,
    sizes: tuple[str, ...],
    url: str | None,
) -> int:
    """Write the price FILE from Azure's public list of retail prices.

    Without FILE: the one that the setting pool.prices names, else prices.toml. The file may also be written
    by hand. Exit code 1 when the list lacks the price of a size; it then stays unknown.
    """
    from batchflow.pools.spending.prices import parse_prices, price_file, region_of
    from batchflow.pools.spending.retail import RETAIL_PRICES, fetch_prices

    configuration = invocation.configuration()
    settings = configuration.settings
    region = region or region_of(settings.batch.url)
    if region is None:
        raise ConfigurationError("prices: the configuration names no account of a region: say --region NAME")
    source = url or RETAIL_PRICES
    wanted = sizes or _configured_sizes(configuration)
    target = file or Path(settings.pool.prices or DEFAULT_FILE).expanduser()
    try:
        found = await fetch_prices(region.lower(), wanted, currency=currency.upper(), url=source)
    except ValueError as error:
        raise ConfigurationError(f"prices: {error}") from error
    text = price_file(found, source=source, fetched=datetime.now(UTC).date().isoformat())
    parse_prices(text, str(target))
    if not found.sizes:
        raise CommandError(
            f"the list has no prices of {', '.join(wanted)} in {region} in {currency.upper()}; "
            "nothing was written",
            Exit.FAILED,
        )
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{target} cannot be written: {error}", Exit.OUTPUT) from error
    missing = [size for size in wanted if size.lower() not in found.sizes]
    for size in missing:
        terminal.note(f"the list has no price of {size} in {region}: it stays unknown")
    if settings.pool.prices is None:
        terminal.note(f'to use it, write prices = "{target}" below [pool] in the configuration')
    invocation.report(
        f"{target}: prices of {', '.join(found.sizes)} in {region}, {found.currency}",
        file=str(target),
        sizes=sorted(found.sizes),
        missing=missing,
    )
    return Exit.FAILED if missing else Exit.OK


def _configured_sizes(configuration: Configuration) -> tuple[str, ...]:
    """Return the sizes of the pools that the file describes, and that of new pools."""
    described = (spec.vm_size for spec in configuration.pools.values())
    names = (configuration.settings.pool.vm_size, *(size for size in described if size is not None))
    return tuple(dict.fromkeys(name.lower() for name in names))
