"""`python -m batchflow.local`: keeps a local cloud up until it is told to stop, or its parent is gone."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn, TypeVar

from batchflow.errors import BatchflowError
from batchflow.local.directory import remove_abandoned
from batchflow.local.publishing import published
from batchflow.local.security.certificate import Maker, MakerAside
from batchflow.local.security.entra import CREATOR_ROLES, NODE_ROLES, ROLES, Assignment
from batchflow.local.server import AUTOSCALE_INTERVAL, LocalCloud, Ports
from batchflow.settings import Settings
from batchflow.support import linux, process_tuning

_Number = TypeVar("_Number", int, float)

_ME = "me"
_NODES = "nodes"
"""The principals of a cloud with Entra ID."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: list[str] | None = None, certificate: Maker | None = None) -> int:
    """Run until SIGINT, SIGTERM or SIGHUP; the exit status. `certificate`: what was begun before."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.entra is None and (options.role or options.identity):
        parser.error("--role and --identity are for a cloud with --entra FILE")
    linux.heed_children()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    maker = certificate or MakerAside()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(options, maker))
    except BatchflowError as error:
        sys.stderr.write(f"batchflow.local: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"batchflow.local: {error.filename or options.config}: {error.strerror or error}\n")
        return 1
    return 0


async def _serve(options: argparse.Namespace, certificate: Maker) -> None:
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
        node_user=options.node_user,
        boot_delay=options.boot_time,
        autoscale_interval=options.autoscale_interval,
        namespaces=options.namespaces,
        ports=Ports(options.servicebus_port, options.batch_port, options.blob_port),
        directory=options.directory,
        roles=_roles(options),
        identities=dict.fromkeys(options.identity, _NODES),
        certificate=certificate,
    )
    settings = await cloud.start()
    process_tuning.keep_imports()
    try:
        with ExitStack() as files:
            files.enter_context(published(options.config, settings.to_toml()))
            for path, text in _keyless(cloud, options.entra):
                files.enter_context(published(path, text))
            _announce(settings, options.config, options.entra)
            await asyncio.to_thread(remove_abandoned)
            trimming = asyncio.create_task(process_tuning.trim_heap(), name="trim heap")
            await stop.wait()
            trimming.cancel()
    finally:
        await cloud.aclose()


def _roles(options: argparse.Namespace) -> dict[str, Sequence[Assignment]]:
    """Return the roles of each principal; none for a cloud without Entra ID."""
    if options.entra is None:
        return {}
    mine = options.role or [Assignment(role) for role in CREATOR_ROLES]
    return {_ME: mine, _NODES: [Assignment(role) for role in NODE_ROLES]}


def _keyless(cloud: LocalCloud, path: Path | None) -> Iterator[tuple[Path, str]]:
    """Return the files for programs that have roles: the settings and the environment."""
    if path is not None:
        yield path, cloud.keyless_settings.to_toml()
        variables = cloud.identity_environment(_ME)
        yield (
            path.with_suffix(".env"),
            "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items()),
        )


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


def _announce(settings: Settings, config: Path, entra: Path | None) -> None:
    if entra is not None:
        sys.stdout.write(f"Entra ID: configuration in {entra}, environment in {entra.with_suffix('.env')}\n")
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
    parser.add_argument("--nodes", type=_nodes, default=2, help="nodes of a new pool (default: 2)")
    parser.add_argument("--slots", type=_count, default=1, help="tasks at once on a node (default: 1)")
    parser.add_argument("--latency", type=_seconds, default=0.0, help="delay of each answer, in seconds")
    parser.add_argument(
        "--boot-time", type=_seconds, default=0.0, help="seconds that a node takes to boot (default: 0)"
    )
    parser.add_argument(
        "--autoscale-interval",
        type=_interval,
        default=AUTOSCALE_INTERVAL,
        help="seconds between two evaluations of a formula (default: 300, as on Azure)",
    )
    parser.add_argument("--namespaces", type=_count, default=1, help="of Service Bus (default: 1)")
    for service in ("servicebus", "batch", "blob"):
        parser.add_argument(f"--{service}-port", type=_port, default=0, help="default: any free port")
    parser.add_argument(
        "--entra", type=_file, metavar="FILE", help="give tokens; a configuration without keys to write"
    )
    parser.add_argument(
        "--role",
        type=_role,
        action="append",
        default=[],
        metavar="ROLE[@SCOPE]",
        help="of the user of the tokens, at a queue or container; repeat (default: a pool creator's roles)",
    )
    parser.add_argument(
        "--identity",
        action="append",
        default=[],
        metavar="POOL",
        help="a pool whose nodes have a managed identity; repeat",
    )
    parser.add_argument("--node-user", metavar="NAME", help="whom the nodes run as, if root starts the cloud")
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


def _role(text: str) -> Assignment:
    role, _, scope = text.partition("@")
    if role not in ROLES:
        raise argparse.ArgumentTypeError(f"{role!r} is not a role; allowed: {', '.join(ROLES)}")
    return Assignment(role, scope)


def _count(text: str) -> int:
    return _number(int, text, 1, 1_000_000_000)


def _nodes(text: str) -> int:
    return _number(int, text, 0, 1_000_000)


def _interval(text: str) -> float:
    return _number(float, text, 1, 604_800)


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
