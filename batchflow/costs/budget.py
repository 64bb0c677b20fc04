"""A limit of what a pool or a session may cost, as users write it. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final

from batchflow.errors import ConfigurationError

_WORDS: Final = re.compile(r"(-?\d+(?:\.\d+)?) *(h|node-hours|[A-Za-z]{3}|)")
_CURRENCY: Final = re.compile(r"[A-Z]{3}")


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a pool may cost over its life, or that the tasks of a session may cost.

    Either `node_hours`, or `amount` and `currency`. Raises `ConfigurationError` for anything else.
    """

    node_hours: float | None = None
    """Hours of one node; of a session: of the share of a node that its tasks have, by their slots."""
    amount: float | None = None
    """Money, by the prices of the price file (the setting `pool.prices`)."""
    currency: str | None = None
    """The currency of `amount` by its three letters, such as "EUR". It is that of the price file."""

    def __post_init__(self) -> None:
        if (self.node_hours is None) == (self.amount is None):
            given = "both" if self.amount is not None else "neither"
            raise ConfigurationError(f"budget: one of node_hours and amount is needed, not {given}")
        for key in ("node_hours", "amount"):
            if (value := getattr(self, key)) is not None and not _is_limit(value):
                raise ConfigurationError(f"budget.{key} is {value!r}; a number above 0 is needed")
        if self.amount is not None and not _is_currency(self.currency):
            raise ConfigurationError(
                f'budget.currency is {self.currency!r}; three capital letters are needed, such as "EUR"'
            )
        if self.node_hours is not None and self.currency is not None:
            raise ConfigurationError(
                f"budget.currency is {self.currency!r}; it goes with amount, not with node_hours"
            )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget as the command line has it: "12" (node-hours) or "20 EUR".

        Raises `ConfigurationError`.
        """
        if (found := _WORDS.fullmatch(text.strip())) is None:
            raise ConfigurationError(
                f'budget: {text!r} is neither node-hours, such as 12, nor money, "20 EUR"'
            )
        number, unit = float(found[1]), found[2]
        if unit in ("", "h", "node-hours"):
            return cls(node_hours=number)
        return cls(amount=number, currency=unit.upper())

    def __str__(self) -> str:
        return budget_text(self.limit, self.currency)

    @property
    def limit(self) -> float:
        """The number: node-hours without a currency, else an amount of it."""
        value = self.node_hours if self.amount is None else self.amount
        assert value is not None
        return float(value)


def budget_text(value: float, currency: str | None) -> str:
    """Return node-hours (`currency` is None) or an amount in words."""
    return f"{value:.4g} node-hours" if currency is None else f"{value:,.2f} {currency}"


def _is_limit(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_currency(value: Any) -> bool:
    return isinstance(value, str) and _CURRENCY.fullmatch(value) is not None
