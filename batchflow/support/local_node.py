"""How a command knows that its node belongs to the local cloud, and so is the user's own machine."""

from __future__ import annotations

from typing import Final

LOCAL_NODE: Final = "BATCHFLOW_LOCAL_NODE"
"""A variable that start tasks of the local cloud find set."""
