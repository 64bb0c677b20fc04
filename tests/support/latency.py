"""How late each answer of the tests' local clouds leaves: `BATCHFLOW_TEST_LATENCY`, in seconds."""

from __future__ import annotations

import os

LATENCY = float(os.environ.get("BATCHFLOW_TEST_LATENCY", "0"))
