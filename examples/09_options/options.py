"""Option prices with numpy: functions of a package beside the program, results in a frame, and a plot.

The package `pricing` goes along by itself. On Azure the nodes get numpy by `requirements`; on the local cloud
they are this machine, and have what is installed here.
"""

import argparse
import asyncio
from functools import partial
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from pricing.monte_carlo import Option, price

from batchflow import Client

SPOT = 100.0
STRIKES = range(80, 121, 5)
VOLATILITIES = (0.1, 0.2, 0.3)


async def prices(config: str | None) -> pd.DataFrame:
    """Return a row for each option: strike, volatility, price, error."""
    options = [Option(float(strike), volatility) for volatility in VOLATILITIES for strike in STRIKES]
    requirements = ["numpy"] if config else None
    async with Client.from_config(config) if config else Client.local(nodes=2) as client:
        pool = await client.ensure_pool("examples")
        async with pool.session(requirements=requirements) as session:
            results = await session.map(
                partial(price, spot=SPOT), [(option,) for option in options]
            ).collect()
    asked = pd.DataFrame([vars(options[result.index]) for result in results])
    return asked.join(pd.DataFrame(results.values)).sort_values(["volatility", "strike"])


def plot(frame: pd.DataFrame, file: Path) -> None:
    """Draw the price over the strike, a line for each volatility."""
    mpl.use("agg")
    table = frame.pivot(index="strike", columns="volatility", values="price")
    axes = table.plot(ylabel="price", title=f"European calls, spot {SPOT:.0f}, one year")
    axes.figure.savefig(file)


def main(config: str | None, file: Path) -> None:
    frame = asyncio.run(prices(config))
    print(frame.to_string(index=False, float_format="%.3f"))
    plot(frame, file)
    print(f"plot: {file}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", help="a configuration file; without one, two local nodes")
    parser.add_argument("--plot", type=Path, default=Path("options.png"), help="where the plot goes")
    given = parser.parse_args()
    main(given.config, given.plot)
