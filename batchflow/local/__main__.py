"""`python -m batchflow.local`: keeps a local cloud up until it is told to stop, or its parent is gone."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from batchflow.errors import BatchflowError
from batchflow.local.directory import remove_abandoned
from batchflow.local.publishing import published
from batchflow.local.server import LocalCloud, Ports
from batchflow.settings import Settings

_Number = TypeVar("_Number", int, float)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGINT, SIGTERM or SIGHUP; the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(options))
    except BatchflowError as error:
        sys.stderr.write(f"batchflow.local: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"batchflow.local: {error.filename or options.config}: {error.strerror or error}\n")
        return 1
    return 0


async def _serve(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)
    if options.lifeline is not None:
        _hold_on(options.lifeline, stop)
    cloud = LocalCloud(
        nodes=options.nodes,
        slots=options.slots,
        latency=options.latency,
        namespaces=options.namespaces,
        ports=Ports(options.servicebus_port, options.batch_port, options.blob_port),
        directory=options.directory,
    )
    settings = await cloud.start()
    try:
        with published(options.config, settings.to_toml()):
            _announce(settings, options.config)
            await asyncio.to_thread(remove_abandoned)
            await stop.wait()
    finally:
        await cloud.aclose()


def _hold_on(parent: int, stop: asyncio.Event) -> None:
    """Stop when standard input ends or says anything, or process `parent` ends.

    The last covers a parent that forked children, which inherited the other end of standard input.
    """
    loop = asyncio.get_running_loop()

    def let_go(descriptor: int) -> None:
        loop.remove_reader(descriptor)
        stop.set()

    loop.add_reader(sys.stdin.fileno(), let_go, sys.stdin.fileno())
    try:
        process = os.pidfd_open(parent)
    except ProcessLookupError:
        stop.set()
    except OSError:
        logging.getLogger(__name__).warning("cloud.no_pidfd")
    else:
        loop.add_reader(process, let_go, process)


def _announce(settings: Settings, config: Path) -> None:
    sys.stdout.write(
        f"Service Bus connection string: {settings.servicebus.connection_string}\n"
        f"Service Bus CA file: {settings.servicebus.ca_file}\n"
        f"Storage connection string: {settings.storage.connection_string}\n"
        f"Batch url: {settings.batch.url} account: {settings.batch.account} key: {settings.batch.key}\n"
        f"ready, configuration in {config}\n"
    )
    sys.stdout.flush()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _parser() -> _Parser:
    parser = _Parser(prog="batchflow.local", description="A local cloud: Service Bus, Batch and Blob.")
    parser.add_argument("--config", type=_file, required=True, help="file to write the configuration to")
    parser.add_argument("--nodes", type=_count, default=2, help="nodes of a new pool (default: 2)")
    parser.add_argument("--slots", type=_count, default=1, help="tasks at once on a node (default: 1)")
    parser.add_argument("--latency", type=_seconds, default=0.0, help="delay of each answer, in seconds")
    parser.add_argument("--namespaces", type=_count, default=1, help="of Service Bus (default: 1)")
    for service in ("servicebus", "batch", "blob"):
        parser.add_argument(f"--{service}-port", type=_port, default=0, help="default: any free port")
    parser.add_argument("--directory", type=Path, help="empty private directory to use, removed at the end")
    parser.add_argument(
        "--lifeline", type=_count, metavar="PID", help="exit when standard input ends or process PID does"
    )
    return parser


def _file(text: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a file in an existing directory")
    return path


def _count(text: str) -> int:
    return _number(int, text, 1, 1_000_000_000)


def _port(text: str) -> int:
    return _number(int, text, 0, 65_535)


def _seconds(text: str) -> float:
    return _number(float, text, 0, 3_600)


def _number(kind: type[_Number], text: str, low: int, high: int) -> _Number:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
    return value


if __name__ == "__main__":
    sys.exit(main())
