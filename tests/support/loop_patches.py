"""A plugin for pytest: changes asyncio as packages do that an environment may have (`PATCH` says which)."""

from __future__ import annotations

import asyncio
import os

import sniffio  # noqa: F401
import trio  # noqa: F401

match os.environ["PATCH"]:
    case "nested":
        import nest_asyncio2

        nest_asyncio2.apply()
    case "uvloop":
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
