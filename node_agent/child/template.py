"""The template: a clean Python process that the children of an agent's slots are forked from.

Nothing of a task ever runs in it: it has one thread, the standard library, and this package. A fork takes a
few milliseconds, and the child has all that was imported here.

The agent asks for a child by a message on a socket: JSON, and the descriptors that the child takes over. The
template forks twice and the first fork ends, so that the child becomes a child of the agent, which is a child
subreaper. The agent then waits for it, and may end it, whatever becomes of the template.

What goes wrong before the child is ready is written to the child's stderr.
"""

from __future__ import annotations

import _socket
import ctypes
import os
import resource
import select
import struct
import time
from contextlib import suppress

import orjson

from batchflow.support import linux
from node_agent.child.channel import AGENT_GONE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

LINE, PERMITS, STDOUT, STDERR = range(4)
"""The places of the descriptors that come with a request."""
_LARGEST_REQUEST: Final = 4096
_QUIET: Final = 300
"""Milliseconds without a request after which the template imports ahead."""
_AHEAD: Final = ("asyncio", "traceback", "json", "subprocess", "tempfile", "logging", "random", "inspect")
"""Modules of the standard library that tasks often import. They start no thread."""
_ADOPTION_PAUSE: Final = 0.0002
"""Seconds between two looks at whether the agent has become the parent."""


def serve(line: int) -> list[int]:
    """Fork children until the agent ends. Returns in each child, with its descriptors."""
    requests = _socket.socket(fileno=line)
    agent = os.getppid()
    linux.set_parent_death_signal()
    waiting = select.poll()
    waiting.register(line, select.POLLIN)
    while True:
        data, descriptors = _receive(requests)
        if not data:
            os._exit(AGENT_GONE)
        if _fork(orjson.loads(data), descriptors, agent):
            requests.close()
            return descriptors
        for descriptor in descriptors:
            os.close(descriptor)
        if not waiting.poll(_QUIET):
            _import_ahead()


def _receive(requests: _socket.socket) -> tuple[bytes, list[int]]:
    room = _socket.CMSG_SPACE(5 * struct.calcsize("i"))
    data, ancillary, _, _ = requests.recvmsg(_LARGEST_REQUEST, room, _socket.MSG_CMSG_CLOEXEC)
    found: list[int] = []
    for _, _, packed in ancillary:
        found += struct.unpack(f"{len(packed) // struct.calcsize('i')}i", packed)
    return data, found


def _fork(request: dict[str, Any], descriptors: list[int], agent: int) -> bool:
    """Fork a child; return whether this is the child."""
    try:
        first = os.fork()
    except OSError as error:
        _complain(descriptors[STDERR], error)
        return False
    if first:
        os.waitpid(first, 0)
        return False
    try:
        first = os.getpid()
        if os.fork():
            os._exit(0)
        _become_child(request, descriptors, first, agent)
    except BaseException as error:
        _complain(descriptors[STDERR], error)
        os._exit(1)
    return True


def _complain(stderr: int, error: BaseException) -> None:
    with suppress(OSError):  # the agent may wait for this child no longer
        os.write(stderr, f"the child could not be forked: {type(error).__name__}: {error}\n".encode())


def _become_child(request: dict[str, Any], descriptors: list[int], first: int, agent: int) -> None:
    os.setsid()
    while os.getppid() == first:
        time.sleep(_ADOPTION_PAUSE)
    linux.set_parent_death_signal()
    if os.getppid() != agent:
        os._exit(AGENT_GONE)
    os.dup2(descriptors[STDOUT], 1)
    os.dup2(descriptors[STDERR], 2)
    _mark(request["variable"], request["mark"])
    if (most := request["most_processes"]) is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
    os.close(descriptors[STDOUT])
    os.close(descriptors[STDERR])  # last, because what goes wrong is written to it


def _mark(variable: str, mark: str) -> None:
    """Set an environment variable where the kernel shows it, too.

    `/proc/<pid>/environ` is the memory in which the environment was when the program began. The value there
    is as long as a mark, so that it can be overwritten.
    """
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_void_p
    address, value = getenv(variable.encode()), mark.encode()
    if address is None or len(ctypes.string_at(address)) != len(value):
        raise ValueError(f"{variable} is not of the length of {mark!r} in the template")
    ctypes.memmove(address, value, len(value))
    os.environ[variable] = mark


def _import_ahead() -> None:
    """Import what tasks often need, once, while no child is wanted."""
    global _ahead
    if _ahead:
        return
    _ahead = True
    import gc
    import importlib

    for name in _AHEAD:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that a collection in a child copies none of the shared pages


_ahead = False
