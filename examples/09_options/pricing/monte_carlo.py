"""Prices of European call options by simulation."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Option:
    """The right to buy at the strike."""

    strike: float
    volatility: float
    years: float = 1.0


def price(option: Option, spot: float, *, rate: float = 0.02, paths: int = 50_000) -> dict[str, np.float64]:
    """Return the price of an option, and its standard error, from so many paths of the underlying."""
    normal = np.random.default_rng(0).standard_normal(paths)
    drift = (rate - option.volatility**2 / 2) * option.years
    ends = spot * np.exp(drift + option.volatility * math.sqrt(option.years) * normal)
    paid = np.maximum(ends - option.strike, 0.0) * math.exp(-rate * option.years)
    return {"price": paid.mean(), "error": paid.std() / math.sqrt(paths)}
