"""The page's requests and their answers, without any web framework.

Paths, below the place where the page is: `` and its files, `events` (server-sent events), `task`, `pools`,
`metrics`, and `act` where control is on. Every answer forbids scripts and styles from elsewhere or in line.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import orjson

from batchflow.dashboard import actions
from batchflow.dashboard.exchange import PageAnswer, PageRequest, json_answer, refused
from batchflow.dashboard.metrics import CONTENT_TYPE, exposition
from batchflow.dashboard.source import PoolSource
from batchflow.dashboard.watch import PoolWatch
from batchflow.errors import BatchflowError, ConfigurationError, PoolNotFound
from batchflow.support.event_log import event_logger

if TYPE_CHECKING:
    from batchflow.dashboard.source import Source

logger = event_logger(__name__)

_FILES: Final = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "draw.js": ("draw.js", "text/javascript; charset=utf-8"),
    "text.js": ("text.js", "text/javascript; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
_LOCAL_FRAMES: Final = "'self' http://localhost:* http://127.0.0.1:* vscode-webview:"
"""Who may embed a page that only shows: notebooks on this machine."""
_FIRST_LOOK: Final = 10.0
"""Seconds that a request for metrics waits for the first look."""


class _ClosingError(Exception):
    """The page is closed, so no pool is looked at any longer."""


@cache
def _file(name: str) -> bytes:
    return (files(__package__) / "static" / name).read_bytes()


class PagePools:
    """The pools that a page may show, each watched once it is asked for."""

    async def names(self) -> list[str]:
        """Return their ids."""
        raise NotImplementedError

    async def source(self, pool_id: str) -> Source:
        """Return a pool's source. Raises `PoolNotFound`."""
        raise NotImplementedError


