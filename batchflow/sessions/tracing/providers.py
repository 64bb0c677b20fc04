"""Whether this program has set up OpenTelemetry, and what it has set up.

Nothing is imported here that the program has not imported: without OpenTelemetry a session pays nothing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from batchflow.support.version import own_version

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Tracer

_SCOPE: Final = "batchflow"


def active_tracer() -> Tracer | None:
    """Return a tracer of the program's provider; None where it has set up none."""
    idle = ("NoOpTracerProvider", "ProxyTracerProvider")
    provider = _provider_of("opentelemetry.trace", "get_tracer_provider", *idle)
    tracer: Tracer | None = None if provider is None else provider.get_tracer(_SCOPE, own_version())
    return tracer


def active_meter() -> tuple[object, Meter] | None:
    """Return the program's provider of meters and a meter of it; None where it has set up none."""
    idle = ("NoOpMeterProvider", "_ProxyMeterProvider")
    provider = _provider_of("opentelemetry.metrics", "get_meter_provider", *idle)
    return None if provider is None else (provider, provider.get_meter(_SCOPE, own_version()))


def _provider_of(module: str, getter: str, *idle: str) -> Any | None:
    """`idle`: the types of those that do nothing."""
    if (api := sys.modules.get(module)) is None:
        return None
    provider = getattr(api, getter)()
    return None if type(provider).__name__ in idle else provider
