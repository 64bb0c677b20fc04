"""Requests for faults on demand: the bodies that a test sends, read into the core's faults."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from batchflow.local.batch.core.entities import FailureInfo
from batchflow.local.batch.core.errors import invalid_property
from batchflow.local.batch.core.faults import KINDS, MESSAGES, QUOTAS, AccountFaults, InjectedFault, Kind
from batchflow.local.batch.rest.values import Fields

if TYPE_CHECKING:
    pass


def parse_fault(body: object) -> InjectedFault:
    """Return the body of a request for a fault."""
    fields = Fields(body)
    fields.required_text("fault")
    kind = fields.choice("fault", KINDS, "")
    code = fields.text("code") or ("NodeUnusable" if kind == "unusable" else "AllocationFailed")
    message = fields.text("message") or MESSAGES.get(code, code)
    seconds, notice = _seconds(fields, "seconds"), _seconds(fields, "notice")
    fault = InjectedFault(
        kind=cast("Kind", kind),
        failure=FailureInfo("servererror", code, message),
        limit=fields.integer("nodes", 0, low=0),
        seconds=seconds,
        notice=notice or 0.0,
        node=fields.text("node"),
        exit_code=fields.integer("exitCode", 1, low=1, high=255),
        stderr=fields.text("stderr", "") or "",
    )
    fields.finish()
    return fault


def _seconds(fields: Fields, key: str) -> float | None:
    value = fields.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
        raise invalid_property(key, value, "A number that is not negative is expected.")
    return value


def parse_account_faults(body: object) -> AccountFaults:
    """Read the account's quotas, those that are reached, and the images past their end of life."""
    fields = Fields(body)
    reached, retired = _names(fields, "reached"), _names(fields, "retired")
    if not reached <= set(QUOTAS):
        raise invalid_property("reached", reached, f"A list of {', '.join(QUOTAS)} is expected.")
    quotas = dict.fromkeys(reached, 0)
    if (given := fields.fields("quotas")) is not None:
        quotas |= {name: given.integer(name, 0, low=0) for name in QUOTAS if given.get(name) is not None}
        given.finish()
    fields.finish()
    return AccountFaults(quotas, retired)


def _names(fields: Fields, key: str) -> frozenset[str]:
    names = fields.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise invalid_property(key, names, "A list of names is expected.")
    return frozenset(name.lower() for name in names)
