"""The live page of pools: what runs where, what waits and why, what failed."""

from __future__ import annotations

from batchflow.dashboard.app import Dashboard

__all__ = ["Dashboard"]
