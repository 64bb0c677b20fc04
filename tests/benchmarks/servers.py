"""The brokers of the peers: Redis and RabbitMQ on loopback, a fresh one for each contender's round."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

RABBIT = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
READY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Server:
    """A broker that is up."""

    environment: dict[str, str] = field(default_factory=dict)
    """How a contender finds it."""
    pids: tuple[int, ...] = ()


class Missing(Exception):
    """What a contender needs is not on this machine."""


@contextmanager
def no_server() -> Iterator[Server]:
    yield Server()


@contextmanager
def redis() -> Iterator[Server]:
    """Debian's redis-server, as it comes but for persistence: nothing is written to the disk."""
    program = shutil.which("redis-server")
    if program is None:
        raise Missing("needs redis-server: apt-get install redis-server")
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with _running(command, {}) as pid:
        _until_listening(port)
        url = f"redis://127.0.0.1:{port}/0"
        yield Server({"REDIS_URL": url, "CELERY_BROKER": url, "CELERY_BACKEND": url}, (pid,))


@contextmanager
def rabbitmq() -> Iterator[Server]:
    """Debian's rabbitmq-server as it comes, in a folder of its own; results go by RPC."""
    epmd = shutil.which("epmd")
    if not RABBIT.exists() or epmd is None:
        raise Missing("needs rabbitmq-server: apt-get install rabbitmq-server")
    port, names, distribution = free_port(), free_port(), free_port()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        environment = {
            "HOME": folder,
            "ERL_EPMD_PORT": str(names),
            "RABBITMQ_NODENAME": "bench@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": folder,
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
        }
        stack.enter_context(_running([epmd, "-port", str(names)], {}))
        pid = stack.enter_context(_running([str(RABBIT)], environment))
        _until_listening(port)
        broker = f"amqp://guest:guest@127.0.0.1:{port}//"
        yield Server({"CELERY_BROKER": broker, "CELERY_BACKEND": "rpc://"}, (pid,))


SERVERS: dict[str, Callable[[], AbstractContextManager[Server]]] = {
    "": no_server,
    "redis": redis,
    "rabbitmq": rabbitmq,
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[int]:
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _until_listening(port: int) -> None:
    until = time.monotonic() + READY_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            if time.monotonic() > until:
                raise Missing(f"no broker on port {port} after {READY_SECONDS:.0f} s") from None
            time.sleep(0.05)
        else:
            return
