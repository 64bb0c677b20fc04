"""Settings of what is told to others about tasks: traces and metrics, and Log Analytics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """Traces and metrics, where the program has set up OpenTelemetry. Without that, nothing is traced."""

    sample: Annotated[float, "%"] = 100.0
    """Which part of the tasks is traced. It is applied before the SDK's own sampler, which costs as much as a
    small task."""


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """Log Analytics: where the outcomes of tasks, the events of nodes and the log lines go besides.

    Needs the extra `monitor`. `batchflow monitor setup` makes what it needs in Azure.
    """

    endpoint: str | None = None
    """`https://<name>.<region>.ingest.monitor.azure.com`, of the data collection endpoint or rule. None:
    nothing is sent."""
    rule: str | None = None
    """The immutable id of the data collection rule: `dcr-` and 32 digits."""
    streams: str = "Custom-BatchflowTasks Custom-BatchflowNodes Custom-BatchflowLogs"
    """The streams of the rule for outcomes of tasks, events of nodes, and log lines, with blanks between."""
    ca_file: str | None = None
    """Certificates (PEM) to trust besides the system's. None: no others."""