class PageHandlers:
    """Answers the requests of one page."""

    def __init__(
        self, pools: PagePools, *, token: str | None, control: bool, only: str | None = None
    ) -> None:
        """`token`: the first step of every path; None: whoever serves the page decides who may see it.

        `only`: the only pool that is shown, whatever an address names; None: all.
        """
        self._pools = pools
        self._token = token
        self._control = control
        self._only = only
        self._watches: dict[str, PoolWatch] = {}
        self._opening = asyncio.Lock()
        self._questions = actions.Questions()
        self.closed: bool = False

    async def handle(self, request: PageRequest) -> PageAnswer:
        """Answer a request. Never raises for what the request says."""
        try:
            answer = await self._answer(request)
        except PoolNotFound as error:
            answer = refused(404, str(error))
        except ConfigurationError as error:
            answer = refused(400, str(error))
        except BatchflowError as error:
            answer = refused(502, str(error))
        except TimeoutError:
            answer = refused(503, f"the pool was not looked at within {_FIRST_LOOK:.0f} s: ask again")
        except _ClosingError:
            answer = refused(503, "the page's server is closing")
        return replace(answer, headers={**self._guards(), **answer.headers})

    async def aclose(self) -> None:
        """End all streams, and look at no pool any longer."""
        self.closed = True
        for watch in list(self._watches.values()):
            await watch.aclose()

    def _guards(self) -> dict[str, str]:
        frames = "'self'" if self._control else _LOCAL_FRAMES
        return {
            "content-security-policy": (
                "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                f"img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors {frames}"
            ),
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "cross-origin-resource-policy": "same-origin",
            "cache-control": "no-store",
        }

    async def _answer(self, request: PageRequest) -> PageAnswer:
        path = request.path.lstrip("/")
        if self._token is not None:
            given, slash, path = path.partition("/")
            if not secrets.compare_digest(given.encode(), self._token.encode()):
                return PageAnswer(
                    403,
                    {"content-type": "text/plain; charset=utf-8"},
                    b"The address lacks its token. Open the whole address that batchflow printed.\n",
                )
            if not slash:
                return PageAnswer(307, {"location": f"{given}/"})
        if self.closed:
            raise _ClosingError
        if request.method == "POST":
            return await self._act(request) if path == "act" else refused(404, "there is no such page")
        if request.method not in ("GET", "HEAD"):
            return refused(405, "only GET and POST are answered")
        if path in _FILES:
            name, kind = _FILES[path]
            return PageAnswer(200, {"content-type": kind}, _file(name))
        match path:
            case "events":
                watch = await self._watch(request.query)
                headers = {"content-type": "text/event-stream", "x-accel-buffering": "no"}
                return PageAnswer(200, headers, stream=watch.hub.watch())
            case "pools":
                names = await self._pools.names()
                return json_answer({"pools": names, "first": await self._name({}), "control": self._control})
            case "task":
                return await self._task(request.query)
            case "metrics":
                return await self._metrics()
        return refused(404, "there is no such page")

    async def _name(self, query: Mapping[str, str]) -> str:
        if name := self._only or query.get("pool"):
            return name
        names = await self._pools.names()
        if not names:
            raise PoolNotFound("there is no pool yet; this page shows it when there is one")
        return names[0]

    async def _watch(self, query: Mapping[str, str]) -> PoolWatch:
        name = await self._name(query)
        async with self._opening:
            watch = self._watches.get(name)
            if watch is None:
                source = await self._pools.source(name)
                if self.closed:  # meanwhile: nothing would end the watch
                    raise _ClosingError
                watch = self._watches[name] = PoolWatch(source)
        watch.start()
        return watch

    async def _task(self, query: Mapping[str, str]) -> PageAnswer:
        watch, uid = await self._watch(query), query.get("uid", "")
        for session in watch.source.own_sessions():
            if (found := session.tasks.detail(uid)) is not None:
                repeat = f"batchflow replay {uid} --pool {watch.source.pool_id}"
                return json_answer(found | {"own": True, "repeat": repeat})
        row = watch.timeline.find(uid)
        if row is None:
            return refused(404, "neither a session of this program nor the agents' record knows this task")
        keys = ("uid", "task_id", "command", "session", "node", "submitted", "started", "finished")
        told: dict[str, Any] = dict(zip((*keys, "status", "error"), row, strict=True))
        job, _, client = row[3].partition("/")
        again = f"batchflow replay {uid} --pool {watch.source.pool_id}" if row[8] == "failed" else None
        return json_answer(told | {"job": job, "client": client, "own": False, "repeat": again})

    async def _metrics(self) -> PageAnswer:
        if not self._watches:
            await self._watch({})
        told = []
        for name, watch in list(self._watches.items()):  # another request may add one meanwhile
            watch.start()
            async with asyncio.timeout(_FIRST_LOOK):
                await watch.looked.wait()
            told.append((name, watch.parts["now"], watch.parts.get("queues", [])))
        return PageAnswer(200, {"content-type": CONTENT_TYPE}, exposition(told).encode())

    async def _act(self, request: PageRequest) -> PageAnswer:
        if not self._control:
            return refused(403, "this page only shows; start it with --control to let it act")
        if (refusal := _foreign(request)) is not None:
            return refused(403, refusal)
        try:
            told: Any = orjson.loads(request.body)
            number, name, action = told.get("answer"), told["pool"], told["action"]
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
            return refused(400, "the action is no JSON object with `pool` and `action`")
        if not isinstance(action, dict) or not isinstance(name, str):
            return refused(400, "the action is no JSON object with `pool` and `action`")
        asked = actions.question(action)
        if number is None:
            return json_answer({"question": asked, "answer": self._questions.ask({**action, "pool": name})})
        if not isinstance(number, str) or not self._questions.answer(number, {**action, "pool": name}):
            return refused(409, "the question was answered already, or too long ago: ask again")
        source: object = (await self._watch({"pool": name})).source
        if not isinstance(source, PoolSource):
            return refused(400, "this pool cannot be acted on")
        return json_answer({"done": await actions.perform(source.pool, action)})


def _foreign(request: PageRequest) -> str | None:
    """Return why a request may come from another site's page; None when it does not.

    A form of another site cannot send JSON, and a script there cannot without being asked for its origin.
    """
    if not request.headers.get("content-type", "").startswith("application/json"):
        return "an action is JSON"
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    if origin is not None and origin.partition("://")[2] != host:
        return "the request comes from another site"
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return "the request comes from another site"
    return None
