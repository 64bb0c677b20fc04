"""Sends rows to Log Analytics beside the work: in batches, tried again, dropped with a count.

Nothing waits for it. What a task, a session or a reader does costs one row in memory. When the service takes
nothing, rows wait up to a bound, then new ones are dropped, and their number is a row of its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from batchflow.errors import BatchflowError, ConfigurationError, ServiceError
from batchflow.pools.monitoring import rows as make
from batchflow.pools.monitoring.agent_logs import AgentLogs
from batchflow.pools.monitoring.buffer import RowBatch, RowBuffer
from batchflow.pools.reports.heartbeats import read_heartbeats
from batchflow.support.backoff import Backoff
from batchflow.support.event_log import event_logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchflow.pools.open_sessions import OpenSessions
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.ports.ingestion import LogIngestion
    from batchflow.protocol.wire import ResultItem
    from batchflow.settings import Settings

logger = event_logger(__name__)

INTERVAL: Final = 5.0
"""Seconds that rows gather."""
LAST: Final = 5.0
"""Seconds that the last rows have when the client closes."""
_REFUSED_PAUSE: Final = 600.0
"""Seconds after which a service that refused is asked again."""
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Shipper:
    """Takes rows, and sends them while `run` runs. Belongs to one event loop."""

    def __init__(self, ingestion: LogIngestion, streams: tuple[str, str, str]) -> None:
        """`streams`: of tasks, nodes and logs."""
        self._ingestion = ingestion
        self._tasks, self._nodes, self._logs = streams
        self.buffer: RowBuffer = RowBuffer()
        self._events: dict[str, make.NodeEvents] = {}
        self._agent_logs = AgentLogs(self._log_rows)
        self._runtimes: dict[str, PoolRuntime] = {}
        self._refused: str | None = None

    # ---- what the client's parts tell; none of these waits

    def task(self, runtime: PoolRuntime, item: ResultItem, trace: Any) -> None:
        """Take the outcome of a task. `trace`: its `TaskTrace`, if it has one."""
        self.see(runtime)
        trace_id = None if trace is None else f"{trace.context.trace_id:032x}"
        self.buffer.add(self._tasks, make.task_row(runtime.pool_id, item, time.time(), trace_id))

    def see(self, runtime: PoolRuntime) -> None:
        """Note a pool, of whose agents this client may have to tell."""
        self._runtimes[runtime.pool_id] = runtime

    def log(self, record: logging.LogRecord) -> None:
        """Take a line of this program's log."""
        fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        event = record.getMessage().partition(":")[0]
        self.buffer.add(self._logs, make.client_log_row(record.levelname, event, fields, record.created))

    def _log_rows(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            self.buffer.add(self._logs, row)

    # ---- sending

    async def run(self) -> None:
        """Send what gathers, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            for runtime in list(self._runtimes.values()):
                if await self._agent_logs.read(runtime):
                    await self._tell_nodes(runtime)
            await self.flush()

    async def _tell_nodes(self, runtime: PoolRuntime) -> None:
        try:
            beats = await read_heartbeats(runtime.out)
        except ServiceError as error:
            logger.info("heartbeats_not_read", extra={"pool": runtime.pool_id, "error": str(error)})
            return
        events = self._events.setdefault(runtime.pool_id, make.NodeEvents())
        for row in events.rows(runtime.pool_id, beats, time.time()):
            self.buffer.add(self._nodes, row)

    async def flush(self) -> None:
        """Send what waits. Returns when it is sent or dropped; waits as long as the service asks for."""
        backoff = Backoff(1.0)
        while (batch := self._next()) is not None:
            await self._send(batch, backoff)

    def _next(self) -> RowBatch | None:
        if dropped := self.buffer.take_dropped():
            self.buffer.add(
                self._logs, make.client_log_row("WARNING", "rows_dropped", {"rows": dropped}, time.time())
            )
        return self.buffer.take()

    async def _send(self, batch: RowBatch, backoff: Backoff) -> None:
        try:
            answer = await self._ingestion.upload(batch.stream, [row for row, _ in batch.rows])
        except BaseException:
            self.buffer.put_back(batch)
            raise
        match answer.state:
            case "taken":
                self.buffer.taken(batch)
                self._refused = None
                backoff.reset()
            case "too large":
                self.buffer.too_large(batch)
            case "later":
                self.buffer.put_back(batch)
                logger.debug("rows_wait", extra={"reason": answer.reason})
                if answer.wait is None:
                    await backoff.wait()
                else:
                    await asyncio.sleep(answer.wait)
            case "refused":
                self.buffer.drop(batch)
                await self._refuse(answer.reason)

    async def _refuse(self, reason: str) -> None:
        """Say once that the service refuses, and leave it alone for a while. What waits is dropped."""
        if self._refused is None:
            logger.warning("monitor_refused", extra={"reason": reason})
        self._refused = reason
        self.buffer.drop_all()
        await asyncio.sleep(_REFUSED_PAUSE)


class _LogHandler(logging.Handler):
    """Hands the lines of a program's log to a shipper, from whichever thread they come."""

    def __init__(self, shipper: Shipper) -> None:
        super().__init__(logging.INFO)
        self._shipper = shipper
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if threading.get_ident() == self._thread:
            self._shipper.log(record)
        else:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._shipper.log, record)


@asynccontextmanager
async def shipping(settings: Settings, sessions: OpenSessions) -> AsyncIterator[None]:
    """Send what happens in these sessions to Log Analytics while the block lasts, if an endpoint is set.

    Raises `ConfigurationError` when the settings are not complete, or the extra is not installed.
    """
    wanted = settings.monitor
    if wanted.endpoint is None:
        yield
        return
    streams = wanted.streams.split()
    if wanted.rule is None or len(streams) != 3:
        raise ConfigurationError(
            "monitor.endpoint is set: monitor.rule and three names in monitor.streams are needed, too; "
            "`batchflow monitor setup` makes them"
        )
    from batchflow.azure.identity import logged_in
    from batchflow.azure.monitor import MonitorIngestion

    async with (
        logged_in("monitor.endpoint") as credential,
        MonitorIngestion(wanted.endpoint, wanted.rule, credential, wanted.ca_file) as ingestion,
    ):
        shipper = sessions.monitor = Shipper(ingestion, (streams[0], streams[1], streams[2]))
        root, handler = event_logger("batchflow").logger, _LogHandler(shipper)
        root.addHandler(handler)
        running = asyncio.create_task(shipper.run(), name="send rows to Log Analytics")
        try:
            yield
        finally:
            root.removeHandler(handler)
            sessions.monitor = None
            running.cancel()
            await asyncio.wait([running])
            await _finish(shipper)


async def _finish(shipper: Shipper) -> None:
    """Send the last rows; what is left then is told in the log."""
    try:
        async with asyncio.timeout(LAST):
            await shipper.flush()
    except (TimeoutError, BatchflowError):
        left = len(shipper.buffer)
        logger.warning("rows_not_sent", extra={"rows": left})
